"""The report's figures: each is drawn into a PNG file, with what it tells in words and numbers in a JSON file beside.

Needs no torch and no model.
"""

from __future__ import annotations

import argparse
import base64
import io
import json
import sys
import textwrap
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import items
import matplotlib
import matplotlib.font_manager
import measures
import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from measures import Pair
from pictures import ItemError, open_picture
from PIL import Image
from tensors import TensorError, open_latents

WIDTH = 8.0  # inches of a figure, which fill a printed page
DPI = 150
SHEET_ITEMS = 48
SHEET_COLUMNS = 4
SHEET_SIDE = 138  # pixels
MEASURED = 800  # items whose pictures are compared
NAMED = 10  # worst items, outliers, pairs and so on that are named
THUMBNAIL = 144  # pixels
MOST_CATEGORIES = 7

# Okabe and Ito's colours (2008), which the colour-blind can tell apart; in print the markers do.
BLUE, ORANGE, GREEN, PURPLE, SKY, RED, YELLOW = (
    "#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#F0E442",
)  # fmt: skip
PALETTE = [BLUE, ORANGE, GREEN, PURPLE, SKY, RED, YELLOW]
MARKERS = ["o", "^", "s", "D", "v", "P", "X"]
GREY = "#8A8A8A"
INK = "#222222"
# For letters that Matplotlib's own font lacks, where one of these is installed.
OTHER_FONTS = [
    "Noto Sans CJK JP", "Noto Sans CJK SC", "Source Han Sans", "WenQuanYi Zen Hei", "Droid Sans Fallback",
    "Hiragino Sans", "PingFang SC", "Arial Unicode MS", "Noto Sans Arabic", "Noto Sans Devanagari",
]  # fmt: skip


@dataclass
class Results:
    """What the figures are drawn from.

    Attributes:
        config: the workflow's.
        index: the index table, every cell a text.
    """

    config: dict[str, Any]
    index: pd.DataFrame

    @property
    def stacked(self) -> str:
        """Where the tensor lies."""
        return self.config["stacked"]

    @property
    def edited(self) -> np.ndarray:
        """bool (N,): which items have a strength above 0, so that their latent is not their picture's."""
        return (pd.to_numeric(self.index["strength"], errors="coerce") > 0).to_numpy()

    def pair(self, row: int) -> Pair:
        """An item's two pictures; raises ItemError as `measures.pair` does."""
        item = self.index.iloc[row]
        return measures.pair(self.config, item["image"], items.picture_path(self.config, item["id"]))

    def told(self, row: int) -> dict[str, Any]:
        """What names an item in a table."""
        item = self.index.iloc[row]
        return {"row": int(row), "id": item["id"], "strength": float(item["strength"] or 0), "prompt": item["prompt"]}


def contact_sheet(results: Results) -> tuple[Figure, dict[str, Any]]:
    """Inputs beside decoded pictures, an evenly spread choice of the items above strength 0 and of the others."""
    count = len(results.index)
    kinds = [np.flatnonzero(results.edited), np.flatnonzero(~results.edited)]
    few = min(kinds, key=len)
    chosen = [kind[measures.spread(len(kind), max(SHEET_ITEMS - len(few), SHEET_ITEMS // 2))] for kind in kinds]
    entries, shown, unreadable = [], [], []
    for row in sorted(np.concatenate(chosen)):
        try:
            pair = results.pair(row)
        except ItemError as error:
            unreadable.append(results.told(row) | {"reason": str(error)})
            continue
        told = results.told(row)
        shown.append(told | {"pictures": [thumbnail(pair.seen), thumbnail(pair.decoded)]})
        # Only small pictures are kept, so that memory does not grow with the size of the large ones.
        entries.append((told, Pair(_fitted(pair.seen, SHEET_SIDE), _fitted(pair.decoded, SHEET_SIDE))))
    return draw_sheet(entries), {"of": count, "shown": shown, "unreadable": unreadable}


def draw_sheet(entries: list[tuple[dict[str, Any], Pair]]) -> Figure:
    """A contact sheet.

    Args:
        entries: for each item what `Results.told` says of it, and its pictures.
    """
    if not entries:
        return _said("No pictures could be read.")
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
            small = _fitted(picture, side)
            canvas.paste(
                small, (left + place * (side + between) + (side - small.width) // 2, top + side - small.height)
            )
        lines = [_cut(told["id"], 32)]
        if told["strength"] > 0:
            lines += textwrap.wrap(
                f"strength {told['strength']:g}: {_plain(told['prompt'])}", 38, max_lines=2, placeholder=" …"
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
    for row in measures.spread(len(results.index), MEASURED):
        try:
            psnr, ssim = measures.errors(results.pair(row))
            measured.append(results.told(row) | {"psnr": round(psnr, 2), "ssim": round(ssim, 4)})
        except ItemError as error:
            unreadable.append(results.told(row) | {"reason": str(error)})
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
        return _said("No pictures could be read."), facts
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
                s=_size(len(measured)),
                c=color,
                marker=marker,
                alpha=0.75,
                linewidths=0,
                label=f"{label} ({len(group)})",
            )
    for number, one in enumerate(still[:3]):
        axes.annotate(
            _cut(one["id"], 24),
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


def latent_map(results: Results) -> tuple[Figure, dict[str, Any]]:
    """The latents on their first two principal components, coloured by a column."""
    found = measures.principal_components(results.stacked)
    column = color_column(results)
    facts = {
        "of": len(results.index),
        "column": column,
        "sampled": found.sampled,
        "shares": [float(share) for share in found.shares[:10]],
    }
    if not len(found.shares):
        few = len(results.index) < 2
        return _said("One item makes no map." if few else "All latents are the same: there is nothing to map."), facts
    figure = Figure(figsize=(WIDTH, 4.6), dpi=DPI, layout="constrained")
    axes, scree = figure.subplots(1, 2, width_ratios=[3, 1])
    x = found.scores[:, 0]
    y = found.scores[:, 1] if found.scores.shape[1] > 1 else np.zeros_like(x)
    axes.set_xlabel(f"1st principal component ({found.shares[0]:.0%} of the variance)")
    axes.set_ylabel(f"2nd ({found.shares[1]:.0%})" if len(found.shares) > 1 else "there is no 2nd")
    axes.margins(0.06)
    kind, groups = colors(results.index[column]) if column else ("none", [Group("items", np.ones(len(x), bool))])
    facts["kind"] = kind
    size = _size(len(x))
    if kind == "numbers":
        numbers = pd.to_numeric(results.index[column], errors="coerce").to_numpy(float)
        blank = np.isnan(numbers)
        axes.scatter(x[blank], y[blank], s=size, facecolors="none", edgecolors=GREY, linewidths=0.7)
        drawn = axes.scatter(x[~blank], y[~blank], s=size, c=numbers[~blank], cmap="viridis", alpha=0.85, linewidths=0)
        bar = figure.colorbar(drawn, ax=axes, location="bottom", shrink=0.7, aspect=40, pad=0.02)
        bar.set_label(_cut(column, 60) + (f" (hollow: {blank.sum()} blank)" if blank.any() else ""))
        bar.solids.set_alpha(1)
    else:
        for number, group in enumerate(groups):
            looks = {
                "blank": {"facecolors": "none", "edgecolors": GREY, "linewidths": 0.7},
                "others": {"c": GREY, "linewidths": 0},
            }.get(group.kind, {"c": PALETTE[number], "linewidths": 0})
            looks |= {"marker": MARKERS[number % len(MARKERS)], "s": size, "alpha": 0.75}
            label = f"{_cut(group.name, 30)} ({group.members.sum():,})"
            axes.scatter(x[group.members], y[group.members], label=label, **looks)
        if kind != "none":
            figure.legend(
                *axes.get_legend_handles_labels(),
                title=_cut(column, 60),
                loc="outside lower center",
                ncols=3,
                markerscale=max(1.0, (20 / size) ** 0.5),
            )
    shares = found.shares[:10]
    scree.bar(range(1, len(shares) + 1), 100 * shares, color=SKY)
    scree.plot(range(1, len(shares) + 1), 100 * np.cumsum(shares), color=INK, marker="o", markersize=3, linewidth=1)
    scree.set(xlabel="principal component", ylabel="% of the variance (line: together)", ylim=(0, 105))
    scree.set_xticks(range(1, len(shares) + 1) if len(shares) < 6 else range(1, len(shares) + 1, 3))
    return figure, facts


def color_column(results: Results) -> str | None:
    """The column that colours the map: the config's, else `treatment` if there is one, else none."""
    chosen = results.config["report_color"]
    if chosen is not None and chosen not in results.index:
        raise items.InputError(f"key report_color: the index table has no column {chosen!r}")
    return chosen or ("treatment" if "treatment" in results.index else None)


class Group(NamedTuple):
    """Items that are drawn alike: `members` is bool (N,), `kind` is `category`, `others` or `blank`."""

    name: str
    members: np.ndarray
    kind: str = "category"


def colors(column: pd.Series) -> tuple[str, list[Group]]:
    """How a column is shown.

    Returns:
        `numbers`, for more than `MOST_CATEGORIES` different ones (and blanks); or `categories` with their groups: the
        frequent ones, by number or by size, then the others together, then the blank ones.
    """
    texts = column.str.strip()
    blank = (texts == "").to_numpy()
    counts = texts[~blank].value_counts()
    numbers = pd.to_numeric(counts.index.to_series(), errors="coerce")
    numeric = len(counts) > 0 and bool(np.isfinite(numbers).all())
    if numeric and len(counts) > MOST_CATEGORIES:
        return "numbers", []
    names = list(counts.index)
    if len(names) > MOST_CATEGORIES:
        names = names[: MOST_CATEGORIES - 1]
    elif numeric:
        names = sorted(names, key=float)
    groups = [Group(name, (texts == name).to_numpy()) for name in names]
    rest = ~blank & ~texts.isin(names).to_numpy()
    groups += [Group(f"{len(counts) - len(names)} others", rest, "others")] if rest.any() else []
    groups += [Group("blank", blank, "blank")] if blank.any() else []
    return "categories", groups


def channel_values(results: Results) -> tuple[Figure, dict[str, Any]]:
    """How the latents' values are distributed in each channel, and which items are far from the others."""
    found = measures.values(results.stacked)
    channels = found.means.shape[1]
    scale = float(np.sqrt(np.mean(found.stds**2) + np.mean(found.means.var(axis=0))))
    tables = {"mean": found.means, "spread": found.stds}
    far = {kind: measures.distances_from_median(table, scale) for kind, table in tables.items()}
    outlying = np.zeros(len(found.means), bool)
    entries = []
    for kind, distances in far.items():
        outlying |= (np.abs(distances) > measures.FAR).any(axis=1)
        for row, channel in np.argwhere(np.abs(distances) > measures.FAR):
            entries.append((abs(float(distances[row, channel])), int(row), int(channel), kind))
    furthest: dict[int, tuple[float, int, int, str]] = {}
    for entry in sorted(entries, reverse=True):
        furthest.setdefault(entry[1], entry)
    named = [
        results.told(row)
        | {"channel": channel, "kind": kind, "value": float(tables[kind][row, channel]),
           "typical": float(np.median(tables[kind][:, channel])), "distance": float(far[kind][row, channel])}
        for _, row, channel, kind in list(furthest.values())[:NAMED]
    ]  # fmt: skip
    facts = {
        "of": len(results.index),
        "shape": list(open_latents(results.stacked).shape),
        "sampled": found.sampled,
        "channels": [
            {"mean": float(found.means[:, c].mean()),
             "std": float(np.sqrt(np.mean(found.stds[:, c] ** 2) + found.means[:, c].var()))}
            for c in range(channels)
        ],
        "outlying": int(outlying.sum()),
        "named": named,
        "far": measures.FAR,
    }  # fmt: skip

    figure = Figure(figsize=(WIDTH, 1.3 + 0.5 * channels), dpi=DPI, layout="constrained")
    panels = figure.subplots(1, 3, sharey=True, width_ratios=[2, 1, 1])
    random = np.random.default_rng(0)
    for channel in range(channels):
        edges, counts = found.edges[channel], found.counts[channel]
        panels[0].stairs(channel - 0.85 * counts / max(1, counts.max()), edges, baseline=channel, fill=True, color=SKY)
        for panel, (kind, table) in zip(panels[1:], tables.items(), strict=True):
            values = table[:, channel]
            bad = np.abs(far[kind][:, channel]) > measures.FAR
            places = channel - 0.42 + random.uniform(-0.3, 0.3, len(values))
            panel.scatter(values[~bad], places[~bad], s=_size(len(values)) / 3, c=BLUE, alpha=0.5, linewidths=0)
            panel.scatter(values[bad], places[bad], s=16, c=RED, marker="^", linewidths=0)
    if outlying.any():
        panels[2].scatter([], [], s=16, c=RED, marker="^", label="outlier")
        figure.legend(loc="outside upper right")
    panels[0].set(
        xlabel="values of the latents", ylabel="channel", yticks=range(channels), ylim=(channels - 0.5, -1.05)
    )
    panels[1].set_xlabel("each item's mean")
    panels[2].set_xlabel("each item's spread")
    for panel in panels:
        panel.grid(axis="y", visible=False)
    return figure, facts


def duplicates(results: Results) -> tuple[Figure, dict[str, Any]]:
    """Items whose latents are the same, or nearly so."""
    count = len(results.index)
    same = [
        list(map(int, group))
        for group in results.index.groupby("sha256", sort=False).indices.values()
        if len(group) > 1
    ]
    same.sort(key=lambda group: group[0])
    found = measures.neighbours(results.stacked, measures.principal_components(results.stacked))
    digests = results.index["sha256"].to_numpy()
    pairs: dict[frozenset[int], tuple[float, int, int]] = {}
    differ = digests[found.rows] != digests[found.nearest]
    near = int((differ & (found.distances < measures.NEAR)).sum())
    for place in np.argsort(found.distances, kind="stable"):
        row, other, distance = int(found.rows[place]), int(found.nearest[place]), float(found.distances[place])
        key = frozenset((row, other))
        # At least the three nearest pairs are told, however far they are.
        if len(pairs) == NAMED or (distance >= measures.NEAR and len(pairs) >= 3):
            break
        if digests[row] != digests[other]:
            pairs.setdefault(key, (distance, min(row, other), max(row, other)))
    facts = {
        "of": count,
        "compared": len(found.rows),
        "same": [[results.told(row) for row in group[:NAMED]] for group in same[:NAMED]],
        "same_groups": len(same),
        "same_items": sum(map(len, same)),
        "near": near,
        "below": measures.NEAR,
        "pairs": [
            {
                "distance": distance,
                "items": [results.told(a), results.told(b)],
                "pictures": [_input(results, a), _input(results, b)],
            }
            for distance, a, b in pairs.values()
        ],
    }
    if not len(found.rows):
        few = count < 2
        return _said("One item has no neighbour." if few else "All latents are the same."), facts
    figure = Figure(figsize=(WIDTH, 3.2), dpi=DPI, layout="constrained")
    axes = figure.subplots()
    top = max(1.0, float(found.distances.max()))
    axes.hist(100 * found.distances, bins=np.linspace(0, 100 * top, 61), color=SKY, edgecolor="white", linewidth=0.3)
    axes.yaxis.get_major_locator().set_params(integer=True)
    axes.axvline(100 * measures.NEAR, color=RED, linestyle="--", linewidth=1)
    axes.text(
        100 * measures.NEAR,
        1.01,
        "left of this: near-duplicates",
        transform=axes.get_xaxis_transform(),
        va="bottom",
        size=8,
        color=RED,
    )
    axes.set(
        xlabel="distance of an item to its nearest other, in % of the typical distance between two items",
        ylabel="items",
        xlim=(0, 100 * top),
    )
    return figure, facts


def run_times(results: Results) -> tuple[Figure, dict[str, Any]]:
    """How long the items took, from their logs."""
    found = [measures.run_time(f"logs/extract/{item_id}.log") for item_id in results.index["id"]]
    known = [(row, *one) for row, one in enumerate(found) if one]
    devices: dict[str, int] = {}
    for _, _, _, device in known:
        devices[device] = devices.get(device, 0) + 1
    computing = np.array([one[1] for one in known])
    facts = {"of": len(found), "known": len(known), "devices": devices}
    if not known:
        return _said("No item's log tells how long it took."), facts
    slowest = sorted(known, key=lambda one: -one[1])[:5]
    facts |= {
        "median": float(np.median(computing)),
        "total": float(computing.sum()),
        "slowest": [results.told(row) | {"seconds": seconds, "whole": whole} for row, seconds, whole, _ in slowest],
    }
    figure = Figure(figsize=(WIDTH, 2.8), dpi=DPI, layout="constrained")
    axes = figure.subplots()
    positive = computing[computing > 0]
    wide = len(positive) and positive.max() > 20 * np.median(positive)
    low, high = (positive.min(), positive.max()) if wide else (0, max(computing.max(), 1e-3))
    bins = np.geomspace(low, high, 51) if wide else np.linspace(low, high * 1.02, 51)
    edited = results.edited[[one[0] for one in known]]
    groups = [(computing[~edited], SKY, "strength 0"), (computing[edited], ORANGE, "edited")]
    groups = [group for group in groups if len(group[0])]
    axes.hist(
        [group[0] for group in groups], bins=bins, stacked=True, color=[group[1] for group in groups],
        label=[f"{group[2]} ({len(group[0]):,})" for group in groups], edgecolor="white", linewidth=0.3,
    )  # fmt: skip
    axes.set(xlabel="seconds of computing per item" + (" (logarithmic)" if wide else ""), ylabel="items")
    axes.yaxis.get_major_locator().set_params(integer=True)
    if wide:
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter("{x:g}")
    axes.legend()
    return figure, facts


FIGURES: dict[str, Callable[[Results], tuple[Figure, dict[str, Any]]]] = {
    "contact_sheet": contact_sheet,
    "reconstruction": reconstruction,
    "map": latent_map,
    "values": channel_values,
    "duplicates": duplicates,
    "run_times": run_times,
}


def draw(name: str, results: Results, picture: str | Path, facts_file: str | Path) -> None:
    """Draw one figure into a PNG file, and write what it tells into a JSON file.

    Raises:
        InputError: tensor and index table do not belong together, or the colour's column is not there.
        TensorError: the tensor is damaged.
    """
    if len(results.index) != len(open_latents(results.stacked)):
        raise items.InputError(f"{results.stacked} and the index table do not belong together: run again")
    style()
    figure, facts = FIGURES[name](results)
    figure.savefig(picture, metadata={"Software": None})
    text = json.dumps(facts, ensure_ascii=False, allow_nan=False)
    Path(facts_file).write_text(text + "\n", encoding="utf-8")


def style() -> None:
    """Set Matplotlib's looks; texts of the user are never taken for mathematics."""
    installed = set(matplotlib.font_manager.get_font_names())
    matplotlib.rcParams |= {
        "font.family": ["DejaVu Sans", *(name for name in OTHER_FONTS if name in installed)],
        "font.size": 9,
        "text.parse_math": False,
        "text.color": INK,
        "axes.labelcolor": INK,
        "axes.edgecolor": GREY,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.grid": True,
        "axes.axisbelow": True,
        "grid.color": "#E6E6E6",
        "grid.linewidth": 0.6,
        "xtick.color": INK,
        "ytick.color": INK,
        "legend.frameon": False,
        "legend.fontsize": 8,
        "axes.formatter.use_mathtext": False,
    }
    warnings.filterwarnings("ignore", message="Glyph .* missing from")


def thumbnail(picture: Image.Image) -> str:
    """A small copy of a picture as a data URI."""
    small = picture.copy()
    small.thumbnail((THUMBNAIL, THUMBNAIL), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    small.save(buffer, "WEBP", quality=82, method=4)
    return "data:image/webp;base64," + base64.b64encode(buffer.getvalue()).decode()


def _thumbnails(results: Results, row: int) -> list[str]:
    pictures = results.pair(row)
    return [thumbnail(pictures.seen), thumbnail(pictures.decoded)]


def _input(results: Results, row: int) -> str | None:
    try:
        return thumbnail(open_picture(results.index["image"].iloc[row])[0])
    except ItemError:
        return None


def _fitted(picture: Image.Image, side: int) -> Image.Image:
    scale = side / max(picture.size)
    size = (max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))
    return picture.resize(size, Image.Resampling.LANCZOS if scale < 1 else Image.Resampling.BICUBIC)


def _size(count: int) -> float:
    """The area of a dot, in square points, so that many do not hide each other."""
    return float(np.clip(6000 / max(1, count), 3, 40))


def _said(text: str) -> Figure:
    figure = Figure(figsize=(WIDTH, 1.2), dpi=DPI)
    figure.text(0.5, 0.5, text, ha="center", va="center", size=10)
    return figure


def _plain(text: str) -> str:
    """One line without control characters, which no font can draw."""
    return "".join(letter if letter.isprintable() else " " for letter in text)


def _cut(text: str, length: int) -> str:
    text = _plain(text)
    return text if len(text) <= length else text[: length - 1] + "…"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--config", type=json.loads, required=True, help="the workflow's config as JSON")
    parser.add_argument("--figure", choices=FIGURES, required=True)
    parser.add_argument("--index", required=True, help="the index table")
    parser.add_argument("--output", type=Path, nargs=2, required=True, help="the PNG file and the JSON file")
    arguments = parser.parse_args()
    try:
        index = measures.read_index(arguments.index)
        draw(arguments.figure, Results(arguments.config, index), *arguments.output)
    except (items.InputError, TensorError, OSError) as error:
        print(error, file=sys.stderr)
        return 1
    print(f"drew {arguments.figure} of {len(index)} items")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
