"""Read sheets and configs in the working directory, as Snakemake's parsing does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from gpi_latents.errors import InputError
from gpi_latents.study.settings import load_config
from gpi_latents.study.sheet import read_items


def read(text: str | bytes, **config) -> pd.DataFrame:
    """Write a sheet and read it."""
    Path("sheet.csv").write_bytes(text if isinstance(text, bytes) else text.encode())
    return read_items(load_config({"items": "sheet.csv", "model_id": "demo", **config}))


def refused(text: str | bytes, **config) -> str:
    """The message for a sheet, or for a config together with a sheet, that is refused."""
    with pytest.raises(InputError) as caught:
        read(text, **config)
    return str(caught.value)


def refused_config(given: dict[Any, Any], command_line: tuple[str, ...] = ()) -> str:
    """The message for a config that is refused."""
    with pytest.raises(InputError) as caught:
        load_config({"model_id": "demo", **given}, command_line)
    return str(caught.value)
