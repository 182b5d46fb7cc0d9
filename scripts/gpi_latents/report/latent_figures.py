"""Figures of latents and of the run."""

from __future__ import annotations

from collections import Counter
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from gpi_latents import joblog, paths
from gpi_latents.errors import InputError
from gpi_latents.plan import MISSING, has_draws
from gpi_latents.report import measures, style
from gpi_latents.report.facts import NAMED, Results
from gpi_latents.tensors.tensor_file import open_latents

MOST_CATEGORIES = 7


def latent_map(results: Results) -> tuple[Figure, dict[str, Any]]:
    """The latents on their first two principal components, coloured by a column."""
    found = results.components
    column = color_column(results)
    facts: dict[str, Any] = {
        "of": len(results.index),
        "column": column,
        "sampled": found.sampled,
        "shares": [float(share) for share in found.shares[:10]],
    }
    if not len(found.shares):
        return style.text_figure("Fewer than two different latents: there is nothing to map."), facts
    cells = results.index[column] if column else None
    everything = [Group("items", np.ones(len(results.index), bool))]
    facts["kind"], groups = ("none", everything) if cells is None else color_groups(cells)
    return draw_map(found, cells, groups), facts


def color_column(results: Results) -> str | None:
    """The column that colours the map: the config's, else `treatment` if there is one, else none."""
    chosen = results.config["report_color"]
    if chosen is not None and chosen not in results.index:
        raise InputError(f"key report_color: the index table has no column {chosen!r}")
    return chosen or ("treatment" if "treatment" in results.index else None)


class Group(NamedTuple):
    """Items that are drawn alike: `members` is bool (N,), `kind` is `category`, `others` or `blank`."""

    name: str
    members: np.ndarray
    kind: str = "category"


def color_groups(column: pd.Series) -> tuple[str, list[Group]]:
    """How a column is shown.

    Returns:
        `numbers`, for more than `MOST_CATEGORIES` different ones (and blanks); or `categories` with their groups: the
        frequent ones, by number or by size, then the others together, then the blank ones.
    """
    texts = column.str.strip()
    blank = texts.isin(MISSING).to_numpy()
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


def draw_map(found: measures.Map, cells: pd.Series | None, groups: list[Group]) -> Figure:
    """A dot per item, coloured by groups or, if there are none, by the numbers in a column's cells."""
    figure = style.new_figure(4.6)
    axes, scree = figure.subplots(1, 2, width_ratios=[3, 1])
    x = found.scores[:, 0]
    y = found.scores[:, 1] if found.scores.shape[1] > 1 else np.zeros_like(x)
    axes.set_xlabel(f"1st principal component ({found.shares[0]:.0%} of the variance)")
    axes.set_ylabel(f"2nd ({found.shares[1]:.0%})" if len(found.shares) > 1 else "there is no 2nd")
    axes.margins(0.06)
    size = style.dot_size(len(x))
    hollow: dict[str, Any] = {"facecolors": "none", "edgecolors": style.GREY, "linewidths": 0.7}
    for number, group in enumerate(groups):
        color = style.GREY if group.kind == "others" else style.COLORS[number % len(style.COLORS)]
        looks = hollow if group.kind == "blank" else {"c": color, "linewidths": 0}
        label = f"{style.cut(group.name, 30)} ({group.members.sum():,})"
        marker = style.MARKERS[number % len(style.MARKERS)]
        axes.scatter(x[group.members], y[group.members], label=label, marker=marker, s=size, alpha=0.75, **looks)
    if cells is not None and groups:
        handles, labels = axes.get_legend_handles_labels()
        title, larger = style.cut(str(cells.name), 60), max(1.0, (20 / size) ** 0.5)
        figure.legend(handles, labels, title=title, loc="outside lower center", ncols=3, markerscale=larger)
    elif cells is not None:
        numbers = pd.to_numeric(cells, errors="coerce").to_numpy(float)
        blank = np.isnan(numbers)
        axes.scatter(x[blank], y[blank], s=size, **hollow)
        drawn = axes.scatter(x[~blank], y[~blank], s=size, c=numbers[~blank], cmap="viridis", alpha=0.85, linewidths=0)
        bar = figure.colorbar(drawn, ax=axes, location="bottom", shrink=0.7, aspect=40, pad=0.02)
        bar.set_label(style.cut(str(cells.name), 60) + (f" (hollow: {blank.sum()} blank)" if blank.any() else ""))
        if bar.solids is not None:
            bar.solids.set_alpha(1)
    _draw_shares(scree, found.shares[:10])
    return figure


def _draw_shares(axes: Axes, shares: np.ndarray) -> None:
    places = range(1, len(shares) + 1)
    axes.bar(places, 100 * shares, color=style.SKY)
    axes.plot(places, 100 * np.cumsum(shares), color=style.INK, marker="o", markersize=3, linewidth=1)
    axes.set(xlabel="principal component", ylabel="% of the variance (line: together)", ylim=(0, 105))
    axes.set_xticks(places if len(shares) < 6 else places[::3])


def channel_values(results: Results) -> tuple[Figure, dict[str, Any]]:
    """How the latents' values are distributed in each channel, and which items are far from the others."""
    found = measures.values(results.stacked)
    tables = {"mean": found.means, "spread": found.stds}
    scale = float(np.sqrt(np.mean(found.stds**2) + np.mean(found.means.var(axis=0))))
    far = {kind: measures.distances_from_median(table, scale) for kind, table in tables.items()}
    entries = [
        (abs(float(distances[row, channel])), int(row), int(channel), kind)
        for kind, distances in far.items()
        for row, channel in np.argwhere(np.abs(distances) > measures.FAR)
    ]
    furthest: dict[int, tuple[int, str]] = {}  # of each outlier, the channel and the kind where it is furthest out
    for _, row, channel, kind in sorted(entries, reverse=True):
        furthest.setdefault(row, (channel, kind))
    facts = {
        "of": len(results.index),
        "shape": list(open_latents(results.stacked).shape),
        "sampled": found.sampled,
        "channels": [
            {"mean": float(means.mean()), "std": float(np.sqrt(np.mean(stds**2) + means.var()))}
            for means, stds in zip(found.means.T, found.stds.T, strict=True)
        ],
        "outlying": len(furthest),
        "named": [
            results.item_label(row)
            | {"channel": channel, "kind": kind, "value": float(tables[kind][row, channel]),
               "typical": float(np.median(tables[kind][:, channel])), "distance": float(far[kind][row, channel])}
            for row, (channel, kind) in list(furthest.items())[:NAMED]
        ],
        "far": measures.FAR,
    }  # fmt: skip
    return draw_values(found, {kind: np.abs(distances) > measures.FAR for kind, distances in far.items()}), facts


def draw_values(found: measures.Values, outlying: dict[str, np.ndarray]) -> Figure:
    """A histogram per channel, and a dot per item for its mean and its spread; `outlying` is bool (N, C) of each."""
    channels = found.means.shape[1]
    figure = style.new_figure(1.3 + 0.5 * channels)
    panels = figure.subplots(1, 3, sharey=True, width_ratios=[2, 1, 1])
    random = np.random.default_rng(0)
    for channel in range(channels):
        heights = 0.85 * found.counts[channel] / max(1, found.counts[channel].max())
        panels[0].stairs(channel - heights, found.edges[channel], baseline=channel, fill=True, color=style.SKY)
        for panel, table, bad in zip(panels[1:], (found.means, found.stds), outlying.values(), strict=True):
            values, bad = table[:, channel], bad[:, channel]
            places = channel - 0.42 + random.uniform(-0.3, 0.3, len(values))
            size = style.dot_size(len(values)) / 3
            panel.scatter(values[~bad], places[~bad], s=size, c=style.BLUE, alpha=0.5, linewidths=0)
            panel.scatter(values[bad], places[bad], s=16, c=style.RED, marker="^", linewidths=0)
    if any(bad.any() for bad in outlying.values()):
        panels[2].scatter([], [], s=16, c=style.RED, marker="^", label="outlier")
        figure.legend(loc="outside upper right")
    panels[0].set(ylabel="channel", yticks=range(channels), ylim=(channels - 0.5, -1.05))
    for panel, label in zip(panels, ("values of the latents", "each item's mean", "each item's spread"), strict=True):
        panel.set_xlabel(label)
        panel.grid(axis="y", visible=False)
    return figure


def duplicates(results: Results) -> tuple[Figure, dict[str, Any]]:
    """Items whose latents are the same, or nearly so; of an item with several draws, the first is compared."""
    groups = results.index.iloc[results.firsts].groupby("sha256", sort=False).indices.values()
    same = sorted((list(results.firsts[group]) for group in groups if len(group) > 1), key=lambda group: group[0])
    found = measures.neighbours(results.stacked, results.components, results.firsts)
    digests = results.index["sha256"].to_numpy()
    differ = digests[found.rows] != digests[found.nearest]
    pairs: dict[tuple[int, int], float] = {}
    for place in np.argsort(found.distances, kind="stable"):
        row, other, distance = int(found.rows[place]), int(found.nearest[place]), float(found.distances[place])
        # At least the three nearest pairs are named, however far they are.
        if len(pairs) == NAMED or (distance >= measures.NEAR and len(pairs) >= 3):
            break
        if differ[place]:
            pairs.setdefault((min(row, other), max(row, other)), distance)
    facts = {
        "of": len(results.firsts),
        "same_draws": same_draws(results.index),
        "compared": len(found.rows),
        "same": [[results.item_label(row) for row in group[:NAMED]] for group in same[:NAMED]],
        "same_groups": len(same),
        "same_items": sum(map(len, same)),
        "near": int((differ & (found.distances < measures.NEAR)).sum()),
        "below": measures.NEAR,
        "pairs": [
            {"distance": distance, "items": [*map(results.item_label, rows)], "pictures": [*map(results.input, rows)]}
            for rows, distance in pairs.items()
        ],
    }
    if not len(found.rows):
        return style.text_figure("Fewer than two different latents: none has a neighbour."), facts
    return draw_distances(found.distances), facts


def same_draws(index: pd.DataFrame) -> int:
    """Of how many items two draws are the same latent."""
    return index["item"][index.duplicated(["item", "sha256"])].nunique() if has_draws(index) else 0


def draw_distances(distances: np.ndarray) -> Figure:
    """A histogram of the distances to the nearest neighbours."""
    figure = style.new_figure(3.2)
    axes = figure.subplots()
    top, limit = 100 * max(1.0, float(distances.max())), 100 * measures.NEAR
    axes.hist(100 * distances, bins=list(np.linspace(0, top, 61)), color=style.SKY, edgecolor="white", linewidth=0.3)
    axes.locator_params(axis="y", integer=True)
    axes.axvline(limit, color=style.RED, linestyle="--", linewidth=1)
    above: dict[str, Any] = {"transform": axes.get_xaxis_transform(), "va": "bottom"}
    axes.text(limit, 1.01, "left of this: near-duplicates", size=8, color=style.RED, **above)
    label = "distance of an item to its nearest other, in % of the typical distance between two items"
    axes.set(xlabel=label, ylabel="items", xlim=(0, top))
    return figure


def run_times(results: Results) -> tuple[Figure, dict[str, Any]]:
    """How long the items took, from their logs."""
    found = {row: joblog.read(paths.item_log(item_id)) for row, item_id in enumerate(results.index["id"])}
    known = {row: log for row, log in found.items() if log}
    devices = Counter(log.device for log in known.values())
    facts: dict[str, Any] = {"of": len(found), "known": len(known), "devices": devices}
    if not known:
        return style.text_figure("No item's log has a run time."), facts
    seconds = np.array([log.seconds for log in known.values()])
    facts |= {
        "median": float(np.median(seconds)),
        "total": float(seconds.sum()),
        "slowest": [
            results.item_label(row) | {"seconds": known[row].seconds, "whole": known[row].total_seconds}
            for row in sorted(known, key=lambda row: -known[row].seconds)[:5]
        ],
    }
    return draw_run_times(seconds, results.edited[list(known)]), facts


def draw_run_times(seconds: np.ndarray, edited: np.ndarray) -> Figure:
    """A histogram of the seconds (N,), those of `edited` items, bool (N,), in another colour."""
    figure = style.new_figure(2.8)
    axes = figure.subplots()
    positive = seconds[seconds > 0]
    wide = len(positive) > 0 and positive.max() > 20 * np.median(positive)
    low, high = (positive.min(), positive.max()) if wide else (0, max(seconds.max(), 1e-3))
    bins = np.geomspace(low, high, 51) if wide else np.linspace(low, high * 1.02, 51)
    kinds = [(seconds[~edited], style.SKY, "strength 0"), (seconds[edited], style.ORANGE, "edited")]
    groups, colors, names = zip(*(kind for kind in kinds if len(kind[0])), strict=True)
    labels = [f"{name} ({len(group):,})" for group, name in zip(groups, names, strict=True)]
    axes.hist(groups, bins=list(bins), stacked=True, color=colors, label=labels, edgecolor="white", linewidth=0.3)
    axes.set(xlabel="seconds of computing per item" + (" (logarithmic)" if wide else ""), ylabel="items")
    axes.locator_params(axis="y", integer=True)
    if wide:
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter("{x:g}")
    axes.legend()
    return figure
