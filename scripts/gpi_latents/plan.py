"""The plan of a run: the checked config, the index table and the items' recipes, as files that its commands read.

Written where Snakemake parses, so that what is edited during a run does not change what the run does.
"""

from __future__ import annotations

import contextlib
import csv
import hashlib
import json
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gpi_latents import paths
from gpi_latents.errors import InputError
from gpi_latents.files import write_whole
from gpi_latents.recipe import canonical

if TYPE_CHECKING:
    import pandas as pd

# First columns of the plan: the row in the sheet (its header is row 1), and the SHA-256 of the item's recipe.
PLAN_COLUMNS = ["sheet_row", "recipe_sha256"]
# Columns that the index table has after the settings: SHA-256 of the latent's values, of the item's recipe and of the
# picture's file, and what was done to the picture beyond resizing.
RESULT_COLUMNS = ["sha256", "recipe_sha256", "image_sha256", "notes"]

ITEMS = "items.jsonl"  # resident/client.py, which imports nothing of ours, has it too

NUMBER = r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?"  # a cell that is a number, apart from blanks around it; ASCII

# Cells that hold no value, apart from blanks around them: what R, pandas, Excel and databases write for it.
MISSING = frozenset({"", "NA", "N/A", "NaN", "nan", "<NA>", "NULL"})
BOOLEANS = {"TRUE": True, "True": True, "true": True, "FALSE": False, "False": False, "false": False}


def has_draws(table: pd.DataFrame) -> bool:
    """Whether some items of an index table have several draws; `item` and `draw` may also be columns of the user's."""
    if not {"id", "item", "draw"} <= {*table}:
        return False
    known = table.loc[table["item"].notna(), ["id", "item"]].astype(str)
    pairs = zip(known["id"], known["item"], strict=True)
    return all(item_id == item or item_id.startswith(f"{item}_") for item_id, item in pairs)


def write_plan(config: Mapping[str, Any], table: pd.DataFrame, items: Sequence[bytes] = ()) -> str:
    """Write the plan, unless it exists.

    Args:
        config: as `settings.load_config` returns it.
        table: the `PLAN_COLUMNS`, then the index table without the `RESULT_COLUMNS`.
        items: as `item_lines` makes them.

    Returns:
        Its folder, named after its content.
    """
    settings = canonical(config).encode()
    rows = table.to_csv(index=False, lineterminator="\n", quoting=csv.QUOTE_ALL).encode()
    lines = b"".join(items)
    folder = Path(paths.PLANS, hashlib.sha256(settings + rows + lines).hexdigest()[:12])
    unfinished = Path(paths.PLANS, f".{folder.name}.{os.getpid()}")
    with contextlib.suppress(OSError):  # a dry run in a folder that cannot be written, or another run with this plan
        if not folder.exists():
            unfinished.mkdir(parents=True, exist_ok=True)
            write_whole(unfinished / "config.json", settings + b"\n")
            write_whole(unfinished / "plan.csv", rows)
            write_whole(unfinished / ITEMS, lines)
            unfinished.rename(folder)
    shutil.rmtree(unfinished, ignore_errors=True)
    return str(folder)


def read_config(folder: str | Path) -> dict[str, Any]:
    """The config of a plan.

    Raises:
        InputError: there is no such plan.
    """
    with _reading(folder):
        return json.loads(Path(folder, "config.json").read_text(encoding="utf-8"))


def read_plan(folder: str | Path) -> pd.DataFrame:
    """The table of a plan, every cell a text.

    Raises:
        InputError: there is no such plan.
    """
    import pandas as pd  # here, since the resident and the rule model do without

    with _reading(folder):
        return pd.read_csv(Path(folder, "plan.csv"), dtype=str, keep_default_na=False)


def item_lines(images: Iterable[str], recipes: Iterable[str]) -> list[bytes]:
    """What the items' jobs are to do, each as a line of JSON.

    The jobs get the place of their line in the plan's file: what stands on a command line, every user of the machine
    can read.

    Args:
        images: the paths of the pictures.
        recipes: as canonical JSON.
    """
    lines = (
        f'{{"image":{canonical(image)},"recipe":{recipe}}}\n' for image, recipe in zip(images, recipes, strict=True)
    )
    return [line.encode() for line in lines]


def read_item_lines(folder: str | Path) -> list[bytes]:
    """The lines of all items, in sheet order.

    Raises:
        InputError: there is no such plan.
    """
    with _reading(folder):
        return Path(folder, ITEMS).read_bytes().splitlines(keepends=True)


def read_item(folder: str | Path, place: int) -> dict[str, Any]:
    """An item of a plan: its `image` and its `recipe`.

    Args:
        place: in bytes, where its line begins.

    Raises:
        InputError: there is no such plan.
    """
    with _reading(folder), Path(folder, ITEMS).open("rb") as file:
        file.seek(place)
        return json.loads(file.readline())


def remove_other_plans(folder: str) -> None:
    """Remove the plans of earlier runs."""
    for other in Path(paths.PLANS).glob("*/"):
        if other != Path(folder):
            shutil.rmtree(other, ignore_errors=True)


@contextlib.contextmanager
def _reading(folder: str | Path) -> Iterator[None]:
    try:
        yield
    except OSError:
        advice = "run snakemake again, after making room if the disk is full"
        raise InputError(f"The plan of this run, {folder}, is missing: {advice}") from None
