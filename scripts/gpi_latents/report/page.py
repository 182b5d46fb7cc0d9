"""The report: figures, tables and provenance in one HTML file that needs no other file and no network."""

from __future__ import annotations

import base64
import datetime
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jinja2

from gpi_latents.files import write_whole
from gpi_latents.paths import FIGURES, INDEX
from gpi_latents.report.facts import notes, read_index

TEMPLATES = Path(__file__).resolve().parent / "templates"
LISTED = 1000  # lines of a table of all items, or of all notes


def build(names: list[str], provenance: Path, output: Path) -> str:
    """Write the report.

    Args:
        names: of the figures, whose files are in the folder of the report's name beside it.
        provenance: the file results/provenance.json, beside the index table.
        output: the HTML file.

    Returns:
        A text for the log.
    """
    folder = output.with_suffix("")
    figures = []
    for name in names:
        image = "data:image/png;base64," + base64.b64encode((folder / f"{name}.png").read_bytes()).decode()
        words = {"title": FIGURES[name][0], "caption": caption(name)}
        figures.append({"name": name, "image": image, "facts": _read_json(folder / f"{name}.json"), **words})
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=True,  # ids, prompts and paths can hold any text
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["json"] = lambda value: json.dumps(value, ensure_ascii=False)
    html = environment.get_template("report.html").render(
        figures=figures,
        facts={figure["name"]: figure["facts"] for figure in figures},
        notes=notes(read_index(provenance.with_name(Path(INDEX).name))),
        provenance=_read_json(provenance),
        today=datetime.date.today().isoformat(),
        listed=LISTED,
    )
    write_whole(output, html.encode())
    return f"wrote {output}, {len(html.encode()) / 1e6:.1f} MB"


def caption(name: str) -> str:
    """The text below a figure, from the file that `snakemake --report` takes it from too."""
    template = jinja2.Template((TEMPLATES / "captions.rst").read_text(encoding="utf-8"))
    return template.render(snakemake=SimpleNamespace(wildcards=SimpleNamespace(figure=name)))


def _read_json(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8"))
