"""What a run on Slurm says of its jobs, from what the executor, the resident and `sacct` have said."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
import pytest
from gpi_latents import slurm_use

A100 = "cuda:0 NVIDIA A100-SXM4-80GB"


@pytest.fixture(autouse=True)
def in_study(tmp_path, monkeypatch):
    """Without `sacct`, until a test calls `account`."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))


def ended(*jobs: dict, device: str = A100) -> None:
    """Jobs of 50 items that waited 200 s, loaded the model for 14 s and worked for 123 s."""
    known = {"name": "extract", "items": ["p"] * 50, "state": "COMPLETED", "node": "n1", "mem_mb": 16000}
    known |= {"submitted": 1000.2, "started": 1200.4, "ended": 1337.4, "attempt": 0}
    Path(slurm_use.JOBS).parent.mkdir(parents=True)
    Path("logs").mkdir()
    for number, job in enumerate(jobs, 12):
        with Path(slurm_use.JOBS).open("a") as file:
            file.write(json.dumps({"job": str(number)} | known | job) + "\n")
        if job.get("items", True) and job.get("started", True):
            log = f"a library warns\nloaded the model on {device} in 13.8 s, 1 at a time\nending: the run is over\n"
            Path(f"logs/resident-n1-18e-ab-{number}.log").write_text(log)


def account(text: str) -> None:
    Path("bin").mkdir()
    Path("bin/sacct").write_text(f"#!/bin/sh\necho \"$@\" > asked\n/bin/cat <<'EOF'\n{text}\nEOF\n")
    Path("bin/sacct").chmod(0o755)


def test_the_end_of_a_run_says_what_each_job_used_and_the_table_has_all():
    ended(*[{}] * 20, {"name": "stack", "items": []})
    lines = slurm_use.words("auto").splitlines()
    assert lines[0] == "Jobs on Slurm (all in logs/slurm.csv):"
    assert lines[1] == f"  - 12 on n1: 50 items, {A100}; waited 3 min 20 s, loaded 14 s, worked 2 min 3 s"
    assert lines[5:] == [lines[1].replace("12", "16", 1), "  ... and 15 more"]
    table = pd.read_csv("logs/slurm.csv")
    assert len(table) == 21
    assert table.loc[0, ["node", "device", "waited_s", "loaded_s", "worked_s"]].tolist() == ["n1", A100, 200, 14, 123]


def test_a_run_without_jobs_on_slurm_says_nothing():
    assert slurm_use.words("auto") == ""


def test_a_job_that_ended_early_says_how_far_it_came():
    ended({"state": "CANCELLED", "node": None, "started": None}, {"state": "PREEMPTED", "items": ["p"]})
    assert slurm_use.words("auto").splitlines()[1:] == [
        "  - 12 CANCELLED: 50 items; waited 5 min 37 s",
        f"  - 13 PREEMPTED on n1: 1 item, {A100}; waited 3 min 20 s, loaded 14 s, worked 2 min 3 s",
    ]


@pytest.mark.parametrize(("device", "is_told"), [("auto", True), ("cpu", False)])
def test_a_model_that_went_to_the_cpu_of_a_job_with_a_gpu_is_told(device, is_told):
    ended({}, {"node": "n2"}, device="cpu")
    last = slurm_use.words(device).splitlines()[-1]
    told = "NO GPU WAS USED by 2 of 2 jobs, though they asked for one: torch sees none on n1, n2. "
    assert last.startswith(told) == is_told


@pytest.mark.parametrize(
    ("used", "job", "advice"),
    [
        (5200, {}, "Memory: 5200 of the 16000 MB asked for were used: --set-resources extract:mem_mb=7000 is enough"),
        (9000, {}, ""),
        (
            15000,
            {},
            "Memory: 15000 of the 16000 MB asked for were used, which is near the limit: "
            "--set-resources extract:mem_mb=20000",
        ),
        (5200, {"ended": 1300}, ""),  # of so short a job, Slurm may have missed the peak
    ],
    ids=["too much", "right", "near the limit", "short"],
)
def test_memory_is_told_and_what_to_ask_for(used, job, advice):
    ended(job, job)
    account(f"12|\n12.batch|812.50M\n12.extern|0\n13|\n13.batch|{used - 0.5}M\n13.0|3.00M")
    first, second, *rest = slurm_use.words("auto").splitlines()[1:]
    assert first.endswith("; 813 of 16000 MB")
    assert second.endswith(f"; {used} of 16000 MB")
    assert rest == ([advice] if advice else [])
    assert "--jobs=12,13" in Path("asked").read_text()


def test_a_job_that_began_in_the_second_of_its_submission_waited_for_no_time():
    ended({"submitted": 1200.9, "started": 1200})
    assert "; waited 0 s, " in slurm_use.words("auto")


def test_where_slurm_keeps_no_accounts_memory_is_left_out():
    ended({})
    account("Slurm accounting storage is disabled")
    assert len(slurm_use.words("auto").splitlines()) == 2
    assert " MB" not in slurm_use.words("auto")
