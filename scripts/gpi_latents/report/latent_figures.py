"""Figures of latents and of the run."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from gpi_latents import joblog, paths
from gpi_latents.core.pictures import open_picture
from gpi_latents.errors import InputError, ItemError
from gpi_latents.report import measures
from gpi_latents.report.facts import NAMED, Results
from gpi_latents.report.style import (
    BLUE,
    DPI,
    GREY,
    INK,
    MARKERS,
    ORANGE,
    PALETTE,
    RED,
    SKY,
    WIDTH,
    cut,
    dot_size,
    text_figure,
    thumbnail,
)
from gpi_latents.tensors.tensor_file import open_latents

MOST_CATEGORIES = 7


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
        return text_figure(
            "One item makes no map." if few else "All latents are the same: there is nothing to map."
        ), facts
    figure = Figure(figsize=(WIDTH, 4.6), dpi=DPI, layout="constrained")
    axes, scree = figure.subplots(1, 2, width_ratios=[3, 1])
    x = found.scores[:, 0]
    y = found.scores[:, 1] if found.scores.shape[1] > 1 else np.zeros_like(x)
    axes.set_xlabel(f"1st principal component ({found.shares[0]:.0%} of the variance)")
    axes.set_ylabel(f"2nd ({found.shares[1]:.0%})" if len(found.shares) > 1 else "there is no 2nd")
    axes.margins(0.06)
    kind, groups = colors(results.index[column]) if column else ("none", [Group("items", np.ones(len(x), bool))])
    facts["kind"] = kind
    size = dot_size(len(x))
    if kind == "numbers":
        numbers = pd.to_numeric(results.index[column], errors="coerce").to_numpy(float)
        blank = np.isnan(numbers)
        axes.scatter(x[blank], y[blank], s=size, facecolors="none", edgecolors=GREY, linewidths=0.7)
        drawn = axes.scatter(x[~blank], y[~blank], s=size, c=numbers[~blank], cmap="viridis", alpha=0.85, linewidths=0)
        bar = figure.colorbar(drawn, ax=axes, location="bottom", shrink=0.7, aspect=40, pad=0.02)
        bar.set_label(cut(column, 60) + (f" (hollow: {blank.sum()} blank)" if blank.any() else ""))
        bar.solids.set_alpha(1)
    else:
        for number, group in enumerate(groups):
            looks = {
                "blank": {"facecolors": "none", "edgecolors": GREY, "linewidths": 0.7},
                "others": {"c": GREY, "linewidths": 0},
            }.get(group.kind, {"c": PALETTE[number], "linewidths": 0})
            looks |= {"marker": MARKERS[number % len(MARKERS)], "s": size, "alpha": 0.75}
            label = f"{cut(group.name, 30)} ({group.members.sum():,})"
            axes.scatter(x[group.members], y[group.members], label=label, **looks)
        if kind != "none":
            figure.legend(
                *axes.get_legend_handles_labels(),
                title=cut(column, 60),
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
        raise InputError(f"key report_color: the index table has no column {chosen!r}")
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
        results.item_label(row)
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
            panel.scatter(values[~bad], places[~bad], s=dot_size(len(values)) / 3, c=BLUE, alpha=0.5, linewidths=0)
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
        "same": [[results.item_label(row) for row in group[:NAMED]] for group in same[:NAMED]],
        "same_groups": len(same),
        "same_items": sum(map(len, same)),
        "near": near,
        "below": measures.NEAR,
        "pairs": [
            {
                "distance": distance,
                "items": [results.item_label(a), results.item_label(b)],
                "pictures": [_input(results, a), _input(results, b)],
            }
            for distance, a, b in pairs.values()
        ],
    }
    if not len(found.rows):
        few = count < 2
        return text_figure("One item has no neighbour." if few else "All latents are the same."), facts
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
    found = [joblog.read(paths.item_log(item_id)) for item_id in results.index["id"]]
    known = [(row, one.seconds, one.total_seconds, one.device) for row, one in enumerate(found) if one]
    devices: dict[str, int] = {}
    for _, _, _, device in known:
        devices[device] = devices.get(device, 0) + 1
    computing = np.array([one[1] for one in known])
    facts = {"of": len(found), "known": len(known), "devices": devices}
    if not known:
        return text_figure("No item's log tells how long it took."), facts
    slowest = sorted(known, key=lambda one: -one[1])[:5]
    facts |= {
        "median": float(np.median(computing)),
        "total": float(computing.sum()),
        "slowest": [
            results.item_label(row) | {"seconds": seconds, "whole": whole} for row, seconds, whole, _ in slowest
        ],
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


def _input(results: Results, row: int) -> str | None:
    try:
        return thumbnail(open_picture(results.index["image"].iloc[row])[0])
    except ItemError:
        return None
