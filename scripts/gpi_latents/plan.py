"""The plan of a run: the checked config and the index table, as files that all commands of the run read.

Written where Snakemake parses, so that what is edited during a run does not change what the run does.
"""

from __future__ import annotations

import contextlib
import csv
import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from gpi_latents import paths
from gpi_latents.errors import InputError
from gpi_latents.files import write_whole
from gpi_latents.recipe import canonical

# First columns of the plan: the row in the sheet (its header is row 1), and the SHA-256 of the item's recipe.
PLAN_COLUMNS = ["sheet_row", "recipe_sha256"]
# Columns that the index table has after the settings: SHA-256 of the latent's values, of the item's recipe and of the
# picture's file, and what was done to the picture beyond resizing.
RESULT_COLUMNS = ["sha256", "recipe_sha256", "image_sha256", "notes"]

NUMBER = r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?"  # a cell that is a number, apart from blanks around it; ASCII

# Cells that hold no value, apart from blanks around them: what R, pandas, Excel and databases write for it.
MISSING = frozenset({"", "NA", "N/A", "NaN", "nan", "<NA>", "NULL"})


def write_plan(config: Mapping[str, Any], table: pd.DataFrame) -> str:
    """Write the plan, unless it exists.

    Args:
        config: as `settings.load_config` returns it.
        table: the `PLAN_COLUMNS`, then the index table without the `RESULT_COLUMNS`.

    Returns:
        Its folder, named after its content.
    """
    settings = canonical(config).encode()
    rows = table.to_csv(index=False, lineterminator="\n", quoting=csv.QUOTE_ALL).encode()
    folder = Path(paths.PLANS, hashlib.sha256(settings + rows).hexdigest()[:12])
    unfinished = Path(paths.PLANS, f".{folder.name}.{os.getpid()}")
    with contextlib.suppress(OSError):  # a dry run in a folder that cannot be written, or another run with this plan
        if not folder.exists():
            unfinished.mkdir(parents=True, exist_ok=True)
            write_whole(unfinished / "config.json", settings + b"\n")
            write_whole(unfinished / "plan.csv", rows)
            unfinished.rename(folder)
    shutil.rmtree(unfinished, ignore_errors=True)
    return str(folder)


def read_config(folder: str | Path) -> dict[str, Any]:
    """The config of a plan.

    Raises:
        InputError: there is no such plan.
    """
    try:
        return json.loads(Path(folder, "config.json").read_text(encoding="utf-8"))
    except OSError:
        raise _no_plan(folder) from None


def read_plan(folder: str | Path) -> pd.DataFrame:
    """The table of a plan, every cell a text.

    Raises:
        InputError: there is no such plan.
    """
    try:
        return pd.read_csv(Path(folder, "plan.csv"), dtype=str, keep_default_na=False)
    except OSError:
        raise _no_plan(folder) from None


def remove_other_plans(folder: str) -> None:
    """Remove the plans of earlier runs."""
    for other in Path(paths.PLANS).glob("*/"):
        if other != Path(folder):
            shutil.rmtree(other, ignore_errors=True)


def _no_plan(folder: str | Path) -> InputError:
    advice = "run snakemake again, after making room if the disk is full"
    return InputError(f"The plan of this run, {folder}, is missing: {advice}")
