"""What a dry run tells the user."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from gpi_latents import paths
from gpi_latents.plan import read_plan
from gpi_latents.recipe import RECIPE_VERSION
from gpi_latents.study.study import Study
from gpi_latents.study.would_run import would_run

pytestmark = pytest.mark.usefixtures("folder")
# As Snakemake writes its reasons.
MISSING, FORCED = "Missing output files: results/hidden/hidden_x.pt", "Forced execution"
PARAMS = "Params have changed since last execution: Union of exclusive params before and now across all output: "


def study(*rows: str, **config) -> Study:
    lines = [f"{row.split(',')[0]},a.png,{row.partition(',')[2]}" for row in rows]
    Path("sheet.csv").write_text("id,image,prompt,strength,seed,age\n" + "\n".join(lines))
    return Study({"model_id": "demo", "items": "sheet.csv", **config})


def is_done(found: Study, recipe_version: int = RECIPE_VERSION) -> None:
    """Leave the index table and the provenance of a run."""
    Path("results").mkdir(exist_ok=True)
    read_plan(found.plan).drop(columns="sheet_row").to_csv(paths.INDEX, index=False)
    origin = {"config": found.config, "recipe_version": recipe_version}
    Path(paths.PROVENANCE).write_text(json.dumps(origin))


def job(rule: str, item_id: str = "", reason: str = MISSING) -> dict:
    return {"rule": rule, "wildcards": {"id": item_id} if item_id else {}, "reason": reason}


def extracts(found: Study, reason: str, *ids: str) -> str:
    """The words for items that run for the same reason."""
    return would_run(found, [job("extract", item_id, reason) for item_id in ids or found.items])


def test_each_item_that_would_run_is_named_with_the_reason_and_so_is_what_follows():
    is_done(study("a,x,0.5,1,30", "b,x,0.5,2,30", "c,x,0.5,3,30", "d,x,0.5,4,30", "e,x,0.5,5,30"))
    Path("logs").mkdir()
    Path(paths.FAILED).write_text("sheet_row,id,image,reason\n7,bad,a.png,empty\n6,e,a.png,empty\n")
    rows = ["new1,x,0.5,1,30", "a,y,0.4,1,30", "b,x,0.5,9,31", "c,x,0.5,3,30", "bad,x,0,1,1", "d,x,0.5,4,30"]
    found = study(*rows, "e,x,0.5,5,30", "new2,x,0.5,1,30")
    # Snakemake finds what is stale of itself, too, and names jobs in any order.
    found.stale = {"results/hidden/hidden_c.pt": "picture", "results/hidden/hidden_b.pt": "settings"}
    jobs = [job("extract", item_id) for item_id in ("new2", "bad", "new1", "d", "e")]
    jobs += [job("extract", "a", PARAMS), job("extract", "b", FORCED), job("extract", "c", FORCED)]
    jobs += [job("checksums"), job("stack"), job("figures"), job("report"), job("all")]
    items = "new1, new2 (new), a (prompt, strength), b (seed), c (picture), bad, e (failed before), d (file lost)"
    assert would_run(found, jobs).splitlines() == [f"Would extract 8 of 8: {items}", "Then: stack, figures, report."]


def test_of_many_items_ten_are_named():
    found = study(*(f"p{number},x,0.5,1,30" for number in range(40)))
    shown = ", ".join(f"p{number}" for number in range(10))
    assert would_run(found, [job("model"), *(job("extract", item_id) for item_id in found.items)]).splitlines() == [
        "First: model.",
        f"Would extract 40 of 40: {shown} and 30 more (new)",
    ]


@pytest.mark.parametrize(
    ("reason", "words"),
    [
        (PARAMS, "dtype, image_size"),
        ("Input files updated by another job: results/model.json", "model"),
        ("Updated input files: results/model.json", "model"),
        ("Updated input files: a.png", "picture"),
        ("Set of input files has changed since last execution; " + PARAMS, "dtype, image_size"),
        (FORCED, "forced"),
        ("Incomplete output files: results/hidden/hidden_a.pt", "unfinished"),
        (MISSING, "prefix_hidden"),
        ("Something that only a later Snakemake knows", "Something that only a later Snakemake knows"),
    ],
)
def test_what_changed_for_all_items_is_named_by_its_key(reason, words):
    is_done(study("a,x,0.5,1,30"))
    found = study("a,x,0.5,1,30", dtype="float16", image_size=128, prefix_hidden="other")
    assert extracts(found, reason) == f"Would extract 1 of 1: a ({words})"


def test_items_of_an_earlier_version_are_called_so_and_those_of_no_table_have_other_settings():
    rows = ["a,x,0.5,1,30", "b,x,0.5,1,30"]
    is_done(study(rows[0]))
    assert extracts(study(*rows), PARAMS, "b") == "Would extract 1 of 2: b (settings)"
    is_done(study(*rows), RECIPE_VERSION - 1)
    assert extracts(study(*rows), PARAMS).endswith(": a, b (made by an earlier version)")
    found = study(*rows)
    found.stale = {found.latents[0]: "no negative prompt, which version 0.1 took for an empty one"}
    assert extracts(found, FORCED, "a").endswith(": a (made by an earlier version)")
    Path(paths.INDEX).write_text("damaged")
    Path(paths.PROVENANCE).write_text("[")
    assert extracts(study(*rows), PARAMS, "a").endswith(": a (settings)")


@pytest.mark.parametrize(
    ("stale", "reason", "words"),
    [
        ({paths.INDEX: "column age"}, FORCED, "column age changed"),
        ({paths.INDEX: "other rows"}, FORCED, "other rows"),
        ({}, "Missing output files: results/latents.pt", "its results are missing"),
        ({}, FORCED, "forced"),
    ],
)
def test_without_an_item_the_reason_for_the_stack_is_told(stale, reason, words):
    found = study("a,x,0.5,1,30")
    found.stale = stale
    assert would_run(found, [job("stack", reason=reason), job("report")]) == (
        f"Would run: stack ({words}), report. No item would be extracted."
    )
