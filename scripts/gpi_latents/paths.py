"""Where everything is: the workflow's own files, and the results, as paths from the working directory."""

from __future__ import annotations

import glob
import math
import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

PACKAGE = Path(__file__).resolve().parent
SCRIPTS = PACKAGE.parent
# In a clone of the repository, or where pip has installed the package.
DEMO_MODEL = next((path for path in [SCRIPTS.parent / "config/demo/model"] if path.is_dir()), PACKAGE / "demo_model")
DEMO_PICTURES = SCRIPTS.parent / "config/demo/images"

MODEL = "results/model.json"
INDEX = "results/index.csv"
PROVENANCE = "results/provenance.json"
REPORT = "results/report.html"
REPORT_JSON = "results/report.json"
EARLIER_REPORT = "results/report.earlier.html"
CHECK = "results/check.csv"
FAILED = "logs/failed.csv"  # after a run that failed
SKIPPED = "results/failed.csv"  # the items that on_error: skip left out
PLANS = ".snakemake/gpi-latents"
DIGESTS = f"{PLANS}/digests.json"  # of a local model's files and of pictures that may have changed
FOLDERS = ["results", "results/checksums", "results/report"]  # besides those that the config chooses

BLOCK = 100  # latents whose checksums are in one file

# The report's figures in their order, each with its title and its category in `snakemake --report`.
FIGURES = {
    "contact_sheet": ("Input and decoded output", "Pictures"),
    "reconstruction": ("Reconstruction error", "Pictures"),
    "map": ("Map of the latents", "Latents"),
    "overlap": ("Overlap of the groups", "Treatment"),
    "values": ("Values by channel", "Latents"),
    "duplicates": ("Near-duplicates", "Latents"),
    "run_times": ("Run times", "Run"),
}


def plain(path: str) -> str:
    """A path without `./` and doubled slashes, which Snakemake warns of.

    `..` stays: after a link to a folder, it is the folder above the one that the link leads to.
    """
    return re.sub(r"/(\.?/)+", "/", path).removeprefix("./") or "."


def from_where(path: str, start: str) -> str:
    """A path as one writes it who stands in the folder `start`: from there if it is below it, else absolute."""
    path, start = os.path.abspath(path), os.path.abspath(start)
    return os.path.relpath(path, start) if Path(path).is_relative_to(start) else path


def latent_path(config: Mapping[str, Any], item_id: str) -> str:
    """The file of an item's latent."""
    return os.path.normpath(f"{config['output_hidden_dir']}/{config['prefix_hidden']}_{item_id}.pt")


def picture_path(config: Mapping[str, Any], item_id: str) -> str | None:
    """The file of an item's decoded picture; None if no pictures are decoded."""
    if config["output_image_dir"] is None:
        return None
    return os.path.normpath(f"{config['output_image_dir']}/{config['save_name']}_{item_id}.png")


def item_log(item_id: str) -> str:
    """The log of an item's job."""
    return f"logs/extract/{item_id}.log"


def resident_logs(job: str) -> list[str]:
    """The logs of the resident models of a job on Slurm, whose names end with its number."""
    return sorted(glob.glob(f"logs/resident-*-{job}.log"))


def figures(config: Mapping[str, Any], columns: Iterable[str]) -> list[str]:
    """The names of the report's figures.

    None of pictures if no pictures are decoded, and none of the treatment if the sheet has no such column.
    """
    left_out = set() if config["output_image_dir"] else {"Pictures"}
    left_out |= set() if "treatment" in columns else {"Treatment"}
    return [name for name, (_, kind) in FIGURES.items() if kind not in left_out]


def drawn(figure: str) -> str:
    """The file that keeps a figure for later runs."""
    return f"{PLANS}/{figure}.figure.json"


def block(latents: list[str], number: int) -> list[str]:
    """The latents whose checksums are in one file, in sheet order."""
    return latents[number * BLOCK : (number + 1) * BLOCK]


def checksum_path(number: int | str) -> str:
    """The file with the SHA-256 of one block's latents, in the format of the program sha256sum."""
    return f"results/checksums/{number}.sha256"


def checksum_paths(count: int) -> list[str]:
    """The checksum files of all blocks of a sheet with `count` items."""
    return [checksum_path(number) for number in range(math.ceil(count / BLOCK))]
