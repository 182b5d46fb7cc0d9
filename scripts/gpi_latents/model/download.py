"""Models from the Hugging Face hub, and single-file checkpoints."""

from __future__ import annotations

import errno
import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path, PurePath

from gpi_latents.errors import ModelError, first_line
from gpi_latents.model.family import DESCRIBED, MODEL_PARTS, family_problem, model_parts, vae_folder
from gpi_latents.model.weights import chosen_weights, has_weights, variant_problem, weights_problem

# All that is small in a Hugging Face model, as patterns.
SMALL_FILES = ["model_index.json", *(f"{part}/*{suffix}" for part in MODEL_PARTS for suffix in DESCRIBED)]


def cached_snapshot(repository: str, commit: str, cache_dir: str | None, files: list[str]) -> Path:
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
            f"could not be downloaded ({first_line(error)}): check the name and the internet connection, or name a "
            "folder that holds the model"
        ) from None


def download_model(
    model_id: str, revision: str | None, cache_dir: str | None, variant: str | None, pickle: bool
) -> Path:
    """The snapshot of a Hugging Face model, which has the files that are used and no others.

    Weights come last, so that what cannot be used is refused before they are downloaded.
    """
    folder, names = _look(model_id, revision, cache_dir, SMALL_FILES)
    parts = {part: part for part in model_parts(folder)}
    if not names:
        return folder
    if problem := variant_problem(names, variant):
        raise ModelError(f"The model {model_id} {problem}")
    weights = _wanted(f"The model {model_id}", names, parts, variant, pickle)
    return _fetch(model_id, folder.name, cache_dir, SMALL_FILES + weights)


def find_vae(vae_id: str, cache_dir: str | None, variant: str | None, pickle: bool) -> tuple[Path, str | None]:
    """The folder of an autoencoder, and its commit where it is from Hugging Face."""
    if vae_id == "demo" or os.path.isdir(vae_id):
        return vae_folder(vae_id), None
    described = ["config.json", "vae/config.json"]
    snapshot, names = _look(vae_id, None, cache_dir, described)
    folder = vae_folder(snapshot)
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
        if has_weights(part) and (problem := weights_problem(files, part, variant, allow_pickle)):
            raise ModelError(f"{whose} {problem}")
        wanted += [str(file) for file in chosen_weights(files, variant, allow_pickle)]
    return wanted


def conversion_folder(checkpoint: str, cache_dir: str | None) -> Path:
    from huggingface_hub.constants import HF_HUB_CACHE

    return Path(cache_dir or HF_HUB_CACHE).expanduser() / "converted" / checkpoint


def convert_checkpoint(path: Path, checkpoint: str, cache_dir: str | None) -> Path:
    """A single file as a folder in diffusers' layout, made once; its configs are its original's."""
    folder = conversion_folder(checkpoint, cache_dir)
    if folder.is_dir():
        return folder
    import diffusers
    from diffusers.loaders.single_file_utils import fetch_diffusers_config, load_single_file_checkpoint
    from huggingface_hub import snapshot_download

    try:
        origin = fetch_diffusers_config(load_single_file_checkpoint(str(path)))["pretrained_model_name_or_path"]
    except Exception as error:  # safetensors raises its own kind for damaged files
        raise ModelError(f"The checkpoint {path} cannot be read ({first_line(error)}): get it again") from None
    with _hub_errors(f"{origin}, whose configs the checkpoint {path} needs,"):
        configs = Path(snapshot_download(origin, cache_dir=cache_dir, allow_patterns=SMALL_FILES))
    if problem := family_problem(configs):
        raise ModelError(f"The checkpoint {path} is made after {origin}: {problem}")
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
                f"({first_line(error)}); a folder in diffusers' layout or a Hugging Face id will do"
            ) from None
        with suppress(OSError):  # another run was faster
            os.replace(f"{partial}/model", folder)
    return folder
