"""The real weights of tiny autoencoders, which are no part of this repository, and photographs for them."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
import skimage
import torch
from diffusers import UNet2DConditionModel

from helpers import families
from helpers.photos import PHOTOS
from helpers.study import ROOT

# In the latent spaces of these families, by Ollin Boer Bohan (madebyollin on Hugging Face).
FAMILIES = {
    "taesd": "stable-diffusion",
    "taesdxl": "stable-diffusion-xl",
    "taesd3": "stable-diffusion-3",
    "taef1": "flux",
}
REAL_PHOTOS = [
    PHOTOS[0],
    *(Path(skimage.__file__).parent / f"data/{n}.png" for n in ("astronaut", "chelsea", "coffee")),
]


def weights(name: str) -> Path:
    """The folder of an autoencoder; without it the test is skipped, or fails where somebody says that it must be there.

    It is looked for in the folder that GPI_TEST_WEIGHTS names, else in `shared/weights` beside the repository.
    """
    named = os.environ.get("GPI_TEST_WEIGHTS")
    folder = Path(named or ROOT.parent / "shared/weights").absolute() / name
    if not (folder / "config.json").is_file():
        reason = f"no real weights in {folder}: GPI_TEST_WEIGHTS names the folder around {name}"
        (pytest.fail if named or os.environ.get("REQUIRE_WEIGHTS") else pytest.skip)(reason)
    return folder


def random_model(name: str, folder: Path) -> Path:
    """A model of the autoencoder's family, all of it random; returns its path.

    Stable Diffusion's UNet has the structure of 1.5's, a tenth as wide: 32 to 128 channels instead of 320 to 1280.
    """
    path = families.model(FAMILIES[name], folder)
    if name == "taesd":
        torch.manual_seed(families.SEED)
        UNet2DConditionModel(
            sample_size=64, block_out_channels=[32, 64, 128, 128], cross_attention_dim=families.TEXT_WIDTH
        ).save_pretrained(path / "unet")
    return path


def model(name: str, folder: Path) -> Path:
    """The same with the real autoencoder as its own."""
    path = random_model(name, folder)
    shutil.rmtree(path / "vae")
    shutil.copytree(weights(name), path / "vae")
    return path
