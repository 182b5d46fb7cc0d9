"""The report's figures: each is drawn into a PNG file, with its numbers and words in a JSON file beside."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from gpi_latents.errors import InputError
from gpi_latents.files import write_whole
from gpi_latents.plan import read_config
from gpi_latents.report import style
from gpi_latents.report.facts import Results, read_index
from gpi_latents.report.latent_figures import channel_values, duplicates, latent_map, run_times
from gpi_latents.report.overlap import overlap
from gpi_latents.report.picture_figures import contact_sheet, reconstruction
from gpi_latents.tensors.tensor_file import open_latents

FIGURES: dict[str, Callable[[Results], tuple[Figure, dict[str, Any]]]] = {
    "contact_sheet": contact_sheet,
    "reconstruction": reconstruction,
    "map": latent_map,
    "overlap": overlap,
    "values": channel_values,
    "duplicates": duplicates,
    "run_times": run_times,
}


def draw(name: str, plan: Path, index: Path, picture: Path, facts_file: Path) -> str:
    """Draw one figure into a PNG file, and write its words and numbers into a JSON file.

    Args:
        name: one of `FIGURES`.
        plan: folder with the plan of the run.
        index, picture, facts_file: the index table, the PNG file and the JSON file.

    Returns:
        A text for the log.

    Raises:
        InputError: tensor and index table do not belong together, or the colour's column is missing.
        TensorError: the tensor is damaged.
        OSError: a file cannot be read or written.
    """
    results = Results(read_config(plan), read_index(index))
    if len(results.index) != len(open_latents(results.stacked)):
        raise InputError(f"{results.stacked} and {index} do not belong together: run snakemake again")
    style.apply()
    figure, facts = FIGURES[name](results)
    png = io.BytesIO()
    figure.savefig(png, format="png", metadata={"Software": None})
    write_whole(picture, png.getvalue())
    write_whole(facts_file, (json.dumps(facts, ensure_ascii=False, allow_nan=False) + "\n").encode())
    return f"drew {name} of {len(results.index)} items"
