"""A small model, its latents, and a stand-in for the hub."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from gpi_latents.model.source import locate, resolve
from helpers.hub import Hub
from huggingface_hub import constants
from PIL import Image

STILL = {"image_size": 64, "resize": "pad", "posterior": "sample", "seed": 7, "strength": 0.0, "version": 1}
EDITED = STILL | {
    "strength": 0.5,
    "prompt": "a red circle",
    "guidance_scale": 5.0,
    "num_inference_steps": 8,
    "scheduler": "auto",
}


@pytest.fixture(autouse=True)
def offline(monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)


@pytest.fixture(scope="session")
def built(tmp_path_factory) -> Path:
    """A model of Stable Diffusion 1.5's shape, not to be changed."""
    from helpers import families

    return families.model("stable-diffusion", tmp_path_factory.mktemp("built"))


@pytest.fixture
def folder(built, tmp_path) -> Path:
    """A copy of the model that a test may change."""
    return Path(shutil.copytree(built, tmp_path / "model"))


@pytest.fixture(scope="session")
def latents() -> Callable[..., list[torch.Tensor]]:
    """Two latents of a model that `resolve` found, one of them edited by a prompt."""
    from gpi_latents.core import diffusion

    diffusion.same_bits()
    picture = Image.effect_mandelbrot((64, 64), (-2, -1, 1, 1), 30).convert("RGB")

    def latents(found: dict[str, Any], cache_dir: Path | None = None) -> list[torch.Tensor]:
        loaded = diffusion.Model(**locate(found, str(cache_dir) if cache_dir else None))
        return [loaded.latent(picture, recipe) for recipe in (STILL, EDITED)]

    return latents


@pytest.fixture(scope="session")
def expected(built, latents) -> list[torch.Tensor]:
    """The latents of the model as it was built."""
    return latents(resolve(str(built)))


@pytest.fixture
def serve(monkeypatch):
    """Serve a folder as a repository of the hub to Hugging Face's own client."""

    @contextmanager
    def serve(folder: Path, **options):
        with Hub(folder, **options) as served, monkeypatch.context() as online:
            online.setattr(constants, "HF_HUB_OFFLINE", False)
            online.setattr(constants, "ENDPOINT", served.address)
            template = constants.HUGGINGFACE_CO_URL_TEMPLATE.split("/{repo_id}")[1]
            online.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", served.address + "/{repo_id}" + template)
            yield served

    return serve
