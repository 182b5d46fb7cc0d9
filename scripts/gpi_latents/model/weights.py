"""Which files hold a model's weights, by their names."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import PurePath
from typing import TypeVar

from gpi_latents.errors import ModelError

# What diffusers and transformers load from a part's folder, beside its `.json` files.
WEIGHTS = (".safetensors", ".bin")
WEIGHTS_STEMS = ("diffusion_pytorch_model", "model", "pytorch_model")

File = TypeVar("File", bound=PurePath)


def chosen_weights(files: Iterable[File], variant: str | None, allow_pickle: bool) -> list[File]:
    """Those of a part's files that its weights are loaded from, sorted.

    As in diffusers, a variant is taken where a part has it, and pickles where there are no safetensors.
    """
    kinds = {path: _weights_kind(path) for path in files}
    for wanted in (variant, None):
        safe, pickled = (sorted(path for path, kind in kinds.items() if kind == (wanted, suffix)) for suffix in WEIGHTS)
        if safe or pickled:
            return safe or (pickled if allow_pickle else [])
    return []


def part_weights(files: Iterable[File], part: str, variant: str | None, allow_pickle: bool, owner: str) -> list[File]:
    """The `chosen_weights` of the files in a part's folder; a tokenizer and a scheduler have none.

    Raises:
        ModelError: another part has none; the message begins with the `owner`.
    """
    files = list(files)
    if part.startswith(("tokenizer", "scheduler")):
        return []
    if chosen := chosen_weights(files, variant, allow_pickle):
        return chosen
    if chosen_weights(files, variant, allow_pickle=True):
        raise ModelError(
            f"{owner} has no safetensors weights for its {part}. Pickled weights (.bin, .ckpt) can run code of "
            "strangers when they are loaded, so they are not used: convert it, take a model that comes as safetensors, "
            "or, if you trust its maker, set allow_pickle: true"
        )
    if others := _variants(files):
        raise ModelError(
            f"{owner} has for its {part} only weights of the variant {' or '.join(others)}: name it by the key variant"
        )
    raise ModelError(f"{owner} is incomplete: its {part} has no weights. Get it again")


def check_variant(files: Iterable[PurePath], variant: str | None, owner: str) -> None:
    """Check that some of a model's files are of the variant.

    Raises:
        ModelError: none is.
    """
    known = _variants(files)
    if variant is not None and variant not in known:
        raise ModelError(
            f"{owner} has no weights of the variant {variant!r}; those it has: {', '.join(known) or 'none'}"
        )


def _variants(files: Iterable[PurePath]) -> list[str]:
    return sorted({kind[0] for path in files if (kind := _weights_kind(path)) and kind[0]})


def _weights_kind(file: PurePath) -> tuple[str | None, str] | None:
    """(variant, suffix) of a weights file: `model.fp16-00001-of-00002.safetensors` is ("fp16", ".safetensors")."""
    if file.suffix not in WEIGHTS:
        return None
    stem, *variant, _ = re.sub(r"-\d{5}-of-\d{5}", "", file.name).split(".")
    return (".".join(variant) or None, file.suffix) if stem in WEIGHTS_STEMS else None
