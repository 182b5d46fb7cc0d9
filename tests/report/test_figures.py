"""The figures: what they find, and that they can be drawn of every kind of results."""

from __future__ import annotations

import os
import runpy
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from gpi_latents import paths
from gpi_latents.errors import InputError
from gpi_latents.recipe import canonical
from gpi_latents.report import measures
from gpi_latents.report.figures import FIGURES, draw_all
from gpi_latents.report.latent_map import color_column, color_groups
from helpers.report import draw_figures, random_latents, write_log
from helpers.study import ROOT
from matplotlib.figure import Figure


def test_outliers_are_named_with_their_channel(drawn):
    _, facts = drawn
    found = facts["values"]
    assert found["outlying"] == 2
    # The furthest first, each where it is furthest out.
    assert [(one["id"], one["channel"], one["kind"]) for one in found["named"]] == [
        ("p30", 1, "spread"),
        ("p17", 2, "mean"),
    ]
    assert found["named"][1]["value"] == pytest.approx(3, abs=0.5)


def test_near_duplicates_and_same_latents_are_named(drawn):
    page, facts = drawn
    found = facts["duplicates"]
    assert [one["id"] for one in found["pairs"][0]["items"]] == ["p7", "p21"]
    assert found["pairs"][0]["distance"] < 0.02
    assert len(found["pairs"]) == 3
    assert found["near"] == 2
    assert [[one["id"] for one in group] for group in found["same"]] == [["p3", "p25"]]
    assert "2 items in 1 group" in page.text


def test_the_worst_items_are_shown_and_edited_ones_apart(drawn):
    page, facts = drawn
    found = facts["reconstruction"]
    assert {one["id"] for one in found["edited"]} == {"p4", "p9"}
    assert found["edited"][0]["psnr"] <= found["edited"][1]["psnr"]
    assert len(found["worst"]) == 3  # a tenth
    assert {one["id"] for one in found["worst"]} < {f"p{number}" for number in range(14, 40, 5)}
    assert found["worst"][0]["psnr"] <= found["worst"][1]["psnr"] < 30
    assert len(found["items"]) == 40
    best = next(one for one in found["items"] if one["id"] == "p0")
    assert (best["psnr"], best["ssim"]) == (measures.IDENTICAL, 1.0)
    assert "Worst at strength 0" in page.text
    assert "strength 0.8: a red circle" in page.text


def test_run_times_come_from_the_logs(drawn):
    page, facts = drawn
    found = facts["run_times"]
    assert (found["known"], found["devices"], found["median"]) == (3, {"cpu": 2, "cuda:0": 1}, 0.5)
    assert found["wall"] == pytest.approx(20, abs=0.5)  # their logs end together
    assert found["per_minute"] == pytest.approx(9, abs=0.3)
    slowest = found["slowest"][0]
    assert (slowest["id"], slowest["seconds"], slowest["whole"]) == ("p1", 12.5, 20.0)
    assert "3 of 40 items have a log" in page.text


def test_the_treatment_colours_the_map_by_default(drawn, made):
    page, facts = drawn
    assert (facts["map"]["column"], facts["map"]["kind"]) == ("treatment", "categories")
    assert "The colours show the column treatment" in page.text
    results = made(random_latents(1), pictures=False)
    assert color_column(results) is None
    results.config["report_color"] = "strength"
    assert color_column(results) == "strength"
    results.config["report_color"] = "nothing"
    with pytest.raises(InputError, match="has no column 'nothing'"):
        color_column(results)


@pytest.mark.parametrize(
    ("cells", "kind", "names"),
    [
        (["1", "0", "1"], "categories", ["0", "1"]),
        (["10", "9", "9"], "categories", ["9", "10"]),
        (["x"] * 4, "categories", ["x"]),
        (["a", "", "b", " "], "categories", ["a", "b", "blank"]),
        ([""] * 3, "categories", ["blank"]),
        ([f"{number / 10}" for number in range(20)] + ["", "NA"], "numbers", []),
        ([f"c{number % 12}" for number in range(60)], "categories", [*[f"c{n}" for n in range(6)], "6 others"]),
        (["inf", *map(str, range(20))], "categories", [*["inf", "0", "1", "2", "3", "4"], "15 others"]),
        (["nan", "NA", "1"], "categories", ["1", "blank"]),
        (["blank", "others", ""], "categories", ["blank", "others", "blank"]),
    ],
)
def test_a_column_becomes_colours(cells, kind, names):
    found, groups = color_groups(pd.Series(cells))
    assert found == kind
    assert [group.name for group in groups] == names
    if groups:
        assert np.array_equal(sum(group.members.astype(int) for group in groups), np.ones(len(cells)))


@pytest.mark.parametrize(
    ("cells", "kind"),
    [
        (["x"] * 30, "categories"),
        ([f"c{number}" for number in range(30)], "categories"),
        (["", *[f"c{number}" for number in range(29)]], "categories"),  # eight groups, one more than the colours
        ([str(number / 7) for number in range(29)] + [""], "numbers"),
        (["", *["$\\frac$ _^ & <b>" + "long" * 50] * 29], "categories"),
        ([""] * 30, "categories"),
    ],
)
def test_every_kind_of_column_can_colour_the_map(made, cells, kind):
    results = made(random_latents(30), pictures=False, config={"report_color": "a $ column"}, **{"a $ column": cells})
    facts = draw_figures(results, ["map"])["map"]
    assert (facts["column"], facts["kind"]) == ("a $ column", kind)


def command(monkeypatch, capsys) -> str:
    """What scripts/figures.py says of figures that cannot be drawn."""
    arguments = "--plan plan --index results/index.csv --folder ."
    monkeypatch.setattr(sys, "argv", ["figures.py", *arguments.split()])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(ROOT / "scripts/figures.py"), run_name="__main__")
    assert ended.value.code == 1
    assert not [*Path().glob("*.png")]
    return capsys.readouterr().err


def test_a_damaged_tensor_is_a_message(made, monkeypatch, capsys):
    results = made(random_latents(3), pictures=False)
    draw_figures(results, ["map"])
    results.index[:2].to_csv("results/index.csv", index=False)
    message = "results/latents.npy and results/index.csv do not belong together: run snakemake again\n"
    assert command(monkeypatch, capsys) == message
    Path("results/latents.npy").write_bytes(b"x")
    message = command(monkeypatch, capsys)
    assert message.startswith("results/latents.npy is no")
    assert len(message.splitlines()) == 1


def test_only_figures_that_something_changed_are_drawn_again(made, monkeypatch):
    blank = {name: source._replace(draw=lambda results: (Figure((1, 1)), {})) for name, source in FIGURES.items()}
    monkeypatch.setattr("gpi_latents.report.figures.FIGURES", blank)  # what is drawn does not matter here
    strengths, columns = ["0.0", "0.5"] * 15, {"treatment": ["0", "1", "1"] * 10, "outcome": ["1.5"] * 30}
    results = made(random_latents(30), strength=strengths, **columns, **{"age": ["20", "30"] * 15})
    every = set(draw_figures(results))

    def redrawn() -> set[str]:
        for file in Path("results/report").iterdir():  # as Snakemake does before a job
            file.unlink()
        Path("plan/config.json").write_text(canonical(results.config))
        results.index.to_csv(paths.INDEX, index=False)
        lines = draw_all(Path("plan"), Path(paths.INDEX), Path("results/report")).splitlines()
        assert len([*Path("results/report").iterdir()]) == 3 * len(every)
        return {line.split()[1] for line in lines if line.startswith("drew")}

    assert redrawn() == set()
    results.index.loc[3, "age"] = "31"
    assert redrawn() == set()
    results.index.loc[3, "outcome"] = "2.5"
    assert redrawn() == {"contact_sheet"}
    results.index.loc[3, "outcome"] = ""
    assert redrawn() == {"contact_sheet", "overlap"}
    results.index.loc[3, "treatment"] = "1"
    assert redrawn() == {"contact_sheet", "overlap", "map"}
    for column in ("age", "strength", "prompt"):
        results.config["report_color"] = column
        assert redrawn() == {"map"}
    os.utime("results/images/gen_p3.png", (1, 1))
    assert redrawn() == {"contact_sheet", "reconstruction"}
    write_log("p3", 1.0, 2.0, "cpu")
    assert redrawn() == {"contact_sheet", "run_times"}
    results.index.loc[3, "sha256"] = "0" * 64
    assert redrawn() == every
    Path(paths.drawn("map")).write_text("{}")
    Path(paths.drawn("values")).write_text("damag")
    assert redrawn() == {"map", "values"}


def test_neither_figures_nor_report_import_the_model():
    code = "import sys, gpi_latents.report.figures, gpi_latents.report.page, skimage.metrics; print(*sys.modules)"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not {"torch", "diffusers", "transformers"} & set(ran.stdout.split())
