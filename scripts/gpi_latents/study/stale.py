"""Results that no longer belong to the sheet, the config, the pictures or the model, however Snakemake decides.

Snakemake alone goes by dates and by what it wrote down in `.snakemake`, which is lost when a study is copied without
it, and which `--touch` and `--rerun-triggers mtime` leave aside. The results themselves say what made them.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from gpi_latents import paths
from gpi_latents.digests import Digests
from gpi_latents.errors import ModelError
from gpi_latents.files import existing_files, read_text
from gpi_latents.model.source import is_other_model, read_model
from gpi_latents.origin import Origin, read_origin
from gpi_latents.plan import RESULT_COLUMNS
from gpi_latents.recipe import model_digest


def stale_results(config: Mapping[str, Any], plan: pd.DataFrame, zeroed: set[str]) -> dict[str, str]:
    """Find results that exist and have to be made again.

    Args:
        config: as `settings.load_config` returns it.
        plan: as `plan.write_plan` takes it.
        zeroed: the ids of items of which versions before 0.2 made other latents, if the model is one of Stable
            Diffusion XL.

    Returns:
        Why, by the file: `paths.MODEL`, latents, files of checksums, `paths.INDEX`.
    """
    stale = {}
    digests = Digests(paths.DIGESTS)
    index = read_index()
    model = _read(paths.MODEL)
    if model is None:
        model_sha256 = ""
    elif is_other_model(config, model, digests):
        stale[paths.MODEL] = "another model"
        model_sha256 = ""
    else:
        model_sha256 = model_digest(model, config["dtype"])
    if model is None or not str(model.get("family")).startswith("StableDiffusionXL"):
        zeroed = set()
    stale |= _stale_latents(config, plan, index, model_sha256, zeroed, digests)
    failed = read_failed()
    latents = [paths.latent_path(config, item_id) for item_id in plan["id"]]
    stale |= _stale_checksums(latents, {paths.latent_path(config, item["id"]) for item in failed})
    if index is not None and (difference := table_difference(index, plan, failed)):
        stale[paths.INDEX] = difference
    digests.save()
    return stale


def read_index(path: str | Path = paths.INDEX) -> pd.DataFrame | None:
    """The index table of the results, every cell a text; None if there is none that can be read."""
    try:
        return pd.read_csv(path, dtype=str, keep_default_na=False)
    except (OSError, ValueError):
        return None


def read_failed(provenance: str | Path = paths.PROVENANCE) -> list[dict[str, Any]]:
    """The items that failed when the results were made: of each `sheet_row`, `id`, `image` and `reason`."""
    return (_read(provenance) or {}).get("failed", [])


def table_difference(index: pd.DataFrame, plan: pd.DataFrame, failed: Iterable[Mapping[str, Any]] = ()) -> str:
    """In what an index table differs from the planned one, in a few words; empty if it does not.

    Args:
        index: every cell a text.
        plan: as `plan.write_plan` takes it.
        failed: as `read_failed` returns it.
    """
    lines = {item["id"]: (item["sheet_row"], item["id"], item["image"]) for item in failed}
    has_failed = plan["id"].isin(lines)
    if list(plan.loc[has_failed, ["sheet_row", "id", "image"]].itertuples(index=False, name=None)) != [*lines.values()]:
        return "other rows"
    plan = plan[~has_failed].assign(row=range(len(plan) - len(lines)))
    if missing := [name for name in RESULT_COLUMNS if name not in index]:
        return f"no column {missing[0]!r}"
    planned = plan.drop(columns=["sheet_row", "recipe_sha256"])
    if list(index.drop(columns=RESULT_COLUMNS)) != list(planned):
        return "other columns"
    if list(index["id"]) != list(planned["id"]):
        return "other rows"
    differ = [name for name in planned if index[name].tolist() != list(map(str, planned[name].tolist()))]
    if not differ and list(index["recipe_sha256"]) != list(plan["recipe_sha256"]):
        return "other settings"
    return ", ".join(f"column {name}" for name in differ)


def _stale_latents(
    config: Mapping[str, Any],
    plan: pd.DataFrame,
    index: pd.DataFrame | None,
    model_sha256: str,
    zeroed: set[str],
    digests: Digests,
) -> dict[str, str]:
    """The latents that something else made than is planned; of their files, only those in doubt are read."""
    known = _origins(index, config)
    stacked = os.stat(paths.INDEX).st_mtime_ns if known else 0
    items = {paths.latent_path(config, item.id): item for item in plan.itertuples(index=False)}
    latents = existing_files(items)
    logs = existing_files(paths.item_log(items[path].id) for path in latents)
    links: dict[str, int] = {}
    stale = {}
    for path, entry in latents.items():
        item = items[path]
        if not entry.stat().st_size:  # it failed, and the run ended before it was left out
            stale[path] = "failed"
            continue
        made = entry.stat().st_mtime_ns
        # Of a file that was put there since then, as from a backup, the index table does not tell.
        origin = known.get(item.id) if max(made, entry.stat().st_ctime_ns) <= stacked else None
        reason = _difference(origin, item, model_sha256) if origin else ""
        if origin is None or reason:
            origin = read_origin(path)  # of an item that was made after the index table
            reason = _difference(origin, item, model_sha256)
        if not reason and not origin.image_sha256 and item.id in zeroed:
            reason = "no negative prompt, which version 0.1 took for an empty one"
        if log := logs.get(paths.item_log(item.id)):
            made = min(made, log.stat().st_mtime_ns)  # Snakemake gives the latent a later date when its job has ended
        if not reason and origin.image_sha256:
            is_doubtful = paths.plain(origin.image) != paths.plain(item.image) or _changed_ns(item.image, links) > made
            reason = "picture" if is_doubtful and _digest(digests, item.image) != origin.image_sha256 else ""
        if reason:
            stale[path] = reason
    return stale


def _stale_checksums(latents: list[str], failed: set[str]) -> dict[str, str]:
    """The files of checksums that list other latents than those of their block, with or without those that failed."""
    stale = {}
    for number, path in enumerate(paths.checksum_paths(len(latents))):
        lines = read_text(path).splitlines()
        # The program sha256sum writes 64 digits and two characters before a name, and marks a line with an escaped one.
        is_escaped = any(line.startswith("\\") for line in lines)
        block = paths.block(latents, number)
        expected = block, [path for path in block if path not in failed]
        if lines and not is_escaped and [line[66:] for line in lines] not in expected:
            stale[path] = "other rows"
    return stale


def _origins(index: pd.DataFrame | None, config: Mapping[str, Any]) -> dict[str, Origin]:
    """What made the latents of an index table, by their ids.

    Nothing if the table is of an earlier version, or of other files than those of the config.
    """
    origin = _read(paths.PROVENANCE)
    if index is None or origin is None or not {*RESULT_COLUMNS, "id", "image"} <= {*index}:
        return {}
    before = origin.get("config") or {}
    if any(before.get(key) != config[key] for key in ("output_hidden_dir", "prefix_hidden")):
        return {}
    model_sha256 = origin.get("model_sha256") or model_digest(origin.get("model") or {})
    columns = (index[name].tolist() for name in ("id", "recipe_sha256", "image_sha256", "image"))
    return {
        item_id: Origin(recipe, image_sha256, model_sha256, image)
        for item_id, recipe, image_sha256, image in zip(*columns, strict=True)
    }


def _difference(origin: Origin, item: Any, model_sha256: str) -> str:
    """In what the origin of a latent differs from the plan; what is unknown does not."""
    if origin.recipe_sha256 and origin.recipe_sha256 != item.recipe_sha256:
        return "settings"
    if origin.model_sha256 and model_sha256 and origin.model_sha256 != model_sha256:
        return "model"
    return ""


def _changed_ns(path: str, links: dict[str, int]) -> int:
    """When a picture, or a link on the way to it, was changed or put there, in nanoseconds; 0 if it is missing.

    A file that was moved or copied to its place may be dated earlier; the date of its entry on the disk is not.
    """
    folder = os.path.dirname(path)
    if folder not in links:
        steps = [each for each in (Path(folder), *Path(folder).parents) if each.is_symlink()]
        links[folder] = max((os.lstat(each).st_ctime_ns for each in steps), default=0)
    try:
        found, link = os.stat(path), os.lstat(path)
    except OSError:
        return 0
    return max(found.st_mtime_ns, found.st_ctime_ns, link.st_ctime_ns, links[folder])


def _digest(digests: Digests, path: str) -> str:
    try:
        return digests.of(path)
    except OSError:
        return ""


def _read(path: str | Path) -> dict[str, Any] | None:
    try:
        found = read_model(path)
    except ModelError:
        return None
    return found if isinstance(found, dict) else None
