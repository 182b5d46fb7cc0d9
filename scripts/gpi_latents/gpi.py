"""The workflow's results as the arrays that `gpi_pack` estimates effects from. Needs no torch."""

from __future__ import annotations

import hashlib
import json
import re
import warnings
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pandas as pd

from gpi_latents import paths
from gpi_latents.errors import DataError, listed
from gpi_latents.files import dangling_link
from gpi_latents.gpi_query import choose
from gpi_latents.plan import MISSING, NUMBER, RESULT_COLUMNS
from gpi_latents.study.outdated import outdated
from gpi_latents.tensors.tensor_file import open_latents

# Columns of texts as they are written, also if these look like numbers or like a mark of a missing value.
TEXTS = ["id", "image", "prompt", "negative_prompt", *RESULT_COLUMNS]
BOOLEANS = {"TRUE": True, "True": True, "true": True, "FALSE": False, "False": False, "false": False}
CODE = r"[+-]?0\d"  # the beginning of what looks like a number and is none, such as 06 of a state or 007
EXACT = 2**53  # float64 tells all integers up to here apart
DIGESTS = 1000  # latents that `arrays` compares with the table, which would notice rows that were numbered anew
MOST_ROWS = 10  # that a message names


def load(results_dir: str | Path = "results", check: bool = True) -> tuple[np.ndarray, pd.DataFrame]:
    """All latents and the index table that describes them.

    Args:
        results_dir: the folder `results` of a study.
        check: compare every latent with its digest in the table, which reads the tensor once from beginning to end,
            and warn if the sheet or a picture has changed since.

    Returns:
        R, float32 (N, C, H, W), read-only and mapped from the file, and the table: N lines in the same order, labelled
        0 to N-1. `id`, `image`, the prompts, digests and notes are texts as they are written. Of every other column,
        blank cells and those that say NA (`plan.MISSING`) are missing values. It holds booleans if all others say TRUE
        or FALSE (nullable ones, where some are missing), and numbers if all are numbers (float64, NaN where some are
        missing; larger integers than float64 tells apart keep an integer dtype). It holds texts in all other cases,
        also if a number in it begins with 0, such as 06, or has more digits than any dtype holds.

    Raises:
        DataError: a file is missing or damaged, or the tensor and the table do not belong together.
    """
    # A link is not followed: the study is where the results are named, not where a disk keeps them.
    folder = Path(results_dir).absolute()
    folder = folder.resolve() if folder.name == ".." else folder
    index_file = folder / Path(paths.INDEX).name
    try:
        index = pd.read_csv(index_file, dtype=str, keep_default_na=False)
    except FileNotFoundError:
        raise DataError(_absent(index_file)) from None
    except OSError as error:
        raise DataError(f"{index_file} cannot be read: {error.strerror}") from None
    except ValueError as error:
        raise DataError(f"{index_file} is not an index table of this workflow ({error})") from None
    if missing := {"row", "id", "sha256"} - set(index.columns):
        raise DataError(f"{index_file} is not an index table of this workflow: it has no column {sorted(missing)[0]!r}")
    R = open_latents(_tensor_file(folder))
    texts, index = index, index.apply(_typed)
    _check_order(R, index)
    if check:
        check_digests(R, index)
        if change := outdated(folder, texts):
            warnings.warn(f"The results in {folder} are those of an earlier run: {change}", stacklevel=2)
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
            f"The treatment {treatment!r} must be 0 or 1, but is {_valued(chosen[~binary], treatment)}. "
            f"gpi_pack compares two groups{': ' + _recoding(treatment, values) if len(values) == 2 else ''}"
        )
    if len(set(T)) < 2:
        raise DataError(f"The treatment {treatment!r} is {T[0]:g} in all {len(T)} rows: there is nothing to compare")
    columns = [_column(chosen, name, "covariate") for name in covariates]
    R = np.asarray(R if np.array_equal(rows, np.arange(len(R))) else R[rows])
    C = np.column_stack(columns) if columns else None
    return R.reshape(len(R), -1) if flat else R, Y, T.astype(np.int64), C


def _tensor_file(folder: Path) -> Path:
    """The file of the tensor: the provenance names it, from the working directory, which is the folder's parent."""
    origin = folder / Path(paths.PROVENANCE).name
    candidates = [folder / name for name in ("latents.pt", "latents.npy", "latents.safetensors")]
    try:
        stacked = Path(json.loads(origin.read_text(encoding="utf-8"))["config"]["stacked"])
        # A copy of the folder may stand beside the one that it was made of.
        named = folder.joinpath(*stacked.parts[1:]) if stacked.parts[0] == "results" else folder.parent / stacked
        candidates = [named, folder / stacked.name]
    except FileNotFoundError:
        pass
    except (ValueError, KeyError, TypeError):
        raise DataError(f"{origin} is damaged: delete it and run snakemake again") from None
    if not (found := [path for path in candidates if path.is_file()]):
        raise DataError(_absent(candidates[0]))
    return found[0]


def _absent(path: Path) -> str:
    if link := dangling_link(path):
        return f"{path} cannot be read: {link}. Is its disk at hand?"
    return f"{path} is missing: run snakemake without a target, which makes it"


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
    # pandas alone would also accept 'nan', 'inf' and the like; "coerce" makes float64 of integers beyond 64 bits.
    return pd.to_numeric(texts.where(texts.str.fullmatch(NUMBER, flags=re.ASCII)), errors="coerce")


def _typed(texts: pd.Series) -> pd.Series:
    """A column of texts as booleans or numbers if all its cells that are not missing are such, else as texts."""
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
    numbers = _numbers(filled)
    large = [cell for cell in filled[filled.str.fullmatch(r"[+-]?\d{16,}")] if abs(int(cell)) > EXACT]
    is_exact = numbers.dtype.kind in "iu"
    if numbers.isna().any() or filled.str.match(CODE).any() or (large and not is_exact):
        return texts.mask(is_missing)
    return (numbers.convert_dtypes() if large and is_missing.any() else numbers).reindex(texts.index)


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
        numbers = values.to_numpy(dtype=np.float64, na_value=np.nan)
    else:
        cells = values.astype(object).where(values.notna(), "").astype(str).str.strip()
        numbers = _numbers(cells.replace({text: str(int(value)) for text, value in BOOLEANS.items()})).to_numpy(float)
        _check_texts(cells[~cells.isin(MISSING)], numbers, name, role)
    bad = ~np.isfinite(numbers)
    if bad.any():
        is_missing = values.isna() | values.astype(str).str.strip().isin(MISSING)
        choice = f"{name if name.isidentifier() else f'`{name}`'}.notna()"
        if not is_missing[bad].all():
            choice = f"id not in [{table['id'][bad].iloc[0]!r}, ...]"
        raise DataError(
            f"The {role} {name!r} is not a number in {bad.sum()} of {len(table)} rows: {_valued(table[bad], name)}. "
            f'Complete the sheet, or leave them out, as by query="{choice}"'
        )
    return numbers


def _check_texts(filled: pd.Series, numbers: np.ndarray, name: str, role: str) -> None:
    """Check that a column of texts holds numbers, apart from some cells that are named row by row."""
    if (coded := filled[filled.str.match(CODE)]).size:
        raise DataError(
            f"The {role} {name!r} holds texts such as {coded.iloc[0]!r}, which may be codes: "
            f"if they are numbers, write index[{name!r}] = pd.to_numeric(index[{name!r}])"
        )
    if np.isfinite(numbers).any() or filled.empty:
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


def _named(rows: pd.DataFrame) -> str:
    return listed((f"row {row}, {item_id}" for row, item_id in zip(rows["row"], rows["id"], strict=True)), MOST_ROWS)


def _valued(rows: pd.DataFrame, name: str) -> str:
    values = [
        "missing" if pd.isna(value) or str(value).strip() in MISSING else repr(value) for value in rows[name].tolist()
    ]
    cells = zip(values, rows["row"], rows["id"], strict=True)
    return listed((f"{value} in row {row} ({item_id})" for value, row, item_id in cells), MOST_ROWS)
