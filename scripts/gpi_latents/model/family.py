"""Which models work, and the parts that they have."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from gpi_latents.errors import ModelError
from gpi_latents.model.weights import chosen_weights
from gpi_latents.paths import DEMO_MODEL
from gpi_latents.recipe import canonical

# The families whose latents tests compare with diffusers' own pipelines, by the class in model_index.json.
FAMILIES = {
    "StableDiffusion": "Stable Diffusion 1.x and 2.x",
    "StableDiffusionXL": "Stable Diffusion XL",
    "StableDiffusion3": "Stable Diffusion 3 and 3.5",
    "Flux": "FLUX.1",
}
# The folders of a model that decide its numbers; a family has some of them.
MODEL_PARTS = ["vae", "unet", "transformer", "scheduler"]
MODEL_PARTS += [f"{kind}{n}" for kind in ("text_encoder", "tokenizer") for n in ("", "_2", "_3")]
DESCRIBED = (".json", ".txt", ".model")  # files of a part that are no weights
AUTOENCODERS = ["AutoencoderKL", "AutoencoderTiny", "AutoencoderDC"]


def family_problem(folder: str | Path) -> str:
    """Why the model in a folder is not supported, judging by its JSON files; empty if it is."""
    try:
        model_parts(Path(folder))
    except ModelError as error:
        return str(error)
    return ""


def model_parts(folder: Path) -> list[str]:
    """The parts that a model names in its `model_index.json`.

    Raises:
        ModelError: its family is not supported, it brings code of its own, or a part is not named.
    """
    if not (folder / "model_index.json").exists():
        raise ModelError(f"{folder} is no model in diffusers' layout: it has no model_index.json")
    index = read_json(folder / "model_index.json")
    name = str(index.get("_class_name"))
    if re.sub("(Img2Img)?Pipeline$", "", name) not in FAMILIES:
        works = "; ".join(FAMILIES.values())
        raise ModelError(f"The model in {folder} is a {name}, which is not supported. Supported are: {works}")
    parts = [part for part in MODEL_PARTS if isinstance(index.get(part), list) and any(index[part][:1])]
    for part in parts:
        if index[part][0] not in ("diffusers", "transformers"):
            raise ModelError(
                f"The model in {folder} brings code of its own for its {part} ({index[part]}), which is not run here"
            )
    needed = ["vae", "scheduler", "transformer" if "transformer" in index else "unet"]
    needed += [part.replace("text_encoder", "tokenizer") for part in parts if part.startswith("text_encoder")]
    if missing := [part for part in needed if part not in parts]:
        raise ModelError(f"The model in {folder} is incomplete: its model_index.json has no {missing[0]}")
    unet, vae = (folder / part / "config.json" for part in ("unet", "vae"))
    if unet.exists() and vae.exists():
        taken, given = read_json(unet).get("in_channels"), read_json(vae).get("latent_channels")
        if taken and given and taken != given:
            raise ModelError(
                f"The model in {folder} takes more than a picture and a prompt (its UNet has {taken} channels for "
                f"latents of {given}), as those for inpainting do; this is not supported"
            )
    return parts


def read_json(path: Path) -> dict[str, Any]:
    """A JSON file of a model.

    Raises:
        ModelError: it is damaged.
    """
    content = None
    with suppress(OSError, ValueError):
        content = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(content, dict):
        raise ModelError(f"{path} is damaged or cannot be read: get the model again")
    return content


def model_id_problem(model_id: str | None) -> str:
    """Why a `model_id` or `vae_id` cannot name a model; empty if it can."""
    if model_id is None:
        return ""
    if re.search(r"[{}\x00-\x1f]", model_id):
        return f"{model_id!r} has braces or control characters, which Snakemake cannot have in a path"
    if model_id == "demo" or os.path.isdir(model_id):
        return ""
    if model_id.endswith((".ckpt", ".pt", ".pth", ".bin")):
        return f"{model_id!r} is a pickled file, which can run code of strangers when it is loaded: take a .safetensors"
    if model_id.endswith(".safetensors"):
        return "" if os.path.isfile(model_id) else f"no such file: {model_id!r} (looked from {os.getcwd()})"
    if re.fullmatch(r"[\w.-]+/[\w.-]+", model_id, re.ASCII) and not model_id.startswith("."):
        return ""
    return (
        f"{model_id!r} is neither 'demo' nor a folder or a .safetensors file (looked from {os.getcwd()}) nor a "
        "Hugging Face id (owner/name)"
    )


def model_files(config: Mapping[str, Any]) -> list[str]:
    """The files that decide a local model and a local VAE, sorted; none of `demo` and of a Hugging Face id."""
    found: list[Path] = []
    for source, parts in ((config["model_id"], MODEL_PARTS), (config["vae_id"], [".", "vae"])):
        if source is None or source == "demo":
            continue
        found.append(Path(source))  # a single file
        found.append(Path(source, "model_index.json"))
        for part in parts:
            files = list(Path(source, part).glob("*"))
            found += (path for path in files if path.suffix in DESCRIBED)
            found += chosen_weights(files, config["variant"], config["allow_pickle"])
    return sorted({str(path) for path in found if path.is_file()})


def model_identity(config: Mapping[str, Any]) -> str:
    """What makes the rule `model` run again, as canonical JSON; the files of a local model are its input."""
    identity = {key: config[key] for key in ("model_id", "revision")}
    identity |= {key: config[key] for key in ("variant", "vae_id", "allow_pickle") if config[key]}
    if config["model_id"] == "demo":
        identity["demo"] = (DEMO_MODEL / "SHA256SUMS").read_text(encoding="utf-8")
    return canonical(identity)


def autoencoder_folder(source: str | Path) -> Path:
    """The folder of an autoencoder, which is one of its own or part of a whole model's."""
    folder = DEMO_MODEL if source == "demo" else Path(source)
    return folder if (folder / "config.json").exists() else folder / "vae"
