"""Find or download the model, once, where Snakemake runs; and find it again where it is used."""

from __future__ import annotations

import argparse
import errno
import hashlib
import json
import os
import re
import sys
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path, PurePath
from typing import Any

from items import (
    DEMO_MODEL,
    DESCRIBED,
    MODEL_PARTS,
    WEIGHTS,
    chosen_weights,
    family_fault,
    variants,
    weights_fault,
)

AUTOENCODERS = ["AutoencoderKL", "AutoencoderTiny", "AutoencoderDC"]
# All that is small in a Hugging Face model, as patterns.
SMALL_FILES = ["model_index.json", *(f"{part}/*{suffix}" for part in MODEL_PARTS for suffix in DESCRIBED)]
REMEMBERED_BYTES = 10**7  # smaller files are hashed each time


class ModelError(Exception):
    """The model cannot be had; the text is the message for the user."""


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
        folder = _converted(Path(model_id), checkpoint, cache_dir)
    else:
        folder = _download(model_id, revision, cache_dir, variant, allow_pickle)
        commit = folder.name  # the cache keeps each commit in snapshots/<commit>
    files = [folder / "model_index.json"]
    for part in _parts(folder):
        files += _part(folder / part, part, variant, allow_pickle, f"The model in {folder}")
    if fault := _variant_fault(folder.glob("*/*"), variant):
        raise ModelError(f"The model in {folder} {fault}")
    digests = _digests(folder, files)
    if model_id == "demo" and digests != _expected(folder):
        raise ModelError(f"The demo model in {folder} is damaged: get this repository again")
    vae = None
    if vae_id is not None:
        vae_folder, vae_commit = _vae(vae_id, cache_dir, variant, allow_pickle)
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
        folder = _conversion(model["checkpoint"], cache_dir)
    elif model["commit"]:
        folder = _snapshot(model["model_id"], model["commit"], cache_dir, [*model["sha256"]])
    else:
        folder = Path(model["model_id"])
    vae_folder = None
    if vae := model.get("vae"):
        source = vae["vae_id"]
        if vae["commit"]:
            names = [f"{place}{name}" for place in ("", "vae/") for name in vae["sha256"]]
            source = _snapshot(source, vae["commit"], cache_dir, names)
        vae_folder = _vae_folder(source)
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


def _snapshot(repository: str, commit: str, cache_dir: str | None, files: list[str]) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        # Without the files' names, the client would miss all the others that the repository has.
        return Path(
            snapshot_download(
                repository, revision=commit, cache_dir=cache_dir, allow_patterns=files, local_files_only=True
            )
        )
    except LocalEntryNotFoundError:
        raise ModelError(
            f"The model {repository} (commit {commit}) is not in the cache of this machine: "
            "run `snakemake --cores 1 --forcerun model model` where there is internet, with a cache_dir that all "
            "machines share"
        ) from None


@contextmanager
def _hub_errors(name: str, revision: str | None = None) -> Iterator[None]:
    """What Hugging Face's client raises, as messages for the user."""
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError

    try:
        yield
    except GatedRepoError:
        raise ModelError(
            f"The model {name} is gated: accept its terms on its page at huggingface.co, "
            "make an access token there and set it as the environment variable HF_TOKEN"
        ) from None
    except RevisionNotFoundError:
        raise ModelError(f"The model {name} has no revision {revision!r}") from None
    except RepositoryNotFoundError:
        raise ModelError(
            f"There is no model {name} at huggingface.co, or it is private and HF_TOKEN is not set"
        ) from None
    except Exception as error:  # its network library's too
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS):
            raise ModelError(f"The model {name} cannot be stored in the cache: {error}") from None
        raise ModelError(
            f"The model {name} is no folder (looked from {os.getcwd()}), is not in the cache of this machine and "
            f"could not be downloaded ({_first_line(error)}): check the name and the internet connection, or name a "
            "folder that holds the model"
        ) from None


def _download(model_id: str, revision: str | None, cache_dir: str | None, variant: str | None, pickle: bool) -> Path:
    """The snapshot of a Hugging Face model, which has the files that are used and no others.

    Weights come last, so that what cannot be used is refused before they are downloaded.
    """
    folder, names = _look(model_id, revision, cache_dir, SMALL_FILES)
    parts = {part: part for part in _parts(folder)}
    if not names:
        return folder
    if fault := _variant_fault(names, variant):
        raise ModelError(f"The model {model_id} {fault}")
    weights = _wanted(f"The model {model_id}", names, parts, variant, pickle)
    return _fetch(model_id, folder.name, cache_dir, SMALL_FILES + weights)


def _vae(vae_id: str, cache_dir: str | None, variant: str | None, pickle: bool) -> tuple[Path, str | None]:
    """The folder of an autoencoder, and its commit where it is from Hugging Face."""
    if vae_id == "demo" or os.path.isdir(vae_id):
        return _vae_folder(vae_id), None
    described = ["config.json", "vae/config.json"]
    snapshot, names = _look(vae_id, None, cache_dir, described)
    folder = _vae_folder(snapshot)
    if names:
        parts = {"vae": str(folder.relative_to(snapshot))}
        weights = _wanted(f"The autoencoder {vae_id}", names, parts, variant, pickle)
        _fetch(vae_id, snapshot.name, cache_dir, described + weights)
    return folder, snapshot.name


def _look(
    repository: str, revision: str | None, cache_dir: str | None, patterns: list[str]
) -> tuple[Path, list[PurePath]]:
    """The snapshot of a Hugging Face repository with some of its files, and the names of all that it has.

    There are no names if it is in the cache without them and the network is off; then what is there is all there is.
    """
    from huggingface_hub import get_cached_repo_tree
    from huggingface_hub.errors import CachedRepoTreeNotFoundError

    folder = _fetch(repository, revision, cache_dir, patterns)
    try:
        listing = get_cached_repo_tree(repository, revision=folder.name, cache_dir=cache_dir)
    except CachedRepoTreeNotFoundError:
        return folder, []
    return folder, [PurePath(file.path) for file in listing]


def _fetch(repository: str, revision: str | None, cache_dir: str | None, patterns: list[str]) -> Path:
    from huggingface_hub import snapshot_download

    with _hub_errors(repository, revision):
        return Path(snapshot_download(repository, revision=revision, cache_dir=cache_dir, allow_patterns=patterns))


def _wanted(
    whose: str, names: list[PurePath], parts: dict[str, str], variant: str | None, allow_pickle: bool
) -> list[str]:
    """Of the files of a repository, the weights of these parts, each with its folder."""
    wanted = []
    for part, folder in parts.items():
        files = [name for name in names if name.parent == PurePath(folder)]
        if _has_weights(part) and (fault := weights_fault(files, part, variant, allow_pickle)):
            raise ModelError(f"{whose} {fault}")
        wanted += [str(file) for file in chosen_weights(files, variant, allow_pickle)]
    return wanted


def _parts(folder: Path) -> list[str]:
    """The parts that a model says it has.

    Raises:
        ModelError: it is of a family that is not supported, or lacks a part.
    """
    if fault := family_fault(folder):
        raise ModelError(fault[0].upper() + fault[1:])
    index = json.loads((folder / "model_index.json").read_text(encoding="utf-8"))
    parts = [part for part in MODEL_PARTS if isinstance(index.get(part), list) and index[part][0]]
    needed = ["vae", "scheduler", "transformer" if "transformer" in index else "unet"]
    needed += [part.replace("text_encoder", "tokenizer") for part in parts if part.startswith("text_encoder")]
    if lacking := [part for part in needed if part not in parts]:
        raise ModelError(f"The model in {folder} is incomplete: its model_index.json has no {lacking[0]}")
    return parts


def _has_weights(part: str) -> bool:
    return not part.startswith(("tokenizer", "scheduler"))


def _variant_fault(files: Iterable[PurePath], variant: str | None) -> str:
    """Why a variant of a model cannot be had, as the text that goes on after the model's name."""
    known = variants(files)
    if variant is None or variant in known:
        return ""
    return f"has no weights of the variant {variant!r}; those it has: {', '.join(known) or 'none'}"


def _vae_folder(source: str | Path) -> Path:
    """An autoencoder has a folder of its own, or is that of a whole model."""
    folder = DEMO_MODEL if source == "demo" else Path(source)
    return folder if (folder / "config.json").exists() else folder / "vae"


def _conversion(checkpoint: str, cache_dir: str | None) -> Path:
    from huggingface_hub.constants import HF_HUB_CACHE

    return Path(cache_dir or HF_HUB_CACHE).expanduser() / "converted" / checkpoint


def _converted(path: Path, checkpoint: str, cache_dir: str | None) -> Path:
    """A single file as a folder in diffusers' layout, made once; its configs are its original's."""
    folder = _conversion(checkpoint, cache_dir)
    if folder.is_dir():
        return folder
    import diffusers
    from diffusers.loaders.single_file_utils import fetch_diffusers_config, load_single_file_checkpoint
    from huggingface_hub import snapshot_download

    try:
        origin = fetch_diffusers_config(load_single_file_checkpoint(str(path)))["pretrained_model_name_or_path"]
    except Exception as error:  # safetensors raises its own kind for damaged files
        raise ModelError(f"The checkpoint {path} cannot be read ({_first_line(error)}): get it again") from None
    with _hub_errors(f"{origin}, whose configs the checkpoint {path} needs,"):
        configs = Path(snapshot_download(origin, cache_dir=cache_dir, allow_patterns=SMALL_FILES))
    if fault := family_fault(configs):
        raise ModelError(f"The checkpoint {path} is made after {origin}: {fault}")
    kind = getattr(diffusers, json.loads((configs / "model_index.json").read_text(encoding="utf-8"))["_class_name"])
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as partial:
        try:
            # None is no part of a checkpoint.
            pipeline = kind.from_single_file(
                str(path), config=str(configs), local_files_only=True, safety_checker=None, feature_extractor=None
            )
            pipeline.save_pretrained(f"{partial}/model")
        except Exception as error:  # whatever does not fit, of many kinds
            raise ModelError(
                f"The checkpoint {path} cannot be read as a whole model of the kind of {origin} "
                f"({_first_line(error)}); a folder in diffusers' layout or a Hugging Face id will do"
            ) from None
        with suppress(OSError):  # another run was faster
            os.replace(f"{partial}/model", folder)
    return folder


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
    if fault := weights_fault(files, part, variant, allow_pickle):
        raise ModelError(f"{whose} {fault}")
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
            raise ModelError(f"{path} is damaged ({_first_line(error)}): get the model again") from None
        blob = path.resolve().name  # in the cache, files are links to blobs; large ones are named by their SHA-256
        if path.is_symlink() and len(blob) == 64 and blob != digest:
            raise ModelError(f"{path} is damaged: delete {path.resolve()} and download the model again")
        digests[str(path.relative_to(folder))] = digest
    return dict(sorted(digests.items()))


def _first_line(error: Exception) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)


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


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--config", type=json.loads, required=True, help="the workflow's config as JSON")
    parser.add_argument("--output", type=Path, required=True, help="the JSON file to write")
    arguments = parser.parse_args()
    config = arguments.config
    try:
        keys = ("model_id", "revision", "cache_dir", "variant", "vae_id", "allow_pickle")
        model = resolve(**{key: config[key] for key in keys})
        partial = arguments.output.with_name(f".{arguments.output.name}.tmp")
        partial.write_text(json.dumps(model, indent=2, sort_keys=True) + "\n", encoding="utf-8")
        partial.replace(arguments.output)
    except (ModelError, OSError) as error:
        print(error, file=sys.stderr)
        return 1
    print(f"{model['family']} {model['model_id']}, {len(model['sha256'])} files")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
