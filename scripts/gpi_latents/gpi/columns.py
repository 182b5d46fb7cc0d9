"""Columns of the index table as numbers, or refused with their rows."""

from __future__ import annotations

import numpy as np
import pandas as pd

from gpi_latents.errors import DataError, listed
from gpi_latents.gpi.cells import BOOLEANS, CODE, MOST_ROWS, is_missing, numbers, valued


def column(table: pd.DataFrame, name: str, role: str) -> np.ndarray:
    """A column of numbers or booleans.

    Args:
        table: rows of the index table, with `row` and `id`.
        name: of the column.
        role: what messages call it, such as `outcome`.

    Returns:
        float64 (n,), all finite; True is 1, False 0.

    Raises:
        DataError: a value is missing or not a number; names the rows.
    """
    values = table[name]
    if pd.api.types.is_numeric_dtype(values):
        found = values.to_numpy(dtype=np.float64, na_value=np.nan)
    else:
        cells = _texts(values)
        found = _parsed(cells)
        _check_texts(cells.dropna(), found, name, role)
    bad = ~np.isfinite(found)
    if bad.any():
        choice = f'query="id not in [{table["id"][bad].iloc[0]!r}, ...]"'
        if is_missing(values)[bad].all():
            choice = f'drop_missing=True or query="{name if name.isidentifier() else f"`{name}`"}.notna()"'
        elif role == "covariate":
            groups = f"index[{name!r}] = index[{name!r}].astype('category')"
            choice += f"; or, if these name groups, write {groups} and give dummies=True"
        raise DataError(
            f"The {role} {name!r} is not a number in {bad.sum()} of {len(table)} rows: {valued(table[bad], name)}. "
            f"Complete the sheet, or leave them out, as by {choice}"
        )
    return found


def treatment_column(table: pd.DataFrame, name: str) -> np.ndarray:
    """The treatment, int64 (n,), of 0 and 1, with both of them.

    Raises:
        DataError: a value is something else, or all are the same.
    """
    T = column(table, name, "treatment")
    if not (binary := np.isin(T, (0, 1))).all():
        values = sorted(set(T.tolist()))
        raise DataError(
            f"The treatment {name!r} must be 0 or 1, but is {valued(table[~binary], name)}. "
            f"gpi_pack compares two groups{': ' + _recoding(name, values) if len(values) == 2 else ''}"
        )
    if len(set(T)) < 2:
        raise DataError(f"The treatment {name!r} is {T[0]:g} in all {len(T)} rows: there is nothing to compare")
    return T.astype(np.int64)


def covariate_columns(table: pd.DataFrame, name: str, dummies: bool) -> np.ndarray:
    """A covariate as one column of numbers, or, if it holds texts, as columns of 0 and 1.

    Args:
        table: rows of the index table, with `row` and `id`.
        name: of the column.
        dummies: take texts and pandas' categories; without it they are refused.

    Returns:
        float64 (n, 1), or (n, values - 1): for each value but the first, whether a row has it; texts are sorted, and
        categories in their own order.

    Raises:
        DataError: a value is missing, not a number among numbers, or the only one among texts.
    """
    values = table[name]
    if not dummies or not _are_groups(values):
        return column(table, name, "covariate")[:, None]
    is_categorical = isinstance(values.dtype, pd.CategoricalDtype)
    groups = values.mask(is_missing(values)) if is_categorical else _texts(values).astype("category")
    groups = groups.cat.remove_unused_categories()
    codes = groups.cat.codes.to_numpy()
    if (gap := codes < 0).any():
        raise DataError(
            f"The covariate {name!r} is missing in {gap.sum()} of {len(table)} rows: {valued(table[gap], name)}. "
            "Complete the sheet, or leave them out by drop_missing=True"
        )
    found = groups.cat.categories
    if len(found) < 2:
        raise DataError(f"The covariate {name!r} is {found[0]!r} in all {len(table)} rows: leave it out")
    return (codes[:, None] == np.arange(1, len(found))).astype(np.float64)


def _texts(values: pd.Series) -> pd.Series:
    """The cells as texts without blanks around them, and missing where they are."""
    return values.astype(object).mask(is_missing(values)).astype("string").str.strip().astype(object)


def _parsed(cells: pd.Series) -> np.ndarray:
    """Texts as float64 (n,), NaN if one is no number and neither TRUE nor FALSE."""
    booleans = {text: str(int(value)) for text, value in BOOLEANS.items()}
    return numbers(cells.fillna("").replace(booleans).astype(str)).to_numpy(float)


def _are_groups(values: pd.Series) -> bool:
    """Whether a column names groups: categories, or texts of which none is a number, or one is a code such as 06."""
    if isinstance(values.dtype, pd.CategoricalDtype):
        return True
    if pd.api.types.is_numeric_dtype(values) or (filled := _texts(values).dropna()).empty:
        return False
    return bool(filled.str.match(CODE).any()) or not np.isfinite(_parsed(filled)).any()


def _check_texts(filled: pd.Series, found: np.ndarray, name: str, role: str) -> None:
    """Check that a column of texts holds numbers, apart from some cells that are named row by row."""
    if filled.empty:
        return
    if (coded := filled[filled.str.match(CODE)]).size:
        groups = "if they name groups, give dummies=True; " if role == "covariate" else ""
        raise DataError(
            f"The {role} {name!r} holds texts such as {coded.iloc[0]!r}, which may be codes: {groups}"
            f"if they are numbers, write index[{name!r}] = pd.to_numeric(index[{name!r}])"
        )
    if np.isfinite(found).any():
        return
    values = sorted(filled.unique())
    advice = "give a column of numbers"
    if role == "covariate":
        advice = "give dummies=True, which makes columns of 0 and 1 of it"
    elif len(values) == 2:
        advice = _recoding(name, values)
    elif role == "treatment":
        advice = "recode to 0 and 1, since gpi_pack compares two groups"
    shown = listed(map(repr, values), MOST_ROWS)
    raise DataError(f"The {role} {name!r} holds texts, not numbers ({shown}): {advice}")


def _recoding(name: str, values: list) -> str:
    return f"recode to 0 and 1, as by index[{name!r}] = index[{name!r}].map({{{values[0]!r}: 0, {values[1]!r}: 1}})"
