"""The map of the latents, and the columns that can colour it."""

from __future__ import annotations

import json
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from gpi_latents.errors import InputError
from gpi_latents.plan import MISSING, RESULT_COLUMNS
from gpi_latents.report import measures, style, svg
from gpi_latents.report.facts import Results

MOST_CATEGORIES = 7
MOST_CHOICES = 20
NO_CHOICES = {"row", "id", "item", "image", "prompt", *RESULT_COLUMNS}


def latent_map(results: Results) -> tuple[Figure, dict[str, Any]]:
    """The latents on their first two principal components, coloured by a column.

    Facts: `of` all items, how many are `shown`; from how many the axes were `sampled`; the `shares` of variance of the
    first ten; the `column` of the colours and its `kind`.
    """
    found = results.components
    column = color_column(results)
    rows = shown_rows(len(results.index))
    facts: dict[str, Any] = {
        "of": len(results.index),
        "shown": len(rows),
        "column": column,
        "sampled": found.sampled,
        "shares": [float(share) for share in found.shares[:10]],
    }
    if not len(found.shares):
        return style.text_figure("Fewer than two different latents: there is nothing to map."), facts
    cells = results.index[column] if column else None
    everything = [Group("items", np.ones(len(results.index), bool))]
    facts["kind"], groups = ("none", everything) if cells is None else color_groups(cells)
    return draw_map(found, results.index["id"], rows, cells, groups), facts


def shown_rows(count: int) -> np.ndarray:
    """The rows of the index table that have a dot."""
    return measures.evenly_spaced(count, style.MOST_POINTS)


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


def choices(index: pd.DataFrame, drawn: str | None) -> str:
    """The columns by which a reader of the page can colour the map, for templates/map.js.

    Args:
        index: the index table, every cell a text.
        drawn: the column that colours it already.

    Returns:
        JSON of a list, at most `MOST_CHOICES` long: of each its `name` and, for the dots in the order of their rows,
        its `numbers` (null where blank); or its `groups`, with `name` and `kind`, and which of these each dot is `of`.
    """
    rows = shown_rows(len(index))
    found: list[dict[str, Any]] = []
    for name in [name for name in index if name not in NO_CHOICES and name != drawn]:
        kind, groups = color_groups(index[name])
        if kind == "numbers":
            numbers = pd.to_numeric(index[name].iloc[rows], errors="coerce").astype(float)
            found.append({"name": name, "numbers": [None if np.isnan(number) else number for number in numbers]})
        elif len(groups) > 1:
            of = np.argmax([group.members[rows] for group in groups], axis=0)
            names = [{"name": style.cut(group.name, 30), "kind": group.kind} for group in groups]
            found.append({"name": name, "groups": names, "of": of.tolist()})
    return json.dumps(found[:MOST_CHOICES], ensure_ascii=False, allow_nan=False)


def draw_map(
    found: measures.Map, ids: pd.Series, rows: np.ndarray, cells: pd.Series | None, groups: list[Group]
) -> Figure:
    """A dot for each of `rows`, coloured by groups or, if there are none, by the numbers in a column's cells."""
    figure = style.new_figure(5.6)
    axes, scree = figure.subplots(2, 1, height_ratios=[4, 1])
    x = found.scores[:, 0]
    y = found.scores[:, 1] if found.scores.shape[1] > 1 else np.zeros_like(x)
    axes.set_xlabel(f"component 1 ({found.shares[0]:.0%} of the variance)".replace("%", " %"))
    second = f"component 2 ({found.shares[1]:.0%} of the variance)" if len(found.shares) > 1 else "no component 2"
    axes.set_ylabel(second.replace("%", " %"))
    axes.margins(0.06)
    axes.set_aspect("equal", adjustable="datalim")  # so that distances can be compared in all directions
    labels = [f"{item} (row {row})" for row, item in ids.items()]
    if cells is not None:
        labels = [f"{label}, {cells.name}: {style.cut(cell, 60)}" for label, cell in zip(labels, cells, strict=True)]
    shown = np.zeros(len(x), bool)
    shown[rows] = True
    size = style.dot_size(len(rows))
    hollow: dict[str, Any] = {"facecolors": "none", "edgecolors": style.GREY, "linewidths": 0.7}

    def scatter(members: np.ndarray, **looks: Any) -> Any:
        these = np.flatnonzero(members & shown)
        dots = axes.scatter(x[these], y[these], s=size, **looks)
        svg.add_tips(dots, these, [labels[row] for row in these])
        return dots

    legends = []  # ours, since Matplotlib leaves out names that begin with _
    for number, group in enumerate(groups):
        color = style.GREY if group.kind == "others" else style.COLORS[number % len(style.COLORS)]
        looks = hollow if group.kind == "blank" else {"c": color, "linewidths": 0}
        label = f"{style.cut(group.name, 30)} ({group.members.sum():,})"
        dots = scatter(group.members, marker=style.MARKERS[number % len(style.MARKERS)], alpha=0.75, **looks)
        legends.append((dots, label))
    if cells is not None and groups:
        larger = max(1.0, (20 / size) ** 0.5)
        title = style.cut(str(cells.name), 60)
        handles, names = zip(*legends, strict=True)
        legend = figure.legend(handles, names, title=title, loc="outside upper left", ncols=3, markerscale=larger)
        legend.set_gid("legend")
    elif cells is not None:
        numbers = pd.to_numeric(cells, errors="coerce").to_numpy(float)
        blank = np.isnan(numbers)
        scatter(blank, **hollow)
        dots = scatter(~blank, c=numbers[~blank & shown], cmap="viridis", alpha=0.85, linewidths=0)
        bar = figure.colorbar(dots, ax=axes, location="top", shrink=0.7, aspect=40, pad=0.02)
        bar.set_label(style.cut(str(cells.name), 60) + (f" (hollow: {blank.sum()} blank)" if blank.any() else ""))
        bar.ax.set_gid("legend")
        if bar.solids is not None:
            bar.solids.set(alpha=1, rasterized=True)
    _draw_shares(scree, found.shares[:10])
    return figure


def _draw_shares(axes: Axes, shares: np.ndarray) -> None:
    places = range(1, len(shares) + 1)
    bars = axes.bar(places, 100 * shares, color=style.SKY)
    svg.add_bar_tips(bars, [f"component {place}: {share:.1%}" for place, share in zip(places, shares, strict=True)])
    axes.plot(places, 100 * np.cumsum(shares), color=style.INK, marker="o", markersize=3, linewidth=1)
    axes.set(xlabel="component", ylabel="% of variance\n(line: together)", ylim=(0, 109), xticks=places)
