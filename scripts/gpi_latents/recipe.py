"""A recipe: what decides an item's latent, and nothing else."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from typing import Any

# Raise by hand when core/ gives other numbers for the same recipe: every latent is then extracted again.
RECIPE_VERSION = 1

# Settings that a row of the sheet can override, and that the index table shows for each item.
SETTINGS = ["negative_prompt", "strength", "guidance_scale", "num_inference_steps", "seed"]


def recipe(config: Mapping[str, Any], item: Any) -> dict[str, Any]:
    """The recipe of one item.

    Args:
        config: as `settings.load_config` returns it.
        item: has the attributes `prompt` and `SETTINGS`, as a row of `sheet.read_items` does.

    Returns:
        Only settings that have an effect: at strength 0 nothing about the prompt, no seed if nothing is drawn, no
        negative prompt without guidance.
    """
    chosen = {key: config[key] for key in ("model_id", "revision", "dtype", "image_size", "resize", "posterior")}
    chosen |= {key: config[key] for key in ("variant", "vae_id") if config[key]}
    if config.get("batch_size", 1) > 1:  # other kernels, which differ in the last digits
        chosen["batch_size"] = config["batch_size"]
    chosen["version"] = RECIPE_VERSION
    chosen["strength"] = item.strength
    if item.strength > 0 or config["posterior"] == "sample":
        chosen["seed"] = item.seed
    if item.strength > 0:
        chosen["prompt"] = item.prompt
        chosen["guidance_scale"] = item.guidance_scale
        chosen["num_inference_steps"] = item.num_inference_steps
        chosen["scheduler"] = config["scheduler"]
        if item.guidance_scale > 1:
            # An empty text is not the same as none for Stable Diffusion XL. None is written as "", as both once were,
            # so that items without a negative prompt keep their recipe.
            chosen["negative_prompt"] = item.negative_prompt or ""
            if item.negative_prompt == "":
                chosen["empty_negative_prompt"] = True
    return chosen


def recipe_digest(recipe: Mapping[str, Any]) -> str:
    """SHA-256 of a recipe, hexadecimal; each latent's file holds the one of the recipe that made it."""
    return text_digest(canonical(recipe))


def model_digest(model: Mapping[str, Any], dtype: str | None = None) -> str:
    """SHA-256 of a model, hexadecimal: of all files that decide its numbers, whatever it is called.

    Args:
        model: as `source.resolve` returns it.
        dtype: of the config.
    """
    parts = [model.get("sha256"), (model.get("vae") or {}).get("sha256")]
    if dtype in ("float16", "bfloat16") and str(model.get("family")).startswith("StableDiffusionXL"):
        parts.append("encoded as diffusers does")  # earlier, not quite: such latents are made again
    return text_digest(canonical(parts))


def canonical(value: Any) -> str:
    """JSON text that is the same for the same value: sorted keys, no spaces."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def text_digest(text: str) -> str:
    """SHA-256 of a text in UTF-8, hexadecimal."""
    return hashlib.sha256(text.encode()).hexdigest()


def steps_problem(strength: float, steps: int) -> str:
    """Why a strength and a number of steps do not work together; empty if they do.

    diffusers' pipelines make int(strength * steps) steps (`get_timesteps`); without any, the latent would be empty.
    """
    if strength > 0 and int(strength * steps) == 0:
        return (
            f"strength {strength:g} of {steps} steps makes no step at all; "
            f"use strength 0, or at least {math.ceil(1000 / steps) / 1000:g}, or more steps"
        )
    return ""
