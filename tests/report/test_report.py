"""The report: its numbers, its figures for every kind of sheet, its one file, and when it is made again."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import figures
import items
import measures
import numpy as np
import pandas as pd
import pytest
import report
from figures import Results
from helpers.study import ROOT, draw
from pictures import ItemError, fit_picture, open_picture
from PIL import Image

HOSTILE = "<script>alert(1)</script> <img src=http://x.example/y.png onerror=alert(2)> {{ 7 * 7 }} $\\alpha$ 図 \x07"


class Page(HTMLParser):
    """What a browser would load, and the text that it would show."""

    def __init__(self, html: str):
        super().__init__()
        self.tags: list[str] = []
        self.loaded: list[str] = []
        self.ids: set[str] = set()
        self.links: set[str] = set()
        self.text = ""
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        given = dict(attrs)
        self.loaded += [given[name] for name in ("src", "data", "poster", "srcset", "action") if name in given]
        if tag == "link":
            self.loaded.append(given["href"])
        elif "href" in given:
            self.links.add(given["href"])
        if "id" in given:
            self.ids.add(given["id"])
        assert not [name for name in given if name.startswith("on")]

    def handle_data(self, data):
        self.text += data


def check_page(html: str) -> Page:
    """It needs no other file and no network, runs nothing, and its links lead somewhere."""
    page = Page(html)
    assert all(source.startswith("data:") for source in page.loaded)
    assert page.links <= {f"#{name}" for name in page.ids}
    assert not {"script", "iframe", "object", "embed", "base"} & set(page.tags)
    assert "url(" not in html
    assert "@import" not in html
    assert "<built-in" not in html
    return page


@pytest.fixture
def made(tmp_path, monkeypatch):
    """A function that makes results of given latents and columns, with pictures unless told otherwise."""
    monkeypatch.chdir(tmp_path)

    def make(latents: np.ndarray, pictures: bool = True, config: dict | None = None, **columns) -> Results:
        keys = {"model_id": "demo", "stacked": "results/latents.npy", **(config or {})}
        if not pictures:
            keys["output_image_dir"] = None
        filled = items.load_config(keys)
        count = len(latents)
        index = pd.DataFrame({"row": range(count), "id": [f"p{number}" for number in range(count)]}).astype(str)
        index["image"] = [f"pictures/p{number}.png" for number in range(count)]
        index["prompt"], index["strength"] = "a red circle", "0.0"
        index["sha256"] = [f"{hash(latent.tobytes()):x}" for latent in latents]
        for name, cells in columns.items():
            index[name] = cells
        Path("results/images").mkdir(parents=True, exist_ok=True)
        np.save("results/latents.npy", latents.astype(np.float32))
        for number in range(count if pictures else 0):
            draw(Path(f"pictures/p{number}.png"), (64, 40), seed=number)
            seen, _ = fit_picture(open_picture(f"pictures/p{number}.png")[0], (64, 64), "pad")
            noise = np.random.default_rng(number).integers(-9, 10, (64, 64, 3)) * (number % 5)
            decoded = (np.asarray(seen) + noise).clip(0, 255).astype(np.uint8)
            Image.fromarray(decoded).save(f"results/images/gen_p{number}.png")
        return Results(filled, index)

    return make


def whole(results: Results) -> tuple[Page, dict[str, dict]]:
    """Draw every figure and write the report; returns the page and the figures' facts."""
    folder = Path("results/report")
    folder.mkdir(exist_ok=True)
    names = items.figures(results.config)
    for name in names:
        figures.draw(name, results, folder / f"{name}.png", folder / f"{name}.json")
        assert Image.open(folder / f"{name}.png").width > 500
    origin = {"model": {"model_id": "demo"}, "recipe_version": 1, "software": {}, "config": results.config}
    Path("results/provenance.json").write_text(json.dumps(origin))
    report.build(names, Path("results/provenance.json"), Path("results/report.html"))
    facts = {name: json.loads((folder / f"{name}.json").read_text()) for name in names}
    return check_page(Path("results/report.html").read_text(encoding="utf-8")), facts


def random_latents(count: int, seed: int = 0, side: int = 8) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((count, 4, side, side)).astype(np.float32)


@pytest.mark.parametrize("chunk", [1, 10_000, 10**9])
def test_the_axes_are_those_of_a_singular_value_decomposition(made, monkeypatch, chunk):
    latents = random_latents(40) * np.linspace(0.1, 3, 8, dtype=np.float32) + 5
    results = made(latents, pictures=False)
    monkeypatch.setattr(measures, "CHUNK", chunk)
    found = measures.principal_components(results.stacked)
    flat = latents.reshape(40, -1).astype(float)
    flat -= flat.mean(axis=0)
    u, s, _ = np.linalg.svd(flat, full_matrices=False)
    assert found.sampled == 40
    assert np.allclose(found.shares, (s**2 / (s**2).sum())[: measures.AXES], rtol=1e-3)
    assert np.allclose(np.abs(found.scores[:, :5]), np.abs(u * s)[:, :5], atol=1e-2)
    assert found.variance == pytest.approx((flat**2).sum() / 40, rel=1e-4)
    assert (found.scores[np.abs(found.scores).argmax(axis=0), range(found.scores.shape[1])] > 0).all()


def test_axes_of_a_sample_are_near_those_of_all_and_the_shares_are_of_all(made, monkeypatch):
    strong = np.random.default_rng(1).standard_normal((300, 3)).astype(np.float32) * [30, 20, 10]
    latents = random_latents(300)
    latents[:, :3, 0, 0] += strong
    results = made(latents, pictures=False)
    every = measures.principal_components(results.stacked)
    monkeypatch.setattr(measures, "PCA_SAMPLE", 60)
    some = measures.principal_components(results.stacked)
    assert some.sampled == 60
    assert some.scores.shape[0] == 300
    assert np.allclose(some.shares[:3], every.shares[:3], rtol=0.1)
    assert np.abs(np.corrcoef(some.scores[:, 0], every.scores[:, 0])[0, 1]) > 0.99


@pytest.mark.parametrize("chunk", [1, 10_000, 10**9])
def test_near_duplicates_and_same_latents_are_named(made, monkeypatch, chunk):
    latents = random_latents(60)
    latents[41] = latents[7] + 0.01 * random_latents(1, seed=5)[0]
    latents[50] = latents[3]
    monkeypatch.setattr(measures, "CHUNK", chunk)
    page, facts = whole(made(latents, pictures=False))
    told = facts["duplicates"]
    assert [one["id"] for one in told["pairs"][0]["items"]] == ["p7", "p41"]
    assert told["pairs"][0]["distance"] == pytest.approx(0.01 * 16 / (2**0.5 * 16), rel=0.2)
    assert told["near"] == 2
    assert [[one["id"] for one in group] for group in told["same"]] == [["p3", "p50"]]
    assert "2 items in 1 group" in page.text


def test_outliers_are_named_with_their_channel(made):
    latents = random_latents(200)
    latents[17, 2] += 3
    latents[90, 1] *= 4
    _, facts = whole(made(latents, pictures=False))
    told = facts["values"]
    assert {one["id"] for one in told["named"]} == {"p17", "p90"}
    assert told["outlying"] == 2
    first = next(one for one in told["named"] if one["id"] == "p17")
    assert (first["channel"], first["kind"]) == (2, "mean")
    assert first["value"] == pytest.approx(3, abs=0.5)


def test_errors_are_those_of_scikit_image():
    from skimage.metrics import peak_signal_noise_ratio, structural_similarity

    one, other = (
        Image.fromarray(np.random.default_rng(n).integers(0, 256, (40, 64, 3), dtype=np.uint8)) for n in (1, 2)
    )
    psnr, ssim = measures.errors(measures.Pair(one, other))
    assert psnr == pytest.approx(peak_signal_noise_ratio(np.asarray(one), np.asarray(other)))
    grey = [np.asarray(picture.convert("L")) for picture in (one, other)]
    assert ssim == pytest.approx(structural_similarity(*grey), abs=1e-4)
    assert measures.errors(measures.Pair(one, one)) == (measures.IDENTICAL, 1.0)


@pytest.mark.parametrize("resize", ["pad", "crop", "stretch", "contain"])
@pytest.mark.parametrize("image_size", [None, 64])
@pytest.mark.parametrize("size", [(100, 75), (50, 61), (640, 200), (64, 64)])
@pytest.mark.parametrize("multiple", [8, 16])
def test_the_input_is_shown_as_the_model_saw_it(tmp_path, resize, image_size, size, multiple):
    draw(tmp_path / "p.png", size)
    seen, _ = fit_picture(open_picture(tmp_path / "p.png")[0], (64, 64), resize, multiple)
    Image.new("RGB", seen.size).save(tmp_path / "gen.png")
    config = {"resize": resize, "image_size": image_size}
    pair = measures.pair(config, str(tmp_path / "p.png"), tmp_path / "gen.png")
    assert np.array_equal(np.asarray(pair.seen), np.asarray(seen))


def test_a_picture_of_another_size_is_not_compared(tmp_path):
    draw(tmp_path / "p.png", (64, 40))
    Image.new("RGB", (40, 64)).save(tmp_path / "gen.png")
    with pytest.raises(ItemError, match="one of them was changed"):
        measures.pair({"resize": "contain", "image_size": 64}, str(tmp_path / "p.png"), tmp_path / "gen.png")


@pytest.mark.parametrize(
    ("cells", "kind", "names"),
    [
        (["1", "0", "1"], "categories", ["0", "1"]),
        (["10", "9", "9"], "categories", ["9", "10"]),
        (["x"] * 4, "categories", ["x"]),
        (["a", "", "b", " "], "categories", ["a", "b", "blank"]),
        ([""] * 3, "categories", ["blank"]),
        ([f"{number / 10}" for number in range(20)] + [""], "numbers", []),
        ([f"c{number % 12}" for number in range(60)], "categories", [*[f"c{n}" for n in range(6)], "6 others"]),
        (["inf", *map(str, range(20))], "categories", [*["inf", "0", "1", "2", "3", "4"], "15 others"]),
        (["nan", "NA", "1"], "categories", ["nan", "NA", "1"]),
        (["blank", "others", ""], "categories", ["blank", "others", "blank"]),
    ],
)
def test_a_column_becomes_colours(cells, kind, names):
    found, groups = figures.colors(pd.Series(cells))
    assert found == kind
    assert [group.name for group in groups] == names
    if groups:
        assert np.array_equal(sum(group.members.astype(int) for group in groups), np.ones(len(cells)))


@pytest.mark.parametrize(
    "cells",
    [
        ["x"] * 30,
        [f"c{number}" for number in range(30)],
        [str(number / 7) for number in range(29)] + [""],
        ["", *["$\\frac$ _^ & <b>" + "long" * 50] * 29],
        [""] * 30,
    ],
)
def test_every_kind_of_column_can_colour_the_map(made, cells):
    results = made(random_latents(30), pictures=False, config={"report_color": "a $ column"}, **{"a $ column": cells})
    page, facts = whole(results)
    assert facts["map"]["column"] == "a $ column"
    assert "a $ column" in page.text


def test_the_treatment_colours_the_map_if_nothing_else_is_said(made):
    results = made(random_latents(3), pictures=False, treatment=["0", "1", "1"])
    assert figures.color_column(results) == "treatment"
    results.config["report_color"] = "strength"
    assert figures.color_column(results) == "strength"
    results.config["report_color"] = "nothing"
    with pytest.raises(items.InputError, match="has no column 'nothing'"):
        figures.color_column(results)


@pytest.mark.parametrize("pictures", [True, False])
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
def test_small_and_odd_stacks_have_a_report(made, latents, pictures):
    page, facts = whole(made(latents, pictures=pictures))
    assert facts["map"]["of"] == len(latents)
    assert ("decoded" in page.text) or not pictures
    assert ("output_image_dir: null" in page.text) == (not pictures)


@pytest.mark.parametrize("count", [2000, 20000])
def test_many_items_have_a_report_that_can_be_mailed(made, count, monkeypatch):
    results = made(random_latents(count, side=2), pictures=False, group=[str(n % 30) for n in range(count)])
    _, facts = whole(results)
    assert facts["map"]["sampled"] == measures.PCA_SAMPLE
    assert facts["duplicates"]["compared"] == count
    assert Path("results/report.html").stat().st_size < 2_000_000


def test_more_items_than_are_shown(made, monkeypatch):
    for name, value in (("SHEET_ITEMS", 8), ("MEASURED", 10), ("NAMED", 3)):
        monkeypatch.setattr(figures, name, value)
    monkeypatch.setattr(measures, "COMPARED", 11)
    strengths = ["0.5" if number in (3, 17) else "0.0" for number in range(40)]
    page, facts = whole(made(random_latents(40), strength=strengths))
    shown = [one["id"] for one in facts["contact_sheet"]["shown"]]
    assert len(shown) == 8
    assert {"p3", "p17", "p0", "p39"} <= set(shown)
    assert "Shown are 8 of 40 items" in page.text
    assert "Compared were 10 of 40 items" in page.text
    assert "11 items, evenly spread over the sheet, were compared" in page.text


def test_the_worst_items_are_shown_and_edited_ones_stand_apart(made):
    strengths = ["0.0"] * 20
    strengths[4] = strengths[9] = "0.8"  # of those with the most noise
    page, facts = whole(made(random_latents(20), strength=strengths))
    told = facts["reconstruction"]
    assert [one["id"] for one in told["edited"]] == sorted(
        ["p4", "p9"], key=lambda i: [o["id"] for o in told["edited"]].index(i)
    )
    assert {one["id"] for one in told["worst"][:2]} == {"p14", "p19"}
    assert told["worst"][0]["psnr"] <= told["worst"][1]["psnr"] < 30
    assert len(told["items"]) == 20
    best = next(one for one in told["items"] if one["id"] == "p0")
    assert (best["psnr"], best["ssim"]) == (measures.IDENTICAL, 1.0)
    assert "Worst at strength 0" in page.text
    assert "strength 0.8: a red circle" in page.text


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
    page, facts = whole(results)
    assert HOSTILE.replace("\x07", "") in page.text.replace("\x07", "")
    assert "49" not in re.findall(r"\b49\b", page.text)
    assert len(facts["contact_sheet"]["unreadable"]) == 3


def test_missing_and_damaged_pictures_are_told(made):
    results = made(random_latents(6))
    Path("pictures/p1.png").unlink()
    Path("results/images/gen_p2.png").unlink()
    Path("pictures/p3.png").write_bytes(b"no picture")
    whole_file = Path("results/images/gen_p4.png").read_bytes()
    Path("results/images/gen_p4.png").write_bytes(whole_file[:100])
    page, facts = whole(results)
    assert [one["id"] for one in facts["reconstruction"]["unreadable"]] == ["p1", "p2", "p3", "p4"]
    assert "4 items could not be shown or compared" in page.text
    assert "2 items of 6 could be compared" in page.text
    for path in Path("results/images").iterdir():
        path.unlink()
    page, facts = whole(results)
    assert facts["reconstruction"]["measured"] == 0
    assert "6 items could not be shown or compared" in page.text


def test_run_times_come_from_the_logs(made):
    results = made(random_latents(5), pictures=False)
    Path("logs/extract").mkdir(parents=True)
    texts = [
        "PNG; latent 1 x 4 x 8 x 8; 0.250 s of 0.300 s on cpu",
        "loading the model, 5 s\nPNG; latent; 12.5 s of 20 s on cuda:0 after loading for 8.1 s",
        "no such picture",
        "",
    ]
    for number, text in enumerate(texts):
        Path(f"logs/extract/p{number}.log").write_text(text + "\n" if text else "")
    page, facts = whole(results)
    told = facts["run_times"]
    assert (told["known"], told["devices"], told["slowest"][0]["id"]) == (2, {"cpu": 1, "cuda:0": 1}, "p1")
    assert told["slowest"][0]["seconds"] == 12.5
    assert "2 of 5 items have a log" in page.text


def test_a_damaged_tensor_is_a_message(made):
    results = made(random_latents(3), pictures=False)
    Path("results/latents.npy").write_bytes(b"x")
    results.index.to_csv("results/index.csv", index=False)
    command = [sys.executable, str(ROOT / "scripts/figures.py"), "--config", items.canonical(results.config)]
    command += ["--figure", "map", "--index", "results/index.csv", "--output", "a.png", "a.json"]
    ran = subprocess.run(command, capture_output=True, text=True)
    assert ran.returncode == 1
    assert ran.stderr.startswith("results/latents.npy is no tensor of this workflow")
    assert len(ran.stderr.splitlines()) == 1


def test_neither_figures_nor_report_import_the_model():
    code = "import sys; sys.path.insert(0, 'scripts'); import figures, report, skimage.metrics; print(*sys.modules)"
    ran = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert not {"torch", "diffusers", "transformers"} & set(ran.stdout.split())


def report_jobs(run) -> dict[str, int]:
    """Planned jobs of the report's rules, beside `Run.jobs`."""
    table = re.findall(r"^ *(figure|report) +(\d+) *$", run.output, re.MULTILINE)
    return run.jobs | {rule: int(count) for rule, count in table}


def test_the_demo_ends_with_a_report(demo):
    assert report_jobs(demo.first)["figure"] == len(items.FIGURES)
    assert report_jobs(demo.first)["report"] == 1
    html = (demo.folder / "results/report.html").read_text(encoding="utf-8")
    assert len(html) < 3_000_000
    page = check_page(html)
    for _, (title, _) in items.FIGURES.items():
        assert title in page.text
    index = demo.index()
    assert set(index["id"]) <= set(re.findall(r"shape_\d+", page.text))
    assert len([source for source in page.loaded if source.startswith("data:image/png")]) == len(items.FIGURES) - 1
    assert len([source for source in page.loaded if source.startswith("data:image/webp")]) >= 2 * len(index)
    assert "strength 0.7: a purple square" in page.text
    assert "treatment" in page.text
    assert "diffusers 0." in page.text
    for log in [*(f"figure/{name}" for name in items.FIGURES), "report"]:
        assert (demo.folder / f"logs/{log}.log").read_text().startswith(("drew", "wrote"))


def test_snakemakes_own_report_holds_the_figures_with_captions(demo, tmp_path):
    target = tmp_path / "out.html"
    demo.run("--report", str(target))
    html = target.read_text(encoding="utf-8")
    for name, (title, category) in items.FIGURES.items():
        assert f"{name}.png" in html
        assert title in html
        assert category in html
    assert "Items that lie together have similar latents" in html
    assert "snakemake.wildcards" not in html


def test_what_makes_the_report_again(study, tmp_path):
    rows = study.pictures(4, treatment=1, age=30)
    study.config(report=True)
    study.run()
    assert study.run().jobs == {}
    count = len(items.FIGURES)
    study.config(report=True, report_color="age")
    run = study.run()
    assert report_jobs(run) == {"figure": 1, "report": 1}
    assert "<b>age</b>" in (study.folder / "results/report.html").read_text()
    rows[0]["treatment"] = 0
    study.sheet(rows)
    assert report_jobs(study.run("--dry-run")) == {"stack": 1, "figure": count, "report": 1}
    (study.folder / "results/report.html").unlink()
    study.config()
    assert report_jobs(study.run()) == {"stack": 1}
    study.config(report=True, report_color="agee")
    run = study.run(fails=True)
    assert "has no column 'agee': did you mean 'age'?" in run.text
    assert "Traceback" not in run.output


def test_a_lost_picture_and_a_figure_that_fails_are_told(study):
    study.pictures(2)
    study.config(report=True)
    study.run()
    (study.folder / "results/report/map.png").unlink()
    (study.folder / "results/latents.pt").write_bytes(b"no tensor")
    run = study.run(fails=True)
    assert "results/latents.pt is no tensor of this workflow" in run.text
    assert "stacked 2 latents" not in run.text
