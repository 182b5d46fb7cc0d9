"""Open every picture of the sheet, without any model, and list all that cannot be read."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pandas as pd

from gpi_latents import paths
from gpi_latents.core.pictures import open_picture
from gpi_latents.errors import InputError, ItemError
from gpi_latents.files import file_problems
from gpi_latents.plan import read_plan


def bad_pictures(plan: pd.DataFrame, threads: int) -> pd.DataFrame:
    """Open all pictures of a plan.

    Args:
        plan: as `read_plan` returns it.
        threads: pictures that are opened at the same time; each takes the memory of its pixels.

    Returns:
        One line per item whose picture cannot be read: `row` in the sheet (its header is row 1), `id`, `image`,
        `reason`.
    """
    images = plan["image"].unique()
    no_files = file_problems(images)

    def problem(image: str) -> str:
        if image in no_files:
            return no_files[image]
        try:
            open_picture(image)
        except ItemError as error:
            return str(error)
        return ""

    with _silent_libraries(), ThreadPoolExecutor(threads) as pool:
        problems = dict(zip(images, pool.map(problem, images), strict=True))
    table = plan[["sheet_row", "id", "image"]].rename(columns={"sheet_row": "row"})
    table["reason"] = [problems[image] for image in plan["image"]]
    return table[table["reason"] != ""]


@contextmanager
def _silent_libraries() -> Iterator[None]:
    """Without what the decoders' C libraries print, up to hundreds of lines for one damaged file."""
    sys.stderr.flush()
    kept = os.dup(2)
    with open(os.devnull, "w") as nowhere:
        os.dup2(nowhere.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


def check(plan: Path, threads: int) -> str:
    """Open all pictures of a plan and write those that cannot be read to `paths.CHECK`.

    Returns:
        A text for the user.

    Raises:
        InputError: at least one picture cannot be read.
    """
    table = read_plan(plan)
    bad = bad_pictures(table, threads)
    Path(paths.CHECK).parent.mkdir(exist_ok=True)
    bad.to_csv(paths.CHECK, index=False, lineterminator="\n")
    if bad.empty:
        return f"All {len(table)} pictures can be read."
    lines = [f"  - row {item.row}, {item.id}: {item.reason}" for item in bad.itertuples()]
    heading = f"{len(bad)} of {len(table)} pictures cannot be read (also in {paths.CHECK}):"
    raise InputError("\n".join([heading, *lines]))
