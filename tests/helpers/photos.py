"""Pictures for tests: photographs that come with packages, and a file that claims too much."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import matplotlib
import sklearn

from helpers.odd_pictures import chunk

PHOTOS = [
    Path(matplotlib.get_data_path()) / "sample_data/grace_hopper.jpg",
    Path(sklearn.__file__).parent / "datasets/images/china.jpg",
    Path(sklearn.__file__).parent / "datasets/images/flower.jpg",
]


def huge(kind: str) -> bytes:
    """A small file whose header claims 60,000 x 60,000 pixels."""
    if kind == "gif":
        return b"GIF89a" + struct.pack("<HHBBB", 60000, 60000, 0, 0, 0) + b"," + bytes(9) + b";"
    header = struct.pack(">IIBBBBB", 60000, 60000, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(1000)))
