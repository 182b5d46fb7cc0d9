"""The reference of each model family: its own pipeline in diffusers, called as its documentation does."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import diffusers
import torch
from diffusers.image_processor import VaeImageProcessor
from PIL import Image

PIPELINES = {
    "stable-diffusion": diffusers.StableDiffusionImg2ImgPipeline,
    "stable-diffusion-2": diffusers.StableDiffusionImg2ImgPipeline,
    "stable-diffusion-tiny-vae": diffusers.StableDiffusionImg2ImgPipeline,
    "stable-diffusion-xl": diffusers.StableDiffusionXLImg2ImgPipeline,
    "stable-diffusion-xl-refiner": diffusers.StableDiffusionXLImg2ImgPipeline,
    "stable-diffusion-3": diffusers.StableDiffusion3Img2ImgPipeline,
    "flux": diffusers.FluxImg2ImgPipeline,
}
# What each family's authors made of an encoding z, in numbers; and its inverse.
SCALES = {
    "stable-diffusion": (lambda z: 0.18215 * z, lambda x: x / 0.18215),
    "stable-diffusion-2": (lambda z: 0.18215 * z, lambda x: x / 0.18215),
    "stable-diffusion-tiny-vae": (lambda z: 1.0 * z, lambda x: x / 1.0),
    "stable-diffusion-xl": (lambda z: 0.13025 * z, lambda x: x / 0.13025),
    "stable-diffusion-xl-refiner": (lambda z: 0.13025 * z, lambda x: x / 0.13025),
    "stable-diffusion-3": (lambda z: (z - 0.0609) * 1.5305, lambda x: x / 1.5305 + 0.0609),
    "flux": (lambda z: (z - 0.1159) * 0.3611, lambda x: x / 0.3611 + 0.1159),
}


def load(family: str, folder: Path, **options: Any) -> Any:
    """A family's pipeline, which keeps the model's scheduler as `own`; options are those of `from_pretrained`."""
    pipeline = PIPELINES[family].from_pretrained(folder, **options)
    pipeline.set_progress_bar_config(disable=True)
    pipeline.own = pipeline.scheduler
    return pipeline


@torch.no_grad()
def encoded(family: str, pipeline: Any, picture: Image.Image, seed: int) -> torch.Tensor:
    """What a family's autoencoder makes of a picture: the latent, in diffusion's scale."""
    vae = pipeline.vae
    encoding = vae.encode(VaeImageProcessor(8).preprocess(picture).to(vae.device, vae.dtype))
    drawn = torch.Generator("cpu").manual_seed(seed)
    z = encoding.latent_dist.sample(drawn) if "latent_dist" in encoding else encoding.latents
    return SCALES[family][0](z)


@torch.no_grad()
def decoded(family: str, pipeline: Any, latent: torch.Tensor) -> Image.Image:
    """The picture of a latent."""
    return VaeImageProcessor(8).postprocess(pipeline.vae.decode(SCALES[family][1](latent)).sample)[0]


def by_pipeline(pipeline: Any, picture: Image.Image, settings: dict, output_type: str = "latent") -> Any:
    """What a family's pipeline makes of a picture by itself.

    Args:
        pipeline: as `load` returns it.
        picture: mode RGB, of a size that the family takes.
        settings: as `families.settings` returns them, strength above 0.
        output_type: `latent` for the latent, else for the picture.
    """
    kind = type(pipeline)
    name = settings["scheduler"]
    if "FlowMatch" in type(pipeline.own).__name__:
        pipeline.scheduler = copy.deepcopy(pipeline.own)
        if name != "auto":
            pipeline.scheduler = getattr(diffusers, name).from_config(pipeline.own.config)
    else:
        name = "DDIMScheduler" if name == "auto" else name
        pipeline.scheduler = getattr(diffusers, name).from_config(pipeline.own.config, clip_sample=False)
    options = {
        "prompt": settings["prompt"],
        "image": picture,
        "strength": settings["strength"],
        "guidance_scale": settings["guidance_scale"],
        "num_inference_steps": settings["num_inference_steps"],
        "generator": torch.Generator("cpu").manual_seed(settings["seed"]),
        "output_type": output_type,
    }
    if settings["negative_prompt"] is not None and kind is not diffusers.FluxImg2ImgPipeline:
        options["negative_prompt"] = settings["negative_prompt"]
    if kind in (diffusers.FluxImg2ImgPipeline, diffusers.StableDiffusion3Img2ImgPipeline):
        options |= {"height": picture.height, "width": picture.width}
    made = pipeline(**options).images
    if output_type == "latent" and kind is diffusers.FluxImg2ImgPipeline:
        made = pipeline._unpack_latents(made, picture.height, picture.width, pipeline.vae_scale_factor)
    return made if output_type == "latent" else made[0]
