"""Which files hold a model's weights, by their names."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import PurePath

# What diffusers and transformers load of a part's folder, beside its `.json` files.
WEIGHTS = (".safetensors", ".bin")
WEIGHTS_STEMS = ("diffusion_pytorch_model", "model", "pytorch_model")


def chosen_weights(files: Iterable[PurePath], variant: str | None, allow_pickle: bool) -> list[PurePath]:
    """Those of a part's files that its weights are loaded from.

    As in diffusers, a variant is taken where a part has it, and pickles where there are no safetensors.
    """
    safe, pickled = _weights(files, variant)
    return safe or (pickled if allow_pickle else [])


def weights_problem(files: Iterable[PurePath], part: str, variant: str | None, allow_pickle: bool) -> str:
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


def has_weights(part: str) -> bool:
    return not part.startswith(("tokenizer", "scheduler"))


def variant_problem(files: Iterable[PurePath], variant: str | None) -> str:
    """Why a variant of a model cannot be had, as the text that goes on after the model's name."""
    known = variants(files)
    if variant is None or variant in known:
        return ""
    return f"has no weights of the variant {variant!r}; those it has: {', '.join(known) or 'none'}"
