"""The core: latents are those of plain diffusers, bit for bit."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, DDIMScheduler, EulerDiscreteScheduler, StableDiffusionImg2ImgPipeline
from diffusers.image_processor import VaeImageProcessor
from gpi_latents.core.diffusion import Model, devices, same_bits
from gpi_latents.errors import ItemError, ModelError
from gpi_latents.paths import DEMO_MODEL
from helpers.photos import PHOTOS
from PIL import Image

STILL = {"image_size": None, "resize": "pad", "posterior": "sample", "seed": 7, "strength": 0.0, "version": 1}


def edited(strength: float, **settings) -> dict:
    text = {"prompt": "a red circle", "negative_prompt": "blue", "guidance_scale": 7.5, "num_inference_steps": 10}
    return STILL | text | {"strength": strength, "scheduler": "DDIMScheduler"} | settings


@pytest.fixture(scope="module")
def vae() -> AutoencoderKL:
    return AutoencoderKL.from_pretrained(DEMO_MODEL, subfolder="vae")


@pytest.fixture(scope="module")
def pipeline() -> StableDiffusionImg2ImgPipeline:
    return StableDiffusionImg2ImgPipeline.from_pretrained(DEMO_MODEL, safety_checker=None)


@pytest.mark.parametrize("photo", PHOTOS, ids=lambda path: path.stem)
@pytest.mark.parametrize("size", [64, 512])
@pytest.mark.parametrize("posterior", ["sample", "mode"])
def test_at_strength_0_the_latent_is_diffusers_encoding(demo_model, vae, photo, size, posterior):
    recipe = STILL | {"image_size": size, "posterior": posterior}
    picture, _ = demo_model.prepare(photo, recipe)
    latent = demo_model.latent(picture, recipe)
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
def test_above_strength_0_the_latent_is_the_pipelines(demo_model, pipeline, strength, scheduler, guidance, negative):
    recipe = edited(strength, scheduler=scheduler.__name__, guidance_scale=guidance, negative_prompt=negative)
    picture, _ = demo_model.prepare(PHOTOS[0], recipe)
    latent = demo_model.latent(picture, recipe)
    own = DDIMScheduler.from_pretrained(DEMO_MODEL, subfolder="scheduler")
    pipeline.scheduler = scheduler.from_config(own.config)
    options = {
        "prompt": "a red circle",
        "negative_prompt": negative,
        "image": picture,
        "strength": strength,
        "num_inference_steps": 10,
        "guidance_scale": guidance,
    }
    expected = pipeline(**options, generator=torch.Generator("cpu").manual_seed(7), output_type="latent").images
    assert torch.equal(latent, expected)
    with torch.no_grad():
        decoded = pipeline.vae.decode(expected / pipeline.vae.config.scaling_factor).sample
    shown = pipeline.image_processor.postprocess(decoded)[0]
    assert np.array_equal(np.asarray(demo_model.decode(latent)), np.asarray(shown))


def test_at_strength_0_neither_unet_nor_text_encoder_is_loaded(tmp_path):
    """They do not even exist, apart from the UNet's config, which has the native size."""
    for part in ("vae", "unet"):
        shutil.copytree(DEMO_MODEL / part, tmp_path / part)
    (tmp_path / "unet/diffusion_pytorch_model.safetensors").unlink()
    model = Model(tmp_path)
    picture, _ = model.prepare(PHOTOS[0], STILL)
    assert model.latent(picture, STILL).shape == (1, 4, 8, 8)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_other_dtypes_give_float32_latents_close_to_float32s(demo_model, dtype):
    """float16 keeps this VAE, which asks for it, in float32."""
    other = Model(DEMO_MODEL, dtype=dtype)
    for recipe, tolerance in ((STILL, 0.1), (edited(0.5, num_inference_steps=8), 1.0)):
        picture, _ = demo_model.prepare(PHOTOS[0], recipe)
        latent, expected = other.latent(picture, recipe), demo_model.latent(picture, recipe)
        assert latent.dtype == torch.float32
        assert (latent - expected).abs().max() < tolerance * expected.std()
        assert other.decode(latent).size == (64, 64)
    assert other.vae.dtype == (torch.float32 if dtype == "float16" else torch.bfloat16)


def test_a_latent_with_nan_is_refused():
    broken = Model(DEMO_MODEL)
    broken.vae.register_to_config(scaling_factor=float("nan"))
    picture, _ = broken.prepare(PHOTOS[0], STILL)
    with pytest.raises(ItemError, match="NaN or infinite"):
        broken.latent(picture, STILL)


@pytest.mark.parametrize("recipe", [STILL, edited(0.3)], ids=["strength 0", "strength 0.3"])
def test_the_same_recipe_gives_the_same_bits_and_another_seed_others(demo_model, recipe):
    picture, _ = demo_model.prepare(PHOTOS[0], recipe)
    latent = demo_model.latent(picture, recipe)
    assert torch.equal(latent, demo_model.latent(picture, recipe))
    assert not torch.equal(latent, demo_model.latent(picture, recipe | {"seed": 8}))


def test_every_step_is_announced_and_can_end_the_item(demo_model):
    steps = []
    recipe = edited(0.5, num_inference_steps=8)
    picture, handling = demo_model.prepare(Image.new("RGB", (100, 50)), recipe)
    assert handling.done == ["picture 100 x 50 RGB", "resized to 64 x 32", "reflected to 64 x 64"]
    demo_model.latent(picture, recipe, lambda: steps.append(1))
    assert len(steps) == 4

    def stop() -> None:
        raise InterruptedError

    with pytest.raises(InterruptedError):
        demo_model.latent(picture, recipe, stop)


def test_same_bits_sets_one_thread_and_deterministic_operations():
    torch.set_num_threads(2)
    torch.use_deterministic_algorithms(False)
    torch.backends.cudnn.benchmark = torch.utils.deterministic.fill_uninitialized_memory = True
    same_bits()
    assert torch.get_num_threads() == 1
    assert torch.are_deterministic_algorithms_enabled()
    assert not torch.backends.cudnn.benchmark
    assert not torch.utils.deterministic.fill_uninitialized_memory


def test_auto_is_every_gpu_or_else_the_cpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert devices("auto") == devices("cuda") == ["cuda:0", "cuda:1"]
    assert devices("cuda:1") == ["cuda:1"]
    assert devices("cpu") == ["cpu"]
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert devices("auto") == ["cpu"]
    with pytest.raises(ModelError, match="torch sees no GPU here"):
        devices("cuda")
