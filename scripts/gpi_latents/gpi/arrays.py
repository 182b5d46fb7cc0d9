"""The arrays that `gpi_pack` estimates effects from: aligned, and checked. Needs no torch."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import pandas as pd

from gpi_latents.errors import DataError, listed
from gpi_latents.gpi.cells import BOOLEANS, CODE, MOST_ROWS, numbers, valued
from gpi_latents.gpi.query import choose
from gpi_latents.gpi.results import check_digests
from gpi_latents.plan import MISSING

DIGESTS = 1000  # latents that are compared with the table, which would notice rows that were numbered anew


def arrays(
    R: np.ndarray,
    index: pd.DataFrame,
    outcome: str,
    treatment: str,
    covariates: str | Iterable[str] | None = None,
    query: str | None = None,
    flat: bool = False,
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray | None]:
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

    Returns:
        R, float32 (n, C, H, W), or (n, C * H * W) when flat; Y, float64 (n,); T, int64 (n,); C, float64
        (n, covariates), or None without covariates.

    Raises:
        DataError: a column is missing or given twice, a value is missing or not a number, the query compares texts with
            numbers, or there is nothing to compare; names the rows.
    """
    rows = _rows(R, index)
    covariates = [covariates] if isinstance(covariates, str) else [] if covariates is None else list(covariates)
    _check_names(index, [("outcome", outcome), ("treatment", treatment), *(("covariate", name) for name in covariates)])
    chosen = index
    if query is not None:
        mask = choose(index, query)
        chosen, rows = index[mask], rows[mask]
    Y = _column(chosen, outcome, "outcome")
    T = _column(chosen, treatment, "treatment")
    if not (binary := np.isin(T, (0, 1))).all():
        values = sorted(set(T.tolist()))
        raise DataError(
            f"The treatment {treatment!r} must be 0 or 1, but is {valued(chosen[~binary], treatment)}. "
            f"gpi_pack compares two groups{': ' + _recoding(treatment, values) if len(values) == 2 else ''}"
        )
    if len(set(T)) < 2:
        raise DataError(f"The treatment {treatment!r} is {T[0]:g} in all {len(T)} rows: there is nothing to compare")
    columns = [_column(chosen, name, "covariate") for name in covariates]
    R = np.asarray(R if np.array_equal(rows, np.arange(len(R))) else R[rows])
    C = np.column_stack(columns) if columns else None
    return R.reshape(len(R), -1) if flat else R, Y, T.astype(np.int64), C


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


def _column(table: pd.DataFrame, name: str, role: str) -> np.ndarray:
    """A column of the table as float64 (n,), without gaps."""
    values = table[name]
    if pd.api.types.is_numeric_dtype(values):
        found = values.to_numpy(dtype=np.float64, na_value=np.nan)
    else:
        cells = values.astype(object).where(values.notna(), "").astype(str).str.strip()
        found = numbers(cells.replace({text: str(int(value)) for text, value in BOOLEANS.items()})).to_numpy(float)
        _check_texts(cells[~cells.isin(MISSING)], found, name, role)
    bad = ~np.isfinite(found)
    if bad.any():
        is_missing = values.isna() | values.astype(str).str.strip().isin(MISSING)
        choice = f"{name if name.isidentifier() else f'`{name}`'}.notna()"
        if not is_missing[bad].all():
            choice = f"id not in [{table['id'][bad].iloc[0]!r}, ...]"
        raise DataError(
            f"The {role} {name!r} is not a number in {bad.sum()} of {len(table)} rows: {valued(table[bad], name)}. "
            f'Complete the sheet, or leave them out, as by query="{choice}"'
        )
    return found


def _check_texts(filled: pd.Series, found: np.ndarray, name: str, role: str) -> None:
    """Check that a column of texts holds numbers, apart from some cells that are named row by row."""
    if (coded := filled[filled.str.match(CODE)]).size:
        raise DataError(
            f"The {role} {name!r} holds texts such as {coded.iloc[0]!r}, which may be codes: "
            f"if they are numbers, write index[{name!r}] = pd.to_numeric(index[{name!r}])"
        )
    if np.isfinite(found).any() or filled.empty:
        return
    values = sorted(filled.unique())
    shown = listed(map(repr, values), MOST_ROWS)
    advice = "give a column of numbers"
    if len(values) == 2:
        advice = _recoding(name, values)
    elif role == "covariate":
        column = f"index[{name!r}]"
        one = f"({column} == {values[-1]!r}).where({column}.notna())"
        advice = f"name a column of 0 and 1 for each of these but one, such as {one}"
    elif role == "treatment":
        advice = "recode to 0 and 1, since gpi_pack compares two groups"
    raise DataError(f"The {role} {name!r} holds texts, not numbers ({shown}): {advice}")


def _recoding(name: str, values: list) -> str:
    return f"recode to 0 and 1, as by index[{name!r}] = index[{name!r}].map({{{values[0]!r}: 0, {values[1]!r}: 1}})"
