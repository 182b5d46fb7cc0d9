"""The config's keys and the sheet's columns: type, range, default and meaning, each stated once."""

from __future__ import annotations

import contextlib
import difflib
import math
import os
import re
from collections.abc import Iterable, Mapping
from functools import cache
from typing import Annotated, Any, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from gpi_latents.errors import InputError, error_list
from gpi_latents.files import file_problems
from gpi_latents.model.family import family_problem, model_files, model_id_problem
from gpi_latents.plan import MISSING, NUMBER
from gpi_latents.recipe import SETTINGS, steps_problem

# Strict: true is no number, and 5 is no text. \Z and not $, which also matches before a newline at the end.
RULES = ConfigDict(
    strict=True, allow_inf_nan=False, extra="forbid", regex_engine="python-re", use_attribute_docstrings=True
)
PATHVAR = r"<[a-z][a-z0-9_]*>"  # in a path, Snakemake replaces it
MARKUP = r"<[/!]"  # in a path of the rules, it could end a script in the page of `snakemake --report`
BELOW_STUDY = rf"^(?![/~])(?!(.*/)?\.\.?(/|$))(?!.*{PATHVAR})(?!.*{MARKUP})[^{{}}\x00-\x1f]+"
FILE_NAME = r"^[A-Za-z0-9_-][A-Za-z0-9._-]{0,63}\Z"

# These draw noise in each step, so that the latent depends on more than the noise that it started from.
Stochastic = Literal[
    "DDPMScheduler", "EulerAncestralDiscreteScheduler", "KDPM2AncestralDiscreteScheduler", "LCMScheduler",
    "SASolverScheduler", "TCDScheduler",
]  # fmt: skip
Scheduler = Literal[
    "auto", "DDIMScheduler", "DEISMultistepScheduler", "DPMSolverMultistepScheduler", "DPMSolverSinglestepScheduler",
    "EulerDiscreteScheduler", "HeunDiscreteScheduler", "KDPM2DiscreteScheduler", "PNDMScheduler",
    "UniPCMultistepScheduler", "FlowMatchEulerDiscreteScheduler", "FlowMatchHeunDiscreteScheduler", Stochastic,
]  # fmt: skip


Pixels = Annotated[int, Field(ge=8, le=8192, multiple_of=8)]


class Config(BaseModel):
    """The keys of a study's config, each described by the text below it."""

    model_config = RULES

    items: str = Field("config/items.csv", min_length=1)
    """The sheet, a CSV file with one row per item."""
    model_id: str = Field("stable-diffusion-v1-5/stable-diffusion-v1-5", min_length=1)
    """The diffusion model: `demo` (the small one in this repository), a folder in diffusers' layout, a Hugging Face id
    such as `stable-diffusion-v1-5/stable-diffusion-v1-5`, or a checkpoint in one `.safetensors` file."""
    revision: str | None = None
    """Branch, tag or commit of a Hugging Face model; null is its main branch."""
    variant: str | None = Field(None, pattern=r"^[A-Za-z0-9_-]+\Z")
    """Which of a model's weights files are used, such as `fp16`; null means the plain ones."""
    vae_id: str | None = Field(None, min_length=1)
    """An autoencoder that replaces the model's own: a folder in diffusers' layout or a Hugging Face id such as
    `stabilityai/sd-vae-ft-mse`; null keeps the model's own."""
    allow_pickle: bool = False
    """Whether weights that exist only as pickled files (`.bin`) are loaded. Such files can hold strangers' code, so by
    default only safetensors are."""
    cache_dir: str | None = None
    """Folder for downloaded models; null is Hugging Face's own cache."""
    device: str = Field("auto", pattern=r"^(auto|cpu|mps|cuda(:[0-9]+)?)\Z")
    """Where the model runs: `auto` (every visible GPU, else the CPU), `cpu`, `cuda`, `cuda:0` or `mps`."""
    dtype: Literal["float32", "float16", "bfloat16"] = "float32"
    """Number format of the model. The latents are always saved as float32. A VAE that asks for it (`force_upcast`)
    stays in float32 when this is float16, and that of Stable Diffusion XL also when it is bfloat16."""
    batch_size: int = Field(1, ge=1, le=64)
    """How many items go through the model together; each latent depends on this number, not on the other items in its
    batch. On a GPU with at least twice as many items in flight, more are faster; on a CPU, leave it at 1
    (docs/models.md)."""
    image_size: Pixels | Annotated[list[Pixels], Field(min_length=2, max_length=2)] | None = None
    """Size in pixels that pictures get before they are encoded, one number or [height, width]; null is the model's
    native size."""
    resize: Literal["pad", "crop", "stretch", "contain"] = "pad"
    """How a picture gets its `image_size`. `pad` keeps all of it and fills the rest with its mirrored borders; `crop`
    cuts out the centre; `stretch` changes its proportions; `contain` is gpi_pack's rule: it only makes pictures
    smaller, and their shapes may differ."""
    posterior: Literal["sample", "mode"] = "sample"
    """Whether the VAE's posterior is sampled with the item's seed, as gpi_pack does, or its mode is taken."""
    scheduler: Scheduler = "auto"
    """What removes the noise when strength is above 0, by its class in diffusers; `auto` is DDIMScheduler, or the
    model's own if it was trained with flow matching (Stable Diffusion 3, FLUX.1)."""
    allow_stochastic_scheduler: bool = False
    """Whether the scheduler may draw noise in each step, as the ancestral ones do."""
    strength: float = Field(0, ge=0, le=1)
    """How far the picture is changed towards the prompt. 0 encodes it as it is, and the prompt has no effect; 1 starts
    from pure noise. Above 0, strength times num_inference_steps must reach 1."""
    num_inference_steps: int = Field(50, ge=1, le=999)  # Stable Diffusion has 1000 steps and begins at its second
    """Denoising steps of a full run; about strength times this many are made."""
    guidance_scale: float = Field(7.5, ge=0, le=1000)
    """Weight of the prompt (classifier-free guidance); at 1 or below there is no second pass."""
    negative_prompt: str | None = Field(None, max_length=10000)
    """What the picture should not show; null is none. For Stable Diffusion XL an empty text (`""`) is not the same, as
    in diffusers: it is encoded, while none is zeros."""
    seed: int = Field(0, ge=0, le=2**32 - 1)
    """Seed of the item's own random generator. It takes seeds modulo 2^32, so larger ones would only repeat these."""
    draws: int = Field(1, ge=1, le=1000)
    """How many latents an item gets. Above 1, `x` becomes the items `x_1`, `x_2` and so on, with seed, seed + 1 and so
    on; the index table tells them apart by its columns `item` and `draw`. More than one matters where chance moves a
    latent by much of the distance between two pictures; `posterior: mode` at strength 0 leaves nothing to chance."""
    output_hidden_dir: str = Field("results/hidden", pattern=BELOW_STUDY + r"\Z")
    """Folder of the latents, one file per item, below the working directory."""
    output_image_dir: str | None = Field("results/images", pattern=BELOW_STUDY + r"\Z")
    """Folder of the decoded pictures, below the working directory; null decodes none."""
    prefix_hidden: str = Field("hidden", pattern=FILE_NAME)
    """Latents are named `{prefix_hidden}_{id}.pt`."""
    save_name: str = Field("gen", pattern=FILE_NAME)
    """Decoded pictures are named `{save_name}_{id}.png`."""
    stacked: str = Field("results/latents.pt", pattern="^(?!-)" + BELOW_STUDY + r"\.(pt|npy|safetensors)\Z")
    """The tensor of all latents, below the working directory, not beginning with `-`; the suffix `.pt`, `.npy` or
    `.safetensors` chooses the format."""
    report: bool = True
    """Whether `results/report.html` and its figures are made."""
    report_color: str | None = Field(None, min_length=1)
    """The column of the index table that colours the report's map of the latents; null is `treatment` if there is one,
    else none."""
    resident: bool = True
    """Whether one process per node keeps the model loaded for all items. false loads it again for every item, which is
    slow and gives the same numbers."""
    resident_idle_seconds: float = Field(60, ge=1, le=86400)
    """After how many seconds without work the resident model ends by itself; it ends with the run anyway."""
    item_timeout: float = Field(1800, ge=1, le=604800)
    """After how many seconds without progress (a picture opened, a denoising step, a latent decoded) an item fails.
    Loading the model at the start has no limit."""
    on_error: Literal["stop", "skip"] = "stop"
    """What a run does if an item fails, such as one with a damaged picture. `stop`: it extracts the others and ends
    with an error before it stacks. `skip`: it stacks the others and ends well; `results/failed.csv` has those that
    failed, with the reasons, and each later run tries them again."""


class Item(BaseModel):
    """The columns of the sheet that are not keys of the config."""

    model_config = RULES

    id: str = Field(pattern=r"^[A-Za-z0-9_-][A-Za-z0-9._-]{0,127}\Z")
    """Name of the item and of its files, by default the image's file name without its suffix; letters, digits, `.`, `_`
    and `-`, not starting with `.`, at most 128 characters. No two may be the same or differ only in case."""
    image: str = Field(min_length=1, pattern=rf"^(?!.*{PATHVAR})[^{{}}\x00-\x1f\x7f]+\Z")
    """Path of the picture, relative to the working directory or absolute, without braces and without words in angle
    brackets such as `<logs>`, which Snakemake would replace."""
    prompt: str = Field(max_length=10000)
    """Text for the model, used when strength is above 0."""


KEYS: dict[str, FieldInfo] = Config.model_fields
COLUMNS: dict[str, FieldInfo] = {**Item.model_fields, **{name: KEYS[name] for name in [*SETTINGS, "draws"]}}
FIELDS = KEYS | COLUMNS

# Values that --config gives as texts.
WORDS = {"null": None, "none": None, "~": None, "": None, "true": True, "yes": True, "on": True}
WORDS |= {"false": False, "no": False, "off": False}

# What is wrong with a value, by pydantic's name for it.
PROBLEMS = {
    "string_type": "{value} is not a text; one that looks like a number, a date, true or false needs quotes in the "
    "config file: {name}: '...'. {meaning}",
    "string_unicode": "{value} is not a valid text. {meaning}",
    "string_pattern_mismatch": "{value} is not a valid text. {meaning}",
    "string_too_short": "it is empty",
    "string_too_long": "the text has {length} characters, more than {max_length}",
    "bool_type": "{value} is not true or false. {meaning}",
    "float_type": "{value} is not a number. {meaning}",
    "int_type": "{value} is not a whole number. {meaning}",
    "finite_number": "{value} is not a finite number",
    "greater_than_equal": "{value} must be at least {ge}",
    "less_than_equal": "{value} must be at most {le}",
    "multiple_of": "{value} must be a multiple of {multiple_of}",
    "literal_error": "{value} is not one of {expected}",
    "too_short": "{value} must have two numbers, [height, width]",
    "too_long": "{value} must have two numbers, [height, width]",
}


def load_config(given: Mapping[str, Any], command_line: Iterable[str] = ()) -> dict[str, Any]:
    """Check the config and fill in the defaults.

    Args:
        given: keys and values as Snakemake read them.
        command_line: the keys that came by `--config`, whose values are texts or numbers that Snakemake guessed.

    Returns:
        Every key of `Config`, in its order, each value in its one Python type.

    Raises:
        InputError: with all problems.
    """
    problems = [f"unknown key {key!r}{suggestion(key, KEYS)}" for key in given if key not in KEYS]
    texts = set(command_line)
    config = {}
    for key, field in KEYS.items():
        value = given.get(key, field.default)
        config[key], problem = checked(key, _from_command_line(key, value) if key in texts else value)
        problems += [f"key {key}: {problem}"] if problem else []
    problems = problems or _combined_problems(config)
    if problems:
        raise InputError(error_list("The config", problems))
    return config


def checked(name: str, value: Any) -> tuple[Any, str]:
    """A key's or a column's value in its one Python type, and what is wrong with it (empty if nothing is)."""
    if FIELDS[name].annotation is not float:
        value = _whole(value)
    try:
        return _validator(name).validate_python(value), ""
    except ValidationError as error:
        errors = error.errors()
    # A value that may be of several types, such as image_size, has one error for each.
    worst = next((each for each in errors if not each["type"].endswith("_type")), errors[0])
    return value, _explained(name, worst)


def parse_cell(column: str, text: str, default: Any) -> tuple[Any, str]:
    """A cell's value, and what is wrong with it (empty if nothing is); a `MISSING` setting takes the default."""
    if column in KEYS and text.strip() in MISSING:
        return default, ""
    if COLUMNS[column].annotation not in (int, float):
        return checked(column, text)
    number = _number(text)
    if number is None:
        hint = "; decimals are written with a point" if re.fullmatch(r"\s*[+-]?\d*,\d+\s*", text) else ""
        return text, f"{_shown(text)} is not a number{hint}"
    if math.isinf(number):
        return text, f"{_shown(text)} is too large"
    return checked(column, number)


def meaning(field: FieldInfo) -> str:
    """A field's description in one line."""
    return " ".join(str(field.description).split())


def suggestion(name: Any, known: Iterable[str], cutoff: float = 0.6) -> str:
    """A question with the known name that is most like a misspelt one; empty if none is."""
    plain = re.sub(r"[\s_-]+", "_", str(name).strip().lower())
    near = difflib.get_close_matches(plain, list(known), n=1, cutoff=cutoff)
    return f": did you mean {near[0]!r}?" if near else ""


def _combined_problems(config: Mapping[str, Any]) -> list[str]:
    """What is wrong with values that are right by themselves, and with the files that they name."""
    problems = []
    if problem := steps_problem(config["strength"], config["num_inference_steps"]):
        problems.append(f"keys strength and num_inference_steps: {problem}")
    if config["resize"] == "contain" and isinstance(config["image_size"], list):
        problems.append("key image_size: resize 'contain' limits the longest side, so it takes one number")
    taken = [os.path.normpath(config[key]) for key in ("output_hidden_dir", "output_image_dir") if config[key]]
    if os.path.dirname(os.path.normpath(config["stacked"])) in taken:
        problems.append("key stacked: it would be among the items' own files: put it into another folder")
    for key in ("model_id", "vae_id"):
        if found := re.search(PATHVAR, str(config[key])):
            problems.append(f"key {key}: Snakemake would replace {found.group()!r} in a path: give it another name")
        elif found := re.search(MARKUP, str(config[key])):
            problems.append(f"key {key}: {found.group()!r} in a path could end a script in Snakemake's report")
        elif key == "vae_id" and str(config[key]).endswith(".safetensors"):
            problems.append("key vae_id: a single file has no config: name a folder in diffusers' layout or an id")
        elif problem := model_id_problem(config[key]):
            problems.append(f"key {key}: {problem}")
    is_local = config["model_id"] != "demo" and os.path.exists(config["model_id"])
    if is_local and os.path.isdir(config["model_id"]) and (problem := family_problem(config["model_id"])):
        problems.append(f"key model_id: {problem}")
    if is_local and config["revision"]:
        problems.append("key revision: only a Hugging Face model has revisions, and model_id is a local one")
    if config["scheduler"] in get_args(Stochastic) and not config["allow_stochastic_scheduler"]:
        problems.append(
            f"key scheduler: {config['scheduler']} draws noise in each step, which adds chance to the latents; "
            "take another, or set allow_stochastic_scheduler: true"
        )
    return problems + [f"key model_id: {problem}" for problem in file_problems(model_files(config)).values()]


@cache
def _validator(name: str) -> TypeAdapter:
    field = FIELDS[name]
    return TypeAdapter(Annotated[field.annotation, field], config=RULES)  # type: ignore[arg-type]


def _explained(name: str, error: ErrorDetails) -> str:
    value = error["input"]
    words: dict[str, Any] = {"name": name, "value": _shown(value), "meaning": meaning(FIELDS[name])}
    words |= {limit: _whole(number) for limit, number in error.get("ctx", {}).items()}
    words |= {"length": len(value) if isinstance(value, str) else 0, "message": error["msg"]}
    return PROBLEMS.get(error["type"], "{value}: {message}").format(**words)


def _whole(value: Any) -> Any:
    """20.0 as 20, also in a list, so that both are the same recipe."""
    if isinstance(value, list):
        return list(map(_whole, value))
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


def _number(text: str) -> int | float | None:
    """The number in a text, exact if it is a whole one; None if there is none."""
    if not re.fullmatch(NUMBER, text.strip(), re.ASCII):
        return None
    value = float(text)
    if 2**53 <= abs(value) < math.inf:
        with contextlib.suppress(ValueError):  # such as 1e20
            return int(text)
    return value


def _from_command_line(key: str, value: Any) -> Any:
    """A value as a config file would have it: Snakemake leaves null, false and the numbers of a list as texts."""
    if isinstance(value, list):
        return [_from_command_line(key, part) for part in value]
    if not isinstance(value, str):
        return value
    readings: list[Any] = [WORDS[word] for word in [value.lower()] if word in WORDS] + [value]
    readings += [number for number in [_number(value)] if number is not None]
    return next((reading for reading in readings if not checked(key, reading)[1]), readings[-1])
