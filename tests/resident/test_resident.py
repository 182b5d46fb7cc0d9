"""The resident model: one process, whatever happens to it or around it."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import items
import pytest
import torch
from helpers.study import ROOT, Study, draw, residents, wait_for

ITEM = {"prompt": "a red circle", "strength": 1.0, "seed": 3, "num_inference_steps": 4}
LONG = {"num_inference_steps": 999}  # some seconds for one item


class Bench(Study):
    """A folder in which clients are started by hand, as the rule `extract` starts them."""

    def __init__(self, folder: Path, workflow: Path = ROOT, **settings):
        super().__init__(folder, workflow)
        self.environment["TMPDIR"] = str(self.tmp)
        for part in ("results/hidden", "results/images"):
            (folder / part).mkdir(parents=True)
        script = [sys.executable, str(workflow / "scripts/model.py"), "--output", "results/model.json", "--config"]
        config = items.load_config({"model_id": "demo"})
        subprocess.run([*script, json.dumps(config)], cwd=folder, check=True, capture_output=True)
        self.settings = settings

    def client(self, name: str, image: str | None = None, run: int | None = None, **settings) -> subprocess.Popen:
        """A client for one item; its resident's run is this test's process."""
        code = (
            "import sys, json; sys.path.insert(0, sys.argv[1]); import items; "
            "print(json.dumps(items.resident_arguments(items.load_config(json.loads(sys.argv[2])), sys.executable, 2)))"
        )
        command = [sys.executable, "-c", code, str(self.workflow / "scripts")]
        command.append(json.dumps({"model_id": "demo", **self.settings}))
        arguments = json.loads(subprocess.check_output(command, cwd=self.folder, text=True))
        if image is None:
            image = str(draw(self.folder / f"{name}.png", seed=len(name)))
        recipe = {"model_id": "demo", "image_size": None, "resize": "pad", "posterior": "sample", "version": 1}
        recipe |= ITEM | {"guidance_scale": 7.5, "negative_prompt": "", "scheduler": "DDIMScheduler"} | settings
        request = {"image": image, "recipe": recipe, "latent": f"results/hidden/{name}.pt"}
        request |= {"picture": None, "run": run or os.getpid()}
        return subprocess.Popen(
            [sys.executable, "-I", "-S", str(self.workflow / "scripts/extract.py"), *arguments, json.dumps(request)],
            cwd=self.folder,
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def resident(self):
        return wait_for(lambda: residents(self.folder), what="the resident")[0]

    def loaded(self) -> bool:
        return any("loaded the model" in path.read_text() for path in (self.folder / "logs").glob("resident*.log"))

    def socket_path(self) -> str:
        return str(wait_for(lambda: list(self.tmp.glob("*/*.sock")), what="the socket")[0])


def finished(client: subprocess.Popen, code: int = 0) -> str:
    output = client.communicate(timeout=120)[0]
    assert client.returncode == code, output
    return output


def nothing_left(bench: Study) -> bool:
    left = [*bench.tmp.rglob("gpi-latents*"), *(bench.folder / "results").rglob("*.tmp")]
    return not left and not residents(bench.folder)


@pytest.fixture
def bench(tmp_path):
    """Ends what a test leaves, after the test has been judged."""
    made = Bench(tmp_path / "study")
    yield made
    for process in residents(made.folder):
        process.kill()


def test_clients_that_start_together_get_one_resident_and_it_ends_when_idle(tmp_path):
    bench = Bench(tmp_path / "study", resident_idle_seconds=3)
    clients = [bench.client(f"x{number}") for number in range(8)]
    bench.resident()
    assert len(residents(bench.folder)) == 1
    outputs = [finished(client) for client in clients]
    assert any("loading the model" in output for output in outputs)  # progress for those who wait
    assert len(residents(bench.folder)) == 1
    logs = "".join(path.read_text() for path in (bench.folder / "logs").glob("resident*.log"))
    assert logs.count("loaded the model") == 1
    wait_for(lambda: nothing_left(bench), what="the idle resident to end")


@pytest.mark.fault("kill")
@pytest.mark.long
def test_a_client_that_is_killed_does_not_block_the_next_and_writes_nothing(bench):
    finished(bench.client("first"))
    killed = [bench.client(f"killed{number}", **LONG) for number in range(2)]
    wait_for(lambda: bench.resident().num_threads() > 1 and bench.loaded())
    resident = bench.resident()
    wait_for(lambda: resident.cpu_percent(0.2) > 50, what="the resident to compute")
    for client in killed:
        client.kill()
        client.wait()
    finished(bench.client("next"))
    assert residents(bench.folder) == [resident]
    wait_for(lambda: resident.cpu_percent(0.5) < 10, what="the abandoned items to end")
    assert sorted(path.name for path in (bench.folder / "results/hidden").iterdir()) == ["first.pt", "next.pt"]


@pytest.mark.fault("kill")
@pytest.mark.long
def test_a_resident_that_is_killed_is_replaced_and_the_item_is_done(bench):
    finished(bench.client("first"))
    client = bench.client("second", **LONG)
    resident = bench.resident()
    wait_for(lambda: resident.cpu_percent(0.2) > 50, what="the resident to compute")
    resident.kill()
    output = finished(client)
    assert "ended while it had this item in hand" in output
    assert "trying again with a fresh one" in output
    assert torch.load(bench.folder / "results/hidden/second.pt", weights_only=True).shape == (1, 4, 8, 8)


@pytest.mark.fault("kill")
@pytest.mark.long
def test_an_item_that_kills_every_resident_fails_with_the_end_of_its_log(bench):
    client = bench.client("only", **LONG)
    seen = set()
    for _ in range(2):
        resident = wait_for(
            lambda: next((process for process in residents(bench.folder) if process.pid not in seen), None)
        )
        wait_for(lambda: list(bench.tmp.glob("*/*.sock")))
        wait_for(lambda process=resident: process.cpu_times().user > 3, what="the resident to load")
        seen.add(resident.pid)
        resident.kill()
    output = finished(client, 1)
    assert output.count("ended while it had this item in hand") == 2
    assert "The end of logs/resident-" in output


@pytest.mark.fault("picture")
def test_a_bad_item_leaves_the_resident_serving(bench):
    (bench.folder / "text.png").write_text("no picture")
    assert "text.png' cannot be read" in finished(bench.client("bad", image="text.png"), 1)
    resident = bench.resident()
    finished(bench.client("good"))
    assert residents(bench.folder) == [resident]


@pytest.mark.fault("disk")
def test_a_result_that_cannot_be_written_is_a_clear_error(bench):
    (bench.folder / "results/hidden/full.pt").mkdir()
    output = finished(bench.client("full"), 1)
    assert "results/hidden/full.pt cannot be written" in output
    assert [path.name for path in (bench.folder / "results/hidden").iterdir()] == ["full.pt"]


@pytest.mark.fault("disk")
@pytest.mark.long
@pytest.mark.skipif(os.getuid() != 0, reason="only root can mount a small disk")
def test_a_full_disk_and_a_read_only_one_are_clear_errors_and_heal(bench):
    hidden = bench.folder / "results/hidden"
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", hidden], check=True)
    try:
        (hidden / "filler").write_bytes(b"x" * 65536)
        assert "cannot be written: No space left on device" in finished(bench.client("full"), 1)
        assert [path.name for path in hidden.iterdir()] == ["filler"]
        (hidden / "filler").unlink()
        subprocess.run(["mount", "-o", "remount,ro", hidden], check=True)
        assert "cannot be written: Read-only file system" in finished(bench.client("full"), 1)
        subprocess.run(["mount", "-o", "remount,rw", hidden], check=True)
        finished(bench.client("full"))
        assert torch.load(hidden / "full.pt", weights_only=True).shape == (1, 4, 8, 8)
    finally:
        subprocess.run(["umount", "-l", hidden], check=True)


@pytest.mark.fault("model")
def test_a_model_that_cannot_be_loaded_is_told_to_all_who_wait(bench):
    (bench.folder / "results/model.json").write_text('{"model_id": "gone", "commit": null}')
    clients = [bench.client(f"x{number}") for number in range(3)]
    for client in clients:
        assert "the model could not be loaded" in finished(client, 1)
    wait_for(lambda: nothing_left(bench), what="the resident to end")


@pytest.mark.long
def test_edited_code_and_another_model_are_not_served_by_the_old_process(tmp_path, workflow_copy):
    bench = Bench(tmp_path / "study", workflow_copy)
    finished(bench.client("first"))
    with (workflow_copy / "scripts/diffusion.py").open("a") as core:
        core.write("\n# edited\n")
    finished(bench.client("second"))
    assert len(residents(bench.folder)) == 2
    model = bench.folder / "results/model.json"
    model.write_text(model.read_text().replace('"revision": null', '"revision": "other"'))
    finished(bench.client("third"))
    assert len(residents(bench.folder)) == 3
    bench.environment["SLURM_JOB_ID"] = "77"
    finished(bench.client("fourth"))
    assert len(residents(bench.folder)) == 4
    for process in residents(bench.folder):
        process.terminate()
    wait_for(lambda: nothing_left(bench), what="the residents to end")


@pytest.mark.fault("kill")
@pytest.mark.long
def test_the_clients_of_a_killed_run_do_not_overwrite_what_a_later_run_makes(bench):
    """After kill -9 of Snakemake its clients live on; meanwhile the user changes a setting and runs again."""
    run = subprocess.Popen(["sleep", "600"])
    orphan = bench.client("same", run=run.pid, **LONG)
    wait_for(bench.loaded, what="the resident to load")
    run.kill()
    run.wait()
    finished(bench.client("same", seed=99))
    path = bench.folder / "results/hidden/same.pt"
    made = path.read_bytes()
    assert "its Snakemake is gone" in finished(orphan, 1)
    assert path.read_bytes() == made


@pytest.mark.long
def test_it_ends_with_its_run_and_with_its_working_directory(tmp_path):
    bench = Bench(tmp_path / "study")
    run = subprocess.Popen(["sleep", "600"])
    finished(bench.client("first", run=run.pid))
    run.kill()
    run.wait()
    wait_for(lambda: nothing_left(bench), 10, "the resident to end with its run")
    finished(bench.client("second"))
    resident = bench.resident()
    bench.folder.rename(tmp_path / "away")
    wait_for(lambda: not resident.is_running() or resident.status() == "zombie", 10, "the resident to end")


@pytest.mark.fault("kill")
@pytest.mark.long
def test_what_a_killed_resident_leaves_is_cleared_by_the_next_of_any_model(bench):
    finished(bench.client("first"))
    resident = bench.resident()
    resident.kill()
    resident.wait()
    left = {path.name for path in bench.tmp.glob("*/*")}
    assert left
    model = bench.folder / "results/model.json"
    model.write_text(model.read_text().replace('"revision": null', '"revision": "other"'))
    finished(bench.client("second"))
    assert not left & {path.name for path in bench.tmp.glob("*/*")}


@pytest.mark.fault("kill")
@pytest.mark.long
def test_a_resident_that_is_stopped_is_given_up(tmp_path, workflow_copy):
    script = workflow_copy / "scripts/extract.py"
    text = script.read_text()
    assert "PATIENCE = 120.0" in text
    script.write_text(text.replace("PATIENCE = 120.0", "PATIENCE = 3.0"))
    bench = Bench(tmp_path / "study", workflow_copy)
    client = bench.client("first", **LONG)
    resident = bench.resident()
    bench.socket_path()
    resident.send_signal(signal.SIGSTOP)
    try:
        assert "no sign of life for 3 s" in finished(client, 1)
    finally:
        resident.kill()


@pytest.mark.long
def test_a_long_tmpdir_works(bench):
    bench.environment["TMPDIR"] = str(bench.tmp / ("x" * 200))
    Path(bench.environment["TMPDIR"]).mkdir()
    finished(bench.client("first"))
    bench.resident().terminate()
    wait_for(lambda: not residents(bench.folder))


@pytest.mark.fault("stranger")
def test_a_directory_that_others_can_enter_is_refused(bench):
    (bench.tmp / f"gpi-latents-{os.getuid()}-{os.uname().nodename.partition('.')[0][-16:]}").mkdir(mode=0o755)
    assert "is not a private directory of yours" in finished(bench.client("first"), 1)


@pytest.mark.fault("stranger")
@pytest.mark.skipif(os.getuid() != 0, reason="only root can become another user")
def test_another_user_is_refused(bench):
    finished(bench.client("first"))
    path = bench.socket_path()
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


@pytest.mark.fault("stranger")
@pytest.mark.long
def test_malformed_requests_are_refused_and_the_next_is_served(bench):
    finished(bench.client("first"))
    path = bench.socket_path()
    escape = {"image": "a", "recipe": {}, "latent": "../../x.pt", "picture": None, "run": 1}
    outside = {**escape, "latent": str(bench.folder / "x.pt")}
    for content in (b"", b"x", b"[" * 100_000, b"\xff" * 100, b"1" * 2**20, *(map(_encode, ({}, [], escape, outside)))):
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(30)
            connection.connect(path)
            try:
                connection.sendall(content + b"\n")
                assert connection.recv(200).startswith(b"500 not a valid request")
            except ConnectionError:
                pass  # refused before all of it was read
    finished(bench.client("next"))
    assert not list(bench.folder.glob("*.pt"))


def _encode(value) -> bytes:
    return json.dumps(value).encode()


# --- Whole runs ---


@pytest.mark.fault("kill")
@pytest.mark.long
@pytest.mark.parametrize("ending", ["success", "error", "SIGINT", "SIGKILL"])
def test_nothing_is_left_behind_after_a_run(study, ending):
    study.environment["TMPDIR"] = str(study.tmp)
    study.pictures(4, strength=1, num_inference_steps=4 if ending in ("success", "error") else 999)
    if ending == "error":
        (study.folder / "pictures/p1.png").write_text("no picture")
    run = study.start()
    resident = wait_for(lambda: residents(study.folder), what="the resident")[0]
    if ending.startswith("SIG"):
        wait_for(lambda: resident.cpu_times().user > 3, what="the resident to work")
        run.send_signal(getattr(signal, ending))
    output = run.communicate(timeout=200)[0]
    assert (run.returncode == 0) == (ending == "success"), output
    wait_for(lambda: not residents(study.folder), 60, "the resident to end")
    left = [*study.tmp.rglob("gpi-latents*"), *(study.folder / "results").rglob("*.tmp")]
    assert not left
    if ending == "SIGKILL":
        study.run("--unlock")
    if ending != "success":
        study.pictures(4, strength=1, num_inference_steps=4)
        study.run()
    assert len(study.digests()) == 4


@pytest.mark.fault("kill")
@pytest.mark.long
def test_a_run_of_40_items_survives_the_death_of_its_resident(study):
    study.pictures(40, strength=1, num_inference_steps=30)
    run = study.start()
    wait_for(lambda: len(list((study.folder / "results/hidden").glob("*.pt"))) >= 10, 120, "ten items")
    residents(study.folder)[0].kill()
    output = run.communicate(timeout=300)[0]
    assert run.returncode == 0, output
    digests = study.digests()
    assert len(digests) == 40
    logs = "".join(path.read_text() for path in (study.folder / "logs").glob("resident*.log"))
    assert logs.count("loaded the model") == 2
    other = Study(study.folder.parent / "undisturbed")
    other.pictures(40, strength=1, num_inference_steps=30)
    other.run()
    assert other.digests() == digests
