"""The report: figures, tables and provenance in one HTML file that needs no other file and no network."""

from __future__ import annotations

import base64
import datetime
import hashlib
import json
from pathlib import Path
from typing import Any

import jinja2
import markupsafe
import pandas as pd

from gpi_latents.digests import file_digest
from gpi_latents.files import write_whole
from gpi_latents.paths import DEMO_PICTURES, FIGURES, INDEX
from gpi_latents.report import latent_map, style, verdict
from gpi_latents.report.facts import notes, read_index

TEMPLATES = Path(__file__).resolve().parent / "templates"
APPENDIX = ["values", "run_times"]  # figures that come last
LISTED = 1000  # lines of a table of all items, or of all notes


def build(names: list[str], provenance_file: Path, output: Path, numbers: Path) -> str:
    """Write the report.

    Args:
        names: of the figures, whose files are in the folder of the report's name beside it.
        provenance_file: results/provenance.json, beside the index table.
        output: the HTML file.
        numbers: the JSON file of the verdict and the figures' numbers, for programs.

    Returns:
        A text for the log.
    """
    folder = output.with_suffix("")
    figures = [read_figure(folder, name) for name in names]
    facts = {figure["name"]: figure["facts"] for figure in figures}
    index, provenance = read_index(provenance_file.with_name(Path(INDEX).name)), _read_json(provenance_file)
    found = verdict.findings(verdict.Judged(facts, index, provenance, demo_pictures()))
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=True,  # ids, prompts and paths can hold any text
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["json"] = lambda value: json.dumps(value, ensure_ascii=False)
    script = (TEMPLATES / "map.js").read_text(encoding="utf-8")
    noted, failed = notes(index), provenance.get("failed", [])
    html = environment.get_template("report.html").render(
        figures=figures,
        facts=facts,
        findings=found,
        titles=section_titles(names, bool(noted), bool(failed)),
        notes=noted,
        failed=failed,
        pictures=count_pictures(index),
        provenance=provenance,
        palette=style.PALETTE,
        now=datetime.datetime.now().astimezone().strftime("%Y-%m-%d %H:%M UTC%z"),
        listed=LISTED,
        map_columns=latent_map.choices(index, facts["map"]["column"]),
        script=markupsafe.Markup(script),
        script_sha256=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
    )
    write_whole(output, html.encode())
    content = {"version": 1, "verdict": verdict.as_json(found), "figures": without_pictures(facts)}
    write_whole(numbers, (json.dumps(content, ensure_ascii=False, indent=1) + "\n").encode())
    return f"wrote {output}, {len(html.encode()) / 1e6:.1f} MB, and {numbers}"


def read_figure(folder: Path, name: str) -> dict[str, Any]:
    """A figure: its name, title, caption and facts, and the drawing as `svg`, which stands in the page as it is."""
    svg = (folder / f"{name}.svg").read_text(encoding="utf-8")
    words = {"title": FIGURES[name][0], "caption": caption(name)}
    return {"name": name, "svg": markupsafe.Markup(svg), "facts": _read_json(folder / f"{name}.json"), **words}


def count_pictures(index: pd.DataFrame) -> int:
    """How many different pictures there are: by their SHA-256, or by their paths where version 0.1 made the latents."""
    if "image_sha256" not in index:
        return index["image"].nunique()
    return index["image_sha256"].where(index["image_sha256"] != "", index["image"]).nunique()


def section_titles(names: list[str], has_notes: bool, has_failed: bool) -> dict[str, str]:
    """The sections of the page in their order, by their links."""
    shown = [name for name in names if name not in APPENDIX]
    titles = {"#overview": "Overview"} | {f"#{name}": FIGURES[name][0] for name in shown}
    titles |= {"#notes": "Notes"} if has_notes else {}
    titles |= {"#failed": "Left out"} if has_failed else {}
    return titles | {f"#{name}": FIGURES[name][0] for name in APPENDIX} | {"#provenance": "Provenance"}


def demo_pictures() -> frozenset[str]:
    """SHA-256 of the files of the demo's pictures, which the demo's model was made for."""
    return frozenset(file_digest(path) for path in DEMO_PICTURES.glob("*.png"))


def without_pictures(facts: Any) -> Any:
    """Facts of figures without the thumbnails, which are for the page."""
    if isinstance(facts, dict):
        return {key: without_pictures(value) for key, value in facts.items() if key != "pictures"}
    return [without_pictures(one) for one in facts] if isinstance(facts, list) else facts


def caption(name: str) -> str:
    """The text below a figure, plain, from the file that `snakemake --report` takes it from too."""
    return (TEMPLATES / f"caption_{name}.rst").read_text(encoding="utf-8").strip()


def _read_json(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8"))
