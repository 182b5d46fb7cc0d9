"""The result of `estimate`."""

from __future__ import annotations

import dataclasses
import html
from typing import Any

import numpy as np
import pandas as pd

from gpi_latents.gpi.diagnostics import cautions

NORMAL = 1.959964  # a 95 % interval is the estimate +- this many standard errors


def written(value: float) -> str:
    """A number as an article has it: three digits, or all before the point."""
    return f"{value:.3g}" if abs(value) < 999.5 else f"{value:.0f}"


def _seeds(seeds: list[int]) -> str:
    if len(seeds) == 1:
        return f"seed {seeds[0]}"
    shown = [str(seed) for seed in seeds]
    return (
        f"median over {len(seeds)} seeds ({', '.join(shown if len(seeds) <= 10 else [*shown[:3], '...', shown[-1]])})"
    )


@dataclasses.dataclass(frozen=True, repr=False)
class Effect:
    """An estimated average effect of a treatment, with what an article needs.

    `by_seed` has a line for each seed:

    - `seed`, `estimate`, `standard_error`;
    - `outcome_loss`: the network's mean squared error in rows that it was not trained on, in squared units of the
      outcome; `means_loss`: that of the mean of each treatment group, in the same rows;
    - `idle_trainings`: in how many of the K trainings the former is no lower than the latter; `astray_trainings`: in
      how many it is more than twice the latter;
    - `auc`: how well the propensities tell treated from control rows, 0.5 (chance) to 1; `explained`: the share of the
      outcome's variance within treatment groups that they explain;
    - `effective_treated`, `effective_control`: effective sample sizes, (sum of w)^2 / sum of w^2 for the weights
      w = 1 / propensity of the treated rows and 1 / (1 - propensity) of the control rows;
    - `extreme`, `trimmed`: the shares of rows whose propensity is near 0 or 1, and beyond the bounds `trim`.
    """

    outcome: str  # its name
    estimate: float  # in units of the outcome
    standard_error: float
    interval: tuple[float, float]  # 95 %
    difference_in_means: float  # treated less control, not adjusted for anything
    by_seed: pd.DataFrame
    propensity: np.ndarray  # float64 (n,), of each row of T: out of fold, trimmed, median over seeds
    n: int
    n_treated: int
    clusters: int | None  # their number
    settings: dict[str, Any]
    changed: dict[str, Any]  # the settings that are not the defaults
    gpi_pack: str  # its version
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
        gpi_pack: str,
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
            gpi_pack=gpi_pack,
            warnings=cautions(by_seed, settings["K"], treated, len(T) - treated, clusters),
        )

    def _lines(self) -> dict[str, str]:
        """What an article needs, by heading."""
        middle = self.by_seed.median()
        lower, upper = self.interval
        gain = 1 - middle["outcome_loss"] / middle["means_loss"]
        rows = f"{self.n} ({self.n_treated} treated, {self.n - self.n_treated} control)"
        return {
            "estimate": written(self.estimate),
            "standard error": written(self.standard_error),
            "95% interval": f"{written(lower)} to {written(upper)}",
            "not adjusted": f"{written(self.difference_in_means)} (difference in means)",
            "rows": rows + ("" if self.clusters is None else f" in {self.clusters} clusters"),
            "method": f"gpi_pack {self.gpi_pack}, {self.settings['K']} folds, {_seeds(list(self.by_seed['seed']))}",
            "propensities": f"{self.propensity.min():.2f} to {self.propensity.max():.2f}, AUC {middle['auc']:.2f}",
            "effective rows": f"{middle['effective_treated']:.0f} treated, {middle['effective_control']:.0f} control",
            "outcome model": f"explains {max(gain, 0):.0%} of the variance within treatment groups, out of fold",
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
        return "\n".join([self.table().to_string(float_format=written), *self._warnings()])

    def _repr_html_(self) -> str:
        notes = "".join(f"<p><b>Warning.</b> {html.escape(text)}</p>" for text in self._warnings())
        return self.table().to_html(float_format=written) + notes
