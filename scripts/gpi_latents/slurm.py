"""Submit Snakemake's jobs to Slurm and report their states, for profiles/slurm."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shlex
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from gpi_latents.files import write_whole

LOGS = Path("logs/slurm")
SUBMITTED = Path(".snakemake/slurm_jobs.txt")
CACHE = Path(".snakemake/slurm_states.json")
CACHE_SECONDS = 5.0
# The states in which a job stays (https://slurm.schedmd.com/job_state_codes.html), and what to do about each.
FAILED = {
    "BOOT_FAIL": "a node did not start; run again",
    "CANCELLED": "it was cancelled; run again for what is missing",
    "DEADLINE": "it could not end before its deadline",
    "FAILED": "at least one of its items failed",
    "LAUNCH_FAILED": "it could not be started",
    "NODE_FAIL": "its node failed; run again for what is missing",
    "OUT_OF_MEMORY": "it needed more memory: raise mem_mb (--set-resources extract:mem_mb=32000) and run again",
    "PREEMPTED": "a job of higher priority took its place; run again for what is missing",
    "RECONFIG_FAIL": "its node failed; run again for what is missing",
    "REVOKED": "another cluster took it",
    "TIMEOUT": "it reached its time limit: run again for what is missing, with a longer runtime "
    "(--set-resources extract:runtime=2) or smaller groups (--group-components extract=25)",
}
UNKNOWN = "unknown to Slurm"


def sbatch(properties: dict[str, Any], startup_minutes: int, log: str) -> list[str]:
    """The command that submits a job; the path of its script is still to be added.

    Args:
        properties: as Snakemake writes them into a job's script. Of a group, `threads` and the resources are sums over
            the items in flight, but for `runtime`, which is summed over the rounds that these make of the group.
        startup_minutes: for loading the model, added to the runtime of extractions.
        log: the file for what the job prints, in Slurm's notation.
    """
    resources = properties["resources"]
    name = properties.get("rule") or properties["groupid"]
    # One GPU and one model per job, shared by the items in flight: each counts one `in_flight`.
    in_flight = resources.get("in_flight", 0)

    def same_for_all(resource: str) -> Any:
        value = resources.get(resource)
        return value // max(1, in_flight) if isinstance(value, int) else value  # numbers were summed, even names

    command = ["sbatch", "--parsable", "--no-requeue", "--nodes=1", "--ntasks=1"]
    command += [f"--job-name={name}", f"--output={log}", f"--cpus-per-task={properties['threads']}"]
    if in_flight and resources.get("device") != "cpu":
        model = same_for_all("gpu_model")
        command.append(f"--gres=gpu:{model}:1" if model else "--gres=gpu:1")
    if "mem_mb" in resources:
        command.append(f"--mem={same_for_all('mem_mb')}M")
    if "runtime" in resources:
        command.append(f"--time={resources['runtime'] + (startup_minutes if in_flight else 0)}")
    if partition := same_for_all("slurm_partition"):
        command.append(f"--partition={partition}")
    if account := same_for_all("slurm_account"):
        command.append(f"--account={account}")
    return command + shlex.split(resources.get("slurm_extra", ""))


def submit(jobscript: Path, startup_minutes: int) -> int:
    """Submit a job's script and print the number that Slurm gives it.

    Raises:
        ValueError: the script is not as Snakemake 9 writes it, or slurm_extra has an unbalanced quote.
        OSError: sbatch is not installed.
    """
    text = jobscript.read_text(encoding="utf-8")
    marker = "# properties = "
    before, mode, after = text.rpartition(" --mode ")
    written = next((line for line in text.splitlines() if line.startswith(marker)), "")
    if not written or not mode:
        raise ValueError(f"{jobscript} is not as Snakemake 9 writes it: use the version in envs/requirements.txt")
    properties = json.loads(written.removeprefix(marker))
    # The Snakemake in the job does not get --keep-going and --resources from the one outside. Its options end with
    # --mode.
    in_flight = properties["resources"].get("in_flight")
    options = " --keep-going" + (f" --resources in_flight={in_flight}" if in_flight else "")
    jobscript.write_text(before + options + mode + after, encoding="utf-8")
    LOGS.mkdir(parents=True, exist_ok=True)
    command = [*sbatch(properties, startup_minutes, f"{LOGS}/%j.log"), str(jobscript)]
    answer = subprocess.run(command, stdout=subprocess.PIPE, text=True)
    if answer.returncode:
        print(f"Slurm did not accept the job: {shlex.join(command[:-1])}", file=sys.stderr)
        return answer.returncode
    number = answer.stdout.strip().partition(";")[0]  # on a federation, the cluster's name follows
    with SUBMITTED.open("a") as file:
        file.write(f"{number}\n")
    print(number)
    return 0


def forget_submitted() -> None:
    """Begin a new run, which has submitted nothing."""
    SUBMITTED.unlink(missing_ok=True)


def cancel_submitted() -> None:
    """Cancel the jobs that this run submitted and that have not ended.

    Snakemake does so itself, except for jobs that it is asking about at that moment.
    """
    with contextlib.suppress(OSError):
        subprocess.run(["scancel", *SUBMITTED.read_text().split()], stderr=subprocess.DEVNULL)


def ask_slurm(*command: str) -> dict[str, str] | None:
    """The state of each job by its number, from a command that prints `number|state`; None if the command fails."""
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=60)
    except (OSError, subprocess.TimeoutExpired):
        return None
    if answer.returncode:
        return None
    pairs = [line.split("|") for line in answer.stdout.splitlines() if line.count("|") == 1]
    return {job: state.split()[0].rstrip("+") for job, state in pairs if state.strip()}


def known_states(job: str) -> dict[str, str]:
    """The states of all jobs by their numbers, asked of Slurm together and kept for `CACHE_SECONDS`.

    A job that Slurm does not know has the state `UNKNOWN`; one is missing if Slurm does not answer.
    """
    try:
        kept = json.loads(CACHE.read_text(encoding="utf-8"))
        if job in kept["states"] and 0 <= time.time() - kept["time"] < CACHE_SECONDS:
            return kept["states"]
    except (OSError, ValueError, KeyError, TypeError):
        pass
    user = f"--user={os.getuid()}"
    # The queue lists a job until some minutes after its end; then only the accounting knows it, if there is one.
    queue = ask_slurm("squeue", "--noheader", "--states=all", user, "--format=%A|%T")
    states = dict(queue or {})
    if job not in states:
        past = ("--noheader", "--parsable2", "--allocations", "--starttime=now-30days", "--format=JobIDRaw,State")
        states = (ask_slurm("sacct", user, *past) or {}) | states
    if job not in states and queue is not None:
        states[job] = UNKNOWN
    with contextlib.suppress(OSError):  # asked again next time
        write_whole(CACHE, json.dumps({"time": time.time(), "states": states}).encode())
    return states


def status(job: str) -> str:
    """A job's state: `running` (or waiting), `success` or `failed`; then stderr says why."""
    state = known_states(job).get(job)
    if state is None:
        print(f"Slurm does not answer; asking again for job {job}", file=sys.stderr)
        return "running"
    if state == "COMPLETED":
        return "success"
    if state != UNKNOWN and state not in FAILED:
        return "running"
    advice = FAILED.get(state, "run again for what is missing")
    print(f"Slurm job {job} ended, {state}: {advice}. Its log: {os.path.abspath(LOGS / job)}.log", file=sys.stderr)
    return "failed"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    submitting = commands.add_parser("submit", help="submit a job and print its number")
    submitting.add_argument("--startup-minutes", type=int, default=0, help="added to the runtime of extractions")
    submitting.add_argument("jobscript", type=Path)
    asking = commands.add_parser("status", help="print running, success or failed")
    asking.add_argument("job")
    arguments = parser.parse_args()
    if arguments.command == "submit":
        try:
            return submit(arguments.jobscript, arguments.startup_minutes)
        except (OSError, ValueError) as error:
            print(f"The job cannot be submitted to Slurm: {error}", file=sys.stderr)
            return 1
    print(status(arguments.job))
    return 0
