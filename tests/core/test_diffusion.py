"""The core: pictures come out as they look, and latents are those of plain diffusers, bit for bit."""

from __future__ import annotations

import io
from pathlib import Path

import diffusion
import matplotlib
import numpy as np
import pytest
import sklearn
import torch
from diffusers import AutoencoderKL, DDIMScheduler, EulerDiscreteScheduler, StableDiffusionImg2ImgPipeline
from diffusers.image_processor import VaeImageProcessor
from helpers.study import ROOT, draw
from PIL import Image, ImageCms

DEMO = ROOT / "config/demo/model"
PHOTOS = [
    Path(matplotlib.get_data_path()) / "sample_data/grace_hopper.jpg",
    Path(sklearn.__file__).parent / "datasets/images/china.jpg",
    Path(sklearn.__file__).parent / "datasets/images/flower.jpg",
]
STILL = {"image_size": None, "resize": "pad", "posterior": "sample", "seed": 7, "strength": 0.0, "version": 1}


@pytest.fixture(scope="module")
def model():
    diffusion.same_bits()
    return diffusion.Model(DEMO)


def edited(strength: float, **settings) -> dict:
    text = {"prompt": "a red circle", "negative_prompt": "blue", "guidance_scale": 7.5, "num_inference_steps": 20}
    return STILL | text | {"strength": strength, "scheduler": "DDIMScheduler"} | settings


@pytest.mark.parametrize("photo", PHOTOS, ids=lambda path: path.stem)
@pytest.mark.parametrize("size", [64, 512])
@pytest.mark.parametrize("posterior", ["sample", "mode"])
def test_at_strength_0_the_latent_is_diffusers_encoding(model, photo, size, posterior):
    recipe = STILL | {"image_size": size, "posterior": posterior}
    picture, _ = model.prepare(photo, recipe)
    latent = model.latent(picture, recipe)
    vae = AutoencoderKL.from_pretrained(DEMO, subfolder="vae")
    with torch.no_grad():
        encoded = vae.encode(VaeImageProcessor(8).preprocess(picture)).latent_dist
    drawn = encoded.sample(torch.Generator("cpu").manual_seed(7)) if posterior == "sample" else encoded.mode()
    assert latent.dtype == torch.float32
    assert latent.shape == (1, 4, size // 8, size // 8)
    assert torch.equal(latent, drawn * vae.config.scaling_factor)


@pytest.mark.parametrize("strength", [0.3, 0.6, 1.0])
@pytest.mark.parametrize(
    ("scheduler", "guidance", "negative"),
    [(DDIMScheduler, 7.5, "blue"), (DDIMScheduler, 1.0, ""), (EulerDiscreteScheduler, 3.0, "")],
)
def test_above_strength_0_the_latent_is_the_pipelines(model, strength, scheduler, guidance, negative):
    recipe = edited(strength, scheduler=scheduler.__name__, guidance_scale=guidance, negative_prompt=negative)
    picture, _ = model.prepare(PHOTOS[0], recipe)
    latent = model.latent(picture, recipe)
    pipeline = StableDiffusionImg2ImgPipeline.from_pretrained(DEMO, safety_checker=None)
    pipeline.scheduler = scheduler.from_config(pipeline.scheduler.config)
    options = {
        "prompt": "a red circle",
        "negative_prompt": negative,
        "image": picture,
        "strength": strength,
        "num_inference_steps": 20,
        "guidance_scale": guidance,
    }
    expected = pipeline(**options, generator=torch.Generator("cpu").manual_seed(7), output_type="latent").images
    assert torch.equal(latent, expected)
    shown = pipeline(**options, generator=torch.Generator("cpu").manual_seed(7)).images[0]
    assert np.array_equal(np.asarray(model.decode(latent)), np.asarray(shown))


def test_at_strength_0_neither_unet_nor_text_encoder_is_loaded(tmp_path):
    """They are not even there, apart from the UNet's config, which tells the native size."""
    import shutil

    for part in ("vae", "unet"):
        shutil.copytree(DEMO / part, tmp_path / part)
    (tmp_path / "unet/diffusion_pytorch_model.safetensors").unlink()
    model = diffusion.Model(tmp_path)
    picture, _ = model.prepare(PHOTOS[0], STILL)
    assert model.latent(picture, STILL).shape == (1, 4, 8, 8)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_other_dtypes_give_float32_latents_close_to_float32s(model, dtype):
    """float16 keeps this VAE, which asks for it, in float32."""
    other = diffusion.Model(DEMO, dtype=dtype)
    for recipe, tolerance in ((STILL, 0.02), (edited(0.5), 0.2)):
        picture, _ = model.prepare(PHOTOS[0], recipe)
        latent = other.latent(picture, recipe)
        assert latent.dtype == torch.float32
        assert (latent - model.latent(picture, recipe)).abs().max() < tolerance * model.latent(
            picture, recipe
        ).std() * 5
        assert other.decode(latent).size == (64, 64)
    assert other.vae.dtype == (torch.float32 if dtype == "float16" else torch.bfloat16)


def test_a_latent_with_nan_is_refused():
    broken = diffusion.Model(DEMO)
    broken.vae.register_to_config(scaling_factor=float("nan"))
    picture, _ = broken.prepare(PHOTOS[0], STILL)
    with pytest.raises(diffusion.ItemError, match="NaN or infinite"):
        broken.latent(picture, STILL)


@pytest.mark.parametrize("recipe", [STILL, edited(0.3)], ids=["strength 0", "strength 0.3"])
def test_a_latents_file_is_the_same_bytes_loads_safely_and_decodes_to_the_picture(model, recipe):
    picture, _ = model.prepare(PHOTOS[0], recipe)
    latent = model.latent(picture, recipe)
    content = diffusion.latent_bytes(latent)
    assert content == diffusion.latent_bytes(model.latent(picture, recipe))
    loaded = torch.load(io.BytesIO(content), weights_only=True)
    assert torch.equal(loaded, latent)
    assert np.array_equal(np.asarray(model.decode(loaded)), np.asarray(model.decode(latent)))


def test_an_item_has_one_thread_whatever_the_machine_has():
    torch.set_num_threads(2)
    diffusion.same_bits()
    assert torch.get_num_threads() == 1
