"""The arrays that `gpi_pack` estimates effects from: aligned, and checked. Needs no torch."""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from typing import overload

import numpy as np
import pandas as pd

from gpi_latents.errors import DataError
from gpi_latents.gpi.cells import is_missing, named
from gpi_latents.gpi.columns import column, covariate_columns, treatment_column
from gpi_latents.gpi.draws import Draws, latents_of
from gpi_latents.gpi.query import choose
from gpi_latents.gpi.results import check_digests

DIGESTS = 1000  # latents that are compared with the table, which would notice rows that were numbered anew

Names = str | Iterable[str]
Arrays = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray | None]
ArraysAndTable = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray | None, pd.DataFrame]


@overload
def arrays(
    R: np.ndarray,
    index: pd.DataFrame,
    outcome: str,
    treatment: str,
    covariates: Names | None = None,
    query: str | None = None,
    flat: bool = False,
    *,
    drop_missing: bool = False,
    dummies: bool = False,
    also: None = None,
    draws: Draws = "mean",
) -> Arrays: ...
@overload
def arrays(
    R: np.ndarray,
    index: pd.DataFrame,
    outcome: str,
    treatment: str,
    covariates: Names | None = None,
    query: str | None = None,
    flat: bool = False,
    *,
    drop_missing: bool = False,
    dummies: bool = False,
    also: Names,
    draws: Draws = "mean",
) -> ArraysAndTable: ...
def arrays(
    R: np.ndarray,
    index: pd.DataFrame,
    outcome: str,
    treatment: str,
    covariates: Names | None = None,
    query: str | None = None,
    flat: bool = False,
    *,
    drop_missing: bool = False,
    dummies: bool = False,
    also: Names | None = None,
    draws: Draws = "mean",
) -> Arrays | ArraysAndTable:
    """What `gpi_pack.estimate_k_ate(R, Y, T, C)` takes, row by row of the same items.

    Args:
        R: as `load` returns it.
        index: as `load` returns it, in any order, and with any columns of your own.
        outcome: name of a column of numbers or booleans; True is 1, False 0.
        treatment: name of a column of 0 (control) and 1 (treated), or of booleans.
        covariates: names of columns of numbers or booleans; a text is one name; None is none.
        query: which rows, in the language of `pandas.DataFrame.query`, such as `strength == 0`; None takes all. A
            comparison with a missing value chooses no row, neither by `==` nor by `!=` or `not in`, as in R's filter();
            `wave.isna()` chooses the rows where it is missing.
        flat: give each latent as one line of numbers; without it, R is for `conv_layers`.
        drop_missing: leave out rows where the outcome, the treatment, a covariate or a column of `also` is missing, and
            warn how many and which; what is there, but no number, is refused all the same.
        dummies: make columns of 0 and 1 of covariates that hold texts, codes such as 06 or pandas' categories: one
            for each value in the chosen rows, but the first (texts are sorted, categories in their own order).
        also: names of further columns for the same rows, such as weights or clusters.
        draws: of items with several draws, `mean` gives the mean of an item's chosen draws, with the columns of the
            first, which must be those of the others; `separate` a row for each: then give `also=["item"]`, and
            `estimate` the column as `clusters`, so that no fold holds draws of an item that others are fitted to.

    Returns:
        R, float32 (n, C, H, W), or (n, C * H * W) when flat; Y, float64 (n,); T, int64 (n,); C, float64 (n, k), in the
        order of `covariates`, or None without any. With `also` a fifth: a table, labelled 0 to n-1, of `row`, `id` and
        these columns as they are in `index`, also where a value is missing.

    Raises:
        DataError: a column is missing or given twice, a value is missing or no number, or there is nothing to compare.
    """
    covariates, further = _name_list(covariates), _name_list(also)
    roles = [("outcome", outcome), ("treatment", treatment), *(("covariate", name) for name in covariates)]
    table, rows = _chosen(R, index, roles, further, query, drop_missing)
    R, table = latents_of(R, table, rows, draws, [*(name for _, name in roles), *further])
    Y = column(table, outcome, "outcome")
    T = treatment_column(table, treatment)
    C = np.hstack([covariate_columns(table, name, dummies) for name in covariates]) if covariates else None
    R = R.reshape(len(R), -1) if flat else R
    if also is None:
        return R, Y, T, C
    return R, Y, T, C, table[list(dict.fromkeys(["row", "id", *further]))].reset_index(drop=True)


def _name_list(names: Names | None) -> list[str]:
    return [names] if isinstance(names, str) else [] if names is None else list(names)


def _chosen(
    R: np.ndarray,
    index: pd.DataFrame,
    roles: list[tuple[str, str]],
    further: list[str],
    query: str | None,
    drop_missing: bool,
) -> tuple[pd.DataFrame, np.ndarray]:
    """The lines of the table to estimate from, and the rows of R, int64 (n,), that they name."""
    rows = _rows(R, index)
    _check_names(index, roles)
    for name in further:  # may have a role too, such as a covariate by which one clusters
        _check_names(index, [("further column", name)])
    if query is not None:
        chosen = choose(index, query)
        index, rows = index[chosen], rows[chosen]
    if drop_missing:
        others = set(further) - {name for _, name in roles}
        whole = _whole(index, [*roles, *(("value of", name) for name in further if name in others)])
        index, rows = index[whole], rows[whole]
    return index, rows


def _whole(table: pd.DataFrame, roles: list[tuple[str, str]]) -> np.ndarray:
    """Rows without a missing value in the columns, given as (role, name): bool (n,). Warns of the others."""
    gaps = {(role, name): is_missing(table[name]) for role, name in roles}
    left_out = np.logical_or.reduce(list(gaps.values()))
    if left_out.any():
        why = ", ".join(
            f"no {role} {name!r} in {gap.sum()} ({named(table[gap])})"
            for (role, name), gap in gaps.items()
            if gap.any()
        )
        text = f"{left_out.sum()} of {len(table)} rows are left out: {why}"
        if left_out.all():
            raise DataError(text)
        warnings.warn(text, stacklevel=4)  # where the user called arrays
    return ~left_out


def _rows(R: np.ndarray, index: pd.DataFrame) -> np.ndarray:
    """The row of R, int64 (N,), of each line of the table, which may be the user's own."""
    if missing := {"row", "id"} - set(index.columns):
        raise DataError(f"The index table has no column {sorted(missing)[0]!r}: give the one that load returned")
    if (repeated := index.columns[index.columns.duplicated()]).size:
        raise DataError(f"The index table has two columns {repeated[0]!r}: give each a name of its own")
    rows = pd.to_numeric(index["row"], errors="coerce").to_numpy(dtype=np.float64, na_value=np.nan)
    if not np.array_equal(np.sort(rows), np.arange(len(R))):
        raise DataError(
            f"The index table ({len(index)} rows) does not name every latent of R ({len(R)}) once: give both as load "
            "returned them, add columns by index.merge(..., how='left'), and choose rows by query"
        )
    rows = rows.astype(np.int64)
    if "sha256" in index and isinstance(R, np.memmap):  # a changed R is an array in memory
        lines = np.unique(np.linspace(0, len(rows) - 1, DIGESTS).astype(int))
        check_digests(R[rows[lines]], index.iloc[lines])
    return rows


def _check_names(index: pd.DataFrame, names: list[tuple[str, str]]) -> None:
    """Check the columns, given as (role, name)."""
    roles: dict[str, str] = {}
    for role, name in names:
        if not isinstance(name, str):
            raise DataError(f"The {role} must be the name of a column, such as 'age', not {name!r}")
        if name not in index.columns:
            known = ", ".join(map(str, index.columns))
            raise DataError(f"The index table has no column {name!r} for the {role}. Its columns: {known}")
        if name in roles:
            raise DataError(f"The column {name!r} is given twice, as {roles[name]} and as {role}")
        roles[name] = role
