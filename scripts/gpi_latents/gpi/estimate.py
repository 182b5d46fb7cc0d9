"""The effect of a treatment on an outcome, adjusted for what the latents show. Light until called."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import pandas as pd

from gpi_latents.errors import DataError
from gpi_latents.gpi.checks import Data, checked, is_one, seed_numbers
from gpi_latents.gpi.diagnostics import ASTRAY, EXTREME, LEAST_GAIN, auc, effective, explained, loss, standard_error
from gpi_latents.gpi.effect import Effect, Effects
from gpi_latents.gpi.gpi_pack_import import import_gpi_pack
from gpi_latents.gpi.network import propensities, rows_of, train

# The names are those of gpi_pack.estimate_k_ate, but for the last two.
SETTINGS: dict[str, Any] = {
    "K": 2,  # folds: each row's outcome is predicted by a network that did not see it
    "architecture_z": [64, 64],  # layers from R to the features (the deconfounder); the last is their number
    "architecture_y": [256, 1],  # layers from the features and the treatment to the outcome
    "conv_layers": None,  # convolutions before these; R then stays (n, C, H, W)
    "lr": 3e-3,  # learning rate
    "batch_size": 64,
    "nepoch": 200,  # most epochs
    "patience": 30,  # epochs without a better outcome loss, after which a training stops
    "min_delta": 0.0,  # by how much a loss must be lower to be better
    "valid_perc": 0.2,  # share of a training's rows that decides when it stops
    "step_size": 5,  # epochs without a better loss, after which the learning rate is halved; None: never
    "dropout": 0.0,
    "bn": False,  # batch normalisation
    "ps_model": None,  # class of the propensity model; None: scikit-learn's LogisticRegression
    "ps_model_params": {},  # its arguments
    "trim": [0.01, 0.99],  # propensities outside are set to these; None: none are
    # R is scaled so that its rows have this length (their root mean square), however many values they have; None: it
    # is taken as it is. With a short R, the network's weights of the treatment learn faster than those of R, which
    # shows it too: what is credited to R is lost to the effect.
    "length": 16 / 30,
    # Y and each column of C get mean 0 and standard deviation 1 for the training; the effect is in units of Y.
    "standardize": True,
}
NUMBERS = (int, float, np.number)
NOT_TAKEN = {
    "cluster": "give clusters=...",
    "formula_C": "give C as an array, such as the one that gpi_latents.arrays returns",
    "data": "give C as an array, such as the one that gpi_latents.arrays returns",
    "model_dir": "no files are written",
    "plot_propensity": "the propensities are in the result",
    "verbose": "progress=False hides the progress bar",
}


def estimate(
    R: np.ndarray,
    Y: Any,
    T: Any,
    C: Any = None,
    *,
    seeds: int | Iterable[int] = 5,
    clusters: Any = None,
    progress: bool = True,
    **settings: Any,
) -> Effect | Effects:
    """Estimate the average effect of T on Y, adjusted for the confounders that R shows and for C.

    For each seed: K folds; a network of `gpi_pack` (TarNet) is trained on the other folds to predict Y from R, T and C;
    from its features, the propensity of the treatment is estimated within the fold, each half by a model fitted to the
    other; the effect is the mean of the doubly robust scores (`gpi_pack.dml_score`). The result is the median over the
    seeds, so that it hangs less on one random division of the rows.

    Same arguments give the same numbers. NumPy's and torch's random numbers go on as if nothing had happened, and no
    file is written.

    Args:
        R: latents, float (n, d) or (n, C, H, W); they are flattened unless `conv_layers` is given.
        Y: outcome (n,); or several, which are estimated one by one: (n, outcomes), a DataFrame, or a dict of columns.
        T: treatment (n,), 0 or 1.
        C: covariates to adjust for besides R, (n,) or (n, covariates).
        seeds: how many (0, 1, ...), or the seeds themselves.
        clusters: (n,) labels, such as persons with several images. Rows of one cluster are never divided between
            a model's training and its use, and the standard errors are robust to their dependence.
        progress: show a progress bar of the trainings on stderr.
        settings: any of `gpi_latents.gpi.estimate.SETTINGS`, whose other values are the defaults.

    Returns:
        An `Effect`, or for several outcomes `Effects`, a dict of them by name.

    Raises:
        DataError: the arrays do not fit each other, hold missing values, or are too few; a setting is unknown;
            gpi_pack is not installed.
    """
    chosen = _settings(settings)
    numbers = seed_numbers(seeds)
    data = checked(R, Y, T, C, clusters, chosen)
    shared: dict[str, Any] = {
        "T": data.T,
        "clusters": None if clusters is None else int(data.groups.max()) + 1,
        "settings": chosen,
        "changed": {name: chosen[name] for name in settings if chosen[name] != SETTINGS[name]},
        "gpi_pack": import_gpi_pack().__version__,
    }
    runs = _runs(data, numbers, chosen, progress)
    effects = {name: Effect.of(name, *runs[name], Y=outcome, **shared) for name, outcome in data.outcomes.items()}
    for name, effect in effects.items():
        for text in effect.warnings:
            warnings.warn(f"{name}: {text}", stacklevel=2)
    return next(iter(effects.values())) if is_one(Y) else Effects(effects)


def _runs(
    data: Data, seeds: list[int], settings: dict[str, Any], progress: bool
) -> dict[str, tuple[pd.DataFrame, np.ndarray]]:
    """For each outcome the table `by_seed`, and the propensities, float64 (n,), their median over seeds."""
    from tqdm import tqdm

    runs: dict[str, list[tuple[dict[str, float], np.ndarray]]] = {name: [] for name in data.outcomes}
    total = len(seeds) * len(data.outcomes) * settings["K"]
    with _as_before(), tqdm(total=total, desc="trainings", disable=not progress) as bar:
        for seed in seeds:
            for name, outcome in data.outcomes.items():
                runs[name].append(_one_seed(data, outcome, seed, settings, bar))
    return {
        name: (pd.DataFrame([line for line, _ in found]), np.median([own for _, own in found], axis=0))
        for name, found in runs.items()
    }


def _one_seed(
    data: Data, outcome: np.ndarray, seed: int, settings: dict[str, Any], bar: Any
) -> tuple[dict[str, float], np.ndarray]:
    """The estimate by one seed: a line of the table `by_seed`, and the propensities, float64 (n,)."""
    from sklearn.model_selection import KFold

    T, C, groups = data.T, data.C, data.groups
    centre, unit = (outcome.mean(), outcome.std()) if settings["standardize"] else (0.0, 1.0)
    Y = (outcome - centre) / unit
    predicted = np.empty((2, len(Y)), np.float32)  # outcome if control, if treated
    by_group = np.empty(len(Y))  # the mean of the row's treatment group
    propensity, part = np.empty(len(Y)), np.empty(len(Y), np.int64)
    gains = []
    folds = KFold(settings["K"], shuffle=True, random_state=seed).split(np.arange(groups.max() + 1))
    for fold, (others, own) in enumerate(folds):
        fitted, rows = rows_of(groups, others), rows_of(groups, own)
        C_fitted, C_rows = (None, None) if C is None else (C[fitted], C[rows])
        np.random.seed(seed)  # for a propensity model that draws from it
        network = train(data.R[fitted], Y[fitted], T[fitted], C_fitted, groups[fitted], seed, settings)
        R = data.R[rows]
        for arm in (0, 1):
            values, features = network.predict(R, np.full(len(rows), arm), C_rows)
            predicted[arm, rows] = values.cpu().numpy().ravel()
            by_group[rows[T[rows] == arm]] = Y[fitted[T[fitted] == arm]].mean()
        if not np.isfinite(predicted[:, rows]).all():
            raise DataError(f"A training with seed {seed} went astray and predicts no numbers: give a smaller lr")
        found, half = propensities(features.cpu().numpy(), T[rows], groups[rows], seed, settings)
        propensity[rows], part[rows] = found, 2 * fold + half
        fitted_loss = loss(Y[rows], np.where(T[rows] == 1, predicted[1, rows], predicted[0, rows]))
        gains.append(1 - fitted_loss / loss(Y[rows], by_group[rows]))
        bar.update()
    used = np.clip(propensity, *(settings["trim"] or (0.0, 1.0)))
    scores = unit * _scores(T, Y, used, predicted, seed)
    line = {
        "seed": seed,
        "estimate": scores.mean(),
        "standard_error": standard_error(scores, groups),
        "outcome_loss": unit**2 * loss(Y, np.where(T == 1, predicted[1], predicted[0])),
        "means_loss": unit**2 * loss(Y, by_group),
        "idle_trainings": sum(gain < LEAST_GAIN for gain in gains),
        "astray_trainings": sum(gain < ASTRAY for gain in gains),
        "auc": auc(propensity, T, part),
        "explained": explained(Y, T, used, part),
        "effective_treated": effective(1 / used[T == 1]),
        "effective_control": effective(1 / (1 - used[T == 0])),
        "extreme": ((used < EXTREME) | (used > 1 - EXTREME)).mean(),
        "trimmed": (used != propensity).mean(),
    }
    return line, used


def _scores(T: np.ndarray, Y: np.ndarray, propensity: np.ndarray, predicted: np.ndarray, seed: int) -> np.ndarray:
    """The doubly robust scores, float64 (n,); `predicted` holds the outcomes if control and if treated, (2, n)."""
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        scores = import_gpi_pack().dml_score(T, Y, propensity, predicted[1], predicted[0])
    if bad := int((~np.isfinite(scores)).sum()):
        # Left in, they would make the estimate of this seed no number, and the median over seeds would skip it.
        raise DataError(
            f"With seed {seed}, the propensities of {bad} of {len(T)} rows are 0 or 1, or no numbers, so these rows "
            "have no weight: give trim, such as trim=[0.01, 0.99], or another ps_model"
        )
    return scores


@contextlib.contextmanager
def _as_before() -> Iterator[None]:
    """Random numbers and threads are put back; one thread, as the last digits of sums differ with their number."""
    import torch
    from threadpoolctl import threadpool_limits

    threads, state = torch.get_num_threads(), np.random.get_state()
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())), threadpool_limits(1):
        torch.set_num_threads(1)
        try:
            yield
        finally:
            torch.set_num_threads(threads)
            np.random.set_state(state)


def _settings(given: dict[str, Any]) -> dict[str, Any]:
    """All settings, those given and the defaults of the others."""
    for name in given:
        if name in NOT_TAKEN:
            raise DataError(f"estimate takes no setting {name!r}: {NOT_TAKEN[name]}")
        if name not in SETTINGS:
            raise DataError(f"estimate knows no setting {name!r}. Its settings: {', '.join(SETTINGS)}")
    chosen = SETTINGS | given
    if not isinstance(chosen["K"], int | np.integer) or chosen["K"] < 2:
        raise DataError(f"K, the number of folds, must be 2 or more, not {chosen['K']!r}")
    share, length = chosen["valid_perc"], chosen["length"]
    if not (isinstance(share, NUMBERS) and 0 < share < 1):  # scikit-learn takes 1 and more as a number of rows
        raise DataError(f"valid_perc, a share of the rows, must be between 0 and 1, not {share!r}")
    if length is not None and not (isinstance(length, NUMBERS) and 0 < length < np.inf):
        raise DataError(f"length must be a number above 0, or None, not {length!r}")
    return chosen | {"trim": _bounds(chosen["trim"])}


def _bounds(trim: Any) -> list[float] | None:
    """The lower and the upper bound of the propensities; None if there are none."""
    if trim is None:
        return None
    try:
        bounds = sorted(float(bound) for bound in trim)
    except (TypeError, ValueError):
        bounds = []
    if len(bounds) != 2 or not 0 <= bounds[0] < bounds[1] <= 1:
        raise DataError(f"trim must be two numbers from 0 to 1, such as [0.01, 0.99], or None, not {trim!r}")
    return bounds
