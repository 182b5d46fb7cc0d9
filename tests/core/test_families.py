"""Every model family: latents and decoded pictures are those of its own pipeline in diffusers, bit for bit."""

from __future__ import annotations

import threading
from pathlib import Path

import diffusers
import diffusion
import matplotlib
import numpy as np
import pytest
import torch
from diffusers.image_processor import VaeImageProcessor
from helpers import families

PHOTO = Path(matplotlib.get_data_path()) / "sample_data/grace_hopper.jpg"
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
def checkpoints(tmp_path_factory) -> Path:
    diffusion.same_bits()
    return tmp_path_factory.mktemp("families")


def edited(strength: float, **settings) -> dict:
    return {
        "image_size": [64, 96],
        "resize": "crop",
        "posterior": "sample",
        "seed": 7,
        "strength": strength,
        "prompt": "a red circle",
        "negative_prompt": "blue",
        "guidance_scale": 5.0,
        "num_inference_steps": 8,
        "scheduler": "auto",
        "version": 1,
    } | settings


def by_pipeline(folder: Path, kind: type, picture, recipe: dict, scheduler: str | None, output_type: str):
    """What the family's pipeline makes of a picture by itself."""
    pipeline = kind.from_pretrained(folder)
    if scheduler:
        unclipped = {} if kind is diffusers.StableDiffusion3Img2ImgPipeline else {"clip_sample": False}
        pipeline.scheduler = getattr(diffusers, scheduler).from_config(pipeline.scheduler.config, **unclipped)
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
def test_latent_and_picture_are_the_pipelines(checkpoints, family, strength, record_property):
    folder = families.model(family, checkpoints)
    model = diffusion.Model(folder)
    recipe = edited(strength)
    picture, _ = model.prepare(PHOTO, recipe)
    latent = model.latent(picture, recipe)
    decoded = model.decode(latent)
    if strength == 0:
        scale, unscale = SCALES[family]
        kind = diffusers.AutoencoderTiny if "tiny" in family else diffusers.AutoencoderKL
        vae = kind.from_pretrained(folder, subfolder="vae")
        with torch.no_grad():
            encoding = vae.encode(VaeImageProcessor(8).preprocess(picture))
            if kind is diffusers.AutoencoderTiny:
                z = encoding.latents
            else:
                z = encoding.latent_dist.sample(torch.Generator("cpu").manual_seed(7))
            expected = scale(z)
            shown = VaeImageProcessor(8).postprocess(vae.decode(unscale(expected)).sample)[0]
    else:
        scheduler = None if family in CHANNELS else "DDIMScheduler"
        expected = by_pipeline(folder, PIPELINES[family], picture, recipe, scheduler, "latent")
        shown = by_pipeline(folder, PIPELINES[family], picture, recipe, scheduler, "pil")
    difference = (latent - expected).abs().max().item()
    pixels = np.abs(np.asarray(decoded).astype(int) - np.asarray(shown)).max()
    told = f"{f'{difference:.0e}' if difference else 'exact'} / {f'{pixels} of 255' if pixels else 'exact'}"
    record_property("table", ("Latent / decoded picture against diffusers' pipeline", family, f"{strength}", told))
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


def test_all_schedulers_of_the_schema_are_tested():
    import items

    offered = set(items.schema()["properties"]["scheduler"]["enum"])
    assert offered == {"auto", *(name for names in SUITABLE.values() for name in names)}
    assert offered > items.STOCHASTIC_SCHEDULERS


@pytest.mark.parametrize(
    ("family", "scheduler"), [(family, name) for family, names in SUITABLE.items() for name in names]
)
def test_each_scheduler_gives_the_pipelines_latent_again_and_again(checkpoints, family, scheduler):
    folder = families.model(family, checkpoints)
    model = diffusion.Model(folder)
    recipe = edited(0.5, scheduler=scheduler)
    picture, _ = model.prepare(PHOTO, recipe)
    latent = model.latent(picture, recipe)
    assert torch.equal(latent, by_pipeline(folder, PIPELINES[family], picture, recipe, scheduler, "latent"))
    assert torch.equal(latent, model.latent(picture, recipe))


@pytest.mark.parametrize("family", ["stable-diffusion-xl", "flux"])
def test_threads_do_not_disturb_each_other(checkpoints, family):
    """Tokenizers, schedulers and pipelines keep state; the resident uses one model from several threads."""
    model = diffusion.Model(families.model(family, checkpoints))
    recipes = [edited(strength, seed=seed, prompt=f"{seed}") for seed, strength in enumerate([0.3, 0.6, 0.9, 1.0])]
    picture, _ = model.prepare(PHOTO, recipes[0])
    alone = [model.latent(picture, recipe) for recipe in recipes]
    together = [None] * len(recipes)

    def extract(number: int) -> None:
        diffusion.same_bits()
        together[number] = model.latent(picture, recipes[number])

    threads = [threading.Thread(target=extract, args=(number,)) for number in range(len(recipes))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(torch.equal(one, other) for one, other in zip(alone, together, strict=True))


@pytest.mark.parametrize("family", ["stable-diffusion", "stable-diffusion-3"])
def test_without_guidance_there_is_no_second_pass(checkpoints, family):
    model = diffusion.Model(families.model(family, checkpoints))
    batches = []
    denoiser = model._loaded.unet if family == "stable-diffusion" else model._loaded.transformer
    denoiser.register_forward_pre_hook(
        lambda _, args, kwargs: batches.append(len(args[0] if args else kwargs["hidden_states"])), with_kwargs=True
    )
    for guidance, expected in ((5.0, 2), (1.0, 1), (0.0, 1)):
        recipe = edited(0.5, guidance_scale=guidance)
        picture, _ = model.prepare(PHOTO, recipe)
        batches.clear()
        model.latent(picture, recipe)
        assert set(batches) == {expected}


def test_an_autoencoder_of_factor_32_gives_its_latent_and_refuses_to_be_edited(checkpoints):
    """At strength 0 any autoencoder will do; a UNet for other latents cannot use it."""
    families.autoencoder_dc(checkpoints / "dc")
    model = diffusion.Model(families.model("stable-diffusion", checkpoints), vae_folder=checkpoints / "dc")
    recipe = edited(0.0)
    picture, _ = model.prepare(PHOTO, recipe)
    latent = model.latent(picture, recipe)
    vae = diffusers.AutoencoderDC.from_pretrained(checkpoints / "dc")
    with torch.no_grad():
        expected = 0.41407 * vae.encode(VaeImageProcessor(32).preprocess(picture)).latent
        shown = VaeImageProcessor(32).postprocess(vae.decode(expected / 0.41407).sample)[0]
    assert latent.shape == (1, 8, 2, 3)
    assert torch.equal(latent, expected)
    assert np.array_equal(np.asarray(model.decode(latent)), np.asarray(shown))
    with pytest.raises(
        diffusion.ItemError, match="have 8 channels, but the model takes 4: with this vae_id only strength 0"
    ):
        model.latent(picture, edited(0.5))


def test_another_vae_takes_the_place_of_the_models(checkpoints, tmp_path):
    """For a part of XL's autoencoders, mean and deviation of each channel say the scale."""
    folder = families.model("stable-diffusion-xl", checkpoints)
    vae = diffusers.AutoencoderKL.from_pretrained(folder, subfolder="vae")
    vae.register_to_config(latents_mean=[-1.6, 1.1, 2.5, 3.0], latents_std=[8.4, 5.9, 8.7, 7.5], scaling_factor=0.5)
    vae.save_pretrained(tmp_path / "vae")
    model = diffusion.Model(folder, vae_folder=tmp_path / "vae")
    for strength in (0.0, 0.5):
        recipe = edited(strength)
        picture, _ = model.prepare(PHOTO, recipe)
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


@pytest.mark.parametrize(
    ("family", "settings", "told"),
    [
        ("stable-diffusion-3", {"image_size": 72}, "multiples of 16"),
        ("stable-diffusion-3", {"scheduler": "DDIMScheduler"}, "does not suit this model, trained with flow matching"),
        ("stable-diffusion", {"scheduler": "FlowMatchEulerDiscreteScheduler"}, "trained with a beta schedule"),
    ],
)
def test_what_does_not_suit_the_model_is_refused(checkpoints, family, settings, told):
    model = diffusion.Model(families.model(family, checkpoints))
    recipe = edited(0.5, **settings)
    with pytest.raises(diffusion.ItemError, match=told):
        model.latent(model.prepare(PHOTO, recipe)[0], recipe)


def test_a_model_whose_settings_add_noise_in_each_step_is_refused(tmp_path):
    families.stable_diffusion(tmp_path)
    file = tmp_path / "scheduler/scheduler_config.json"
    file.write_text(file.read_text().replace("{", '{"algorithm_type": "sde-dpmsolver++", ', 1))
    model = diffusion.Model(tmp_path)
    recipe = edited(0.5, scheduler="DPMSolverMultistepScheduler")
    with pytest.raises(diffusion.ItemError, match="draw noise in each step"):
        model.latent(model.prepare(PHOTO, recipe)[0], recipe)


@pytest.mark.parametrize(
    ("family", "told"),
    [
        ("stable-diffusion", {"prompt cut: tokenizer reads 77 of its 202 tokens"}),
        (
            "stable-diffusion-xl",
            {f"prompt cut: {name} reads 77 of its 202 tokens" for name in ("tokenizer", "tokenizer_2")},
        ),
        (
            "flux",
            {
                "prompt cut: tokenizer reads 77 of its 202 tokens",
                "prompt cut: tokenizer_2 reads 512 of its 801 tokens",
                "this model uses no negative prompt",
            },
        ),
    ],
)
def test_what_a_model_does_not_read_of_the_prompts_is_told(checkpoints, family, told):
    model = diffusion.Model(families.model(family, checkpoints))
    assert set(model.prompt_notes(edited(0.5, prompt="red " * 200))) == told
    assert model.prompt_notes(edited(0.0, prompt="red " * 200)) == []
    assert not any("cut" in note for note in model.prompt_notes(edited(0.5)))
