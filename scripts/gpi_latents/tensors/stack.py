"""All latents into one tensor in sheet order, the index table and the provenance beside it."""

from __future__ import annotations

import collections
import contextlib
import hashlib
import io
import json
import platform
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pandas as pd

from gpi_latents import joblog
from gpi_latents.errors import InputError, TensorError, bulleted
from gpi_latents.files import csv_text, empty_files, write_whole
from gpi_latents.origin import Origin
from gpi_latents.paths import MODEL, SKIPPED, item_log, latent_path
from gpi_latents.plan import RESULT_COLUMNS, read_config, read_plan
from gpi_latents.recipe import RECIPE_VERSION, canonical, model_digest
from gpi_latents.tensors.latent_file import Reader
from gpi_latents.tensors.tensor_file import tensor_writer
from gpi_latents.version import workflow


def write_results(
    plan: Path, model: Path, tensor: Path, index: Path, provenance_file: Path, failed_file: Path | None = None
) -> str:
    """Write the tensor, the index table and the provenance of a plan whose latents have been made.

    Args:
        plan: folder with the plan of the run.
        model: the file model.json.
        tensor: its suffix `.pt`, `.npy` or `.safetensors` chooses the format.
        index: the CSV file of the index table.
        provenance_file: the JSON file of the provenance.
        failed_file: the CSV file of the items that failed, which are left out; None if there must be none.

    Returns:
        A text for the log.

    Raises:
        UserError: the latents are not those of the plan, or of different shapes, or the plan or the model is missing.
        OSError: a file cannot be written.
    """
    config, table = read_config(plan), read_plan(plan)
    latents = {item_id: latent_path(config, item_id) for item_id in table["id"]}
    failed = _failed(table, latents if failed_file else {})
    for item_id in failed["id"]:
        del latents[item_id]
    if not latents:
        raise TensorError(f"None of the {len(table)} items could be done; the first: {failed['reason'].iloc[0]}")
    table = table.drop(index=failed.index, columns="sheet_row").assign(row=range(len(latents)))
    recipes = table.pop("recipe_sha256")
    made_by = _read_model(model)
    origin = provenance(config, made_by, len(table))
    if len(failed):
        origin["failed"] = failed.to_dict("records")
    temporary = tensor.with_name(f".{tensor.name}.tmp{tensor.suffix}")
    # There is no index table while the tensor is replaced, so that the two never disagree.
    index.unlink(missing_ok=True)
    try:
        stacked = stack(latents, temporary, {"provenance": canonical(origin)}, list(recipes), origin["model_sha256"])
        temporary.replace(tensor)
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()
    place = table.columns.get_loc("seed") + 1
    columns = {
        "sha256": [digest for digest, _ in stacked],
        "recipe_sha256": recipes,
        "image_sha256": [made.image_sha256 for _, made in stacked],
        "notes": ["; ".join(made.shown_notes) for _, made in stacked],
    }
    for number, name in enumerate(RESULT_COLUMNS):
        table.insert(place + number, name, columns[name])
    write_whole(provenance_file, (json.dumps(origin, indent=2, ensure_ascii=False) + "\n").encode())
    if failed_file:
        write_whole(failed_file, csv_bytes(failed))
    else:
        index.with_name(Path(SKIPPED).name).unlink(missing_ok=True)
    write_whole(index, csv_bytes(table))
    return f"stacked {len(table)} latents" + (f", left out {len(failed)} items that failed" if len(failed) else "")


def _failed(table: pd.DataFrame, latents: Mapping[str, str]) -> pd.DataFrame:
    """The rows of a plan whose latents are empty: `sheet_row`, `id`, `image` and `reason`.

    Raises:
        TensorError: a log does not say why.
    """
    empty = empty_files(latents.values())
    failed = table.loc[[latents.get(item_id) in empty for item_id in table["id"]], ["sheet_row", "id", "image"]]
    failed["sheet_row"] = failed["sheet_row"].astype(int)
    failed["reason"] = [joblog.failure(item_log(item_id)) for item_id in failed["id"]]
    for item_id in failed.loc[failed["reason"] == "", "id"]:
        raise TensorError(f"{latents[item_id]} is empty, and {item_log(item_id)} does not say why: run snakemake again")
    return failed


def stack(
    latents: Mapping[str, str], target: Path, metadata: dict[str, str], recipes: list[str], model_sha256: str
) -> list[tuple[str, Origin]]:
    """Write all latents into one file, reading one at a time.

    Args:
        latents: their files by the ids of the items, in sheet order.
        target: the suffix `.pt`, `.npy` or `.safetensors` chooses the format of the tensor (N, C, H, W), float32.
        metadata: texts that a safetensors file holds beside the tensor.
        recipes: the digests of the recipes that must have made the latents, in the same order.
        model_sha256: the digest of the model that must have made them.

    Returns:
        For each latent, the SHA-256 of its bytes (little-endian float32 in C order), hexadecimal, and what made it.

    Raises:
        TensorError: latents of different shapes or origins, or files that `Reader.read` refuses; all are named.
        OSError: the file cannot be written.
    """
    reader = _first_reader(list(latents.values()))
    stacked = []
    problems = []
    shapes: dict[tuple[int, ...], list[str]] = collections.defaultdict(list)
    with tensor_writer(target, (len(latents), *reader.shape[1:]), metadata) as file:
        for (item_id, path), recipe_digest in zip(latents.items(), recipes, strict=True):
            try:
                latent, origin = reader.read(path)
                _check_origin(path, origin, recipe_digest, model_sha256)
            except TensorError as error:
                problems.append(str(error))
                continue
            shapes[latent.shape[1:]].append(item_id)
            values = latent.tobytes()
            stacked.append((hashlib.sha256(values).hexdigest(), origin))
            if len(shapes) == 1:
                file.write(values)
    if problems:
        raise _unreadable(problems)
    if len(shapes) > 1:
        raise TensorError(_shapes_message(shapes))
    return stacked


def csv_bytes(table: pd.DataFrame) -> bytes:
    """A table of texts as CSV in UTF-8, checked to be the same table when it is read again.

    Raises:
        InputError: it is not; with a column of which a cell differs.
    """
    content = csv_text((table.columns, *table.itertuples(index=False))).encode()
    again = pd.read_csv(io.BytesIO(content), dtype=str, keep_default_na=False)
    if list(again) != list(table) or len(again) != len(table):
        raise InputError("The index table cannot be written as CSV: give the sheet's columns plainer names")
    for name in table:
        if list(again[name]) != list(map(str, table[name])):
            raise InputError(f"The index table cannot be written as CSV: simplify the texts of the column {name!r}")
    return content


def provenance(config: dict[str, Any], model: dict[str, Any], count: int) -> dict[str, Any]:
    """What made the latents: model, recipe version, config, and the workflow and software at the time of stacking."""
    packages = ("torch", "diffusers", "transformers", "pillow", "numpy", "snakemake")
    return {
        "items": count,
        "model": model,
        "model_sha256": model_digest(model, config.get("dtype")),
        "recipe_version": RECIPE_VERSION,
        "workflow": workflow(),
        "software": {"python": platform.python_version(), **{name: version(name) for name in packages}},
        "config": config,
    }


def _read_model(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        raise InputError(f"{path} is damaged: delete it and run snakemake again") from None


def _check_origin(path: str, origin: Origin, recipe_digest: str, model_sha256: str) -> None:
    """Raises TensorError if a latent says that something else made it than is planned."""
    for made_by, planned, what in (
        (origin.recipe_sha256, recipe_digest, "other settings than the sheet and the config now have"),
        (origin.model_sha256, model_sha256, f"another model than {MODEL} names"),
    ):
        if made_by and made_by != planned:
            raise TensorError(f"{path} was made with {what}: run snakemake again, which makes it again")


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
