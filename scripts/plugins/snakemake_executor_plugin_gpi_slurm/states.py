"""What Slurm says of jobs: all of them in one call."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Collection
from dataclasses import dataclass

WAITING = "PENDING"
COMPLETED = "COMPLETED"
UNKNOWN = "unknown to Slurm"
# The other states in which a job has ended (https://slurm.schedmd.com/job_state_codes.html): why, and what to do.
FAILED = {
    "BOOT_FAIL": "a node did not start; run again",
    "CANCELLED": "it was cancelled; run again for what is missing",
    "DEADLINE": "it could not end before its deadline",
    "FAILED": "its command failed",
    "LAUNCH_FAILED": "it could not be started; run again for what is missing",
    "NODE_FAIL": "its node failed; run again for what is missing",
    "OUT_OF_MEMORY": "it needed more memory: raise mem_mb (--set-resources {rule}:mem_mb={mem_mb}) and run again",
    "PREEMPTED": "a job of higher priority took its place; run again for what is missing",
    "RECONFIG_FAIL": "its node failed; run again for what is missing",
    "REVOKED": "another cluster took it",
    "TIMEOUT": "it reached its time limit: run again for what is missing, with a longer runtime "
    "(--set-resources {rule}:runtime={minutes})",
    UNKNOWN: "run again for what is missing",
}
# Of a job that has items.
OF_ITEMS = {
    "FAILED": "at least one of its items failed",
    "TIMEOUT": f"{FAILED['TIMEOUT']} or smaller groups (--group-components extract=25)",
}
# Of these the cluster is the reason, not the job.
PASSING = {"BOOT_FAIL", "LAUNCH_FAILED", "NODE_FAIL", "PREEMPTED", "RECONFIG_FAIL"}


@dataclass(frozen=True)
class Status:
    """What Slurm says of one job; times are in seconds since 1970.

    Attributes:
        state: one of Slurm's, or `UNKNOWN`.
        reason: why it waits, in Slurm's word.
        start: when it started; of a job that waits, when the queue expects it to start.
        partition: of a job that waits, several with commas if it may start in any of them.
    """

    state: str
    reason: str = ""
    node: str | None = None
    start: int | None = None
    end: int | None = None
    partition: str = ""


def advice(state: str, rule: str, mem_mb: int, minutes: int, has_items: bool) -> str:
    """Why a job has ended, and what to do.

    Args:
        state: one of `FAILED`.
        rule: whose job it is.
        mem_mb: what the rule asked for; 0 if nothing.
        minutes: likewise.
        has_items: whether it is a job of items.
    """
    text = (FAILED | OF_ITEMS if has_items else FAILED)[state]
    return text.format(rule=rule, mem_mb=2 * mem_mb or 32000, minutes=2 * minutes or 120)


def environment() -> dict[str, str]:
    """The user's, without what they like to see in Slurm's tables: SQUEUE_PARTITION would hide jobs in others."""
    return {name: value for name, value in os.environ.items() if not name.startswith(("SQUEUE_", "SINFO_"))}


def read_states(numbers: Collection[str]) -> dict[str, Status]:
    """The states of jobs by their numbers. A job is missing if Slurm does not answer."""
    # The queue lists a job until some minutes after its end; then only the accounting knows it, if there is one.
    queue = _ask("squeue", "--noheader", "--states=all", f"--user={os.getuid()}", "--format=%A|%T|%r|%N|%S|%e|%P")
    states = dict(queue or {})
    if unlisted := [number for number in numbers if number not in states]:
        past = (
            "--noheader",
            "--parsable2",
            "--allocations",
            "--format=JobIDRaw,State,Reason,NodeList,Start,End,Partition",
        )
        states |= _ask("sacct", *past, f"--jobs={','.join(unlisted)}") or {}
    if queue is not None:
        states = {number: Status(UNKNOWN) for number in unlisted} | states
    return {number: states[number] for number in numbers if number in states}


def _ask(*command: str) -> dict[str, Status] | None:
    """The states of jobs from a command that prints a line for each; None if it fails."""
    # In a session of its own, so that Ctrl-C does not end it.
    options = {"capture_output": True, "text": True, "timeout": 60, "start_new_session": True}
    try:
        answer = subprocess.run(command, env=environment() | {"SLURM_TIME_FORMAT": "%s"}, **options)  # type: ignore[call-overload]
    except (OSError, subprocess.TimeoutExpired):
        return None
    if answer.returncode:
        return None
    states = {}
    for line in answer.stdout.splitlines():
        if line.count("|") == 6:
            number, state, reason, node, *times, partition = line.split("|")
            start, end = (int(time) if time.isdigit() else None for time in times)
            # As in "CANCELLED by 1000" and "CANCELLED+".
            states[number] = Status(state.partition(" ")[0].rstrip("+"), reason, node or None, start, end, partition)
    return states
