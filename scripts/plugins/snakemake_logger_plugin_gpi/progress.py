"""How far a run is, in words."""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Any

# Our rules in the order of a run, and what is said while one runs. All of them print into their logs.
STEPS = {
    "model": "finding the model",
    "extract": "extracting",
    "check": "checking the pictures",
    "checksums": "checksums",
    "stack": "stacking",
    "figures": "drawing figures",
    "report": "writing the report",
    "plan": "timing three items",
    "orphans": "looking for files of removed rows",
    "all": "finishing",
}
LOGS_READ = 32  # of running items, to see whether the model is loading


@dataclass
class Job:
    rule: str  # its name in the running workflow
    step: str  # its name in STEPS; empty for a rule of another workflow
    name: str  # to call it by, such as an item's id
    log: str
    command: str
    picture: str  # an item's; of any other job, its first input


class Progress:
    """Counts the jobs of a run.

    Attributes:
        steps: our rules by their names in the running workflow, which may use ours as a module; values are of STEPS.
        running: jobs by Snakemake's number.
        failed: the numbers of those that failed.
        is_grouped: whether items run in groups, as on a cluster, which says nothing before a whole group ends.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic):
        self.clock = clock
        self.steps: dict[str, str] = {}
        self.running: dict[int, Job] = {}
        self.failed: set[int] = set()
        self.is_grouped = False
        self.total: Counter[str] = Counter()  # by step; another workflow's rule is `rule NAME`
        self.done: Counter[str] = Counter()
        self._in_flight = 0  # the most items at a time
        self._started = False
        self._began = self._last_done = 0.0  # work on the items, without loading the model

    def plan(self, jobs_per_rule: Mapping[str, int]) -> str:
        """Take in what will run; returns it in words, empty where there is nothing worth to say."""
        for rule, count in jobs_per_rule.items():
            if rule != "total":
                self.total[self._key(rule)] += count
        steps = [step for step in ("stack", "report") if self.total[step]]
        rest = " and ".join(f"the {step}" for step in steps)
        parts = []
        if items := self.total["extract"]:
            parts.append(f"{_counted(items, 'item')} to extract" + (f", then {rest}" if rest else ""))
        elif rest:
            parts.append(f"no item to extract; {rest} anew")
        others = [f"{key} ({count})" for key, count in self.total.items() if count and key not in {*STEPS, "rule all"}]
        if others and parts:
            parts.append(f"and {', '.join(others)}")
        return "; ".join(parts or others)

    def start(self, record: Any) -> None:
        """Take in Snakemake's record of a job that starts."""
        rule = record.rule_name
        self.running[record.jobid] = job = Job(
            rule=rule,
            step=self.steps.get(rule, ""),
            name=next(iter((record.wildcards or {}).values()), rule),
            log=next(iter(record.log), ""),
            command=record.shellcmd or "",
            picture=next(iter(record.input), ""),
        )
        if job.step == "extract":
            if not self._started:
                self._started, self._began = True, self.clock()
            if not self.is_grouped:
                self._in_flight = max(self._in_flight, len(self._items()))

    def finish(self, number: int) -> str:
        """Count a job that ended well; returns why its item failed, if the study skips what fails."""
        if (job := self.running.pop(number, None)) is None:
            return ""
        if reason := _failure(job):
            self.failed.add(number)
            return f"{job.name}: {reason}"
        self.failed.discard(number)  # at a second attempt
        self.done[self._key(job.rule)] += 1
        if job.step == "extract":
            now = self.clock()
            if self.done["extract"] == 1 and not self.is_grouped:
                self._began = max(self._began, now - _seconds(job.log))
            self._last_done = now
        return ""

    def fail(self, number: int, is_in_group: bool = False) -> str:
        """Count a job that failed; returns which item it is and why, empty if it is none.

        A group calls all its jobs failed, those too that ended well, and those that were not reached.
        """
        if (job := self.running.pop(number, None)) is None:
            return ""
        reason = _failure(job)
        if is_in_group and not reason:
            if _seconds(job.log):
                self.done["extract"] += 1
                self._last_done = self.clock()
            return ""
        self.failed.add(number)
        return f"{job.name}: {reason}" if reason else job.name if job.step == "extract" else ""

    def has_others(self) -> bool:
        """Whether a rule runs that may print to the terminal, since it is not ours."""
        return any(not job.step for job in self.running.values())

    def is_of_ours(self, message: str) -> bool:
        """Whether a message is about the command of one of our jobs."""
        return any(job.step and job.command and job.command in message for job in self.running.values())

    def current(self) -> tuple[str, str, float | None]:
        """What is happening now, how far it is, and the part that is done, from 0 to 1; None if that is not known."""
        steps = {job.step for job in self.running.values()}
        step = next((step for step in STEPS if step in steps), "")
        others = dict.fromkeys(self._key(job.rule) for job in self.running.values() if not job.step)
        doing = ", ".join([*([self._doing(step)] if step else []), *others])
        counted = step or next(iter(others), "")
        done, total = self.done[counted], self.total[counted]
        words = []
        if step in ("model", "extract") and self.total["extract"]:
            done, total = self.done["extract"], self.total["extract"]
            words = [f"{done} of {_counted(total, 'item')}", *self.pace()]
        elif total > 1:
            words = [f"{done} of {total}"]
        if self.failed:
            words.append(f"{len(self.failed)} failed")
        return doing, ", ".join(words), done / total if total > 1 else None

    def pace(self) -> list[str]:
        """Seconds per item and time left, from the items of this run; empty before as many ended as run at a time."""
        done = self.done["extract"]
        if not done or (done < self._in_flight and not self.is_grouped):
            return []
        each = (self._last_done - self._began) / done
        left = each * (self.total["extract"] - done - len(self.failed)) - (self.clock() - self._last_done)
        each_text = f"{each:.1f} s" if each < 9.95 else _duration(each)
        return [f"{each_text} each", *([f"about {_duration(left)} left"] if left >= 1 else [])]

    def _key(self, rule: str) -> str:
        return self.steps.get(rule, f"rule {rule}")

    def _items(self) -> list[Job]:
        return [job for job in self.running.values() if job.step == "extract"]

    def _doing(self, step: str) -> str:
        if step not in ("model", "extract"):
            return STEPS[step]
        from gpi_latents import joblog

        if step == "model":
            line = _last_line(next(job.log for job in self.running.values() if job.step == "model")) or ""
            if line.startswith(joblog.DOWNLOADED):
                return f"downloading the model: {line.removeprefix(joblog.DOWNLOADED)}"
            return line if line.startswith(joblog.SEARCHING) else STEPS["model"]
        lines = [_last_line(job.log) for job in islice(self._items(), LOGS_READ)]
        if self.is_grouped and not any(line is not None for line in lines):
            return "waiting for the cluster"
        # Each log tells of it once more only some time after the model is loaded.
        is_loading = set(lines) == {joblog.LOADING} or (not self.done["extract"] and joblog.WORKING not in lines)
        return joblog.LOADING if is_loading else STEPS["extract"]


def _counted(count: int, what: str) -> str:
    return f"{count:,} {what}" + ("" if count == 1 else "s")


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60} min"


def _last_line(path: str) -> str | None:
    """The last line of a log; None if there is no log, or a link or a pipe that others put into a shared folder."""
    try:
        with open(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK), "rb") as file:
            file.seek(max(file.seek(0, 2) - 500, 0))
            return (file.read().decode(errors="replace").splitlines() or [""])[-1]
    except OSError:
        return None


def _failure(job: Job) -> str:
    """Why an item failed; empty if it did not, or for any other job."""
    if job.step != "extract":
        return ""
    from gpi_latents import joblog

    return joblog.failure(job.log).removeprefix(f"{job.picture}: ")


def _seconds(log: str) -> float:
    """How long an item took without loading the model; 0 if its log does not say so."""
    from gpi_latents import joblog

    finished = joblog.read(log)
    return finished.total_seconds if finished else 0.0
