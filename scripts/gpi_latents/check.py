"""Open every picture of the sheet, without any model, and list all that cannot be read and what was done to others."""

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
from gpi_latents.files import file_problems, write_whole
from gpi_latents.joblog import DOUBTFUL
from gpi_latents.plan import read_plan

IDS_SHOWN = 3  # of each note


def checked_pictures(plan: pd.DataFrame, threads: int) -> pd.DataFrame:
    """Open all pictures of a plan.

    Args:
        plan: as `read_plan` returns it.
        threads: pictures that are opened at the same time; each takes the memory of its pixels.

    Returns:
        One line per row of the sheet: `sheet_row` (the header of the sheet is row 1), `id` (of its first draw),
        `image`, `problem` (why its picture cannot be read, empty if it can be), `notes` (a list of texts: what was done
        to it beyond resizing, and what is doubtful).
    """
    plan = plan.drop_duplicates("sheet_row")
    images = plan["image"].unique()
    no_files = file_problems(images)

    def checked(image: str) -> tuple[str, list[str]]:
        if image in no_files:
            return no_files[image], []
        try:
            return "", open_picture(image)[1].notes
        except ItemError as error:
            return str(error), []

    with _silent_libraries(), ThreadPoolExecutor(threads) as pool:
        found = dict(zip(images, pool.map(checked, images), strict=True))
    table = plan[["sheet_row", "id", "image"]].copy()
    table["problem"] = [found[image][0] for image in plan["image"]]
    table["notes"] = [found[image][1] for image in plan["image"]]
    return table


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
    """Open all pictures of a plan, and write those with a problem or a note to `paths.CHECK`.

    Returns:
        A text for the user.

    Raises:
        InputError: at least one picture cannot be read.
    """
    table = checked_pictures(read_plan(plan), threads)
    listed = table[(table["problem"] != "") | (table["notes"].str.len() > 0)]
    Path(paths.CHECK).parent.mkdir(exist_ok=True)
    joined = listed.assign(notes=listed["notes"].str.join("; "))
    write_whole(paths.CHECK, joined.to_csv(index=False, lineterminator="\n").encode())
    bad = table[table["problem"] != ""]
    notes = _notes_by_kind(table)
    if bad.empty:
        return "\n".join([f"All {len(table)} pictures can be read.", *notes])
    lines = [f"  - row {item.sheet_row}, {item.id}: {item.problem}" for item in bad.itertuples()]
    heading = f"{len(bad)} of {len(table)} pictures cannot be read (also in {paths.CHECK}):"
    raise InputError("\n".join([heading, *lines, *notes]))


def _notes_by_kind(table: pd.DataFrame) -> list[str]:
    """Lines for the user: how many pictures have which note, what is doubtful first."""
    single = table.explode("notes").dropna(subset="notes")
    if single.empty:
        return []
    groups = list(single.groupby("notes")["id"])
    groups.sort(key=lambda group: (not group[0].startswith(DOUBTFUL), -len(group[1])))
    lines = [f"Notes on pictures, each in {paths.CHECK}:"]
    for note, ids in groups:
        more = ", ..." if len(ids) > IDS_SHOWN else ""
        count = f"{len(ids)} picture{'s' * (len(ids) > 1)}"
        lines.append(f"  - {count}: {note} ({', '.join(ids.iloc[:IDS_SHOWN])}{more})")
    return lines
