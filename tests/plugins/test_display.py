"""What a run shows while it works: the logger plugin, fed with Snakemake's records."""

from __future__ import annotations

import io
import logging
import os
import sys

import pyte
import pytest
import snakemake_logger_plugin_gpi as plugin
from gpi_latents import joblog
from gpi_latents.closing import RULES
from snakemake.logging import DefaultFormatter
from snakemake.settings.types import OutputSettings, Quietness
from snakemake_interface_logger_plugins.common import LogEvent
from snakemake_logger_plugin_gpi.progress import STEPS, _last_line

WIDTH = 100


class Terminal(io.StringIO):
    """A terminal of 100 x 30 in place of the standard error, or a pipe."""

    def __init__(self, is_terminal: bool):
        super().__init__()
        self.is_terminal = is_terminal
        self.screen = pyte.HistoryScreen(WIDTH, 30)
        self.emulator = pyte.Stream(self.screen)

    def isatty(self) -> bool:
        return self.is_terminal

    def write(self, text: str) -> int:
        self.emulator.feed(text.replace("\n", "\r\n"))
        return super().write(text)

    def lines(self) -> list[str]:
        return [line.rstrip() for line in self.screen.display if line.strip()]


class Run:
    """A run that is played to a handler."""

    def __init__(self, monkeypatch, is_terminal=True, words=None, rules=True, **settings):
        monkeypatch.setattr(plugin, "TICK", 1000.0)
        monkeypatch.setenv("COLUMNS", str(WIDTH))
        monkeypatch.setenv("TERM", "xterm")
        self.terminal = Terminal(is_terminal)
        monkeypatch.setattr(sys, "stdout" if settings.get("dryrun") else "stderr", self.terminal)
        self.settings = OutputSettings(stdout=settings.get("dryrun", False), **settings)
        self.handler = plugin.LogHandler(self.settings, None)
        self.handler.setFormatter(DefaultFormatter(self.settings.quiet, self.settings.show_failed_logs))
        self.handler.words = words
        self.handler.progress.steps = {step: step for step in STEPS} if rules else {}
        self.now = 0.0
        self.handler.progress.clock = lambda: self.now

    def log(self, message: str | None, level: int = logging.INFO, **fields) -> None:
        record = logging.makeLogRecord({"msg": message, "levelno": level, "levelname": logging.getLevelName(level)})
        vars(record).update(fields)
        if self.handler.filter(record):
            self.handler.handle(record)

    def plan(self, **jobs: int) -> None:
        self.log("Job stats:\n...", event=LogEvent.RUN_INFO, stats=jobs | {"total": sum(jobs.values())})

    def start(self, number: int, rule: str = "extract", indent: bool = False, **wildcards: str) -> None:
        log = [f"{rule}{number}.log"]
        fields = {"rule_name": rule, "wildcards": wildcards, "log": log, "indent": indent, "shellcmd": f"do {number}"}
        rest = {
            "input": ["a.png"],
            "output": [],
            "resources": {},
            "reason": "Missing output",
            "threads": 1,
            "priority": 0,
        }
        rest |= {"rule_msg": None, "local": False, "is_checkpoint": False, "benchmark": None}
        self.log(f"Rule: {rule}", event=LogEvent.JOB_INFO, jobid=number, **fields, **rest)
        self.log(f"Shell command: do {number}", event=LogEvent.SHELLCMD, cmd=f"do {number}", indent=indent)

    def finish(self, number: int) -> None:
        self.log(f"Finished jobid: {number}", event=LogEvent.JOB_FINISHED, job_id=number)

    def fail(self, number: int, rule: str = "extract", indent: bool = False) -> None:
        self.log(
            f"RuleException:\nCalledProcessError in file x, line 1:\nCommand 'set -eu; do {number}' ...", logging.ERROR
        )
        fields = {"rule_name": rule, "log": [f"{rule}{number}.log"], "shellcmd": f"do {number}", "indent": indent}
        rest = {"rule_msg": None, "input": [], "output": [], "conda_env": None, "aux": {}}
        self.log("Error in rule", logging.ERROR, event=LogEvent.JOB_ERROR, jobid=number, **fields, **rest)

    def show(self) -> list[str]:
        """The lines on the screen after the next look at how far the run is."""
        self.handler.show_progress()
        return self.terminal.lines()


@pytest.fixture(autouse=True)
def in_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def write_log(number: int, text: str, rule: str = "extract") -> None:
    with open(f"{rule}{number}.log", "w", encoding="utf-8") as file:
        file.write(text)


def worked(seconds: float) -> str:
    return joblog.line(joblog.Finished([], [4, 8, 8], seconds, seconds, "cpu")) + "\n"


def test_time_left_is_that_of_the_items_of_this_run_without_loading_the_model(monkeypatch):
    run = Run(monkeypatch)
    progress = run.handler.progress
    run.plan(extract=10, stack=1)
    for number in (1, 2):
        run.start(number, id=f"p{number}")
        write_log(number, worked(4.0))
    run.now = 104.0  # after 100 s of loading
    run.finish(1)
    assert progress.current()[:2] == ("extracting", "1 of 10 items")  # the second is in flight with it
    run.finish(2)
    assert progress.pace() == ["2.0 s each", "about 16 s left"]
    run.now = 107.0
    assert progress.pace() == ["2.0 s each", "about 13 s left"]
    for number in (3, 4):
        run.start(number, id=f"p{number}")
    write_log(3, "error: no picture\n")
    run.fail(3)
    assert progress.current()[1:] == ("2 of 10 items, 2.0 s each, about 11 s left, 1 failed", 0.2)
    run.now = 500.0
    assert progress.pace() == ["2.0 s each"]  # no time left is better than a negative one


def test_what_is_happening_is_named(monkeypatch):
    run = Run(monkeypatch)
    run.plan(model=1, extract=2, checksums=1, stack=1, figures=1, report=1, all=1)
    run.start(9, "model")
    write_log(9, f"{joblog.SEARCHING}a/b in the cache and at the hub\n", "model")
    assert "looking for the model a/b" in run.show()[-1]
    write_log(9, f"{joblog.SEARCHING}a/b\n{joblog.DOWNLOADED}1.0 of 3.0 MB\n", "model")
    assert "downloading the model: 1.0 of 3.0 MB" in run.show()[-1]
    run.finish(9)
    run.start(1, id="p1")
    write_log(1, "")
    assert "loading the model" in run.show()[-1]
    write_log(1, f"{joblog.LOADING}\n")
    assert "loading the model" in run.show()[-1]
    write_log(1, f"{joblog.LOADING}\n{joblog.WORKING}\n")
    assert "extracting" in run.show()[-1]
    run.start(2, id="p2")
    write_log(2, f"{joblog.LOADING}\n")  # not said once more since then
    run.finish(1)
    run.start(3, id="p3")
    assert "extracting" in run.show()[-1]
    write_log(3, f"{joblog.LOADING}\n")  # another resident
    assert "loading the model" in run.show()[-1]
    for number in (2, 3):
        run.finish(number)
    for number, (rule, words) in enumerate(list(STEPS.items())[3:7], start=20):
        run.start(number, rule)
        assert words in run.show()[-1]
        run.finish(number)


def test_each_rule_of_ours_has_words_for_what_it_does():
    assert set(STEPS) == set(RULES)


def test_a_terminal_keeps_what_jobs_print_and_is_left_as_it_was(monkeypatch):
    run = Run(monkeypatch)
    run.plan(extract=3, stack=1, report=1)
    assert run.terminal.lines() == ["3 items to extract, then the stack and the report"]
    run.start(1, id="p1")
    assert run.show()[-1].endswith("0 of 3 items")
    run.terminal.write("bash: cannot open a log\nand what is more\n")
    assert run.show()[1:3] == ["bash: cannot open a log", "and what is more" + run.terminal.lines()[2][16:]]
    run.terminal.write("half a line")
    run.handler.show_progress()
    run.terminal.write(", and the rest\n")
    write_log(1, worked(1))
    run.finish(1)
    run.log("The first of\ntwo last lines", closing=True)
    run.handler.close()
    run.handler.close()
    lines = run.terminal.lines()
    assert lines[3:] == ["half a line, and the rest", "The first of", "two last lines"]
    assert (run.terminal.screen.cursor.x, run.terminal.screen.cursor.y) == (0, len(lines))
    assert not run.terminal.screen.cursor.hidden


def test_many_lines_scroll_the_screen_and_nothing_is_lost(monkeypatch):
    run = Run(monkeypatch)
    run.plan(extract=3)
    run.start(1, id="p1")
    for number in range(60):
        run.log(f"warning {number}", logging.WARNING)
        run.show()
    run.handler.close()
    above = ["".join(line[x].data for x in range(WIDTH)).rstrip() for line in run.terminal.screen.history.top]
    assert above + run.terminal.lines() == ["3 items to extract", *(f"warning {number}" for number in range(60))]


def test_a_pipe_gets_few_lines_without_control_codes(monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")
    run = Run(monkeypatch, is_terminal=False)
    run.plan(extract=200, stack=1)
    run.start(0, id="p0")
    for number in range(200):
        run.start(number + 1, id=f"p{number + 1}")
        write_log(number, worked(1))
        run.now += 1
        run.finish(number)
        run.handler.show_progress()
    run.log("Odd", logging.WARNING)
    run.log("200 latents", closing=True)
    run.handler.close()
    first, *lines, odd, last = run.terminal.getvalue().splitlines()
    assert (first, odd, last) == ("200 items to extract, then the stack", "Odd", "200 latents")
    assert len(lines) == 200 // 30
    assert lines[0] == "extracting: 30 of 200 items, 1.0 s each, about 3 min left"
    assert "\x1b" not in run.terminal.getvalue()


def test_of_many_failed_items_three_are_told_and_all_are_counted(monkeypatch):
    run = Run(monkeypatch)
    run.plan(extract=9)
    for number in range(7):
        run.start(number, id=f"p{number}")
        write_log(number, f"{joblog.LOADING}\nerror: a.png: the picture is {'very ' * 30}bad\n")
    for number in range(4):
        run.fail(number)
    run.finish(4)  # where the study skips what fails
    *lines, last = run.show()
    assert [line[:23] for line in lines[1:]] == [f"failed: p{number}: the picture" for number in range(3)]
    assert all(len(line) <= WIDTH for line in lines)
    assert last.endswith("0 of 9 items, 5 failed")


def test_items_that_ctrl_c_ends_are_not_called_failed(monkeypatch):
    run = Run(monkeypatch)
    run.plan(extract=1)
    run.start(1, id="p1")
    assert len(run.show()) == 2
    run.log("Terminating processes on user request, this might take some time.")
    run.fail(1)
    assert run.show() == ["1 item to extract", "Terminating processes on user request, this might take some time."]


def test_a_failed_group_on_a_cluster_counts_only_items_that_failed(monkeypatch):
    run = Run(monkeypatch)
    run.plan(extract=9)
    run.log("Group job a (jobs in lexicogr. order):", event=LogEvent.GROUP_INFO, group_id="a", jobs=[])
    for number in range(3):
        run.start(number, id=f"p{number}", indent=True)
    assert "waiting for the cluster" in run.show()[-1]
    write_log(0, worked(1))
    write_log(1, "error: no picture\n")
    run.now = 60.0
    infos = [{"rule_name": "extract"}]
    run.log(
        "Error in group a", logging.ERROR, event=LogEvent.GROUP_ERROR, groupid="a", aux_logs=[], job_error_info=infos
    )
    for number in range(3):
        run.fail(number, indent=True)
    run.start(4, id="p4", indent=True)
    *lines, last = run.show()
    assert lines == ["9 items to extract", "failed: p1: no picture"]
    assert last.endswith("1 of 9 items, 60 s each, about 7 min left, 1 failed")


def test_a_failed_job_of_another_workflow_is_shown_as_snakemake_does(monkeypatch):
    run = Run(monkeypatch)
    run.handler.progress.steps = {"gpi_extract": "extract"}  # as `use rule * from gpi as gpi_*` calls it
    run.plan(gpi_extract=2, analysis=1, report=1, all=1)
    assert run.terminal.lines() == ["2 items to extract; and rule analysis (1), rule report (1)"]
    run.start(1, "gpi_extract", id="p1")
    run.start(2, "analysis")
    run.now = 40.0
    run.show()
    assert run.show() == [*run.terminal.lines()[:1], "loading the model, rule analysis: 0 of 2 items"]
    run.terminal.write("what it prints\nin lines\n")
    run.fail(2, "analysis")
    run.handler.close()
    text = "\n".join(run.terminal.lines())
    assert "what it prints\nin lines\nRuleException" in text
    assert "Error in rule analysis:" in text
    assert "log: analysis2.log" in text


SAID = ["Building DAG of jobs...", "Using shell: /bin/bash", "Complete log(s): x", "Select jobs to execute...", "None"]


@pytest.mark.parametrize(
    ("quiet", "shown"),
    [
        ([], ["1 item to extract", "failed: p1", "Odd", "WorkflowError: bad", "the end"]),
        (["progress", "rules"], ["Odd", "WorkflowError: bad", "the end"]),
        (["progress"], ["Odd", "WorkflowError: bad", "the end"]),
        (["rules"], ["1 item to extract", "Odd", "WorkflowError: bad", "the end"]),
        (["host", "reason"], ["1 item to extract", "failed: p1", "Odd", "WorkflowError: bad", "the end"]),
        (["all"], []),
    ],
)
def test_quiet_is_respected_and_chatter_left_out_but_nothing_unknown(monkeypatch, quiet, shown):
    run = Run(monkeypatch, is_terminal=False, quiet=Quietness.parse_choices_set(quiet))
    for text in SAID:
        run.log(text)
    run.plan(extract=1)
    run.start(1, id="p1")
    run.fail(1)
    for _ in range(3):
        run.log("Odd", logging.WARNING)
    run.log("WorkflowError: bad", logging.ERROR, event=LogEvent.ERROR)
    run.log("Exiting because a job execution failed. Look above for error messages", logging.ERROR)
    run.log("the end", logging.ERROR, closing=True)
    run.log("WorkflowError:\nAt least one job did not complete successfully.", logging.ERROR, event=LogEvent.ERROR)
    run.handler.close()
    assert run.terminal.getvalue().splitlines() == shown


class Words:
    def would_run(self, jobs: list[dict]) -> str:
        return "\n".join(f"{job['rule']} {dict(job['wildcards'])} {job['reason']}" for job in jobs)

    def nothing_to_do(self) -> str:
        return "All is there."


METADATA = "5 jobs have missing provenance/metadata so that it in part cannot be used to trigger re-runs.\nRules ..."


@pytest.mark.parametrize("words", [Words(), None])
@pytest.mark.parametrize("printshellcmds", [False, True])
def test_a_dry_run_ends_with_what_would_run(monkeypatch, words, printshellcmds):
    run = Run(monkeypatch, is_terminal=False, words=words, dryrun=True, printshellcmds=printshellcmds)
    run.plan(extract=1)
    run.start(1, id="p1")
    run.plan(extract=1)
    run.log("Some jobs were triggered by provenance information, see 'reason' section ...")
    run.log(METADATA)
    run.log("This was a dry-run (flag -n). The order of jobs does not reflect the order of execution.")
    run.handler.close()
    text = run.terminal.getvalue()
    end = "extract {'id': 'p1'} Missing output\n" if words else "Would run:\n  extract: 1\n  total: 1\n"
    assert text.endswith(end)
    assert (text == end) != printshellcmds
    assert ("rule extract:" in text) == ("do 1" in text) == printshellcmds


def test_when_there_is_nothing_to_do_the_workflow_says_so(monkeypatch):
    for words, said in ((Words(), "All is there.\n"), (None, "Nothing to be done (all is up to date).\n")):
        run = Run(monkeypatch, is_terminal=False, words=words)
        run.log("Nothing to be done (all is up to date).")
        run.handler.close()
        assert run.terminal.getvalue() == said


def test_verbose_shows_all_as_snakemake_does(monkeypatch):
    run = Run(monkeypatch, verbose=True)
    run.log("Building DAG of jobs...")
    run.plan(extract=1)
    run.start(1, id="p1")
    write_log(1, "error: no picture\n")
    run.fail(1)
    run.handler.close()
    text = "\n".join(run.terminal.lines())
    for part in ("Building DAG", "Job stats", "rule extract:", "RuleException", "Error in rule extract"):
        assert part in text


@pytest.mark.timeout(20)
@pytest.mark.parametrize("planted", ["link", "pipe"])
def test_what_others_put_in_place_of_a_log_is_not_read_and_hangs_nothing(planted):
    write_log(2, joblog.LOADING)
    os.symlink("extract2.log", "extract1.log") if planted == "link" else os.mkfifo("extract1.log")
    assert _last_line("extract1.log") is None
    assert _last_line("extract2.log") == joblog.LOADING


def test_a_fault_of_the_display_costs_only_the_display(monkeypatch):
    run = Run(monkeypatch, is_terminal=False)
    run.handler.progress.finish = None
    run.plan(extract=2)
    run.start(1, id="p1")
    run.finish(1)
    run.log("Building DAG of jobs...")
    run.log("the end", closing=True)
    run.handler.close()
    lines = run.terminal.getvalue().splitlines()
    assert "Finished jobid: 1" in lines
    assert lines[-2:] == ["Building DAG of jobs...", "the end"]
