"""The report's one file, of small, odd, many and damaged results."""

from __future__ import annotations

import base64
import io
import json
import re
from html import unescape
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from gpi_latents import paths
from gpi_latents.report import latent_figures, measures, page, picture_figures
from helpers.report import build_page, draw_figures, random_latents, write_log
from PIL import Image

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


def test_the_verdict_comes_first_and_is_in_the_json_file_with_the_figures_numbers(made):
    results = made(random_latents(6), outcome=["1"] * 5 + [HOSTILE])
    facts = draw_figures(results)
    page = build_page(results)
    assert "Ready to estimate" in page.text
    told = json.loads(Path(paths.REPORT_JSON).read_text(encoding="utf-8"))
    assert told["version"] == 1
    assert told["verdict"] == {"ready": True, "findings": []}
    assert told["figures"]["reconstruction"]["items"] == facts["reconstruction"]["items"]
    assert "data:image" not in json.dumps(told)

    results.index["outcome"] = ["1"] * 5 + [" "]
    page = build_page(results, failed=[{"sheet_row": 7, "id": "bad", "image": HOSTILE, "reason": "no picture"}])
    text = " ".join(page.text.split())
    assert "Look at 1 thing first 1 item failed and is left out of the tensor" in text
    assert "#failed" in page.links
    assert '<td class="number">7</td><td class="id">bad</td>' in Path(paths.REPORT).read_text(encoding="utf-8")
    told = json.loads(Path(paths.REPORT_JSON).read_text(encoding="utf-8"))
    assert not told["verdict"]["ready"]
    assert [one["section"] for one in told["verdict"]["findings"]] == ["#failed"]


def test_cards_show_treatment_and_outcome_of_both_groups_in_turn(made, monkeypatch):
    monkeypatch.setattr(picture_figures, "SHEET_ITEMS", 10)
    treatment = ["0"] * 30 + ["1"] * 10
    results = made(random_latents(40), treatment=treatment, outcome=[f"{number}.25" for number in range(40)])
    shown = draw_figures(results)["contact_sheet"]["shown"]
    assert [one["treatment"] for one in shown] == ["0", "1"] * 5
    assert {"p0", "p29", "p30", "p39"} <= {one["id"] for one in shown}
    text = " ".join(build_page(results).text.split())
    assert "p30 treatment 1 outcome 30.25 p7 treatment 0 outcome 7.25" in text


def test_a_treatment_of_many_values_keeps_the_order_of_the_sheet(made):
    results = made(random_latents(9), treatment=[str((8 - number) / 7) for number in range(9)])
    shown = draw_figures(results, ["contact_sheet"])["contact_sheet"]["shown"]
    assert [one["id"] for one in shown] == [f"p{number}" for number in range(9)]


def test_padding_is_counted_and_greyed_on_the_cards(made):
    results = made(random_latents(3))
    write_log("p0", 1, 1, "cpu", ["PNG 64 x 40 RGB", "reflected to 64 x 64"])
    write_log("p1", 1, 1, "cpu", ["PNG 640 x 400 RGB", "resized to 64 x 40", "reflected to 64 x 64"])
    write_log("p2", 1, 1, "cpu", ["PNG 64 x 64 RGB"])
    found = draw_figures(results)["contact_sheet"]
    assert found["padded"] == 2
    assert [one["padded"] for one in found["shown"]] == [True, True, False]
    assert "2 items of 3 are padded" in build_page(results).text
    seen, decoded = (opened(uri) for uri in found["shown"][0]["pictures"])
    changed = np.abs(seen - decoded).mean(axis=(1, 2)) > 8  # the first one is decoded without an error
    assert set(range(13, 51)) <= {*np.flatnonzero(~changed)} <= {*range(11, 53)}


def opened(uri: str) -> np.ndarray:
    """The picture in a data URI, int (height, width, 3)."""
    with Image.open(io.BytesIO(base64.b64decode(uri.split(",")[1]))) as picture:
        return np.asarray(picture.convert("RGB"), int)


def test_pictures_of_which_version_0_1_did_not_note_the_sha256_are_counted_by_their_paths():
    index = pd.DataFrame({"image": list("aabcd"), "image_sha256": ["", "", "", "x", "x"]})
    assert page.count_pictures(index) == 3
    assert page.count_pictures(index[["image"]]) == 4
