"""What the figures are drawn from."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from gpi_latents import joblog, paths
from gpi_latents.core.pictures import open_picture
from gpi_latents.errors import ItemError
from gpi_latents.plan import has_draws
from gpi_latents.report import measures, style
from gpi_latents.report.measures import Pair

NAMED = 10  # worst items, outliers, pairs and so on that are named
NOTED = 5  # items named for each note


@dataclass
class Results:
    """A finished study.

    Attributes:
        config: the workflow's.
        index: the index table, every cell a text.
        threads: that may work on pictures side by side.
        shared: what several figures need, by its name, once it is known.
    """

    config: dict[str, Any]
    index: pd.DataFrame
    threads: int = 1
    shared: dict[str, Any] = field(default_factory=dict)

    @property
    def stacked(self) -> str:
        """The path of the tensor."""
        return self.config["stacked"]

    @property
    def edited(self) -> np.ndarray:
        """bool (N,): which items have a strength above 0, so that their latent is not their picture's."""
        return (pd.to_numeric(self.index["strength"], errors="coerce") > 0).to_numpy()

    @property
    def firsts(self) -> np.ndarray:
        """int (items,): the row of each item's first draw."""
        item = self.index["item" if has_draws(self.index) else "id"]
        return np.flatnonzero(~item.duplicated())

    @cached_property
    def logs(self) -> dict[int, joblog.Finished]:
        """What the items' jobs reported, by row; not of items without a log."""
        found = {row: joblog.read(paths.item_log(item_id)) for row, item_id in enumerate(self.index["id"])}
        return {row: log for row, log in found.items() if log}

    @property
    def components(self) -> measures.Map:
        """The principal components of the latents."""
        if "components" not in self.shared:
            self.shared["components"] = measures.principal_components(self.stacked)
        return self.shared["components"]

    def pair(self, row: int) -> Pair:
        """An item's two pictures, if pictures are decoded; raises ItemError as `measures.pair` does."""
        item = self.index.iloc[row]
        return measures.pair(self.config, item["image"], str(paths.picture_path(self.config, item["id"])))

    def input(self, row: int) -> str | None:
        """A thumbnail of an item's picture; None if it cannot be read."""
        try:
            return style.thumbnail(open_picture(self.index["image"].iloc[row])[0])
        except ItemError:
            return None

    def item_label(self, row: int) -> dict[str, Any]:
        """What names an item in a table."""
        item = self.index.iloc[row]
        return {"row": int(row), "id": item["id"], "strength": float(item["strength"] or 0), "prompt": item["prompt"]}


def read_index(path: str | Path) -> pd.DataFrame:
    """The index table, every cell as the text in the file."""
    return pd.read_csv(path, dtype=str, keep_default_na=False)


def notes(index: pd.DataFrame) -> list[dict[str, Any]]:
    """The notes on items, the most frequent first.

    Args:
        index: as `read_index` returns it; tables of earlier versions have no column `notes`.

    Returns:
        For each note its text `note`, the number `count` of its items, and the `ids` of the first ones.
    """
    if "notes" not in index:
        return []
    each = index["notes"].str.split("; ").explode()
    each = each[each != ""]
    groups = index["id"].loc[each.index].groupby(each.to_numpy(), sort=False)
    found = [{"note": note, "count": len(ids), "ids": list(ids[:NOTED])} for note, ids in groups]
    return sorted(found, key=lambda one: -one["count"])
