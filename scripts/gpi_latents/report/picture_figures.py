"""Figures of pictures."""

from __future__ import annotations

import textwrap
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from PIL import Image

from gpi_latents.errors import ItemError
from gpi_latents.report import measures
from gpi_latents.report.facts import NAMED, Results
from gpi_latents.report.measures import Pair
from gpi_latents.report.style import BLUE, DPI, INK, ORANGE, WIDTH, cut, dot_size, fitted, plain, text_figure, thumbnail

SHEET_ITEMS = 48
SHEET_COLUMNS = 4
SHEET_SIDE = 138  # pixels
MEASURED = 800  # items whose pictures are compared


def contact_sheet(results: Results) -> tuple[Figure, dict[str, Any]]:
    """Inputs beside decoded pictures, an evenly spread choice of the items above strength 0 and of the others."""
    count = len(results.index)
    kinds = [np.flatnonzero(results.edited), np.flatnonzero(~results.edited)]
    few = min(kinds, key=len)
    chosen = [kind[measures.evenly_spaced(len(kind), max(SHEET_ITEMS - len(few), SHEET_ITEMS // 2))] for kind in kinds]
    entries, shown, unreadable = [], [], []
    for row in sorted(np.concatenate(chosen)):
        try:
            pair = results.pair(row)
        except ItemError as error:
            unreadable.append(results.item_label(row) | {"reason": str(error)})
            continue
        told = results.item_label(row)
        shown.append(told | {"pictures": [thumbnail(pair.seen), thumbnail(pair.decoded)]})
        # Only small pictures are kept, so that memory does not grow with the size of the large ones.
        entries.append((told, Pair(fitted(pair.seen, SHEET_SIDE), fitted(pair.decoded, SHEET_SIDE))))
    return draw_sheet(entries), {"of": count, "shown": shown, "unreadable": unreadable}


def draw_sheet(entries: list[tuple[dict[str, Any], Pair]]) -> Figure:
    """A contact sheet.

    Args:
        entries: for each item what `Results.told` says of it, and its pictures.
    """
    if not entries:
        return text_figure("No pictures could be read.")
    side, gap, between, words, heading = SHEET_SIDE, 24, 4, 66, 46  # pixels
    columns = min(SHEET_COLUMNS, len(entries))
    rows = -(-len(entries) // columns)
    width, height = SHEET_COLUMNS * (2 * side + between) + (SHEET_COLUMNS - 1) * gap, heading + rows * (side + words)
    canvas = Image.new("RGB", (width, height), "white")
    figure = Figure(figsize=(width / DPI, height / DPI), dpi=DPI)
    figure.text(
        0, 1, "Left: the picture as the model sees it.  Right: what its latent is decoded to.", va="top", size=8.5
    )
    for number, (told, pictures) in enumerate(entries):
        left = number % columns * (2 * side + between + gap)
        top = heading + number // columns * (side + words)
        for place, picture in enumerate((pictures.seen, pictures.decoded)):
            small = fitted(picture, side)
            canvas.paste(
                small, (left + place * (side + between) + (side - small.width) // 2, top + side - small.height)
            )
        lines = [cut(told["id"], 32)]
        if told["strength"] > 0:
            lines += textwrap.wrap(
                f"strength {told['strength']:g}: {plain(told['prompt'])}", 38, max_lines=2, placeholder=" …"
            )
        for line, text in enumerate(lines):
            y = 1 - (top + side + 6 + 18 * line) / height
            figure.text(
                left / width, y, text, va="top", size=7.5 if line == 0 else 6.5, color=INK if line == 0 else "#555555"
            )
    figure.figimage(np.asarray(canvas), zorder=-1)
    return figure


def reconstruction(results: Results) -> tuple[Figure, dict[str, Any]]:
    """How far the decoded pictures are from the inputs."""
    measured, unreadable = [], []
    for row in measures.evenly_spaced(len(results.index), MEASURED):
        try:
            psnr, ssim = measures.errors(results.pair(row))
            measured.append(results.item_label(row) | {"psnr": round(psnr, 2), "ssim": round(ssim, 4)})
        except ItemError as error:
            unreadable.append(results.item_label(row) | {"reason": str(error)})
    still = sorted((one for one in measured if one["strength"] == 0), key=lambda one: one["psnr"])
    edited = sorted((one for one in measured if one["strength"] > 0), key=lambda one: one["psnr"])
    worst = [one | {"pictures": _thumbnails(results, one["row"])} for one in still[:NAMED]]
    facts = {
        "of": len(results.index),
        "measured": len(measured),
        "items": sorted(measured, key=lambda one: one["row"]),
        "worst": worst,
        "edited": edited,
        "unreadable": unreadable,
        "medians": {key: float(np.median([one[key] for one in still])) for key in ("psnr", "ssim")} if still else None,
    }
    if not measured:
        return text_figure("No pictures could be read."), facts
    figure = Figure(figsize=(WIDTH, 4.2), dpi=DPI, layout="constrained")
    axes = figure.subplots()
    kinds = [
        (still, BLUE, "o", "strength 0: error of the reconstruction"),
        (edited, ORANGE, "^", "edited: meant to differ"),
    ]
    for group, color, marker, label in kinds:
        if group:
            points = [one["psnr"] for one in group], [one["ssim"] for one in group]
            axes.scatter(
                *points,
                s=dot_size(len(measured)),
                c=color,
                marker=marker,
                alpha=0.75,
                linewidths=0,
                label=f"{label} ({len(group)})",
            )
    for number, one in enumerate(still[:3]):
        axes.annotate(
            cut(one["id"], 24),
            (one["psnr"], one["ssim"]),
            (-14, -14 - 20 * number),  # below one another, since the worst often lie close together
            textcoords="offset points",
            size=7,
            ha="right",
            va="center",
            arrowprops={"arrowstyle": "-", "color": "#888888", "linewidth": 0.5},
        )
    axes.set(xlabel="PSNR in dB (further right is closer to the input)", ylabel="SSIM (further up is closer)")
    axes.margins(x=0.12, y=0.1)
    axes.legend(loc="lower right")
    return figure, facts


def _thumbnails(results: Results, row: int) -> list[str]:
    pictures = results.pair(row)
    return [thumbnail(pictures.seen), thumbnail(pictures.decoded)]
