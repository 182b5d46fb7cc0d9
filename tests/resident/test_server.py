"""The resident: it serves who may ask, survives bad requests, and ends when nobody needs it."""

from __future__ import annotations

import asyncio
import json
import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from gpi_latents import joblog
from gpi_latents.errors import ItemError, ModelError
from gpi_latents.resident import server
from gpi_latents.resident.engine import Request
from gpi_latents.resident.server import explain, parse_request
from helpers.bench import LONG, RECIPE, Bench, finished
from helpers.study import draw, residents, wait_for


@pytest.mark.fault("picture")
def test_a_bad_item_leaves_the_resident_serving(shared):
    (shared.folder / "text.png").write_text("no picture")
    resident = shared.resident()
    output = finished(shared.client("bad", image="text.png"), 1)
    assert output.startswith(f"{joblog.ERROR}text.png: the picture 'text.png' cannot be read")
    finished(shared.client("good"))
    assert residents(shared.folder) == [resident]


@pytest.mark.fault("disk")
def test_a_result_that_cannot_be_written_is_a_clear_error(shared):
    (shared.folder / "results/hidden/full.pt").mkdir()
    assert "results/hidden/full.pt cannot be written: Is a directory" in finished(shared.client("full"), 1)
    (shared.folder / "results/hidden/full.pt").rmdir()
    assert not list((shared.folder / "results").rglob("*.tmp"))


@pytest.mark.fault("disk")
@pytest.mark.skipif(os.getuid() != 0, reason="only root can mount a small disk")
def test_a_full_disk_and_a_read_only_one_are_clear_errors_and_heal(shared):
    disk = shared.folder / "results/hidden"
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", disk], check=True)
    try:
        (disk / "filler").write_bytes(b"x" * 2**16)
        assert "full.pt cannot be written: No space left on device" in finished(shared.client("full"), 1)
        assert shared.hidden() == []
        (disk / "filler").unlink()
        subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
        assert "Read-only file system" in finished(shared.client("full"), 1)
        subprocess.run(["mount", "-o", "remount,rw", disk], check=True)
        finished(shared.client("full"))
        assert shared.hidden() == ["full.pt"]
    finally:
        subprocess.run(["umount", "-l", disk], check=True)


@pytest.mark.fault("model")
def test_a_model_that_cannot_be_loaded_is_reported_to_all_who_wait(bench):
    (bench.folder / "results/model.json").write_text('{"model_id": "gone", "commit": null}')
    clients = [bench.client(f"x{number}") for number in range(3)]
    for client in clients:
        assert "error: the model could not be loaded: the model gone is not on this machine" in finished(client, 1)
    wait_for(bench.nothing_left, what="the resident to end")


@pytest.mark.fault("picture")
def test_an_item_that_hangs_fails_by_name_and_the_others_are_made(tmp_path):
    """It holds one of two threads for ever; one item is being made beside it, and one waits for its turn."""
    bench = Bench(tmp_path / "study", stub=True, item_timeout=1)
    draw(bench.folder / "hang.png")
    hanging = bench.client("hangs", image="hang.png")
    beside = bench.client("beside", num_inference_steps=600)
    bench.begun("beside")
    first = bench.resident()
    waiting = bench.client("waiting")
    problem = finished(hanging, 1)
    assert re.search(
        r"error: hang\.png: no progress for \d s while opening the picture; .* raise item_timeout", problem
    )
    assert bench.hidden() == []
    for client in (beside, waiting):
        assert "trying again" not in finished(client)
    finished(bench.client("later"))
    assert bench.hidden() == ["beside.pt", "later.pt", "waiting.pt"]
    assert residents(bench.folder) != [first]
    assert bench.resident_log().count("loaded the model") == 2
    assert "hang.png: no progress" in finished(once(bench, "hang.png"), 1)
    bench.end()


@pytest.mark.fault("kill")
def test_an_item_that_hangs_does_not_hold_up_others_when_its_client_is_killed(tmp_path):
    bench = Bench(tmp_path / "study", stub=True, item_timeout=2)
    draw(bench.folder / "hang.png")
    hanging = [bench.client(f"hangs{number}", image="hang.png") for number in range(2)]  # in both threads
    for number in range(2):
        wait_for((bench.folder / f"results/hidden/hangs{number}.pt.hangs").exists, what="the item to hang")
    for client in hanging:
        client.kill()
        client.wait()
    finished(bench.client("later"))
    assert bench.resident_log().count("loaded the model") == 2
    bench.end()


@pytest.mark.fault("picture")
def test_of_a_batch_that_hangs_each_item_is_tried_alone(tmp_path):
    bench = Bench(tmp_path / "study", stub=True, item_timeout=1, batch_size=2)
    draw(bench.folder / "hang.png")
    beside = bench.client("beside", num_inference_steps=300)
    bench.begun("beside")
    hanging = bench.client("hangs", image="hang.png")
    assert "trying again" in finished(beside)
    assert "error: hang.png: no progress" in finished(hanging, 1)
    assert bench.hidden() == ["beside.pt"]
    bench.end()


@pytest.mark.fault("clock")
@pytest.mark.timeout(60)
@pytest.mark.parametrize("sent", [b"", b'{"image": "p.png"'])
def test_who_does_not_send_a_whole_request_is_told_to_ask_again(monkeypatch, sent):
    """Such as a client on a machine that slept meanwhile."""
    monkeypatch.setattr(server, "REQUEST_SECONDS", 0.01)

    async def answer() -> bytes:
        ours, theirs = socket.socketpair()
        with ours:
            ours.send(sent)
            await server.Resident({}, workers=1).serve(*await asyncio.open_unix_connection(sock=theirs))
            return ours.recv(100)

    assert asyncio.run(answer()) == b"503 ask again\n"


@pytest.mark.fault("kill")
def test_the_clients_of_a_killed_run_do_not_overwrite_what_a_later_run_makes(shared):
    """After kill -9 of Snakemake its clients live on; meanwhile the user changes a setting and runs again."""
    run = subprocess.Popen(["sleep", "600"])
    orphan = shared.client("same", run=run.pid, **LONG)
    shared.begun("same")
    run.kill()
    run.wait()
    finished(shared.client("same", seed=99))
    assert "its Snakemake has ended" in finished(orphan, 1)
    assert json.loads((shared.folder / "results/hidden/same.pt").read_text())["seed"] == 99
    ended = subprocess.Popen(["true"])
    ended.wait()
    assert f"process {ended.pid}, is not running" in finished(shared.client("same", run=ended.pid), 1)


def test_it_ends_with_its_run_and_with_its_working_directory(tmp_path):
    bench = Bench(tmp_path / "study", stub=True)
    run = subprocess.Popen(["sleep", "600"])
    finished(bench.client("first", run=run.pid))
    run.kill()
    run.wait()
    wait_for(bench.nothing_left, 10, "the resident to end with its run")
    finished(bench.client("second"))
    resident = bench.resident()
    bench.folder.rename(tmp_path / "away")
    wait_for(lambda: not resident.is_running() or resident.status() == "zombie", 10, "the resident to end")


@pytest.mark.fault("stranger")
@pytest.mark.skipif(os.getuid() != 0, reason="only root can become another user")
def test_another_user_is_refused(shared):
    path = shared.socket_path()
    for folder in [Path(path).parent, *Path(path).parent.parents]:
        if folder.stat().st_mode & 0o005 != 0o005:
            folder.chmod(0o755)  # even where the directory would let others in
    os.chmod(path, 0o777)
    code = (
        "import socket, sys, os; os.setgid(65534); os.setuid(65534); s = socket.socket(socket.AF_UNIX); "
        "s.connect(sys.argv[1]); s.sendall(b'{}\\n'); print(repr(s.recv(100)))"
    )
    answer = subprocess.run([sys.executable, "-c", code, path], capture_output=True, text=True, timeout=30)
    refused = ("ConnectionResetError", "BrokenPipeError")  # or closed, whichever comes first
    assert answer.stdout.strip() == "b''" or any(error in answer.stderr for error in refused), answer
    own = code.replace("os.setgid(65534); os.setuid(65534); ", "")
    answer = subprocess.run([sys.executable, "-c", own, path], capture_output=True, text=True, timeout=30)
    assert "not a valid request" in answer.stdout
    Path(path).parent.chmod(0o700)  # for the other tests


@pytest.mark.fault("stranger")
def test_malformed_requests_are_refused_and_the_next_is_served(shared):
    contents = [b"", b"x", b"[" * 100_000, b"\xff" * 100, b"1" * 2**20, b"{}", b"[]"]
    for content in [*contents, json.dumps(request(latent="../../x.pt")).encode()]:
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(30)
            connection.connect(shared.socket_path())
            try:
                connection.sendall(content + b"\n")
                assert connection.recv(200).startswith(b"500 not a valid request")
            except ConnectionError:
                pass  # refused before all of it was read
    finished(shared.client("after"))
    assert not list(shared.folder.glob("*.pt"))


def request(**changed) -> dict:
    whole = {"image": "a.png", "recipe": RECIPE, "latent": "results/hidden/a.pt", "picture": None, "run": 1}
    return whole | changed


CONFIG = {"output_hidden_dir": "results/hidden", "output_image_dir": "results/images"}


@pytest.mark.parametrize(
    ("given", "problem"),
    [
        ([], "has the keys image, recipe, latent, picture, run"),
        ({"image": "a.png"}, "has the keys"),
        (request(more=1), "has the keys"),
        (request(image=1), "image is of the wrong kind"),
        (request(recipe="{}"), "recipe is of the wrong kind"),
        (request(run="1"), "run is of the wrong kind"),
        (request(latent=None), "latent is of the wrong kind"),
        (request(latent="x.pt"), "'x.pt' is not in the result folder 'results/hidden'"),
        (request(latent="results/hidden/../x.pt"), "is not in the result folder"),
        (request(picture="results/hidden/x.png"), "is not in the result folder 'results/images'"),
    ],
)
def test_a_request_writes_only_into_the_result_folders(given, problem):
    with pytest.raises(ValueError, match=problem):
        parse_request(given, CONFIG)


def test_a_request_for_a_picture_is_refused_where_none_are_decoded():
    parsed, run = parse_request(request(picture="results/images/a.png"), CONFIG)
    assert (parsed.latent, parsed.picture, run) == ("results/hidden/a.pt", "results/images/a.png", 1)
    with pytest.raises(ValueError, match="is not in the result folder None"):
        parse_request(request(picture="results/images/a.png"), CONFIG | {"output_image_dir": None})


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (ItemError("bad"), "a.png: bad"),
        (ModelError("two\nlines"), "a.png: two\nlines"),
        (KeyError("x"), "a.png: KeyError: 'x'"),
        (MemoryError(), "a.png: MemoryError: MemoryError"),
    ],
)
def test_a_problem_that_users_cannot_solve_is_named_by_its_type(error, message):
    assert explain(error, Request("a.png", {}, "a.pt")) == message


def test_without_a_resident_the_log_is_the_same(tmp_path):
    """The command of `resident: false`, with a real model and a file name that looks like an option."""
    bench = Bench(tmp_path / "study")
    draw(bench.folder / "-rf.png")
    assert "-rf.png" not in finished(once(bench, "-rf.png", "results/images/a.png"))
    assert torch.load(bench.folder / "results/hidden/a.pt", weights_only=True).shape == (1, 4, 8, 8)
    assert (bench.folder / "results/images/a.png").exists()
    (bench.folder / "results/model.json").write_text('{"model_id": "gone", "commit": null}')
    assert finished(once(bench, "-rf.png"), 1).startswith(f"{joblog.ERROR}-rf.png: ")


@pytest.mark.fault("skip")
def test_without_a_resident_skip_leaves_out_the_same_items(bench):
    (bench.folder / "bad.png").write_text("no picture")
    (bench.folder / "results/hidden/a.pt").write_text("of an earlier run")
    output = finished(once(bench, "bad.png", "results/images/a.png", on_error="skip"))
    assert f"\n{joblog.ERROR}bad.png: the picture 'bad.png' cannot be read" in output
    left = [bench.folder / "results/hidden/a.pt", bench.folder / "results/images/a.png"]
    assert [path.read_bytes() for path in left] == [b"", b""]
    (bench.folder / "results/model.json").write_text('{"model_id": "gone", "commit": null}')
    assert "the model gone is not on this machine" in finished(once(bench, "bad.png", on_error="skip"), 1)


def once(bench: Bench, image: str, *pictures: str, on_error: str = "stop") -> subprocess.Popen:
    command = [sys.executable, bench.script.with_name("resident.py"), "once", "--plan", bench.plan_folder]
    command += ["--on-error", on_error]
    return subprocess.Popen(
        [*command, "--item", str(bench.place(image)), "--output", "results/hidden/a.pt", *pictures],
        cwd=bench.folder,
        env=bench.environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
