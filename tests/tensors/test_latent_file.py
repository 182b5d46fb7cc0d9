"""The file of one latent: what torch reads, with the recipe's digest in it; what is not a latent is refused."""

from __future__ import annotations

import dataclasses
import io
import json
import pickle
import struct
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from gpi_latents.errors import TensorError
from gpi_latents.origin import Origin, read_origin
from gpi_latents.tensors.latent_file import Reader, latent_bytes, read_latent

ORIGIN = Origin("d" * 64, "e" * 64, "f" * 64, "Bilder/ä.png", ["laid on white"])


def test_the_file_is_what_torch_writes_with_its_origin_as_the_comment(values):
    latent = values["a"].contiguous(memory_format=torch.channels_last)
    plain = io.BytesIO()
    torch.save(latent.clone(), plain)
    assert latent_bytes(latent) == plain.getvalue()
    content = latent_bytes(latent, ORIGIN)
    length = len(plain.getvalue())
    assert content[: length - 2] == plain.getvalue()[:-2]
    assert zipfile.ZipFile(io.BytesIO(content)).comment == content[length:]
    assert json.loads(content[length:]) == {
        "recipe_sha256": "d" * 64,
        "image_sha256": "e" * 64,
        "model_sha256": "f" * 64,
        "image": "Bilder/ä.png",
        "notes": ["laid on white"],
    }
    assert torch.equal(torch.load(io.BytesIO(content), weights_only=True), latent)


def test_only_the_latent_is_saved_not_the_larger_tensor_that_it_is_a_part_of():
    assert latent_bytes(torch.zeros(50, 4, 8, 6)[3:4]) == latent_bytes(torch.zeros(1, 4, 8, 6))


def test_a_reader_gives_the_values_of_files_of_any_layout(values, latents):
    reader = Reader(latents["a"])
    for item_id, path in latents.items():
        read, _ = reader.read(path)
        assert read.dtype == np.float32
        assert np.array_equal(read, values[item_id].numpy())
        assert torch.equal(read_latent(path), values[item_id])


@pytest.mark.fault("stranger")
@pytest.mark.parametrize("kind", ["text", "empty", "pickle", "old format", "shape", "dtype", "truncated", "missing"])
def test_what_is_no_latent_is_refused_by_name(latents, kind):
    path = Path(latents["d"])
    if kind == "missing":
        path.unlink()
    elif kind in ("text", "empty", "truncated"):
        path.write_bytes({"text": b"no latent", "empty": b"", "truncated": path.read_bytes()[:700]}[kind])
    elif kind == "old format":
        torch.save(torch.zeros(1, 4, 8, 6), path, _use_new_zipfile_serialization=False)
    else:
        wrong = {"pickle": {"run": print}, "shape": torch.zeros(4, 8, 6), "dtype": torch.zeros(1, 4, 8, 6).double()}
        torch.save(wrong[kind], path)
    message = "is missing: run snakemake without a target" if kind == "missing" else "is not a latent of this workflow"
    for read in (read_latent, Reader, Reader(latents["a"]).read):
        with pytest.raises(TensorError, match=rf"hidden_d\.pt {message}"):
            read(path)


class Owner:
    """Pickled, it makes a file when it is loaded."""

    def __reduce__(self):
        return Path.touch, (Path("owned"),)


@pytest.mark.fault("stranger")
@pytest.mark.parametrize("kind", ["pickle", "zip of a pickle", "huge header", "huge shape"])
def test_a_hostile_latent_executes_nothing_and_is_refused_by_name(tmp_path, monkeypatch, latents, kind):
    monkeypatch.chdir(tmp_path)
    bad = tmp_path / "hidden_bad.pt"
    if kind == "pickle":
        bad.write_bytes(pickle.dumps(Owner()))
    elif kind == "zip of a pickle":
        torch.save({"x": Owner()}, bad)
    elif kind == "huge shape":
        torch.save(torch.zeros(1).expand(1, 4, 2**20, 2**20), bad)
    else:
        bad.write_bytes(struct.pack("<Q", 2**62) + b"{}")
    reader = Reader(latents["a"])
    if kind == "huge shape":  # one number in memory, and the stack refuses other shapes
        assert reader.read(bad)[0].shape == (1, 4, 2**20, 2**20)
    else:
        with pytest.raises(TensorError, match=r"hidden_bad\.pt is not a latent"):
            reader.read(bad)
    assert not (tmp_path / "owned").exists()


@pytest.mark.fault("stranger")
@pytest.mark.parametrize("name", "df")  # laid out as most are, and as no other one
def test_a_latent_with_one_flipped_bit_is_refused(values, latents, name):
    path = Path(latents[name])
    content = bytearray(path.read_bytes())
    stored = values[name] if name == "f" else values[name].permute(0, 2, 3, 1)
    content[content.index(stored.numpy().tobytes()) + 100] ^= 1
    path.write_bytes(content)
    for first in "ad":
        with pytest.raises(TensorError, match=rf"hidden_{name}\.pt is .*its checksum is wrong"):
            Reader(latents[first]).read(path)


@pytest.mark.parametrize("notes", [[], ["a note"], ["ä" * 3000], ["x" * 40_000, "y" * 40_000]])
def test_what_made_a_latent_is_read_back_from_its_file(tmp_path, values, latents, notes):
    path = tmp_path / "new.pt"
    origin = dataclasses.replace(ORIGIN, notes=notes)
    path.write_bytes(latent_bytes(values["d"].contiguous(memory_format=torch.channels_last), origin))
    expected = origin if sum(map(len, notes)) < 60_000 else dataclasses.replace(ORIGIN, notes=notes[:1])
    assert read_origin(path) == expected
    read, found = Reader(latents["a"]).read(path)
    assert found == expected
    assert np.array_equal(read, values["d"].numpy())


def test_files_of_earlier_versions_name_their_recipe_or_nothing(values, latents):
    path = Path(latents["d"])
    content = latent_bytes(values["d"])
    path.write_bytes(content[:-2] + b"\x40\x00" + b"0123456789abcdef" * 4)
    assert read_origin(path) == Origin(recipe_sha256="0123456789abcdef" * 4)
    assert read_origin(latents["g"]) == read_origin("missing") == Origin()
    assert np.array_equal(Reader(latents["a"]).read(path)[0], values["d"].numpy())
