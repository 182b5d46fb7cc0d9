"""The stack: every format holds the same tensor, and what is no latent is refused."""

from __future__ import annotations

import hashlib

import items
import numpy as np
import pytest
import safetensors
import stack
import torch


@pytest.fixture
def latents(tmp_path):
    """Seven latents that are all different, and their paths."""
    generator = torch.Generator().manual_seed(0)
    tensors = [torch.randn(1, 4, 8, 6, generator=generator) for _ in range(7)]
    paths = [str(tmp_path / f"hidden_{number}.pt") for number in range(7)]
    for tensor, path in zip(tensors, paths, strict=True):
        torch.save(tensor, path)
    return tensors, paths


@pytest.mark.parametrize("suffix", ["pt", "npy", "safetensors"])
def test_every_format_holds_the_latents_in_order(tmp_path, latents, suffix):
    tensors, paths = latents
    target = tmp_path / f"latents.{suffix}"
    digests = stack.stack(paths, list("abcdefg"), target, {"provenance": "x"})
    assert digests == [hashlib.sha256(tensor.numpy().tobytes()).hexdigest() for tensor in tensors]
    if suffix == "pt":
        read = torch.load(target, weights_only=True)
        assert torch.equal(read, torch.load(target, weights_only=True, mmap=True))
    elif suffix == "npy":
        read = torch.from_numpy(np.load(target, allow_pickle=False))
    else:
        with safetensors.safe_open(target, "pt") as file:
            assert file.metadata() == {"provenance": "x"}
            read = file.get_tensor("latents")
    assert read.dtype == torch.float32
    assert torch.equal(read, torch.cat(tensors))
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(
        [target.name, *(f"hidden_{number}.pt" for number in range(7))]
    )


def test_different_shapes_are_refused_with_the_rare_ones_named(tmp_path, latents):
    torch.save(torch.zeros(1, 4, 8, 8), latents[1][3])
    with pytest.raises(items.InputError) as caught:
        stack.stack(latents[1], list("abcdefg"), tmp_path / "latents.pt", {})
    assert "(4, 8, 6): 6 items (a, b, c, e, f, ...)" in str(caught.value)
    assert "(4, 8, 8): 1 item (d)" in str(caught.value)


@pytest.mark.parametrize("kind", ["text", "pickle", "shape", "dtype", "truncated"])
def test_what_is_no_latent_is_refused_by_name(tmp_path, latents, kind):
    path = tmp_path / "hidden_3.pt"
    if kind == "text":
        path.write_text("no latent")
    elif kind == "pickle":
        torch.save({"run": print}, path)
    elif kind == "shape":
        torch.save(torch.zeros(4, 8, 6), path)
    elif kind == "dtype":
        torch.save(torch.zeros(1, 4, 8, 6, dtype=torch.float64), path)
    else:
        path.write_bytes(path.read_bytes()[:700])
    with pytest.raises(items.InputError, match=r"hidden_3\.pt is not a latent of this workflow"):
        stack.stack(latents[1], list("abcdefg"), tmp_path / "latents.pt", {})
