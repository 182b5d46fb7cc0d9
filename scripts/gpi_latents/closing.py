"""What the user is told at the end of a run: what there is, what was made, what failed, and what to do next."""

from __future__ import annotations

import contextlib
import os
import shlex
import shutil
import sys
import time
from collections.abc import Collection, Mapping
from typing import Any

import pandas as pd

from gpi_latents import joblog, paths, slurm_use
from gpi_latents.errors import TensorError, bulleted, duration, listed
from gpi_latents.files import missing_files, read_json, read_text, remove_files, write_whole
from gpi_latents.paths import from_where
from gpi_latents.run import unwritable
from gpi_latents.study.stale import read_failed
from gpi_latents.study.study import Study
from gpi_latents.study.would_run import would_run
from gpi_latents.tensors.tensor_file import open_latents

RULES = ["all", "model", "extract", "checksums", "stack", "figures", "report", "check", "plan", "orphans"]


class Closing:
    """The words at the end of a run, and in place of one.

    Args:
        study: the study that runs.
        workflow: Snakemake's, while it parses.
    """

    def __init__(self, study: Study, workflow: Any):
        self.study = study
        self.workflow = workflow
        self.started = time.monotonic()
        self.is_module = not workflow.modifier.is_main_snakefile()
        rename = workflow.modifier.modify_rulename  # as a module, the rules may have other names
        self.rules = {name: rename(name) for name in RULES}
        self.replaced = replaced_tensor(study.config, workflow.rundir)
        self.planned: list[str] = []

    def begin(self) -> None:
        """Note which items are about to run, and forget the jobs of the run before."""
        remove_files([slurm_use.JOBS])
        self.planned = self._items(self.workflow.dag.needrun_jobs())

    def success(self) -> str:
        """For the end of a run that did all that was asked for."""
        if self.workflow.touch:
            return "The dates of the results are renewed; nothing was made."
        texts = [*map(self._listed, ("check", "plan", "orphans")), *self._results()]
        if not self._has("stack"):
            texts.append(self._part())
        texts += [self._counts(is_done=True), self._slurm(), cut_prompts(self._sheet()), self.replaced]
        if self._has("stack") and not self.is_module:
            report = "open the report; then " if self._has("report") else ""
            texts.append(
                f"Next: {report}in Python: from gpi_latents import load; R, index = load({self._path('results')!r})"
            )
        return "\n".join(filter(None, texts))

    def failure(self) -> str:
        """For the end of a run of which a job failed, or that its user ended."""
        left = [job for job in self.workflow.dag.needrun_jobs() if job.rule.name in self.rules.values()]
        texts = [cut_prompts(self._sheet())]
        if not self.workflow.output_settings.show_failed_logs:  # Snakemake has then shown them
            # The run began without these logs, so those that are there are of jobs that failed.
            texts += [job_log(log) for job in left if job.rule.name != self.rules["extract"] for log in job.log]
        texts.append(unfinished(self.study.config, self._sheet(), self.workflow.rundir, self.planned))
        if self._has("stack"):
            is_stacked = self.rules["stack"] not in {job.rule.name for job in left}
            texts += self._results() if is_stacked else [earlier_results(self.workflow.rundir)]
        counts = self._counts()
        texts += [counts and f"Items: {counts}", self._slurm()]
        if not self.is_module:
            is_wrong = os.path.exists(paths.FAILED) or self._has("check") or self._has("plan")
            what = "Put right what failed, then" if is_wrong else "To go on,"
            texts.append(f"{what} run: {command_line(self.workflow.rundir)}")
        return "\n".join(filter(None, texts))

    def nothing_to_do(self) -> str:
        """For a run that finds everything made."""
        if not self._has("stack"):
            return "Everything that was asked for is up to date."
        first, *others = self._results()
        return "\n".join([f"Everything is up to date: {first}", *others])

    def would_run(self, jobs: list[dict[str, Any]]) -> str:
        """For a dry run; see `study.would_run`."""
        return would_run(self.study, jobs) or self.nothing_to_do()

    def _has(self, name: str) -> bool:
        """Whether a rule of ours belongs to what was asked for, be it to run or up to date."""
        # With --batch, all but the last part leave the stack out.
        return any(job.rule.name == self.rules[name] for job in self.workflow.dag.jobs)

    def _items(self, jobs: Any) -> list[str]:
        return [job.wildcards.id for job in jobs if job.rule.name == self.rules["extract"]]

    def _sheet(self) -> pd.DataFrame:
        """The items that were asked for."""
        sheet = self.study.sheet
        return sheet if self._has("stack") else sheet[sheet["id"].isin(self._items(self.workflow.dag.jobs))]

    def _listed(self, name: str) -> str:
        """What the rule `check`, `plan` or `orphans` has found; empty if it was not asked for."""
        if not self._has(name):
            return ""
        text = read_text(f"logs/{name}.txt")
        if name != "orphans":
            return text
        if not (found := text.splitlines()):
            return "Every file in the results belongs to the study as it is now."
        count = f"{len(found)} files belong" if len(found) > 1 else "1 file belongs"
        heading = f"{count} to nothing in the study any more; none was deleted (all: {self._path('logs/orphans.txt')}):"
        return bulleted(heading, found)

    def _results(self) -> list[str]:
        """The results, and what the report says of them; nothing if they were not asked for."""
        if not self._has("stack"):
            return []
        stacked = self.study.config["stacked"]
        try:
            shape = open_latents(stacked).shape
        except TensorError as error:
            return [str(error)]
        count = "1 latent" if shape[0] == 1 else f"{shape[0]} latents"
        texts = [f"{count} {tuple(map(int, shape))}: {self._path(stacked)}, {self._path(paths.INDEX)}"]
        if failed := read_failed():
            count = f"{len(failed)} items failed and are" if len(failed) > 1 else "1 item failed and is"
            rows = listed((f"row {each['sheet_row']}, {each['id']}" for each in failed), 3)
            texts.append(f"{count} left out: {rows} (why: {self._path(paths.SKIPPED)})")
        if self._has("report") and os.path.exists(paths.REPORT):
            findings = (read_json(paths.REPORT_JSON).get("verdict") or {}).get("findings") or []
            first = f" ({len(findings)} thing{'s' * (len(findings) > 1)} to look at first)" if findings else ""
            texts.append(f"Report: {self._path(paths.REPORT)}{first}")
            texts += [each["text"] for each in findings if each["text"].startswith("The demo's model ")]
        return texts

    def _part(self) -> str:
        """What there is of a run that does not stack."""
        batch = self.workflow.dag_settings.batch
        items = self._items(self.workflow.dag.jobs)
        if batch is not None and batch.rulename == self.rules["stack"]:
            return (
                f"Part {batch.idx} of {batch.batches}: {len(items)} of {len(self.study.items)} items. "
                f"Next: --batch {batch.rulename}={batch.idx + 1}/{batch.batches}"
            )
        if items:
            made = f"{len(items) - self._failed()} of {len(self.study.items)} latents are made"
            return f"{made}, but not stacked: leave targets and --until out for the tensor."
        return f"The model: {self._path(paths.MODEL)}" if self._has("model") and not self._has("plan") else ""

    def _counts(self, is_done: bool = False) -> str:
        """How many items were made, kept and so on, and how long it took.

        Args:
            is_done: whether all items that did not fail were made, even if the log of one, written on another machine,
                has not arrived here.
        """
        if not (wanted := len(self._sheet())):
            return ""
        logs = [paths.item_log(item_id) for item_id in self.planned]
        failed = self._failed()
        made = len(logs) - failed if is_done else sum(joblog.read(log) is not None for log in logs)
        rest = len(logs) - made - failed
        counts = [f"{made} made", f"{wanted - len(logs)} kept", f"{failed} failed"]
        counts += [f"{rest} not reached"] if rest else []
        return ", ".join([*counts, duration(time.monotonic() - self.started)]) + "."

    def _failed(self) -> int:
        """How many items of this run failed."""
        return sum(joblog.failure(paths.item_log(item_id)) != "" for item_id in self.planned)

    def _slurm(self) -> str:
        return slurm_use.words(self.study.config["device"], self.rules["extract"], self._path(slurm_use.TABLE))

    def _path(self, path: str) -> str:
        return from_where(path, self.workflow.rundir)


def job_log(path: str) -> str:
    """Why a job of another rule than `extract` failed."""
    lines = joblog.read_own(path).splitlines()
    return "\n".join(line for line in lines if not line.startswith(joblog.PROGRESS))


def unfinished(config: Mapping[str, Any], sheet: pd.DataFrame, start: str = ".", planned: Collection[str] = ()) -> str:
    """Which items of a run that failed are not done, and why, from the logs of their jobs.

    Args:
        config: as `settings.load_config` returns it.
        sheet: the items that were asked for.
        start: the folder where the user stands.
        planned: the ids of items that were to be made, some of which still have their old latent.

    Returns:
        A text for the user: the failed items by row and id with the reasons (the first 20; all are in
        `paths.FAILED`, with their `sheet_row`), and how many were not reached.
    """
    latents = [paths.latent_path(config, item_id) for item_id in sheet["id"]]
    lost = missing_files(latents)
    to_make = {item_id for item_id in planned if joblog.read(paths.item_log(item_id)) is None}
    missing = sheet.loc[[path in lost or each in to_make for path, each in zip(latents, sheet["id"], strict=True)]]
    failed = missing[["id", "image"]].assign(reason=[joblog.failure(paths.item_log(each)) for each in missing["id"]])
    failed = failed[failed["reason"] != ""]
    texts = []
    if not failed.empty:
        with contextlib.suppress(OSError):
            write_whole(paths.FAILED, failed.to_csv(index_label="sheet_row").encode())
        lines = [f"row {row}, {item.id}: {item.reason}" for row, item in failed.iterrows()]
        heading = f"{len(failed)} of {len(sheet)} items failed (all in {from_where(paths.FAILED, start)}):"
        texts.append(bulleted(heading, lines))
    if rest := len(missing) - len(failed):
        texts.append(f"{rest} of {len(sheet)} items were not reached: run again for them.")
    texts.append(unwritable(config))  # where no log can be written, the jobs themselves said nothing
    return "\n".join(filter(None, texts))


def cut_prompts(sheet: pd.DataFrame) -> str:
    """Which prompts the model did not read to their end, from the logs of the items; a text for the user."""
    # The text encoders read 77 tokens, of one byte or more.
    long = sheet[["prompt", "negative_prompt"]].fillna("").map(lambda text: len(text.encode())).max(axis=1) > 75
    lines = []
    for row, item_id in sheet["id"][long & (sheet["strength"] > 0)].items():
        if finished := joblog.read(paths.item_log(item_id)):
            lines += [f"row {row}, {item_id}: {note}" for note in finished.notes if " cut: " in note]
    return f"Prompts too long for the model: {listed(lines, 2)}" if lines else ""


def earlier_results(start: str) -> str:
    """That the results are those of an earlier run, as a text for the user whose run has failed; empty without any."""
    try:
        made = os.stat(paths.INDEX).st_mtime
    except OSError:
        return ""
    when = time.strftime("%Y-%m-%d %H:%M", time.localtime(made))
    report = (
        f", its report is {from_where(paths.EARLIER_REPORT, start)}" if os.path.exists(paths.EARLIER_REPORT) else ""
    )
    return f"{from_where('results', start)}/ still holds the tensor and the table of the run of {when}{report}."


def replaced_tensor(config: Mapping[str, Any], start: str) -> str:
    """The tensor of the run before, if it had another name, as a text for the user; empty otherwise."""
    before = (read_json(paths.PROVENANCE).get("config") or {}).get("stacked")
    if not before or before == config["stacked"] or not os.path.isfile(before):
        return ""
    path = from_where(before, start)
    return f"{path} is the tensor of an earlier run, which the index table no longer describes: delete it."


def command_line(start: str) -> str:
    """The command that the user gave in the folder `start`.

    The environment variable `GPI_COMMAND` has it where another program, such as `gpi-latents`, called Snakemake.
    """
    if given := os.environ.get("GPI_COMMAND"):
        return given
    program, *arguments = sys.argv
    if os.path.basename(program) == "__main__.py":
        program, arguments = sys.executable, ["-m", "snakemake", *arguments]
    # A shell that found it by its name gives its whole path.
    name, path = os.path.basename(program), os.path.join(start, program)
    found = shutil.which(name)
    if found and os.path.exists(path) and os.path.samefile(found, path):
        program = name
    return shlex.join([program, *arguments])
