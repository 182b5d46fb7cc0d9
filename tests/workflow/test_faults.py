"""Faults while the workflow runs: each ends in a clear message, and a plain second run gives the undisturbed bits."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import threading
import time
from pathlib import Path

import psutil
import pytest
import torch
from helpers.faults import Stop
from helpers.study import Study, draw, residents, wait_for
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from test_resident import Bench, finished

pytestmark = [pytest.mark.timeout(300), pytest.mark.long]

SETTINGS = {"strength": 0.5, "num_inference_steps": 4}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory) -> Study:
    """Three items, done without any fault."""
    study = Study(tmp_path_factory.mktemp("undisturbed"))
    study.pictures(3, **SETTINGS)
    study.run()
    return study


@pytest.fixture
def begun(study) -> Study:
    """The same three items, not done yet."""
    study.environment["TMPDIR"] = str(study.tmp)
    study.pictures(3, **SETTINGS)
    yield study
    for process in residents(study.folder):
        process.kill()


def as_undisturbed(study: Study, undisturbed: Study) -> None:
    """A plain run heals all: the same latents, tensor and table, and nothing is left over."""
    study.run()
    for name in ("latents.pt", "index.csv"):
        assert (study.folder / "results" / name).read_bytes() == (undisturbed.folder / "results" / name).read_bytes()
    assert study.digests() == undisturbed.digests()
    wait_for(lambda: not residents(study.folder), what="the resident to end")
    files = {path.relative_to(study.folder / "results") for path in (study.folder / "results").rglob("*")}
    assert files == {path.relative_to(undisturbed.folder / "results") for path in files_of(undisturbed)}
    assert "Nothing to be done" in study.run().text


def files_of(study: Study) -> list[Path]:
    return list((study.folder / "results").rglob("*"))


def processes(study: Study, script: str) -> list[psutil.Process]:
    """The processes of a script that work in a study, its shell not among them."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.cwd() == str(study.folder.resolve()) and any(
                part.endswith(f"/{script}") for part in process.cmdline()[1:6]
            ):
                found.append(process)
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            pass
    return [process for process in found if "python" in process.name()]


def disagree(study: Study) -> bool:
    """Whether an index table and a tensor stand side by side that do not belong together."""
    index, tensor = (study.folder / "results" / name for name in ("index.csv", "latents.pt"))
    if not index.exists() or not tensor.exists():
        return False
    stacked = torch.load(tensor, weights_only=True)
    return [hashlib.sha256(latent.numpy().tobytes()).hexdigest() for latent in stacked] != study.index()[
        "sha256"
    ].tolist()


# --- kill -9, at every stage ---


@pytest.mark.fault("kill")
@pytest.mark.parametrize("stage", ["before", "half", "before replacing", "after"])
@pytest.mark.parametrize("killed", ["snakemake", "resident", "client"])
def test_a_kill_around_the_write_of_a_latent_heals(begun, undisturbed, killed, stage):
    stop = Stop(begun, r"hidden_p1\.pt", stage)
    run = begun.start(cores=1)
    stop.reached()
    if killed == "snakemake":
        run.kill()
    else:
        for process in processes(begun, {"resident": "resident.py", "client": "extract.py"}[killed]):
            process.kill()
    stop.release()
    output = run.communicate(timeout=200)[0]
    if killed == "snakemake":
        wait_for(lambda: not residents(begun.folder) and not processes(begun, "extract.py"), what="its jobs to end")
        assert "--unlock" in " ".join(begun.run(fails=True).output.split())
        begun.run("--unlock")
    elif killed == "resident":
        assert run.returncode == 0, output  # a second resident did the item
    else:
        assert run.returncode != 0
        assert "of 3 items" in output
    assert not disagree(begun)
    as_undisturbed(begun, undisturbed)


STACKING = [
    (r"/\.latents\.pt\.tmp\.pt$|results/latents\.pt$", "before replacing"),
    (r"results/latents\.pt$", "after"),
    (r"results/index\.csv$", "before replacing"),
    (r"results/index\.csv$", "after"),
]


@pytest.mark.fault("kill")
@pytest.mark.parametrize(("path", "stage"), STACKING, ids=["tensor whole", "tensor there", "table whole", "both there"])
@pytest.mark.parametrize("killed", ["snakemake", "stack"])
def test_a_kill_while_stacking_never_lets_tensor_and_table_disagree(study, undisturbed, killed, path, stage):
    shutil.rmtree(study.folder)
    shutil.copytree(undisturbed.folder, study.folder)
    rows = study.pictures(3, **SETTINGS)
    study.sheet(rows[::-1])  # the new order is another tensor and another table
    stop = Stop(study, path, stage)
    run = study.start()
    stop.reached()
    assert not disagree(study)
    if killed == "snakemake":
        run.kill()
    for process in processes(study, "stack.py"):
        process.kill()
    stop.release()
    run.communicate(timeout=200)
    assert not disagree(study)
    study.sheet(rows)
    if killed == "snakemake":
        study.run("--unlock")
    as_undisturbed(study, undisturbed)


# --- Disks ---


@pytest.fixture
def small_disk(begun):
    """Mounts a disk of a few kB over a folder of the study."""
    mounted = []

    def mount(folder: str, size: str) -> Path:
        path = begun.folder / folder
        path.mkdir(parents=True)
        subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", path], check=True)
        mounted.append(path)
        return path

    yield mount
    for path in mounted:
        subprocess.run(["umount", "-l", path], check=True)


def remount(path: Path, option: str) -> None:
    subprocess.run(["mount", "-o", f"remount,{option}", path], check=True)


FAULTY = {"full": "No space left on device", "read-only": "Read-only file system"}


@pytest.mark.fault("disk")
@pytest.mark.skipif(os.getuid() != 0, reason="only root can mount a small disk")
@pytest.mark.parametrize("folder", ["results/hidden", "stacked"])
@pytest.mark.parametrize("fault", FAULTY)
def test_a_disk_that_takes_no_result_is_told_and_heals(begun, small_disk, fault, folder):
    begun.config(stacked="stacked/latents.pt")
    disk = small_disk(folder, "8k")  # a latent of 2 kB, or none, has room
    (disk / "filler").write_bytes(b"x" * 4000)
    if fault == "read-only":
        remount(disk, "ro")
    run = begun.run(fails=True)
    assert FAULTY[fault] in run.text
    assert "Traceback" not in run.output
    done = begun.digests()
    if fault == "read-only":
        assert f"Results cannot be written to {begun.folder.resolve()}" in run.text
        assert not done
    elif folder == "stacked":
        assert len(done) == 3
    else:
        assert re.search(rf"row \d, p\d: .*results/hidden/hidden_p\d\.pt cannot be written: {FAULTY[fault]}", run.text)
    assert {path.name for path in disk.iterdir()} <= {"filler", *(f"hidden_{name}.pt" for name in done)}
    assert not (begun.folder / "results/index.csv").exists()
    remount(disk, "rw")
    remount(disk, "size=1m")
    begun.run()
    for name in done:
        assert begun.digests()[name] == done[name]
    assert len(torch.load(begun.folder / "stacked/latents.pt", weights_only=True)) == 3


@pytest.mark.fault("disk")
@pytest.mark.skipif(os.getuid() != 0, reason="only root can mount a small disk")
def test_a_disk_that_becomes_read_only_while_stacking_is_told_and_heals(begun, small_disk):
    begun.config(stacked="stacked/latents.pt")
    disk = small_disk("stacked", "1m")
    (disk / "filler").touch()
    stop = Stop(begun, r"hidden_p2\.pt", "before")
    run = begun.start(cores=1)
    stop.reached()
    remount(disk, "ro")
    stop.release()
    output = run.communicate(timeout=200)[0]
    assert run.returncode != 0
    assert "Read-only file system" in output
    assert len(begun.digests()) == 3
    remount(disk, "rw")
    assert "extract" not in begun.run().jobs
    assert len(torch.load(disk / "latents.pt", weights_only=True)) == 3


# --- Pictures that change ---


@pytest.mark.fault("picture")
def test_a_picture_that_changes_while_it_is_read_fails_its_item(begun, undisturbed):
    stop = Stop(begun, r"hidden_p0\.pt", "half")
    run = begun.start(cores=1)
    stop.reached()
    draw(begun.folder / "pictures/p0.png", seed=1)
    stop.release()
    output = run.communicate(timeout=200)[0]
    assert run.returncode != 0
    assert "row 2, p0: pictures/p0.png: the picture was changed while it was read: run again" in " ".join(
        output.split()
    )
    assert begun.run().jobs == {"extract": 1, "stack": 1}
    assert begun.digests()["p0"] == undisturbed.digests()["p1"]  # seed 1 draws that one's picture


@pytest.mark.fault("picture")
def test_a_picture_that_vanishes_during_the_run_is_named_and_costs_no_other(begun, undisturbed):
    kept = (begun.folder / "pictures/p2.png").read_bytes()
    stop = Stop(begun, r"hidden_p0\.pt", "before")
    run = begun.start(cores=1)
    stop.reached()
    (begun.folder / "pictures/p2.png").unlink()
    stop.release()
    output = run.communicate(timeout=200)[0]
    assert run.returncode != 0
    assert "pictures/p2.png" in output
    assert set(begun.digests()) == {"p0", "p1"}
    assert "row 4, column image: no such file: 'pictures/p2.png'" in begun.run(fails=True).text
    (begun.folder / "pictures/p2.png").write_bytes(kept)
    as_undisturbed(begun, undisturbed)


@pytest.mark.fault("picture")
def test_a_picture_that_is_replaced_by_an_older_one_runs_again(begun, undisturbed):
    begun.run()
    shutil.copy(begun.folder / "pictures/p2.png", begun.folder / "pictures/p1.png")
    os.utime(begun.folder / "pictures/p1.png", (1e9, 1e9))  # as from an archive
    assert begun.run("-n").jobs == {"extract": 1, "stack": 1}
    begun.run()
    assert begun.digests()["p1"] == undisturbed.digests()["p2"]
    assert "Nothing to be done" in begun.run().text


@pytest.mark.fault("clock")
def test_figures_of_a_clock_that_was_set_back_are_no_obstacle(begun):
    begun.config(report=True, output_image_dir=None)
    begun.run()
    future = time.time() + 3600
    for path in files_of(begun):
        os.utime(path, (future, future))
    begun.run("--config", "report_color=prompt")
    assert "Nothing to be done" in begun.run("--config", "report_color=prompt").text
    (begun.folder / "results/report.html").unlink()
    begun.run("--config", "report_color=prompt")
    assert (begun.folder / "results/report.html").exists()


@pytest.mark.fault("clock")
@pytest.mark.parametrize("change", ["item", "outcome"])
def test_results_of_a_clock_that_was_set_back_are_no_obstacle(begun, undisturbed, change):
    """What was made while the clock was ahead is dated in the future now."""
    rows = begun.pictures(3, **SETTINGS | ({"seed": 5} if change == "item" else {"outcome": 1}))
    begun.run()
    future = time.time() + 3600
    for path in files_of(begun):
        os.utime(path, (future, future))
    begun.sheet([{key: value for key, value in row.items() if key not in ("seed", "outcome")} for row in rows])
    as_undisturbed(begun, undisturbed)


# --- Two at once ---


@pytest.mark.fault("two runs")
def test_of_two_runs_that_start_together_one_does_the_work(begun, undisturbed):
    runs = [begun.start() for _ in range(2)]
    outputs = [run.communicate(timeout=250)[0] for run in runs]
    codes = [run.returncode for run in runs]
    assert 0 in codes, outputs
    for code, output in zip(codes, outputs, strict=True):
        if code:
            assert re.search("(?i)another run is at work|locked|another snakemake", output)
            assert "Traceback" not in output
    as_undisturbed(begun, undisturbed)


@pytest.mark.fault("two runs")
def test_a_run_that_slipped_through_snakemakes_lock_is_stopped_by_ours(begun, undisturbed):
    (begun.folder / ".snakemake").mkdir()
    with open(begun.folder / ".snakemake/gpi-latents.lock", "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        assert f"Another run is at work in {begun.folder.resolve()}" in begun.run(fails=True).text
        assert not files_of(begun)
    as_undisturbed(begun, undisturbed)


# --- The resident among strangers ---


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=30),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=10), inner, max_size=4),
    max_leaves=8,
)
FIELDS = ["image", "recipe", "latent", "picture", "run"]
NEARLY = st.fixed_dictionaries(dict.fromkeys(FIELDS, JSON))
ESCAPING = st.fixed_dictionaries(
    {
        "image": st.text(max_size=30),
        "recipe": st.dictionaries(st.text(max_size=10), JSON, max_size=4),
        "latent": st.sampled_from(["../x.pt", "/tmp/x.pt", "results/hidden/../../x.pt", "x.pt", "results/hidden"]),
        "picture": st.none() | st.text(max_size=30),
        "run": st.integers(),
    }
)
REQUESTS = st.one_of(
    st.binary(max_size=200),
    st.one_of(JSON, NEARLY, ESCAPING).map(lambda value: json.dumps(value).encode("utf-8", "surrogatepass")),
)


@pytest.mark.fault("stranger")
def test_the_resident_survives_10000_malformed_requests(tmp_path):
    bench = Bench(tmp_path / "study", resident_idle_seconds=300)
    finished(bench.client("first"))
    path = bench.socket_path()
    resident = bench.resident()
    before = {file for file in bench.folder.rglob("*") if file.suffix == ".pt"}
    sent = 0

    @settings(
        max_examples=10_000, deadline=None, database=None, suppress_health_check=list(HealthCheck), derandomize=True
    )
    @given(REQUESTS)
    def fuzz(content: bytes) -> None:
        nonlocal sent
        sent += 1
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(30)
            connection.connect(path)
            connection.sendall(content.replace(b"\n", b" ") + b"\n")
            answer = connection.recv(4096)
            assert answer.startswith((b"500 ", b"501 ")), (content, answer)

    fuzz()
    assert sent >= 10_000
    assert residents(bench.folder) == [resident]
    assert resident.memory_info().rss < 2**30
    finished(bench.client("next"))
    after = {file for file in bench.folder.rglob("*") if file.suffix == ".pt"}
    assert {file.name for file in after - before} == {"next.pt"}
    resident.kill()


@pytest.mark.fault("stranger")
def test_the_resident_serves_on_beside_strangers_that_send_nothing_or_too_much(tmp_path):
    bench = Bench(tmp_path / "study", resident_idle_seconds=300)
    finished(bench.client("first"))
    path = bench.socket_path()
    silent = [socket.socket(socket.AF_UNIX) for _ in range(50)]
    for connection in silent:
        connection.connect(path)
    flood = socket.socket(socket.AF_UNIX)
    flood.connect(path)

    def pour() -> None:
        try:
            while True:
                flood.sendall(b"x" * 2**20)
        except OSError:
            pass  # refused

    pouring = threading.Thread(target=pour)
    pouring.start()
    pouring.join(30)
    assert not pouring.is_alive()
    finished(bench.client("next", num_inference_steps=4))
    assert bench.resident().memory_info().rss < 2**30
    for connection in silent:
        connection.close()
    os.kill(bench.resident().pid, signal.SIGTERM)
