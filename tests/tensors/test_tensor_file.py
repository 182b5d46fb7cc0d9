"""The stacked tensor is mapped from its file without torch, and what is not such a tensor is refused."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from gpi_latents.errors import TensorError
from gpi_latents.tensors.tensor_file import open_latents, tensor_writer

FORMATS = ["pt", "npy", "safetensors"]
SHAPE = (7, 4, 8, 6)


def write_tensor(path: Path) -> np.ndarray:
    values = np.random.default_rng(0).standard_normal(SHAPE, dtype=np.float32)
    with tensor_writer(path, SHAPE, {}) as file:
        file.write(values.tobytes())
    return values


@pytest.mark.parametrize("suffix", FORMATS)
def test_the_tensor_is_mapped(tmp_path, suffix):
    values = write_tensor(tmp_path / f"latents.{suffix}")
    mapped = open_latents(tmp_path / f"latents.{suffix}")
    assert np.array_equal(mapped, values)
    assert mapped.dtype == np.float32
    assert not mapped.flags.writeable
    assert isinstance(mapped, np.memmap)


def test_reading_the_tensor_imports_neither_torch_nor_pandas(tmp_path):
    paths = [str(tmp_path / f"latents.{suffix}") for suffix in FORMATS]
    for path in paths:
        write_tensor(Path(path))
    code = (
        "import sys; from gpi_latents.tensors.tensor_file import open_latents; "
        "[open_latents(path) for path in sys.argv[1:]]; print(*sys.modules)"
    )
    ran = subprocess.run([sys.executable, "-c", code, *paths], capture_output=True, text=True, check=True)
    assert not {"torch", "pandas"} & set(ran.stdout.split())


@pytest.mark.parametrize("suffix", FORMATS)
@pytest.mark.parametrize("damage", ["missing", "empty", "text", "cut short", "one value short", "float64", "two sides"])
def test_a_damaged_tensor_is_not_mapped(tmp_path, suffix, damage):
    target = tmp_path / f"latents.{suffix}"
    write_tensor(target)
    content = target.read_bytes()
    if damage in ("float64", "two sides"):
        wrong = torch.zeros(SHAPE, dtype=torch.float64) if damage == "float64" else torch.zeros(7, 4)
        {
            "pt": lambda: torch.save(wrong, target),
            "npy": lambda: np.save(target, wrong.numpy()),
            "safetensors": lambda: safetensors.torch.save_file({"latents": wrong}, target),
        }[suffix]()
    elif damage == "missing":
        target.unlink()
    else:
        cuts = {"empty": b"", "text": b"no tensor", "cut short": content[: len(content) // 2]}
        target.write_bytes(cuts.get(damage, content[:-4]))
    message = "is missing: run snakemake" if damage == "missing" else "is not a tensor of this workflow"
    with pytest.raises(TensorError, match=message):
        open_latents(target)


def test_another_suffix_is_refused(tmp_path):
    (tmp_path / "latents.csv").touch()
    with pytest.raises(TensorError, match=r"latents\.csv is not a tensor .* \(its name ends in none of \.pt, \.npy"):
        open_latents(tmp_path / "latents.csv")


def test_a_pickle_that_would_run_code_is_not_run(tmp_path):
    class Harmful:
        def __reduce__(self):
            return Path(tmp_path / "harm").touch, ()

    torch.save(Harmful(), tmp_path / "latents.pt")
    with pytest.raises(TensorError, match="is not a tensor of this workflow"):
        open_latents(tmp_path / "latents.pt")
    assert not (tmp_path / "harm").exists()
