"""What the executor gpi-slurm asks of Slurm; tests/workflow/test_slurm.py runs it."""

from __future__ import annotations

import logging
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import pytest
from snakemake_executor_plugin_gpi_slurm import PATIENCE, Executor, sbatch
from snakemake_executor_plugin_gpi_slurm.nodes import Wish
from snakemake_executor_plugin_gpi_slurm.states import UNKNOWN, Status


def test_a_wish_becomes_the_flags_of_sbatch():
    group = Wish("extract", partition="fast", cpus=4, mem_mb=16000, gpu=True, gpu_model="a100", minutes=23)
    expected = {"--gres=gpu:a100:1", "--mem=16000M", "--time=23", "--cpus-per-task=4", "--partition=fast"}
    assert expected | {"--no-requeue", "--nodes=1", "--ntasks=1", "--job-name=extract"} <= {*sbatch(group)}
    assert "--gres=gpu:1" in sbatch(Wish("extract", gpu=True))
    flags = " ".join(sbatch(Wish("stack")))
    assert not [flag for flag in ("--gres", "--mem", "--time", "--partition") if flag in flags]


@pytest.mark.parametrize("has_results", [True, False])
def test_a_job_that_slurm_does_not_list_is_waited_for_and_then_judged_by_its_results(
    tmp_path, monkeypatch, has_results
):
    """A busy controller lists it later; without accounting, one that ended is listed for a while only."""
    monkeypatch.chdir(tmp_path)
    if has_results:
        Path("latent").touch()
    ends: list[str] = []
    executor = object.__new__(Executor)
    executor.record = lambda info: True
    executor.report_job_success = lambda info: ends.append("success")
    executor.fail = lambda info, text: ends.append("failure")
    job = SimpleNamespace(is_group=lambda: False, output=["latent"])
    info = SimpleNamespace(external_jobid="7", aux={"job": job, "status": Status("RUNNING")})
    looks = [0, PATIENCE - 1, PATIENCE, PATIENCE + 1, 2 * PATIENCE, 2 * PATIENCE + 1]
    states = [UNKNOWN, UNKNOWN, "RUNNING", UNKNOWN, UNKNOWN, UNKNOWN]
    goes_on = []
    for second, state in zip(looks, states, strict=True):
        monkeypatch.setattr(time, "time", lambda second=second: second)
        goes_on.append(executor.follow(info, Status(state)))
    assert goes_on == [True] * 5 + [False]
    assert ends == ["success" if has_results else "failure"]


def test_a_job_is_submitted_again_when_the_controller_is_back(monkeypatch):
    answers = ["sbatch: error: Unable to contact slurm controller (connect failure)", ""]
    executor = object.__new__(Executor)
    executor.slurm, executor.is_silent = ThreadPoolExecutor(1), False
    executor.logger = logging.getLogger("test")
    executor.wish = lambda job: Wish("extract")
    executor.format_job_exec = lambda job: ""
    executor._sbatch = lambda info, command, script: answers.pop(0)
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    job = SimpleNamespace(is_group=lambda: False, resources={})
    assert executor.submit(SimpleNamespace(aux={"job": job}))
    assert not answers
