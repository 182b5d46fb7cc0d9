"""The words at the end of a run, as its user reads them."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from gpi_latents import closing, joblog, paths, slurm_use
from gpi_latents.study.study import Study
from helpers.study import ROOT, draw

CONFIG = {
    "output_hidden_dir": "results/hidden",
    "output_image_dir": "results/images",
    "prefix_hidden": "hidden",
    "save_name": "gen",
    "stacked": "results/latents.pt",
}
WHOLE = ["model", "extract p0", "extract p1", "extract p2", "stack"]


@pytest.fixture(autouse=True)
def in_study(tmp_path, monkeypatch):
    (tmp_path / "my study").mkdir()
    monkeypatch.chdir(tmp_path / "my study")
    monkeypatch.delenv("GPI_PLAN", raising=False)
    monkeypatch.delenv("GPI_COMMAND", raising=False)
    monkeypatch.setattr(sys, "argv", [str(ROOT / "snakemake"), "--directory", "my study"])


def make(*files: str) -> None:
    for file in files:
        Path(file).parent.mkdir(parents=True, exist_ok=True)
        Path(file).write_text(file)


def log(path: str, text: str) -> None:
    make(path)
    Path(path).write_text(text)


# --- A whole run ---


@pytest.fixture
def study() -> Study:
    """Three items, of which the results are there."""
    ids = ["p0", "p1", "p2"]
    pd.DataFrame({"id": ids, "image": "a.png", "prompt": "a"}).to_csv("items.csv", index=False)
    draw(Path("a.png"))
    study = Study({"model_id": "demo", "items": "items.csv", "stacked": "results/all.npy"})
    make(paths.INDEX, paths.MODEL, *study.latents)
    np.save("results/all.npy", np.zeros((3, 4, 8, 8), np.float32))
    return study


def ran(study: Study, asked: list[str], runs: list[str], left: list[str] | None = None, **more) -> closing.Closing:
    """The end of a run.

    Args:
        study: the study.
        asked: the jobs of what was asked for, such as `extract p0`.
        runs: those of them that had to run.
        left: those of them that did not end well.
        more: other attributes of Snakemake's workflow.
    """

    def jobs(names: list[str]) -> list[SimpleNamespace]:
        pairs = [name.partition(" ") for name in names]
        return [
            SimpleNamespace(
                rule=SimpleNamespace(name=rule), wildcards=SimpleNamespace(id=item_id), log=[f"logs/{rule}.log"]
            )
            for rule, _, item_id in pairs
        ]

    known = {
        "modifier": SimpleNamespace(is_main_snakefile=lambda: True, modify_rulename=lambda name: name),
        "dag": SimpleNamespace(jobs=jobs(asked), needrun_jobs=lambda: jobs(runs)),
        "dag_settings": SimpleNamespace(batch=None),
        "output_settings": SimpleNamespace(show_failed_logs=False),
        "rundir": str(Path.cwd().parent),
        "touch": False,
    }
    end = closing.Closing(study, SimpleNamespace(**known | more))
    end.started -= 86
    end.begin()
    end.workflow.dag.needrun_jobs = lambda: jobs(left or [])
    return end


def test_a_run_ends_with_what_there_is_what_was_made_and_what_to_do_next(study):
    log(paths.item_log("p1"), FINISHED)
    log(paths.REPORT, "")
    finding = {"text": "The demo's model knows the demo's drawings alone.", "section": "#map"}
    log("results/report.json", json.dumps({"verdict": {"findings": [finding, {"text": "other", "section": "#map"}]}}))
    end = ran(study, [*WHOLE, "report"], ["extract p1", "stack", "report"])
    results = [
        "3 latents (3, 4, 8, 8): my study/results/all.npy, my study/results/index.csv",
        "Report: my study/results/report.html (2 things to look at first)",
        "The demo's model knows the demo's drawings alone.",
    ]
    load = "from gpi_latents import load; R, index = load('my study/results')"
    counts = "1 made, 2 kept, 0 failed, 1 min 26 s."
    assert end.success().splitlines() == [*results, counts, f"Next: open the report; then in Python: {load}"]
    assert end.nothing_to_do().splitlines() == [f"Everything is up to date: {results[0]}", *results[1:]]
    # Without a report, from elsewhere.
    text = ran(study, WHOLE, ["extract p0"], rundir="/elsewhere").success()
    assert "1 made, 2 kept, 0 failed, " in text  # whose log another machine has written, and it is not here yet
    assert text.splitlines()[0].endswith(f": {Path.cwd()}/results/all.npy, {Path.cwd()}/results/index.csv")
    assert "eport" not in text


def test_the_end_has_at_most_eight_lines_whatever_there_is_to_say(study):
    study.sheet["prompt"], study.sheet["strength"] = "red " * 50, 0.5
    old = {"failed": [{"sheet_row": 3, "id": "p1", "image": "a.png", "reason": "bad"}] * 9}
    log(paths.PROVENANCE, json.dumps(old | {"config": {"stacked": "results/latents.pt"}}))
    make("results/latents.pt", paths.REPORT)
    log("results/report.json", json.dumps({"verdict": {"findings": [{"text": "The demo's model ", "section": ""}]}}))
    for item_id in study.items:
        log(paths.item_log(item_id), FINISHED)
    lines = ran(study, [*WHOLE, "report"], WHOLE).success().splitlines()
    assert len(lines) == 8
    rows = "row 3, p1; row 3, p1; row 3, p1; and 6 more"
    assert lines[1] == f"9 items failed and are left out: {rows} (why: my study/results/failed.csv)"
    assert lines[6].startswith("my study/results/latents.pt is the tensor of an earlier run")


@pytest.mark.parametrize(
    ("asked", "more", "expected"),
    [
        (
            WHOLE[:3],
            {"dag_settings": SimpleNamespace(batch=SimpleNamespace(rulename="stack", idx=1, batches=2))},
            ["Part 1 of 2: 2 of 3 items. Next: --batch stack=2/2", "0 made, 2 kept, 0 failed, 1 min 26 s."],
        ),
        (
            WHOLE[:4],
            {},
            [
                "3 of 3 latents are made, but not stacked: leave targets and --until out for the tensor.",
                "0 made, 3 kept, 0 failed, 1 min 26 s.",
            ],
        ),
        (["model"], {}, ["The model: my study/results/model.json"]),
        (["check"], {}, ["All pictures can be read."]),
        (["model", "plan"], {}, ["3 items take 1 min."]),
        (["orphans"], {}, ["Every file in the results belongs to the study as it is now."]),
        (WHOLE, {"touch": True}, ["The dates of the results are renewed; nothing was made."]),
    ],
    ids=["batch", "until extract", "model", "check", "plan", "orphans", "touch"],
)
def test_a_run_for_a_part_says_what_that_is(study, asked, more, expected):
    log("logs/check.txt", "All pictures can be read.")
    log("logs/plan.txt", "3 items take 1 min.")
    log("logs/orphans.txt", "")
    assert ran(study, asked, [], **more).success().splitlines() == expected


def test_the_jobs_on_slurm_are_told_after_the_counts_and_those_of_the_run_before_are_forgotten(study):
    times = {"submitted": 0, "started": 10, "ended": 30}
    job = {
        "job": "7",
        "name": "extract",
        "items": ["p1"],
        "state": "COMPLETED",
        "node": "n1",
        "mem_mb": 9,
        "attempt": 0,
    }
    log(slurm_use.JOBS, json.dumps(job | times))
    end = ran(study, WHOLE, ["extract p1"])
    assert "Slurm" not in end.success()
    log(slurm_use.JOBS, json.dumps(job | times))
    told = ["Jobs on Slurm (all in my study/logs/slurm.csv):", "  - 7 on n1: 1 item; waited 10 s, worked 20 s"]
    assert end.success().splitlines()[2:4] == told
    assert end.failure().splitlines()[-3:-1] == told


def test_items_that_a_part_skipped_are_not_called_made(study):
    log(paths.item_log("p1"), "error: a.png: the picture is empty")
    lines = ran(study, WHOLE[:4], WHOLE[1:3]).success().splitlines()
    assert lines[0].startswith("2 of 3 latents are made, but not stacked")
    assert lines[1].startswith("1 made, 1 kept, 1 failed, ")


def test_orphans_are_listed_up_to_twenty_with_the_file_of_all(study):
    log("logs/orphans.txt", "".join(f"results/hidden/hidden_{number}.pt\n" for number in range(30)))
    lines = ran(study, ["orphans"], ["orphans"]).success().splitlines()
    heading = "30 files belong to nothing in the study any more; none was deleted (all: my study/logs/orphans.txt):"
    assert [lines[0], lines[1], lines[21:]] == [heading, "  - results/hidden/hidden_0.pt", ["  ... and 10 more"]]


# --- A run that failed ---


def test_a_failed_run_ends_with_what_failed_what_is_still_there_and_the_command_that_goes_on(study):
    log(paths.item_log("p0"), FINISHED)
    log(paths.item_log("p1"), "error: a.png: the picture is empty")
    for latent in study.latents[1:]:
        Path(latent).unlink()
    lines = ran(study, WHOLE, WHOLE[1:], WHOLE[2:]).failure().splitlines()
    assert lines[:3] == [
        "1 of 3 items failed (all in my study/logs/failed.csv):",
        "  - row 3, p1: a.png: the picture is empty",
        "1 of 3 items were not reached: run again for them.",
    ]
    assert lines[3].startswith("my study/results/ still holds the tensor and the table of the run of 20")
    assert lines[4:] == [
        "Items: 1 made, 0 kept, 1 failed, 1 not reached, 1 min 26 s.",
        f"Put right what failed, then run: {ROOT}/snakemake --directory 'my study'",
    ]


def test_a_picture_that_plan_cannot_time_is_to_be_put_right_first(study):
    log("logs/plan.log", "Row 3, p1: a.png cannot be read")
    lines = ran(study, ["model", "plan"], ["plan"], ["plan"]).failure().splitlines()
    assert lines[0] == "Row 3, p1: a.png cannot be read"
    assert lines[-1].startswith("Put right what failed, then run: ")


def test_items_whose_old_latents_are_still_there_are_not_called_reached(study):
    log(paths.item_log("p0"), FINISHED)
    lines = ran(study, WHOLE, WHOLE[1:], WHOLE[2:]).failure().splitlines()
    assert lines[0] == "2 of 3 items were not reached: run again for them."
    assert lines[-2].startswith("Items: 1 made, 0 kept, 0 failed, 2 not reached")


def test_if_only_what_follows_the_stack_failed_the_results_are_named(study):
    log("logs/report.log", "no room")
    lines = ran(study, [*WHOLE, "report"], ["stack", "report"], ["report"]).failure().splitlines()
    assert lines[0] == "no room"
    assert lines[1].startswith("3 latents (3, 4, 8, 8): my study/results/all.npy")
    assert lines[-1].startswith("To go on, run: ")


@pytest.mark.parametrize("shown", [False, True])
def test_what_a_failed_job_says_is_told_once(study, shown):
    """With --show-failed-logs, Snakemake has told it when the job failed."""
    log("logs/check.log", "looking for the model in a cache\n1 of 3 pictures cannot be read")
    text = ran(
        study, ["check"], ["check"], ["check"], output_settings=SimpleNamespace(show_failed_logs=shown)
    ).failure()
    lines = [] if shown else ["1 of 3 pictures cannot be read"]
    assert text.splitlines() == [*lines, f"Put right what failed, then run: {ROOT}/snakemake --directory 'my study'"]


def test_in_a_part_of_a_study_only_its_items_are_missed(study):
    for latent in study.latents:
        Path(latent).unlink()
    text = ran(study, WHOLE[:3], WHOLE[1:3], WHOLE[1:3]).failure()
    assert "2 of 2 items were not reached" in text
    assert "still holds" not in text


@pytest.mark.parametrize(
    ("path", "argv", "expected"),
    [
        (
            "",
            [".venv/bin/snakemake", "--directory", "my study", "-c1"],
            ".venv/bin/snakemake --directory 'my study' -c1",
        ),
        (".venv/bin", ["{}/.venv/bin/snakemake", "-c1"], "snakemake -c1"),
        (".venv/bin", [".venv/bin/snakemake", "-c1"], "snakemake -c1"),
        ("", ["{}/.venv/bin/snakemake", "-c1"], "{}/.venv/bin/snakemake -c1"),
        ("", ["/lib/snakemake/__main__.py", "-c1"], f"{sys.executable} -m snakemake -c1"),
    ],
    ids=["relative", "by its name", "relative and known by its name", "whole", "module"],
)
def test_the_command_that_goes_on_is_the_one_that_was_given(monkeypatch, tmp_path, path, argv, expected):
    """Seen from where it was given, though Snakemake has gone to the study since."""
    make(str(tmp_path / ".venv/bin/snakemake"))
    (tmp_path / ".venv/bin/snakemake").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path / path))
    monkeypatch.setattr(sys, "argv", [each.format(tmp_path) for each in argv])
    assert closing.command_line(str(tmp_path)) == expected.format(tmp_path)
    monkeypatch.setenv("GPI_COMMAND", "gpi-latents run 'my study'")
    assert closing.command_line(str(tmp_path)) == "gpi-latents run 'my study'"


def test_times_are_told_in_words():
    assert [*map(closing.duration, (0.4, 59.6, 86, 7260))] == ["0 s", "1 min 0 s", "1 min 26 s", "2 h 1 min"]


# --- What failed, from the logs ---


def sheet(count: int, **columns) -> pd.DataFrame:
    ids = [f"p{number}" for number in range(count)]
    known = {"id": ids, "image": "p.png", "prompt": "a", "negative_prompt": None, "strength": 0.5}
    return pd.DataFrame(known | columns, index=range(2, count + 2))


FINISHED = joblog.line(joblog.Finished(["prompt cut: 77 of 90 tokens", "picture grey"], [1, 4, 8, 8], 1.0, 2.0, "cpu"))


def test_failed_items_are_listed_with_reasons_and_the_rest_is_counted():
    make("results/hidden/hidden_p0.pt")
    log("logs/extract/p1.log", "loading the model\nnoise of a library\nerror: p.png: the picture\nis empty\n")
    log("logs/extract/p2.log", f"working on it\n{FINISHED}\n")  # it was done, and its latent was lost later
    assert closing.unfinished(CONFIG, sheet(4)).splitlines() == [
        "1 of 4 items failed (all in logs/failed.csv):",
        "  - row 3, p1: p.png: the picture is empty",
        "2 of 4 items were not reached: run again for them.",
    ]
    table = pd.read_csv("logs/failed.csv").to_dict("records")  # row is the tensor's, in the index table
    assert table == [{"sheet_row": 3, "id": "p1", "image": "p.png", "reason": "p.png: the picture is empty"}]


def test_of_many_failed_items_twenty_are_shown_and_all_are_in_the_table():
    for number in range(50):
        log(f"logs/extract/p{number}.log", "error: bad\n")
    lines = closing.unfinished(CONFIG, sheet(50)).splitlines()
    assert lines[0] == "50 of 50 items failed (all in logs/failed.csv):"
    assert lines[-1] == "  ... and 30 more"
    assert len(lines) == 22
    assert len(pd.read_csv("logs/failed.csv")) == 50


def test_prompts_that_were_cut_are_listed_by_row():
    long = "red " * 30
    items = sheet(6, prompt=[long, "a", "a", long, long, "é" * 38], negative_prompt=["", "", long, None, None, None])
    items["strength"] = [0.5, 0.5, 0.5, 0, 0.5, 0.5]
    for number in range(6):
        log(f"logs/extract/p{number}.log", FINISHED if number != 4 else "error: bad")
    # p1 is short, p3 does not use its prompt, p4 failed
    cut = "prompt cut: 77 of 90 tokens"
    expected = f"Prompts too long for the model: row 2, p0: {cut}; row 4, p2: {cut}; and 1 more"
    assert closing.cut_prompts(items) == expected
    assert closing.cut_prompts(items[1:2]) == ""
