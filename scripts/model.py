"""Find or download the model, once, where Snakemake runs; and find it again where it is used."""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from items import DEMO_MODEL, MODEL_PARTS, family_fault

WEIGHTS = (".safetensors", ".bin")
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
    if fault := family_fault(folder):
        raise ModelError(fault[0].upper() + fault[1:])
    index = json.loads((folder / "model_index.json").read_text(encoding="utf-8"))
    parts = [part for part in MODEL_PARTS if isinstance(index.get(part), list) and index[part][0]]
    files = [folder / "model_index.json"]
    for part in parts:
        files += _part(folder / part, part, variant, allow_pickle, f"The model in {folder}")
    if variant and not any(_kind(path)[0] == variant for path in files if path.suffix in WEIGHTS):
        raise ModelError(f"The model in {folder} has no weights of the variant {variant!r}")
    digests = _digests(folder, files)
    if model_id == "demo" and digests != _expected(folder):
        raise ModelError(f"The demo model in {folder} is damaged: get this repository again")
    vae = None
    if vae_id is not None:
        vae_folder, vae_commit = _vae(vae_id, cache_dir, allow_pickle)
        vae_files = _part(vae_folder, "vae", None, allow_pickle, f"The autoencoder {vae_id}")
        vae = {"vae_id": vae_id, "commit": vae_commit, "sha256": _digests(vae_folder, vae_files)}
    return {
        "model_id": model_id,
        "revision": revision,
        "variant": variant,
        "commit": commit,
        "checkpoint": checkpoint,
        "family": index["_class_name"],
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
        folder = _snapshot(model["model_id"], model["commit"], cache_dir)
    else:
        folder = Path(model["model_id"])
    vae_folder = None
    if vae := model.get("vae"):
        source = vae["vae_id"]
        vae_folder = _vae_folder(_snapshot(source, vae["commit"], cache_dir) if vae["commit"] else source)
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


def _snapshot(repository: str, commit: str, cache_dir: str | None) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        return Path(snapshot_download(repository, revision=commit, cache_dir=cache_dir, local_files_only=True))
    except LocalEntryNotFoundError:
        raise ModelError(
            f"The model {repository} (commit {commit}) is not in the cache of this machine: "
            "run `snakemake --cores 1 --forcerun model model` where there is internet, with a cache_dir that all "
            "machines share"
        ) from None


@contextmanager
def _hub_errors(name: str, revision: str | None = None) -> Iterator[None]:
    """What Hugging Face's client raises, as messages for the user."""
    from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, RepositoryNotFoundError, RevisionNotFoundError

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
    except (HfHubHTTPError, OSError, ValueError) as error:
        raise ModelError(
            f"The model {name} is no folder (looked from {os.getcwd()}), is not in the cache of this machine and "
            f"could not be downloaded ({_first_line(error)}): check the name and the internet connection, or name a "
            "folder that holds the model"
        ) from None


def _download(model_id: str, revision: str | None, cache_dir: str | None, variant: str | None, pickle: bool) -> Path:
    from diffusers import DiffusionPipeline
    from huggingface_hub.errors import HfHubHTTPError

    with _hub_errors(model_id, revision):
        try:
            # diffusers knows which files the pipeline needs; what is passed as None is left out.
            folder = DiffusionPipeline.download(
                model_id,
                revision=revision,
                cache_dir=cache_dir,
                variant=variant,
                use_safetensors=None if pickle else True,
                safety_checker=None,
                feature_extractor=None,
                image_encoder=None,
            )
        except OSError as error:
            # diffusers wraps what the hub answered
            raise error.__cause__ if isinstance(error.__cause__, HfHubHTTPError) else error from None
    return Path(folder)


def _vae(vae_id: str, cache_dir: str | None, allow_pickle: bool) -> tuple[Path, str | None]:
    """The folder of an autoencoder, and its commit where it is from Hugging Face."""
    if vae_id == "demo" or os.path.isdir(vae_id):
        return _vae_folder(vae_id), None
    from huggingface_hub import snapshot_download

    weights = [f"diffusion_pytorch_model{suffix}" for suffix in WEIGHTS[: 1 + allow_pickle]]
    names = ["config.json", *weights]
    with _hub_errors(vae_id):
        snapshot = Path(
            snapshot_download(vae_id, cache_dir=cache_dir, allow_patterns=[*names, *map("vae/{}".format, names)])
        )
    return _vae_folder(snapshot), snapshot.name


def _vae_folder(source: str | Path) -> Path:
    """An autoencoder has a folder of its own, or is that of a whole model."""
    folder = DEMO_MODEL if source == "demo" else Path(source)
    return folder if (folder / "config.json").exists() else folder / "vae"


def _conversion(checkpoint: str, cache_dir: str | None) -> Path:
    from huggingface_hub.constants import HF_HUB_CACHE

    return Path(cache_dir or HF_HUB_CACHE) / "converted" / checkpoint


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
        patterns = ["model_index.json", "*/*.json", "*/*.txt", "*/*.model"]
        configs = Path(snapshot_download(origin, cache_dir=cache_dir, allow_patterns=patterns))
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
    """The files of one part that decide the model's numbers, after a look at their being whole.

    A variant is taken where a part has it, as diffusers does.
    """
    files = sorted(path for path in folder.glob("*") if path.suffix in {".json", ".txt", ".model", *WEIGHTS})
    if not files:
        raise ModelError(f"{whose} is incomplete: it has no {part}. Get it again")
    for path in files:
        try:
            if path.suffix == ".json":
                json.loads(path.read_text(encoding="utf-8"))
        except ValueError:
            raise ModelError(f"{path} is damaged: get the model again") from None
    if not part.startswith(("tokenizer", "scheduler")) and folder / "config.json" not in files:
        raise ModelError(f"{whose} is incomplete: its {part} has no config.json. Get it again")
    weights = [path for path in files if path.suffix in WEIGHTS]
    described = [path for path in files if path not in weights]
    if part.startswith(("tokenizer", "scheduler")):
        return described
    for kind in (variant, None):
        safe, pickled = ([path for path in weights if _kind(path) == (kind, suffix)] for suffix in WEIGHTS)
        if safe or pickled:
            break
    chosen = safe or (pickled if allow_pickle else [])
    if pickled and not chosen:
        raise ModelError(
            f"{whose} has no safetensors weights for its {part}. Pickled weights (.bin, .ckpt) can "
            "run code of strangers when they are loaded, so they are not used: convert it, take a model that comes as "
            "safetensors, or, if you trust its maker, set allow_pickle: true"
        )
    if not chosen and weights:
        kinds = ", ".join(sorted({str(_kind(path)[0]) for path in weights}))
        raise ModelError(f"{whose} has for its {part} only weights of the variant {kinds}: name it by the key variant")
    if not chosen:
        raise ModelError(f"{whose} is incomplete: its {part} has no weights. Get it again")
    for index in folder.glob(f"*{chosen[0].suffix}.index{'.' + kind if kind else ''}.json"):  # of weights in shards
        shards = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
        if lacking := sorted(shards - {path.name for path in chosen}):
            raise ModelError(f"{whose} is incomplete: its {part} has no {lacking[0]}. Get it again")
    return described + chosen


def _kind(weights: Path) -> tuple[str | None, str]:
    """(variant, suffix) of a weights file: `model.fp16-00001-of-00002.safetensors` is ("fp16", ".safetensors")."""
    _, *variant, suffix = re.sub(r"-\d{5}-of-\d{5}", "", weights.name).split(".")
    return ".".join(variant) or None, f".{suffix}"


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
        with suppress(OSError):
            return memory.read_text(encoding="ascii")
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
