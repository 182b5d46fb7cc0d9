"""List the files among the results that belong to no item of the sheet, and to nothing that is made now."""

from __future__ import annotations

import glob
import io
import os
import sys
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from gpi_latents import paths
from gpi_latents.errors import TensorError
from gpi_latents.plan import read_config, read_plan
from gpi_latents.tensors.tensor_file import open_latents


def orphans(config: Mapping[str, Any], ids: Collection[str], figures: Collection[str]) -> list[str]:
    """The files of ours that nothing refers to any more.

    Args:
        config: as `settings.load_config` returns it.
        ids: of all items.
        figures: the names of the report's figures.
    """
    found = []
    for path in (paths.latent_path, paths.picture_path):
        if pattern := path(config, "*"):
            own = {path(config, item_id) for item_id in ids}
            folder, name = os.path.split(pattern)
            found += sorted(str(file) for file in Path(folder).glob(name) if str(file) not in own)
    checksums = {str(file) for file in Path().glob(paths.checksum_path("*"))}
    found += sorted(checksums - set(paths.checksum_paths(len(ids))))
    return found + _old_tensors(config) + _old_reports(config, figures)


def _old_tensors(config: Mapping[str, Any]) -> list[str]:
    """Tensors of all latents, in results/ or of the same name as today's, that `stacked` no longer names."""
    stacked = Path(config["stacked"])
    places = [*Path("results").glob("*.*"), *stacked.parent.glob(f"{glob.escape(stacked.stem)}.*")]
    return sorted({str(file) for file in places if file.resolve() != stacked.resolve() and _is_tensor(file)})


def _is_tensor(file: Path) -> bool:
    try:
        open_latents(file)
    except TensorError:
        return False
    return True


def _old_reports(config: Mapping[str, Any], figures: Collection[str]) -> list[str]:
    """Files of figures that are not drawn now, such as one of a column that is gone; all, if there is no report now."""
    drawn = set(figures) if config["report"] else set()
    old = [file for file in Path("results/report").glob("*.*") if file.stem not in drawn]
    reports = [] if config["report"] else [paths.REPORT, paths.EARLIER_REPORT, paths.REPORT_JSON]
    return sorted(map(str, old)) + [path for path in reports if os.path.exists(path)]


def listed_orphans(plan: Path) -> str:
    """The `orphans` of a plan's study, one per line."""
    if isinstance(sys.stdout, io.TextIOWrapper):  # the names of files may hold any bytes
        sys.stdout.reconfigure(encoding="utf-8", errors="backslashreplace")
    config, table = read_config(plan), read_plan(plan)
    return "\n".join(orphans(config, table["id"], paths.figures(config, table)))
