"""What the report says on how far the latents tell the two groups of the treatment apart."""

from __future__ import annotations

import shutil

import numpy as np
import pandas as pd
import pytest
from gpi_latents.report import overlap
from helpers.report import build_page, draw_figures, random_latents
from helpers.study import Study

COIN = np.random.default_rng(3).integers(0, 2, 60).astype(str)


def test_groups_that_do_not_overlap_are_warned_of(made):
    latents = random_latents(60)
    latents[COIN == "1", 0] += 2
    results = made(latents, pictures=False, treatment=COIN)
    facts = draw_figures(results)["overlap"]
    assert facts["auc"] > 0.99
    assert 0.75 < facts["interval"][0] < facts["interval"][1] == 1
    assert facts["missing_outcome"] is None
    assert [one["effective"] for one in facts["groups"]] == [None, None]  # not all 60, as by weights of 1
    page = build_page(results)
    assert "The latents nearly give the treatment away" in page.text
    assert "without outcome" not in page.text
    assert "#overlap" in page.links


def test_a_treatment_by_chance_is_called_so_and_what_is_missing_is_counted(made):
    treatment, outcome = np.where(COIN == "1", "TRUE", "false"), np.full(60, "2.5").astype(object)
    treatment[7], outcome[3:6] = " NA ", ["", "NA", "n"]
    results = made(random_latents(60), pictures=False, treatment=treatment, outcome=outcome)
    facts = draw_figures(results)["overlap"]
    assert facts["interval"][0] < 0.5 < facts["interval"][1]
    assert (facts["missing_treatment"], facts["missing_outcome"]) == (1, 2)
    assert [one["name"] for one in facts["groups"]] == ["false", "TRUE"]
    assert sum(one["items"] for one in facts["groups"]) == 59
    assert sum(one["missing_outcome"] for one in facts["groups"]) == 2
    assert all(0.8 * one["items"] < one["effective"] <= one["items"] for one in facts["groups"])
    text = build_page(results).text
    assert "Missing, of 60 items: the treatment in 1, the outcome in 2." in text
    assert "nearly give the treatment away" not in text
    assert draw_figures(results, ["overlap"])["overlap"] == facts


def test_draws_of_an_item_do_not_predict_each_other(made):
    items = np.repeat(np.arange(30), 4)
    latents = random_latents(30)[items] + 0.1 * random_latents(120, seed=1)
    columns = {"item": [f"p{item}" for item in items], "draw": [str(row % 4 + 1) for row in range(120)]}
    results = made(latents, pictures=False, treatment=COIN[items], **columns)
    results.index["id"] = [f"p{item}_{row % 4 + 1}" for row, item in enumerate(items)]
    facts = draw_figures(results, ["overlap"])["overlap"]
    assert facts["of"] == sum(one["items"] for one in facts["groups"]) == 30
    assert facts["auc"] < 0.8


@pytest.mark.parametrize(
    ("cells", "reason"),
    [
        (["", "NA"] * 30, "blank for all items"),
        (["1", "1.0", "TRUE"] * 20, "All items have the treatment 1: "),
        ([str(number / 7) for number in range(60)], "has 60 different values"),
        (["red", "green", "blue"] * 20, "has 3 different values"),
        (["1"] * 51 + ["0"] * 9, "Only 9 items with the treatment 0: "),
        (["1"] * 59 + ["0"], "Only 1 item with the treatment 0: "),
    ],
)
def test_a_treatment_that_makes_no_two_groups_is_told_in_a_sentence(cells, reason):
    assert reason in overlap.two_groups(pd.Series(cells))


def test_where_there_is_no_overlap_to_show_the_report_says_why(made):
    results = made(np.repeat(random_latents(1), 40, axis=0), pictures=False, treatment=["0", "1"] * 20)
    draw_figures(results)
    assert "Fewer than two different latents" in build_page(results).text
    np.save(results.stacked, np.concatenate([np.repeat(random_latents(1), 39, axis=0), random_latents(1, seed=1)]))
    results.index.loc[39, "treatment"] = ""  # the one that differs
    assert draw_figures(results, ["overlap"])["overlap"]["reason"].startswith("Fewer than two")
    results.index["treatment"] = "<b>7</b>"
    draw_figures(results, ["overlap"])
    text = build_page(results).text
    assert "All items have the treatment <b>7</b>: there are no groups to compare." in text
    assert "Missing, of" not in text


def test_the_interval_is_hanley_and_mcneils_raised_for_folds_and_no_point_at_the_ends():
    # Hanley and McNeil's standard error at 0.5 is sqrt((n + n + 1) / 12 n n), the factor for five folds 1.5.
    half = 1.96 * 1.5 * np.sqrt(2001 / 12e6)
    assert overlap.interval(0.5, 1000, 1000) == pytest.approx((0.5 - half, 0.5 + half), abs=5e-4)
    assert 0.7 < overlap.interval(1.0, 20, 20)[0] < 0.9
    assert overlap.interval(0.0, 20, 20)[1] == pytest.approx(1 - overlap.interval(1.0, 20, 20)[0])


def test_the_interval_of_unequal_groups_weighs_each_by_its_own_part_of_the_variance():
    """Hanley and McNeil (1982): Q1, two of the group above one of the others, goes with the group's count less one."""
    area, ones, others = 0.9, 4000, 400
    above, below = area / (2 - area) - area**2, 2 * area**2 / (1 + area) - area**2
    # Of each of five folds, with a fifth of both groups; then the mean of five, raised by their common items.
    of_fold = area * (1 - area) + (ones / 5 - 1) * above + (others / 5 - 1) * below
    half = 1.96 * np.sqrt((1 + 5 / 4) * of_fold / (ones / 5 * others / 5) / 5)
    low, high = overlap.interval(area, ones, others)
    assert high - low == pytest.approx(2 * half, rel=0.02)
    # The groups the other way round, by the same propensities.
    other_low, other_high = overlap.interval(1 - area, others, ones)
    assert (1 - other_high, 1 - other_low) == pytest.approx((low, high), abs=2e-4)


def test_the_interval_is_of_the_group_whose_propensities_are_shown(made):
    treatment = np.array(["1"] * 48 + ["0"] * 12)
    latents = random_latents(60)
    latents[treatment == "1", 0] += 0.25
    facts = draw_figures(made(latents, pictures=False, treatment=treatment), ["overlap"])["overlap"]
    assert 0.6 < facts["auc"] < 0.95
    assert facts["interval"] == list(overlap.interval(facts["auc"], ones=48, others=12))
    assert facts["interval"] != list(overlap.interval(facts["auc"], ones=12, others=48))


@pytest.mark.parametrize(
    ("area", "low", "high", "expected"),
    [
        (0.95, 0.9, 0.99, "high"),
        (0.92, 0.45, 0.99, "unsure"),
        (0.7, 0.6, 0.8, "some"),
        (0.52, 0.45, 0.6, "none"),
        (0.55, 0.3, 0.8, "unsure"),
    ],
)
def test_few_items_are_not_taken_for_a_sign_of_overlap(area, low, high, expected):
    assert overlap.verdict(area, low, high) == expected


def test_a_sheet_without_a_treatment_has_no_such_section(demo, tmp_path):
    assert (demo.folder / "results/report/overlap.json").is_file()
    shutil.copytree(demo.folder, tmp_path / "copy")
    copied = Study(tmp_path / "copy")
    copied.config(report=True)
    sheet = pd.read_csv(copied.folder / "config/items.csv", dtype=str, keep_default_na=False)
    copied.sheet(sheet.drop(columns="treatment").to_dict("records"))
    outputs = copied.run("--dry-run", "--printshellcmds").output
    assert "results/report/map.json" in outputs
    assert "overlap" not in outputs
