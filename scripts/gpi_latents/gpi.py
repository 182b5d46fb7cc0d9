"""The workflow's results as the arrays that `gpi_pack` estimates effects from. Needs no torch."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pandas as pd

from gpi_latents import paths
from gpi_latents.errors import DataError, listed
from gpi_latents.plan import NUMBER
from gpi_latents.tensors.tensor_file import open_latents

TEXTS = ["id", "image", "prompt", "negative_prompt", "sha256"]  # columns of texts, also if these look like numbers
MOST_ROWS = 10  # that a message names


def load(results_dir: str | Path = "results", check: bool = True) -> tuple[np.ndarray, pd.DataFrame]:
    """All latents and the index table that describes them.

    Args:
        results_dir: the folder `results` of a study.
        check: compare every latent with its digest in the table, which reads the tensor once from beginning to end.

    Returns:
        R, float32 (N, C, H, W), read-only and mapped from the file, and the table: N lines in the same order, labelled
        0 to N-1. A column of numbers holds numbers, NaN if a cell is empty; all others and the `TEXTS` hold the texts
        of the sheet.

    Raises:
        DataError: a file is missing or damaged, or the tensor and the table do not belong together.
    """
    folder = Path(results_dir).resolve()
    index_file = folder / Path(paths.INDEX).name
    try:
        index = pd.read_csv(index_file, dtype=str, keep_default_na=False)
    except FileNotFoundError:
        raise DataError(f"{index_file} is missing: run snakemake without a target, which makes it") from None
    except ValueError as error:
        raise DataError(f"{index_file} is not an index table of this workflow ({error})") from None
    if missing := {"row", "id", "sha256"} - set(index.columns):
        raise DataError(f"{index_file} is not an index table of this workflow: it has no column {sorted(missing)[0]!r}")
    R = open_latents(_tensor_file(folder))
    index = index.apply(_typed)
    _check_order(R, index)
    if check:
        check_digests(R, index)
    return R, index


def check_digests(R: np.ndarray, index: pd.DataFrame) -> None:
    """Compare latents with the table's digests; also those that `gpi_pack.load_hiddens` reads from single files.

    Args:
        R: float32 (N, C, H, W).
        index: the table, in the order of R.

    Raises:
        DataError: a latent is not the one in the table.
    """
    if len(R) != len(index):
        raise DataError(f"There are {len(R)} latents, but {len(index)} rows in the index table")
    # One at a time, so that a tensor larger than the memory can be checked.
    differ = [
        place
        for place, digest in enumerate(index["sha256"])
        if hashlib.sha256(R[place].astype("<f4", copy=False).tobytes()).hexdigest() != digest
    ]
    if differ:
        raise DataError(
            f"{len(differ)} of {len(R)} latents are not those in the index table ({_named(index.iloc[differ])}): "
            "they come from another run, or the table was changed. Run snakemake again"
        )


def arrays(
    R: np.ndarray,
    index: pd.DataFrame,
    outcome: str,
    treatment: str,
    covariates: Iterable[str] = (),
    query: str | None = None,
    flat: bool = False,
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray | None]:
    """What `gpi_pack.estimate_k_ate(R, Y, T, C)` takes, row by row of the same items.

    Args:
        R: as `load` returns it.
        index: as `load` returns it, in any order.
        outcome: name of a column of numbers.
        treatment: name of a column of 0 (control) and 1 (treated).
        covariates: names of columns of numbers.
        query: which rows, in the language of `pandas.DataFrame.query`, such as `strength == 0`; None takes all.
        flat: give each latent as one line of numbers; without it, R is for `conv_layers`.

    Returns:
        R, float32 (n, C, H, W), or (n, C * H * W) when flat; Y, float64 (n,); T, int64 (n,); C, float64
        (n, covariates), or None without covariates.

    Raises:
        DataError: a column is missing, a value is missing or not a number, or there is nothing to compare; names the
            rows.
    """
    if len(index) != len(R) or set(index["row"]) != set(range(len(R))):
        raise DataError(
            f"The index table ({len(index)} rows) does not name every latent of R ({len(R)}) once: "
            "give both as load returned them, and choose rows by query"
        )
    chosen = index
    if query is not None:
        try:
            chosen = index.query(query, engine="python")
        except Exception as error:  # whatever the text of the query leads to
            raise DataError(f"The query {query!r} does not work ({error})") from None
        if chosen.empty:
            raise DataError(f"The query {query!r} chooses none of the {len(index)} rows")
    Y = _column(chosen, outcome, "outcome")
    T = _column(chosen, treatment, "treatment")
    if not (binary := np.isin(T, (0, 1))).all():
        raise DataError(
            f"The treatment {treatment!r} must be 0 or 1, but is {_valued(chosen[~binary], treatment)}. "
            "gpi_pack compares two groups"
        )
    if len(set(T)) < 2:
        raise DataError(f"The treatment {treatment!r} is {T[0]:g} in all {len(T)} rows: there is nothing to compare")
    columns = [_column(chosen, name, "covariate") for name in covariates]
    rows = chosen["row"].to_numpy()
    R = np.asarray(R if np.array_equal(rows, np.arange(len(R))) else R[rows])
    C = np.column_stack(columns) if columns else None
    return R.reshape(len(R), -1) if flat else R, Y, T.astype(np.int64), C


def _tensor_file(folder: Path) -> Path:
    """The file of the tensor: the provenance names it, from the working directory, which is the folder's parent."""
    origin = folder / Path(paths.PROVENANCE).name
    candidates = [folder / name for name in ("latents.pt", "latents.npy", "latents.safetensors")]
    try:
        stacked = json.loads(origin.read_text(encoding="utf-8"))["config"]["stacked"]
        candidates = [folder.parent / stacked, folder / Path(stacked).name]
    except FileNotFoundError:
        pass
    except (ValueError, KeyError, TypeError):
        raise DataError(f"{origin} is damaged: delete it and run snakemake again") from None
    return next((path for path in candidates if path.is_file()), candidates[0])


def _check_order(R: np.ndarray, index: pd.DataFrame) -> None:
    if len(R) != len(index):
        raise DataError(
            f"The tensor has {len(R)} latents, but the index table {len(index)} rows: "
            "one of them is from another run, or was changed. Run snakemake again"
        )
    if list(index["row"]) != list(range(len(R))):
        raise DataError("The rows of the index table are no longer in their order (column row: 0, 1, 2, ...)")
    if (repeated := index["id"].duplicated()).any():
        raise DataError(f"The index table has an id twice ({_named(index[repeated])})")


def _numbers(texts: pd.Series) -> pd.Series:
    """A column of texts as numbers, NaN if a text is not a number."""
    texts = texts.str.strip()
    # pandas alone would also accept 'nan', 'inf' and the like.
    return pd.to_numeric(texts.where(texts.str.fullmatch(NUMBER, flags=re.ASCII)))


def _typed(texts: pd.Series) -> pd.Series:
    """A column of texts as numbers if all its filled cells are numbers, else as it is."""
    if texts.name in TEXTS:
        return texts
    numbers = _numbers(texts)
    is_filled = texts.str.strip() != ""
    return numbers if is_filled.any() and numbers[is_filled].notna().all() else texts


def _column(table: pd.DataFrame, name: str, role: str) -> np.ndarray:
    """A column of the table as float64 (n,), without gaps."""
    if name not in table.columns:
        known = ", ".join(table.columns)
        raise DataError(f"The index table has no column {name!r} for the {role}. Its columns: {known}")
    values = table[name]
    numbers = values if pd.api.types.is_numeric_dtype(values) else _numbers(values.astype(str))
    numbers = numbers.to_numpy(dtype=np.float64)
    bad = ~np.isfinite(numbers)
    if bad.any():
        raise DataError(
            f"The {role} {name!r} is not a number in {bad.sum()} of {len(table)} rows: {_valued(table[bad], name)}. "
            f"Complete the sheet, or leave them out, as by query=\"id not in ['{table['id'][bad].iloc[0]}', ...]\""
        )
    return numbers


def _named(rows: pd.DataFrame) -> str:
    return listed((f"row {row}, {item_id}" for row, item_id in zip(rows["row"], rows["id"], strict=True)), MOST_ROWS)


def _valued(rows: pd.DataFrame, name: str) -> str:
    values = ["empty" if value == "" or pd.isna(value) else repr(value) for value in rows[name].tolist()]
    cells = zip(values, rows["row"], rows["id"], strict=True)
    return listed((f"{value} in row {row} ({item_id})" for value, row, item_id in cells), MOST_ROWS)
