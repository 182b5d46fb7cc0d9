"""The workflow on a real Slurm; only answers of its commands that a test cluster cannot give are replaced."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import pty
import re
import shutil
import signal
import subprocess
import termios
from pathlib import Path

import psutil
import pytest
from helpers.study import ROOT, Study, draw, residents, wait_for

SLOW = {"strength": 1, "num_inference_steps": 999}


@pytest.mark.long
def test_two_hundred_items_in_four_jobs_give_the_bits_of_a_local_run(clustered, tmp_path):
    local = Study(tmp_path / "local")
    local.config(output_image_dir=None)
    local.pictures(200)
    local.run()
    rows = clustered.pictures(200)
    run = clustered.run("--group-components", "extract=50", "--set-resources", "extract:mem_mb=8000")
    assert "NO GPU WAS USED by 4 of 4 jobs" in run.text  # whose GPUs are none
    assert clustered.digests() == local.digests()
    assert (clustered.folder / "results/latents.pt").read_bytes() == (local.folder / "results/latents.pt").read_bytes()
    jobs = clustered.slurm_jobs()
    assert {name: len(records) for name, records in jobs.items()} == {"extract": 4, "stack": 1}
    for record in jobs["extract"]:
        assert record["TresPerNode"] in ("gres:gpu:1", "gres/gpu:1")  # before and since Slurm 23.11
        assert "mem=8000M" in record.get("TRES", record.get("ReqTRES", ""))
        assert record["CPUs/Task"] == "8"
        assert record["TimeLimit"] == "00:17:00"  # seven rounds of eight, and ten minutes for loading
        (log,) = (clustered.folder / "logs").glob(f"resident-*-{record['JobId']}.log")
        assert log.read_text().count("loaded the model") == 1
    (record,) = jobs["stack"]
    assert "gpu" not in record.get("TresPerNode", "")
    assert "mem=4000M" in record.get("TRES", record.get("ReqTRES", ""))

    rows[7]["seed"] = 5
    for row in rows:
        row.setdefault("seed", 0)
    clustered.sheet(rows)
    clustered.run("--group-components", "extract=10")
    jobs = clustered.slurm_jobs()
    assert {name: len(records) for name, records in jobs.items()} == {"extract": 1, "stack": 1}
    changed = {item_id for item_id, digest in clustered.digests().items() if digest != local.digests()[item_id]}
    assert changed == {"p7"}


@pytest.mark.long
def test_one_bad_picture_in_a_group_costs_no_other_item(clustered):
    """With options from the command line, which reach Slurm."""
    clustered.pictures(20)
    clustered.config(output_image_dir=None, device="cpu")
    bad = clustered.folder / "pictures/p3.png"
    whole = bad.read_bytes()
    bad.write_bytes(whole[:200])
    extra = "slurm_extra='--comment=\"two words\" --nice=5'"
    options = ["--resources", "in_flight=2", "--default-resources", "slurm_partition=main", extra]
    run = clustered.run(*options, fails=True)
    assert "1 of 20 items failed" in run.text
    assert "Items: 19 made, 0 kept, 1 failed, " in run.text
    assert re.search(r"row 5, p3: .*pictures/p3\.png' cannot be read", run.text)
    assert run.text.count("cannot be read") == 2  # when it happens, and in the last words
    assert len(clustered.digests()) == 19
    bad.write_bytes(whole)
    assert clustered.run(*options).jobs == {"extract": 1, "stack": 1}
    assert len(clustered.index()) == 20
    jobs = clustered.slurm_jobs()
    assert [record["CPUs/Task"] for record in jobs["extract"]] == ["2", "1"]
    assert jobs["extract"][0]["Comment"] == "two"  # of "two words", cut by this test's way of reading
    assert {record["Partition"] for records in jobs.values() for record in records} == {"main"}
    assert "TresPerNode" not in jobs["extract"][0]  # on the CPU, no GPU is taken from others


@pytest.mark.long
def test_old_results_are_not_taken_for_new_ones_when_a_job_never_ran(clustered):
    """Because Slurm refused it, or it was cancelled while it waited."""
    rows = clustered.pictures(3, seed=1, outcome=1)
    clustered.run()
    before = clustered.digests()
    clustered.sheet([row | {"seed": 2} for row in rows])
    refused = ("--default-resources", "slurm_extra='--partition=nowhere'")
    run = clustered.run(*refused, fails=True)
    assert "invalid partition specified: nowhere" in run.text
    assert "Slurm did not accept the job: sbatch" in run.text
    everything = {"extract p0", "extract p1", "extract p2", "stack"}
    assert clustered.plan() == everything
    run = clustered.start("--default-resources", "slurm_extra='--begin=now+1hour'")
    job = clustered.waiting_job("extract")
    clustered.cluster.client("scancel", job)
    output = run.communicate(timeout=120)[0]
    assert run.returncode != 0
    assert f"Slurm job {job} ended, CANCELLED" in output
    assert clustered.plan() == everything
    clustered.run()
    assert not set(before.values()) & set(clustered.digests().values())
    clustered.sheet([row | {"seed": 2, "outcome": 5} for row in rows])
    clustered.run(*refused, fails=True)
    assert clustered.plan() == {"stack"}


@pytest.mark.long
def test_a_group_that_slurm_ends_is_reported_and_only_what_is_missing_runs_again(clustered):
    """Ended by scancel, by kill -9 and by its time limit."""
    count = 400  # many and short, so that some are done and some are not at the end of the minute
    rows = clustered.pictures(count, strength=1, num_inference_steps=100)
    impatient = clustered.folder / "impatient"
    shutil.copytree(ROOT / "profiles/slurm", impatient)
    text = (impatient / "config.yaml").read_text()
    done: dict[str, str] = {}
    for end in ("CANCELLED: it was cancelled", "FAILED", "TIMEOUT: it reached its time limit"):
        missing = count - len(done)
        arguments = ["--resources", "in_flight=1", "--group-components", f"extract={missing}"]
        if "TIMEOUT" in end:  # so many rounds of a minute, less all but one
            replaced = text.replace("startup-minutes: 10", f"startup-minutes: {1 - missing}")
            (impatient / "config.yaml").write_text(replaced)
            arguments += ["--workflow-profile", str(impatient)]
        run = clustered.start(*arguments)
        job = clustered.running_job()
        if "TIMEOUT" not in end:
            wait_for(lambda: len(clustered.digests()) > len(done) + 2, 60, "three more items")  # noqa: B023
        if "CANCELLED" in end:
            clustered.cluster.client("scancel", job)
        elif "FAILED" in end:
            lines = clustered.cluster.client("scontrol", "listpids", job).splitlines()[1:]
            killed: set[psutil.Process] = set()
            for line in lines:
                with contextlib.suppress(psutil.NoSuchProcess):
                    process = psutil.Process(int(line.split()[0]))
                    killed |= {process, *process.children(recursive=True)}
            for process in killed:
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.kill()
        output = run.communicate(timeout=240)[0]
        assert run.returncode != 0
        wait_for(lambda: not residents(clustered.folder), 60, "the resident's end")  # it may finish one more item
        before, done = done, clustered.digests()
        assert len(before) < len(done) < count
        assert before.items() <= done.items()
        assert f"Slurm job {job} ended, {end}" in output
        assert f" of {count} items were not reached: run again for them" in output
        unfinished = {f"extract {row['id']}" for row in rows if row["id"] not in done}
        assert clustered.plan() == unfinished | {"stack"}
    rest = [row for row in rows if row["id"] not in done][:3]
    clustered.sheet([row for row in rows if row["id"] in done] + rest)
    assert clustered.run().jobs == {"extract": len(rest), "stack": 1}
    assert done.items() <= clustered.digests().items()


@pytest.mark.fault("sheet")
@pytest.mark.long
def test_a_sheet_edited_while_jobs_wait_is_taken_up_by_the_next_run(clustered):
    rows = clustered.pictures(2, seed=1)
    run = clustered.start("--default-resources", "slurm_extra='--begin=now+5'")
    clustered.waiting_job("extract")
    clustered.sheet([row | {"seed": 7} for row in rows])
    output = run.communicate(timeout=240)[0]
    assert run.returncode == 0, output
    assert clustered.index()["seed"].tolist() == ["1", "1"]
    clustered.run()
    assert clustered.index()["seed"].tolist() == ["7", "7"]


@pytest.mark.long
def test_a_displaced_group_comes_back_by_itself_and_only_its_unfinished_items_run(clustered):
    """So does one whose node failed; but not for ever."""
    client = clustered.cluster.client
    clustered.pictures(30, strength=1, num_inference_steps=50)
    run = clustered.start("--resources", "in_flight=2", "--gpi-slurm-resubmissions", "1")
    done: dict[str, int] = {}
    for state in ("PREEMPTED", "NODE_FAIL"):
        job = clustered.running_job()
        node = clustered.records()[job]["NodeList"]
        wait_for(lambda: len(clustered.digests()) > len(done) + 2, 60, "three more items")  # noqa: B023
        if state == "PREEMPTED":
            client("sbatch", "--partition=urgent", "--cpus-per-task=32", "--output=/dev/null", "--wrap=sleep 2")
        else:
            client(
                "scontrol", "update", f"nodename={clustered.records()[job]['NodeList']}", "state=DOWN", "reason=test"
            )
        wait_for(lambda: clustered.records()[job]["JobState"] == state, 60, state)  # noqa: B023
        before, done = done, clustered.written()
        assert before.items() <= done.items()
        client("scontrol", "update", f"nodename={node}", "state=RESUME")
    output = run.communicate(timeout=120)[0]
    assert run.returncode != 0
    assert f"{30 - len(before)} of 30, is submitted again (time 1 of at most 1)" in output
    assert f"Slurm job {job} ended, NODE_FAIL: its node failed; run again" in output
    lines = (clustered.folder / ".snakemake/gpi-latents/slurm_jobs.jsonl").read_text().splitlines()
    first, second = map(json.loads, lines)
    assert (first["state"], first["attempt"], second["state"], second["attempt"]) == ("PREEMPTED", 0, "NODE_FAIL", 1)
    assert set(first["items"]) - set(second["items"]) == set(before)
    assert done.items() <= clustered.written().items()
    assert clustered.plan() == {f"extract p{n}" for n in range(30) if f"p{n}" not in clustered.written()} | {"stack"}


def leaves_nothing_behind(study) -> bool:
    """No jobs, no processes, no temporary files."""
    wait_for(lambda: not study.cluster.client("squeue", "--noheader").strip(), 60, "the jobs' end")
    wait_for(lambda: not residents(study.folder), 60, "the resident's end")
    places = (study.folder / ".snakemake/locks", Path(study.environment["TMPDIR"]))
    left = [*(study.folder / ".snakemake").glob("tmp.*"), *(path for place in places for path in place.glob("*"))]
    assert not [path for path in left if not path.name.startswith("torchinductor_")]  # torch's cache of a user
    return True


@pytest.mark.long
def test_nothing_is_left_behind_whatever_ends_a_run_and_a_resident_killed_inside_a_group_heals(clustered):
    """Ended by Ctrl-C, by a terminal that is closed, by SIGTERM and by itself."""
    clustered.pictures(2, **SLOW)
    (clustered.tmp / "tmp").mkdir()
    clustered.environment["TMPDIR"] = str(clustered.tmp / "tmp")
    run = clustered.start()
    job = clustered.running_job()
    os.killpg(run.pid, signal.SIGINT)
    run.communicate(timeout=120)
    assert run.returncode != 0
    assert leaves_nothing_behind(clustered)
    assert clustered.records()[job]["JobState"] == "CANCELLED"

    ours, theirs = pty.openpty()
    started = subprocess.Popen(
        clustered.command(),
        **dict.fromkeys(("stdin", "stdout", "stderr"), theirs),
        env=clustered.environment,
        start_new_session=True,
        preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
    )
    os.close(theirs)
    clustered.running_job()
    os.close(ours)
    assert started.wait(timeout=120) != 0
    assert leaves_nothing_behind(clustered)

    run = clustered.start()
    clustered.running_job()
    residents(clustered.folder)[0].kill()
    run.send_signal(signal.SIGTERM)  # after which Snakemake waits for what it has submitted, and submits no more
    output = run.communicate(timeout=200)[0]
    assert run.returncode != 0, output
    assert leaves_nothing_behind(clustered)
    assert "trying again with a new one" in "".join(clustered.log(f"p{number}") for number in range(2))
    assert clustered.run().jobs == {"stack": 1}
    assert leaves_nothing_behind(clustered)


@pytest.mark.long
def test_snakemakes_own_slurm_executor_works_item_by_item(clustered):
    draw(clustered.folder / "p.png")
    clustered.sheet([{"image": "p.png", "prompt": "x"}])
    clustered.run(
        "--workflow-profile", str(ROOT / "profiles/default"), "--executor", "slurm", "--jobs", "2",
        "--default-resources", "slurm_account=none", "slurm_partition=main", "--slurm-status-command", "squeue",
        "--slurm-init-seconds-before-status-checks", "5",
    )  # fmt: skip
    assert len(clustered.index()) == 1
    records = [record for records in clustered.slurm_jobs().values() for record in records]
    assert sum("gpu" in str(record) for record in records) == 1
