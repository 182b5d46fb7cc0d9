"""Find or download the model, once, where Snakemake runs; and find it again where it is used."""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import sys
from pathlib import Path
from typing import Any

DEMO_MODEL = Path(__file__).resolve().parent.parent / "config/demo/model"
# Families whose latent this version defines; both have the same parts.
FAMILIES = ["StableDiffusionPipeline", "StableDiffusionImg2ImgPipeline"]
PARTS = ["vae", "unet", "text_encoder", "tokenizer", "scheduler"]


class ModelError(Exception):
    """The model cannot be had; the text is the message for the user."""


def resolve(model_id: str, revision: str | None = None, cache_dir: str | None = None) -> dict[str, Any]:
    """Find the model, downloading it if it is not there, and tell exactly which one it is.

    Args:
        model_id: `demo`, a folder in diffusers' layout, or a Hugging Face id.
        revision: branch, tag or commit of a Hugging Face model; None is its main branch.
        cache_dir: folder for downloaded models; None is Hugging Face's own cache.

    Returns:
        `model_id`, `revision`, `commit` (of a Hugging Face model, else None), `family` (the pipeline's class) and
        `sha256`, the digest of each of its files by relative path.

    Raises:
        ModelError: not found, not reachable, incomplete, damaged, or of a family that is not supported.
    """
    commit = None
    if model_id == "demo":
        folder = DEMO_MODEL
    elif os.path.isdir(model_id):
        folder = Path(model_id)
    else:
        folder = _download(model_id, revision, cache_dir)
        commit = folder.name  # the cache keeps each commit in snapshots/<commit>
    family = _family(folder)
    files = _files(folder)
    _check_parts(folder, files)
    digests = {str(path.relative_to(folder)): _sha256(path) for path in files}
    if model_id == "demo" and digests != _expected(folder):
        raise ModelError(f"The demo model in {folder} is damaged: get this repository again")
    return {"model_id": model_id, "revision": revision, "commit": commit, "family": family, "sha256": digests}


def locate(model: dict[str, Any], cache_dir: str | None = None) -> Path:
    """The folder of a model that `resolve` found, without the network.

    Raises:
        ModelError: it is not on this machine.
    """
    if model["model_id"] == "demo":
        return DEMO_MODEL
    if model["commit"] is None:
        if not os.path.isdir(model["model_id"]):
            raise ModelError(f"The model's folder {model['model_id']!r} is gone (looked from {os.getcwd()})")
        return Path(model["model_id"])
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        return Path(
            snapshot_download(model["model_id"], revision=model["commit"], cache_dir=cache_dir, local_files_only=True)
        )
    except LocalEntryNotFoundError:
        raise ModelError(
            f"The model {model['model_id']} (commit {model['commit']}) is not in the cache of this machine: "
            "run `snakemake --cores 1 --forcerun model model` where there is internet, with a cache_dir that all "
            "machines share"
        ) from None


def _download(model_id: str, revision: str | None, cache_dir: str | None) -> Path:
    from diffusers import DiffusionPipeline
    from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, RepositoryNotFoundError, RevisionNotFoundError

    try:
        # diffusers knows which files the pipeline needs; what is passed as None is left out.
        folder = DiffusionPipeline.download(
            model_id,
            revision=revision,
            cache_dir=cache_dir,
            use_safetensors=True,
            safety_checker=None,
            feature_extractor=None,
        )
    except GatedRepoError:
        raise ModelError(
            f"The model {model_id} is gated: accept its terms on its page at huggingface.co, "
            "make an access token there and set it as the environment variable HF_TOKEN"
        ) from None
    except RevisionNotFoundError:
        raise ModelError(f"The model {model_id} has no revision {revision!r}") from None
    except RepositoryNotFoundError:
        raise ModelError(
            f"There is no model {model_id} at huggingface.co, or it is private and HF_TOKEN is not set"
        ) from None
    except (HfHubHTTPError, OSError, ValueError) as error:
        first = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise ModelError(
            f"The model {model_id} is no folder (looked from {os.getcwd()}), is not in the cache of this machine and "
            f"could not be downloaded ({first}): check the name and the internet connection, or name a folder that "
            "holds the model as model_id"
        ) from None
    return Path(folder)


def _family(folder: Path) -> str:
    try:
        family = json.loads((folder / "model_index.json").read_text(encoding="utf-8"))["_class_name"]
    except FileNotFoundError:
        raise ModelError(f"{folder} is no model in diffusers' layout: it has no model_index.json") from None
    except (json.JSONDecodeError, KeyError, TypeError, UnicodeDecodeError):
        raise ModelError(f"{folder / 'model_index.json'} is damaged: get the model again") from None
    if family not in FAMILIES:
        raise ModelError(
            f"The model in {folder} is a {family}; this version works with the Stable Diffusion 1.x and 2.x layout "
            f"({' or '.join(FAMILIES)})"
        )
    return family


def _files(folder: Path) -> list[Path]:
    """The files that decide the model's numbers, sorted."""
    kinds = {".json", ".safetensors", ".txt", ".model"}
    files = [path for part in PARTS for path in (folder / part).rglob("*") if path.suffix in kinds and path.is_file()]
    return sorted([folder / "model_index.json", *files])


def _check_parts(folder: Path, files: list[Path]) -> None:
    for part in PARTS:
        names = [path.name for path in files if path.parent == folder / part]
        if not names:
            raise ModelError(f"The model in {folder} is incomplete: it has no {part}")
        if part in ("vae", "unet", "text_encoder") and not any(name.endswith(".safetensors") for name in names):
            raise ModelError(
                f"The model in {folder} has no safetensors weights for its {part}. Pickled weights (.bin, .ckpt) can "
                "run code of strangers when they are loaded, so they are not used: convert it, or take a model that "
                "comes as safetensors"
            )


def _expected(folder: Path) -> dict[str, str]:
    lines = (folder / "SHA256SUMS").read_text(encoding="utf-8").splitlines()
    return {name: digest for digest, name in (line.split("  ", 1) for line in lines)}


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--config", type=json.loads, required=True, help="the workflow's config as JSON")
    parser.add_argument("--output", type=Path, required=True, help="the JSON file to write")
    arguments = parser.parse_args()
    config = arguments.config
    try:
        model = resolve(config["model_id"], config["revision"], config["cache_dir"])
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
