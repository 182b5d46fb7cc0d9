"""The config and the sheet's columns: type, range, default and meaning, each stated once."""

from __future__ import annotations

import difflib
import json
import math
import os
import re
from collections.abc import Iterable, Mapping
from functools import cache
from typing import Any

import yaml
from jsonschema import Draft202012Validator

from gpi_latents import paths
from gpi_latents.errors import InputError, error_list
from gpi_latents.files import file_problems
from gpi_latents.model.family import family_problem, model_files, model_id_problem
from gpi_latents.model.source import _pickle_problem
from gpi_latents.recipe import steps_problem

# These draw noise in each step, so that the latent depends on more than the noise that it started from.
STOCHASTIC_SCHEDULERS = {
    "DDPMScheduler",
    "EulerAncestralDiscreteScheduler",
    "KDPM2AncestralDiscreteScheduler",
    "LCMScheduler",
    "SASolverScheduler",
    "TCDScheduler",
}


def load_config(given: Mapping[str, Any], command_line: Iterable[str] = ()) -> dict[str, Any]:
    """Validate the config and fill in the schema's defaults.

    Args:
        given: keys and values as Snakemake read them.
        command_line: the keys that came by `--config`, whose values arrive as text or as guessed numbers and are
            turned into the schema's type.

    Returns:
        Every key of the schema, in its order.

    Raises:
        InputError: with all problems, not the first alone.
    """
    properties = schema()["properties"]
    config = dict(given)
    problems = []
    for key in config.keys() - properties.keys():
        problems.append(f"unknown key {key!r}{suggestion(key, properties, cutoff=0.6)}")
        del config[key]
    for key in command_line:
        if key in config:
            config[key] = _from_command_line(config[key], properties[key])
    config = {key: config.get(key, rule["default"]) for key, rule in properties.items()}
    for key, rule in properties.items():
        if problem := value_problem(config[key], rule):
            hint = ""
            if "string" in _types(rule) and isinstance(config[key], bool | int | float):
                hint = f"; a text that looks like a number or a truth value is kept in the config file as {key}: '...'"
            problems.append(f"key {key}: {problem}{hint}")
        else:
            config[key] = as_typed(config[key], rule)
    if not problems:
        if problem := steps_problem(config["strength"], config["num_inference_steps"]):
            problems.append(f"keys strength and num_inference_steps: {problem}")
        if config["resize"] == "contain" and isinstance(config["image_size"], list):
            problems.append("key image_size: resize 'contain' limits the longest side, so it takes one number")
        taken = [os.path.normpath(config[key]) for key in ("output_hidden_dir", "output_image_dir") if config[key]]
        if os.path.dirname(os.path.normpath(config["stacked"])) in taken:
            problems.append("key stacked: it would lie among the items' own files: put it into another folder")
        if str(config["vae_id"]).endswith(".safetensors"):
            problems.append("key vae_id: a single file has no config: name a folder in diffusers' layout or an id")
        for key in ("model_id", "vae_id"):
            if problem := model_id_problem(config[key]):
                problems.append(f"key {key}: {problem}")
        is_local = config["model_id"] != "demo" and os.path.exists(config["model_id"])
        if is_local and os.path.isdir(config["model_id"]) and (problem := family_problem(config["model_id"])):
            problems.append(f"key model_id: {problem}")
        if is_local and config["revision"]:
            problems.append("key revision: only a model of Hugging Face has revisions, and model_id is a local one")
        if problem := _pickle_problem(config):
            problems.append(f"key allow_pickle: {problem}")
        if config["scheduler"] in STOCHASTIC_SCHEDULERS and not config["allow_stochastic_scheduler"]:
            problems.append(
                f"key scheduler: {config['scheduler']} draws noise in each step, which adds chance to the latents; "
                "take another, or set allow_stochastic_scheduler: true"
            )
        problems += [f"key model_id: {problem}" for problem in file_problems(model_files(config)).values()]
    if problems:
        raise InputError(error_list("The config", problems))
    return config


@cache
def schema() -> dict[str, Any]:
    """config/schema.yaml: the config's keys, and the sheet's columns below `$defs`."""
    return yaml.safe_load((paths.SCRIPTS.parent / "config/schema.yaml").read_text(encoding="utf-8"))


def _types(rule: Mapping[str, Any]) -> list[str]:
    types = rule.get("type", "string")
    return [types] if isinstance(types, str) else types


@cache
def _validator(rule: str) -> Draft202012Validator:
    return Draft202012Validator(json.loads(rule))


def value_problem(value: Any, rule: Mapping[str, Any]) -> str:
    """Why `value` is not what the schema allows; empty if it is."""
    if isinstance(value, float) and not math.isfinite(value):
        return f"{value} is not a finite number"
    errors = sorted(_validator(json.dumps(rule)).iter_errors(value), key=lambda error: list(error.path))
    if not errors:
        return ""
    error = errors[0]
    shown = repr(value) if len(repr(value)) <= 80 else repr(value)[:77] + "..."
    if error.validator == "type" or error.validator == "pattern":
        wanted = " or ".join(_types(rule)).replace("null", "null (none)")
        text = f"{shown} is not {'a valid text' if error.validator == 'pattern' else f'of type {wanted}'}"
        return f"{text}. {rule['description']}"
    if error.validator == "minLength":
        return "it is empty"
    if error.validator == "maxLength":
        return f"the text has {len(value)} characters, more than {error.validator_value}"
    limits = {"minimum": "at least", "maximum": "at most", "multipleOf": "a multiple of"}
    if error.validator in limits:
        return f"{shown} must be {limits[error.validator]} {error.validator_value}"
    return error.message


def as_typed(value: Any, rule: Mapping[str, Any]) -> Any:
    """A valid value in its one Python type, so that 1 and 1.0 are the same recipe."""
    if rule.get("type") == "number":
        return float(value)
    if "integer" in _types(rule) and isinstance(value, float):
        return int(value)
    return value


def _from_command_line(value: Any, rule: Mapping[str, Any]) -> Any:
    if isinstance(value, list):
        return [_from_command_line(part, rule.get("items", {})) for part in value]
    if not isinstance(value, str) or ("string" in _types(rule) and "null" not in _types(rule)):
        return value
    if value.lower() in ("null", "none", "~", ""):
        return None
    if "string" in _types(rule):
        return value
    try:
        return yaml.safe_load(value)
    except yaml.YAMLError:
        return value


def parse_cell(text: str, rule: Mapping[str, Any], default: Any) -> tuple[Any, str]:
    """A cell as the value of a setting, and what is wrong with it; a blank cell takes the default."""
    if text.strip() == "":
        return default, ""
    if "string" in _types(rule):
        return text, value_problem(text, rule)
    if not re.fullmatch(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?", text.strip(), re.ASCII):
        hint = "; decimals are written with a point" if re.fullmatch(r"\s*[+-]?\d*,\d+\s*", text) else ""
        return None, f"{text!r} is not a number{hint}"
    value = float(text)
    if not math.isfinite(value):
        return None, f"{text!r} is too large"
    if "integer" in _types(rule):
        if value != int(value):
            return None, f"{text!r} is not a whole number"
        try:
            value = int(text)  # exact beyond 2^53
        except ValueError:
            value = int(value)  # 20.0, as pandas writes a column with gaps
    problem = value_problem(value, rule)
    return (None if problem else as_typed(value, rule)), problem


def suggestion(name: str, known: Iterable[str], cutoff: float) -> str:
    plain = re.sub(r"[\s_-]+", "_", str(name).strip().lower())
    near = difflib.get_close_matches(plain, list(known), n=1, cutoff=cutoff)
    return f": did you mean {near[0]!r}?" if near else ""
