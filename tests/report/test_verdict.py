"""What the report tells to look at first: each finding with what must raise it, and with what must not."""

from __future__ import annotations

import re
from typing import Any

import pandas as pd
import pytest
from gpi_latents.report import verdict
from gpi_latents.report.verdict import Judged, findings


def groups(items: int, others: int, effective: float = 25.0) -> list[dict[str, Any]]:
    of = {"effective": effective}
    return [{"name": "0", "items": items} | of, {"name": "1", "items": others} | of]


FACTS: dict[str, dict[str, Any]] = {
    "contact_sheet": {},
    "reconstruction": {"medians": {"psnr": 27.0, "ssim": 0.9}, "unreadable": []},
    "map": {},
    "overlap": {"reason": None, "warn": False, "auc": 0.6, "groups": groups(30, 30)},
    "values": {"shape": [60, 4, 32, 32], "of": 60, "outlying": 0, "named": [], "far": 5.0},
    "duplicates": {"same_items": 0, "same": [], "same_draws": 0, "near": 0, "pairs": [], "below": 0.2},
}
MODEL = {"config": {"model_id": "a/model", "vae_id": None}}
DEMO = {"config": {"model_id": "demo", "vae_id": None}}
ITEMS = pd.DataFrame(
    {
        "id": [f"p{number}" for number in range(60)],
        "image_sha256": [f"{number:064}" for number in range(60)],
        "notes": "turned upright",
        "treatment": ["0", "1"] * 30,
        "outcome": "1.5",
    }
)


def judged(facts: dict | None = None, without: str = "", provenance: dict | None = None, demo=(), **columns) -> Judged:
    """A study in which all is well, but for these facts and columns."""
    changed = {name: known | (facts or {}).get(name, {}) for name, known in FACTS.items() if name != without}
    return Judged(changed, ITEMS.assign(**columns), MODEL | (provenance or {}), frozenset(demo))


def cells(first: str, other: str) -> list[str]:
    """A column in which one cell differs."""
    return [first] + [other] * 59


def item(item_id: str) -> dict[str, Any]:
    return {"id": item_id, "strength": 0.0}


RAISED = [
    # Of the demo's pictures, one is another.
    (
        judged(provenance=DEMO, demo=ITEMS["image_sha256"][1:]),
        "#contact_sheet",
        "demo's model .* 1 of 60 pictures is",
    ),
    (judged(provenance=DEMO, without="contact_sheet"), "#overview", "The demo's model .* 60 of 60 pictures are"),
    (judged(provenance={"failed": [{"id": "x"}]}), "#failed", "1 item failed and is left out"),
    (judged({"reconstruction": {"medians": {"psnr": 19.9}}}), "#reconstruction", "19.9 dB, and below 20 dB"),
    (
        judged({"reconstruction": {"medians": {"psnr": 23.9}}, "values": {"shape": [60, 16, 32, 32]}}),
        "#reconstruction",
        "23.9 dB, and below 24 dB is poor for latents of 16 channels",
    ),
    (judged({"reconstruction": {"unreadable": [{}, {}]}}), "#reconstruction", "pictures of 2 items cannot be compared"),
    (judged(notes=cells("turned; warning: CMYK", "turned")), "#notes", "picture of 1 item may be other .* for: CMYK"),
    (
        judged({"values": {"outlying": 5, "named": [item(one) for one in "abcde"]}}),
        "#values",
        r"5 items of 60 have unusual .* more than 5 robust .*\(a, b, c, d, …\)",
    ),
    (
        judged({"duplicates": {"same_items": 2, "same": [[item("a"), item("b")]]}}),
        "#duplicates",
        r"2 items have the same latent .* \(a, b\)",
    ),
    (judged({"duplicates": {"same_draws": 60}}), "#duplicates", "draws of 60 rows of the sheet are the same"),
    (
        judged({"duplicates": {"near": 2, "pairs": [{"items": [item("a"), item("b")]}, {"items": [item("c")]}]}}),
        "#duplicates",
        r"2 items have a near-duplicate: .* 20 % of the typical distance \(a, b\)",
    ),
    (judged({"overlap": {"reason": "All items have the treatment 1."}}), "#overlap", "All items have the treatment 1"),
    (
        judged({"overlap": {"groups": groups(245, 25)}}),
        "#overlap",
        "very unequal: 25 with the treatment 1 and 245 with 0. Below 10%",
    ),
    (judged(outcome=cells(" NA ", "1")), "#overlap", "Of 60 items, 1 has no outcome"),
    (
        judged(treatment=cells("", "1"), outcome=["", ""] + ["1"] * 58),
        "#overlap",
        "Of 60 items, 1 has no treatment and 2 have no outcome",
    ),
    (judged(outcome=[""] * 60), "#overlap", r"60 have no outcome: complete the sheet\.$"),
    (judged(without="overlap", outcome=cells("", "1")), "#overview", "1 has no outcome"),
    (
        judged({"overlap": {"groups": groups(30, 16, 1.2)}}),
        "#overlap",
        r"the 30 items with the treatment 0 are worth 1\.2 .* below 10% is poor",
    ),
    (judged({"overlap": {"warn": True, "auc": 0.97}}), "#overlap", "nearly give the treatment away .* 0.97"),
]
NOT_RAISED = [
    judged(),
    judged(provenance=DEMO, demo=ITEMS["image_sha256"]),
    # The demo's model is there for its parts other than the autoencoder.
    judged(provenance={"config": {"model_id": "demo", "vae_id": "a/vae"}}),
    judged(provenance={"failed": []}),
    judged({"reconstruction": {"medians": {"psnr": 20.0}}}),
    judged({"reconstruction": {"medians": {"psnr": 24.0}}, "values": {"shape": [60, 16, 32, 32]}}),
    judged({"reconstruction": {"medians": None}}),  # all are edited
    judged(without="reconstruction"),
    judged(without="overlap"),
    judged(notes="colour profile 'warning: none' applied"),
    judged({"overlap": {"groups": groups(225, 25)}}),
    judged({"overlap": {"groups": groups(30, 30, 3.0)}}),
]


@pytest.mark.parametrize(("study", "section", "text"), RAISED, ids=[text for *_, text in RAISED])
def test_it_is_found_and_named_with_its_section_and_threshold(study, section, text):
    (found,) = findings(study)
    assert found.section == section
    assert re.search(text, found.text), found.text


@pytest.mark.parametrize("study", NOT_RAISED)
def test_where_all_is_well_nothing_is_found(study):
    assert findings(study) == []


def test_missing_cells_are_counted_once_per_item_of_several_draws():
    draws = pd.DataFrame({"id": ["a_1", "a_2", "b_1", "b_2"], "item": ["a", "a", "b", "b"], "draw": ["1", "2"] * 2})
    study = Judged(FACTS, draws.assign(outcome=["", "", "1", "1"]), MODEL)
    assert [one.text[:33] for one in findings(study)] == ["Of 2 items, 1 has no outcome: com"]


def test_a_picture_counts_once_and_values_for_each_of_its_draws():
    draws = pd.DataFrame({"id": ["a_1", "a_2", "a_3", "b"], "item": ["a", "a", "a", "b"], "draw": [*"123", "1"]})
    draws["notes"] = ["turned; warning: CMYK"] * 3 + ["turned"]
    facts = FACTS | {"values": FACTS["values"] | {"of": 4, "outlying": 2, "named": [item("a_1"), item("a_3")]}}
    doubts, values = findings(Judged(facts, draws, MODEL))
    assert doubts.text == "The picture of 1 item may be other than you take it for: CMYK."
    assert values.text.startswith("2 draws of 4 have unusual values")


def test_every_finding_has_a_test():
    raised = {find for study, *_ in RAISED for find in verdict.FINDERS if find(study)}
    assert raised == {*verdict.FINDERS}
