"""The workflow on a real Slurm; only the commands' answers that a test cluster cannot give are stood in for."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
import slurm
from helpers import slurm_cluster
from helpers.study import ROOT, Study, draw, residents, wait_for

SLOW = {"strength": 1, "num_inference_steps": 999}


@pytest.fixture(scope="module")
def cluster():
    if lacking := slurm_cluster.missing():
        reason = f"Slurm is not installed ({', '.join(lacking)}): apt-get install slurmctld slurmd slurm-client munge"
        if os.environ.get("REQUIRE_SLURM"):
            pytest.fail(reason)
        pytest.skip(reason)
    with tempfile.TemporaryDirectory(prefix="slurm", ignore_cleanup_errors=True) as folder:
        running = slurm_cluster.Cluster(Path(folder))
        running.start()
        yield running
        running.stop()


class SlurmStudy(Study):
    """A study whose runs go to the cluster."""

    def __init__(self, folder: Path, cluster: slurm_cluster.Cluster):
        super().__init__(folder)
        self.cluster = cluster
        self.environment |= {name: cluster.environment[name] for name in ("SLURM_CONF", "PATH")}
        self.config(output_image_dir=None)
        self.before = set(self._records())

    def command(self, *arguments: str, cores: int = 2) -> list[str]:
        profile = [] if "--workflow-profile" in arguments else ["--workflow-profile", "slurm"]
        return [
            sys.executable, "-m", "snakemake", "--snakefile", str(self.workflow / "Snakefile"),
            "--directory", str(self.folder), *profile, "--seconds-between-status-checks", "1", *arguments,
        ]  # fmt: skip

    def _records(self) -> dict[str, dict[str, str]]:
        lines = self.cluster.client("scontrol", "--oneliner", "show", "job").splitlines()
        records = [dict(re.findall(r"(\S+?)=(\S*)", line)) for line in lines if line.startswith("JobId=")]
        return {record["JobId"]: record for record in records}

    def slurm_jobs(self) -> dict[str, list[dict[str, str]]]:
        """What Slurm tells of the jobs since the last call, by their name."""
        new = {number: record for number, record in self._records().items() if number not in self.before}
        self.before |= set(new)
        jobs: dict[str, list[dict[str, str]]] = {}
        for record in new.values():
            jobs.setdefault(record["JobName"], []).append(record)
        return jobs

    def running_job(self) -> str:
        """The number of the one job that runs, once its model is loaded."""
        query = ("squeue", "--noheader", "--states=RUNNING", "--format=%A")
        (number,) = wait_for(lambda: self.cluster.client(*query).split(), 60, "the job")
        logs = self.folder / "logs"
        loaded = "loaded the model"
        wait_for(lambda: any(loaded in log.read_text() for log in logs.glob(f"resident-*-{number}.log")), 60, loaded)
        return number


@pytest.fixture
def clustered(tmp_path, cluster) -> SlurmStudy:
    return SlurmStudy(tmp_path / "a study – ü", cluster)


@pytest.mark.long
def test_two_hundred_items_in_four_jobs_give_the_bits_of_a_local_run(clustered, tmp_path):
    local = Study(tmp_path / "local")
    local.config(output_image_dir=None)
    local.pictures(200)
    local.run()
    rows = clustered.pictures(200)
    clustered.run("--group-components", "extract=50", "--set-resources", "extract:mem_mb=8000")
    assert clustered.digests() == local.digests()
    assert (clustered.folder / "results/latents.pt").read_bytes() == (local.folder / "results/latents.pt").read_bytes()
    jobs = clustered.slurm_jobs()
    assert {name: len(records) for name, records in jobs.items()} == {"extract": 4, "stack": 1}
    for record in jobs["extract"]:
        assert record["TresPerNode"] in ("gres:gpu:1", "gres/gpu:1")  # before and since Slurm 23.11
        assert "mem=8000M" in record.get("TRES", record.get("ReqTRES"))
        assert record["CPUs/Task"] == "8"
        assert record["TimeLimit"] == "00:17:00"  # seven rounds of eight, and ten minutes for loading
        (log,) = (clustered.folder / "logs").glob(f"resident-*-{record['JobId']}.log")
        assert log.read_text().count("loaded the model") == 1
    (record,) = jobs["stack"]
    assert "gpu" not in record.get("TresPerNode", "")
    assert "mem=4000M" in record.get("TRES", record.get("ReqTRES"))

    rows[7]["seed"] = 5
    for row in rows:
        row.setdefault("seed", 0)
    clustered.sheet(rows)
    clustered.run("--group-components", "extract=50")
    jobs = clustered.slurm_jobs()
    assert {name: len(records) for name, records in jobs.items()} == {"extract": 1, "stack": 1}
    changed = {item_id for item_id, digest in clustered.digests().items() if digest != local.digests()[item_id]}
    assert changed == {"p7"}


def test_options_from_the_command_line_reach_slurm(clustered):
    clustered.pictures(3)
    clustered.config(output_image_dir=None, device="cpu")
    extra = "slurm_extra='--comment=\"two words\" --nice=5'"
    clustered.run("--resources", "gpu=2", "--default-resources", "slurm_partition=main", extra)
    jobs = clustered.slurm_jobs()
    assert jobs["extract"][0]["CPUs/Task"] == "2"
    assert jobs["extract"][0]["Comment"] == "two"  # of "two words", cut by this test's way of reading
    assert jobs["extract"][0]["Partition"] == jobs["stack"][0]["Partition"] == "main"
    assert "TresPerNode" not in jobs["extract"][0]  # on the CPU, no GPU is taken from others


def test_one_bad_picture_in_a_group_costs_no_other_item(clustered):
    clustered.pictures(20)
    bad = clustered.folder / "pictures/p3.png"
    whole = bad.read_bytes()
    bad.write_bytes(whole[:200])
    run = clustered.run(fails=True)
    assert "1 of 20 items could not be done" in run.text
    assert "row 5, p3: pictures/p3.png: the picture 'pictures/p3.png' cannot be read" in run.text
    assert run.text.count("cannot be read") == 1
    assert len(clustered.digests()) == 19
    bad.write_bytes(whole)
    assert clustered.run().jobs == {"extract": 1, "stack": 1}
    assert len(clustered.index()) == 20


def test_a_job_that_slurm_does_not_take_is_reported(clustered):
    clustered.pictures(2)
    run = clustered.run("--default-resources", "slurm_partition=nowhere", fails=True)
    assert "invalid partition specified: nowhere" in run.text
    assert "Slurm did not take the job: sbatch" in run.text
    assert clustered.run().jobs == {"extract": 2, "stack": 1}


@pytest.mark.long
@pytest.mark.parametrize(
    ("fault", "told"),
    [
        ("scancel", "CANCELLED: it was cancelled"),
        ("time limit", "TIMEOUT: it reached its time limit"),
        ("kill -9", "FAILED"),
    ],
)
def test_a_group_that_slurm_ends_is_reported_and_only_what_is_missing_runs_again(clustered, fault, told):
    count = 300  # many and short, so that some are done and some are not at the end of the minute
    rows = [row | {"strength": 0, "num_inference_steps": 50} for row in clustered.pictures(count)]
    clustered.sheet(rows[:2])
    clustered.run()
    before = clustered.digests()
    for row in rows[2:]:
        row |= {"strength": 1, "num_inference_steps": 100}
    clustered.sheet(rows)
    arguments = ["--resources", "gpu=1", "--group-components", f"extract={count}"]
    if fault == "time limit":
        profile = clustered.folder / "impatient"
        shutil.copytree(ROOT / "profiles/slurm", profile)
        text = (profile / "config.yaml").read_text().replace("--startup-minutes=10", f"--startup-minutes={3 - count}")
        (profile / "config.yaml").write_text(text)
        arguments += ["--workflow-profile", str(profile)]  # so many rounds of a minute, less all but one
    run = clustered.start(*arguments)
    job = clustered.running_job()
    if fault != "time limit":
        wait_for(lambda: len(clustered.digests()) > 3, 60, "two more items")
    if fault == "scancel":
        clustered.cluster.client("scancel", job)
    elif fault == "kill -9":
        for step in clustered.cluster.client("scontrol", "listpids", job).splitlines()[1:]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(step.split()[0]), signal.SIGKILL)
    output = run.communicate(timeout=180)[0]
    assert run.returncode != 0
    done = clustered.digests()
    assert 3 < len(done) < count
    assert {item_id: done[item_id] for item_id in before} == before
    assert f"Slurm job {job} ended, {told}" in output
    assert f"of {count} items were not reached: run again for them" in output
    wait_for(lambda: not residents(clustered.folder), 20, "the resident's end")
    assert clustered.run("--dry-run").jobs == {"extract": count - len(done), "stack": 1}
    missing = [row for row in rows if row["id"] not in done][:3]
    clustered.sheet([row for row in rows if row["id"] in done] + missing)
    assert clustered.run().jobs == {"extract": 3, "stack": 1}
    assert {item_id: clustered.digests()[item_id] for item_id in done} == done


@pytest.mark.long
@pytest.mark.parametrize("fault", ["refused", "cancelled"])
def test_old_results_are_not_taken_for_new_ones_when_a_job_never_ran(clustered, fault):
    rows = clustered.pictures(3, seed=1, outcome=1)
    clustered.run()
    before = clustered.digests()
    clustered.sheet([row | {"seed": 2} for row in rows])
    if fault == "refused":
        clustered.run("--default-resources", "slurm_partition=nowhere", fails=True)
    else:
        run = clustered.start("--default-resources", "slurm_extra='--begin=now+1hour'")
        query = ("squeue", "--noheader", "--states=PENDING", "--format=%A")
        (job,) = wait_for(lambda: clustered.cluster.client(*query).split(), 60, "the job")
        clustered.cluster.client("scancel", job)
        output = run.communicate(timeout=60)[0]
        assert run.returncode != 0
        assert f"Slurm job {job} ended, CANCELLED" in output
    assert clustered.run().jobs == {"extract": 3, "stack": 1}
    assert not set(before.values()) & set(clustered.digests().values())
    clustered.sheet([row | {"seed": 2, "outcome": 5} for row in rows])
    clustered.run("--default-resources", "slurm_partition=nowhere", fails=True)
    assert clustered.run().jobs == {"stack": 1}
    assert clustered.index()["outcome"].tolist() == ["5"] * 3


@pytest.mark.long
def test_a_sheet_edited_while_jobs_wait_is_not_stacked(clustered):
    rows = clustered.pictures(2, seed=1)
    run = clustered.start("--default-resources", "slurm_extra='--begin=now+10'")
    query = ("squeue", "--noheader", "--states=PENDING", "--format=%j")
    wait_for(lambda: "stack" in clustered.cluster.client(*query), 90, "the waiting stack")
    clustered.sheet([row | {"seed": 7} for row in rows])
    output = run.communicate(timeout=120)[0]
    assert run.returncode != 0
    assert "was changed during the run: run again" in output
    assert not (clustered.folder / "results/index.csv").exists()
    assert clustered.run().jobs == {"extract": 2, "stack": 1}
    assert clustered.index()["seed"].tolist() == ["7", "7"]


@pytest.mark.long
def test_a_resident_killed_inside_a_group_heals(clustered):
    clustered.pictures(3, **SLOW)
    run = clustered.start()
    clustered.running_job()
    residents(clustered.folder)[0].kill()
    output = run.communicate(timeout=200)[0]
    assert run.returncode == 0, output
    assert "trying again with a fresh one" in "".join(clustered.log(f"p{number}") for number in range(3))
    assert len(clustered.index()) == 3


@pytest.mark.long
def test_ctrl_c_cancels_what_was_submitted(clustered):
    clustered.pictures(2, **SLOW)
    run = clustered.start()
    job = clustered.running_job()
    os.killpg(run.pid, signal.SIGINT)
    run.communicate(timeout=60)
    assert run.returncode != 0
    wait_for(lambda: clustered._records()[job]["JobState"] == "CANCELLED", 30, "the job's end")
    wait_for(lambda: not residents(clustered.folder), 30, "the resident's end")
    assert clustered.run().jobs["extract"] == 2


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


def answers(folder: Path, **commands: str) -> dict[str, str]:
    """An environment in which Slurm's commands print the given texts and fail where none is given."""
    for name in ("squeue", "sacct"):
        text = commands.get(name)
        script = "exit 1\n" if text is None else f"echo {name} >> calls\ncat <<'EOF'\n{text}\nEOF\n"
        (folder / name).write_text(f"#!/bin/sh\n{script}")
        (folder / name).chmod(0o755)
    (folder / ".snakemake").mkdir(exist_ok=True)
    return os.environ | {"PATH": f"{folder}:{os.environ['PATH']}"}


@pytest.mark.parametrize(
    ("commands", "told"),
    [
        ({"squeue": "7|RUNNING"}, "running"),
        ({"squeue": "7|PENDING"}, "running"),
        ({"squeue": "7|COMPLETED"}, "success"),
        ({"squeue": "7|OUT_OF_MEMORY"}, "failed"),
        ({"squeue": "7|NODE_FAIL"}, "failed"),
        ({"squeue": "8|RUNNING", "sacct": "7|COMPLETED"}, "success"),
        ({"squeue": "8|RUNNING", "sacct": "7|CANCELLED by 1000"}, "failed"),
        ({"squeue": "8|RUNNING", "sacct": "8|RUNNING"}, "failed"),  # no trace of it
        ({"squeue": ""}, "failed"),
        ({}, "running"),  # the controller does not answer; the job may well go on
        ({"sacct": "7|TIMEOUT"}, "failed"),
    ],
)
def test_status_tells_the_truth(tmp_path, commands, told):
    command = [sys.executable, ROOT / "scripts/slurm.py", "status", "7"]
    environment = answers(tmp_path, **commands)
    answer = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True)
    assert answer.stdout == f"{told}\n"
    assert ("Slurm job 7 ended" in answer.stderr) == (told == "failed")


def test_slurm_is_asked_once_for_all_jobs(tmp_path):
    environment = answers(tmp_path, squeue="7|RUNNING\n8|COMPLETED\n9|PENDING")
    for job in ("7", "8", "9"):
        command = [sys.executable, ROOT / "scripts/slurm.py", "status", job]
        subprocess.run(command, env=environment, cwd=tmp_path, check=True, stdout=subprocess.DEVNULL)
    assert (tmp_path / "calls").read_text().split() == ["squeue"]


def test_what_a_group_asks_of_slurm():
    resources = {"gpu": 4, "mem_mb": 64000, "runtime": 13, "device": "auto", "gpu_model": "a100"}
    properties = {"groupid": "extract", "threads": 4, "resources": resources}
    command = slurm.sbatch(properties, startup_minutes=10, log="log")
    assert {"--gres=gpu:a100:1", "--mem=16000M", "--time=23", "--cpus-per-task=4"} <= set(command)
    resources |= {"slurm_account": 4 * 12345}  # a number, which Snakemake adds up as any other
    assert "--account=12345" in slurm.sbatch(properties, startup_minutes=10, log="log")
