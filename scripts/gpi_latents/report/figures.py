"""The report's figures: each is drawn into a PNG and an SVG file, with its numbers and words in a JSON file beside."""

from __future__ import annotations

import base64
import dataclasses
import functools
import hashlib
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
from matplotlib.figure import Figure

from gpi_latents import paths
from gpi_latents.errors import InputError
from gpi_latents.files import read_text, state, write_whole
from gpi_latents.plan import read_config
from gpi_latents.recipe import canonical
from gpi_latents.report import style, svg
from gpi_latents.report.facts import Results, read_index
from gpi_latents.report.latent_figures import channel_values, duplicates, run_times
from gpi_latents.report.latent_map import color_column, latent_map
from gpi_latents.report.overlap import is_blank, overlap
from gpi_latents.report.picture_figures import contact_sheet, reconstruction
from gpi_latents.tensors.tensor_file import open_latents

COLUMNS = {"row", "id", "item", "draw", "image", "prompt", "strength", "sha256"}  # that every figure is given


def columns(results: Results, *names: str) -> pd.DataFrame:
    """The index table with `COLUMNS` and some others alone, as far as it has them."""
    return results.index[[name for name in results.index if name in COLUMNS or name in names]]


def sheet_columns(results: Results) -> pd.DataFrame:
    """Besides, what the cards of the contact sheet show."""
    return columns(results, "treatment", "outcome", "notes")


def overlap_columns(results: Results) -> pd.DataFrame:
    """Besides, the treatment, and of the outcome only where it is missing."""
    table = columns(results, "treatment", "outcome")
    if "outcome" in table:
        table = table.assign(outcome=["" if blank else "known" for blank in is_blank(table["outcome"])])
    return table


def pictures(results: Results) -> list[str]:
    """The items' pictures and, as far as there are, the decoded ones."""
    decoded = [paths.picture_path(results.config, item_id) for item_id in results.index["id"]]
    return [*results.index["image"], *filter(None, decoded)]


def logs(results: Results) -> list[str]:
    """The items' logs."""
    return [paths.item_log(item_id) for item_id in results.index["id"]]


class Source(NamedTuple):
    """What a figure is drawn by and from: where nothing of this has changed, it is kept.

    Attributes:
        draw: makes the figure and its facts.
        table: the part of the index table that it is given.
        files: that it reads besides the tensor.
    """

    draw: Callable[[Results], tuple[Figure, dict[str, Any]]]
    table: Callable[[Results], pd.DataFrame] = columns
    files: Callable[[Results], list[str]] = lambda results: []


FIGURES = {
    "contact_sheet": Source(contact_sheet, sheet_columns, lambda results: pictures(results) + logs(results)),
    "reconstruction": Source(reconstruction, lambda results: columns(results, "notes"), pictures),
    "map": Source(latent_map, lambda results: columns(results, color_column(results) or "")),
    "overlap": Source(overlap, overlap_columns),
    "values": Source(channel_values),
    "duplicates": Source(duplicates, files=lambda results: list(results.index["image"])),
    "run_times": Source(run_times, files=logs),
}


def draw_all(plan: Path, index: Path, folder: Path, threads: int = 1) -> str:
    """Draw the study's figures, or keep those that would be the same.

    Args:
        plan: folder with the plan of the run.
        index: the index table.
        folder: for the files `{name}.png`, `{name}.svg` and `{name}.json` of each figure.
        threads: that may work on pictures side by side.

    Returns:
        A text for the log.

    Raises:
        InputError: tensor and index table do not belong together, or the colour's column is missing.
        TensorError: the tensor is damaged.
        OSError: a file cannot be read or written.
    """
    results = Results(read_config(plan), read_index(index), threads)
    if len(results.index) != len(open_latents(results.stacked)):
        raise InputError(f"{results.stacked} and {index} do not belong together: run snakemake again")
    style.apply()
    lines = []
    for name in paths.figures(results.config, results.index):
        source = FIGURES[name]
        # The map alone has the key report_color; the column's values alone do not tell that another one is asked for.
        used = {key: value for key, value in results.config.items() if key != "report_color" or name == "map"}
        given = dataclasses.replace(results, config=used, index=source.table(results))
        digest = origin(given, source.files(given))
        kept = drawn_before(name, digest)
        drawn = kept or draw(name, given, digest)
        # Snakemake removes its files before a job, so these are copies.
        write_whole(folder / f"{name}.png", base64.b64decode(drawn["png"]))
        write_whole(folder / f"{name}.svg", drawn["svg"].encode())
        write_whole(folder / f"{name}.json", text(drawn["facts"]).encode())
        lines.append(f"{'kept' if kept else 'drew'} {name} of {len(results.index)} items")
    return "\n".join(lines)


def draw(name: str, results: Results, digest: str) -> dict[str, Any]:
    """Draw a figure.

    Returns:
        Its `facts`, with the digest as `drawn_from`; `svg`, a text; and `png`, in base64. A file keeps them, too.
    """
    figure, facts = FIGURES[name].draw(results)
    png = io.BytesIO()
    figure.savefig(png, format="png", metadata={"Software": None})
    picture = svg.render(figure, name, paths.FIGURES[name][0])
    drawn = {"facts": facts | {"drawn_from": digest}, "svg": picture, "png": base64.b64encode(png.getvalue()).decode()}
    Path(paths.PLANS).mkdir(parents=True, exist_ok=True)
    write_whole(paths.drawn(name), text(drawn).encode())
    return drawn


def drawn_before(name: str, digest: str) -> dict[str, Any] | None:
    """A figure as `draw` made it in an earlier run, if that was from the same."""
    try:
        drawn = json.loads(read_text(paths.drawn(name)))
        return drawn if drawn["facts"]["drawn_from"] == digest else None
    except (ValueError, KeyError, TypeError):  # there is none, or it is damaged
        return None


def origin(results: Results, files: list[str]) -> str:
    """SHA-256 of all that decides a figure: the config, the table, which has the latents' SHA-256, the dates of the
    files, and the workflow's code."""
    parts = [
        code_digest(),
        canonical(results.config),
        results.index.to_csv(index=False),
        canonical([*map(state, files)]),
    ]
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()


def text(value: dict[str, Any]) -> str:
    """JSON in one line."""
    return json.dumps(value, ensure_ascii=False, allow_nan=False) + "\n"


@functools.cache
def code_digest() -> str:
    """SHA-256 of the workflow's code."""
    sources = sorted(paths.PACKAGE.rglob("*.py"))
    return hashlib.sha256(b"".join(source.read_bytes() for source in sources)).hexdigest()
