"""The latents of chosen rows, of items with several draws their mean."""

from __future__ import annotations

from typing import Literal, get_args

import numpy as np
import pandas as pd

from gpi_latents.errors import DataError, listed
from gpi_latents.gpi.cells import MOST_ROWS, named
from gpi_latents.plan import has_draws

Draws = Literal["mean", "separate"]


def latents_of(
    R: np.ndarray, table: pd.DataFrame, rows: np.ndarray, draws: Draws, names: list[str]
) -> tuple[np.ndarray, pd.DataFrame]:
    """The latents of some rows of the index table, and the rows that describe them.

    Args:
        R: all latents, float32 (N, C, H, W).
        table: the rows.
        rows: int64 (n,), where their latents are in R.
        draws: of items with several draws, `mean` gives the mean value by value; `separate` gives all.
        names: of the columns that must be alike in all draws of an item, if it is their mean.

    Returns:
        float32 (n, C, H, W), and `table`; or float32 (items, C, H, W), of means computed in float64 with one item's
        draws in memory at a time, and each item's first row, in the order of `table`.

    Raises:
        DataError: another word for `draws`, a row without an item, draws of one item that differ in a column, or items
            that are no longer those of the ids.
    """
    if draws not in get_args(Draws):
        raise DataError(f"draws must be 'mean' or 'separate', not {draws!r}")
    if draws == "separate" or not has_draws(table):
        if draws == "mean":
            _check_items(table)
        return np.asarray(R if np.array_equal(rows, np.arange(len(R))) else R[rows]), table
    if (lost := table["item"].isna()).any():
        raise DataError(f"The column 'item' is missing in {lost.sum()} rows ({named(table[lost])})")
    numbers, names_of_items = pd.factorize(table["item"])  # from 0, in the order of the table
    items = table.groupby(numbers)
    for name in dict.fromkeys(names):
        counts = items[name].nunique(dropna=False)
        if differ := list(map(repr, names_of_items[counts > 1])):
            raise DataError(
                f"The column {name!r} differs between draws of the same item ({listed(differ, MOST_ROWS)}): give them "
                'one value, or take each draw as a row by draws="separate"'
            )
    means = np.empty((len(names_of_items), *R.shape[1:]), np.float32)
    for number, places in items.indices.items():
        means[number] = R[rows[places]].mean(axis=0, dtype=np.float64)
    return means, table[~pd.Series(numbers, index=table.index).duplicated()]


def _check_items(table: pd.DataFrame) -> None:
    """Check that a table whose items are not those of its ids has no draws by its ids, which would become rows."""
    if not {"id", "item", "draw"} <= {*table}:
        return
    numbers = pd.to_numeric(table["draw"], errors="coerce").to_numpy(np.float64, na_value=np.nan)
    # Of an item with one draw, the id has no number at its end.
    ends = ["" if np.isnan(number) else f"_{number:.0f}" for number in numbers]
    ids = table["id"].astype(str)
    is_drawn = np.array([bool(end) and item_id.endswith(end) for item_id, end in zip(ids, ends, strict=True)])
    items = pd.Series([item_id.removesuffix(end) for item_id, end in zip(ids, ends, strict=True)])
    if (is_drawn | (numbers == 1)).all() and items.duplicated().any():
        place = int(items.duplicated(keep=False).argmax())
        raise DataError(
            f"The column 'item' no longer holds the ids of the sheet (it is {table['item'].iloc[place]} for "
            f"{ids.iloc[place]}, not {items[place]}), so the draws of an item cannot be found. Leave it as load gives "
            'it, and join tables by a copy of it; or take each draw as a row by draws="separate"'
        )
