"""Latents of a diffusion model for GPI: results as arrays (`load`, `arrays`), effects (`estimate`), extraction alone.

Importing this package is light: torch, diffusers and pandas are imported when a function first needs them.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gpi_latents.errors import DataError, InputError, ItemError, ModelError, TensorError, UserError
    from gpi_latents.gpi.arrays import arrays
    from gpi_latents.gpi.effect import Effect, Effects
    from gpi_latents.gpi.estimate import estimate
    from gpi_latents.gpi.results import check_digests, load
    from gpi_latents.standalone import extract_images

_PLACES = {
    "extract_images": "gpi_latents.standalone",
    **dict.fromkeys(["load", "check_digests"], "gpi_latents.gpi.results"),
    "arrays": "gpi_latents.gpi.arrays",
    "estimate": "gpi_latents.gpi.estimate",
    **dict.fromkeys(["Effect", "Effects"], "gpi_latents.gpi.effect"),
    **dict.fromkeys(
        ["UserError", "InputError", "ModelError", "ItemError", "TensorError", "DataError"], "gpi_latents.errors"
    ),
}
__all__ = [
    "DataError",
    "Effect",
    "Effects",
    "InputError",
    "ItemError",
    "ModelError",
    "TensorError",
    "UserError",
    "arrays",
    "check_digests",
    "estimate",
    "extract_images",
    "load",
]


def __getattr__(name: str) -> Any:
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_PLACES[name]), name)
