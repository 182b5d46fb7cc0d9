"""Figures of latents and of the run."""

from __future__ import annotations

import os
from collections import Counter
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from gpi_latents import paths
from gpi_latents.plan import has_draws
from gpi_latents.report import measures, style, svg
from gpi_latents.report.facts import NAMED, Results
from gpi_latents.tensors.tensor_file import open_latents

MOST_AT_ONCE = 1000  # items on the machines of a cluster; with more, dates cannot be those of the run


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
    outlying = {kind: np.abs(distances) > measures.FAR for kind, distances in far.items()}
    return draw_values(found, outlying, results.index["id"]), facts


def draw_values(found: measures.Values, outlying: dict[str, np.ndarray], ids: pd.Series) -> Figure:
    """A histogram per channel, and a dot per item for its mean and its spread; `outlying` is bool (N, C) of each.

    Of many dots, those that are no outliers are one picture.
    """
    count, channels = found.means.shape
    figure = style.new_figure(1 + 0.42 * channels)
    panels = figure.subplots(1, 3, sharey=True, width_ratios=[1.4, 1, 1])
    random = np.random.default_rng(0)
    many = 2 * count * channels > style.MOST_POINTS
    usual: dict[str, Any] = {"c": style.BLUE, "alpha": 0.5, "s": style.dot_size(count) / 3, "rasterized": many}
    unusual: dict[str, Any] = {"c": style.RED, "marker": "^", "s": 16}
    for channel in range(channels):
        heights = 0.85 * found.counts[channel] / max(1, found.counts[channel].max())
        panels[0].stairs(channel - heights, found.edges[channel], baseline=channel, fill=True, color=style.SKY)
        for panel, table, kind in zip(panels[1:], (found.means, found.stds), outlying, strict=True):
            values = table[:, channel]
            outlies = outlying[kind][:, channel]
            places = channel - 0.42 + random.uniform(-0.3, 0.3, (count,))
            tips = [f"{item} (row {row}), {kind} {values[row]:.3g}" for row, item in enumerate(ids)]
            some = np.flatnonzero(outlies)[: style.MOST_POINTS // (2 * channels)]
            for rows, looks in ((np.flatnonzero(~outlies), usual), (some, unusual)):
                dots = panel.scatter(values[rows], places[rows], linewidths=0, **looks)
                svg.add_tips(dots, rows, [tips[row] for row in rows])
    if any(bad.any() for bad in outlying.values()):
        panels[2].scatter([], [], s=16, c=style.RED, marker="^", label="outlier")
        figure.legend(loc="outside upper right")
    panels[0].set(ylabel="channel", yticks=range(channels), ylim=(channels - 0.5, -1.05))
    for panel, label in zip(panels, ("values", "mean of an item", "spread of an item"), strict=True):
        panel.set_xlabel(label)
        panel.grid(axis="y", visible=False)
        panel.locator_params(axis="x", nbins=4)
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
    return draw_distances(found.distances, results.index["id"].iloc[found.rows]), facts


def same_draws(index: pd.DataFrame) -> int:
    """Of how many items two draws are the same latent."""
    return index["item"][index.duplicated(["item", "sha256"])].nunique() if has_draws(index) else 0


def draw_distances(distances: np.ndarray, ids: pd.Series) -> Figure:
    """A histogram of the distances (n,) to the nearest neighbours of items with these ids."""
    figure = style.new_figure(2.6)
    axes = figure.subplots()
    top, limit = 100 * max(1.0, float(distances.max())), 100 * measures.NEAR
    edges = np.linspace(0, top, 41)
    counts, _ = np.histogram(100 * distances, edges)
    bars = axes.bar(edges[:-1], counts, np.diff(edges), align="edge", color=style.SKY, ec=style.PAPER, linewidth=0.3)
    places = np.digitize(100 * distances, edges[1:-1])
    svg.add_bar_tips(
        bars, [f"{interval(edges, place, ' %')}: {named(list(ids[places == place]))}" for place in range(len(bars))]
    )
    axes.locator_params(axis="y", integer=True)
    axes.axvline(limit, color=style.RED, linestyle="--", linewidth=1)
    above: dict[str, Any] = {"transform": axes.get_xaxis_transform(), "va": "bottom"}
    axes.text(limit, 1.01, "left of this: near-duplicates", color=style.RED, **above)
    axes.set(xlabel="distance to the nearest other item, in % of the typical one", ylabel="items", xlim=(0, top))
    return figure


def interval(edges: np.ndarray, place: int, unit: str) -> str:
    """What a bar of a histogram spans."""
    return f"{edges[place]:.3g} to {edges[place + 1]:.3g}{unit}"


def named(ids: list[str]) -> str:
    """The number of items, and their ids if there are few."""
    few = f" ({', '.join(ids)})" if 0 < len(ids) <= 5 else ""
    return f"{len(ids):,} item{'' if len(ids) == 1 else 's'}{few}"


def run_times(results: Results) -> tuple[Figure, dict[str, Any]]:
    """How long the items took, from their logs.

    Facts: `of` all items how many have a log, `known`, and how many of these are on each of the `devices`. In seconds
    of computing, the `median`, the `total` and the `slowest`. By the dates of the logs, the seconds in which any of
    them was in work, `wall`, and so how many were made `per_minute`; None where these are not the dates of the run.
    """
    known = results.logs
    devices = Counter(log.device for log in known.values())
    facts: dict[str, Any] = {"of": len(results.index), "known": len(known), "devices": devices}
    if not known:
        return style.text_figure("No item's log has a run time."), facts
    seconds = np.array([log.seconds for log in known.values()])
    ends = [os.stat(paths.item_log(results.index["id"][row])).st_mtime for row in known]
    wall = busy_seconds(np.array(ends), np.array([log.total_seconds for log in known.values()]))
    sensible = wall > 0 and wall >= seconds.sum() / MOST_AT_ONCE
    facts |= {
        "median": float(np.median(seconds)),
        "total": float(seconds.sum()),
        "wall": wall if sensible else None,
        "per_minute": 60 * len(known) / wall if sensible else None,
        "slowest": [
            results.item_label(row) | {"seconds": known[row].seconds, "whole": known[row].total_seconds}
            for row in sorted(known, key=lambda row: -known[row].seconds)[:5]
        ],
    }
    rows = list(known)
    return draw_run_times(seconds, results.edited[rows], results.index["id"].iloc[rows]), facts


def busy_seconds(ends: np.ndarray, lengths: np.ndarray) -> float:
    """How long any of some intervals lasted, which may overlap, with their ends and lengths in seconds."""
    total, until = 0.0, -np.inf
    for begin, end in sorted(zip(ends - lengths, ends, strict=True)):
        total += max(0.0, end - max(begin, until))
        until = max(until, end)
    return float(total)


def draw_run_times(seconds: np.ndarray, edited: np.ndarray, ids: pd.Series) -> Figure:
    """A histogram of the seconds (n,), those of `edited` items, bool (n,), in another colour."""
    figure = style.new_figure(2.4)
    axes = figure.subplots()
    positive = seconds[seconds > 0]
    wide = len(positive) > 0 and positive.max() > 20 * np.median(positive)
    low, high = (positive.min(), positive.max()) if wide else (0, max(seconds.max(), 1e-3))
    bins = np.geomspace(low, high, 41) if wide else np.linspace(low, high * 1.02, 41)
    below = np.zeros(len(bins) - 1)
    for these, color, name in ((~edited, style.SKY, "strength 0"), (edited, style.ORANGE, "edited")):
        if these.any():
            counts, _ = np.histogram(seconds[these], bins)
            looks: dict[str, Any] = {"color": color, "ec": style.PAPER, "linewidth": 0.3}
            bars = axes.bar(bins[:-1], counts, np.diff(bins), below, align="edge", **looks)
            bars.set_label(f"{name} ({these.sum():,})")
            places = np.digitize(seconds[these], bins[1:-1])
            texts = [named(list(ids[these][places == place])) for place in range(len(counts))]
            svg.add_bar_tips(bars, [f"{interval(bins, place, ' s')}: {text}" for place, text in enumerate(texts)])
            below += counts
    axes.set(xlabel="seconds of computing per item" + (" (logarithmic)" if wide else ""), ylabel="items")
    axes.locator_params(axis="y", integer=True)
    if wide:
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter("{x:g}")
    axes.legend()
    return figure
