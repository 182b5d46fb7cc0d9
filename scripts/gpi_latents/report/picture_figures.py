"""Figures of pictures."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from PIL import Image

from gpi_latents.errors import ItemError
from gpi_latents.report import measures, style
from gpi_latents.report.facts import NAMED, Results
from gpi_latents.report.measures import Pair

SHEET_ITEMS = 48
SHEET_COLUMNS = 4
SHEET_SIDE = 138  # pixels
MEASURED = 800  # items whose pictures are compared


def contact_sheet(results: Results) -> tuple[Figure, dict[str, Any]]:
    """Inputs beside decoded pictures, an evenly spaced choice of the items above strength 0 and of the others.

    Of an item with several draws, the first can be chosen.
    """
    edited = results.edited[results.firsts]
    kinds = [results.firsts[edited], results.firsts[~edited]]
    most = max(SHEET_ITEMS - min(map(len, kinds)), SHEET_ITEMS // 2)
    chosen = sorted(np.concatenate([kind[measures.evenly_spaced(len(kind), most)] for kind in kinds]))
    entries, shown = [], []
    unreadable: list[dict[str, Any]] = []
    for label, pair in _pairs(results, chosen, unreadable):
        shown.append(label | {"pictures": [*map(style.thumbnail, pair)]})
        # Only small pictures are kept, so that memory does not grow with the size of the large ones.
        entries.append((label, Pair(*(style.fitted(picture, SHEET_SIDE) for picture in pair))))
    return draw_sheet(entries), {"of": len(results.firsts), "shown": shown, "unreadable": unreadable}


def draw_sheet(entries: list[tuple[dict[str, Any], Pair]]) -> Figure:
    """A contact sheet of items, each with its `Results.item_label` and its pictures."""
    if not entries:
        return style.text_figure("No pictures could be read.")
    side, gap, between, words, heading = SHEET_SIDE, 24, 4, 66, 46  # pixels
    rows = -(-len(entries) // SHEET_COLUMNS)
    width, height = SHEET_COLUMNS * (2 * side + between) + (SHEET_COLUMNS - 1) * gap, heading + rows * (side + words)
    canvas = Image.new("RGB", (width, height), "white")
    figure = Figure(figsize=(width / style.DPI, height / style.DPI), dpi=style.DPI)
    figure.text(0, 1, "Left: the picture as the model sees it.  Right: the decoded latent.", va="top", size=8.5)
    for number, (label, pictures) in enumerate(entries):
        left = number % SHEET_COLUMNS * (2 * side + between + gap)
        top = heading + number // SHEET_COLUMNS * (side + words)
        for place, picture in enumerate(pictures):
            small = style.fitted(picture, side)
            x = left + place * (side + between) + (side - small.width) // 2
            canvas.paste(small, (x, top + side - small.height))
        lines = [style.cut(label["id"], 32)]
        if label["strength"] > 0:
            text = f"strength {label['strength']:g}: {style.plain(label['prompt'])}"
            lines += textwrap.wrap(text, 38, max_lines=2, placeholder=" …")
        for line, text in enumerate(lines):
            size, color = (6.5, "#555555") if line else (7.5, style.INK)
            figure.text(left / width, 1 - (top + side + 6 + 18 * line) / height, text, va="top", size=size, color=color)
    figure.figimage(np.asarray(canvas), zorder=-1)
    return figure


def reconstruction(results: Results) -> tuple[Figure, dict[str, Any]]:
    """How far the decoded pictures are from the inputs."""
    measured = []
    unreadable: list[dict[str, Any]] = []
    rows = measures.evenly_spaced(len(results.index), MEASURED)
    for label, pair in _pairs(results, rows, unreadable):
        psnr, ssim = measures.errors(pair)
        measured.append(label | {"psnr": round(psnr, 2), "ssim": round(ssim, 4)})
    still = sorted((one for one in measured if one["strength"] == 0), key=lambda one: one["psnr"])
    edited = sorted((one for one in measured if one["strength"] > 0), key=lambda one: one["psnr"])
    facts = {
        "of": len(results.index),
        "measured": len(measured),
        "items": measured,
        "worst": [one | {"pictures": [*map(style.thumbnail, results.pair(one["row"]))]} for one in still[:NAMED]],
        "edited": edited,
        "unreadable": unreadable,
        "medians": {key: float(np.median([one[key] for one in still])) for key in ("psnr", "ssim")} if still else None,
    }
    return draw_reconstruction(still, edited), facts


def draw_reconstruction(still: list[dict[str, Any]], edited: list[dict[str, Any]]) -> Figure:
    """A dot per item with its `psnr` and `ssim`; the first three at strength 0, the worst, with their `id`."""
    if not (still or edited):
        return style.text_figure("No pictures could be read.")
    figure = style.new_figure(4.2)
    axes = figure.subplots()
    kinds = [
        (still, style.BLUE, "o", "strength 0: error of the reconstruction"),
        (edited, style.ORANGE, "^", "edited: meant to differ"),
    ]
    looks: dict[str, Any] = {"s": style.dot_size(len(still) + len(edited)), "alpha": 0.75, "linewidths": 0}
    for group, color, marker, name in kinds:
        if group:
            points = [one["psnr"] for one in group], [one["ssim"] for one in group]
            axes.scatter(*points, c=color, marker=marker, label=f"{name} ({len(group)})", **looks)
    line = {"arrowstyle": "-", "color": "#888888", "linewidth": 0.5}
    words: dict[str, Any] = {"size": 7, "ha": "right", "va": "center", "textcoords": "offset points"}
    for number, one in enumerate(still[:3]):
        place = (-14, -14 - 20 * number)  # below one another, since the worst are often close together
        axes.annotate(style.cut(one["id"], 24), (one["psnr"], one["ssim"]), place, arrowprops=line, **words)
    axes.set(xlabel="PSNR in dB (further right is closer to the input)", ylabel="SSIM (further up is closer)")
    axes.margins(x=0.12, y=0.1)
    axes.legend(loc="lower right")
    return figure


def _pairs(results: Results, rows: Iterable[int], unreadable: list[dict[str, Any]]) -> Iterator[tuple[dict, Pair]]:
    """The labels and pictures of items; those that cannot be read are appended to `unreadable` instead."""
    for row in rows:
        label = results.item_label(row)
        try:
            pair = results.pair(row)
        except ItemError as error:
            unreadable.append(label | {"reason": str(error)})
        else:
            yield label, pair
