"""Real repositories of the hub: what is downloaded of them, and that their way to write a model is read."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from gpi_latents.model.source import resolve
from helpers.hub import REPOSITORY
from helpers.repositories import FLUX, SD_1, SD_2, SD_3, SD_XL, SIZES, skeleton

# The weights that a run needs, by repository and variant, without their suffix.
NEEDED = {
    (SD_1, None): "text_encoder/model unet/diffusion_pytorch_model vae/diffusion_pytorch_model",
    (SD_1, "fp16"): "text_encoder/model.fp16 unet/diffusion_pytorch_model.fp16 vae/diffusion_pytorch_model.fp16",
    (SD_1, "non_ema"): "text_encoder/model unet/diffusion_pytorch_model.non_ema vae/diffusion_pytorch_model",
    (SD_2, None): "text_encoder/model unet/diffusion_pytorch_model vae/diffusion_pytorch_model",
    (SD_2, "fp16"): "text_encoder/model.fp16 unet/diffusion_pytorch_model.fp16 vae/diffusion_pytorch_model.fp16",
    (SD_XL, None): "text_encoder/model text_encoder_2/model unet/diffusion_pytorch_model vae/diffusion_pytorch_model",
    (SD_XL, "fp16"): "text_encoder/model.fp16 text_encoder_2/model.fp16 "
    "unet/diffusion_pytorch_model.fp16 vae/diffusion_pytorch_model.fp16",
    (SD_3, None): "text_encoder/model text_encoder_2/model "
    "text_encoder_3/model-00001-of-00002 text_encoder_3/model-00002-of-00002 vae/diffusion_pytorch_model "
    "transformer/diffusion_pytorch_model-00001-of-00002 transformer/diffusion_pytorch_model-00002-of-00002",
    (SD_3, "fp16"): "text_encoder/model.fp16 text_encoder_2/model.fp16 "
    "text_encoder_3/model.fp16-00001-of-00002 text_encoder_3/model.fp16-00002-of-00002 vae/diffusion_pytorch_model "
    "transformer/diffusion_pytorch_model-00001-of-00002 transformer/diffusion_pytorch_model-00002-of-00002",
    (FLUX, None): "text_encoder/model text_encoder_2/model-00001-of-00002 text_encoder_2/model-00002-of-00002 "
    "transformer/diffusion_pytorch_model-00001-of-00003 transformer/diffusion_pytorch_model-00002-of-00003 "
    "transformer/diffusion_pytorch_model-00003-of-00003 vae/diffusion_pytorch_model",
}


@pytest.fixture(scope="session")
def repositories(tmp_path_factory):
    """Each repository's folder and the plain model with the same weights, made once."""
    made: dict[str, Any] = {}

    def repository(name: str):
        if name not in made:
            folder = tmp_path_factory.mktemp("repository") / "real"
            made[name] = (folder, skeleton(name, folder))
        return made[name]

    return repository


@pytest.mark.parametrize(("name", "variant"), NEEDED)
def test_of_a_real_repository_the_needed_files_alone_are_downloaded_and_are_read(
    repositories, tmp_path, serve, latents, record_property, name, variant
):
    folder, plain = repositories(name)
    cache = tmp_path / "cache"
    with serve(folder) as served:
        found = resolve(REPOSITORY, cache_dir=str(cache), variant=variant)
    needed = [f"{file}.safetensors" for file in NEEDED[name, variant].split()]
    parts = {path.split("/")[0] for path in needed} | {"scheduler"}
    parts |= {part.replace("text_encoder", "tokenizer") for part in parts if part.startswith("text_encoder")}
    described = {path for path in SIZES[name] if path.split("/")[0] in parts and path.endswith((".json", ".txt"))}
    described |= {path for path in SIZES[name] if path.endswith("spiece.model")}
    assert {*found["sha256"]} == {*needed, *described, "model_index.json"}
    assert {*served.served} <= {*found["sha256"]}  # the client takes files of the same content once
    assert len(served.served) == len({*served.served})
    size = sum(SIZES[name][path] for path in found["sha256"]) / 1e9
    record_property("table", ("Download in GB", name, variant or "whole", f"{size:.1f}"))
    made = latents(found, cache)
    if variant is None:
        assert all(map(torch.equal, made, latents(resolve(str(plain)))))


@pytest.mark.parametrize("name", SIZES)
def test_the_autoencoder_of_a_real_repository_is_downloaded_alone(repositories, tmp_path, serve, record_property, name):
    folder, _ = repositories(name)
    with serve(folder) as served:
        resolve("demo", vae_id=REPOSITORY, cache_dir=str(tmp_path / "cache"))
    assert {*served.served} == {"vae/config.json", "vae/diffusion_pytorch_model.safetensors"}
    size = sum(SIZES[name][path] for path in served.served) / 1e9
    record_property("table", ("Download in GB", name, "autoencoder alone", f"{size:.1f}"))
