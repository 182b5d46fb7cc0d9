"""What a dry run tells the user: which items would run and why, in words, and what follows them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import pandas as pd

from gpi_latents import paths
from gpi_latents.errors import InputError
from gpi_latents.files import read_json
from gpi_latents.plan import read_plan
from gpi_latents.recipe import RECIPE_VERSION, SETTINGS
from gpi_latents.study.stale import read_index
from gpi_latents.study.study import Study

IDS_SHOWN = 10  # of each reason
# Keys of the config that decide all latents, and those that say where they are.
DECIDING = ["model_id", "revision", "variant", "vae_id", "dtype", "image_size", "resize", "posterior"]
DECIDING += ["scheduler", "batch_size"]
PLACES = ["output_hidden_dir", "prefix_hidden", "output_image_dir", "save_name"]
# Parts of Snakemake's reasons, and what they mean here; the first that is found counts.
REASONS = {
    "Missing output files": "missing",
    "Incomplete output files": "unfinished",
    "Params have changed": "settings",
    f"Input files updated by another job: {paths.MODEL}": "model",
    f"Updated input files: {paths.MODEL}": "model",
    "Updated input files": "picture",
    "Set of input files has changed": "picture",
    "Forced execution": "forced",
    "Code has changed": "code",
    "Software environment": "software environment",
}


def would_run(study: Study, jobs: Iterable[Mapping[str, Any]]) -> str:
    """What a dry run has found, as a text for the user.

    Args:
        study: the study as it is now.
        jobs: those that would run: `rule`, `wildcards` and `reason` (Snakemake's text) of each.
    """
    extracts: dict[str, str] = {}
    others: dict[str, list[str]] = {}
    for job in jobs:
        if job["rule"] == "extract":
            extracts[job["wildcards"]["id"]] = job["reason"]
        elif job["rule"] not in ("all", "checksums"):
            others.setdefault(job["rule"], []).append(job["reason"])
    named = {rule: f"{rule} ({len(each)} jobs)" if len(each) > 1 else rule for rule, each in others.items()}
    if paths.MODEL in study.stale and "model" in named:
        named["model"] = f"model ({study.stale[paths.MODEL]})"
    if not extracts:
        if "stack" in named:
            named["stack"] = f"stack ({_stack_reason(study, others['stack'][0])})"
        return f"Would run: {', '.join(named.values())}. No item would be extracted." if named else ""
    groups: dict[str, list[str]] = {}
    for item_id, reason in item_reasons(study, extracts).items():
        groups.setdefault(reason, []).append(item_id)
    items = ", ".join(f"{_shown(ids)} ({reason})" for reason, ids in groups.items())
    first = f"First: {named.pop('model')}." if "model" in named else ""
    then = f"Then: {', '.join(named.values())}." if named else ""
    return "\n".join(filter(None, [first, f"Would extract {len(extracts)} of {len(study.items)}: {items}", then]))


def item_reasons(study: Study, extracts: Mapping[str, str]) -> dict[str, str]:
    """Why items would run, in a few words each, in sheet order.

    Args:
        study: the study as it is now.
        extracts: Snakemake's reasons by the ids of the items.
    """
    index, made_by = read_index(), read_json(paths.PROVENANCE)
    known = _ids(index)
    before = made_by.get("config") or {}
    moved = ", ".join(key for key in PLACES if key in before and before[key] != study.config[key])
    failed = _ids(read_index(paths.FAILED)) | _ids(read_index(paths.SKIPPED))
    reasons = {}
    for item_id, latent in zip(study.items, study.latents, strict=True):
        if item_id not in extracts:
            continue
        text = extracts[item_id]
        meaning = study.stale.get(latent) or next((REASONS[part] for part in REASONS if part in text), text[:60])
        if meaning == "missing":
            meaning = (moved or "file lost") if item_id in known else "new"
            meaning = "failed before" if item_id in failed else meaning
        reasons[item_id] = "made by an earlier version" if "version 0.1" in meaning else meaning
    changed = [item_id for item_id, reason in reasons.items() if reason == "settings"]
    return reasons | _changed_settings(study, changed, index, made_by)


def _changed_settings(
    study: Study, ids: list[str], index: pd.DataFrame | None, made_by: Mapping[str, Any]
) -> dict[str, str]:
    """The names of the settings that differ between the results and the plan, by the ids of the items."""
    before = made_by.get("config") or {}
    common = ", ".join(key for key in DECIDING if key in before and before[key] != study.config[key]) or "settings"
    if made_by.get("recipe_version", RECIPE_VERSION) != RECIPE_VERSION:
        common = "made by an earlier version"
    reasons = dict.fromkeys(ids, common)
    try:
        planned = read_plan(study.plan).set_index("id")
    except InputError:  # it could not be written
        return reasons
    known = _ids(index)
    if index is None or not (ids := [item_id for item_id in ids if item_id in known]):
        return reasons
    names = [name for name in ["prompt", *SETTINGS] if name in index]
    differ = index.drop_duplicates("id").set_index("id").loc[ids, names].ne(planned.loc[ids, names])
    for item_id, row in zip(ids, differ.to_numpy(), strict=True):
        reasons[item_id] = ", ".join(name for name, differs in zip(names, row, strict=True) if differs) or common
    return reasons


def _ids(table: pd.DataFrame | None) -> set[str]:
    return set() if table is None or "id" not in table else set(table["id"])


def _stack_reason(study: Study, reason: str) -> str:
    """Why the latents would be stacked again, although none is made."""
    if difference := study.stale.get(paths.INDEX):
        return f"{difference} changed" if difference.startswith("column") else difference
    if "Missing output files" in reason:
        return "its results are missing"
    return "forced" if "Forced" in reason else reason[:60]


def _shown(ids: list[str]) -> str:
    rest = len(ids) - IDS_SHOWN
    return ", ".join(ids[:IDS_SHOWN]) + (f" and {rest} more" if rest > 0 else "")
