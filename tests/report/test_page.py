"""The report's one file, of small, odd, many and damaged results."""

from __future__ import annotations

import re
from html import unescape
from pathlib import Path

import numpy as np
import pytest
from gpi_latents.report import latent_figures, measures, picture_figures
from helpers.report import build_page, draw_figures, random_latents

HOSTILE = "<script>alert(1)</script> <img src=http://x.example/y.png onerror=alert(2)> {{ 7 * 7 }} $\\alpha$ 図 \x07"


@pytest.mark.parametrize(
    "latents",
    [
        pytest.param(random_latents(1), id="one item"),
        pytest.param(random_latents(2), id="two items"),
        pytest.param(random_latents(3), id="three items"),
        pytest.param(np.repeat(random_latents(1), 2, axis=0), id="two alike"),
        pytest.param(np.repeat(random_latents(1), 9, axis=0), id="all alike"),
        pytest.param(np.zeros((5, 4, 8, 8)), id="all zero"),
        pytest.param(np.concatenate([np.repeat(random_latents(1), 9, axis=0), random_latents(1, 1)]), id="all but one"),
        pytest.param(np.repeat(random_latents(8)[:, :, :1, :1], 8, axis=3) * 1e6, id="constant channels, large"),
        pytest.param(random_latents(12)[:, :, :1, :1], id="one value per channel"),
        pytest.param(np.random.default_rng(0).standard_normal((5, 16, 4, 4)), id="sixteen channels"),
    ],
)
def test_small_and_odd_stacks_have_a_report(made, latents):
    results = made(latents, pictures=False)
    facts = draw_figures(results)
    page = build_page(results)
    assert set(facts) == {"map", "values", "duplicates", "run_times"}
    assert facts["map"]["of"] == len(latents)
    assert "output_image_dir: null" in page.text
    assert "the decoded latent" not in page.text


def test_pictures_of_one_item_have_a_report(made):
    results = made(random_latents(1))
    facts = draw_figures(results)
    page = build_page(results)
    assert (len(facts["contact_sheet"]["shown"]), facts["reconstruction"]["measured"]) == (1, 1)
    assert "output_image_dir: null" not in page.text
    assert "the decoded latent" in page.text


def test_many_items_have_a_report_that_can_be_mailed(made):
    count = 20000
    results = made(random_latents(count, side=2), pictures=False, group=[str(n % 30) for n in range(count)])
    facts = draw_figures(results)
    build_page(results)
    assert facts["map"]["sampled"] == measures.PCA_SAMPLE
    assert facts["duplicates"]["compared"] == count
    assert Path("results/report.html").stat().st_size < 2_000_000


def test_hostile_texts_are_shown_as_text(made):
    ids = ["p0", "p1", "-$x_1$", "p3"]
    results = made(
        random_latents(4),
        prompt=[HOSTILE] * 4,
        strength=["0.5"] * 4,
        config={"report_color": HOSTILE},
        **{HOSTILE: ids},
    )
    results.index["id"] = ids
    results.index["image"] = ["pictures/p0.png", f"pictures/{HOSTILE}".replace("\x07", ""), "pictures/p2.png", "p"]
    facts = draw_figures(results)
    page = build_page(results)
    assert HOSTILE.replace("\x07", "") in page.text.replace("\x07", "")
    assert "49" not in re.findall(r"\b49\b", page.text)
    assert len(facts["contact_sheet"]["unreadable"]) == 3


def test_missing_and_damaged_pictures_are_reported(made):
    results = made(random_latents(6))
    Path("pictures/p1.png").unlink()
    Path("results/images/gen_p2.png").unlink()
    Path("pictures/p3.png").write_bytes(b"no picture")
    whole = Path("results/images/gen_p4.png").read_bytes()
    Path("results/images/gen_p4.png").write_bytes(whole[:100])
    facts = draw_figures(results)
    page = build_page(results)
    assert [one["id"] for one in facts["reconstruction"]["unreadable"]] == ["p1", "p2", "p3", "p4"]
    assert "4 items could not be shown or compared" in page.text
    assert "2 items of 6 could be compared" in page.text
    for path in Path("results/images").iterdir():
        path.unlink()
    facts = draw_figures(results, ["contact_sheet", "reconstruction"])
    page = build_page(results)
    assert facts["reconstruction"]["measured"] == 0
    assert "6 items could not be shown or compared" in page.text


def test_more_items_than_are_shown(made, monkeypatch):
    monkeypatch.setattr(picture_figures, "SHEET_ITEMS", 8)
    monkeypatch.setattr(picture_figures, "MEASURED", 10)
    monkeypatch.setattr(measures, "COMPARED", 11)
    for module in (picture_figures, latent_figures):
        monkeypatch.setattr(module, "NAMED", 3)
    strengths = ["0.5" if number in (3, 17) else "0.0" for number in range(40)]
    results = made(random_latents(40), strength=strengths)
    facts = draw_figures(results)
    page = build_page(results)
    shown = [one["id"] for one in facts["contact_sheet"]["shown"]]
    assert len(shown) == 8
    assert {"p3", "p17", "p0", "p39"} <= set(shown)
    assert len(facts["reconstruction"]["worst"]) == 1  # at most a tenth
    assert "8 of 40 items are shown" in page.text
    assert "10 of 40 items were compared" in page.text
    assert "11 items, evenly spaced in the sheet, were compared" in page.text


def test_notes_are_listed_with_the_number_of_their_items_and_the_first_ids(made):
    notes = ["turned; CMYK"] + ["turned; doubtful: <b>1 & 2</b>"] * 6 + ["", "CMYK"]
    results = made(random_latents(9), pictures=False, notes=notes)
    draw_figures(results)
    page = build_page(results)
    assert {"#notes"} <= page.links
    html = Path("results/report.html").read_text(encoding="utf-8")
    section = html.split('<section id="notes"')[1].split("</section>")[0]
    rows = re.findall(r"<tr>(<td>.*?)</tr>", section)
    assert [unescape(re.sub(r"<.*?>", "", row.replace("</td>", "|"))) for row in rows] == [
        "turned|7|p0, p1, p2, p3, p4, …|",
        "doubtful: <b>1 & 2</b>|6|p1, p2, p3, p4, p5, …|",
        "CMYK|2|p0, p8|",
    ]


@pytest.mark.parametrize("columns", [{}, {"notes": [""] * 3}])
def test_without_notes_there_is_no_section_of_notes(made, columns):
    results = made(random_latents(3), pictures=False, **columns)
    draw_figures(results)
    assert "notes" not in build_page(results).ids
