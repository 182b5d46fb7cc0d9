"""What the jobs of a run on Slurm used of what they had asked for: node, GPU, time and memory."""

from __future__ import annotations

import contextlib
import json
import math
import re
import subprocess
from typing import Any

import pandas as pd

from gpi_latents import paths
from gpi_latents.errors import bulleted, duration
from gpi_latents.files import read_text, write_whole

JOBS = f"{paths.PLANS}/slurm_jobs.jsonl"  # a line per job that has ended, by the executor gpi-slurm
TABLE = "logs/slurm.csv"
SHOWN = 5  # jobs
LOADED = re.compile(r"^loaded the model on (.+) in ([\d.]+) s, ", re.MULTILINE)  # by resident/server.py
LONG_ENOUGH = 120  # seconds; Slurm looks at a job's memory every 30 s, and may miss the peak of a short one


def words(device: str, rule: str = "extract", table: str = TABLE) -> str:
    """What the user is told of the jobs of the items; all jobs are written to `TABLE`.

    Args:
        device: the config's.
        rule: the name of the rule `extract`.
        table: `TABLE`, as seen from where the user stands.

    Returns:
        A text of several lines; empty if no such job has ended.
    """
    jobs = read_jobs()
    if jobs.empty:
        return ""
    with contextlib.suppress(OSError):
        write_whole(TABLE, jobs.to_csv(index=False).encode())
    jobs = jobs[jobs["items"] > 0]
    lines = [_line(job) for job in jobs.to_dict("records")]
    jobs_text = bulleted(f"Jobs on Slurm (all in {table}):", lines, SHOWN) if lines else ""
    return "\n".join(filter(None, [jobs_text, _memory(jobs, rule), _missed_gpu(jobs, device)]))


def read_jobs() -> pd.DataFrame:
    """One row per job of this run that has ended: `job`, `name`, `items`, `attempt`, `state`, `node`, `device` (of the
    model), `waited_s` (in the queue), `loaded_s`, `worked_s` (all the rest), `mem_mb` (asked for), `used_mb` (peak).

    What is not known is missing.
    """
    if not (jobs := [json.loads(line) for line in read_text(JOBS).splitlines()]):
        return pd.DataFrame()  # without asking sacct
    peaks = memory_peaks([job["job"] for job in jobs])
    return pd.DataFrame([_row(job, peaks) for job in jobs]).convert_dtypes()


def _row(job: dict[str, Any], peaks: dict[str, int]) -> dict[str, Any]:
    logs = "".join(read_text(path) for path in paths.resident_logs(job["job"]))
    loaded = LOADED.findall(logs)  # again, if the resident died
    loading = round(sum(float(seconds) for _, seconds in loaded))
    ran = round(job["ended"] - job["started"]) if job["started"] and job["ended"] else None
    waited = (job["started"] or job["ended"] or job["submitted"]) - job["submitted"]
    return {
        "job": job["job"],
        "name": job["name"],
        "items": len(job["items"]),
        "attempt": job["attempt"],
        "state": job["state"],
        "node": job["node"] or "",
        "device": ", ".join(dict.fromkeys(device for device, _ in loaded)),
        "waited_s": max(0, round(waited)),  # Slurm cuts its seconds
        "loaded_s": loading,
        "worked_s": None if ran is None else max(0, ran - loading),
        "mem_mb": job["mem_mb"],
        "used_mb": peaks.get(job["job"]),
    }


def memory_peaks(jobs: list[str]) -> dict[str, int]:
    """The most memory that each job used, in MB; only of jobs that Slurm keeps accounts of."""
    columns = ["--noheader", "--parsable2", "--units=M", "--format=JobIDRaw,MaxRSS"]
    try:
        answer = subprocess.run(
            ["sacct", *columns, f"--jobs={','.join(jobs)}"], capture_output=True, text=True, timeout=30
        )
    except (OSError, subprocess.TimeoutExpired):
        return {}
    # A job has a line for each of its steps, such as 12.batch|5200.25M.
    peaks: dict[str, int] = {}
    for step, peak in re.findall(r"^(\d+)\S*\|([\d.]+)M$", answer.stdout, re.MULTILINE):
        peaks[step] = max(peaks.get(step, 0), math.ceil(float(peak)))
    return peaks


def _line(job: dict[str, Any]) -> str:
    """Such as `12 on n1: 50 items, cuda:0 NVIDIA A100; waited 3 min 20 s, loaded 14 s, worked 2 min 3 s`."""
    end = "" if job["state"] == "COMPLETED" else f" {job['state']}"
    count = f"{job['items']} item{'s' * (job['items'] > 1)}"
    device = f", {job['device']}" if job["device"] else ""
    times = {"waited": job["waited_s"], "loaded": job["loaded_s"] or None, "worked": job["worked_s"]}
    told = ", ".join(f"{what} {duration(seconds)}" for what, seconds in times.items() if pd.notna(seconds))
    memory = f"; {job['used_mb']} of {job['mem_mb']} MB" if pd.notna(job["used_mb"]) else ""
    node = f" on {job['node']}" if job["node"] else ""
    return f"{job['job']}{end}{node}: {count}{device}; {told}{memory}"


def _memory(jobs: pd.DataFrame, rule: str) -> str:
    """What to ask for next time; empty if what was asked for suits, or if nothing is known."""
    known = jobs[jobs["mem_mb"] > 0].dropna(subset=["used_mb"])  # 0 is all that the node has
    if known.empty:
        return ""
    job = known.loc[known["used_mb"].idxmax()]
    used, asked = int(job["used_mb"]), int(job["mem_mb"])
    enough = math.ceil(used * 1.3 / 1000) * 1000
    option = f"--set-resources {rule}:mem_mb={enough}"
    if used > 0.9 * asked:
        return f"Memory: {used} of the {asked} MB asked for were used, which is near the limit: {option}"
    is_long = (known["loaded_s"] + known["worked_s"]).max() >= LONG_ENOUGH
    if enough <= asked / 2 and is_long:
        return f"Memory: {used} of the {asked} MB asked for were used: {option} is enough"
    return ""


def _missed_gpu(jobs: pd.DataFrame, device: str) -> str:
    missed = jobs[jobs["device"] == "cpu"]
    if device == "cpu" or missed.empty:
        return ""
    nodes = ", ".join(missed["node"].unique())
    return (
        f"NO GPU WAS USED by {len(missed)} of {len(jobs)} jobs, though they asked for one: torch sees none on {nodes}. "
        'docs/slurm.md says under "Is the GPU used?" how to find out why'
    )
