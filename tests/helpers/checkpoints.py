"""The files of a small model in diffusers' layout: where they are in a cache, and changed on purpose."""

from __future__ import annotations

import shutil
from pathlib import Path

import torch
from safetensors.torch import load_file

from helpers.hub import COMMIT

UNET = "unet/diffusion_pytorch_model"
VAE = "vae/diffusion_pytorch_model"
# The names of pickled weights by those of the safetensors, without their suffix.
PICKLED = {
    UNET: f"{UNET}.bin",
    VAE: f"{VAE}.bin",
    "text_encoder/model": "text_encoder/pytorch_model.bin",
}


def cached(cache: Path, repository: str, source: Path) -> Path:
    """Put a folder into a cache as an older client of Hugging Face did, without a list of files; the snapshot."""
    repo = cache / f"models--{repository.replace('/', '--')}"
    snapshot = repo / "snapshots" / COMMIT
    shutil.copytree(source, snapshot)
    (repo / "refs").mkdir()
    (repo / "refs/main").write_text(COMMIT)
    return snapshot


def pickle_weights(folder: Path, names: dict[str, str] = PICKLED) -> None:
    """Turn safetensors into the pickled weights that they once were."""
    for safe, name in names.items():
        file = folder / f"{safe}.safetensors"
        torch.save(load_file(file), folder / name)
        file.unlink()


def only_variant(folder: Path) -> None:
    """Leave no weights but those of the variant fp16."""
    for file in folder.glob("*/*.safetensors"):
        file.rename(file.with_suffix(".fp16.safetensors"))
