"""Results that the report is drawn from, made without a model, and the page that a browser would show."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import re
import shutil
import subprocess
from collections.abc import Iterable, Sequence
from html import unescape
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pandas as pd
import pytest
from gpi_latents import joblog, paths
from gpi_latents.core.pictures import fit_picture, open_picture
from gpi_latents.recipe import canonical
from gpi_latents.report import page
from gpi_latents.report.facts import Results
from gpi_latents.report.figures import draw_all
from gpi_latents.study.settings import load_config
from PIL import Image

from helpers.study import draw


class Page(HTMLParser):
    """What a browser would load, and the text that it would show."""

    def __init__(self, html: str):
        super().__init__()
        self.tags: list[str] = []
        self.loaded: list[str] = []
        self.ids: set[str] = set()
        self.links: set[str] = set()
        self.text = self.policy = self.scripts = ""
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        given = dict(attrs)
        self.loaded += [given[name] for name in ("src", "data", "poster", "srcset", "action") if name in given]
        if given.get("http-equiv") == "Content-Security-Policy":
            self.policy = given["content"]
        if tag in ("link", "image"):
            self.loaded.append(given["href"])
        elif "href" in given:
            self.links.add(given["href"])
        if "id" in given:
            self.ids.add(given["id"])
        assert not [name for name in given if name.startswith("on")]

    def handle_data(self, data):
        if self.cdata_elem == "script":
            self.scripts += data
        else:
            self.text += data


def page_in_browser(page: Path, *options: str) -> tuple[str, str]:
    """The title of a page in headless Chromium, after its scripts have run, and what the program prints meanwhile."""
    program = shutil.which("chromium-headless-shell")
    if program is None:
        reason = "Chromium is not installed: apt-get install chromium-headless-shell"
        (pytest.fail if os.environ.get("REQUIRE_CHROMIUM") else pytest.skip)(reason)
    options = ("--no-sandbox", "--disable-gpu", "--virtual-time-budget=20000", *options)
    command = [program, *options, "--dump-dom", page.as_uri()]
    run = subprocess.run(command, capture_output=True, text=True, timeout=100, check=True)
    (title,) = re.findall("<title>(.*?)</title>", run.stdout, re.DOTALL)[:1]
    return unescape(title.strip()), run.stderr


def check_page(html: str) -> Page:
    """The page needs no other file and no network, runs our script alone, and its links lead somewhere."""
    shown = Page(html)
    assert all(source.startswith("data:") for source in shown.loaded)
    assert shown.links <= {f"#{name}" for name in shown.ids}
    assert not {"iframe", "object", "embed", "base"} & set(shown.tags)
    assert "default-src 'none'" in shown.policy
    script = (page.TEMPLATES / "map.js").read_text(encoding="utf-8")
    assert shown.scripts in ("", script)
    assert shown.tags.count("script") == bool(shown.scripts)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert re.findall(r"script[^;]*", shown.policy) == [f"script-src 'sha256-{digest}'"]
    assert "url(" not in html
    assert "@import" not in html
    assert "<built-in" not in html
    return shown


def random_latents(count: int, seed: int = 0, side: int = 8) -> np.ndarray:
    """Standard normal latents, float32 (count, 4, side, side)."""
    return np.random.default_rng(seed).standard_normal((count, 4, side, side)).astype(np.float32)


def make_results(
    latents: np.ndarray, pictures: bool = True, config: dict[str, Any] | None = None, **columns
) -> Results:
    """Write the results of a study with these latents and columns into the working directory.

    Of each five items, the first is decoded without an error, the next ones with more and more noise.
    """
    keys = {"model_id": "demo", "stacked": "results/latents.npy", **(config or {})}
    if not pictures:
        keys["output_image_dir"] = None
    count = len(latents)
    index = pd.DataFrame({"row": range(count), "id": [f"p{number}" for number in range(count)]}).astype(str)
    index["image"] = [f"pictures/p{number}.png" for number in range(count)]
    index["prompt"], index["strength"] = "a red circle", "0.0"
    index["sha256"] = [hashlib.sha256(np.ascontiguousarray(latent).tobytes()).hexdigest() for latent in latents]
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
    return Results(load_config(keys), index)


def write_log(
    item_id: str, seconds: float, total_seconds: float, device: str, done: Sequence[str] = ("PNG 64 x 64 RGB",)
) -> None:
    """The log of an item that worked."""
    log = Path(paths.item_log(item_id))
    log.parent.mkdir(parents=True, exist_ok=True)
    finished = joblog.Finished([], [1, 4, 8, 8], seconds, total_seconds, device, list(done))
    log.write_text(f"loading the model\n{joblog.line(finished)}\n")


def draw_figures(results: Results, names: Iterable[str] | None = None) -> dict[str, dict[str, Any]]:
    """Draw all figures, or some, as scripts/figures.py does, none from an earlier run; returns their facts."""
    Path("plan").mkdir(exist_ok=True)
    Path("plan/config.json").write_text(canonical(results.config))
    results.index.to_csv(paths.INDEX, index=False)
    folder = Path("results/report")
    folder.mkdir(exist_ok=True)
    shutil.rmtree(paths.PLANS, ignore_errors=True)
    names = list(names or paths.figures(results.config, results.index))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(paths, "figures", lambda config, columns: names)
        lines = draw_all(Path("plan"), Path(paths.INDEX), folder).splitlines()
    assert lines == [f"drew {name} of {len(results.index)} items" for name in names]
    for name in names:
        with Image.open(folder / f"{name}.png") as drawn:
            drawn.load()
        ElementTree.parse(folder / f"{name}.svg")
    return {name: json.loads((folder / f"{name}.json").read_text()) for name in names}


def build_page(results: Results, **provenance: Any) -> Page:
    """Write the report of figures that are drawn, as scripts/report.py does."""
    origin = {"model": {"model_id": "demo"}, "recipe_version": 1, "software": {}, "config": results.config}
    origin |= provenance
    Path(paths.PROVENANCE).write_text(json.dumps(origin))
    files = [Path(path) for path in (paths.PROVENANCE, paths.REPORT, paths.REPORT_JSON)]
    page.build(paths.figures(results.config, results.index), *files)
    return check_page(Path(paths.REPORT).read_text(encoding="utf-8"))
