"""Every model family: latents and decoded pictures are those of its own pipeline in diffusers, bit for bit."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable
from typing import get_args

import diffusers
import numpy as np
import pytest
import torch
from diffusers.image_processor import VaeImageProcessor
from gpi_latents.core.diffusion import Model
from gpi_latents.errors import ItemError
from gpi_latents.study import settings
from helpers import families
from helpers.families import recipe as edited
from helpers.photos import PHOTOS

PIPELINES = {
    "stable-diffusion": diffusers.StableDiffusionImg2ImgPipeline,
    "stable-diffusion-2": diffusers.StableDiffusionImg2ImgPipeline,
    "stable-diffusion-tiny-vae": diffusers.StableDiffusionImg2ImgPipeline,
    "stable-diffusion-xl": diffusers.StableDiffusionXLImg2ImgPipeline,
    "stable-diffusion-3": diffusers.StableDiffusion3Img2ImgPipeline,
    "flux": diffusers.FluxImg2ImgPipeline,
}
# What each family's authors made of an encoding z, in numbers; and its inverse.
SCALES = {
    "stable-diffusion": (lambda z: 0.18215 * z, lambda x: x / 0.18215),
    "stable-diffusion-2": (lambda z: 0.18215 * z, lambda x: x / 0.18215),
    "stable-diffusion-tiny-vae": (lambda z: 1.0 * z, lambda x: x / 1.0),
    "stable-diffusion-xl": (lambda z: 0.13025 * z, lambda x: x / 0.13025),
    "stable-diffusion-3": (lambda z: (z - 0.0609) * 1.5305, lambda x: x / 1.5305 + 0.0609),
    "flux": (lambda z: (z - 0.1159) * 0.3611, lambda x: x / 0.3611 + 0.1159),
}
CHANNELS = {"stable-diffusion-3": 16, "flux": 16}


@pytest.fixture(scope="module")
def pipelines(checkpoints) -> Callable[[str], diffusers.DiffusionPipeline]:
    """Loads a family's own pipeline, once each; `own` keeps its scheduler."""

    def load(family: str) -> diffusers.DiffusionPipeline:
        pipeline = PIPELINES[family].from_pretrained(families.model(family, checkpoints))
        pipeline.own = pipeline.scheduler
        return pipeline

    return functools.cache(load)


def by_pipeline(pipeline, picture, recipe: dict, scheduler: str | None, output_type: str):
    """What a family's pipeline makes of a picture by itself."""
    kind = type(pipeline)
    pipeline.scheduler = copy.deepcopy(pipeline.own)
    if scheduler:
        unclipped = {} if kind is diffusers.StableDiffusion3Img2ImgPipeline else {"clip_sample": False}
        pipeline.scheduler = getattr(diffusers, scheduler).from_config(pipeline.own.config, **unclipped)
    options = {
        "prompt": recipe["prompt"],
        "image": picture,
        "strength": recipe["strength"],
        "guidance_scale": recipe["guidance_scale"],
        "num_inference_steps": recipe["num_inference_steps"],
        "generator": torch.Generator("cpu").manual_seed(recipe["seed"]),
        "output_type": output_type,
    }
    size = {"height": picture.height, "width": picture.width}
    if kind is diffusers.FluxImg2ImgPipeline:
        options |= size
    elif kind is diffusers.StableDiffusion3Img2ImgPipeline:
        options |= size | {"negative_prompt": recipe["negative_prompt"]}
    else:
        options["negative_prompt"] = recipe["negative_prompt"]
    made = pipeline(**options).images
    if output_type == "latent" and kind is diffusers.FluxImg2ImgPipeline:
        made = pipeline._unpack_latents(made, picture.height, picture.width, pipeline.vae_scale_factor)
    return made if output_type == "latent" else made[0]


@pytest.mark.parametrize("strength", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("family", PIPELINES)
def test_latent_and_picture_are_the_pipelines(family_model, pipelines, family, strength, record_property):
    model = family_model(family)
    recipe = edited(strength)
    picture, _ = model.prepare(PHOTOS[0], recipe)
    latent = model.latent(picture, recipe)
    decoded = model.decode(latent)
    if strength == 0:
        scale, unscale = SCALES[family]
        vae = pipelines(family).vae
        with torch.no_grad():
            encoding = vae.encode(VaeImageProcessor(8).preprocess(picture))
            if "tiny" in family:
                z = encoding.latents
            else:
                z = encoding.latent_dist.sample(torch.Generator("cpu").manual_seed(7))
            expected = scale(z)
            shown = VaeImageProcessor(8).postprocess(vae.decode(unscale(expected)).sample)[0]
    else:
        scheduler = None if family in CHANNELS else "DDIMScheduler"
        expected = by_pipeline(pipelines(family), picture, recipe, scheduler, "latent")
        shown = by_pipeline(pipelines(family), picture, recipe, scheduler, "pil")
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
    assert torch.equal(latent, by_pipeline(pipelines(family), picture, recipe, scheduler, "latent"))
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
    with pytest.raises(ItemError, match="have 8 channels, but the model takes 4: with this vae_id only strength 0"):
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
