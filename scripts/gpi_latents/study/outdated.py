"""Whether the results on disk still are those of the sheet and the pictures, for those who read them."""

from __future__ import annotations

import contextlib
import json
import os
from pathlib import Path

import pandas as pd

from gpi_latents import paths
from gpi_latents.digests import file_digest
from gpi_latents.errors import InputError, listed
from gpi_latents.plan import RESULT_COLUMNS
from gpi_latents.study.sheet import read_items
from gpi_latents.study.stale import read_failed, table_difference
from gpi_latents.study.study import plan_table


def outdated(results: Path, index: pd.DataFrame) -> str:
    """What has changed since the index table was made; empty if nothing has, or if that is not known here.

    Args:
        results: the folder `results` of a study.
        index: its index table, every cell a text.
    """
    try:
        provenance = results / Path(paths.PROVENANCE).name
        config = json.loads(provenance.read_text(encoding="utf-8"))["config"]
        sheet = results.parent / config["items"]
        if not {*RESULT_COLUMNS, "image"} <= {*index}:
            return ""  # of version 0.1
        if sheet.is_file():
            items = read_items(config | {"items": str(sheet)}, check_images=False)
            if difference := table_difference(index, plan_table(config, items)[0], read_failed(provenance)):
                return f"the sheet {sheet} has changed since ({difference})"
    except InputError as error:
        return str(error)
    except (OSError, ValueError, KeyError, TypeError):
        return ""  # away from their study
    made = os.stat(results / Path(paths.INDEX).name).st_mtime
    changed = []
    for item in index.itertuples(index=False):
        image = results.parent / item.image
        with contextlib.suppress(OSError):  # a picture that is not here any more
            # Of a latent that version 0.1 made, the picture is not known.
            if item.image_sha256 and image.stat().st_mtime > made and file_digest(image) != item.image_sha256:
                changed.append(item.id)
    return f"pictures have changed since: {listed(changed, 10)}" if changed else ""
