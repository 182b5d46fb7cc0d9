"""What the executor gpi-slurm asks of Slurm; tests/workflow/test_slurm.py runs it."""

from __future__ import annotations

import logging
import os
import shlex
import signal
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import pytest
from snakemake_executor_plugin_gpi_slurm import ENDED, PATIENCE, Executor, nodes, sbatch
from snakemake_executor_plugin_gpi_slurm.nodes import Wish
from snakemake_executor_plugin_gpi_slurm.states import UNKNOWN, Status
from snakemake_interface_executor_plugins.executors.remote import RemoteExecutor
from snakemake_interface_executor_plugins.settings import SharedFSUsage


def bare_executor() -> Executor:
    """One without a run."""
    executor = object.__new__(Executor)
    executor.slurm, executor.jobs = ThreadPoolExecutor(1), {}
    executor.is_silent = executor.is_ending = False
    executor.logger = logging.getLogger("test")
    return executor


def submitted(state: str, rule: str = "extract", *ids: str) -> SimpleNamespace:
    """A job 7 in a state, and what its rule asked for; with ids, a group of items."""
    wildcards = [SimpleNamespace(id=item_id) for item_id in ids] or [SimpleNamespace()]
    resources = {"runtime": 3, "in_flight": 8}
    jobs = [SimpleNamespace(wildcards=each, resources=resources, is_group=lambda: False) for each in wildcards]
    job = SimpleNamespace(jobs=jobs, resources=resources, is_group=lambda: True) if ids else jobs[0]
    wish = Wish(rule, mem_mb=4000, minutes=70)
    aux = {"job": job, "wish": wish, "status": Status(state), "submitted": 0, "attempt": 0}
    return SimpleNamespace(external_jobid="7", aux=aux)


@pytest.fixture
def command(tmp_path, monkeypatch):
    """Makes a command of Slurm that runs a script."""
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")

    def make(name: str, script: str) -> None:
        (tmp_path / name).write_text(f"#!/bin/sh\n{script}\n")
        (tmp_path / name).chmod(0o755)

    return make


def test_a_wish_becomes_the_flags_of_sbatch():
    group = Wish("extract", partition="fast", cpus=4, mem_mb=16000, gpu=True, gpu_model="a100", minutes=23)
    expected = {"--gres=gpu:a100:1", "--mem=16000M", "--time=23", "--cpus-per-task=4", "--partition=fast"}
    assert expected | {"--no-requeue", "--nodes=1", "--ntasks=1", "--job-name=extract"} <= {*sbatch(group)}
    assert "--gres=gpu:1" in sbatch(Wish("extract", gpu=True))
    flags = " ".join(sbatch(Wish("stack")))
    assert not [flag for flag in ("--gres", "--mem", "--time", "--partition") if flag in flags]


@pytest.mark.parametrize(
    ("extra", "left_out"),
    [
        ("--mem-per-cpu=2G", "--mem=16000M"),
        ("--mem-per-gpu 8G", "--mem=16000M"),
        ("--cpus-per-gpu=4", "--cpus-per-task=4"),
        ("--gpus-per-task=1", "--gres=gpu:1"),
        ("--qos=long", ""),
        ("", ""),
    ],
)
def test_flags_that_sbatch_refuses_beside_the_users_own_are_left_out(extra, left_out):
    flags = sbatch(Wish("extract", cpus=4, mem_mb=16000, gpu=True, minutes=23, extra=extra))
    ours = {"--mem=16000M", "--cpus-per-task=4", "--gres=gpu:1", "--time=23"}
    assert ours - {*flags} == {left_out} - {""}


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
    info = submitted("RUNNING")
    info.aux["job"].output = ["latent"]
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
    executor = bare_executor()
    executor.wish = lambda job: Wish("extract")
    executor.format_job_exec = lambda job: ""
    executor._sbatch = lambda info, command, script: answers.pop(0)
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    job = SimpleNamespace(is_group=lambda: False, resources={})
    assert executor.submit(SimpleNamespace(aux={"job": job}))
    assert not answers


@pytest.mark.parametrize(
    ("printed", "number", "problem"),
    [
        ("7", "7", ""),
        ("7;other", "7", ""),
        ("Welcome to 2 clusters\n2026\n\n7;other\n\nUse 5 of it", "7", ""),
        ("Welcome\nBatch job", None, "sbatch named no job. The end of what it said: Welcome\nBatch job"),
    ],
)
def test_a_jobs_number_is_found_below_what_a_site_prints(command, printed, number, problem):
    command("sbatch", f"cat <<'EOF'\n{printed}\nEOF")
    executor, info = bare_executor(), SimpleNamespace(external_jobid=None, aux={})
    assert executor._sbatch(info, ["sbatch"], "") == problem
    assert (info.external_jobid, [*executor.jobs]) == (number, [number] if number else [])


def test_only_the_snakemake_of_a_group_has_a_limit_of_items_in_flight(monkeypatch):
    """With that of `plan` it would time one item at a time."""
    monkeypatch.setattr(RemoteExecutor, "get_job_args", lambda self, job: "--cores all")
    arguments = [bare_executor().get_job_args(submitted("RUNNING", "extract", *ids).aux["job"]) for ids in ("ab", "")]
    assert arguments == ["--cores all --keep-going --resources in_flight=8", "--cores all --keep-going"]


def test_a_python_in_a_folder_with_a_space_is_quoted_in_the_job(monkeypatch):
    monkeypatch.setattr(sys, "executable", "/my clones/.venv/bin/python")
    executor = bare_executor()
    executor.workflow = SimpleNamespace(storage_settings=SimpleNamespace(shared_fs_usage=SharedFSUsage.all()))
    assert shlex.split(executor.get_python_executable()) == [sys.executable]


@pytest.mark.parametrize(
    ("state", "rule", "ids", "expected"),
    [
        ("OUT_OF_MEMORY", "stack", "", "raise mem_mb (--set-resources stack:mem_mb=8000) and run again"),
        ("TIMEOUT", "stack", "", "with a longer runtime (--set-resources stack:runtime=6). Its"),
        ("TIMEOUT", "extract", "ab", "extract:runtime=6) or smaller groups (--group-components extract=25). Its"),
        ("FAILED", "extract", "ab", "at least one of its items failed. Its"),
        ("FAILED", "stack", "", "ended, FAILED: its command failed. Its"),
    ],
)
def test_advice_on_a_job_that_ended_is_on_its_own_rule(caplog, state, rule, ids, expected):
    executor = bare_executor()
    executor.report_job_error = lambda info: None
    executor.fail_ended(submitted(state, rule, *ids))
    assert expected in caplog.text


@pytest.mark.parametrize("planted", ["link", "pipe"])
def test_what_ended_is_not_written_through_what_others_plant(tmp_path, monkeypatch, caplog, planted):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(nodes, "read_nodes", list)
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    theirs = tmp_path / "theirs"
    theirs.write_text("of another")
    ENDED.parent.mkdir(parents=True)

    def plant() -> None:
        ENDED.symlink_to(theirs) if planted == "link" else os.mkfifo(ENDED)

    plant()
    executor = bare_executor()
    executor.dag = SimpleNamespace(needrun_jobs=list)
    executor.__post_init__()
    for number in ("7", "8"):
        info = submitted("COMPLETED")
        info.external_jobid, executor.jobs = number, {number: info}
        executor.logger = logging.getLogger("test")
        assert executor.record(info)
        if number == "7":
            assert ENDED.read_text().startswith('{"job": "7"')
            ENDED.unlink()
            plant()
    assert theirs.read_text() == "of another"
    assert "What Slurm job 8 used will not be told" in caplog.text


@pytest.mark.parametrize("answer", [0, 1])
def test_a_job_that_slurm_did_not_cancel_is_not_called_cancelled_and_the_end_tries_again(
    tmp_path, monkeypatch, command, caplog, answer
):
    monkeypatch.chdir(tmp_path)
    ENDED.parent.mkdir(parents=True)
    command("scancel", f"echo $@ >> calls; exit {answer}")
    executor, info = bare_executor(), submitted("PENDING")
    executor.jobs["7"], ends = info, []
    executor.report_job_error = ends.append
    assert not executor.explain_waiting(info, Status("PENDING", "PartitionConfig"))
    assert ends == [info]
    assert f"would wait for ever{'' if answer else ', and was cancelled'}: no node" in caplog.text
    assert ("Do it by: scancel 7" in caplog.text) == bool(answer)
    executor.cancel_jobs([])
    assert Path("calls").read_text().split() == ["7"] * (1 + answer)


def test_nothing_is_said_of_a_job_that_is_to_be_submitted_when_the_run_ends(caplog):
    executor = bare_executor()
    executor.wish, executor.format_job_exec = lambda job: Wish("extract"), lambda job: ""
    executor.is_ending = True
    executor.report_job_error = lambda info: pytest.fail("it was called failed")
    assert not executor.submit(submitted("PENDING"))
    assert not caplog.text
