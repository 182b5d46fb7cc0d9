"""Every model family: latents and decoded pictures are those of its own pipeline in diffusers, bit for bit."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import get_args

import diffusers
import numpy as np
import pytest
import torch
from diffusers.image_processor import VaeImageProcessor
from gpi_latents.core.diffusion import Model
from gpi_latents.errors import ModelError
from gpi_latents.study import settings
from helpers import families
from helpers.families import recipe as edited
from helpers.families import settings as given
from helpers.photos import PHOTOS
from helpers.pipelines import PIPELINES, by_pipeline, encoded, load
from helpers.pipelines import decoded as in_pixels

CHANNELS = {"stable-diffusion-3": 16, "flux": 16}


@pytest.fixture(scope="module")
def pipelines(checkpoints) -> Callable[[str], diffusers.DiffusionPipeline]:
    """Loads a family's own pipeline, once each."""
    return functools.cache(lambda family: load(family, families.model(family, checkpoints)))


@pytest.mark.parametrize("strength", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("family", PIPELINES)
def test_latent_and_picture_are_the_pipelines(family_model, pipelines, family, strength, record_property):
    model = family_model(family)
    recipe = edited(strength)
    picture, _ = model.prepare(PHOTOS[0], recipe)
    latent = model.latent(picture, recipe)
    decoded = model.decode(latent)
    if strength == 0:
        expected = encoded(family, pipelines(family), picture, seed=7)
        shown = in_pixels(family, pipelines(family), expected)
    else:
        expected, shown = (by_pipeline(pipelines(family), picture, given(strength), kind) for kind in ("latent", "pil"))
    difference = (latent - expected).abs().max().item()
    pixels = np.abs(np.asarray(decoded).astype(int) - np.asarray(shown)).max()
    cell = f"{f'{difference:.0e}' if difference else 'exact'} / {f'{pixels} of 255' if pixels else 'exact'}"
    record_property("table", ("Latent / decoded picture against diffusers' pipeline", family, f"{strength}", cell))
    assert latent.shape == (1, CHANNELS.get(family, 4), 8, 12)
    assert latent.dtype == torch.float32
    assert latent.std() > 0.05
    assert np.asarray(decoded).std() > 1
    assert torch.equal(latent, expected)
    assert np.array_equal(np.asarray(decoded), np.asarray(shown))


# Settings that follow one another in one process: with each guidance no negative prompt, an empty one and a text; one
# step of many, some and all; sides in multiples of what the family takes; the first seed and the last.
LONG = "red " * 100
MIXED = [
    # guidance, negative prompt, strength, steps, height and width, seed, prompt, scheduler on a beta schedule
    (7.5, None, 0.02, 50, (9, 13), 0, "a red circle", "auto"),
    (7.5, "", 1.0, 3, (5, 7), 2**32 - 1, "", "EulerDiscreteScheduler"),
    (7.5, "blue", 0.3, 7, (8, 8), 1, LONG, "UniPCMultistepScheduler"),
    (1.0, None, 1.0, 1, (13, 5), 2**32 - 1, LONG, "auto"),
    (1.0, "", 0.02, 50, (8, 8), 12, "a red circle", "PNDMScheduler"),
    (1.0, "blue", 0.75, 4, (9, 13), 0, "", "HeunDiscreteScheduler"),
    (1.01, None, 0.75, 4, (5, 7), 1, "", "PNDMScheduler"),
    (1.01, "", 0.3, 7, (13, 5), 0, LONG, "auto"),
    (1.01, "blue", 1.0, 1, (9, 13), 12, "a red circle", "EulerDiscreteScheduler"),
    (0.0, None, 0.3, 7, (8, 8), 2**32 - 1, "a red circle", "HeunDiscreteScheduler"),
    (0.0, "", 0.75, 4, (5, 7), 12, LONG, "UniPCMultistepScheduler"),
    (0.5, "blue", 0.02, 99, (13, 5), 1, "", "auto"),
    (30.0, None, 1.0, 3, (13, 5), 12, LONG, "HeunDiscreteScheduler"),
    (30.0, "", 0.02, 50, (9, 13), 1, "", "EulerDiscreteScheduler"),
    (30.0, "blue", 0.75, 4, (8, 8), 0, "a red circle", "UniPCMultistepScheduler"),
    (7.5, None, 0.02, 50, (9, 13), 0, "a red circle", "auto"),
]


@pytest.mark.parametrize("family", PIPELINES)
def test_mixed_settings_give_the_pipelines_latents(family_model, pipelines, family):
    model = family_model(family)
    wrong = []
    for guidance, negative, strength, steps, sides, seed, prompt, scheduler in MIXED:
        if family in CHANNELS:
            scheduler = "FlowMatchHeunDiscreteScheduler" if "Heun" in scheduler and family != "flux" else "auto"
        settings = {"guidance_scale": guidance, "negative_prompt": negative, "num_inference_steps": steps}
        settings |= {"image_size": [side * model.multiple for side in sides], "seed": seed, "prompt": prompt}
        settings |= {"scheduler": scheduler}
        recipe = edited(strength, **settings)
        picture, _ = model.prepare(PHOTOS[0], recipe)
        assert (picture.height, picture.width) == tuple(settings["image_size"])
        expected = by_pipeline(pipelines(family), picture, given(strength, **settings))
        if not torch.equal(model.latent(picture, recipe), expected):
            wrong.append(given(strength, **settings))
    assert not wrong


@pytest.mark.parametrize("family", PIPELINES)
def test_only_xl_tells_an_empty_negative_prompt_from_none(family_model, family):
    """Its base model takes zeros for none, as `force_zeros_for_empty_prompt` says; its refiner does not."""
    model = family_model(family)
    picture, _ = model.prepare(PHOTOS[0], edited(0.5))
    none, empty = (model.latent(picture, edited(0.5, negative_prompt=text)) for text in (None, ""))
    assert torch.equal(none, empty) == (family != "stable-diffusion-xl")


SUITABLE = {
    "stable-diffusion": [
        "DDIMScheduler",
        "DEISMultistepScheduler",
        "DPMSolverMultistepScheduler",
        "DPMSolverSinglestepScheduler",
        "EulerDiscreteScheduler",
        "HeunDiscreteScheduler",
        "KDPM2DiscreteScheduler",
        "PNDMScheduler",
        "UniPCMultistepScheduler",
        "DDPMScheduler",
        "EulerAncestralDiscreteScheduler",
        "KDPM2AncestralDiscreteScheduler",
        "LCMScheduler",
        "SASolverScheduler",
        "TCDScheduler",
    ],
    "stable-diffusion-3": ["FlowMatchEulerDiscreteScheduler", "FlowMatchHeunDiscreteScheduler"],
}


def test_all_schedulers_of_the_config_are_tested():
    offered = set(get_args(settings.Scheduler))
    assert offered == {"auto", *(name for names in SUITABLE.values() for name in names)}
    assert offered > set(get_args(settings.Stochastic))


@pytest.mark.parametrize(
    ("family", "scheduler"), [(family, name) for family, names in SUITABLE.items() for name in names]
)
def test_each_scheduler_gives_the_pipelines_latent_again_and_again(family_model, pipelines, family, scheduler):
    model = family_model(family)
    recipe = edited(0.5, scheduler=scheduler)
    picture, _ = model.prepare(PHOTOS[0], recipe)
    latent = model.latent(picture, recipe)
    assert torch.equal(latent, by_pipeline(pipelines(family), picture, given(0.5, scheduler=scheduler)))
    assert torch.equal(latent, model.latent(picture, recipe))


def test_an_autoencoder_of_factor_32_gives_its_latent_and_refuses_to_be_edited(checkpoints):
    """At strength 0 any autoencoder works; a UNet for other latents cannot use it."""
    families.autoencoder_dc(checkpoints / "dc")
    model = Model(families.model("stable-diffusion", checkpoints), vae_folder=checkpoints / "dc")
    recipe = edited(0.0)
    picture, _ = model.prepare(PHOTOS[0], recipe)
    latent = model.latent(picture, recipe)
    vae = diffusers.AutoencoderDC.from_pretrained(checkpoints / "dc")
    with torch.no_grad():
        expected = 0.41407 * vae.encode(VaeImageProcessor(32).preprocess(picture)).latent
        shown = VaeImageProcessor(32).postprocess(vae.decode(expected / 0.41407).sample)[0]
    assert latent.shape == (1, 8, 2, 3)
    assert torch.equal(latent, expected)
    assert np.array_equal(np.asarray(model.decode(latent)), np.asarray(shown))
    with pytest.raises(ModelError, match="have 8 channels, but the model takes 4: with this vae_id only strength 0"):
        model.latent(picture, edited(0.5))


def test_another_vae_takes_the_place_of_the_models(checkpoints, tmp_path):
    """For some of XL's autoencoders, mean and deviation of each channel are the scale."""
    folder = families.model("stable-diffusion-xl", checkpoints)
    vae = diffusers.AutoencoderKL.from_pretrained(folder, subfolder="vae")
    vae.register_to_config(latents_mean=[-1.6, 1.1, 2.5, 3.0], latents_std=[8.4, 5.9, 8.7, 7.5], scaling_factor=0.5)
    vae.save_pretrained(tmp_path / "vae")
    model = Model(folder, vae_folder=tmp_path / "vae")
    for strength in (0.0, 0.5):
        recipe = edited(strength)
        picture, _ = model.prepare(PHOTOS[0], recipe)
        latent = model.latent(picture, recipe)
        if strength:
            pipeline = diffusers.StableDiffusionXLImg2ImgPipeline.from_pretrained(folder, vae=vae)
            pipeline.scheduler = diffusers.DDIMScheduler.from_config(pipeline.scheduler.config, clip_sample=False)
            names = ("prompt", "negative_prompt", "strength", "guidance_scale", "num_inference_steps")
            expected = pipeline(
                image=picture,
                generator=torch.Generator("cpu").manual_seed(7),
                output_type="latent",
                **{name: recipe[name] for name in names},
            ).images
        else:
            with torch.no_grad():
                posterior = vae.encode(VaeImageProcessor(8).preprocess(picture)).latent_dist
            z = posterior.sample(torch.Generator("cpu").manual_seed(7))
            mean, std = (torch.tensor(vae.config[name]).view(1, 4, 1, 1) for name in ("latents_mean", "latents_std"))
            expected = (z - mean) * 0.5 / std
        assert torch.equal(latent, expected)


def test_stable_diffusion_3_saved_without_t5_gives_the_pipelines_latent(checkpoints, tmp_path):
    """Its authors' way to save memory; diffusers loads such a folder only if it is told that these parts are none."""
    none = {"text_encoder_3": None, "tokenizer_3": None}
    kind = PIPELINES["stable-diffusion-3"]
    kind.from_pretrained(families.model("stable-diffusion-3", checkpoints), **none).save_pretrained(tmp_path)
    pipeline = kind.from_pretrained(tmp_path, **none)
    pipeline.own = pipeline.scheduler
    model = Model(tmp_path)
    recipe = edited(0.5)
    picture, _ = model.prepare(PHOTOS[0], recipe)
    latent = model.latent(picture, recipe)
    assert torch.equal(latent, by_pipeline(pipeline, picture, given(0.5)))
    assert model.prompt_notes(recipe) == []
