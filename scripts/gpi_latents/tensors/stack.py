"""All latents into one tensor in sheet order, the index table and the provenance beside it."""

from __future__ import annotations

import collections
import json
import platform
from collections.abc import Iterable
from importlib.metadata import version
from pathlib import Path
from typing import Any

from gpi_latents.errors import InputError
from gpi_latents.files import write_whole
from gpi_latents.paths import latent_path
from gpi_latents.plan import PLAN_COLUMNS, read_config, read_plan
from gpi_latents.recipe import RECIPE_VERSION, canonical
from gpi_latents.tensors.latent_file import Reader, read_latent
from gpi_latents.tensors.tensor_file import tensor_writer


def stack(
    paths: Iterable[str], ids: list[str], target: Path, metadata: dict[str, str], recipes: Iterable[str] | None = None
) -> list[str]:
    """Write all latents into one file, reading one at a time.

    Args:
        paths: of the latents, in sheet order.
        ids: of their items, in the same order.
        target: the suffix `.pt`, `.npy` or `.safetensors` chooses the format of the tensor (N, C, H, W), float32.
        metadata: texts that a safetensors file holds beside the tensor.
        recipes: the digests of the recipes that must have made the latents, in the same order.

    Returns:
        The SHA-256 of each latent's bytes (little-endian float32 in C order), hexadecimal.

    Raises:
        InputError: the latents are not all of one shape, or not what `Reader.read` takes.
    """
    paths = list(paths)
    digests = []
    reader = Reader(paths[0])
    with tensor_writer(target, (len(paths), *reader.shape[1:]), metadata) as file:
        for path, recipe_digest in zip(paths, recipes or [""] * len(paths), strict=True):
            latent = reader.read(path, recipe_digest)
            if latent is None:
                raise InputError(_shapes_message(paths, ids))
            file.write(latent[0])
            digests.append(latent[1])
    return digests


def _shapes_message(paths: list[str], ids: list[str]) -> str:
    found = collections.defaultdict(list)
    for path, item_id in zip(paths, ids, strict=True):
        found[tuple(read_latent(path).shape[1:])].append(item_id)
    lines = ["The latents have different shapes (C, H, W), so they make no one tensor:"]
    for shape, members in sorted(found.items(), key=lambda entry: -len(entry[1])):
        named = ", ".join(members[:5]) + (", ..." if len(members) > 5 else "")
        lines.append(f"  - {shape}: {len(members)} item{'s' * (len(members) > 1)} ({named})")
    lines.append("With resize 'pad', 'crop' or 'stretch' all have one shape. Each item's own latent is there anyway.")
    return "\n".join(lines)


def provenance(config: dict[str, Any], model: dict[str, Any], count: int) -> dict[str, Any]:
    """What made the latents: model, recipe version, config, and the software at the time of stacking."""
    packages = ("torch", "diffusers", "transformers", "pillow", "numpy", "snakemake")
    return {
        "items": count,
        "model": model,
        "recipe_version": RECIPE_VERSION,
        "software": {"python": platform.python_version(), **{name: version(name) for name in packages}},
        "config": config,
    }


def write_results(plan: Path, model: Path, tensor: Path, index: Path, provenance_file: Path) -> str:
    """Write the tensor, the index table and the provenance of a plan whose latents have been made.

    Args:
        plan: folder with the plan of the run.
        model: the file model.json.
        tensor: its suffix `.pt`, `.npy` or `.safetensors` chooses the format.
        index: the CSV file of the index table.
        provenance_file: the JSON file of the provenance.

    Returns:
        A text for the log.

    Raises:
        InputError: the latents are not those of the plan, or of different shapes.
        OSError: a file cannot be written.
    """
    config, table = read_config(plan), read_plan(plan)
    recipes = list(table["recipe_sha256"])
    table = table.drop(columns=PLAN_COLUMNS)
    origin = provenance(config, json.loads(model.read_text(encoding="utf-8")), len(table))
    latents = [latent_path(config, item_id) for item_id in table["id"]]
    temporary = tensor.with_name(f".{tensor.name}.tmp{tensor.suffix}")
    try:
        # The index is absent while the tensor is replaced, so that the two never disagree.
        index.unlink(missing_ok=True)
        metadata = {"provenance": canonical(origin)}
        digests = stack(latents, list(table["id"]), temporary, metadata, recipes)
        temporary.replace(tensor)
    finally:
        temporary.unlink(missing_ok=True)
    table.insert(table.columns.get_loc("seed") + 1, "sha256", digests)
    write_whole(provenance_file, (json.dumps(origin, indent=2, ensure_ascii=False) + "\n").encode())
    write_whole(index, table.to_csv(index=False, lineterminator="\n").encode())
    return f"stacked {len(table)} latents"
