"""The workflow's results as an array and a table. Needs no torch."""

from __future__ import annotations

import hashlib
import json
import warnings
from pathlib import Path

import numpy as np
import pandas as pd

from gpi_latents import paths
from gpi_latents.errors import DataError
from gpi_latents.files import dangling_link
from gpi_latents.gpi.cells import named, typed
from gpi_latents.plan import has_draws
from gpi_latents.study.outdated import outdated
from gpi_latents.study.stale import read_failed
from gpi_latents.tensors.tensor_file import open_latents


def load(results_dir: str | Path = "results", check: bool = True) -> tuple[np.ndarray, pd.DataFrame]:
    """All latents and the index table that describes them.

    Args:
        results_dir: the folder `results` of a study.
        check: compare every latent with its digest in the table, which reads the tensor once from beginning to end,
            and warn if the sheet or a picture has changed since.

    Returns:
        R, float32 (N, C, H, W), read-only and mapped from the file, and the table: N lines in the same order, labelled
        0 to N-1. `id`, `image`, the prompts, digests and notes are texts as they are written. If items have several
        draws, there is a line for each: `item` is the id in the sheet, also a text, and `draw` its number from 1. Of
        every other column, blank cells and those that say NA (`plan.MISSING`) are missing values. It holds booleans if
        all others say TRUE or FALSE (nullable ones, where some are missing), and numbers if all are numbers (float64,
        NaN where some are missing; larger integers than float64 tells apart keep an integer dtype). It holds texts in
        all other cases, without blanks around them, also if a number in it begins with 0, such as 06, or has more
        digits than any dtype holds.
        If items failed (key `on_error`), they are in neither, and a warning says so.

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
    texts, index = index, index.apply(typed)
    if has_draws(texts):
        index["item"] = texts["item"]
    _check_order(R, index)
    if failed := len(read_failed(folder / Path(paths.PROVENANCE).name)):
        things, means = ("draws", ", means are of the others") if has_draws(texts) else ("items", "")
        warnings.warn(
            f"{failed} of {failed + len(index)} {things} failed and are not in the results in {folder} "
            f"({Path(paths.SKIPPED).name}){means}: if failing goes with treatment or outcome, estimates are biased",
            stacklevel=2,
        )
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
            f"{len(differ)} of {len(R)} latents are not those in the index table ({named(index.iloc[differ])}): "
            "they come from another run, or the table was changed. Run snakemake again"
        )


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
        raise DataError(f"The index table has an id twice ({named(index[repeated])})")
