"""What `estimate` is given, checked and brought into shape."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from gpi_latents.errors import DataError

LEAST_ROWS = 10  # treated and control


class Data(NamedTuple):
    """Arrays of n rows."""

    R: np.ndarray  # float32 (n, d) or (n, C, H, W), scaled
    outcomes: dict[str, np.ndarray]  # float64 (n,) by name
    T: np.ndarray  # int64 (n,)
    C: np.ndarray | None  # float64 (n, covariates)
    groups: np.ndarray  # int64 (n,): the number of the cluster, or of the row


def is_one(Y: Any) -> bool:
    """Whether this is one outcome, not several columns."""
    return not isinstance(Y, dict) and np.ndim(Y) == 1


def seed_numbers(seeds: int | Iterable[int]) -> list[int]:
    """The seeds, from how many there are or themselves."""
    try:
        numbers = list(range(seeds)) if isinstance(seeds, int | np.integer) else [int(seed) for seed in seeds]
    except (TypeError, ValueError):
        numbers = []
    if not numbers or len(set(numbers)) < len(numbers) or min(numbers) < 0 or max(numbers) >= 2**32:
        raise DataError(
            f"seeds must be how many (1 or more), or different whole numbers from 0 to 2**32 - 1, not {seeds!r}"
        )
    return numbers


def checked(R: Any, Y: Any, T: Any, C: Any, clusters: Any, settings: dict[str, Any]) -> Data:
    """The arrays, for the arguments and settings of `estimate`.

    Raises:
        DataError: they do not fit each other, hold missing values, or are too few.
    """
    R, outcomes, treatment = _latents(R, settings), _outcomes(Y), _floats(T, "T").ravel()
    covariates = None if C is None else _floats(C, "C")
    # As objects, since numpy makes the text 'nan' of what is missing in a list of texts.
    given = np.asarray(clusters, None if hasattr(clusters, "dtype") else object)
    labels = np.arange(len(R)) if clusters is None else given
    for name, values in {"T": treatment, "C": covariates, "clusters": labels, **outcomes}.items():
        if values is not None and len(values) != len(R):
            raise DataError(f"R has {len(R)} rows, but {name} has {len(values)}: give the same rows of each")
    if not np.isin(treatment, (0, 1)).all():
        values = ", ".join(f"{value:g}" for value in np.unique(treatment)[:5])
        raise DataError(f"T must be 0 (control) or 1 (treated), but holds {values}")
    for name, outcome in outcomes.items():
        if np.ptp(outcome) == 0:
            raise DataError(f"{name} is {outcome[0]:g} in all rows: there is nothing to explain")
    treated = int(treatment.sum())
    if min(treated, len(R) - treated) < LEAST_ROWS:
        raise DataError(
            f"There are {treated} treated and {len(R) - treated} control rows: an estimate needs {LEAST_ROWS} of each, "
            "and one worth reporting needs hundreds"
        )
    for name, outcome in outcomes.items():
        if np.ptp(outcome[treatment == 0]) == np.ptp(outcome[treatment == 1]) == 0:
            means = outcome[treatment == 1][0], outcome[treatment == 0][0]
            raise DataError(
                f"{name} is {means[0]:g} in all treated and {means[1]:g} in all control rows: beside the treatment "
                "there is nothing to explain. Is it the treatment itself, or made from it?"
            )
    return Data(R, outcomes, treatment.astype(np.int64), _covariates(covariates, settings), _groups(labels, settings))


def _latents(R: Any, settings: dict[str, Any]) -> np.ndarray:
    """The latents as float32, in the shape and length that the network takes."""
    try:
        R = np.asarray(R, np.float32)
    except (TypeError, ValueError) as error:
        raise DataError(f"R must hold numbers: {error}") from error
    if settings["conv_layers"] is None and R.ndim > 1:
        R = R.reshape(len(R), -1)
    elif R.ndim != 4:
        raise DataError(f"R must be (n, d) or (n, C, H, W), and (n, C, H, W) with conv_layers, not of shape {R.shape}")
    if not np.isfinite(R).all():
        raise DataError("R holds missing or infinite values: run `snakemake` again, or leave out these rows")
    if settings["length"] is None:
        return R
    if (deviation := R.std()) == 0:
        raise DataError("R is the same number everywhere: there is nothing to adjust for")
    return settings["length"] / math.sqrt(R[0].size) * R / deviation


def _outcomes(Y: Any) -> dict[str, np.ndarray]:
    """The outcomes by name."""
    if isinstance(Y, dict | pd.DataFrame):
        outcomes = {str(name): _floats(Y[name], f"The outcome {name!r}") for name in Y}
        for name, values in outcomes.items():
            if values.ndim != 1:
                raise DataError(f"The outcome {name!r} must be one column, (n,), not of shape {values.shape}")
        return outcomes
    values = _floats(Y, "Y")
    if values.ndim == 1:
        name = getattr(Y, "name", None)
        return {"Y" if name is None else str(name): values}
    if values.ndim != 2:
        raise DataError(f"Y must be (n,), or (n, outcomes), not of shape {values.shape}")
    return {f"Y{number}": column for number, column in enumerate(values.T)}


def _floats(values: Any, name: str) -> np.ndarray:
    """Values as float64, none of them missing."""
    try:
        if isinstance(values, pd.Series | pd.DataFrame):
            found = values.to_numpy(dtype=np.float64, na_value=np.nan)
        else:
            found = np.asarray(values, np.float64)
    except (TypeError, ValueError) as error:
        raise DataError(f"{name} must hold numbers: {error}") from error
    if len(bad := np.argwhere(~np.isfinite(found))):
        raise DataError(
            f"{name} has {len(bad)} missing or infinite values, the first in row {bad[0][0]}: leave out these rows, "
            "from R and all else too"
        )
    return found


def _covariates(C: np.ndarray | None, settings: dict[str, Any]) -> np.ndarray | None:
    """The covariates as (n, covariates)."""
    if C is None:
        return None
    C = C.reshape(len(C), -1)
    if not settings["standardize"]:
        return C
    deviations = C.std(axis=0)
    return (C - C.mean(axis=0)) / np.where(deviations > 0, deviations, 1)


def _groups(labels: np.ndarray, settings: dict[str, Any]) -> np.ndarray:
    """The number of each row's cluster, from 0."""
    if labels.ndim != 1:
        raise DataError(f"clusters must be (n,), not of shape {labels.shape}")
    groups, names = pd.factorize(labels)
    if (groups < 0).any():
        raise DataError(
            f"clusters has {(groups < 0).sum()} missing values, the first in row {(groups < 0).argmax()}: "
            "leave out these rows, or give each a label of its own"
        )
    if len(names) < 2 * settings["K"]:
        raise DataError(
            f"There are {len(names)} clusters: with K = {settings['K']} folds, of which each is halved, at least "
            f"{2 * settings['K']} are needed, and for standard errors some dozens"
        )
    return groups
