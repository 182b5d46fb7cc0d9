"""Find or download the model, once, where Snakemake runs; and find it again where it is used."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from gpi_latents import paths
from gpi_latents.digests import Digests
from gpi_latents.errors import ModelError, first_line
from gpi_latents.files import write_whole
from gpi_latents.model.download import (
    SMALL_FILES,
    cached_snapshot,
    convert_checkpoint,
    converted_folder,
    download,
    repository_files,
)
from gpi_latents.model.family import (
    AUTOENCODERS,
    DESCRIBED,
    autoencoder_folder,
    model_files,
    model_parts,
    read_json,
)
from gpi_latents.model.weights import WEIGHTS, check_variant, part_weights
from gpi_latents.paths import DEMO_MODEL

LFS_POINTER = b"version https://git-lfs"  # how a file begins that `git clone` leaves where git-lfs is missing


def write_model(config: Mapping[str, Any], output: Path) -> str:
    """Find the model of a config, downloading it if need be, and write the file `paths.MODEL`.

    Returns:
        A text for the log.

    Raises:
        ModelError: see `resolve`.
        OSError: the file cannot be written.
    """
    keys = ("model_id", "revision", "cache_dir", "variant", "vae_id", "allow_pickle")
    digests = Digests(paths.DIGESTS)
    model = resolve(**{key: config[key] for key in keys}, digests=digests)
    digests.save()
    write_whole(output, (json.dumps(model, indent=2, sort_keys=True) + "\n").encode())
    return f"{model['family']} {model['model_id']}, {len(model['sha256'])} files"


def read_model(path: str | Path = paths.MODEL) -> dict[str, Any]:
    """What `write_model` wrote, as `resolve` returns it.

    Raises:
        ModelError: it is missing or damaged.
    """
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(f"{path} cannot be read ({first_line(error)}): delete it and run snakemake again") from None


def is_other_model(config: Mapping[str, Any], model: Mapping[str, Any], digests: Digests) -> bool:
    """Whether the config names another model than was found before, or a local model's files have changed.

    Args:
        config: as `settings.load_config` returns it.
        model: as `resolve` returned it.
        digests: of files that were read before.
    """
    vae = model.get("vae") or {}
    asked = [config[key] for key in ("model_id", "revision", "variant", "vae_id")]
    if asked != [*(model.get(key) for key in ("model_id", "revision", "variant")), vae.get("vae_id")]:
        return True
    expected: dict[str, str] = {}
    if model.get("checkpoint"):
        expected[config["model_id"]] = model["checkpoint"]
    elif not model.get("commit"):
        folder = DEMO_MODEL if config["model_id"] == "demo" else Path(config["model_id"])
        expected |= {str(folder / name): digest for name, digest in model.get("sha256", {}).items()}
    elif os.path.isdir(config["model_id"]):
        return True
    if vae and not vae.get("commit"):
        folder = autoencoder_folder(vae["vae_id"])
        expected |= {str(folder / name): digest for name, digest in vae["sha256"].items()}
    has_pickles = any(name.endswith(".bin") for name in (*model.get("sha256", {}), *vae.get("sha256", {})))
    folders = {os.path.dirname(path) for path in expected}
    weights = [path for path in model_files(config) if path.endswith(WEIGHTS) and os.path.dirname(path) in folders]
    try:
        is_same = all(digests.of(path) == digest for path, digest in expected.items())
    except OSError:
        is_same = False
    return not is_same or not expected.keys() >= set(weights) or (has_pickles and not config["allow_pickle"])


def resolve(
    model_id: str,
    revision: str | None = None,
    cache_dir: str | None = None,
    variant: str | None = None,
    vae_id: str | None = None,
    allow_pickle: bool = False,
    digests: Digests | None = None,
) -> dict[str, Any]:
    """Find the model, downloading what is not there, and say exactly which one it is.

    Args:
        model_id: `demo`, a folder in diffusers' layout, a Hugging Face id, or a checkpoint in one `.safetensors` file,
            which is converted to a folder in the cache.
        revision: branch, tag or commit of a Hugging Face model; None is its main branch.
        cache_dir: folder for downloaded and converted models; None is Hugging Face's own cache.
        variant: of the weights' files, such as `fp16`.
        vae_id: another autoencoder, a folder or a Hugging Face id; None is the model's own.
        allow_pickle: whether `.bin` weights are taken where there are no safetensors.
        digests: of files that were read before.

    Returns:
        `model_id`, `revision`, `variant`, `commit` (of a Hugging Face model, else None), `checkpoint` (SHA-256 of a
        single file, else None), `family` (the pipeline's class), `sha256` (the digest of each of its files by relative
        path), and `vae`: None or `vae_id`, `commit` and `sha256` of the other autoencoder.

    Raises:
        ModelError: not found, not reachable, incomplete, damaged, or of a family that is not supported.
    """
    digests = digests or Digests()
    folder, commit, checkpoint = _find(model_id, revision, cache_dir, digests)
    folders = {part: folder / part for part in model_parts(folder)}
    present = repository_files(model_id, folder, cache_dir) if commit else list(folder.glob("*/*"))
    owner = f"The model {model_id if commit else f'in {folder}'}"
    check_variant(present, variant, owner)
    files = [folder / "model_index.json", *_decisive_files(folders, present, variant, allow_pickle, owner)]
    if commit:
        download(model_id, commit, cache_dir, [str(path.relative_to(folder)) for path in files])
    sha256 = _sha256(folder, files, digests)
    checksums = "".join(f"{digest}  {name}\n" for name, digest in sha256.items())
    if model_id == "demo" and checksums != (folder / "SHA256SUMS").read_text(encoding="utf-8"):
        raise ModelError(f"The demo model in {folder} is damaged: get this repository again")
    return {
        "model_id": model_id,
        "revision": revision,
        "variant": variant,
        "commit": commit,
        "checkpoint": checkpoint,
        "family": read_json(folder / "model_index.json")["_class_name"],
        "sha256": sha256,
        "vae": None if vae_id is None else _resolve_vae(vae_id, cache_dir, variant, allow_pickle, digests),
    }


def _find(
    model_id: str, revision: str | None, cache_dir: str | None, digests: Digests
) -> tuple[Path, str | None, str | None]:
    """A model's folder; the commit if it was downloaded; the SHA-256 of the single file that it was converted from."""
    if model_id == "demo":
        return DEMO_MODEL, None, None
    if os.path.isdir(model_id):
        return Path(model_id), None, None
    if model_id.endswith(".safetensors"):
        checkpoint = digests.of(model_id)
        return convert_checkpoint(Path(model_id), checkpoint, cache_dir), None, checkpoint
    folder = download(model_id, revision, cache_dir, SMALL_FILES)
    return folder, folder.name, None


def _resolve_vae(
    vae_id: str, cache_dir: str | None, variant: str | None, allow_pickle: bool, digests: Digests
) -> dict[str, Any]:
    commit = None
    folder = root = autoencoder_folder(vae_id)
    present = list(folder.glob("*"))
    if vae_id != "demo" and not os.path.isdir(vae_id):
        root = download(vae_id, None, cache_dir, ["config.json", "vae/config.json"])
        folder, commit = autoencoder_folder(root), root.name
        present = repository_files(vae_id, root, cache_dir)
    files = _decisive_files({"vae": folder}, present, variant, allow_pickle, f"The autoencoder {vae_id}")
    if commit:
        download(vae_id, commit, cache_dir, [str(path.relative_to(root)) for path in files])
    return {"vae_id": vae_id, "commit": commit, "sha256": _sha256(folder, files, digests)}


def locate(model: Mapping[str, Any], cache_dir: str | None = None) -> dict[str, Any]:
    """Find again a model that `resolve` found, without the network.

    Args:
        model: as `resolve` returns it.
        cache_dir: as `resolve` takes it.

    Returns:
        The arguments `folder`, `vae_folder`, `variant`, `allow_pickle` and `sha256` of `diffusion.Model`.

    Raises:
        ModelError: it is not on this machine.
    """
    if model["model_id"] == "demo":
        folder = DEMO_MODEL
    elif model.get("checkpoint"):
        folder = converted_folder(model["checkpoint"], cache_dir)
    elif model["commit"]:
        folder = cached_snapshot(model["model_id"], model["commit"], cache_dir, [*model["sha256"]])
    else:
        folder = Path(model["model_id"])
    vae_folder, sha256 = None, {str(folder / name): digest for name, digest in model["sha256"].items()}
    if vae := model.get("vae"):
        source = vae["vae_id"]
        if vae["commit"]:
            files = [f"{place}{name}" for place in ("", "vae/") for name in vae["sha256"]]
            source = cached_snapshot(source, vae["commit"], cache_dir, files)
        vae_folder = autoencoder_folder(source)
        sha256 |= {str(vae_folder / name): digest for name, digest in vae["sha256"].items()}
    for path in filter(None, (folder, vae_folder)):
        if not path.is_dir():
            raise ModelError(f"The model's folder {str(path)!r} does not exist (looked from {os.getcwd()})")
    return {
        "folder": folder,
        "vae_folder": vae_folder,
        "variant": model.get("variant"),
        "allow_pickle": any(name.endswith(".bin") for name in sha256),
        "sha256": sha256,
    }


def _decisive_files(
    folders: Mapping[str, Path], present: list[Path], variant: str | None, allow_pickle: bool, owner: str
) -> list[Path]:
    """The files in the folders of a model's parts that decide its numbers.

    Raises:
        ModelError: some are not among the `present` ones, or damaged, or the autoencoder is not supported.
    """
    files = []
    for part, folder in folders.items():
        inside = [path for path in present if path.parent == folder]
        described = sorted(path for path in folder.glob("*") if path.suffix in DESCRIBED)  # always downloaded
        if not inside:
            raise ModelError(f"{owner} is incomplete: it has no {part}. Get it again")
        contents = {path.name: read_json(path) for path in described if path.suffix == ".json"}
        config = "scheduler_config.json" if part == "scheduler" else "config.json"
        if part.startswith("tokenizer"):
            vocabularies = {path.name for path in described} & {"tokenizer.json", "vocab.json", "spiece.model"}
            if not vocabularies:
                raise ModelError(f"{owner} is incomplete: its {part} has no vocabulary. Get it again")
            if vocabularies == {"spiece.model"} and not find_spec("sentencepiece"):
                raise ModelError(
                    f"{owner} has for its {part} only a spiece.model and no tokenizer.json: install the package "
                    "sentencepiece (pip install sentencepiece protobuf) into the environment of Snakemake"
                )
        elif config not in contents:
            raise ModelError(f"{owner} is incomplete: its {part} has no {config}. Get it again")
        if part == "vae" and (kind := contents[config].get("_class_name")) not in AUTOENCODERS:
            raise ModelError(
                f"{folder} holds {kind or 'another model'}, not a supported autoencoder: {', '.join(AUTOENCODERS)}"
            )
        weights = part_weights(inside, part, variant, allow_pickle, owner)
        if weights and (missing := _missing_weights(weights, contents)):
            raise ModelError(f"{owner} is incomplete: its {part} has no {missing[0]}. Get it again")
        files += described + weights
    return files


def _missing_weights(weights: list[Path], contents: Mapping[str, Any]) -> list[str]:
    """The names of a part's weights that are missing, judging by the parsed JSON files beside them."""
    names = {path.name for path in weights}
    whole = re.sub(r"-\d{5}-of-\d{5}", "", weights[0].name)
    stem, *variant, suffix = whole.split(".")
    if index := contents.get(".".join([stem, suffix, "index", *variant, "json"])):
        return sorted(set(index["weight_map"].values()) - names)
    return [] if whole in names or any(".index." in name for name in contents) else [whole]


def _sha256(folder: Path, files: list[Path], digests: Digests) -> dict[str, str]:
    """SHA-256 of each file by its path in the folder.

    Raises:
        ModelError: a file is cut off, or is not what its name in Hugging Face's cache says.
    """
    from safetensors import SafetensorError, safe_open

    found = {}
    for path in files:
        try:
            if path.suffix == ".safetensors":
                with safe_open(path, "np"):  # looks at the header and the length
                    pass
            digest = digests.of(path)
        except (SafetensorError, OSError) as error:
            if path.is_file() and path.stat().st_size < 200 and path.read_bytes().startswith(LFS_POINTER):
                raise ModelError(
                    f"{path} is no weights but what git leaves in their place without git-lfs: install git-lfs and run "
                    "`git lfs pull` in the model's folder"
                ) from None
            raise ModelError(f"{path} is damaged ({first_line(error)}): get the model again") from None
        blob = path.resolve().name  # in the cache, files are links to blobs; large ones are named by their SHA-256
        if path.is_symlink() and len(blob) == 64 and blob != digest:
            raise ModelError(f"{path} is damaged: delete {path.resolve()} and download the model again")
        found[str(path.relative_to(folder))] = digest
    return dict(sorted(found.items()))
