"""The same latents without Snakemake."""

from __future__ import annotations

import os
import secrets
import warnings
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import groupby, islice
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
from PIL import Image
from tqdm import tqdm

from gpi_latents.core.diffusion import Model, devices, restored_settings, same_bits
from gpi_latents.core.pictures import Handling, png_bytes
from gpi_latents.core.pipeline import kind
from gpi_latents.digests import file_digest
from gpi_latents.errors import InputError, ItemError
from gpi_latents.files import state, write_whole
from gpi_latents.model.family import model_files
from gpi_latents.model.source import locate, resolve
from gpi_latents.origin import Origin
from gpi_latents.recipe import SETTINGS, recipe, recipe_digest
from gpi_latents.tensors.latent_file import latent_bytes

# The rule of gpi_pack, whose max_size is 512 pixels.
REFERENCE_SIZE = {"image_size": 512, "resize": "contain"}
_KEPT: dict[tuple, Model] = {}  # the model of the last call


@dataclass(frozen=True)
class _Item:
    """A picture, as it was given and as it was prepared."""

    number: int
    image: str | Path | Image.Image
    recipe: dict[str, Any]
    picture: Image.Image
    handling: Handling


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
    batch_size: int = 1,
) -> list[Path]:
    """Extract the latents of pictures without Snakemake, as `gpi_pack.diffusion.extract_images` (gpi_pack 0.2.1) does.

    The latents are those of `Model.latent`; existing files are replaced. The model stays loaded for the next call with
    the same `model_id`, `device` and `cache_dir`, unless a local model's files have changed.

    Args:
        images: one or many (a list, an array, a column of a table), as paths or PIL pictures; those with a side of more
            than 512 pixels are reduced to 512 (`fit_picture`'s `contain`), so the latents' shapes may differ.
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
        negative_prompt: what the pictures should not show; None and an empty text differ as the config's do.
        seed: 0 to 2^32 - 1, of every picture's own generator; None draws one for each.
        batch_size: 1 to 64, how many successive pictures of one size go through the model together (docs/models.md).

    Returns:
        The latents' paths, in the order of the pictures.

    Raises:
        ValueError: different numbers of pictures and prompts, wrong types, or a setting out of its range.
        FileNotFoundError: a picture does not exist.
        ModelError: the model is not available.
        ItemError: a picture cannot be processed; those of earlier batches are done.
    """
    inputs = _inputs(images, prompts)
    given: dict[str, Any] = {"save_name": save_name, "prefix_hidden": prefix_hidden, "model_id": str(model_id)}
    given |= {"strength": strength, "num_inference_steps": num_inference_steps, "guidance_scale": guidance_scale}
    given |= {"negative_prompt": negative_prompt, "device": str(device or "auto"), "batch_size": batch_size}
    config = _config(given if seed is None else given | {"seed": seed})
    model = _model(config, cache_dir)
    config |= _made_folders(output_hidden_dir=output_hidden_dir, output_image_dir=output_image_dir)
    items = (_prepared(model, config, seed is None, number, *each) for number, each in inputs)
    batches = _batches(tqdm(items, total=len(inputs), desc="Extracting", unit="image"), config["batch_size"])
    with restored_settings(), ThreadPoolExecutor(1, initializer=same_bits) as thread:
        return [path for batch in batches for path in thread.submit(_extract, model, config, batch).result()]


def _inputs(images: Any, prompts: Any) -> list[tuple[int, tuple[str | Path | Image.Image, str]]]:
    """Each picture with its prompt, numbered from 0."""
    images = [images] if isinstance(images, str | Path | Image.Image) else list(images)
    prompts = [prompts] * len(images) if isinstance(prompts, str) else list(prompts)
    if len(images) != len(prompts):
        raise ValueError(f"{len(images)} images and {len(prompts)} prompts: give one prompt per image, or one for all")
    for number, (image, prompt) in enumerate(zip(images, prompts, strict=True)):
        if not isinstance(prompt, str):
            raise ValueError(f"prompts[{number}] is of the type {type(prompt).__name__}, not a text")
        if not isinstance(image, str | Path | Image.Image):
            raise ValueError(f"images[{number}] is of the type {type(image).__name__}, not a path or a PIL picture")
        if not isinstance(image, Image.Image) and not os.path.isfile(image):
            raise FileNotFoundError(f"images[{number}]: no such file: {str(image)!r} (looked from {os.getcwd()})")
    # diffusers compares types, and numpy has a text of its own.
    return list(enumerate(zip(images, map(str, prompts), strict=True)))


def _config(given: Mapping[str, Any]) -> dict[str, Any]:
    from gpi_latents.study.settings import load_config  # with pandas, which is not needed before

    plain = {key: value.item() if isinstance(value, np.generic) else value for key, value in given.items()}
    try:
        return load_config(plain | REFERENCE_SIZE)
    except InputError as error:
        raise ValueError(str(error)) from None


def _model(config: Mapping[str, Any], cache_dir: str | Path | None) -> Model:
    model_id = config["model_id"]
    if model_id != "demo" and os.path.exists(model_id):
        model_id = os.path.join(os.getcwd(), model_id)  # in another working directory, the same path is another model
    cache = None if cache_dir is None else os.path.abspath(cache_dir)
    files = tuple((path, state(path)) for path in model_files(config))  # which a training may have changed meanwhile
    key = model_id, config["device"], cache, files
    if key not in _KEPT:
        _KEPT.clear()  # before the next one needs its memory
        located = locate(resolve(model_id, cache_dir=cache), cache)
        _KEPT[key] = Model(device=devices(config["device"])[0], **located)
    return _KEPT[key]


def _prepared(
    model: Model, config: dict[str, Any], draw_seed: bool, number: int, image: str | Path | Image.Image, prompt: str
) -> _Item:
    item = SimpleNamespace(prompt=prompt, **{key: config[key] for key in SETTINGS})
    if draw_seed:
        item.seed = secrets.randbelow(2**32)
    chosen = recipe(config, item)
    try:
        return _Item(number, image, chosen, *model.prepare(image, chosen))
    except ItemError as error:
        raise ItemError(f"images[{number}]: {error}") from error


def _made_folders(**folders: str | Path | None) -> dict[str, str | Path | None]:
    for folder in folders.values():
        if folder is not None:
            os.makedirs(folder, exist_ok=True)
    return folders


def _batches(items: Iterable[_Item], size: int) -> Iterator[list[_Item]]:
    """Successive items of one kind, at most so many."""
    for _, same in groupby(items, key=lambda item: kind(item.picture.size, item.recipe)):
        while batch := list(islice(same, size)):
            yield batch


def _extract(model: Model, config: dict[str, Any], batch: list[_Item]) -> list[Path]:
    """Extract items of one kind, in a thread with the settings of `same_bits`."""
    latents = model.latents([item.picture for item in batch], [item.recipe for item in batch])
    latent_paths = []
    for item, latent in zip(batch, latents, strict=True):
        if isinstance(latent, ItemError):
            raise ItemError(f"images[{item.number}]: {latent}")
        prompt_notes = model.prompt_notes(item.recipe)
        for note in item.handling.doubts + prompt_notes:
            warnings.warn(f"images[{item.number}]: {note}", stacklevel=2)
        if config["output_image_dir"] is not None:
            picture_path = Path(config["output_image_dir"], f"{config['save_name']}_{item.number}.png")
            write_whole(picture_path, png_bytes(model.decode(latent, config["batch_size"])))
        latent_paths.append(Path(config["output_hidden_dir"], f"{config['prefix_hidden']}_{item.number}.pt"))
        image = item.image
        path, image_sha256 = ("", "") if isinstance(image, Image.Image) else (str(image), file_digest(image))
        origin = Origin(recipe_digest(item.recipe), image_sha256, "", path, item.handling.notes + prompt_notes)
        write_whole(latent_paths[-1], latent_bytes(latent, origin))
    return latent_paths
