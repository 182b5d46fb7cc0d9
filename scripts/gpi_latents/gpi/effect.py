"""The result of `estimate`."""

from __future__ import annotations

import dataclasses
import html
from typing import Any

import numpy as np
import pandas as pd

from gpi_latents.gpi.diagnostics import cautions

NORMAL = 1.959964  # a 95 % interval is the estimate +- this many standard errors


@dataclasses.dataclass(frozen=True, repr=False)
class Effect:
    """An estimated average effect of a treatment, with what an article needs."""

    outcome: str  # its name
    estimate: float  # in units of the outcome
    standard_error: float
    interval: tuple[float, float]  # 95 %
    difference_in_means: float  # treated less control, not adjusted for anything
    by_seed: pd.DataFrame  # a line for each seed; the columns are explained in docs/estimation.md
    propensity: np.ndarray  # float64 (n,), of each row of T: out of fold, trimmed, median over seeds
    n: int
    n_treated: int
    clusters: int | None  # their number
    settings: dict[str, Any]
    changed: dict[str, Any]  # the settings that are not the defaults
    warnings: list[str]

    @classmethod
    def of(
        cls,
        outcome: str,
        by_seed: pd.DataFrame,
        propensity: np.ndarray,
        *,
        Y: np.ndarray,
        T: np.ndarray,
        clusters: int | None,
        settings: dict[str, Any],
        changed: dict[str, Any],
    ) -> Effect:
        """Sum up the seeds: the median estimate; its variance, the median of standard_error^2 + (estimate - median)^2.

        That is Definition 3.3 of Chernozhukov, Chetverikov, Demirer, Duflo, Hansen, Newey and Robins (2018),
        "Double/debiased machine learning for treatment and structural parameters", The Econometrics Journal 21:
        the variance has a part for how far the estimates of the seeds are from each other.
        """
        middle = float(by_seed["estimate"].median())
        error = float(np.sqrt((by_seed["standard_error"] ** 2 + (by_seed["estimate"] - middle) ** 2).median()))
        treated = int(T.sum())
        return cls(
            outcome=outcome,
            estimate=middle,
            standard_error=error,
            interval=(middle - NORMAL * error, middle + NORMAL * error),
            difference_in_means=float(Y[T == 1].mean() - Y[T == 0].mean()),
            by_seed=by_seed,
            propensity=propensity,
            n=len(T),
            n_treated=treated,
            clusters=clusters,
            settings=settings,
            changed=changed,
            warnings=cautions(by_seed, settings["K"], treated, len(T) - treated, clusters),
        )

    def _lines(self) -> dict[str, str]:
        """What an article needs, by heading."""
        middle = self.by_seed.median()
        lower, upper = self.interval
        gain = 1 - middle["outcome_loss"] / middle["means_loss"]
        seeds = ", ".join(str(seed) for seed in self.by_seed["seed"])
        rows = f"{self.n} ({self.n_treated} treated, {self.n - self.n_treated} control)"
        return {
            "estimate": f"{self.estimate:.3g}",
            "standard error": f"{self.standard_error:.3g}",
            "95% interval": f"{lower:.3g} to {upper:.3g}",
            "not adjusted": f"{self.difference_in_means:.3g} (difference in means)",
            "rows": rows + ("" if self.clusters is None else f" in {self.clusters} clusters"),
            "method": f"gpi_pack, K = {self.settings['K']}, median over {len(self.by_seed)} seeds ({seeds})",
            "propensities": f"{self.propensity.min():.2f} to {self.propensity.max():.2f}, AUC {middle['auc']:.2f}",
            "effective rows": f"{middle['effective_treated']:.0f} treated, {middle['effective_control']:.0f} control",
            "outcome model": f"explains {gain:.0%} of the variance within treatment groups, out of fold",
            "settings": ", ".join(f"{name}={value!r}" for name, value in self.changed.items()) or "defaults",
        }

    def __repr__(self) -> str:
        lines = [f"Effect on {self.outcome}", *(f"  {name:<16}{text}" for name, text in self._lines().items())]
        return "\n".join(lines + [f"  warning: {text}" for text in self.warnings])

    def _repr_html_(self) -> str:
        rows = "".join(f"<tr><th>{name}</th><td>{html.escape(text)}</td></tr>" for name, text in self._lines().items())
        notes = "".join(f"<p><b>Warning.</b> {html.escape(text)}</p>" for text in self.warnings)
        return f"<table><caption>Effect on {html.escape(self.outcome)}</caption>{rows}</table>{notes}"


class Effects(dict[str, Effect]):
    """The effects on several outcomes, by name."""

    def table(self) -> pd.DataFrame:
        """A line for each outcome."""
        lines = {
            name: {
                "estimate": effect.estimate,
                "standard_error": effect.standard_error,
                "lower": effect.interval[0],
                "upper": effect.interval[1],
                "difference_in_means": effect.difference_in_means,
                "n": effect.n,
                "warnings": len(effect.warnings),
            }
            for name, effect in self.items()
        }
        return pd.DataFrame.from_dict(lines, orient="index")

    def _warnings(self) -> list[str]:
        return [f"{name}: {text}" for name, effect in self.items() for text in effect.warnings]

    def __repr__(self) -> str:
        return "\n".join([self.table().to_string(float_format="{:.3g}".format), *self._warnings()])

    def _repr_html_(self) -> str:
        notes = "".join(f"<p><b>Warning.</b> {html.escape(text)}</p>" for text in self._warnings())
        return self.table().to_html(float_format="{:.3g}".format) + notes
