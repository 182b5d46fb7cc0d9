"""The figures as SVG in the page, and the choice of the column that colours the map."""

from __future__ import annotations

import json
import re
from pathlib import Path
from xml.etree import ElementTree

import pandas as pd
import pytest
from gpi_latents import paths
from gpi_latents.report import latent_map, style, svg
from helpers.report import build_page, draw_figures, page_in_browser, random_latents

HOSTILE = '</title><script>alert(1)</script> & "it\'s" #222222'


def elements(name: str) -> list[ElementTree.Element]:
    return [*ElementTree.parse(f"results/report/{name}.svg").iter()]


def tips(name: str) -> list[str]:
    return [element.text for element in elements(name) if element.tag.endswith("title")][1:]


@pytest.fixture
def inside(drawn, drawn_folder, monkeypatch):
    """In the folder of the figures of 40 items."""
    monkeypatch.chdir(drawn_folder)


def test_all_figures_stand_in_one_page_without_disturbing_each_other(inside):
    ids: list[str] = []
    for name in paths.FIGURES:
        found = elements(name)
        own = [element.get("id") for element in found if element.get("id")]
        links = [element.get("href") for element in found if element.get("href", "").startswith("#")]
        assert {link.removeprefix("#") for link in links} <= set(own)
        assert all(one.startswith(f"{name}-") for one in own)
        ids += own
        assert not [element for element in found if element.tag.endswith("style")]  # it would be the whole page's
    assert len(set(ids)) == len(ids)


def test_a_figure_has_a_name_the_pages_width_font_and_colours(inside):
    for name in set(paths.FIGURES) - {"contact_sheet"}:
        root, title, *others = elements(name)
        assert (root.get("role"), root.get("aria-labelledby")) == ("img", title.get("id"))
        assert title.text == paths.FIGURES[name][0]
        assert not {"width", "height"} & {*root.attrib}
        styles = " ".join(element.get("style", "") for element in others)
        assert "font-family" not in styles
        assert "var(--ink, #222222)" in styles
        plain = re.sub(
            r"var\(--(\w+), (#\w+)\)", lambda found: str(style.PALETTE[found[1]][0].lower() == found[2]), styles
        )
        assert not re.findall("#[0-9a-f]{6}|False", plain)
        sizes = [float(size) for size in re.findall(r"font-size: ([\d.]+)px", styles)]
        width = float(root.get("viewBox").split()[2])
        assert min(sizes) * 360 / width >= 9  # pixels on a telephone


def test_points_and_bars_say_what_they_are(inside):
    assert "p7 (row 7), treatment: 1" in tips("map")
    assert len([tip for tip in tips("map") if "(row" in tip]) == 40
    assert {re.sub(r" [\d.]+", " n", tip) for tip in tips("reconstruction") if "p7 " in tip} == {
        "p7 (row n), n dB, SSIM n"
    }
    assert len(tips("values")) == 40 * 4 * 2
    bars = [re.fullmatch(r"propensity 0\.\d\d to \d\.\d\d: (\d+) with treatment [01]", tip) for tip in tips("overlap")]
    assert sum(int(bar[1]) for bar in bars) == 40
    assert sum(int(re.search(r"%: (\d+) items?", tip)[1]) for tip in tips("duplicates")) == 40


def test_a_figure_is_the_same_text_each_time():
    figures = [style.new_figure(2), style.new_figure(2)]
    for figure in figures:
        axes = figure.subplots()
        axes.scatter(range(30), range(30))
        axes.plot([1, 2], marker="o")
    one, other = (svg.render(figure, "map", "Map") for figure in figures)
    assert one == other
    assert "date" not in one


def test_texts_of_the_user_in_a_figure_are_text(made):
    results = made(
        random_latents(12), pictures=False, config={"report_color": HOSTILE}, **{HOSTILE: [HOSTILE, "b"] * 6}
    )
    draw_figures(results, ["map"])
    assert f"p0 (row 0), {HOSTILE}: {HOSTILE}" in tips("map")
    texts = [element.text for element in elements("map") if element.tag.endswith("}text")]
    assert style.cut(HOSTILE, 60) in texts
    assert "script" not in {element.tag.split("}")[1] for element in elements("map")}


def test_every_group_is_in_the_maps_legend(made):
    draw_figures(made(random_latents(12), pictures=False, treatment=["_a", "blank", " "] * 4), ["map"])
    texts = [element.text for element in elements("map") if element.tag.endswith("}text")]
    assert [text for text in texts if text.endswith(" (4)")] == ["_a (4)", "blank (4)", "blank (4)"]


def test_of_very_many_items_a_sample_has_dots_and_the_page_says_so(made, monkeypatch):
    monkeypatch.setattr(style, "MOST_POINTS", 10)
    results = made(random_latents(40), pictures=False, color=["red", "blue"] * 20)
    facts = draw_figures(results)
    assert facts["map"]["shown"] == len([tip for tip in tips("map") if "(row" in tip]) == 10
    assert len([element for element in elements("values") if element.tag.endswith("image")]) == 8
    assert "10 of them, evenly spaced too, have a dot" in " ".join(build_page(results).text.split())
    (choice,) = json.loads(latent_map.choices(results.index, None))
    assert [choice["groups"][place]["name"] for place in choice["of"]] == [
        results.index["color"][row] for row in latent_map.shown_rows(40)
    ]


def test_the_columns_to_choose_from_are_those_that_colours_can_show():
    table = pd.DataFrame({"id": list("abcdefghij"), "strength": "0.0", "notes": list("abcdefghij")})
    table["number"] = ["NA", *map(str, range(9))]
    table["group"] = ["x", "y", ""] * 3 + ["x"]
    found = json.loads(latent_map.choices(table, None))
    assert [column["name"] for column in found] == ["number", "group"]
    assert found[0]["numbers"] == [None, *range(9)]
    assert [group["kind"] for group in found[1]["groups"]] == ["category", "category", "blank"]
    assert found[1]["of"] == [0, 1, 2] * 3 + [0]
    assert [column["name"] for column in json.loads(latent_map.choices(table, "group"))] == ["number"]


@pytest.mark.long
def test_a_reader_can_choose_the_column_of_the_map_and_texts_stay_texts(made):
    results = made(random_latents(12), pictures=False, treatment=["0", "1"] * 6, **{HOSTILE: [HOSTILE, "b"] * 6})
    results.index["age"] = ["", *map(str, range(20, 31))]
    draw_figures(results)
    build_page(results)
    page = re.sub(
        "<meta http-equiv=.Content-Security-Policy.[^>]*>", "", Path(paths.REPORT).read_text(encoding="utf-8")
    )

    def tips_of(column: str) -> list[str]:
        """What the dots say once a column is chosen by hand, which the page's policy would not let a script do."""
        script = f"""
            const choice = [...select.options].find((option) => option.text === {json.dumps(column)});
            select.value = choice.value;
            select.dispatchEvent(new Event("change"));
            const titles = [...document.querySelectorAll("#map [data-row] > title")].map((title) => title.textContent);
            const legend_shown = document.querySelector("#map-legend").getAttribute("display") !== "none";
            document.title = JSON.stringify([...titles, legend_shown, document.scripts.length]);
        """.replace("</", "<\\/")
        Path("chosen.html").write_text(page.replace("</body>", f"<script>{script}</script></body>"), encoding="utf-8")
        return json.loads(page_in_browser(Path("chosen.html").absolute())[0])

    *found, legend_is_shown, scripts = tips_of(HOSTILE)
    assert {"p1 (row 1)" + f", {HOSTILE}: b", f"p2 (row 2), {HOSTILE}: {style.cut(HOSTILE, 30)}"} <= {*found}
    assert (len(found), legend_is_shown, scripts) == (12, False, 2)
    assert {"p0 (row 0), age: blank", "p11 (row 11), age: 30"} <= {*tips_of("age")}
    assert tips_of("treatment")[-2] is True
