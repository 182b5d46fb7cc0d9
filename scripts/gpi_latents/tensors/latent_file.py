"""The file of one item's latent: what torch.save writes, with the digest of the recipe as the zip file's comment."""

from __future__ import annotations

import hashlib
import io
import zlib
from pathlib import Path

import numpy as np
import torch

from gpi_latents.errors import InputError
from gpi_latents.tensors.tensor_file import values_offset


def latent_bytes(latent: torch.Tensor, recipe_digest: str = "") -> bytes:
    """A latent as the bytes of a `.pt` file that `torch.load(..., weights_only=True)` reads.

    Args:
        latent: as `Model.latent` returns it.
        recipe_digest: what made it, kept as the comment of the file, which is a zip file; torch does not look at it.
    """
    buffer = io.BytesIO()
    torch.save(latent.clone(), buffer)
    comment = recipe_digest.encode()
    return buffer.getvalue()[:-2] + len(comment).to_bytes(2, "little") + comment  # a zip file ends with the two


def read_latent(path: str | Path) -> torch.Tensor:
    """One item's latent, float32 (1, C, H, W).

    Raises:
        InputError: the file is no such latent.
    """
    try:
        latent = torch.load(path, map_location="cpu", weights_only=True)
        if latent.dtype != torch.float32 or latent.ndim != 4 or latent.shape[0] != 1:
            raise ValueError(f"it holds {latent.dtype} {tuple(latent.shape)}, not float32 (1, C, H, W)")
    except FileNotFoundError:
        raise InputError(f"{path} is missing: run snakemake without a target, which makes it again") from None
    except Exception as error:  # torch.load raises many kinds for damaged files
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise InputError(f"{path} is not a latent of this workflow ({reason}): delete it and run again") from None
    return latent


class Reader:
    """Reads latents of one shape as `read_latent` does, but without torch where a file is written like the first one.

    Of two files that torch.save wrote for tensors of one shape and memory layout, all is the same up to the values;
    behind these stands their CRC-32 (a zip file's data descriptor). What is not so is left to torch.
    """

    def __init__(self, first: str | Path):
        latent = read_latent(first)
        self.shape = tuple(latent.shape)
        self.strides = [4 * stride for stride in latent.stride()]
        content = Path(first).read_bytes()
        begin = values_offset(first)
        self.before = content[:begin]
        self.values = slice(begin, begin + 4 * latent.numel())
        self.length = len(content)

    def read(self, path: str | Path, recipe_digest: str = "") -> tuple[bytes, str] | None:
        """One latent.

        Args:
            path: of its file.
            recipe_digest: of the recipe that must have made it, where the file says so; empty where any will do.

        Returns:
            Its bytes, little-endian float32 in C order, and their SHA-256, hexadecimal; None if its shape differs.

        Raises:
            InputError: the file is no latent of this workflow, a damaged one, or one that another recipe made.
        """
        try:
            content = Path(path).read_bytes()
        except OSError:
            content = b""
        # The end of a zip file: a record of 22 bytes, then the comment.
        said = content[-64:].decode(errors="replace") if content[-86:-82] == b"PK\5\6" else ""
        if said and recipe_digest and said != recipe_digest:
            raise InputError(
                f"{path} was made with other settings than the sheet and the config now have: delete it and run again"
            )
        if len(content) == self.length and content.startswith(self.before):
            values = content[self.values]
            if not content.startswith(b"PK\7\10" + zlib.crc32(values).to_bytes(4, "little"), self.values.stop):
                raise InputError(f"{path} is damaged (its checksum is wrong): delete it and run again")
            latent = np.ndarray(self.shape, "<f4", values, strides=self.strides)
        else:
            latent = read_latent(path).numpy().astype("<f4", copy=False)
        if latent.shape != self.shape:
            return None
        ordered = latent.tobytes()
        return ordered, hashlib.sha256(ordered).hexdigest()
