"""The tables and the figure of the validation studies."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
from validation.estimators import NAMES

TRUTH = 1.0
READABLE = 0.9  # R squared of the confounder, from which it counts as read from the latents
# How the texts of the warnings begin that speak of what was learned (others speak of few rows or clusters).
WARNINGS = ["Extreme propensities", "Nothing learned", "A training went astray", "Seeds disagree", "Leakage"]
BY = ["study", "scenario", "estimator"]


def summary(estimates: pd.DataFrame) -> pd.DataFrame:
    """How each estimator does in each scenario.

    Args:
        estimates: lines of `study.repeat`.

    Returns:
        By `BY`: `bias`, `RMSE`, `coverage` (of the interval estimate +- 1.96 standard errors), each with its Monte
        Carlo standard error in a column of that name with ` error`; `repetitions`.
    """

    def of(group: pd.DataFrame) -> pd.Series:
        count = len(group)
        error = group["estimate"] - TRUTH
        covered = _is_covered(group).mean()
        rmse = np.sqrt((error**2).mean())
        return pd.Series(
            {
                "bias": error.mean(),
                "bias error": error.std() / np.sqrt(count),
                "RMSE": rmse,
                "RMSE error": (error**2).std() / np.sqrt(count) / (2 * rmse),
                "coverage": covered,
                "coverage error": np.sqrt(covered * (1 - covered) / count),
                "repetitions": count,
            }
        )

    return estimates.groupby(BY, sort=False)[["estimate", "standard_error"]].apply(of)


def _is_covered(estimates: pd.DataFrame) -> pd.Series:
    return (estimates["estimate"] - TRUTH).abs() <= 1.96 * estimates["standard_error"]


def table(estimates: pd.DataFrame) -> str:
    """The summary as a Markdown table: bias / RMSE / coverage, with Monte Carlo standard errors in brackets."""
    measured = summary(estimates)
    names = list(dict.fromkeys(estimates["estimator"]))
    lines = [
        f"| study: scenario (repetitions) | {' | '.join(NAMES[name] for name in names)} |",
        f"| --- |{' --- |' * len(names)}",
    ]
    for (study, scenario), group in measured.groupby(level=["study", "scenario"], sort=False):
        cells = [
            f"{values['bias']:+.3f} ({values['bias error']:.3f}) / {values['RMSE']:.3f} ({values['RMSE error']:.3f}) / "
            f"{values['coverage']:.0%} ({values['coverage error']:.0%})"
            for values in (group.loc[(study, scenario, name)] for name in names)
        ]
        lines.append(f"| {study}: {scenario} ({group['repetitions'].iloc[0]:.0f}) | {' | '.join(cells)} |")
    return "\n".join(lines)


def warnings_table(estimates: pd.DataFrame, warned: pd.DataFrame) -> str:
    """How often `gpi_latents.estimate` warns, as a Markdown table.

    By scenario, with how well the latents show the confounder; then of all repetitions with a confounder that can be
    read (false alarms), of those with one that cannot (hits), and of those whose interval misses or covers the truth.
    """
    keys = ["study", "scenario", "repetition"]
    own = estimates[estimates["estimator"] == "estimate"]
    rows = warned.merge(own.assign(covered=_is_covered(own))[[*keys, "covered"]], on=keys)
    rows["any"] = rows[WARNINGS].max(axis=1)
    rows["read"] = rows.groupby(keys[:2])["readable"].transform("mean")
    lines = [
        f"| study: scenario | confounder read, R2 | any warning | {' | '.join(WARNINGS)} |",
        f"| --- | ---: | ---: |{' ---: |' * len(WARNINGS)}",
    ]

    def add(name: str, read: str, group: pd.DataFrame) -> None:
        shares = ["-" if group.empty else f"{group[column].mean():.0%}" for column in ["any", *WARNINGS]]
        lines.append(f"| {name} | {read} | {' | '.join(shares)} |")

    for (study, scenario), group in rows.groupby(keys[:2], sort=False):
        add(f"{study}: {scenario}", f"{group['read'].iloc[0]:.2f}", group)
    parts = {
        f"all with R2 of {READABLE} or more: false alarms": rows["read"] >= READABLE,
        f"all with R2 below {READABLE}: hits": rows["read"] < READABLE,
        "all whose interval covers the truth": rows["covered"],
        "all whose interval misses the truth": ~rows["covered"],
    }
    for name, part in parts.items():
        add(f"**{name}** ({part.sum()} repetitions)", "", rows[part])
    return "\n".join(lines)


def draw_figure(estimates: pd.DataFrame, path: Path) -> None:
    """For each study, the bias in each scenario with 1.96 Monte Carlo standard errors, and the coverage in numbers."""
    import matplotlib.pyplot as plt

    looks = {  # colours of Okabe and Ito
        "naive": ("#D55E00", "s"),
        "components": ("#E69F00", "D"),
        "old": ("#56B4E9", "v"),
        "estimate": ("#0072B2", "o"),
        "oracle": ("#555555", "^"),
    }
    measured = summary(estimates)
    studies = list(estimates["study"].unique())
    figure, axes = plt.subplots(1, len(studies), figsize=(6.5 * len(studies), 5.5), layout="constrained", squeeze=False)
    for axis, study in zip(axes[0], studies, strict=True):
        scenarios = list(estimates.loc[estimates["study"] == study, "scenario"].unique())
        for offset, (name, (colour, marker)) in zip(np.linspace(0.32, -0.32, len(looks)), looks.items(), strict=True):
            values = measured.xs((study, name), level=("study", "estimator"))
            places = np.arange(len(scenarios))[::-1] + offset
            error = 1.96 * values["bias error"]
            axis.errorbar(values["bias"], places, xerr=error, fmt=marker, color=colour, capsize=2, label=NAMES[name])
            for x, y, share in zip(values["bias"] + error, places, values["coverage"], strict=True):
                axis.annotate(f"{share:.0%}", (x, y), (4, 0), "data", "offset points", va="center", fontsize=7)
        axis.axvline(0, color="black", linestyle="--", linewidth=1)
        axis.set_yticks(range(len(scenarios)), scenarios[::-1])
        axis.set_xlabel("bias; the number is the coverage of the 95% interval")
        axis.set_title(study)
        axis.margins(x=0.12)
    figure.legend(*axes[0][0].get_legend_handles_labels(), loc="outside lower center", ncols=3, frameon=False)
    figure.savefig(path, dpi=100)
    plt.close(figure)
