"""The report: figures, tables and provenance in one HTML file that needs no other file and no network."""

from __future__ import annotations

import base64
import datetime
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jinja2

from gpi_latents.paths import FIGURES

TEMPLATES = Path(__file__).resolve().parent / "templates"
LISTED = 1000  # lines of a table that holds all items


def render(figures: list[dict[str, Any]], provenance: dict[str, Any], today: str) -> str:
    """The report as HTML.

    Args:
        figures: for each its `name`, `title`, `caption`, `image` (a data URI) and `facts`, as scripts/figures.py wrote.
        provenance: as results/provenance.json holds it.
        today: the date that it tells.
    """
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=True,  # ids, prompts and paths are anybody's text
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["json"] = lambda value: json.dumps(value, ensure_ascii=False)
    facts = {figure["name"]: figure["facts"] for figure in figures}
    return environment.get_template("report.html").render(
        figures=figures, facts=facts, provenance=provenance, today=today, listed=LISTED
    )


def caption(name: str) -> str:
    """What stands under a figure, from the file that `snakemake --report` takes it from."""
    template = jinja2.Template((TEMPLATES / "captions.rst").read_text(encoding="utf-8"))
    return template.render(snakemake=SimpleNamespace(wildcards=SimpleNamespace(figure=name)))


def build(names: list[str], provenance: Path, output: Path) -> str:
    """Write the report.

    Args:
        names: of the figures, which lie in the folder of the report's name beside it.
        provenance: the file results/provenance.json.
        output: the HTML file.
    """
    folder = output.with_suffix("")
    figures = []
    for name in names:
        image = base64.b64encode((folder / f"{name}.png").read_bytes()).decode("ascii")
        facts = json.loads((folder / f"{name}.json").read_text(encoding="utf-8"))
        told = {"name": name, "title": FIGURES[name][0], "caption": caption(name)}
        figures.append(told | {"image": f"data:image/png;base64,{image}", "facts": facts})
    origin = json.loads(provenance.read_text(encoding="utf-8"))
    output.write_text(render(figures, origin, datetime.date.today().isoformat()), encoding="utf-8")
    return f"wrote {output}, {output.stat().st_size / 1e6:.1f} MB"
