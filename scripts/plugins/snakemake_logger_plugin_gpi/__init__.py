"""Snakemake's logger plugin `gpi`: one line of progress in place of a paragraph per job, and what ends the run.

Whatever it does not know, such as a warning or an error, it prints as Snakemake does; with --verbose, everything.
"""

from __future__ import annotations

import contextlib
import logging
import sys
import threading
from typing import Any

from snakemake_interface_logger_plugins.base import LogHandlerBase
from snakemake_interface_logger_plugins.common import LogEvent

TICK = 0.5  # seconds between two looks at how far the run is
INTERVAL = 30.0  # seconds between two lines of progress where there is no terminal
FAILURES = 3  # so many are told at once; the end of the run lists all

# How messages begin that say nothing to the user of a study.
CHATTER = (
    "Assuming unrestricted shared filesystem usage",
    "Building DAG of jobs",
    "Complete log(s)",
    "Conda environments: ignored",
    "Config file ",
    "Elapsed time",
    "Exiting because a job execution failed",
    "Group jobs: inactive",
    "Job failed, going on with independent jobs",
    "Reasons:",
    "Removing output files of failed job",
    "Rules with provenance triggered jobs",
    "Select jobs to execute",
    "Shutting down, this might take some time",
    "Singularity containers: ignored",
    "Some jobs were triggered by provenance information",
    "Submitted group job",
    "Submitted job",
    "This was a dry-run",
    "Using shell",
    "WorkflowError:\nAt least one job did not complete successfully",
    "--keep-incomplete mode is set",
)
METADATA = "provenance/metadata so that it in part"  # after a number of jobs
STOPPED = "Terminating processes on user request"
FAILED_COMMAND = "RuleException:\nCalledProcessError"
NOTHING = "Nothing to be done"
# Counted, not printed.
COUNTED = {
    LogEvent.GROUP_INFO,
    LogEvent.JOB_FINISHED,
    LogEvent.JOB_INFO,
    LogEvent.JOB_STARTED,
    LogEvent.PROGRESS,
    LogEvent.RESOURCES_INFO,
    LogEvent.RULEGRAPH,
    LogEvent.RUN_INFO,
    LogEvent.SHELLCMD,
    LogEvent.WORKFLOW_STARTED,
}
STYLES = {"WARNING": "yellow", "ERROR": "red", "CRITICAL": "red"}


class LogHandler(LogHandlerBase):
    """Shows Snakemake's records.

    Attributes:
        words: set by the workflow; `would_run(jobs)` is printed at the end of a dry run, where jobs are dicts of rule,
            wildcards and reason, and `nothing_to_do()` if there is nothing to do.
        progress: its `steps` are set by the workflow, whose own last words explain why these rules failed.
    """

    writes_to_stream = True
    writes_to_file = False
    has_filter = True
    has_formatter = False
    needs_rulegraph = False

    def __post_init__(self) -> None:
        # Snakemake imports all plugins whenever it starts, so the rest only where this one is used.
        from snakemake.logging import DefaultFilter

        from snakemake_logger_plugin_gpi.area import Area
        from snakemake_logger_plugin_gpi.progress import Progress

        settings = self.common_settings
        self.words: Any = None
        self.progress = Progress()
        self.area = Area(sys.stdout if settings.stdout else sys.stderr, has_colors=not settings.nocolor)
        self.default = DefaultFilter(
            settings.quiet, settings.debug_dag, settings.verbose, settings.dryrun, settings.printshellcmds
        )
        self.quiet = {kind.name for kind in settings.quiet or ()}
        self.is_verbose = settings.verbose or settings.debug_dag
        self.shows_progress = not (settings.dryrun or self.is_verbose or self.quiet & {"PROGRESS", "ALL"})
        self.dry_jobs: list[dict[str, Any]] = []
        self.dry_stats: dict[str, int] = {}
        self.steps = ""  # how many are done, for workflows without words of their own
        self.message = ""  # the last one, as some are repeated while a run ends
        self.failures_told = 0
        self.line, self.line_at = "", 0.0  # the last one of progress that was printed, and when
        self.ended = threading.Event()
        self.ticker = threading.Thread(target=self._tick, daemon=True)

    def emit(self, record: logging.LogRecord) -> None:
        """Show a record. Whatever goes wrong here, the run goes on, and is shown as Snakemake shows it."""
        try:
            if "ALL" not in self.quiet or self.common_settings.dryrun:
                self._take(record)
        except Exception:
            self.shows_progress, self.is_verbose = False, True
            with contextlib.suppress(Exception):
                self._print(record)

    def close(self) -> None:
        """End the display; the terminal is as it was."""
        with self.lock or contextlib.nullcontext(), contextlib.suppress(Exception):
            self.ended.set()
            self.area.erase()
            self._end_dry_run()
            steps, self.steps = self.steps, ""  # Python closes handlers once more at its end
            if steps and self.shows_progress:
                self.area.say(steps)
        super().close()

    def _take(self, record: logging.LogRecord) -> None:
        event = getattr(record, "event", None)
        if getattr(record, "closing", False):
            self.ended.set()
            self.steps = ""
            if text := record.getMessage():
                self.area.say(text)
            return
        failure = self._count(event, record)
        if self.is_verbose or (event in (LogEvent.JOB_INFO, LogEvent.SHELLCMD) and self.common_settings.printshellcmds):
            self._print(record)
        elif failure is not None:
            self._tell(failure)
        elif event not in COUNTED:
            self._tell_message(record)

    def _count(self, event: LogEvent | None, record: Any) -> str | None:
        """Count what a record says; returns which item failed and why, None where the record is to be shown."""
        if event == LogEvent.RUN_INFO:
            self._plan(getattr(record, "stats", None) or {})
        elif event == LogEvent.GROUP_INFO:
            self.progress.is_grouped = True
        elif event == LogEvent.PROGRESS:
            self.steps = f"{record.done} of {record.total} steps done" if self.words is None else ""
        elif event == LogEvent.JOB_INFO:
            self._start(record)
        elif event == LogEvent.JOB_FINISHED:
            if failure := self.progress.finish(record.job_id):
                return failure
            self._erase_if_idle()
        elif event == LogEvent.JOB_ERROR:
            failure = self.progress.fail(record.jobid, record.indent)
            self._erase_if_idle()
            return failure if self._is_explained(record.rule_name) else None
        elif event == LogEvent.GROUP_ERROR:
            rules = {job["rule_name"] for job in record.job_error_info}
            return "" if all(map(self._is_explained, rules)) else None
        elif event == LogEvent.ERROR:
            self.dry_stats.clear()
        return None

    def _is_explained(self, rule: str) -> bool:
        return rule in self.progress.steps and not self.common_settings.show_failed_logs

    def _plan(self, jobs_per_rule: dict[str, int]) -> None:
        if self.common_settings.dryrun:
            self.dry_stats = jobs_per_rule
        elif self.shows_progress and (text := self.progress.plan(jobs_per_rule)):
            self.area.say(text)
        self.line_at = self.progress.clock()

    def _start(self, record: Any) -> None:
        if self.common_settings.dryrun:
            self.dry_jobs.append(
                {"rule": record.rule_name, "wildcards": dict(record.wildcards or {}), "reason": record.reason}
            )
            return
        self.progress.start(record)
        if self.shows_progress and not self.ticker.ident:
            self.ticker.start()
        if record.rule_name not in self.progress.steps:
            self.area.erase()  # it may print to the terminal

    def _erase_if_idle(self) -> None:
        if not self.progress.running:
            self.area.erase()

    def _tell(self, failure: str) -> None:
        is_quiet = self.ended.is_set() or self.quiet & {"RULES", "PROGRESS"}
        if not failure or is_quiet or self.failures_told == FAILURES:
            return
        self.failures_told += 1
        text = f"failed: {failure}"
        width = self.area.console.width
        self.area.say(text if len(text) <= width or not self.area.is_terminal else f"{text[: width - 1]}…")

    def _tell_message(self, record: logging.LogRecord) -> None:
        before, self.message = self.message, (text := record.getMessage())
        if text.startswith(STOPPED):
            self.ended.set()
        if text.startswith("This was a dry-run"):
            self._end_dry_run()
        elif text.startswith(NOTHING) and self.words is not None:
            self.area.say(self.words.nothing_to_do())
        elif text != before and not text.startswith(CHATTER) and METADATA not in text and not self._is_of_failure(text):
            self._print(record)

    def _is_of_failure(self, text: str) -> bool:
        """Whether a message, which comes before the record of a failed job, is about one of ours."""
        is_shown = self.common_settings.show_failed_logs
        return text.startswith(FAILED_COMMAND) and not is_shown and self.progress.is_of_ours(text)

    def _print(self, record: logging.LogRecord) -> None:
        """Print a record as Snakemake does."""
        if self.default.filter(record) and (text := self.format(record)) not in ("", "None"):
            space = "\n" if getattr(record, "event", None) == LogEvent.JOB_INFO else ""
            self.area.say(space + text, STYLES.get(record.levelname, ""))

    def _end_dry_run(self) -> None:
        """Say what would run, once."""
        jobs, self.dry_jobs = self.dry_jobs, []
        stats, self.dry_stats = self.dry_stats, {}
        if jobs and self.words is not None:
            self.area.say(self.words.would_run(jobs))
        elif stats:
            self.area.say("\n".join(["Would run:", *(f"  {rule}: {count}" for rule, count in stats.items())]))

    def _tick(self) -> None:
        while not self.ended.wait(TICK):
            with self.lock or contextlib.nullcontext():
                try:
                    self.show_progress()
                except Exception:
                    return

    def show_progress(self) -> None:
        """Draw the line of progress, or where there is no terminal, print it once in a while."""
        if not self.progress.running or self.ended.is_set():
            return
        doing, words, part = self.progress.current()
        if self.area.is_terminal and not self.progress.has_others():
            self.area.draw(doing, words, part)
        elif self.progress.clock() - self.line_at >= INTERVAL:
            line = f"{doing}: {words}" if words else doing
            if line != self.line:
                self.area.say(line)
            self.line, self.line_at = line, self.progress.clock()
