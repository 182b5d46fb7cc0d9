"""Which models work, and the parts that they have."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
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
DESCRIBED = (".json", ".txt", ".model")
AUTOENCODERS = ["AutoencoderKL", "AutoencoderTiny", "AutoencoderDC"]


def family_problem(folder: str | Path) -> str:
    """Why the model in a folder is of no use here, as far as its `.json` files tell; empty if it is of use."""
    index = Path(folder, "model_index.json")
    try:
        parts = json.loads(index.read_text(encoding="utf-8"))
        name = parts["_class_name"]
    except FileNotFoundError:
        return f"{folder} is no model in diffusers' layout: it has no model_index.json"
    except (ValueError, KeyError, TypeError):
        return f"{index} is damaged: get the model again"
    works = "; ".join(FAMILIES.values())
    if re.sub("(Img2Img)?Pipeline$", "", str(name)) not in FAMILIES:
        return f"the model in {folder} is a {name}, which is not supported. These are: {works}"
    for part in MODEL_PARTS:
        if isinstance(parts.get(part), list) and parts[part][0] not in (None, "diffusers", "transformers"):
            return f"the model in {folder} brings code of its own for its {part} ({parts[part]}), which is not run here"
    try:
        unet = json.loads(Path(folder, "unet/config.json").read_text(encoding="utf-8"))
        vae = json.loads(Path(folder, "vae/config.json").read_text(encoding="utf-8"))
        if unet["in_channels"] != vae["latent_channels"]:
            return (
                f"the model in {folder} takes more than a picture and a prompt (its UNet has {unet['in_channels']} "
                f"channels for latents of {vae['latent_channels']}), as those for inpainting do; this is not supported"
            )
    except (OSError, ValueError, KeyError, TypeError):
        pass  # no UNet, or one that the rule `model` finds missing
    return ""


def model_id_problem(model_id: str | None) -> str:
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
    found = []
    for source, parts in ((config["model_id"], MODEL_PARTS), (config["vae_id"], [".", "vae"])):
        if source is None or source == "demo":
            continue
        if os.path.isfile(source):
            found.append(Path(source))
        for part in parts:
            files = list(Path(source, part).glob("*"))
            found += (path for path in files if path.suffix in DESCRIBED)
            found += chosen_weights(files, config["variant"], config["allow_pickle"])
        found += Path(source).glob("model_index.json")
    return sorted({str(path) for path in found if path.is_file()})


def model_identity(config: Mapping[str, Any]) -> str:
    """What tells the rule `model` to look again, as canonical JSON; the files of a local model are its input."""
    identity = {key: config[key] for key in ("model_id", "revision")}
    identity |= {key: config[key] for key in ("variant", "vae_id") if config[key]}
    if config["model_id"] == "demo":
        identity["demo"] = (DEMO_MODEL / "SHA256SUMS").read_text()
    return canonical(identity)


def model_parts(folder: Path) -> list[str]:
    """The parts that a model says it has.

    Raises:
        ModelError: it is of a family that is not supported, or lacks a part.
    """
    if problem := family_problem(folder):
        raise ModelError(problem[0].upper() + problem[1:])
    index = json.loads((folder / "model_index.json").read_text(encoding="utf-8"))
    parts = [part for part in MODEL_PARTS if isinstance(index.get(part), list) and index[part][0]]
    needed = ["vae", "scheduler", "transformer" if "transformer" in index else "unet"]
    needed += [part.replace("text_encoder", "tokenizer") for part in parts if part.startswith("text_encoder")]
    if lacking := [part for part in needed if part not in parts]:
        raise ModelError(f"The model in {folder} is incomplete: its model_index.json has no {lacking[0]}")
    return parts


def vae_folder(source: str | Path) -> Path:
    """An autoencoder has a folder of its own, or is that of a whole model."""
    folder = DEMO_MODEL if source == "demo" else Path(source)
    return folder if (folder / "config.json").exists() else folder / "vae"
