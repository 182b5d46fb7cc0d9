"""What the cells of a table mean, and how messages name its rows."""

from __future__ import annotations

import re

import numpy as np
import pandas as pd

from gpi_latents.errors import listed
from gpi_latents.plan import BOOLEANS, MISSING, NUMBER, RESULT_COLUMNS

# Columns of texts as they are written, also if these look like numbers or like a mark of a missing value.
TEXTS = ["id", "image", "prompt", "negative_prompt", *RESULT_COLUMNS]
CODE = r"[+-]?0\d"  # the beginning of what looks like a number and is none, such as 06 of a state or 007
EXACT = 2**53  # float64 tells all integers up to here apart
MOST_ROWS = 10  # that a message names


def numbers(texts: pd.Series) -> pd.Series:
    """A column of texts as numbers, NaN if a text is not a number."""
    texts = texts.str.strip()
    # pandas alone would also accept 'nan', 'inf' and the like; "coerce" makes float64 of integers beyond 64 bits.
    return pd.to_numeric(texts.where(texts.str.fullmatch(NUMBER, flags=re.ASCII)), errors="coerce")


def typed(texts: pd.Series) -> pd.Series:
    """A column of texts as booleans or numbers if all its cells that are not missing are such, else as texts.

    Blanks around a cell, which cannot be seen, mean nothing: they would make two clusters of one.
    """
    if texts.name in TEXTS:
        return texts
    cells = texts.str.strip()
    is_missing = cells.isin(MISSING)
    filled = cells[~is_missing]
    if filled.empty:
        return pd.Series(np.nan, index=texts.index, name=texts.name)
    if filled.isin(BOOLEANS).all():
        booleans = filled.map(BOOLEANS).astype("boolean").reindex(texts.index)
        return booleans if is_missing.any() else booleans.astype(bool)
    values = numbers(filled)
    large = [cell for cell in filled[filled.str.fullmatch(r"[+-]?\d{16,}")] if abs(int(cell)) > EXACT]
    is_exact = values.dtype.kind in "iu"
    if values.isna().any() or filled.str.match(CODE).any() or (large and not is_exact):
        return cells.mask(is_missing)
    return (values.convert_dtypes() if large and is_missing.any() else values).reindex(texts.index)


def is_missing(values: pd.Series) -> np.ndarray:
    """Which cells of a column hold no value, bool (n,); of `TEXTS`, every text is one."""
    marks = values.isna().to_numpy(dtype=bool)
    if values.name in TEXTS or pd.api.types.is_numeric_dtype(values):
        return marks
    return marks | values.astype(str).str.strip().isin(MISSING).to_numpy(dtype=bool)


def named(rows: pd.DataFrame) -> str:
    """Rows of the index table by number and id, as in `row 3, bob`."""
    return listed((f"row {row}, {item_id}" for row, item_id in zip(rows["row"], rows["id"], strict=True)), MOST_ROWS)


def valued(rows: pd.DataFrame, name: str) -> str:
    """What a column holds in some rows, as in `'x' in row 3 (bob)`."""
    values = [
        "missing" if pd.isna(value) or str(value).strip() in MISSING else repr(value) for value in rows[name].tolist()
    ]
    cells = zip(values, rows["row"], rows["id"], strict=True)
    return listed((f"{value} in row {row} ({item_id})" for value, row, item_id in cells), MOST_ROWS)
