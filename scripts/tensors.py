"""The stacked tensor as an array that stays on disk, whichever format it has. Needs no torch, only NumPy."""

from __future__ import annotations

import json
import math
import struct
import zipfile
from pathlib import Path

import numpy as np


class TensorError(ValueError):
    """The file holds no stacked latents, or damaged ones; its text is the message for the user."""


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
    except Exception as error:  # a damaged zip file raises many kinds
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


def write_shape(path: str | Path, shape: tuple[int, ...]) -> None:
    """Tell the shape at the end of a file of torch.save, which says it otherwise in a pickle alone.

    The end of a zip file is a comment with its length before it; torch does not look at it.
    """
    comment = json.dumps({"shape": shape}).encode()
    with open(path, "r+b") as file:
        file.seek(-2, 2)
        file.write(len(comment).to_bytes(2, "little") + comment)


def _open_pt(path: Path) -> np.ndarray:
    with zipfile.ZipFile(path) as archive:
        shape = tuple(json.loads(archive.comment)["shape"])
        stored = next(member for member in archive.infolist() if member.filename.endswith("/data/0"))
    if stored.compress_type != zipfile.ZIP_STORED or stored.file_size != 4 * math.prod(shape):
        raise ValueError("its values are not as many as its shape says")
    return _mapped(path, values_offset(path), shape)


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
