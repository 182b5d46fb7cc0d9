"""Errors while the workflow runs: each ends in a clear message, and a plain second run gives the undisturbed bits."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import re
import shutil
import signal
import subprocess
import time
from pathlib import Path

import psutil
import pytest
import torch
from helpers.faults import Stop
from helpers.study import Study, draw, residents, wait_for

pytestmark = pytest.mark.long

ITEMS = 4
SETTINGS = {"strength": 0.5, "num_inference_steps": 4}
STAGES = ["before", "half", "before replacing", "after"]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory) -> Study:
    """Four items, done without any disturbance."""
    study = Study(tmp_path_factory.mktemp("undisturbed"))
    study.pictures(ITEMS, **SETTINGS)
    study.run()
    return study


@pytest.fixture
def begun(study) -> Study:
    """The same four items, not done yet."""
    study.environment["TMPDIR"] = str(study.tmp)
    study.pictures(ITEMS, **SETTINGS)
    yield study
    for process in residents(study.folder):
        process.kill()


@pytest.fixture
def done(begun, undisturbed) -> Study:
    """The same four items, done."""
    shutil.rmtree(begun.folder)
    shutil.copytree(undisturbed.folder, begun.folder)
    return begun


def as_undisturbed(study: Study, undisturbed: Study) -> None:
    """A plain run heals all: the same latents, tensor and table, and no other file remains."""
    study.run()
    for name in ("latents.pt", "index.csv"):
        assert (study.folder / "results" / name).read_bytes() == (undisturbed.folder / "results" / name).read_bytes()
    assert study.digests() == undisturbed.digests()
    wait_for(lambda: not residents(study.folder), what="the resident to end")
    assert result_files(study) == result_files(undisturbed)
    assert study.plan() == set()


def result_files(study: Study) -> set[Path]:
    return {path.relative_to(study.folder) for path in (study.folder / "results").rglob("*")}


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
    """Whether an index table and a tensor exist that do not belong together."""
    index, tensor = (study.folder / "results" / name for name in ("index.csv", "latents.pt"))
    if not index.exists() or not tensor.exists():
        return False
    stacked = torch.load(tensor, weights_only=True)
    return [hashlib.sha256(latent.numpy().tobytes()).hexdigest() for latent in stacked] != study.index()[
        "sha256"
    ].tolist()


def end(run) -> tuple[str, bool]:
    """What a run printed, and whether it succeeded."""
    output = run.communicate(timeout=200)[0]
    return " ".join(output.split()), run.returncode == 0


# --- kill -9, at every stage ---


@pytest.fixture
def stop(begun) -> Stop:
    """Stops the resident at each stage of writing a latent, for each item at another."""
    return Stop(begun, *((rf"hidden_p{number}\.pt", stage) for number, stage in enumerate(STAGES)))


@pytest.mark.fault("kill")
@pytest.mark.parametrize("killed", ["resident", "client"])
def test_a_kill_around_the_write_of_a_latent_heals(begun, undisturbed, stop, killed):
    run = begun.start(cores=1)
    for _ in STAGES:
        number = stop.reached()
        for process in processes(begun, {"resident": "resident.py", "client": "extract.py"}[killed]):
            process.kill()
        stop.release(number)
    output, succeeded = end(run)
    assert succeeded == (killed == "resident"), output  # another resident did the item
    logs = "".join(path.read_text() for path in (begun.folder / "logs").glob("resident*.log"))
    assert logs.count("loaded the model") == (5 if killed == "resident" else 1)
    if killed == "client":
        assert f"of {ITEMS} items were not reached: run again for them" in output
    assert not disagree(begun)
    as_undisturbed(begun, undisturbed)


@pytest.mark.fault("kill")
def test_a_kill_of_snakemake_around_the_write_of_a_latent_heals(begun, undisturbed, stop):
    for stage in STAGES:
        run = begun.start(cores=1)
        number = stop.reached()
        run.kill()
        stop.release(number)
        run.wait(30)
        wait_for(lambda: not residents(begun.folder) and not processes(begun, "extract.py"), what="its jobs to end")
        assert not disagree(begun)
        if stage == STAGES[0]:
            assert "--unlock" in begun.run(fails=True).text
        begun.run("--unlock")
    as_undisturbed(begun, undisturbed)


@pytest.mark.fault("kill")
@pytest.mark.timeout(300)
@pytest.mark.parametrize(("number", "left"), [(signal.SIGINT, 4), (signal.SIGTERM, 3)])
def test_a_run_that_its_user_ends_blames_no_item(begun, undisturbed, number, left):
    """By Ctrl-C, which a terminal sends to all processes of the run; or by the signal that ends Snakemake gently."""
    stop = Stop(begun, (r"hidden_p\d\.pt", "before"))
    run = begun.start(cores=1)
    point = stop.reached()
    if number == signal.SIGINT:
        os.killpg(run.pid, number)
    else:
        run.send_signal(number)
        stop.release(point)
    output, succeeded = end(run)
    assert not succeeded
    assert f"{left} of {ITEMS} items were not reached: run again for them" in output
    assert "items failed" not in output
    assert "Traceback" not in output
    assert not (begun.folder / "logs/failed.csv").exists()
    stop.release(point)
    stop.pause()
    as_undisturbed(begun, undisturbed)


# tests/tensors does this at every write.
STACKING = [(r"results/latents\.pt$", "after"), (r"results/index\.csv$", "after")]


@pytest.mark.fault("kill")
@pytest.mark.parametrize("killed", ["snakemake", "stack"])
def test_a_kill_while_stacking_never_lets_tensor_and_table_disagree(done, undisturbed, killed):
    rows = done.pictures(ITEMS, **SETTINGS)
    stop = Stop(done, *STACKING)
    reached = []
    for _ in STACKING:
        done.sheet(rows[::-1])  # the new order is another tensor and another table
        run = done.start()
        reached.append(stop.reached())
        assert not disagree(done)
        if killed == "snakemake":
            run.kill()
        for process in processes(done, "stack.py"):
            process.kill()
        assert not disagree(done)
        assert not end(run)[1]
        done.sheet(rows)
        if killed == "snakemake":
            done.run("--unlock")
        stop.pause()
        as_undisturbed(done, undisturbed)
        stop.resume()
    assert reached == [0, 1]


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


as_root = pytest.mark.skipif(os.getuid() != 0, reason="only root can mount a small disk")


@pytest.mark.fault("disk")
@as_root
def test_a_disk_that_is_full_or_becomes_read_only_is_reported_and_heals(begun, undisturbed, small_disk):
    begun.config(stacked="stacked/latents.pt")
    hidden, stacked = small_disk("results/hidden", "12k"), small_disk("stacked", "12k")
    for disk in (hidden, stacked):
        (disk / "filler").write_bytes(b"x" * 8000)  # a latent of 2 kB, or none, has room
    run = begun.run(fails=True)
    full = "No space left on device"
    assert re.search(rf"row \d, p\d: .*results/hidden/hidden_p\d\.pt cannot be written: {full}", run.text)
    done = begun.digests()
    assert {path.name for path in hidden.iterdir()} == {"filler", *(f"hidden_{name}.pt" for name in done)}
    remount(hidden, "size=1m")
    stop = Stop(begun, (r"hidden_p\d\.pt", "before"))
    run = begun.start(cores=1)
    number = stop.reached()
    remount(stacked, "ro")  # after the start, which would refuse it
    stop.release(number)
    output, succeeded = end(run)
    assert not succeeded
    assert "Read-only file system" in output
    assert begun.digests() == undisturbed.digests()
    remount(stacked, "rw")
    run = begun.run(fails=True)
    assert run.jobs == {"stack": 1}
    assert full in run.text
    assert "Traceback" not in run.output
    assert [path.name for path in stacked.iterdir()] == ["filler"]
    assert not (begun.folder / "results/index.csv").exists()
    remount(stacked, "size=1m")
    assert begun.run().jobs == {"stack": 1}
    assert len(torch.load(stacked / "latents.pt", weights_only=True)) == ITEMS


@pytest.mark.fault("disk")
@pytest.mark.timeout(300)
@as_root
def test_logs_without_room_cost_no_latent_and_the_run_says_so(begun, undisturbed, small_disk):
    logs = small_disk("logs", "64k")
    full = f"Results cannot be written to {begun.folder.resolve()}/logs: No space left on device"
    filler = logs / "filler"
    filler.write_bytes(bytes(64 * 1024))
    run = begun.run(fails=True)
    assert full in run.text
    assert "Traceback" not in run.output
    assert not begun.digests()
    filler.unlink()
    stop = Stop(begun, (r"hidden_p\d\.pt", "before"))
    run = begun.start(cores=1)
    number = stop.reached()
    with contextlib.suppress(OSError):
        filler.write_bytes(bytes(64 * 1024))
    stop.release(number)
    output, succeeded = end(run)
    assert not succeeded  # the stack cannot say what it did
    assert full in output
    assert begun.digests() == undisturbed.digests()
    filler.unlink()
    as_undisturbed(begun, undisturbed)


@pytest.mark.fault("disk")
@as_root
@pytest.mark.parametrize("folder", ["results/hidden", "stacked"])
def test_a_read_only_disk_is_refused_before_anything_runs(begun, small_disk, folder):
    begun.config(stacked="stacked/latents.pt")
    remount(small_disk(folder, "8k"), "ro")
    run = begun.run(fails=True)
    assert f"Results cannot be written to {begun.folder.resolve() / folder}: Read-only file system" in run.text
    assert "Traceback" not in run.output
    assert not begun.digests()


@pytest.mark.fault("disk")
@pytest.mark.parametrize("folder", ["results", "results/hidden", "logs"])
def test_results_that_are_a_link_to_nothing_are_refused(begun, folder):
    link = begun.folder / folder
    link.parent.mkdir(exist_ok=True)
    link.symlink_to(begun.tmp / "gone")
    run = begun.run(fails=True)
    assert f"{folder} is a link to '{begun.tmp}/gone', which does not exist. Make that folder" in run.text
    assert "Traceback" not in run.output
    (begun.tmp / "gone").mkdir()
    assert begun.plan()


@pytest.mark.fault("stranger")
@pytest.mark.timeout(300)
def test_a_link_in_the_place_of_a_jobs_log_is_neither_written_nor_read(begun, undisturbed):
    """Put there by somebody else of a group after Snakemake has removed it, and before the shell opens it."""
    private = begun.folder / "private"
    private.write_text("error: a secret")
    plant = begun.folder / "plant.sh"
    links = [f"ln -sfn {place} logs/extract/p{number}.log" for number, place in enumerate((private, begun.tmp / "new"))]
    plant.write_text(f"[ ! -d logs/extract ] || {{ {'; '.join(links)}; }}\n")
    begun.environment["BASH_ENV"] = str(plant)  # which every shell runs first
    run = begun.run("--keep-going", fails=True)
    assert run.text.count("cannot overwrite existing file") == 2
    assert "2 of 4 items were not reached: run again for them" in run.text
    assert private.read_text() == "error: a secret"
    # What this user may read alone stands in no file that the group can read; Snakemake shows it in the terminal.
    files = [path for folder in ("logs", ".snakemake/log") for path in (begun.folder / folder).rglob("*")]
    assert not [path for path in files if path.is_file() and not path.is_symlink() and "secret" in path.read_text()]
    assert not (begun.tmp / "new").exists()
    assert begun.digests().keys() == {"p2", "p3"}
    del begun.environment["BASH_ENV"]
    as_undisturbed(begun, undisturbed)


# --- Pictures that change ---


@pytest.mark.fault("picture")
def test_pictures_that_vanish_or_change_during_the_run_fail_their_items_alone(begun, undisturbed):
    picture = begun.folder / "pictures/p2.png"
    whole = picture.read_bytes()
    stop = Stop(begun, (r"hidden_p0\.pt", "before"), (r"hidden_p2\.pt", "half"))
    run = begun.start(cores=1)
    number = stop.reached()
    picture.unlink()
    stop.release(number)
    output, succeeded = end(run)
    assert not succeeded
    assert "pictures/p2.png" in output
    assert {"p0", "p1"} <= begun.digests().keys()
    assert "row 4, column image: no such file: 'pictures/p2.png'" in begun.run(fails=True).text
    picture.write_bytes(whole)
    run = begun.start(cores=1)
    number = stop.reached()
    draw(picture, seed=1)
    stop.release(number)
    output, succeeded = end(run)
    assert not succeeded
    assert "row 4, p2: pictures/p2.png: the picture was changed while it was read: run again" in output
    assert set(begun.digests()) == {"p0", "p1", "p3"}
    assert begun.run().jobs == {"extract": 1, "stack": 1}
    digests = undisturbed.digests()
    assert begun.digests() == digests | {"p2": digests["p1"]}  # seed 1 draws that one's picture


@pytest.mark.fault("picture")
def test_a_picture_that_is_replaced_by_an_older_one_runs_again(done, undisturbed):
    shutil.copy(done.folder / "pictures/p2.png", done.folder / "pictures/p1.png")
    os.utime(done.folder / "pictures/p1.png", (1e9, 1e9))  # as from an archive
    assert done.run().jobs == {"extract": 1, "stack": 1}
    assert done.digests()["p1"] == undisturbed.digests()["p2"]
    assert done.plan() == set()


# --- Clocks ---


@pytest.mark.fault("clock")
def test_results_of_the_future_are_refused_with_a_command_that_repairs_them(done, undisturbed):
    """What was made while the clock was ahead: an edit would not be newer."""
    future = time.time() + 3600
    for path in result_files(done):
        os.utime(done.folder / path, (future, future))
    rows = done.pictures(ITEMS, **SETTINGS | {"outcome": 1})
    run = done.run(fails=True)
    assert "Traceback" not in run.output
    assert "are dated in the future, such as results/" in run.text
    (command,) = re.findall(r"^ *(touch .now.*)$", run.output, re.MULTILINE)
    subprocess.run(command, shell=True, check=True, cwd=done.folder)
    assert done.run().jobs == {"stack": 1}
    assert done.digests() == undisturbed.digests()
    done.sheet([row | {"seed": 5} for row in rows])
    assert done.plan() == {*(f"extract p{number}" for number in range(ITEMS)), "stack"}


# --- Two at once ---


@pytest.mark.fault("two runs")
def test_of_two_runs_that_start_together_one_does_the_work(begun, undisturbed):
    runs = [begun.start() for _ in range(2)]
    ends = [end(run) for run in runs]
    assert any(succeeded for _, succeeded in ends), ends
    for output, succeeded in ends:
        if not succeeded:
            assert re.search("(?i)another run is at work|locked|another snakemake", output)
            assert "Traceback" not in output
    as_undisturbed(begun, undisturbed)


@pytest.mark.fault("two runs")
def test_a_run_that_passed_snakemakes_lock_is_stopped_by_ours(begun):
    (begun.folder / ".snakemake").mkdir()
    with open(begun.folder / ".snakemake/gpi-latents.lock", "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        assert f"Another run is at work in {begun.folder.resolve()}" in begun.run(fails=True).text
        assert not result_files(begun)
    assert "stack" in begun.plan()
