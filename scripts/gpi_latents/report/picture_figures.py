"""Figures of pictures."""

from __future__ import annotations

import itertools
import re
import textwrap
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from PIL import Image

from gpi_latents import joblog
from gpi_latents.errors import ItemError
from gpi_latents.report import measures, style, svg
from gpi_latents.report.facts import NAMED, Results
from gpi_latents.report.measures import Pair

SHEET_ITEMS = 48
SHEET_COLUMNS = 4
SHEET_SIDE = 138  # pixels in the figure
CARD_SIDE = 256  # pixels on the page, where a card can be enlarged
MOST_GROUPS = 6  # values of the treatment that are shown alike
WORST_SHARE = 0.1  # of the items at strength 0 that are shown as the worst
MEASURED = 800  # items whose pictures are compared


def contact_sheet(results: Results) -> tuple[Figure, dict[str, Any]]:
    """Inputs beside decoded pictures of some items, as `chosen` chooses and orders them.

    Of an item with several draws, the first can be chosen.
    """
    entries, shown = [], []
    unreadable: list[dict[str, Any]] = []
    boxes = {row: padding_box(log) for row, log in results.logs.items()}
    columns = [name for name in ("treatment", "outcome") if name in results.index]
    for row in chosen(results):
        label = results.item_label(row)
        try:
            pair = results.pair(row)
        except ItemError as error:
            unreadable.append(label | {"reason": str(error)})
            continue
        # Only small pictures are kept, so that memory does not grow with the size of the large ones.
        small = Pair(*(style.fitted(picture, min(CARD_SIDE, max(picture.size))) for picture in pair))
        box = boxes.get(label["row"])
        if box:
            small = small._replace(seen=without_padding(small.seen, box))
        entries.append((label, Pair(*(style.fitted(picture, SHEET_SIDE) for picture in small))))
        label |= {name: results.index[name].iloc[label["row"]] for name in columns}
        uris = [style.thumbnail(picture, CARD_SIDE) for picture in small]
        shown.append(label | {"padded": box is not None, "pictures": uris})
    facts = {
        "of": len(results.firsts),
        "padded": sum(boxes.get(row) is not None for row in results.firsts),
        "shown": shown,
        "unreadable": unreadable,
    }
    return draw_sheet(entries), facts


def chosen(results: Results) -> list[int]:
    """At most `SHEET_ITEMS` rows, evenly spaced among edited items and others, and in each group of the treatment.

    They alternate between these, so that all of them show at the top.
    """
    firsts = results.index.iloc[results.firsts]
    kinds = [pd.Series(results.edited[results.firsts], firsts.index)]
    if "treatment" in firsts and firsts["treatment"].nunique() <= MOST_GROUPS:
        kinds.append(firsts["treatment"])
    groups = [results.firsts[places] for _, places in sorted(firsts.groupby(kinds).indices.items())]
    shares, left = {}, SHEET_ITEMS
    for done, number in enumerate(sorted(range(len(groups)), key=lambda number: len(groups[number]))):
        shares[number] = min(len(groups[number]), -(-left // (len(groups) - done)))
        left -= shares[number]
    some = [rows[measures.evenly_spaced(len(rows), shares[number])] for number, rows in enumerate(groups)]
    return [int(row) for turn in itertools.zip_longest(*some) for row in turn if row is not None]


def padding_box(log: joblog.Finished) -> tuple[float, float, float, float] | None:
    """Where a padded picture is in what the model saw of it: left, top, right and bottom, each a share of 0 to 1.

    None if nothing was padded. Around it its own borders are reflected.
    """
    words = " ".join([*log.done, *log.notes])
    padded = re.search(r"reflected to (\d+) x (\d+)", words)
    inner = re.search(r"resized to (\d+) x (\d+)", words) or re.search(r"(\d+) x (\d+)", words)
    if not (padded and inner):
        return None
    sides = [(int(inside), int(whole)) for inside, whole in zip(inner.groups(), padded.groups(), strict=True)]
    begins = [(whole - inside) // 2 / whole for inside, whole in sides]
    ends = [begin + inside / whole for begin, (inside, whole) in zip(begins, sides, strict=True)]
    return begins[0], begins[1], ends[0], ends[1]


def without_padding(picture: Image.Image, box: tuple[float, float, float, float]) -> Image.Image:
    """A copy of a picture that is grey, by three quarters, outside the box of `padding_box`."""
    left, top, right, bottom = (round(share * side) for share, side in zip(box, picture.size * 2, strict=True))
    marked = Image.blend(picture, Image.new("RGB", picture.size, "#8A8A8A"), 0.75)
    marked.paste(picture.crop((left, top, right, bottom)), (left, top))
    return marked


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
    rows = measures.evenly_spaced(len(results.index), MEASURED)
    with ThreadPoolExecutor(results.threads) as pool:
        found = [*pool.map(lambda row: measured_item(results, row), rows)]
    measured = [one for one in found if "psnr" in one]
    unreadable = [one for one in found if "reason" in one]
    still = sorted((one for one in measured if one["strength"] == 0), key=lambda one: one["psnr"])
    edited = sorted((one for one in measured if one["strength"] > 0), key=lambda one: one["psnr"])
    worst = still[: min(NAMED, max(1, int(WORST_SHARE * len(still))))]
    facts = {
        "of": len(results.index),
        "measured": len(measured),
        "items": measured,
        "worst": [
            one | {"pictures": [style.thumbnail(picture, CARD_SIDE) for picture in results.pair(one["row"])]}
            for one in worst
        ],
        "edited": edited,
        "unreadable": unreadable,
        "medians": {key: float(np.median([one[key] for one in still])) for key in ("psnr", "ssim")} if still else None,
    }
    return draw_reconstruction(still, edited), facts


def measured_item(results: Results, row: int) -> dict[str, Any]:
    """An item's label with its `psnr` and `ssim`, or with the `reason` why its pictures cannot be read."""
    label = results.item_label(row)
    try:
        psnr, ssim = measures.errors(results.pair(row))
    except ItemError as error:
        return label | {"reason": str(error)}
    return label | {"psnr": round(psnr, 2), "ssim": round(ssim, 4)}


def draw_reconstruction(still: list[dict[str, Any]], edited: list[dict[str, Any]]) -> Figure:
    """A dot per item with its `psnr` and `ssim`; the first three at strength 0, the worst, with their `id`."""
    if not (still or edited):
        return style.text_figure("No pictures could be read.")
    figure = style.new_figure(3.6)
    axes = figure.subplots()
    kinds = [
        (still, style.BLUE, "o", "strength 0: error of the reconstruction"),
        (edited, style.ORANGE, "^", "edited: meant to differ"),
    ]
    looks: dict[str, Any] = {"s": style.dot_size(len(still) + len(edited)), "alpha": 0.75, "linewidths": 0}
    for group, color, marker, name in kinds:
        if group:
            points = [one["psnr"] for one in group], [one["ssim"] for one in group]
            dots = axes.scatter(*points, c=color, marker=marker, label=f"{name} ({len(group)})", **looks)
            texts = [f"{one['id']} (row {one['row']}), {one['psnr']:.1f} dB, SSIM {one['ssim']:.3f}" for one in group]
            svg.add_tips(dots, [one["row"] for one in group], texts)
    axes.set(xlabel="PSNR in dB (further right is closer to the input)", ylabel="SSIM (further up is closer)")
    axes.margins(x=0.12, y=0.1)
    middle, height = np.mean(axes.get_xlim()), np.mean(axes.get_ylim())
    line = {"arrowstyle": "-", "color": style.GREY, "linewidth": 0.5}
    for number, one in enumerate(still[:3]):
        # Towards the middle, so that no axis is in the way, and apart, since the worst are often close together.
        right, up = 1 if one["psnr"] < middle else -1, 1 if one["ssim"] < height else -1
        words: dict[str, Any] = {"ha": "left" if right > 0 else "right", "va": "center", "textcoords": "offset points"}
        place = (14 * right, (14 + 16 * number) * up)
        axes.annotate(style.cut(one["id"], 24), (one["psnr"], one["ssim"]), place, arrowprops=line, **words)
    figure.legend(loc="outside upper left")
    return figure
