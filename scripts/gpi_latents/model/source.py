"""Find or download the model, once, where Snakemake runs; and find it again where it is used."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from gpi_latents.errors import ModelError, first_line
from gpi_latents.files import write_whole
from gpi_latents.model.download import cached_snapshot, conversion_folder, convert_checkpoint, download_model, find_vae
from gpi_latents.model.family import AUTOENCODERS, DESCRIBED, MODEL_PARTS, model_parts
from gpi_latents.model.weights import WEIGHTS, _weights, chosen_weights, variant_problem, weights_problem
from gpi_latents.paths import DEMO_MODEL

REMEMBERED_BYTES = 10**7  # smaller files are hashed each time


def write_model(config: Mapping[str, Any], output: Path) -> str:
    """Find the model of a config, downloading it if need be, and write `paths.MODEL`.

    Returns:
        A text for the log.

    Raises:
        ModelError: see `resolve`.
        OSError: the file cannot be written.
    """
    keys = ("model_id", "revision", "cache_dir", "variant", "vae_id", "allow_pickle")
    model = resolve(**{key: config[key] for key in keys})
    write_whole(output, (json.dumps(model, indent=2, sort_keys=True) + "\n").encode())
    return f"{model['family']} {model['model_id']}, {len(model['sha256'])} files"


def resolve(
    model_id: str,
    revision: str | None = None,
    cache_dir: str | None = None,
    variant: str | None = None,
    vae_id: str | None = None,
    allow_pickle: bool = False,
) -> dict[str, Any]:
    """Find the model, downloading it if it is not there, and tell exactly which one it is.

    Args:
        model_id: `demo`, a folder in diffusers' layout, a Hugging Face id, or a checkpoint in one `.safetensors` file,
            which is converted to a folder in the cache.
        revision: branch, tag or commit of a Hugging Face model; None is its main branch.
        cache_dir: folder for downloaded and converted models; None is Hugging Face's own cache.
        variant: of the weights' files, such as `fp16`.
        vae_id: another autoencoder, a folder or a Hugging Face id; None is the model's own.
        allow_pickle: whether `.bin` weights will do where there are no safetensors.

    Returns:
        `model_id`, `revision`, `variant`, `commit` (of a Hugging Face model, else None), `checkpoint` (SHA-256 of a
        single file, else None), `family` (the pipeline's class), `sha256` (the digest of each of its files by relative
        path), and `vae`: None or `vae_id`, `commit` and `sha256` of the other autoencoder.

    Raises:
        ModelError: not found, not reachable, incomplete, damaged, or of a family that is not supported.
    """
    commit = checkpoint = None
    if model_id == "demo":
        folder = DEMO_MODEL
    elif os.path.isdir(model_id):
        folder = Path(model_id)
    elif model_id.endswith(".safetensors"):
        checkpoint = _sha256(Path(model_id))
        folder = convert_checkpoint(Path(model_id), checkpoint, cache_dir)
    else:
        folder = download_model(model_id, revision, cache_dir, variant, allow_pickle)
        commit = folder.name  # the cache keeps each commit in snapshots/<commit>
    files = [folder / "model_index.json"]
    for part in model_parts(folder):
        files += _part(folder / part, part, variant, allow_pickle, f"The model in {folder}")
    if problem := variant_problem(folder.glob("*/*"), variant):
        raise ModelError(f"The model in {folder} {problem}")
    digests = _digests(folder, files)
    if model_id == "demo" and digests != _expected(folder):
        raise ModelError(f"The demo model in {folder} is damaged: get this repository again")
    vae = None
    if vae_id is not None:
        vae_folder, vae_commit = find_vae(vae_id, cache_dir, variant, allow_pickle)
        vae_files = _part(vae_folder, "vae", variant, allow_pickle, f"The autoencoder {vae_id}")
        vae = {"vae_id": vae_id, "commit": vae_commit, "sha256": _digests(vae_folder, vae_files)}
    return {
        "model_id": model_id,
        "revision": revision,
        "variant": variant,
        "commit": commit,
        "checkpoint": checkpoint,
        "family": json.loads((folder / "model_index.json").read_text(encoding="utf-8"))["_class_name"],
        "sha256": digests,
        "vae": vae,
    }


def locate(model: dict[str, Any], cache_dir: str | None = None) -> dict[str, Any]:
    """Where a model that `resolve` found lies, as the arguments of `diffusion.Model`; without the network.

    Raises:
        ModelError: it is not on this machine.
    """
    if model["model_id"] == "demo":
        folder = DEMO_MODEL
    elif model.get("checkpoint"):
        folder = conversion_folder(model["checkpoint"], cache_dir)
    elif model["commit"]:
        folder = cached_snapshot(model["model_id"], model["commit"], cache_dir, [*model["sha256"]])
    else:
        folder = Path(model["model_id"])
    vae_folder = None
    if vae := model.get("vae"):
        source = vae["vae_id"]
        if vae["commit"]:
            names = [f"{place}{name}" for place in ("", "vae/") for name in vae["sha256"]]
            source = cached_snapshot(source, vae["commit"], cache_dir, names)
        vae_folder = vae_folder(source)
    for path in filter(None, (folder, vae_folder)):
        if not path.is_dir():
            raise ModelError(f"The model's folder {str(path)!r} is gone (looked from {os.getcwd()})")
    names = [*model["sha256"], *(vae["sha256"] if vae else ())]
    return {
        "folder": folder,
        "vae_folder": vae_folder,
        "variant": model.get("variant"),
        "allow_pickle": any(name.endswith(".bin") for name in names),
    }


def _part(folder: Path, part: str, variant: str | None, allow_pickle: bool, whose: str) -> list[Path]:
    """The files of one part that decide the model's numbers, after a look at their being whole."""
    files = sorted(folder.glob("*"))
    described = [path for path in files if path.suffix in DESCRIBED]
    if not described and not any(path.suffix in WEIGHTS for path in files):
        raise ModelError(f"{whose} is incomplete: it has no {part}. Get it again")
    contents = {}
    for path in described:
        try:
            if path.suffix == ".json":
                contents[path.name] = json.loads(path.read_text(encoding="utf-8"))
        except ValueError:
            raise ModelError(f"{path} is damaged: get the model again") from None
    if part.startswith("tokenizer"):
        if not {path.name for path in described} & {"tokenizer.json", "vocab.json", "spiece.model"}:
            raise ModelError(f"{whose} is incomplete: its {part} has no vocabulary. Get it again")
        return described
    config = "scheduler_config.json" if part == "scheduler" else "config.json"
    if not isinstance(contents.get(config), dict):
        raise ModelError(f"{whose} is incomplete: its {part} has no {config}. Get it again")
    if part == "scheduler":
        return described
    if part == "vae" and (kind := contents[config].get("_class_name")) not in AUTOENCODERS:
        raise ModelError(
            f"{folder} holds no autoencoder that can be used{f' but a {kind}' if kind else ''}. "
            f"These can: {', '.join(AUTOENCODERS)}"
        )
    if problem := weights_problem(files, part, variant, allow_pickle):
        raise ModelError(f"{whose} {problem}")
    chosen = chosen_weights(files, variant, allow_pickle)
    names = {path.name for path in chosen}
    whole = re.sub(r"-\d{5}-of-\d{5}", "", chosen[0].name)
    stem, *kind, suffix = whole.split(".")
    index = contents.get(".".join([stem, suffix, "index", *kind, "json"]))
    if index:  # of weights in shards
        lacking = sorted(set(index["weight_map"].values()) - names)
    else:
        lacking = [] if whole in names or any(".index." in name for name in contents) else [whole]
    if lacking:
        raise ModelError(f"{whose} is incomplete: its {part} has no {lacking[0]}. Get it again")
    return described + chosen


def _digests(folder: Path, files: list[Path]) -> dict[str, str]:
    """SHA-256 of each file by its path in the folder.

    Raises:
        ModelError: a file that is cut off, or is not what its name in Hugging Face's cache says.
    """
    from safetensors import SafetensorError, safe_open

    digests = {}
    for path in files:
        try:
            if path.suffix == ".safetensors":
                with safe_open(path, "np"):  # looks at the header and the length
                    pass
            digest = _sha256(path)
        except (SafetensorError, OSError) as error:
            raise ModelError(f"{path} is damaged ({first_line(error)}): get the model again") from None
        blob = path.resolve().name  # in the cache, files are links to blobs; large ones are named by their SHA-256
        if path.is_symlink() and len(blob) == 64 and blob != digest:
            raise ModelError(f"{path} is damaged: delete {path.resolve()} and download the model again")
        digests[str(path.relative_to(folder))] = digest
    return dict(sorted(digests.items()))


def _expected(folder: Path) -> dict[str, str]:
    lines = (folder / "SHA256SUMS").read_text(encoding="utf-8").splitlines()
    return {name: digest for digest, name in (line.split("  ", 1) for line in lines)}


def _sha256(path: Path) -> str:
    """SHA-256 of a file; that of a large one is remembered as long as its path, size and time stay."""
    import platformdirs

    known = path.stat()
    key = [str(path.resolve()), known.st_size, known.st_mtime_ns]
    name = hashlib.sha256(json.dumps(key).encode()).hexdigest()
    memory = platformdirs.user_cache_path("gpi-latents") / name
    if known.st_size >= REMEMBERED_BYTES:
        with suppress(OSError, UnicodeDecodeError):
            if re.fullmatch(r"[0-9a-f]{64}", remembered := memory.read_text(encoding="ascii")):
                return remembered
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if known.st_size >= REMEMBERED_BYTES:
        with suppress(OSError):  # a home that cannot be written is no obstacle
            memory.parent.mkdir(parents=True, exist_ok=True)
            partial = memory.with_suffix(f".{os.getpid()}")
            partial.write_text(digest, encoding="ascii")
            partial.replace(memory)
    return digest


def _pickle_problem(config: Mapping[str, Any]) -> str:
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
                return f"the model in {source} {weights_problem(files, name, config['variant'], allow_pickle=False)}"
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
