"""float16 and bfloat16: the latents are those of diffusers' pipelines in the same numbers, and nothing overflows."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from gpi_latents.core.diffusion import Model
from helpers import families
from helpers import pipelines as reference
from helpers.families import recipe as edited
from helpers.families import settings as given
from helpers.photos import PHOTOS

# How far a VAE that stays in float32 may differ from one in float16, in standard deviations of the latent.
FINER = 0.02


@pytest.mark.parametrize("dtype", [pytest.param("float16", marks=pytest.mark.long), "bfloat16"])
@pytest.mark.parametrize(
    "family", [name if "xl" in name else pytest.param(name, marks=pytest.mark.long) for name in reference.PIPELINES]
)
def test_latents_are_the_pipelines_in_half_precision(checkpoints, family, dtype):
    folder = families.model(family, checkpoints)
    model = Model(folder, dtype=dtype)
    pipeline = reference.load(family, folder, dtype=getattr(torch, dtype))
    is_xl = "xl" in family
    is_upcast = is_xl or (dtype == "float16" and "tiny" not in family)
    assert model.vae.dtype == (torch.float32 if is_upcast else getattr(torch, dtype))
    picture, _ = model.prepare(PHOTOS[0], edited(0.5))
    latent = model.latent(picture, edited(0.5))
    expected = reference.by_pipeline(pipeline, picture, given(0.5)).float()
    if is_upcast and not is_xl:  # diffusers has these in float16
        assert (latent - expected).abs().max() < FINER * expected.std()
    else:
        assert torch.equal(latent, expected)
    decoded = np.asarray(model.decode(latent)).astype(int)
    shown = np.asarray(reference.by_pipeline(pipeline, picture, given(0.5), "pil"))
    assert np.abs(decoded - shown).max() <= 16
    assert decoded.std() > 1


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_at_strength_0_xl_is_encoded_in_float32(family_model, checkpoints, dtype):
    """Then nothing of it is in half precision but the weights."""
    model = Model(families.model("stable-diffusion-xl", checkpoints), dtype=dtype)
    picture, _ = model.prepare(PHOTOS[0], edited(0.0))
    whole = family_model("stable-diffusion-xl").latent(picture, edited(0.0))
    for name, weight in model.vae.named_parameters():
        rounded = family_model("stable-diffusion-xl").vae.get_parameter(name).to(getattr(torch, dtype)).float()
        assert torch.equal(weight, rounded)
    assert 0 < (model.latent(picture, edited(0.0)) - whole).abs().max() < 0.1 * whole.std()


def test_a_vae_whose_numbers_overflow_float16_still_gives_latents_and_pictures(checkpoints, tmp_path):
    """As Stable Diffusion XL's: within it are numbers beyond 65,504, float16's last one."""
    folder = families.model("stable-diffusion-xl", checkpoints)
    pipeline = reference.load("stable-diffusion-xl", folder)
    for half in (pipeline.vae.encoder, pipeline.vae.decoder):
        half.conv_in.weight.data *= 1e5
    pipeline.save_pretrained(tmp_path / "model")
    model = Model(tmp_path / "model", dtype="float16")
    picture, _ = model.prepare(PHOTOS[0], edited(0.5))
    latent = model.latent(picture, edited(0.5))
    assert latent.std() > 0.05
    assert np.asarray(model.decode(latent)).std() > 1
    model.vae.half()
    assert not torch.isfinite(model.vae.encode(model.processor.preprocess(picture).half()).latent_dist.mean).all()
