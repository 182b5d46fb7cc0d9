"""The file of the stacked tensor: .pt, .npy or .safetensors, written in parts and mapped from disk."""

from __future__ import annotations

import io
import json
import math
import os
import struct
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

import numpy as np

from gpi_latents.errors import TensorError, first_line


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
        raise TensorError(
            f"{path} is not a tensor of this workflow ({first_line(error)}): delete it and run again"
        ) from None
    return latents


def values_offset(path: str | Path) -> int:
    """Where the values begin in a file of torch.save, a zip file without compression."""
    with zipfile.ZipFile(path) as archive:
        values = next(member for member in archive.infolist() if member.filename.endswith("/data/0"))
    with open(path, "rb") as file:
        file.seek(values.header_offset + 26)  # in a local file header of 30 bytes: the lengths of name and extra field
        return values.header_offset + 30 + sum(struct.unpack("<HH", file.read(4)))


def set_comment(file: BinaryIO, comment: bytes) -> None:
    """Give a zip file without a comment one.

    By the module zipfile, which writes the end of the file again, it would have other bytes.
    """
    file.seek(-2, 2)  # the comment's length, and then the comment
    file.write(len(comment).to_bytes(2, "little") + comment)


def _open_pt(path: Path) -> np.ndarray:
    with zipfile.ZipFile(path) as archive:
        shape = tuple(json.loads(archive.comment)["shape"])
        stored = next(member for member in archive.infolist() if member.filename.endswith("/data/0"))
    if stored.compress_type != zipfile.ZIP_STORED or stored.file_size != 4 * math.prod(shape):
        raise ValueError("its shape does not fit the number of its values")
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


@contextmanager
def tensor_writer(path: Path, shape: tuple[int, ...], metadata: dict[str, str]) -> Iterator[BinaryIO]:
    """A file whose format is complete except for the tensor's values, open at their beginning.

    Raises:
        OSError: it cannot be written.
    """
    size = 4 * math.prod(shape)
    try:
        _make_anew(path)
        if path.suffix == ".pt":
            offset = _write_pt(path, shape, size)
        else:
            header = _npy_header(shape) if path.suffix == ".npy" else _safetensors_header(shape, size, metadata)
            path.write_bytes(header)
            offset = len(header)
        with path.open("r+b") as file:
            file.seek(offset)
            yield file
    except OSError as error:
        raise OSError(f"the tensor cannot be written to {path.parent}: {error.strerror or error}") from None


def _make_anew(path: Path) -> None:
    """Make an empty file. In a folder that a group shares, what is in its place could be a link to another's file."""
    path.unlink(missing_ok=True)
    path.touch(exist_ok=False)


def _write_pt(path: Path, shape: tuple[int, ...], size: int) -> int:
    """Let torch write the whole file except for the values, and return where these begin."""
    import torch  # here, since those who only read the tensor need no torch

    # The tensor that it is given is a sparse file, so that it takes neither memory nor disk.
    sparse = path.with_name(f"{path.name}.sparse")
    try:
        _make_anew(sparse)
        os.truncate(sparse, size)
        tensor = torch.from_file(str(sparse), shared=False, size=size // 4, dtype=torch.float32).reshape(shape)
        with torch.serialization.skip_data():
            torch.save(tensor, path)
    except RuntimeError as error:  # all that torch says is "iostream error"
        raise OSError(f"No space left on device? ({first_line(error)})") from None
    finally:
        with suppress(OSError):
            sparse.unlink()
    with path.open("r+b") as file:  # the shape is otherwise in a pickle alone
        set_comment(file, json.dumps({"shape": shape}).encode())
    return values_offset(path)


def _npy_header(shape: tuple[int, ...]) -> bytes:
    buffer = io.BytesIO()
    np.lib.format.write_array_header_1_0(buffer, {"descr": "<f4", "fortran_order": False, "shape": shape})
    return buffer.getvalue()


def _safetensors_header(shape: tuple[int, ...], size: int, metadata: dict[str, str]) -> bytes:
    # The library writes only tensors that are in memory. The format: the header's length in 8 bytes, JSON padded to
    # 8, the values (https://github.com/huggingface/safetensors, "Format").
    header = {"__metadata__": metadata, "latents": {"dtype": "F32", "shape": shape, "data_offsets": [0, size]}}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text
