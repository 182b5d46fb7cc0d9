"""Latents for the tests of this room."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from gpi_latents.tensors.latent_file import latent_bytes


@pytest.fixture
def values() -> dict[str, torch.Tensor]:
    """Seven latents that are all different."""
    generator = torch.Generator().manual_seed(0)
    return {item_id: torch.randn(1, 4, 8, 6, generator=generator) for item_id in "abcdefg"}


@pytest.fixture
def latents(tmp_path, values) -> dict[str, str]:
    """Their files, of three kinds: as the workflow writes them, in two memory layouts, and as torch alone does."""
    paths = {item_id: str(tmp_path / f"hidden_{item_id}.pt") for item_id in values}
    for item_id, path in paths.items():
        if item_id == "g":
            torch.save(values[item_id], path)
        else:
            layout = torch.contiguous_format if item_id == "f" else torch.channels_last
            Path(path).write_bytes(latent_bytes(values[item_id].contiguous(memory_format=layout)))
    return paths
