"""All latents into one tensor in sheet order, the index table and the provenance beside it."""

from __future__ import annotations

import collections
import contextlib
import hashlib
import json
import platform
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

from gpi_latents.errors import InputError, TensorError, bulleted
from gpi_latents.files import write_whole
from gpi_latents.paths import latent_path
from gpi_latents.plan import PLAN_COLUMNS, read_config, read_plan
from gpi_latents.recipe import RECIPE_VERSION, canonical
from gpi_latents.tensors.latent_file import Reader
from gpi_latents.tensors.tensor_file import tensor_writer


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
        UserError: the latents are not those of the plan, or of different shapes, or the plan or the model is missing.
        OSError: a file cannot be written.
    """
    config, table = read_config(plan), read_plan(plan)
    latents = {item_id: latent_path(config, item_id) for item_id in table["id"]}
    recipes = list(table["recipe_sha256"])
    table = table.drop(columns=PLAN_COLUMNS)
    origin = provenance(config, _read_model(model), len(table))
    temporary = tensor.with_name(f".{tensor.name}.tmp{tensor.suffix}")
    # There is no index table while the tensor is replaced, so that the two never disagree.
    index.unlink(missing_ok=True)
    try:
        digests = stack(latents, temporary, {"provenance": canonical(origin)}, recipes)
        temporary.replace(tensor)
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()
    table.insert(table.columns.get_loc("seed") + 1, "sha256", digests)
    write_whole(provenance_file, (json.dumps(origin, indent=2, ensure_ascii=False) + "\n").encode())
    write_whole(index, table.to_csv(index=False, lineterminator="\n").encode())
    return f"stacked {len(table)} latents"


def stack(latents: Mapping[str, str], target: Path, metadata: dict[str, str], recipes: list[str]) -> list[str]:
    """Write all latents into one file, reading one at a time.

    Args:
        latents: their files by the ids of the items, in sheet order.
        target: the suffix `.pt`, `.npy` or `.safetensors` chooses the format of the tensor (N, C, H, W), float32.
        metadata: texts that a safetensors file holds beside the tensor.
        recipes: the digests of the recipes that must have made the latents, in the same order; empty if any will do.

    Returns:
        The SHA-256 of each latent's bytes (little-endian float32 in C order), hexadecimal.

    Raises:
        TensorError: latents of different shapes, or files that `Reader.read` refuses; all are named.
        OSError: the file cannot be written.
    """
    reader = _first_reader(list(latents.values()))
    digests = []
    problems = []
    shapes: dict[tuple[int, ...], list[str]] = collections.defaultdict(list)
    with tensor_writer(target, (len(latents), *reader.shape[1:]), metadata) as file:
        for (item_id, path), recipe_digest in zip(latents.items(), recipes, strict=True):
            try:
                latent = reader.read(path, recipe_digest)
            except TensorError as error:
                problems.append(str(error))
                continue
            shapes[latent.shape[1:]].append(item_id)
            values = latent.tobytes()
            digests.append(hashlib.sha256(values).hexdigest())
            if len(shapes) == 1:
                file.write(values)
    if problems:
        raise _unreadable(problems)
    if len(shapes) > 1:
        raise TensorError(_shapes_message(shapes))
    return digests


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


def _read_model(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        raise InputError(f"{path} is damaged: delete it and run snakemake again") from None


def _first_reader(paths: list[str]) -> Reader:
    problems = []
    for path in paths:
        try:
            return Reader(path)
        except TensorError as error:
            problems.append(str(error))
    raise _unreadable(problems)


def _unreadable(problems: list[str]) -> TensorError:
    if len(problems) == 1:
        return TensorError(problems[0])
    return TensorError(bulleted(f"{len(problems)} latents cannot be stacked:", problems))


def _shapes_message(shapes: Mapping[tuple[int, ...], list[str]]) -> str:
    lines = ["The latents have different shapes (C, H, W), so they make no one tensor:"]
    for shape, members in sorted(shapes.items(), key=lambda entry: -len(entry[1])):
        shown = ", ".join(members[:5]) + (", ..." if len(members) > 5 else "")
        lines.append(f"  - {shape}: {len(members)} item{'s' * (len(members) > 1)} ({shown})")
    lines.append("With resize 'pad', 'crop' or 'stretch' all have one shape. Each item's own latent has been made.")
    return "\n".join(lines)
