"""How far the latents tell the two groups of the treatment apart: overlap, and what stands in its way.

Nothing here is an estimate of an effect, and no outcome is looked at but whether it is missing.
"""

from __future__ import annotations

import itertools
import re
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from gpi_latents.plan import BOOLEANS, MISSING, NUMBER, has_draws
from gpi_latents.report import style, svg
from gpi_latents.report.facts import Results

FOLDS = 5
FEWEST = 2 * FOLDS  # items that a group must have, so that each fold holds out two
PENALTIES = np.logspace(-2, 2, 5)  # that are tried for the regression: its C, the inverse of the penalty
LIMITS = (0.05, 0.95)  # propensities beyond which an item has few like it in the other group
NEAREST = 1e-6  # that a propensity may be to 0 or 1, so that its weight is a number
HIGH = 0.9  # area under the curve from which the latents give the treatment away
CLEAR = 0.7  # and from which they tell a good deal about it
Z = 1.959964  # of a 95 % interval

MEANINGS = {
    "none": "The latents hardly tell the two groups apart, so by them there is little to adjust for. This says nothing "
    "about differences between the groups that the latents do not hold.",
    "unsure": "The interval reaches from no difference between the groups to a clear one: there are too few items to "
    "say how far the latents tell the groups apart. Adjust for the latents as planned, and do not read this as a sign "
    "that there is nothing to adjust for.",
    "some": "The latents tell the two groups apart in part: the groups differ by more than chance. Where what differs "
    "also drives the outcome, the plain difference between the groups is not the effect of the treatment.",
    "high": "The latents nearly give the treatment away: either the picture shows the treatment itself, or the two "
    "groups hardly overlap. An estimate that adjusts for all that the latents hold then leans on few items or on "
    "guesses where there are none, so look at the propensities and warnings of the estimate itself before you trust it "
    "(docs/validation.md).",
}


class Groups(NamedTuple):
    """Two groups of items: their `names` as in the sheet, the lower value first; `member` is float (N,), 0 or 1 for a
    group and NaN where the cell is blank."""

    names: list[str]
    member: np.ndarray


def overlap(results: Results) -> tuple[Figure, dict[str, Any]]:
    """How likely each item is to be in the second group, as its latent tells it, and what that means."""
    items, scores = by_item(results)
    facts: dict[str, Any] = {
        "of": len(items),
        "missing_treatment": int(is_blank(items["treatment"]).sum()),
        "missing_outcome": int(is_blank(items["outcome"]).sum()) if "outcome" in items else None,
        "reason": None,
    }
    found = two_groups(items["treatment"])
    if not isinstance(found, str) and not scores[~np.isnan(found.member)].std(axis=0).any():
        found = "Fewer than two different latents: they tell nothing about the treatment."
    if isinstance(found, str):
        return style.text_figure(style.cut(found, 120)), facts | {"reason": found}
    known = ~np.isnan(found.member)
    member = found.member[known].astype(int)
    chance, folds = propensities(scores[known], member)
    area = area_under_curve(chance, member, folds)
    low, high = interval(area, ones=int(member.sum()), others=int((1 - member).sum()))
    meaning = verdict(area, low, high)
    facts |= {
        "components": scores.shape[1],
        "folds": FOLDS,
        "auc": area,
        "interval": [low, high],
        "limits": LIMITS,
        "groups": [
            _group_facts(name, items[known][member == number], (chance if number else 1 - chance)[member == number])
            for number, name in enumerate(found.names)
        ],
        "warn": meaning == "high",
        "meaning": MEANINGS[meaning],
    }
    for group in facts["groups"] if meaning == "high" else []:
        # Without any item like it in the other group, each of a group's items weighs 1, as if nothing were lost.
        group["effective"] = group["effective"] if group["outside"] <= 0.5 else None
    return draw_overlap(chance, member, found.names), facts


def by_item(results: Results) -> tuple[pd.DataFrame, np.ndarray]:
    """One line per item, and its scores on the principal components, float64 (items, k).

    An item with several draws has the mean of their scores, so that no draw helps to predict another.
    """
    scores = results.components.scores.astype(np.float64)
    if not has_draws(results.index):
        return results.index, scores
    numbers, _ = pd.factorize(results.index["item"])
    means = pd.DataFrame(scores).groupby(numbers).mean().to_numpy().reshape(-1, scores.shape[1])
    return results.index.groupby(numbers).first(), means


def is_blank(cells: pd.Series) -> np.ndarray:
    """bool (N,): which cells of a column of texts hold no value."""
    return cells.str.strip().isin(MISSING).to_numpy()


def two_groups(cells: pd.Series) -> Groups | str:
    """The two groups that a column of texts makes, or a sentence why it makes none.

    Args:
        cells: numbers or booleans, in which case `1`, `1.0` and `TRUE` are the same, or texts.
    """
    texts = cells.str.strip()
    filled = texts[~is_blank(cells)]
    if filled.empty:
        return "The column treatment is blank for all items."
    values: pd.Series = filled.replace({text: str(int(value)) for text, value in BOOLEANS.items()})
    if values.str.fullmatch(NUMBER, flags=re.ASCII).all():
        values = values.astype(float)
    names = filled.groupby(values).first()  # sorted by value
    if len(names) == 1:
        return f"All items have the treatment {names.iloc[0]}: there are no groups to compare."
    if len(names) > 2:
        return f"The column treatment has {len(names):,} different values: overlap is shown for two, such as 0 and 1."
    counts = values.value_counts()
    if counts.min() < FEWEST:
        plural = "s" if counts.min() > 1 else ""
        return (
            f"Only {counts.min()} item{plural} with the treatment {names[counts.idxmin()]}: overlap is shown from "
            f"{FEWEST} items in each group on."
        )
    member = values.map({value: number for number, value in enumerate(names.index)}).reindex(cells.index)
    return Groups(list(names), member.to_numpy(float))


def propensities(scores: np.ndarray, member: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """How likely each item is to be in group 1, by models that have not seen it.

    Logistic regression with a ridge penalty, which is chosen within the items that a model sees, by the likelihood.

    Args:
        scores: float64 (n, k), not standardised, so that the penalty weighs less on what the latents differ in most.
        member: int (n,), 0 or 1, at least `FEWEST` of each.

    Returns:
        The probabilities, float64 (n,), and the fold, int (n,), in which each item was held out.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import GridSearchCV, StratifiedKFold, cross_val_predict

    folds = StratifiedKFold(FOLDS, shuffle=True, random_state=0)
    regression = LogisticRegression(solver="newton-cholesky")
    chosen = GridSearchCV(regression, {"C": PENALTIES}, scoring="neg_log_loss", cv=folds)
    scaled = scores / scores.std(axis=0).max()
    parts = list(folds.split(scaled, member))
    chance = cross_val_predict(chosen, scaled, member, cv=parts, method="predict_proba")[:, 1]
    held_out = np.empty(len(member), int)
    for number, (_, rows) in enumerate(parts):
        held_out[rows] = number
    return chance.clip(NEAREST, 1 - NEAREST), held_out


def area_under_curve(chance: np.ndarray, member: np.ndarray, folds: np.ndarray) -> float:
    """The area under the ROC curve, as the mean over folds.

    Items of different folds are not compared: their propensities come from different models, whose levels differ most
    when there is nothing to predict (LeDell, Petersen and van der Laan 2015).
    """
    from sklearn.metrics import roc_auc_score

    areas = [roc_auc_score(member[folds == fold], chance[folds == fold]) for fold in range(FOLDS)]
    return float(np.mean(areas))


def interval(area: float, ones: int, others: int) -> tuple[float, float]:
    """A 95 % interval of an area under the curve that is the mean over `FOLDS` folds.

    The variance is Hanley and McNeil's (1982) of each fold, divided by the folds, and raised because their models learn
    from much the same items (Nadeau and Bengio 2003, Machine Learning 52: 239-281): without that, intervals for a
    treatment by chance were a third too short, tried with 24 to 300 items. The ends are the areas whose own standard
    error puts the one that was found at the edge (Newcombe 2006, Statistics in Medicine 25: 559-573), so that the
    interval stays within 0 and 1 and does not shrink to a point at 1.

    Args:
        area: that was found.
        ones: the number of items in the group whose propensities these are.
        others: that of the other group.
    """
    areas = np.linspace(0, 1, 10001)
    both_above = areas / (2 - areas) - areas**2
    both_below = 2 * areas**2 / (1 + areas) - areas**2
    # Times ones * others; every fold has a share of both groups.
    variance = FOLDS * areas * (1 - areas) + (ones - FOLDS) * both_above + (others - FOLDS) * both_below
    raised = 1 + FOLDS / (FOLDS - 1)  # the items that a model has not seen are a quarter of those that it has
    errors = np.sqrt(raised * variance.clip(0) / (ones * others))
    inside = areas[np.abs(areas - area) <= Z * errors + 1e-4]
    return float(inside.min()), float(inside.max())


def verdict(area: float, low: float, high: float) -> str:
    """Which of the `MEANINGS` an area under the curve with its interval has."""
    if low > 0.5:
        return "high" if area >= HIGH else "some"
    return "none" if high < CLEAR else "unsure"


def effective_size(chance: np.ndarray) -> float:
    """How many items a group is worth once each is weighted by 1 / `chance`, the propensity of its own group.

    The square of the weights' sum divided by the sum of their squares (Kish 1965).
    """
    weights = 1 / chance
    return float(weights.sum() ** 2 / (weights**2).sum())


def _group_facts(name: str, items: pd.DataFrame, chance: np.ndarray) -> dict[str, Any]:
    return {
        "name": name,
        "items": len(items),
        "missing_outcome": int(is_blank(items["outcome"]).sum()) if "outcome" in items else None,
        "effective": effective_size(chance),
        "outside": float(np.mean((chance < LIMITS[0]) | (chance > LIMITS[1]))),
    }


def draw_overlap(chance: np.ndarray, member: np.ndarray, names: list[str]) -> Figure:
    """Histograms of the propensities (n,), group 1 upwards and group 0 downwards."""
    figure = style.new_figure(2.8)
    axes = figure.subplots()
    edges = np.linspace(0, 1, 21)
    for number, color in enumerate([style.BLUE, style.ORANGE]):
        counts, _ = np.histogram(chance[member == number], edges)
        bars = axes.bar(edges[:-1], counts if number else -counts, np.diff(edges), align="edge", color=color)
        name = style.cut(names[number], 30)
        bars.set_label(f"treatment {name} ({(member == number).sum():,})")
        spans = [f"{low:.2f} to {high:.2f}" for low, high in itertools.pairwise(edges)]
        tips = [
            f"propensity {span}: {count:,} with treatment {name}" for span, count in zip(spans, counts, strict=True)
        ]
        svg.add_bar_tips(bars, tips)
    axes.axhline(0, color=style.INK, linewidth=0.8)
    for limit in LIMITS:
        axes.axvline(limit, color=style.GREY, linestyle="--", linewidth=1)
    axes.locator_params(axis="y", integer=True)
    axes.yaxis.set_major_formatter(lambda value, _: f"{abs(value):,.0f}")
    axes.set(xlabel=f"propensity of treatment {style.cut(names[1], 30)}, from the latent", ylabel="items", xlim=(0, 1))
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(handles[::-1], labels[::-1], loc="outside upper right", ncols=2)
    return figure
