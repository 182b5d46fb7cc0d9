"""Models from the Hugging Face hub, and checkpoints in one file."""

from __future__ import annotations

import errno
import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from gpi_latents.errors import ModelError, first_line
from gpi_latents.joblog import SEARCHING
from gpi_latents.model.family import DESCRIBED, MODEL_PARTS, family_problem, read_json

# What is used of a model's repository, weights excepted, as patterns.
SMALL_FILES = ["model_index.json", *(f"{part}/*{suffix}" for part in MODEL_PARTS for suffix in DESCRIBED)]


def download(repository: str, revision: str | None, cache_dir: str | None, patterns: list[str], name: str = "") -> Path:
    """Download those files of a Hugging Face repository that match a pattern and are not in the cache.

    Not by diffusers' `DiffusionPipeline.download`: it takes weights of other folders too, such as SDXL's `vae_1_0`, and
    where one part has pickles alone, no safetensors of the others. Messages call it `name`.

    Returns:
        The snapshot in the cache, a folder named by the commit.

    Raises:
        ModelError: not found, or not reachable.
    """
    from huggingface_hub import snapshot_download

    from gpi_latents.model.hub_client import LogLines, limit_waiting

    with _hub_errors(name or repository, revision):
        limit_waiting()
        print(f"{SEARCHING}{repository} in the cache and at the hub", file=sys.stderr, flush=True)
        options = {"revision": revision, "cache_dir": cache_dir, "allow_patterns": patterns}
        return Path(snapshot_download(repository, tqdm_class=LogLines, **options))


def repository_files(repository: str, snapshot: Path, cache_dir: str | None) -> list[Path]:
    """All files that a repository has at the commit of a snapshot, as paths in it, downloaded or not."""
    from huggingface_hub import get_cached_repo_tree
    from huggingface_hub.errors import CachedRepoTreeNotFoundError

    try:
        tree = get_cached_repo_tree(repository, revision=snapshot.name, cache_dir=cache_dir)
    except CachedRepoTreeNotFoundError:  # no network, and a cache that an older client filled
        return list(snapshot.rglob("*"))
    return [snapshot / file.path for file in tree]


@contextmanager
def _hub_errors(name: str, revision: str | None) -> Iterator[None]:
    """Turn the errors of Hugging Face's client into messages for the user."""
    from huggingface_hub import constants
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
        if isinstance(error, OSError) and (error.filename or error.errno in (errno.ENOSPC, errno.EDQUOT)):
            advice = "name a folder that has room and that you can write as cache_dir"
            raise ModelError(f"The model {name} cannot be stored in the cache: {error}; {advice}") from None
        reason, advice = first_line(error), "check the name and the internet connection"
        answer = _answer(error)
        if answer is not None and answer.status_code in (401, 403):
            said = answer.headers.get("X-Error-Message") or answer.reason_phrase
            raise ModelError(
                f"{constants.ENDPOINT} refuses the access token that is sent for the model {name} ({said}): make one "
                "there that may read gated repositories, and set it as the environment variable HF_TOKEN"
            ) from None
        if answer is not None and answer.status_code == 429:
            reason = f"{constants.ENDPOINT} takes no more requests from here for now"
            advice = "try again later, with an access token as the environment variable HF_TOKEN, which allows more"
        if type(error.__cause__ or error).__name__.endswith("Timeout"):
            reason = f"{constants.ENDPOINT} did not answer within {constants.HF_HUB_DOWNLOAD_TIMEOUT} s"
            advice = "try again later, with HF_HUB_DOWNLOAD_TIMEOUT=60 if your connection is slow"
        raise ModelError(
            f"The model {name} is no folder (looked from {os.getcwd()}), is not in the cache of this machine and "
            f"could not be downloaded ({reason}): {advice}, or name a folder that holds the model, or a cache_dir that "
            "does (HF_HUB_OFFLINE=1 then keeps runs off the network)"
        ) from None


def _answer(error: BaseException | None) -> Any:
    """The hub's answer that led to an error, which the client's own errors hide; None if it gave none."""
    while error is not None and getattr(error, "response", None) is None:
        error = error.__cause__ or error.__context__
    return getattr(error, "response", None)


def cached_snapshot(repository: str, commit: str, cache_dir: str | None, files: list[str]) -> Path:
    """The snapshot that `download` returned, without the network; of all files, only the named ones need be there.

    Raises:
        ModelError: it is not in the cache.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    options = {"revision": commit, "cache_dir": cache_dir, "allow_patterns": files}
    try:
        return Path(snapshot_download(repository, local_files_only=True, **options))
    except LocalEntryNotFoundError:
        raise ModelError(
            f"The model {repository} (commit {commit}) is not in the cache of this machine: "
            "run `snakemake model --cores 1 --forcerun model` where there is internet, with a cache_dir that all "
            "machines share"
        ) from None


def converted_folder(checkpoint: str, cache_dir: str | None) -> Path:
    """Where a single file with the SHA-256 `checkpoint` is kept in diffusers' layout."""
    from huggingface_hub.constants import HF_HUB_CACHE

    return Path(cache_dir or HF_HUB_CACHE).expanduser() / "converted" / checkpoint


def convert_checkpoint(path: Path, checkpoint: str, cache_dir: str | None) -> Path:
    """Convert a single file, whose SHA-256 is `checkpoint`, once; its configs are those of the original model.

    Returns:
        A folder in diffusers' layout.

    Raises:
        ModelError: it is no whole model of a supported family, or the configs are not available.
    """
    folder = converted_folder(checkpoint, cache_dir)
    if folder.is_dir():
        return folder
    import diffusers
    from diffusers.loaders.single_file_utils import fetch_diffusers_config, load_single_file_checkpoint

    try:
        origin = fetch_diffusers_config(load_single_file_checkpoint(str(path)))["pretrained_model_name_or_path"]
    except Exception as error:  # safetensors raises its own kind for damaged files
        raise ModelError(f"The checkpoint {path} cannot be read ({first_line(error)}): get it again") from None
    configs = download(origin, None, cache_dir, SMALL_FILES, f"{origin}, whose configs the checkpoint {path} needs,")
    if problem := family_problem(configs):
        raise ModelError(f"The checkpoint {path} is made after {origin}: {problem}")
    kind = getattr(diffusers, read_json(configs / "model_index.json")["_class_name"])
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as partial:
        try:
            # None is no part of a checkpoint.
            pipeline = kind.from_single_file(
                str(path), config=str(configs), local_files_only=True, safety_checker=None, feature_extractor=None
            )
            pipeline.save_pretrained(f"{partial}/model")
        except Exception as error:  # of many kinds, whatever does not fit
            raise ModelError(
                f"The checkpoint {path} cannot be read as a whole model of the kind of {origin} "
                f"({first_line(error)}); a folder in diffusers' layout or a Hugging Face id will do"
            ) from None
        with suppress(OSError):  # another run was faster
            os.replace(f"{partial}/model", folder)
    return folder
