"""The same latents without Snakemake."""

from __future__ import annotations

import contextlib
import os
import secrets
import warnings
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
from PIL import Image

from gpi_latents.core.diffusion import Model, devices, same_bits
from gpi_latents.errors import InputError, ItemError
from gpi_latents.files import write_whole
from gpi_latents.model.source import locate, resolve
from gpi_latents.recipe import SETTINGS, recipe, recipe_digest
from gpi_latents.study.settings import load_config
from gpi_latents.tensors.latent_file import latent_bytes, png_bytes

REFERENCE_SIZE = 512  # pixels, gpi_pack's max_size


def extract_images(
    images: str | Path | Image.Image | Iterable[str | Path | Image.Image],
    prompts: str | Iterable[str],
    output_hidden_dir: str | Path,
    output_image_dir: str | Path | None = None,
    save_name: str = "gen",
    prefix_hidden: str = "hidden",
    model_id: str = "stable-diffusion-v1-5/stable-diffusion-v1-5",
    device: str | None = None,
    cache_dir: str | Path | None = None,
    strength: float = 0,
    num_inference_steps: int = 50,
    guidance_scale: float = 7.5,
    negative_prompt: str | None = None,
    seed: int | None = None,
) -> list[Path]:
    """Extract the latents of pictures without Snakemake, as `gpi_pack.diffusion.extract_images` (gpi_pack 0.2.1) does.

    The latents are those of `Model.latent`; they are written anew, whatever is there. The model stays loaded for the
    next call with the same `model_id`, `device` and `cache_dir`.

    Args:
        images: one or many (a list, an array, a column of a table), as paths or as PIL pictures; where the longer side
            has more than 512 pixels, it is reduced to 512 (`fit_picture`'s `contain`, the reference's rule), so the
            latents' shapes may differ.
        prompts: one for each picture, or one for all; without effect at strength 0.
        output_hidden_dir: gets `{prefix_hidden}_{i}.pt`, i from 0: float32 (1, C, H / 8, W / 8).
        output_image_dir: gets `{save_name}_{i}.png`, the decoded latents; None decodes none.
        save_name: letters, digits, `.`, `_` and `-`; so is `prefix_hidden`.
        prefix_hidden: see `output_hidden_dir`.
        model_id: a Hugging Face id, a folder in diffusers' layout, a `.safetensors` checkpoint, or `demo`.
        device: as torch names it; None and `auto` are `cuda` where there is one, else `cpu`.
        cache_dir: for downloaded models; None is Hugging Face's own cache.
        strength: 0 (the picture as it is) to 1.
        num_inference_steps: 1 to 999; about `strength` times this many are made.
        guidance_scale: at 1 or below there is no second pass.
        negative_prompt: what the pictures should not show.
        seed: of every picture's own generator; None draws one for each.

    Returns:
        The latents' paths, in the order of the pictures.

    Raises:
        ValueError: numbers of pictures and prompts that differ, what is neither, or a setting out of its range.
        FileNotFoundError: a picture that is not there.
        model.ModelError: the model cannot be had.
        ItemError: a picture cannot be done; those before it are.
    """
    from tqdm import tqdm

    images = [images] if isinstance(images, str | Path | Image.Image) else list(images)
    prompts = [prompts] * len(images) if isinstance(prompts, str) else list(prompts)
    if len(images) != len(prompts):
        raise ValueError(f"{len(images)} images and {len(prompts)} prompts: give one prompt per image, or one for all")
    for name, values, kinds in (("images", images, str | Path | Image.Image), ("prompts", prompts, str)):
        for number, value in enumerate(values):
            if not isinstance(value, kinds):
                wanted = "a text" if kinds is str else "a path or a PIL picture"
                raise ValueError(f"{name}[{number}] is of the type {type(value).__name__}, not {wanted}")
    prompts = [str(prompt) for prompt in prompts]  # diffusers compares types, and numpy has one of its own
    given = {
        "save_name": save_name,
        "prefix_hidden": prefix_hidden,
        "model_id": str(model_id),
        "device": str(device or "auto"),
        "strength": strength,
        "num_inference_steps": num_inference_steps,
        "guidance_scale": guidance_scale,
        "negative_prompt": negative_prompt,
        "image_size": REFERENCE_SIZE,
        "resize": "contain",
    } | ({} if seed is None else {"seed": seed})
    given = {key: value.item() if isinstance(value, np.generic) else value for key, value in given.items()}
    try:
        config = load_config(given)
    except InputError as error:
        raise ValueError(str(error)) from None
    for number, image in enumerate(images):
        if not isinstance(image, Image.Image) and not Path(image).is_file():
            raise FileNotFoundError(f"images[{number}]: no such file: {str(image)!r} (looked from {os.getcwd()})")

    model_id = config["model_id"]
    if model_id != "demo" and os.path.exists(model_id):
        model_id = os.path.abspath(model_id)  # another one after a change of the working directory
    model = _kept_model(model_id, config["device"], None if cache_dir is None else os.path.abspath(cache_dir))
    folders = [Path(folder) for folder in (output_hidden_dir, output_image_dir) if folder is not None]
    for folder in folders:
        folder.mkdir(parents=True, exist_ok=True)

    def extract(number: int) -> Path:
        item = SimpleNamespace(prompt=prompts[number], **{key: config[key] for key in SETTINGS})
        if seed is None:
            item.seed = secrets.randbelow(2**63)
        chosen = recipe(config, item)
        try:
            picture, _ = model.prepare(images[number], chosen)
            latent = model.latent(picture, chosen)
        except ItemError as error:
            raise ItemError(f"images[{number}]: {error}") from error
        for note in model.prompt_notes(chosen):
            warnings.warn(f"images[{number}]: {note}", stacklevel=2)
        path = folders[0] / f"{prefix_hidden}_{number}.pt"
        if output_image_dir is not None:
            write_whole(folders[1] / f"{save_name}_{number}.png", png_bytes(model.decode(latent)))
        write_whole(path, latent_bytes(latent, recipe_digest(chosen)))
        return path

    with _same_bits_meanwhile(), ThreadPoolExecutor(1, initializer=same_bits) as thread:
        done = (thread.submit(extract, number).result() for number in range(len(images)))
        return list(tqdm(done, total=len(images), desc="Extracting", unit="image"))


@lru_cache(maxsize=1)
def _kept_model(model_id: str, device: str, cache_dir: str | None) -> Model:
    located = locate(resolve(model_id, cache_dir=cache_dir), cache_dir)
    return Model(device=devices(device)[0], **located)


@contextlib.contextmanager
def _same_bits_meanwhile() -> Iterator[None]:
    """What `same_bits` sets for the whole process, put back afterwards."""
    backends = [(torch.backends.cuda.matmul, "allow_tf32"), (torch.backends.cudnn, "allow_tf32")]
    backends += [(torch.backends.cudnn, "benchmark"), (torch.utils.deterministic, "fill_uninitialized_memory")]
    before = [getattr(*backend) for backend in backends]
    deterministic = torch.are_deterministic_algorithms_enabled()
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    threads = torch.get_num_threads()
    try:
        yield
    finally:
        torch.set_num_threads(threads)
        for backend, value in zip(backends, before, strict=True):
            setattr(*backend, value)
        torch.use_deterministic_algorithms(deterministic, warn_only=warn_only)
