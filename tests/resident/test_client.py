"""The client: one resident, whatever happens to it or around it."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import stat
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
import torch
from gpi_latents import joblog, paths
from gpi_latents.study.settings import load_config
from gpi_latents.study.study import Study
from helpers.bench import CLIENT, LONG, Bench, finished
from helpers.study import ROOT, draw, residents, wait_for


def test_clients_that_start_together_get_one_resident_and_it_ends_when_idle(tmp_path):
    """With a real model."""
    bench = Bench(tmp_path / "study", resident_idle_seconds=2)
    clients = [bench.client(f"x{number}", picture=number == 0) for number in range(8)]
    bench.resident()
    assert len(residents(bench.folder)) == 1
    outputs = [finished(client) for client in clients]
    assert any("loading the model" in output for output in outputs)  # progress for those who wait
    for output in outputs:
        *states, last = output.splitlines()
        assert set(states) <= set(joblog.STATES)
        assert len(set(states)) == len(states)  # each once
        assert json.loads(last)["done"] == ["PNG 64 x 64 RGB"]
    assert len(residents(bench.folder)) == 1
    assert bench.resident_log().count("loaded the model") == 1
    assert torch.load(bench.folder / "results/hidden/x0.pt", weights_only=True).shape == (1, 4, 8, 8)
    assert [path.name for path in (bench.folder / "results/images").iterdir()] == ["x0.png"]
    wait_for(bench.nothing_left, what="the idle resident to end")


@pytest.mark.fault("kill")
def test_a_client_that_is_killed_does_not_block_the_next_and_writes_nothing(shared):
    killed = [shared.client(f"killed{number}", **LONG) for number in range(2)]
    for number in range(2):
        shared.begun(f"killed{number}")
    resident = shared.resident()
    for client in killed:
        client.kill()
        client.wait()
    finished(shared.client("next"))
    assert residents(shared.folder) == [resident]
    for number in range(2):
        shared.abandoned(f"killed{number}")
    assert shared.hidden() == ["next.pt", "warm.pt"]


@pytest.mark.fault("kill")
def test_a_resident_that_is_killed_is_replaced_and_the_item_is_done(bench):
    client = bench.client("only", num_inference_steps=300)
    bench.begun("only")
    bench.resident().kill()
    output = finished(client)
    assert "ended while it was processing this item (out of memory? killed?); trying again with a new one" in output
    assert bench.hidden() == ["only.pt"]


@pytest.mark.fault("kill")
def test_an_item_that_kills_every_resident_fails_with_the_end_of_its_log(bench):
    client = bench.client("only", **LONG)
    for _ in range(2):
        bench.begun("only")
        (bench.folder / "results/hidden/only.pt.begun").unlink()
        bench.resident().kill()
    first, second, *end = (line for line in finished(client, 1).splitlines() if line != joblog.WORKING)
    assert first.startswith("the resident model ended while it was processing this item")
    assert second.startswith(f"{joblog.ERROR}the resident model ended while it was processing this item")
    assert end[0].startswith("The end of logs/resident-")
    assert "loaded the model" in " ".join(end)


@pytest.mark.fault("model")
def test_a_resident_that_cannot_start_fails_the_item_with_the_end_of_its_log(bench):
    (bench.folder / "resident.py").unlink()
    output = finished(bench.client("only"), 1)
    assert "error: the resident model ended before it listened" in output
    assert "No such file or directory" in output


def test_another_model_or_slurm_job_is_not_served_by_the_old_process(bench):
    finished(bench.client("first"))
    model = bench.folder / paths.MODEL
    model.write_text(model.read_text().replace('"revision": null', '"revision": "other"'))
    finished(bench.client("second"))
    assert len(residents(bench.folder)) == 2
    bench.environment["SLURM_JOB_ID"] = "77"
    finished(bench.client("third"))
    assert len(residents(bench.folder)) == 3
    for process in residents(bench.folder):
        process.terminate()
    wait_for(bench.nothing_left, what="the residents to end")


def test_edited_code_is_not_served_by_the_old_process(tmp_path, monkeypatch):
    study = SimpleNamespace(config=load_config({"model_id": "demo"}))
    name = Study._resident_name(study, "python")
    copy = shutil.copytree(paths.PACKAGE, tmp_path / "gpi_latents", ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setattr(paths, "PACKAGE", copy)
    assert Study._resident_name(study, "python") == name
    with (copy / "core/diffusion.py").open("a") as source:
        source.write("\n# edited\n")
    assert Study._resident_name(study, "python") != name


@pytest.mark.fault("kill")
def test_what_a_killed_resident_leaves_is_cleared_by_the_next_of_any_model(bench):
    finished(bench.client("first"))
    resident = bench.resident()
    resident.kill()
    resident.wait()
    left = {path.name for path in bench.tmp.glob("*/*")}
    assert left
    model = bench.folder / paths.MODEL
    model.write_text(model.read_text().replace('"revision": null', '"revision": "other"'))
    finished(bench.client("second"))
    assert not left & {path.name for path in bench.tmp.glob("*/*")}


@pytest.mark.fault("kill")
def test_a_resident_that_is_stopped_is_given_up(bench):
    edit(bench.folder / CLIENT, "PATIENCE = 120 ", "PATIENCE = 3 ")
    client = bench.client("first", **LONG)
    bench.begun("first")
    bench.resident().send_signal(signal.SIGSTOP)
    assert "error: the resident model has given no sign of life for 3 s: end that process" in finished(client, 1)


def test_a_long_tmpdir_works(bench):
    bench.environment["TMPDIR"] = str(bench.tmp / ("x" * 200))
    Path(bench.environment["TMPDIR"]).mkdir()
    finished(bench.client("first"))
    bench.resident().terminate()
    wait_for(lambda: not residents(bench.folder))


@pytest.mark.fault("clock")
def test_a_machine_that_slept_costs_no_item(bench):
    """All its processes stand still for longer than a resident may be silent."""
    edit(bench.folder / CLIENT, "PATIENCE = 120 ", "PATIENCE = 6 ")
    client = bench.client("first", num_inference_steps=300)
    bench.begun("first")
    asleep = [bench.resident(), psutil.Process(client.pid)]
    for process in asleep:
        process.send_signal(signal.SIGSTOP)
    morning = time.monotonic() + 7
    wait_for(lambda: time.monotonic() > morning)
    for process in asleep:
        process.send_signal(signal.SIGCONT)
    finished(client)
    assert bench.hidden() == ["first.pt"]


PLACE = f"gpi-latents-{os.getuid()}-{os.uname().nodename.partition('.')[0][-16:]}"


def resident_name(bench: Bench) -> str:
    return f"bench-{(bench.folder / paths.MODEL).stat().st_mtime_ns:x}-0"


def resident_socket(bench: Bench) -> Path:
    """Where the resident listens; the folder is made."""
    folder = bench.tmp / PLACE
    folder.mkdir(mode=0o700)
    return folder / f"{resident_name(bench)}.sock"


def answer(bench: Bench, *answers: bytes) -> threading.Thread:
    """Be a resident that gives each client the next of the answers, and is gone after the last."""
    path = resident_socket(bench)
    listening = socket.socket(socket.AF_UNIX)
    listening.bind(str(path))
    listening.listen()

    def serve() -> None:
        for text in answers:
            connection, _ = listening.accept()
            with connection:
                connection.recv(65536)
                connection.sendall(text)
        path.unlink()
        listening.close()

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    return thread


@pytest.mark.fault("kill")
def test_a_client_that_is_told_to_ask_again_does_so(bench):
    """By a resident that waited too long for its request, or that ends before it begins the item."""
    serving = answer(bench, b"503 ask again\n", b"102 accepted\n100 working on it\n503 ask again\n")
    finished(bench.client("first"))
    serving.join(60)
    assert not serving.is_alive()
    assert bench.hidden() == ["first.pt"]


@pytest.mark.fault("kill")
def test_a_client_does_not_ask_for_ever(bench):
    edit(bench.folder / CLIENT, "PAUSE = 0.05 ", "PAUSE = 0.001 ")
    serving = answer(bench, *100 * [b"503 ask again\n"])
    assert finished(bench.client("first"), 1) == "error: the resident model ends whenever it is asked\n"
    serving.join(60)
    assert not serving.is_alive()


def block(place: Path, by: str) -> None:
    if by == "file":
        place.touch()
    elif by == "link":
        place.with_name("elsewhere").mkdir(mode=0o700)
        place.symlink_to(place.with_name("elsewhere"))
    else:
        place.mkdir(mode=0o700 if by == "folder of another user" else 0o755)
        if by == "folder of another user":
            os.chown(place, 65534, 65534)


as_root = pytest.mark.skipif(os.getuid() != 0, reason="only root can make another's folder")
OTHERS = pytest.param("folder of another user", marks=as_root)


@pytest.mark.fault("stranger")
@pytest.mark.parametrize("by", ["file", "link", "open folder", OTHERS])
def test_who_takes_the_name_of_the_sockets_folder_blocks_nobody(bench, by):
    block(bench.tmp / PLACE, by)
    clients = [bench.client(f"x{number}") for number in range(3)]
    for client in clients:
        finished(client)
    assert len(residents(bench.folder)) == 1
    folder = Path(bench.socket_path()).parent
    assert folder.name == f"{PLACE}-1"
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert not list((bench.tmp / "elsewhere").glob("*"))


@pytest.mark.fault("stranger")
def test_where_all_names_are_taken_the_socket_is_in_the_users_own_folder(bench):
    tmp, own = bench.tmp / "tmp", bench.tmp / "own"
    tmp.mkdir()
    own.mkdir(mode=0o700)
    edit(bench.folder / CLIENT, '"/tmp"', repr(str(tmp)))
    bench.environment |= {"TMPDIR": "/nowhere", "XDG_RUNTIME_DIR": str(own)}
    for name in ("", "-1", "-2", "-3", "-4"):
        (tmp / f"{PLACE}{name}").touch()
    finished(bench.client("first"))
    assert list(own.glob("*/*.sock"))
    bench.end()
    own.chmod(0o755)  # not his alone
    assert "no folder for the resident model's socket: set TMPDIR" in finished(bench.client("second"), 1)


@pytest.mark.fault("stranger")
def test_a_link_in_the_place_of_the_residents_log_is_not_followed(bench):
    private = bench.folder / "private"
    private.write_text("mine")
    (bench.folder / "logs").mkdir()
    (bench.folder / f"logs/resident-{os.uname().nodename}-{resident_name(bench)}.log").symlink_to(private)
    finished(bench.client("first"))
    assert private.read_text() == "mine"
    bench.resident().kill()
    (bench.folder / "resident.py").unlink()
    output = finished(bench.client("second"), 1)
    assert "the resident model ended before it listened" in output
    assert "mine" not in output  # the item's log is for the group to read


@pytest.mark.fault("stranger")
def test_a_pipe_in_the_place_of_the_residents_log_stops_nobody(bench):
    (bench.folder / "logs").mkdir()
    os.mkfifo(bench.folder / f"logs/resident-{os.uname().nodename}-{resident_name(bench)}.log")
    finished(bench.client("first"))
    bench.resident().kill()
    (bench.folder / "resident.py").unlink()
    assert "the resident model ended before it listened" in finished(bench.client("second"), 1)


@pytest.mark.fault("disk")
@pytest.mark.parametrize("what", ["job", "resident", "folder"])
def test_an_item_is_made_though_nothing_can_be_logged(bench, what):
    """On a full disk, as /dev/full is one."""
    with open("/dev/full", "w") as full:
        if what == "resident":
            place = resident_socket(bench)
            options = {"--plan": bench.plan_folder, "--workers": 1, "--socket": place, "--lock": f"{place}.lock"}
            command = [sys.executable, bench.folder / "resident.py", "serve"]
            command += [str(part) for option in options.items() for part in option]
            subprocess.Popen(command, cwd=bench.folder, env=bench.environment, stdout=full, stderr=full)
            wait_for(place.exists, what="the socket")
        elif what == "folder":
            (bench.folder / "logs").touch()
        client = bench.client("first", stdout=full if what == "job" else subprocess.PIPE)
    finished(client)
    assert bench.hidden() == ["first.pt"]
    assert len(residents(bench.folder)) == 1


def test_a_plan_that_is_gone_is_named(bench):
    bench.plan_folder = Path("another plan")
    assert "another plan/items.jsonl, the plan of this run, cannot be read: No such file" in finished(
        bench.client("first", place=0), 1
    )


@pytest.mark.fault("stranger")
def test_sockets_are_private(shared):
    assert stat.S_IMODE(Path(shared.socket_path()).parent.stat().st_mode) == 0o700


def test_texts_arrive_as_they_are(shared):
    prompt = "a\nb\t\"c\" \\ 'd' $(e) {f} é 図"
    image = str(shared.folder / "-r \"f\\ {x}\\n'é.png")
    shutil.copy(shared.folder / "warm.png", image)
    finished(shared.client("texts", image=image, prompt=prompt))
    made = json.loads((shared.folder / "results/hidden/texts.pt").read_text())
    assert made["prompt"] == prompt
    (shared.folder / "results/hidden/texts.pt").unlink()


def edit(script: Path, old: str, new: str) -> None:
    """Change the client's copy."""
    text = script.read_text()
    assert text.count(old) == 1
    script.write_text(text.replace(old, new))


def test_the_client_imports_nothing_heavy():
    """It runs once per item, with no packages and few modules."""
    command = [sys.executable, "-I", "-S", "-X", "importtime", ROOT / "scripts/extract.py"]
    printed = subprocess.run(command, capture_output=True, text=True).stderr.splitlines()
    modules = {line.split("|")[-1].strip() for line in printed if line.startswith("import time:")}
    assert "client" in modules  # which Python keeps compiled
    assert not {"json", "argparse", "re", "socket", "subprocess", "pathlib", "typing", "gpi_latents"} & modules


# --- on_error: skip ---


@pytest.mark.fault("skip")
def test_with_skip_a_bad_item_leaves_empty_files_and_its_reason(shared):
    (shared.folder / "bad.png").write_text("no picture")
    (shared.folder / "results/images/bad.png").write_text("of an earlier run")
    output = finished(shared.client("bad", image="bad.png", picture=True, on_error="skip"))
    assert output.startswith(f"{joblog.ERROR}bad.png: the picture 'bad.png' cannot be read")
    left = [shared.folder / "results/hidden/bad.pt", shared.folder / "results/images/bad.png"]
    assert [path.read_bytes() for path in left] == [b"", b""]
    for path in left:
        path.unlink()


@pytest.mark.fault("skip")
def test_with_skip_what_is_no_fault_of_the_item_still_fails_it(bench):
    def fails(message: str, **settings) -> None:
        assert message in finished(bench.client("x", on_error="skip", **settings), 1)
        assert not (bench.folder / "results/hidden/x.pt").is_file()

    fails("of this run, cannot be read", place=10**9, image="x.png")
    (bench.folder / "results/hidden/x.pt").mkdir()
    fails("x.pt cannot be written: Is a directory")
    (bench.folder / "results/hidden/x.pt").rmdir()
    fails("is not running", run=2**22)
    fails("a file of the model was changed", image="model.png")
    bench.resident().terminate()
    (bench.folder / paths.MODEL).write_text('{"model_id": "gone", "commit": null}')
    fails("the model could not be loaded")
    wait_for(bench.nothing_left, what="the resident to end")
    (bench.folder / "resident.py").unlink()
    fails("the resident model ended before it listened")


@pytest.mark.fault("skip")
@pytest.mark.parametrize(("told", "code"), [(b"102 accepted\n", 1), (b"102 accepted\n103 begun\n", 0)])
def test_with_skip_a_resident_that_dies_while_loading_is_no_fault_of_the_item(bench, told, code):
    serving = answer(bench, told, told)
    output = finished(bench.client("x", on_error="skip"), code)
    serving.join(60)
    doing = "processing this item" if code == 0 else "loading"
    assert output.count(f"the resident model ended while it was {doing}") == 2
    assert bench.hidden() == ["x.pt"] * (code == 0)


@pytest.mark.fault("skip")
def test_only_the_item_that_kills_its_resident_fails(bench):
    """Not those that were at work beside it."""
    draw(bench.folder / "kill.png")
    beside = bench.client("beside", num_inference_steps=100)
    bench.begun("beside")
    killing = bench.client("kill", image="kill.png", on_error="skip")
    assert "error: the resident model ended while it was processing this item" in finished(killing)
    assert "trying again with a new one" in finished(beside)
    sizes = {path.name: path.stat().st_size for path in (bench.folder / "results/hidden").glob("*.pt")}
    assert sizes.keys() == {"beside.pt", "kill.pt"}
    assert (sizes["kill.pt"], sizes["beside.pt"] > 0) == (0, True)


@pytest.mark.fault("skip")
def test_an_item_that_waits_to_be_tried_again_is_not_ended_by_another(bench):
    """Which has begun before its turn came, and ends the resident then."""
    draw(bench.folder / "kill.png")
    beside = bench.client("beside", num_inference_steps=200, on_error="skip")
    first = bench.client("first", num_inference_steps=200, on_error="skip")
    for name in ("beside", "first"):
        bench.begun(name)
    bench.resident().kill()
    killing = [bench.client(f"kill{number}", image="kill.png", on_error="skip") for number in range(3)]
    for client in (beside, first):
        finished(client)
    for client in killing:
        assert "error: the resident model ended while it was processing this item" in finished(client)
    for name in ("beside", "first"):
        assert (bench.folder / f"results/hidden/{name}.pt").stat().st_size > 0


@pytest.mark.fault("skip")
def test_an_item_that_is_tried_again_is_not_ended_by_another(bench):
    """Which has come meanwhile, and ends its resident at once."""
    draw(bench.folder / "kill.png")
    beside = bench.client("beside", num_inference_steps=200, on_error="skip")
    bench.begun("beside")
    (bench.folder / "results/hidden/beside.pt.begun").unlink()
    bench.resident().kill()
    bench.begun("beside")
    killing = bench.client("kill", image="kill.png", on_error="skip")
    assert finished(beside).count("the resident model ended") == 1
    assert "error: the resident model ended while it was processing this item" in finished(killing)
    assert (bench.folder / "results/hidden/beside.pt").stat().st_size > 0
    assert (bench.folder / "results/hidden/kill.pt").stat().st_size == 0
