"""The stacked tensor as an array that stays on disk, whichever format it has. Needs no torch, only NumPy."""

from __future__ import annotations

import collections
import json
import math
import pickle
import struct
import zipfile
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np


class TensorError(ValueError):
    """The file holds no stacked latents, or damaged ones; its text is the message for the user."""


class _Described(NamedTuple):
    """What the pickle in a file of torch.save says of its tensor."""

    storage: tuple
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


def open_latents(path: str | Path) -> np.ndarray:
    """Map the tensor of all latents into memory, from where its values are read when they are used.

    Args:
        path: of the file that the workflow's key `stacked` names: `.pt`, `.npy` or `.safetensors`.

    Returns:
        float32 (N, C, H, W), read-only, in sheet order.

    Raises:
        TensorError: the file is missing, damaged or holds something else.
    """
    path = Path(path)
    ways = {".pt": _open_pt, ".npy": _open_npy, ".safetensors": _open_safetensors}
    try:
        if path.suffix not in ways:
            raise ValueError(f"its name ends in none of {', '.join(ways)}")
        latents = ways[path.suffix](path)
        if latents.dtype != np.float32 or latents.ndim != 4:
            raise ValueError(f"it holds {latents.dtype} {latents.shape}, not float32 (N, C, H, W)")
    except FileNotFoundError:
        raise TensorError(f"{path} is missing: run snakemake without a target, which makes it again") from None
    except Exception as error:  # a damaged zip file or pickle raises many kinds
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise TensorError(f"{path} is no tensor of this workflow ({reason}): delete it and run again") from None
    return latents


def values_offset(path: str | Path) -> int:
    """Where the values begin in a file of torch.save, a zip file that stores them uncompressed."""
    with zipfile.ZipFile(path) as archive:
        values = next(member for member in archive.infolist() if member.filename.endswith("/data/0"))
    with open(path, "rb") as file:
        file.seek(values.header_offset + 26)  # in a local file header of 30 bytes: the lengths of name and extra field
        return values.header_offset + 30 + sum(struct.unpack("<HH", file.read(4)))


def _open_pt(path: Path) -> np.ndarray:
    with zipfile.ZipFile(path) as archive:
        names = {member.filename.partition("/")[2]: member for member in archive.infolist()}
        if not {"data.pkl", "data/0"} <= names.keys():
            raise ValueError("not as torch.save writes a tensor")
        with archive.open(names["data.pkl"]) as file:
            described = _Unpickler(file).load()
    if not isinstance(described, _Described):
        raise ValueError("it holds no tensor")
    kind, key = described.storage[1:3]
    shape = described.shape
    strides = tuple(math.prod(shape[axis + 1 :]) for axis in range(len(shape)))
    stored = names["data/0"]
    if (kind, key, described.offset) != ("FloatStorage", "0", 0) or (described.strides != strides and all(shape)):
        raise ValueError("not a float32 tensor in C order")
    if stored.compress_type != zipfile.ZIP_STORED or stored.file_size != 4 * math.prod(shape):
        raise ValueError("its values are not as many as its shape says")
    return _mapped(path, values_offset(path), shape)


class _Unpickler(pickle.Unpickler):
    """Reads the description of one tensor; a pickle that asks for anything else, which could run code, is refused."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return lambda storage, offset, shape, strides, *_: _Described(storage, offset, shape, strides)
        if (module, name) == ("collections", "OrderedDict"):
            return collections.OrderedDict
        if module == "torch" and name.endswith("Storage"):
            return name
        raise pickle.UnpicklingError(f"it holds {module}.{name}, not one tensor")

    def persistent_load(self, pid: tuple) -> tuple:
        return pid  # ("storage", kind, key, device, count)


def _open_npy(path: Path) -> np.ndarray:
    return np.load(path, mmap_mode="r", allow_pickle=False)


def _open_safetensors(path: Path) -> np.ndarray:
    # The header's length in 8 bytes, JSON, the values (https://github.com/huggingface/safetensors, "Format").
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if length > path.stat().st_size:
            raise ValueError("it is cut short")
        header = json.loads(file.read(length))
    tensor = header["latents"]
    begin, end = tensor["data_offsets"]
    if tensor["dtype"] != "F32" or end - begin != 4 * math.prod(tensor["shape"]):
        raise ValueError("not a float32 tensor")
    return _mapped(path, 8 + length + begin, tuple(tensor["shape"]))


def _mapped(path: Path, offset: int, shape: tuple[int, ...]) -> np.ndarray:
    return np.memmap(path, dtype="<f4", mode="r", offset=offset, shape=shape)
