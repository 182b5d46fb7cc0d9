"""Pictures that Pillow does not write: PNGs chunk by chunk, and colour profiles tag by tag."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import numpy as np

D50 = (0.9642, 1.0, 0.8249)
# The columns of the primaries in XYZ under D50, as Bruce Lindbloom lists them.
SRGB = ((0.4360747, 0.2225045, 0.0139322), (0.3850649, 0.7168786, 0.0971045), (0.1430804, 0.0606169, 0.7141733))
ADOBE_RGB = ((0.6097559, 0.3111242, 0.0194811), (0.2052401, 0.6256560, 0.0608902), (0.1492240, 0.0632197, 0.7448387))


def chunk(kind: bytes, data: bytes, is_sound: bool = True) -> bytes:
    """A chunk of a PNG, with a right or a wrong checksum."""
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data) ^ (not is_sound))


def iccp(profile: bytes) -> bytes:
    """The chunk of a PNG with a colour profile."""
    return chunk(b"iCCP", b"p\0\0" + zlib.compress(profile))


def write_png(path: Path, values: np.ndarray, bits: int = 8, chunks: bytes = b"", after: bytes = b"") -> Path:
    """A PNG of `bits` a value, with chunks before and after its pixels.

    Args:
        path: to write.
        values: (height, width) grey, or (height, width, 2, 3 or 4): with alpha, in colour, both.
        bits: 1, 2, 4, 8 or 16.
        chunks, after: as `chunk` makes them.
    """
    bands = 1 if values.ndim == 2 else values.shape[2]
    rows = values.reshape(len(values), -1)
    if bits < 8:
        each = (rows[..., None] >> np.arange(bits - 1, -1, -1)) & 1
        packed = np.packbits(each.reshape(len(rows), -1).astype(np.uint8), axis=1)
    else:
        packed = rows.astype(">u2" if bits == 16 else np.uint8)
    lines = b"".join(b"\0" + row.tobytes() for row in packed)
    header = struct.pack(">IIBBBBB", values.shape[1], values.shape[0], bits, {1: 0, 2: 4, 3: 2, 4: 6}[bands], 0, 0, 0)
    pixels = chunk(b"IDAT", zlib.compress(lines))
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunks + pixels + after + chunk(b"IEND", b""))
    return path


def grey_profile(gamma: float, name: str = "some grey") -> bytes:
    """An ICC profile of grey: light is the value to the power of gamma."""
    return _profile(b"GRAY", name, {b"kTRC": _curve(gamma)})


def rgb_profile(gamma: float, primaries: tuple = SRGB, name: str = "some RGB") -> bytes:
    """An ICC profile of three primaries."""
    columns = {b"rgb"[number : number + 1] + b"XYZ": _xyz(primaries[number]) for number in range(3)}
    return _profile(b"RGB ", name, columns | dict.fromkeys((b"rTRC", b"gTRC", b"bTRC"), _curve(gamma)))


def cmyk_profile(ink: tuple[float, float, float], name: str = "some press") -> bytes:
    """An ICC profile of a press whose paper is white, whose black is black, and whose other inks all print as `ink`.

    Args:
        ink: its colour in CIE Lab.
        name: of the profile.
    """
    corners = np.array([(100, 0, 0), ink, (0, 0, 0)])
    chosen = [2 if black else int(any(inks)) for *inks, black in np.ndindex(2, 2, 2, 2)]
    table = np.round(corners[chosen] * (2.55, 1, 1) + (0, 128, 128)).astype(np.uint8).tobytes()
    straight = bytes(range(256))
    unit = _fixed((1, 0, 0, 0, 1, 0, 0, 0, 1))
    lut = b"mft1\0\0\0\0\4\3\2\0" + unit + straight * 4 + table + straight * 3
    return _profile(b"CMYK", name, {b"A2B0": lut}, connection=b"Lab ", device=b"prtr")


def _fixed(values: tuple) -> bytes:
    return b"".join(struct.pack(">i", round(value * 65536)) for value in values)


def _xyz(values: tuple) -> bytes:
    return b"XYZ \0\0\0\0" + _fixed(values)


def _curve(gamma: float) -> bytes:
    return b"curv\0\0\0\0" + struct.pack(">IH", 1, round(gamma * 256))


def _profile(
    space: bytes, name: str, tags: dict[bytes, bytes], connection: bytes = b"XYZ ", device: bytes = b"mntr"
) -> bytes:
    text = name.encode() + b"\0"
    description = b"desc\0\0\0\0" + struct.pack(">I", len(text)) + text + bytes(78)
    tags = {b"desc": description, b"cprt": b"text\0\0\0\0-\0", b"wtpt": _xyz(D50)} | tags
    table, body = struct.pack(">I", len(tags)), b""
    for tag, value in tags.items():
        table += tag + struct.pack(">II", 132 + 12 * len(tags) + len(body), len(value))
        body += value + bytes(-len(value) % 4)
    size = struct.pack(">I", 132 + 12 * len(tags) + len(body))
    header = (
        size + bytes(4) + b"\2\x40\0\0" + device + space + connection + bytes(12) + b"acsp" + bytes(28) + _fixed(D50)
    )
    return header.ljust(128, b"\0") + table + body
