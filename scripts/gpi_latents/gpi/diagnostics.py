"""What says whether an estimate can be trusted: measures of one seed, and the warnings in words.

docs/validation.md says how often the warnings come where they should, and where they should not.
"""

from __future__ import annotations

import numpy as np
import pandas as pd

EXTREME = 0.05  # propensities below this, or above 1 minus this, are extreme
MOST_EXTREME = 0.1  # share of rows
MOST_TRIMMED = 0.02  # share of rows
LEAST_EFFECTIVE = 0.3  # effective sample size of a treatment group, as a share of its rows
LEAST_GAIN = 0.01  # by how much a training's outcome loss must be lower than that of the group means, as a share
MOST_IDLE = 0.25  # share of trainings that gain less
ASTRAY = -1.0  # gain of a training that went astray: its loss is twice that of the group means
MOST_SPREAD = 1.0  # standard deviation of the estimates over seeds, in standard errors
STRONG_AUC = 0.8  # the features tell the treatment groups apart
# Then the propensities should explain this share of the outcome's variance within groups, and this part of what the
# network explains. Where a confounder drives both, they explain about as much as the network.
LEAST_EXPLAINED = 0.1
LEAST_PART = 0.5
FEW_ROWS = 50  # treated or control
FEW_CLUSTERS = 30


def loss(Y: np.ndarray, predicted: np.ndarray) -> float:
    """Mean squared error."""
    return float(((Y - predicted) ** 2).mean())


def standard_error(scores: np.ndarray, groups: np.ndarray) -> float:
    """Of the mean of scores (n,), whose sums by group are independent; groups int64 (n,), numbered from 0.

    Where each row is a group, this is the standard deviation of the scores over the root of their number, as in
    `gpi_pack`; else the sums' variance with the factor m / (m - 1) for m clusters (Liang and Zeger 1986).
    """
    sums = np.bincount(groups, scores - scores.mean())
    m = len(sums)
    factor = 1.0 if m == len(scores) else m / (m - 1)
    return float(np.sqrt(factor * (sums**2).sum()) / len(scores))


def effective(weights: np.ndarray) -> float:
    """Effective sample size of a weighted mean, (sum of weights)^2 / sum of squared weights (Kish 1965)."""
    return float(weights.sum() ** 2 / (weights**2).sum())


def auc(propensity: np.ndarray, T: np.ndarray, part: np.ndarray) -> float:
    """How well propensities tell treated from control rows: the probability that a treated row's is the higher one.

    0.5 is chance, 1 perfect. Compared within each part of the rows (int64 (n,)), as each part's propensities come from
    a model of its own; the mean over parts with both groups.
    """
    from sklearn.metrics import roc_auc_score

    parts = [part == number for number in np.unique(part)]
    found = [(roc_auc_score(T[own], propensity[own]), own.sum()) for own in parts if 0 < T[own].mean() < 1]
    return float(sum(value * size for value, size in found) / sum(size for _, size in found)) if found else float("nan")


def explained(Y: np.ndarray, T: np.ndarray, propensity: np.ndarray, part: np.ndarray) -> float:
    """The share of the outcome's variance within treatment groups that the propensities explain, 0 to 1.

    The squared correlation of the outcome with the propensity's log-odds, both less their means in the treatment group
    and part of the row: the partial R squared of the outcome on the propensity, given the treatment.
    """
    clipped = np.clip(propensity, 1e-3, 1 - 1e-3)
    values = pd.DataFrame({"Y": Y, "odds": np.log(clipped / (1 - clipped))})
    Y, odds = (values - values.groupby([T, part]).transform("mean")).to_numpy().T
    product = (Y**2).sum() * (odds**2).sum()
    return float((Y @ odds) ** 2 / product) if product > 0 else 0.0


def cautions(by_seed: pd.DataFrame, K: int, treated: int, control: int, clusters: int | None) -> list[str]:
    """What speaks against an estimate, in sentences.

    Args:
        by_seed: as in `Effect`.
        K: folds.
        treated: rows.
        control: rows.
        clusters: their number, or None.
    """
    found = []
    middle = by_seed.median()
    shares = {"treated": middle["effective_treated"] / treated, "control": middle["effective_control"] / control}
    if middle["extreme"] > MOST_EXTREME or middle["trimmed"] > MOST_TRIMMED or min(shares.values()) < LEAST_EFFECTIVE:
        name = min(shares, key=lambda group: shares[group])
        found.append(
            f"Extreme propensities: {middle['extreme']:.0%} of the rows have one below {EXTREME:g} or above "
            f"{1 - EXTREME:g}, {middle['trimmed']:.0%} were trimmed, and the {name} rows count as "
            f"{shares[name]:.0%} of their number. Treated and control images hardly overlap: the estimate hangs "
            "on few rows."
        )
    trainings = K * len(by_seed)
    idle, astray = (int(by_seed[name].sum()) for name in ("idle_trainings", "astray_trainings"))
    if idle > MOST_IDLE * trainings:
        found.append(
            f"Nothing learned: in {idle} of {trainings} trainings, the network predicts the outcome no better than the "
            "mean of each treatment group. Then nothing that the images show was adjusted for: either they show no "
            "cause of the outcome, or the network did not find it."
        )
    elif astray:
        found.append(
            f"A training went astray: in {astray} of {trainings}, the network's outcome loss is more than "
            f"{1 - ASTRAY:g} times that of the mean of each treatment group. Give more seeds, or a lower learning rate."
        )
    spread = by_seed["estimate"].std()
    if spread > MOST_SPREAD * middle["standard_error"]:  # not a number with one seed
        found.append(
            f"Seeds disagree: the estimates of {len(by_seed)} seeds have a standard deviation of {spread:.3g}, more "
            f"than the standard error of one of them ({middle['standard_error']:.3g}). Give more seeds, or more rows."
        )
    gain = 1 - middle["outcome_loss"] / middle["means_loss"]
    if middle["auc"] > STRONG_AUC and middle["explained"] < max(LEAST_EXPLAINED, LEAST_PART * gain):
        found.append(
            f"Leakage: the network's features predict the treatment well (AUC {middle['auc']:.2f}), but what predicts "
            f"it explains only {middle['explained']:.1%} of the outcome's variance within treatment groups (the "
            f"network: {max(gain, 0):.1%}). Confounding would explain more: the features seem to show the treatment "
            "itself, and the estimate may be too close to the difference in means, or to 0."
        )
    if (fewest := min(treated, control)) < FEW_ROWS:
        found.append(f"Few rows: with {fewest} in a treatment group, nobody has shown that the interval holds.")
    if clusters is not None and clusters < FEW_CLUSTERS:
        found.append(f"Few clusters: with {clusters}, standard errors are too small.")
    return found
