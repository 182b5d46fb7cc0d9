"""The file of one item's latent: what torch.save writes, with its origin as the zip file's comment."""

from __future__ import annotations

import io
import zipfile
import zlib
from pathlib import Path

import numpy as np
import torch

from gpi_latents.errors import TensorError, first_line
from gpi_latents.origin import Origin, split_comment
from gpi_latents.tensors.tensor_file import set_comment, values_offset


def latent_bytes(latent: torch.Tensor, origin: Origin | None = None) -> bytes:
    """A latent as the bytes of a `.pt` file that `torch.load(..., weights_only=True)` reads.

    Args:
        latent: as `Model.latent` returns it.
        origin: what made it, kept as the file's comment, which torch does not read.
    """
    buffer = io.BytesIO()
    torch.save(latent.clone(), buffer)
    if origin is not None:
        set_comment(buffer, origin.comment())
    return buffer.getvalue()


def read_latent(path: str | Path) -> torch.Tensor:
    """One item's latent, float32 (1, C, H, W).

    Raises:
        TensorError: the file is no such latent.
    """
    try:
        latent = torch.load(path, map_location="cpu", weights_only=True)
        if latent.dtype != torch.float32 or latent.ndim != 4 or latent.shape[0] != 1:
            raise ValueError(f"it holds {latent.dtype} {tuple(latent.shape)}, not float32 (1, C, H, W)")
        if not zipfile.is_zipfile(path):
            raise ValueError("it has the format of torch before version 1.6")
        with zipfile.ZipFile(path) as archive:  # torch.load looks at no checksum
            if archive.testzip():
                raise ValueError("its checksum is wrong")
    except FileNotFoundError:
        raise TensorError(f"{path} is missing: run snakemake without a target, which makes it again") from None
    except Exception as error:  # torch.load raises many kinds for damaged files
        reason = first_line(error)
        raise TensorError(f"{path} is not a latent of this workflow ({reason}): delete it and run again") from None
    return latent


class Reader:
    """Reads latents as `read_latent` does, but without torch if a file is written like the first one.

    Files that torch.save wrote for tensors of one shape and memory layout are the same up to the values, which their
    CRC-32 follows (a zip file's data descriptor). Reading this with the module zipfile takes twice as long.
    """

    def __init__(self, first: str | Path):
        latent = read_latent(first)
        self.shape = tuple(latent.shape)
        self.strides = [4 * stride for stride in latent.stride()]
        content = Path(first).read_bytes()
        begin = values_offset(first)
        self.before = content[:begin]
        self.values = slice(begin, begin + 4 * latent.numel())
        self.length = split_comment(content)[0]

    def read(self, path: str | Path) -> tuple[np.ndarray, Origin]:
        """One latent, and what made it.

        Args:
            path: of its file.

        Returns:
            Little-endian float32 (1, C, H, W), in any memory layout, and its origin.

        Raises:
            TensorError: the file is no latent of this workflow, or is damaged.
        """
        try:
            content = Path(path).read_bytes()
        except OSError:
            content = b""  # read_latent says why
        length, origin = split_comment(content)
        if length != self.length or not content.startswith(self.before):
            return read_latent(path).numpy().astype("<f4", copy=False), origin
        values = content[self.values]
        if not content.startswith(b"PK\7\10" + zlib.crc32(values).to_bytes(4, "little"), self.values.stop):
            raise TensorError(f"{path} is damaged (its checksum is wrong): delete it and run again")
        return np.ndarray(self.shape, "<f4", values, strides=self.strides), origin
