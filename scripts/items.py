"""The sheet and the config become a validated table of items; each item has a recipe.

Runs while Snakemake parses, so nothing heavy is imported here.
"""

from __future__ import annotations

import contextlib
import difflib
import fcntl
import glob
import hashlib
import io
import json
import math
import os
import re
import stat
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from itertools import pairwise
from pathlib import Path, PurePath
from typing import Any

import pandas as pd
import yaml
from jsonschema import Draft202012Validator

ROOT = Path(__file__).resolve().parent.parent
DEMO_MODEL = ROOT / "config/demo/model"

# Raise by hand when scripts/diffusion.py gives other numbers for the same recipe: every latent is then made anew.
RECIPE_VERSION = 1

# Settings that a row of the sheet can override; together with the prompt, what the index table tells of an item.
SETTINGS = ["negative_prompt", "strength", "guidance_scale", "num_inference_steps", "seed"]
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
# What diffusers and transformers load of a part's folder, beside its `.json` files.
WEIGHTS = (".safetensors", ".bin")
WEIGHTS_STEMS = ("diffusion_pytorch_model", "model", "pytorch_model")
DESCRIBED = (".json", ".txt", ".model")
# These draw noise in each step, so that the latent depends on more than the noise that it started from.
STOCHASTIC_SCHEDULERS = {
    "DDPMScheduler",
    "EulerAncestralDiscreteScheduler",
    "KDPM2AncestralDiscreteScheduler",
    "LCMScheduler",
    "SASolverScheduler",
    "TCDScheduler",
}
# Columns that the index table adds, so a sheet cannot have them.
INDEX_COLUMNS = ["row", "sha256"]
# The report's figures in their order, each with its title and the category that `snakemake --report` lists it under.
FIGURES = {
    "contact_sheet": ("Input and decoded output", "Pictures"),
    "reconstruction": ("Reconstruction error", "Pictures"),
    "map": ("Map of the latents", "Latents"),
    "values": ("Values by channel", "Latents"),
    "duplicates": ("Near-duplicates", "Latents"),
    "run_times": ("Run times", "Run"),
}

MOST_FAULTS = 20
BLOCK = 100  # latents whose checksums stand in one file
FAILED = "logs/failed.csv"
CLOCK_TOLERANCE = 10.0  # seconds that the clocks of a file server and of this machine may differ


class InputError(Exception):
    """A mistake in the config or the sheet; its text is the message for the user."""


def load_config(given: Mapping[str, Any], command_line: Iterable[str] = ()) -> dict[str, Any]:
    """Validate the config and fill in the schema's defaults.

    Args:
        given: keys and values as Snakemake read them.
        command_line: the keys that came by `--config`, whose values arrive as text or as guessed numbers and are
            turned into the schema's type.

    Returns:
        Every key of the schema, in its order.

    Raises:
        InputError: with all faults, not the first alone.
    """
    properties = schema()["properties"]
    config = dict(given)
    faults = []
    for key in config.keys() - properties.keys():
        faults.append(f"unknown key {key!r}{_suggestion(key, properties, cutoff=0.6)}")
        del config[key]
    for key in command_line:
        if key in config:
            config[key] = _from_command_line(config[key], properties[key])
    config = {key: config.get(key, rule["default"]) for key, rule in properties.items()}
    for key, rule in properties.items():
        if fault := _fault(config[key], rule):
            hint = ""
            if "string" in _types(rule) and isinstance(config[key], bool | int | float):
                hint = f"; a text that looks like a number or a truth value is kept in the config file as {key}: '...'"
            faults.append(f"key {key}: {fault}{hint}")
        else:
            config[key] = _as_typed(config[key], rule)
    if not faults:
        if fault := _too_few_steps(config["strength"], config["num_inference_steps"]):
            faults.append(f"keys strength and num_inference_steps: {fault}")
        if config["resize"] == "contain" and isinstance(config["image_size"], list):
            faults.append("key image_size: resize 'contain' limits the longest side, so it takes one number")
        taken = [os.path.normpath(config[key]) for key in ("output_hidden_dir", "output_image_dir") if config[key]]
        if os.path.dirname(os.path.normpath(config["stacked"])) in taken:
            faults.append("key stacked: it would lie among the items' own files: put it into another folder")
        if str(config["vae_id"]).endswith(".safetensors"):
            faults.append("key vae_id: a single file has no config: name a folder in diffusers' layout or an id")
        for key in ("model_id", "vae_id"):
            if fault := _model_fault(config[key]):
                faults.append(f"key {key}: {fault}")
        is_local = config["model_id"] != "demo" and os.path.exists(config["model_id"])
        if is_local and os.path.isdir(config["model_id"]) and (fault := family_fault(config["model_id"])):
            faults.append(f"key model_id: {fault}")
        if is_local and config["revision"]:
            faults.append("key revision: only a model of Hugging Face has revisions, and model_id is a local one")
        if fault := _pickle_fault(config):
            faults.append(f"key allow_pickle: {fault}")
        if config["scheduler"] in STOCHASTIC_SCHEDULERS and not config["allow_stochastic_scheduler"]:
            faults.append(
                f"key scheduler: {config['scheduler']} draws noise in each step, which adds chance to the latents; "
                "take another, or set allow_stochastic_scheduler: true"
            )
        faults += [f"key model_id: {fault}" for fault in file_faults(model_files(config)).values()]
    if faults:
        raise InputError(_listing("The config", faults))
    return config


def read_items(config: Mapping[str, Any], check_images: bool = True) -> pd.DataFrame:
    """Read and validate the sheet.

    Args:
        config: as `load_config` returns it.
        check_images: also check that every image is a file, by one directory scan per folder.

    Returns:
        One line per item in sheet order, labelled by its row in the sheet (the header is row 1): `id`, `image`,
        `prompt`, the `SETTINGS` with the config's values where the sheet has none, then the carried columns as text.

    Raises:
        InputError: naming the file and, for the first 20 faults, row and column.
    """
    path = config["items"]
    sheet = _read_csv(path)
    rules = schema()["$defs"]["item"]["properties"]
    _check_header(path, list(sheet.columns), rules)
    _check_color(config, list(sheet.columns))
    faults: list[tuple[int, str, str]] = []

    if "id" not in sheet:
        sheet.insert(0, "id", [Path(image).stem for image in sheet["image"]])
        id_hint = " (made from the image's file name: give the sheet a column id to choose another)"
    else:
        id_hint = ""

    items = pd.DataFrame(index=sheet.index)
    for name, rule in rules.items():
        if name in ("id", "image", "prompt"):
            texts = sheet[name]
            parsed = {text: (text, _fault(text, rule)) for text in texts.unique()}
        elif name in sheet:
            texts = sheet[name]
            rule = schema()["properties"][name]
            parsed = {text: _parse(text, rule, config[name]) for text in texts.unique()}
        else:
            items[name] = pd.Series([config[name]] * len(sheet), index=sheet.index, dtype=object)
            continue
        items[name] = pd.Series([parsed[text][0] for text in texts], index=sheet.index, dtype=object)
        bad = {text for text, (_, fault) in parsed.items() if fault}
        hint = id_hint if name == "id" else ""
        faults += [(row, name, parsed[text][1] + hint) for row, text in texts.items() if text in bad]

    faulty = {(row, name) for row, name, _ in faults}
    for row, strength, steps in zip(items.index, items["strength"], items["num_inference_steps"], strict=True):
        if faulty.isdisjoint({(row, "strength"), (row, "num_inference_steps")}):
            fault = _too_few_steps(strength, steps)
            faults += [(row, "strength", fault)] if fault else []
    usable = {row: item_id for row, item_id in items["id"].items() if (row, "id") not in faulty}
    faults += [
        (row, "id", text + id_hint) for row, text in _duplicates(items["id"], _ignores_case(path)) if row in usable
    ]
    faults += [
        (row, "id", f"{item_id!r} ends in 20 times the same, which Snakemake takes for an endless loop{id_hint}")
        for row, item_id in usable.items()
        if _is_periodic(item_id)
    ]
    if check_images:
        bad_images = file_faults(items["image"].unique())
        faults += [
            (row, "image", bad_images[image])
            for row, image in items["image"].items()
            if image in bad_images and (row, "image") not in faulty
        ]
    if clash := _clash(config, {os.path.dirname(own): own for own in [*items["image"], path]}):
        raise InputError(clash)
    if faults:
        order = {name: i for i, name in enumerate(sheet.columns)}
        faults.sort(key=lambda fault: (fault[0], order.get(fault[1], -1)))
        lines = [f"row {row}, column {column}: {text}" for row, column, text in faults]
        raise InputError(_listing(f"The sheet {path} (its header is row 1)", lines))

    carried = [name for name in sheet.columns if name not in rules]
    return pd.concat([items, sheet[carried]], axis=1)


def recipe(config: Mapping[str, Any], item: Any) -> dict[str, Any]:
    """What decides an item's latent, and nothing else.

    Args:
        config: as `load_config` returns it.
        item: has the attributes `prompt` and `SETTINGS`, as a line of `read_items` does.

    Returns:
        Settings that play no part are left out: at strength 0 all that concerns the prompt, the seed where nothing is
        drawn, the negative prompt without guidance.
    """
    chosen = {key: config[key] for key in ("model_id", "revision", "dtype", "image_size", "resize", "posterior")}
    chosen |= {key: config[key] for key in ("variant", "vae_id") if config[key]}
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
            chosen["negative_prompt"] = item.negative_prompt or ""
    return chosen


def recipe_digest(recipe: Mapping[str, Any]) -> str:
    """SHA-256 of a recipe, hexadecimal; each latent's file says by it what made it."""
    return hashlib.sha256(canonical(recipe).encode()).hexdigest()


def canonical(value: Any) -> str:
    """JSON text that is the same for the same value: sorted keys, no spaces."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def latent_path(config: Mapping[str, Any], item_id: str) -> str:
    """Where an item's latent lies, from the working directory."""
    return os.path.normpath(f"{config['output_hidden_dir']}/{config['prefix_hidden']}_{item_id}.pt")


def picture_path(config: Mapping[str, Any], item_id: str) -> str | None:
    """Where an item's decoded picture lies, from the working directory; None where none is asked for."""
    if config["output_image_dir"] is None:
        return None
    return os.path.normpath(f"{config['output_image_dir']}/{config['save_name']}_{item_id}.png")


def figures(config: Mapping[str, Any]) -> list[str]:
    """The report's figures; none of pictures where no pictures are decoded."""
    return [name for name, (_, kind) in FIGURES.items() if config["output_image_dir"] or kind != "Pictures"]


def block(latents: list[str], number: int) -> list[str]:
    """The latents whose checksums stand in one file, in sheet order."""
    return latents[number * BLOCK : (number + 1) * BLOCK]


def checksum_path(number: int | str) -> str:
    """Where the SHA-256 of one block's latents lie, in the form of the program sha256sum."""
    return f"results/checksums/{number}.sha256"


def checksum_paths(count: int) -> list[str]:
    """The same of all blocks of a sheet with `count` items."""
    return [checksum_path(number) for number in range(math.ceil(count / BLOCK))]


def lost_results(config: Mapping[str, Any], ids: Iterable[str], checksums: Iterable[str]) -> list[str]:
    """Files that are missing although what was made after them is there, which Snakemake does not ask for by itself.

    Args:
        config: as `load_config` returns it.
        ids: of all items, in sheet order.
        checksums: the checksum files whose latents are looked at.

    Returns:
        Latents that a checksum was made of, and pictures whose latent is there.
    """
    chosen = set(checksums)
    made = chosen - _missing_files(chosen)
    blocks = {item_id: checksum_path(number // BLOCK) for number, item_id in enumerate(ids)}
    latents = {item_id: latent_path(config, item_id) for item_id, path in blocks.items() if path in chosen}
    missing = _missing_files(latents.values())
    lost = [path for item_id, path in latents.items() if path in missing and blocks[item_id] in made]
    if config["output_image_dir"]:
        pictures = {picture_path(config, item_id): path for item_id, path in latents.items()}
        lost += sorted(path for path in _missing_files(pictures) if pictures[path] not in missing)
    return lost


def tell_orphans(config: Mapping[str, Any], items: pd.DataFrame, log: str) -> None:
    """Print and log the files in the result folders that belong to no item of the sheet, one per line."""
    found = []
    for path in (latent_path, picture_path):
        if pattern := path(config, "*"):
            mine = {path(config, item_id) for item_id in items["id"]}
            folder, name = os.path.split(pattern)
            found += sorted(str(file) for file in Path(folder).glob(name) if str(file) not in mine)
    checksums = Path().glob(checksum_path("*"))
    found += sorted({str(file) for file in checksums} - set(checksum_paths(len(items))))
    text = "\n".join(found) or "Every latent and picture belongs to an item."
    Path(log).write_text(text + "\n", encoding="utf-8", errors="backslashreplace")
    print(text.encode(errors="backslashreplace").decode())


def is_target(rule: str, command_line: list[str]) -> bool:
    """Whether a rule is asked for; Snakemake itself tells its targets only after the Snakefile was read."""
    named = {"-d", "--directory", "-s", "--snakefile", "--configfile", "--profile", "--workflow-profile"}
    return any(word == rule and before not in named for before, word in pairwise(command_line))


def settle_dates(config: Mapping[str, Any]) -> None:
    """Give results that are dated in the future, since the clock was set back, today's date.

    Snakemake lets no job end whose output is older than its input.
    """
    folders = {config["output_hidden_dir"], config["output_image_dir"]}
    folders |= {"results", "results/checksums", "results/report"}
    now = time.time()
    for folder in filter(None, folders):
        with contextlib.suppress(OSError), os.scandir(folder) as entries:
            _settle(entries, now)
    _settle([Path(config["stacked"])], now)


def _settle(files: Iterable[os.DirEntry | Path], now: float) -> None:
    for file in files:
        with contextlib.suppress(OSError):
            if file.is_file() and file.stat().st_mtime > now + CLOCK_TOLERANCE:
                os.utime(file, (now, now))  # one time for all, so that none is newer than what was made of it


def check_writable(config: Mapping[str, Any]) -> None:
    """Look whether results can be written, since Snakemake ends with a traceback where they cannot.

    Raises:
        InputError: a folder that cannot be written, and why.
    """
    folders = {config["output_hidden_dir"], config["output_image_dir"], os.path.dirname(config["stacked"])}
    for folder in [*filter(None, folders), "results", "logs"]:
        there = next(path for path in (Path(folder), *Path(folder).parents) if path.exists())
        try:
            with tempfile.TemporaryFile(dir=there):
                pass
        except OSError as error:
            raise InputError(f"Results cannot be written to {there.absolute()}: {error.strerror}") from None


def lock_run() -> None:
    """Hold this working directory for as long as this process lives, where the disk knows locks.

    Snakemake's own lock is looked at, then written, so that two runs that start at once could both pass.

    Raises:
        InputError: another run has it.
    """
    # Not by the library filelock: on a disk without locks, as Lustre may be, it makes a file that a kill leaves behind.
    # The descriptor is never closed, which would end the lock.
    descriptor = os.open(".snakemake/gpi-latents.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise InputError(
            f"Another run is at work in {os.getcwd()}: wait for it to end, or take another --directory"
        ) from None
    except OSError:
        pass  # the disk knows no locks; Snakemake's own must do


def image_bytes(image: str) -> int:
    """The size of a picture's file in bytes, -1 if it is not there.

    Snakemake looks at the bytes of a picture only where its date is newer than the latent's, which that of a file from
    an archive is not.
    """
    try:
        return os.stat(image).st_size
    except OSError:
        return -1


def remove_files(paths: Iterable[str]) -> None:
    """Remove the files that are there."""
    for path in paths:
        Path(path).unlink(missing_ok=True)


def unfinished(config: Mapping[str, Any], items: pd.DataFrame) -> str:
    """What a failed run leaves to do, and why, from the logs of its jobs.

    Returns:
        A text for the user: the failed items by row and id with the reasons (the first 20; all stand in
        `FAILED`), and how many were not reached; if no item failed, the log of the rule that did.
    """
    missing = items.loc[[not os.path.exists(latent_path(config, item_id)) for item_id in items["id"]], ["id", "image"]]
    reasons = {row: _reason(f"logs/extract/{item.id}.log", item.image) for row, item in missing.iterrows()}
    failed = missing.assign(reason=reasons)[[bool(reasons[row]) for row in missing.index]]
    told = []
    if not os.path.exists("results/model.json"):
        told.append(log_text("logs/model.log"))
    elif missing.empty and os.path.exists("results/index.csv"):
        # Snakemake removes what a failed job was to make.
        names = [name for name in figures(config) if not os.path.exists(f"results/report/{name}.json")]
        told += map(log_text, [*(f"logs/figure/{name}.log" for name in names), "logs/report.log"])
    elif missing.empty:
        told += map(log_text, ["logs/stack.log", *sorted(glob.glob("logs/checksums/*.log"))])
    if not failed.empty:
        with contextlib.suppress(OSError):
            failed.to_csv(FAILED, index_label="row")
        lines = [f"row {row}, {item.id}: {item.reason}" for row, item in failed.iterrows()]
        heading = f"{len(failed)} of {len(items)} items could not be done (all in {FAILED}):"
        told.append(_bullets(heading, lines))
    if rest := len(missing) - len(failed):
        told.append(f"{rest} of {len(items)} items were not reached: run again for them.")
    return "\n".join(filter(None, told))


def cut_prompts(items: pd.DataFrame) -> str:
    """Which prompts the model did not read to their end, from the logs of the items; a text for the user."""
    # The text encoders read 77 tokens, of one byte or more.
    long = items[["prompt", "negative_prompt"]].fillna("").map(lambda text: len(text.encode())).max(axis=1) > 75
    lines = []
    for row, item_id in items["id"][long & (items["strength"] > 0)].items():
        notes = log_text(f"logs/extract/{item_id}.log").split("; ")
        lines += [f"row {row}, {item_id}: {note}" for note in notes if " cut: " in note]
    return _bullets("Prompts too long for the model:", lines) if lines else ""


def log_text(path: str) -> str:
    """What a log says; empty if there is none."""
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return ""


def _reason(log: str, image: str) -> str:
    """Why an item failed; empty if it did not come to an end."""
    signs_of_life = re.compile(r"(loading the model|working on it), \d+ s$")
    lines = [line for line in log_text(log).splitlines() if not signs_of_life.match(line)]
    if lines and re.search(r"; [\d.]+ s of [\d.]+ s on \S+( after loading for [\d.]+ s)?$", lines[-1]):
        return ""  # it was done, and its latent was lost later
    # The message begins with the image; what C libraries may have printed stands before it.
    begins = [number for number, line in enumerate(lines) if line.startswith(os.path.normpath(image) + ": ")]
    return " ".join(lines[begins[0] if begins else 0 :])[:500]


def index_table(config: Mapping[str, Any], items: pd.DataFrame) -> pd.DataFrame:
    """The index table without the latents' digests.

    Returns:
        `row` (0..N-1), `id`, `image`, `prompt`, the settings as the recipe holds them (empty where a setting plays no
        part), then the carried columns, all in sheet order.
    """
    known = items[["prompt", *SETTINGS]]
    recipes = [recipe(config, item) for item in known.itertuples(index=False)]
    table = items.drop(columns=SETTINGS).reset_index(drop=True)
    for place, name in enumerate(SETTINGS, start=3):
        values = pd.Series([chosen.get(name, "") for chosen in recipes], dtype=object)
        table.insert(place, name, values)
    table.insert(0, "row", range(len(table)))
    return table


def table_digest(table: pd.DataFrame) -> str:
    """SHA-256 of an index table's text, hexadecimal."""
    return hashlib.sha256(table.to_csv(index=False).encode()).hexdigest()


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


def chosen_weights(files: Iterable[PurePath], variant: str | None, allow_pickle: bool) -> list[PurePath]:
    """Those of a part's files that its weights are loaded from.

    As in diffusers, a variant is taken where a part has it, and pickles where there are no safetensors.
    """
    safe, pickled = _weights(files, variant)
    return safe or (pickled if allow_pickle else [])


def weights_fault(files: Iterable[PurePath], part: str, variant: str | None, allow_pickle: bool) -> str:
    """Why a part's weights cannot be loaded, as far as the names of its files tell; empty if they can.

    The text goes on after the model's name.
    """
    files = list(files)
    if chosen_weights(files, variant, allow_pickle):
        return ""
    if chosen_weights(files, variant, allow_pickle=True):
        return (
            f"has no safetensors weights for its {part}. Pickled weights (.bin, .ckpt) can "
            "run code of strangers when they are loaded, so they are not used: convert it, take a model that comes as "
            "safetensors, or, if you trust its maker, set allow_pickle: true"
        )
    if others := variants(files):
        return f"has for its {part} only weights of the variant {' or '.join(others)}: name it by the key variant"
    return f"is incomplete: its {part} has no weights. Get it again"


def variants(files: Iterable[PurePath]) -> list[str]:
    """The variants of the weights among a part's files, sorted."""
    return sorted({kind[0] for path in files if (kind := _weights_kind(path)) and kind[0]})


def _weights(files: Iterable[PurePath], variant: str | None) -> tuple[list[PurePath], list[PurePath]]:
    """The weights of the variant, or else the plain ones, as safetensors and as pickles."""
    kinds = {path: _weights_kind(path) for path in files}
    for wanted in (variant, None):
        safe, pickled = (sorted(path for path, kind in kinds.items() if kind == (wanted, suffix)) for suffix in WEIGHTS)
        if safe or pickled:
            break
    return safe, pickled


def _weights_kind(file: PurePath) -> tuple[str | None, str] | None:
    """(variant, suffix) of a weights file: `model.fp16-00001-of-00002.safetensors` is ("fp16", ".safetensors")."""
    if file.suffix not in WEIGHTS:
        return None
    stem, *variant, _ = re.sub(r"-\d{5}-of-\d{5}", "", file.name).split(".")
    return (".".join(variant) or None, file.suffix) if stem in WEIGHTS_STEMS else None


def model_identity(config: Mapping[str, Any]) -> str:
    """What tells the rule `model` to look again, as canonical JSON; the files of a local model are its input."""
    identity = {key: config[key] for key in ("model_id", "revision")}
    identity |= {key: config[key] for key in ("variant", "vae_id") if config[key]}
    if config["model_id"] == "demo":
        identity["demo"] = (DEMO_MODEL / "SHA256SUMS").read_text()
    return canonical(identity)


def family_fault(folder: str | Path) -> str:
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


def resident_arguments(config: Mapping[str, Any], python: str, cores: int | None) -> list[str]:
    """Name and settings of the resident model, the first two arguments of scripts/extract.py.

    The name holds all by which one resident differs from another, the source of the code that it runs among it, so
    that an edited core is never answered by an old process. (The job's own part, the time of model.json and the Slurm
    job, is added by the client.)
    """
    keys = ("model_id", "vae_id", "variant", "cache_dir", "device", "dtype", "output_hidden_dir", "output_image_dir")
    settings = {key: config[key] for key in keys} | {"python": python, "resident": config["resident"]}
    name = hashlib.sha256(canonical([settings, os.getcwd()]).encode())
    for script in ("pictures.py", "diffusion.py", "model.py", "resident.py"):
        name.update((ROOT / "scripts" / script).read_bytes())
    settings |= {"workers": cores or 1, "idle_seconds": config["resident_idle_seconds"]}
    return [name.hexdigest()[:12], canonical(settings)]


@cache
def schema() -> dict[str, Any]:
    """config/schema.yaml: the config's keys, and the sheet's columns below `$defs`."""
    return yaml.safe_load((ROOT / "config/schema.yaml").read_text(encoding="utf-8"))


def _types(rule: Mapping[str, Any]) -> list[str]:
    types = rule.get("type", "string")
    return [types] if isinstance(types, str) else types


@cache
def _validator(rule: str) -> Draft202012Validator:
    return Draft202012Validator(json.loads(rule))


def _fault(value: Any, rule: Mapping[str, Any]) -> str:
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


def _as_typed(value: Any, rule: Mapping[str, Any]) -> Any:
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


def _parse(text: str, rule: Mapping[str, Any], default: Any) -> tuple[Any, str]:
    """A cell as the value of a setting, and what is wrong with it; a blank cell takes the default."""
    if text.strip() == "":
        return default, ""
    if "string" in _types(rule):
        return text, _fault(text, rule)
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
    fault = _fault(value, rule)
    return (None if fault else _as_typed(value, rule)), fault


def _too_few_steps(strength: float, steps: int) -> str:
    # The pipelines make int(strength * steps) steps; with none of them the latent would have no rows.
    if strength > 0 and int(strength * steps) == 0:
        return (
            f"strength {strength:g} of {steps} steps makes no step at all; "
            f"take strength 0, or at least {math.ceil(1000 / steps) / 1000:g}, or more steps"
        )
    return ""


def _model_fault(model_id: str | None) -> str:
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


def _pickle_fault(config: Mapping[str, Any]) -> str:
    """Whether pickles would be needed that are not allowed; empty if not, or if the rule `model` is to find out.

    It would not run again when `allow_pickle` is switched off, since no file and no other setting has changed.
    """
    if config["allow_pickle"]:
        return ""
    for source, parts in ((config["model_id"], MODEL_PARTS), (config["vae_id"], [".", "vae"])):
        for part in parts if source and source != "demo" and os.path.isdir(source) else ():
            files = list(Path(source, part).glob("*"))
            safe, pickled = _weights(files, config["variant"])
            if pickled and not safe:
                name = "vae" if part == "." else part
                return f"the model in {source} {weights_fault(files, name, config['variant'], allow_pickle=False)}"
    try:
        made = json.loads(Path("results/model.json").read_text(encoding="utf-8"))
        found = [(made, "model_id", "variant", "revision")] + ([(made["vae"], "vae_id")] if made["vae"] else [])
        for model, *keys in found:
            pickled = any(name.endswith(".bin") for name in model["sha256"])
            if model["commit"] and pickled and all(model[key] == config[key] for key in keys):
                return (
                    f"the weights of {model[keys[0]]} came as pickled files (results/model.json says so), which can "
                    "run code of strangers when they are loaded: if you trust its maker, set allow_pickle: true; else "
                    "take a model that comes as safetensors. To see whether this one does by now, delete "
                    "results/model.json"
                )
    except (OSError, ValueError, KeyError, TypeError):
        pass  # there is none, or it is made anew
    return ""


def _read_csv(path: str) -> pd.DataFrame:
    """The sheet with every cell as the text that stands there, labelled by row (the header is row 1)."""
    try:
        text = Path(path).read_bytes().decode("utf-8-sig")
    except FileNotFoundError:
        raise InputError(
            f"No sheet at {path} (looked from {os.getcwd()}): name yours by the config key items"
        ) from None
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise InputError(f"The sheet {path} is not UTF-8 (line {line}): save it again as 'CSV UTF-8'") from None
    except OSError as error:
        raise InputError(f"The sheet {path} cannot be read: {error.strerror}") from None
    if "\0" in text:
        line = text[: text.index("\0")].count("\n") + 1
        raise InputError(f"The sheet {path} is not a CSV file: line {line} has a NUL byte")
    try:
        # The Python engine alone tells a cell that is not there from an empty one.
        cells = pd.read_csv(
            io.StringIO(text), header=None, dtype=str, keep_default_na=False, skip_blank_lines=False, engine="python"
        )
    except pd.errors.EmptyDataError:
        raise InputError(f"The sheet {path} is empty: it needs a header and at least one row") from None
    except pd.errors.ParserError as error:
        raise InputError(
            f"The sheet {path} is not a regular CSV file ({str(error).strip()}): "
            'a text with a comma or a newline stands in double quotes, and a quote in it is doubled ("")'
        ) from None
    cells.index = pd.RangeIndex(1, len(cells) + 1)
    blank = (cells.fillna("") == "").all(axis=1)
    if blank.all() or blank.iloc[0]:
        raise InputError(f"The sheet {path} has no header in row 1")
    short = cells.isna().any(axis=1) & ~blank
    if short.any():
        faults = [
            f"row {row}: {cells.loc[row].notna().sum()} cells, the header has {cells.shape[1]}"
            for row in cells.index[short]
        ]
        raise InputError(_listing(f"The sheet {path}", faults))
    sheet = cells[~blank].iloc[1:]
    sheet.columns = cells.iloc[0].tolist()
    if len(sheet) == 0:
        raise InputError(f"The sheet {path} has a header but no rows")
    return sheet


def _check_header(path: str, columns: list[str], rules: Mapping[str, Any]) -> None:
    faults = []
    if len(columns) == 1 and (found := re.search(r"[;\t|]", columns[0])):
        raise InputError(
            f"The sheet {path} is separated by {found.group()!r}, not by commas: save it again as CSV with commas"
        )
    for name in dict.fromkeys(columns):
        if columns.count(name) > 1:
            faults.append(f"column {name!r} stands there {columns.count(name)} times")
        if name in INDEX_COLUMNS:
            faults.append(f"column {name!r} has a name that the index table needs for itself: give it another")
        elif name not in rules and (near := _suggestion(name, rules, cutoff=0.85)):
            faults.append(f"unknown column {name!r}{near} If it is a variable of your own, give it another name")
        elif name.strip() == "":
            faults.append(f"column {columns.index(name) + 1} has no name")
    for name in schema()["$defs"]["item"]["required"]:
        if name not in columns:
            faults.append(f"column {name!r} is missing")
    if faults:
        raise InputError(_listing(f"The header of the sheet {path}", faults))


def _check_color(config: Mapping[str, Any], columns: list[str]) -> None:
    color = config["report_color"]
    known = [*columns, *(name for name in ["id", *SETTINGS] if name not in columns)]
    if config["report"] and color is not None and color not in known:
        near = _suggestion(color, known, cutoff=0.6)
        raise InputError(f"key report_color: the sheet {config['items']} has no column {color!r}{near}")


def _suggestion(name: str, known: Iterable[str], cutoff: float) -> str:
    plain = re.sub(r"[\s_-]+", "_", str(name).strip().lower())
    near = difflib.get_close_matches(plain, list(known), n=1, cutoff=cutoff)
    return f": did you mean {near[0]!r}?" if near else ""


def _duplicates(ids: pd.Series, ignores_case: bool) -> Iterator[tuple[int, str]]:
    first: dict[str, int] = {}
    for row, item_id in ids.items():
        earlier = first.setdefault(item_id.lower() if ignores_case else item_id, row)
        if earlier == row:
            continue
        if ids[earlier] == item_id:
            yield row, f"{item_id!r} stands in row {earlier} already"
        else:
            yield row, f"{item_id!r} and {ids[earlier]!r} of row {earlier} name the same files on this disk"


def _ignores_case(path: str) -> bool:
    """Whether the disk takes `A` and `a` for one name, as those of macOS and Windows do."""
    other = Path(path).with_name(Path(path).name.swapcase())
    return other != Path(path) and os.path.exists(other) and os.path.samefile(path, other)


def _is_periodic(text: str) -> bool:
    """Whether Snakemake takes a wildcard's value for an endless loop: it ends in 20 times the same."""
    return text.count(text[-1:]) >= 20 and bool(re.search(r"(.+)\1{19}$", text))


def _files(paths: Iterable[str]) -> dict[str, os.DirEntry]:
    """Those of the paths that are files; by one scan per folder, since there may be very many."""
    folders: dict[str, dict[str, os.DirEntry]] = {}
    found = {}
    for path in paths:
        folder, name = os.path.split(path)
        if folder not in folders:
            folders[folder] = {}
            with contextlib.suppress(OSError), os.scandir(folder or ".") as entries:
                folders[folder] = {entry.name: entry for entry in entries}
        entry = folders[folder].get(name)
        with contextlib.suppress(OSError):  # such as a link to itself
            if entry is not None and entry.is_file():
                found[path] = entry
    return found


def _missing_files(paths: Iterable[str]) -> set[str]:
    paths = list(paths)
    return set(paths).difference(_files(paths))


def file_faults(paths: Iterable[str]) -> dict[str, str]:
    """What is wrong with files that are to be read, told for the user, by their paths."""
    paths = list(paths)
    files = _files(paths)
    faults = {}
    latest = time.time() + CLOCK_TOLERANCE
    for path in paths:
        try:  # not every folder that can be entered can be listed, nor the other way round
            found = files[path].stat() if path in files else os.stat(path)
        except OSError:
            found = None
        if found is None or not stat.S_ISREG(found.st_mode):
            faults[path] = _no_file(path)
        elif (changed := found.st_mtime) > latest:
            faults[path] = (
                f"{path!r} is dated in the future ({time.strftime('%Y-%m-%d %H:%M', time.localtime(changed))}), so "
                "nothing could be newer: give it today's date with the command touch, or put this machine's clock right"
            )
    return faults


def _no_file(path: str) -> str:
    seen_from = f"(looked from {os.getcwd()})"
    try:
        kind = os.lstat(path).st_mode
        if stat.S_ISLNK(kind):
            kind = os.stat(path).st_mode
    except FileNotFoundError:
        if os.path.islink(path):
            return f"{path!r} is a link to {os.readlink(path)!r}, which is not there"
        return f"no such file: {path!r} {seen_from}"
    except OSError as error:
        return f"{path!r} cannot be looked at: {error.strerror} {seen_from}"
    if stat.S_ISDIR(kind):
        return f"no such file: {path!r} is a folder {seen_from}"
    return f"{path!r} is not a file that a picture can be read from (a pipe, a socket or a device)"


def _clash(config: Mapping[str, Any], own: Mapping[str, str]) -> str:
    """Why results would lie among the user's own files, one of which `own` names by its folder; empty if not."""
    at_risk = {os.path.realpath(folder): file for folder, file in own.items()}
    folders = {
        "output_hidden_dir": config["output_hidden_dir"],
        "output_image_dir": config["output_image_dir"],
        "stacked": os.path.dirname(config["stacked"]),
    }
    for key, folder in folders.items():
        if folder is not None and (file := at_risk.get(os.path.realpath(folder))):
            return f"The config's key {key} puts results into the folder of {file!r}, one of yours: name another folder"
    for folder in ("results", "results/checksums", "logs", "logs/extract"):
        if file := at_risk.get(os.path.realpath(folder)):
            return f"{file!r} lies in {folder}, the folder of the results: put it into another folder"
    return ""


def _listing(subject: str, faults: list[str]) -> str:
    return _bullets(f"{subject} has {len(faults)} fault{'s' * (len(faults) > 1)}:", faults)


def _bullets(heading: str, texts: list[str]) -> str:
    lines = [heading, *(f"  - {text}" for text in texts[:MOST_FAULTS])]
    if len(texts) > MOST_FAULTS:
        lines.append(f"  ... and {len(texts) - MOST_FAULTS} more")
    return "\n".join(lines)
