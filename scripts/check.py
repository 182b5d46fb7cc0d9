"""Open every picture of the sheet, without any model, and list all that cannot be read."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import items
import pandas as pd
from pictures import ItemError, open_picture

TABLE = Path("results/check.csv")


def bad_pictures(sheet: pd.DataFrame, threads: int) -> pd.DataFrame:
    """Open all pictures of a sheet.

    Args:
        sheet: as `items.read_items` returns it.
        threads: pictures that are opened at the same time; each takes the memory of its pixels.

    Returns:
        One line per item whose picture cannot be read: `row` in the sheet (its header is row 1), `id`, `image`,
        `reason`.
    """

    images = sheet["image"].unique()
    no_files = items.file_faults(images)

    def fault(image: str) -> str:
        if image in no_files:
            return no_files[image]
        try:
            open_picture(image)
        except ItemError as error:
            return str(error)
        return ""

    with _silent_libraries(), ThreadPoolExecutor(threads) as pool:
        faults = dict(zip(images, pool.map(fault, images), strict=True))
    table = sheet[["id", "image"]].assign(reason=[faults[image] for image in sheet["image"]])
    return table[table["reason"] != ""].rename_axis("row").reset_index()


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


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--config", type=json.loads, required=True, help="the workflow's config as JSON")
    parser.add_argument("--threads", type=int, required=True)
    arguments = parser.parse_args()
    try:
        sheet = items.read_items(arguments.config, check_images=False)
        bad = bad_pictures(sheet, arguments.threads)
        TABLE.parent.mkdir(exist_ok=True)
        bad.to_csv(TABLE, index=False, lineterminator="\n")
    except (items.InputError, OSError) as error:
        print(error, file=sys.stderr)
        return 1
    if bad.empty:
        print(f"All {len(sheet)} pictures can be read.")
        return 0
    print(f"{len(bad)} of {len(sheet)} pictures cannot be read (also in {TABLE}):")
    for line in bad.itertuples():
        print(f"  - row {line.row}, {line.id}: {line.reason}")
    return 1


if __name__ == "__main__":
    raise SystemExit(main())
