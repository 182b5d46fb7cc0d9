"""Snakemake's executor `gpi-slurm`: a group of items is one Slurm job, in which one Snakemake runs all of them.

Snakemake's own executor `slurm` starts a Snakemake for every item of a group, one after the other.
"""

import json
import os
import re
import shlex
import signal
import subprocess
import time
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from snakemake_interface_common.exceptions import WorkflowError
from snakemake_interface_executor_plugins.executors.base import SubmittedJobInfo
from snakemake_interface_executor_plugins.executors.remote import RemoteExecutor
from snakemake_interface_executor_plugins.settings import CommonSettings, ExecutorSettingsBase

from snakemake_executor_plugin_gpi_slurm import nodes, pending, states

LOGS = Path("logs/slurm")
PATIENCE = 120  # seconds; a busy controller, or accounts that are written late, may not list a job for a while
ENDED = Path(".snakemake/gpi-latents/slurm_jobs.jsonl")  # a line for each job of this run that has ended


@dataclass
class ExecutorSettings(ExecutorSettingsBase):
    startup_minutes: int = field(
        default=10, metadata={"help": "Minutes for loading the model, added to the runtime of jobs that have items"}
    )
    resubmissions: int = field(
        default=3, metadata={"help": "How often a job is submitted again that was preempted or whose node failed"}
    )


common_settings = CommonSettings(
    non_local_exec=True,
    implies_no_shared_fs=False,
    job_deploy_sources=False,
    auto_deploy_default_storage_provider=False,
)


class Executor(RemoteExecutor):
    """Submits jobs, follows them until they end, and cancels those that are left when the run ends.

    Attributes:
        jobs: those that have not ended, by Slurm's numbers.
        slurm: the one thread that submits and cancels, so that no job escapes a Ctrl-C between the two.
    """

    def __post_init__(self) -> None:
        self.jobs: dict[str, SubmittedJobInfo] = {}
        self.slurm = ThreadPoolExecutor(max_workers=1)
        self.is_ending = False
        self.is_silent = False  # whether Slurm does not answer
        self.told: set[str] = set()  # why jobs wait
        self.nodes = nodes.read_nodes()
        # Not by get_jobs_or_groups, which fails where jobs of a group need not run.
        for job in {self.dag.get_job_group(job) or job for job in self.dag.needrun_jobs()}:
            if not job.is_local:
                wish = self.wish(job)
                if problem := nodes.problem(wish, self.nodes):
                    raise WorkflowError(f"Slurm can never run {wish.rule}, which {problem}")
        for path in (LOGS, ENDED.parent):
            path.mkdir(parents=True, exist_ok=True)
        ENDED.unlink(missing_ok=True)
        if signal.getsignal(signal.SIGHUP) == signal.SIG_DFL:
            signal.signal(signal.SIGHUP, signal.default_int_handler)  # a closed terminal is as Ctrl-C

    def wish(self, job: Any) -> nodes.Wish:
        """What a job asks Slurm for: once for all items of a group, of which Snakemake adds up even names.

        Time alone adds up, for the rounds that the items in flight make of the group.
        """
        first = next(iter(members(job)))
        asked = first.resources
        extra = asked.get("slurm_extra", "")
        try:
            shlex.split(extra)
        except ValueError:
            raise WorkflowError(f"A quote in slurm_extra of {first.rule.name} does not end: {extra}") from None
        wish = nodes.Wish(
            rule=first.rule.name,
            partition=str(asked.get("slurm_partition", "")) or None,
            cpus=job.threads,
            mem_mb=asked.get("mem_mb", 0),
            gpu=bool(asked.get("gpu")) and asked.get("device") != "cpu",
            gpu_model=asked.get("gpu_model"),
            minutes=job.resources.get("runtime", 0),
            in_flight=job.resources.get("in_flight", 0) if job.is_group() else 0,
            extra=extra,
        )
        if wish.minutes and asked.get("gpu"):
            wish = replace(wish, minutes=wish.minutes + self.executor_settings.startup_minutes)
        return replace(wish, cpus=nodes.cores(wish, self.nodes))

    def get_python_executable(self) -> str:
        return shlex.quote(super().get_python_executable())  # the folder's name may have a space

    def get_job_args(self, job: Any) -> str:
        """The options of the Snakemake that runs in the job, and would get neither of these two by itself."""
        in_flight = job.resources.get("in_flight") if job.is_group() else None  # `plan` has one, and no limit
        return f"{super().get_job_args(job)} --keep-going" + (
            f" --resources in_flight={in_flight}" if in_flight else ""
        )

    def run_job(self, job: Any) -> None:
        info = SubmittedJobInfo(job, aux={"job": job, "attempt": 0})
        if self.submit(info):
            self.report_job_submission(info)

    def submit(self, info: SubmittedJobInfo) -> bool:
        """Hand a job to Slurm; if it is refused, say why, and report that the job failed."""
        job = info.aux["job"]
        wish = info.aux["wish"] = self.wish(job)
        account = next(iter(members(job))).resources.get("slurm_account")
        command = [*sbatch(wish), *([f"--account={account}"] if account else []), *shlex.split(wish.extra)]
        script = f"#!/bin/sh\n{self.format_job_exec(job)}\n"
        while problem := self.slurm.submit(self._sbatch, info, command, script).result():
            if self.is_ending:
                return False
            if "nable to contact" not in problem:  # after a timeout, the job may be there
                words = pending.explain(problem, wish.rule)[1]
                self.fail(info, f"Slurm did not accept the job: {shlex.join(command)}\n{problem}\n{words}")
                return False
            self.note_silence(True)
            time.sleep(5)
        return True

    def note_silence(self, is_silent: bool) -> None:
        if is_silent and not self.is_silent:
            self.logger.warning("Slurm does not answer; asking again until it does")
        self.is_silent = is_silent

    def _sbatch(self, info: SubmittedJobInfo, command: list[str], script: str) -> str:
        if self.is_ending:
            return "the run is ending"
        # The Snakemake in the job takes no profile, which says how to submit jobs.
        environment = {name: value for name, value in os.environ.items() if name != "SNAKEMAKE_PROFILE"}
        options = {"input": script, "capture_output": True, "encoding": "utf-8", "env": environment}
        try:
            answer = subprocess.run(command, start_new_session=True, **options)  # type: ignore[call-overload]
        except OSError as error:
            return str(error)
        if answer.returncode:
            return answer.stderr.strip()
        # Below what a site may print first; on a federation, the cluster's name follows.
        numbers = re.findall(r"^(\d+)(?:;.*)?\s*$", answer.stdout, re.MULTILINE)
        if not numbers:
            return f"sbatch named no job. The end of what it said: {(answer.stdout + answer.stderr).strip()[-300:]}"
        info.external_jobid = number = numbers[-1]
        info.aux |= {"submitted": time.time(), "status": states.Status(states.WAITING)}
        self.jobs[number] = info
        return ""

    async def check_active_jobs(self, active_jobs: list[SubmittedJobInfo]) -> AsyncIterator[SubmittedJobInfo]:
        if not active_jobs:  # as when Snakemake asks for the first time, before `__post_init__`
            return
        numbers = [info.external_jobid for info in active_jobs]
        known = states.read_states(numbers)
        self.note_silence(len(known) < len(numbers))
        for info in active_jobs:
            status = known.get(info.external_jobid)
            if status is None or self.follow(info, status):
                yield info

    def follow(self, info: SubmittedJobInfo, status: states.Status) -> bool:
        """Do what is to be done about a job's state; returns whether the job goes on, as another one perhaps."""
        if status.state != states.UNKNOWN:
            info.aux.pop("unlisted", None)
        elif time.time() - info.aux.setdefault("unlisted", time.time()) < PATIENCE:
            return True
        before, info.aux["status"] = info.aux["status"], status
        if status.state == states.WAITING:
            # Of a reason that lasts; by the second time, the queue has often an estimate too.
            return status.reason != before.reason or self.explain_waiting(info, status)
        if status.state != states.COMPLETED and status.state not in states.FAILED:
            return True
        if not self.record(info):
            return False  # the run is ending
        # A job that Slurm has forgotten may have ended well: without accounts, it is listed for a while only.
        if status.state == states.COMPLETED or (status.state == states.UNKNOWN and unfinished(info.aux["job"]) is None):
            self.report_job_success(info)
            return False
        return self.resubmit(info) if status.state in states.PASSING else self.fail_ended(info)

    def explain_waiting(self, info: SubmittedJobInfo, status: states.Status) -> bool:
        """Say once why jobs wait; a job that would wait for ever is cancelled."""
        never, words = pending.explain(status.reason, info.aux["wish"].rule)
        if never and "," in status.partition:  # the reason is that of any of them
            never, words = False, f"one of its partitions {status.partition} cannot take it: {words}"
        if never:
            is_cancelled = self.slurm.submit(self._cancel, [info.external_jobid]).result()
            end = ", and was cancelled" if is_cancelled else ""
            self.fail(info, f"Slurm job {info.external_jobid} would wait for ever{end}: {words}")
            return False
        meaning = words.partition(" (")[0]  # which Slurm has several words for
        if words and meaning not in self.told:
            self.told.add(meaning)
            expected = time.strftime("; expected to start on %d %b at %H:%M", time.localtime(status.start))
            text = f"Slurm job {info.external_jobid} waits: {words}{expected if status.start else ''}"
            self.logger.info(text)
        return True

    def resubmit(self, info: SubmittedJobInfo) -> bool:
        """Submit again what a job left undone when the cluster took its node away."""
        job, attempt = info.aux["job"], info.aux["attempt"] + 1
        rest = unfinished(job)
        if rest is None:
            self.report_job_success(info)
            return False
        if attempt > self.executor_settings.resubmissions:
            return self.fail_ended(info)
        why = states.FAILED[info.aux["status"].state].partition(";")[0]
        self.logger.warning(
            f"Slurm job {info.external_jobid} ended, {info.aux['status'].state}: {why}. What is unfinished, "
            f"{len(members(rest))} of {len(members(job))}, is submitted again (time {attempt} of at most "
            f"{self.executor_settings.resubmissions})"
        )
        info.aux |= {"job": rest, "attempt": attempt}
        return self.submit(info)

    def fail_ended(self, info: SubmittedJobInfo) -> bool:
        number, state, job, wish = info.external_jobid, info.aux["status"].state, info.aux["job"], info.aux["wish"]
        log = (LOGS / f"{number}.log").absolute()
        minutes = next(iter(members(job))).resources.get("runtime", 0)  # of the rule; the wish's are all rounds'
        advice = states.advice(state, wish.rule, wish.mem_mb, minutes, has_items=bool(item_ids(job)))
        self.fail(info, f"Slurm job {number} ended, {state}: {advice}. Its log: {log}")
        return False

    def fail(self, info: SubmittedJobInfo, text: str) -> None:
        self.logger.error(text)
        self.report_job_error(info)

    def record(self, info: SubmittedJobInfo) -> bool:
        """Write down a job that has ended; returns False if it was already."""
        if self.jobs.pop(info.external_jobid or "", None) is None:
            return False
        wish, status = info.aux["wish"], info.aux["status"]
        line = {
            "job": info.external_jobid,
            "name": wish.rule,
            "items": item_ids(info.aux["job"]),
            "state": status.state,
            "node": status.node,
            "submitted": info.aux["submitted"],
            "started": status.start,
            "ended": status.end,
            "mem_mb": wish.mem_mb,
            "attempt": info.aux["attempt"],
        }
        try:  # not through a link, nor into a pipe, that others put into a shared folder
            descriptor = os.open(ENDED, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_NONBLOCK, 0o666)
            with open(descriptor, "a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")
        except OSError as error:
            self.logger.warning(f"What Slurm job {info.external_jobid} used will not be told: {error}")
        return True

    def cancel_jobs(self, active_jobs: list[SubmittedJobInfo]) -> None:
        """Cancel all jobs, those too that Slurm is being asked about, which are not among the given ones."""
        self.is_ending = True
        self.slurm.submit(lambda: self._cancel(list(self.jobs))).result()

    def _cancel(self, numbers: list[str]) -> bool:
        """Cancel jobs; returns whether Slurm did. Where it did not, the end of the run tries again."""
        if not numbers:
            return True
        is_cancelled = True
        try:
            subprocess.run(["scancel", *numbers], capture_output=True, timeout=60, start_new_session=True, check=True)
        except (OSError, subprocess.SubprocessError):
            self.logger.error(f"Slurm did not cancel the jobs. Do it by: scancel {' '.join(numbers)}")
            is_cancelled = False
        for number in numbers if is_cancelled or self.is_ending else []:
            if info := self.jobs.get(number):
                was_waiting = info.aux["status"].state == states.WAITING
                start = None if was_waiting else info.aux["status"].start
                info.aux["status"] = replace(info.aux["status"], state="CANCELLED", start=start, end=int(time.time()))
                self.record(info)
        return is_cancelled

    def shutdown(self) -> None:
        """End, after an error in Snakemake too, which cancels nothing by itself."""
        self.cancel_jobs([])
        super().shutdown()


def members(job: Any) -> list[Any]:
    """The jobs of a group; a job by itself is the only one."""
    return list(job.jobs) if job.is_group() else [job]


def item_ids(job: Any) -> list[str]:
    return [member.wildcards.id for member in members(job) if hasattr(member.wildcards, "id")]


def unfinished(job: Any) -> Any | None:
    """What of a job has not all its results, which are written whole; None if nothing."""
    left = [item for item in members(job) if not item.output or not all(map(os.path.exists, item.output))]
    if not left or len(left) == len(members(job)):
        return job if left else None
    rest = type(job)(job.groupid, frozenset(left), job.global_resources)
    rest.finalize()
    return rest


def sbatch(wish: nodes.Wish) -> list[str]:
    """The command that submits a job, whose script it reads from its input."""
    by_user = nodes.set_by_user(wish.extra)  # sbatch refuses some flags together, as --mem and --mem-per-cpu
    command = ["sbatch", "--parsable", "--no-requeue", "--nodes=1", "--ntasks=1", f"--job-name={wish.rule}"]
    command.append(f"--output={LOGS}/%j.log")
    if "cpus" not in by_user:
        command.append(f"--cpus-per-task={wish.cpus}")
    if wish.gpu and "gpus" not in by_user:
        command.append(f"--gres=gpu:{wish.gpu_model}:1" if wish.gpu_model else "--gres=gpu:1")
    if wish.mem_mb and "mem_mb" not in by_user:
        command.append(f"--mem={wish.mem_mb}M")
    if wish.minutes:
        command.append(f"--time={wish.minutes}")
    if wish.partition:
        command.append(f"--partition={wish.partition}")
    return command
