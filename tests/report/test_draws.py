"""The report of items with several draws."""

from __future__ import annotations

import numpy as np
from helpers.report import build_page, draw_figures, random_latents


def draws_of(latents: np.ndarray, count: int) -> np.ndarray:
    """For each latent, `count` ones that differ little from it."""
    return np.repeat(latents, count, axis=0) + 0.05 * random_latents(count * len(latents), seed=9)


def test_draws_of_an_item_are_shown_once_and_are_no_duplicates_of_each_other(made):
    latents = random_latents(60)
    latents[41] = latents[7]
    latents = draws_of(latents, 3)
    latents[31] = latents[30]  # the first two draws of item 10
    latents[60] = latents[15]
    items = [f"i{row // 3}" for row in range(180)]
    ids = [f"{item}_{row % 3 + 1}" for row, item in enumerate(items)]
    results = made(latents, pictures=False, item=items, draw=[str(row % 3 + 1) for row in range(180)])
    results.index["id"] = ids
    found = draw_figures(results, ["values", "map", "run_times", "duplicates"])["duplicates"]
    assert [[item["id"] for item in group] for group in found["same"]] == [["i5_1", "i20_1"]]
    assert found["near"] == 2
    assert [item["id"] for item in found["pairs"][0]["items"]] == ["i7_1", "i41_1"]
    assert {item["id"][-2:] for pair in found["pairs"] for item in pair["items"]} == {"_1"}
    assert (found["of"], found["compared"], found["same_draws"]) == (60, 60, 1)
    text = " ".join(build_page(results).text.split())
    assert "Each draw counts as an item: they are of 60 rows of the sheet." in text
    assert "Draws of 1 row of the sheet are the same latent" in text


def test_the_contact_sheet_shows_one_draw_of_each_item(made):
    results = made(random_latents(9), item=[f"p{row // 3}" for row in range(9)], draw=["1", "2", "3"] * 3)
    results.index.loc[[3, 4, 5], "strength"] = "0.5"
    for row, item in enumerate(results.index["item"]):
        # Their pictures are found by their ids.
        results.index.loc[row, "id"] = f"{item}_{row % 3 + 1}"
    assert results.firsts.tolist() == [0, 3, 6]
    sheet = draw_figures(results, ["contact_sheet"])["contact_sheet"]
    assert sheet["of"] == 3
    assert [one["id"] for one in sheet["unreadable"] + sheet["shown"]] == ["p0_1", "p1_1", "p2_1"]


def test_columns_of_the_users_that_have_these_names_mean_nothing(made):
    results = made(random_latents(6), pictures=False, item=["a", "a", "b", "b", "c", "c"], draw=list("121212"))
    assert results.firsts.tolist() == list(range(6))
