"""The stack: every format holds the same tensor, and what is no latent is refused."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from pathlib import Path

import diffusion
import items
import numpy as np
import pytest
import safetensors.torch
import stack
import tensors
import torch
from helpers.study import ROOT


@pytest.fixture
def latents(tmp_path):
    """Seven latents that are all different, and their paths; the files are of three kinds of equal content."""
    generator = torch.Generator().manual_seed(0)
    tensors = [torch.randn(1, 4, 8, 6, generator=generator) for _ in range(7)]
    paths = [str(tmp_path / f"hidden_{number}.pt") for number in range(7)]
    for number, (tensor, path) in enumerate(zip(tensors, paths, strict=True)):
        if number == 6:
            torch.save(tensor, path)
        else:
            layout = torch.contiguous_format if number == 5 else torch.channels_last
            Path(path).write_bytes(diffusion.latent_bytes(tensor.contiguous(memory_format=layout)))
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


@pytest.mark.fault("stranger")
def test_different_shapes_are_refused_with_the_rare_ones_named(tmp_path, latents):
    torch.save(torch.zeros(1, 4, 8, 8), latents[1][3])
    with pytest.raises(items.InputError) as caught:
        stack.stack(latents[1], list("abcdefg"), tmp_path / "latents.pt", {})
    assert "(4, 8, 6): 6 items (a, b, c, e, f, ...)" in str(caught.value)
    assert "(4, 8, 8): 1 item (d)" in str(caught.value)


@pytest.mark.fault("stranger")
@pytest.mark.parametrize("kind", ["text", "pickle", "shape", "dtype", "truncated", "missing"])
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
    elif kind == "missing":
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[:700])
    told = "is missing: run snakemake without a target" if kind == "missing" else "is not a latent of this workflow"
    with pytest.raises(items.InputError, match=rf"hidden_3\.pt {told}"):
        stack.stack(latents[1], list("abcdefg"), tmp_path / "latents.pt", {})


@pytest.mark.fault("stranger")
def test_a_latent_with_one_flipped_bit_is_refused(tmp_path, latents):
    path = tmp_path / "hidden_3.pt"
    content = bytearray(path.read_bytes())
    content[content.index(latents[0][3].permute(0, 2, 3, 1).numpy().tobytes()) + 100] ^= 1
    path.write_bytes(content)
    with pytest.raises(items.InputError, match=r"hidden_3\.pt is damaged"):
        stack.stack(latents[1], list("abcdefg"), tmp_path / "latents.pt", {})


@pytest.mark.fault("stranger")
def test_a_latent_that_other_settings_made_is_refused(tmp_path, latents):
    tensors, paths = latents
    for number, path in enumerate(paths[:5]):
        Path(path).write_bytes(diffusion.latent_bytes(tensors[number], str(number) * 64))
    target = tmp_path / "latents.pt"
    recipes = [str(number) * 64 for number in range(7)]  # the last two files, made by others, do not say
    stack.stack(paths, list("abcdefg"), target, {}, recipes)
    assert torch.equal(torch.load(target, weights_only=True), torch.cat(tensors))
    recipes[2] = "x" * 64
    with pytest.raises(items.InputError, match=r"hidden_2\.pt was made with other settings"):
        stack.stack(paths, list("abcdefg"), target, {}, recipes)


@pytest.mark.parametrize("suffix", ["pt", "npy", "safetensors"])
def test_the_tensor_is_mapped_without_torch(tmp_path, latents, suffix):
    target = tmp_path / f"latents.{suffix}"
    stack.stack(latents[1], list("abcdefg"), target, {})
    mapped = tensors.open_latents(target)
    assert np.array_equal(mapped, torch.cat(latents[0]).numpy())
    assert mapped.dtype == np.float32
    assert not mapped.flags.writeable
    assert isinstance(mapped, np.memmap)
    code = f"import sys, tensors; tensors.open_latents({str(target)!r}); print(*sys.modules)"
    ran = subprocess.run([sys.executable, "-c", code], cwd=ROOT / "scripts", capture_output=True, text=True, check=True)
    assert not {"torch", "pandas"} & set(ran.stdout.split())


@pytest.mark.parametrize("suffix", ["pt", "npy", "safetensors"])
@pytest.mark.parametrize("fault", ["missing", "empty", "text", "cut short", "one value short", "float64", "two sides"])
def test_a_damaged_tensor_is_not_mapped(tmp_path, latents, suffix, fault):
    target = tmp_path / f"latents.{suffix}"
    stack.stack(latents[1], list("abcdefg"), target, {})
    content = target.read_bytes()
    wrong = torch.zeros(7, 4, 8, 6, dtype=torch.float64) if fault == "float64" else torch.zeros(7, 4)
    if fault in ("float64", "two sides"):
        {
            "pt": lambda: torch.save(wrong, target),
            "npy": lambda: np.save(target, wrong.numpy()),
            "safetensors": lambda: safetensors.torch.save_file({"latents": wrong}, target),
        }[suffix]()
    elif fault == "missing":
        target.unlink()
    else:
        cuts = {"empty": b"", "text": b"no tensor", "cut short": content[: len(content) // 2]}
        target.write_bytes(cuts.get(fault, content[:-4]))
    told = "is missing: run snakemake" if fault == "missing" else "is no tensor of this workflow"
    with pytest.raises(tensors.TensorError, match=told):
        tensors.open_latents(target)


def test_a_pickle_that_would_run_code_is_not_run(tmp_path):
    class Harmful:
        def __reduce__(self):
            return Path(tmp_path / "harm").touch, ()

    torch.save(Harmful(), tmp_path / "latents.pt")
    with pytest.raises(tensors.TensorError, match="is no tensor of this workflow"):
        tensors.open_latents(tmp_path / "latents.pt")
    assert not (tmp_path / "harm").exists()
