"""The values of a picture: of any bits brought to 8, and transparency apart from colours."""

from __future__ import annotations

import io
import re
import sys

import numpy as np
from PIL import Image

from gpi_latents.core.opening import Opened, open_raster
from gpi_latents.errors import ItemError
from gpi_latents.joblog import DOUBTFUL

LITTLE_USED = f"{DOUBTFUL}less than a quarter of the range of its values is used: scale them before"
STRETCHED = f"{DOUBTFUL}its SMinSampleValue and SMaxSampleValue are its own least and greatest value: it is stretched"
NOT_AS_SAID = f"{DOUBTFUL}values outside of what its SMinSampleValue and SMaxSampleValue say, which are not used"
NOT_APPLIED = f"{DOUBTFUL}its SMinSampleValue and SMaxSampleValue cannot be applied to such a picture"


def grey_values(opened: Opened) -> np.ndarray | None:
    """The values of a grey picture of other than 8 unsigned bits, as its file holds them.

    Returns:
        (height, width), float64; None for another picture.
    """
    picture = opened.picture
    if picture.mode.startswith(("I", "F")):
        return np.asarray(picture, dtype=np.float64)
    if picture.mode == "L" and opened.is_signed:
        return np.asarray(picture).view(np.int8).astype(np.float64)
    return None


def scaled(values: np.ndarray, opened: Opened, notes: list[str]) -> np.ndarray:
    """Values as shares of the range from black to white.

    Args:
        values: as the file holds them.
        opened: what it says of them.
        notes: which are added to.

    Returns:
        float64, 0 to 1, of the same shape.

    Raises:
        ItemError: values out of range, or not finite.
    """
    least, most = values.min(), values.max()
    full = 1.0
    if opened.picture.mode != "F":  # whole numbers of 32 bits are those of 16, as many programs write them
        full = 2.0 ** (min(opened.bits, 16) - opened.is_signed * (opened.bits <= 16)) - 1
    low, high, is_said = 0.0, full, False
    if opened.high is not None and opened.high > (opened.low or 0.0):
        is_said = (opened.low or 0.0) <= least and most <= opened.high
        if is_said:
            low, high = opened.low or 0.0, opened.high
            if (least, most) == (low, high):
                notes.append(STRETCHED)
        else:
            notes.append(NOT_AS_SAID)
    if not (low <= least and most <= high):
        raise ItemError(f"has values from {least:g} to {most:g}, where {low:g} to {high:g} is expected")
    if not is_said and most - least < full / 4:
        notes.append(LITTLE_USED)
    notes.append(f"scaled from values of {low:g} to {high:g}")
    shares = (values - low) / (high - low)
    return 1 - shares if opened.white_is_zero else shares


def colours(opened: Opened, notes: list[str]) -> Image.Image:
    """A picture in colour or of 8 bits, in 8 bits.

    Of colours in 16 bits Pillow keeps the upper 8, less than one level too few; where the file gives them another range
    than 0 to 65535, all 16 are read.
    """
    picture = opened.picture
    if opened.bits != 16 or picture.mode not in ("L", "RGB", "RGBA"):
        return picture
    if opened.has_own_range and picture.mode == "RGB" and (values := all_16_bits(opened)) is not None:
        shares = scaled(values.astype(np.float64), opened, notes)
        return Image.fromarray(np.rint(shares * 255).astype(np.uint8))
    if opened.has_own_range:
        notes.append(NOT_APPLIED)
    upper = np.asarray(picture) if picture.mode == "L" else np.asarray(picture)[..., :3]
    if int(upper.max()) - int(upper.min()) < 64:
        notes.append(LITTLE_USED)
    notes.append("scaled from values of 0 to 65535")
    return picture


def all_16_bits(opened: Opened) -> np.ndarray | None:
    """The values of a picture in colours of 16 bits, of which Pillow gives the upper 8.

    Returns:
        (height, width, 3), uint16; None for other pictures, and where a picture is open without its file.
    """
    if opened.bits != 16 or opened.picture.mode not in ("RGB", "RGBA") or opened.path is None:
        return None
    native = {"little": "B", "big": "L"}[sys.byteorder]
    with open_raster(io.BytesIO(opened.sound) if opened.sound else opened.path) as again:
        # In the other order of bytes, Pillow gives the lower 8.
        tiles = []
        for tile in again.tile:
            rawmode, *rest = tile[3] if isinstance(tile[3], tuple) else (tile[3],)
            if not re.fullmatch("RGB[AX]?;16[BLN]", rawmode):
                return None
            swapped = rawmode[:-1] + {"B": "L", "L": "B", "N": native}[rawmode[-1]]
            tiles.append(tile._replace(args=(swapped, *rest) if rest else swapped))
        again.tile = tiles
        lower = np.asarray(again)
    return (np.asarray(opened.picture).astype(np.uint16) << 8 | lower)[..., :3]


def opacity(opened: Opened, notes: list[str]) -> Image.Image | None:
    """How opaque each pixel is, in mode L; None if all are wholly.

    Raises:
        ItemError: no pixel can be seen.
    """
    picture = opened.picture
    if not picture.has_transparency_data:
        return None
    key = picture.info.get("transparency")
    mask: np.ndarray | None = None
    if picture.mode.startswith("I") and isinstance(key, int):
        mask = np.asarray(picture) != key
    elif picture.mode == "RGB" and (values := all_16_bits(opened)) is not None:
        mask = (values != np.array(key)).any(axis=2)
    if mask is not None:
        alpha = Image.fromarray(mask.astype(np.uint8) * 255)
    else:
        if picture.mode == "L" and opened.bits < 8 and isinstance(key, int):
            picture.info["transparency"] = key * 255 // (2**opened.bits - 1)  # as Pillow has scaled the values
        straight = picture.convert("LA") if picture.mode == "La" else picture
        alpha = straight.convert("RGBA").getchannel("A")
    counts = alpha.histogram()
    pixels = alpha.width * alpha.height
    if counts[0] == pixels:
        raise ItemError("is wholly transparent: save it without transparency")
    if counts[255] == pixels:
        return None
    if counts[0] + counts[255] < pixels / 2:
        notes.append(
            f"{DOUBTFUL}most pixels are half transparent, as if its fourth band were no transparency (near infrared?)"
        )
    notes.append("laid on white")
    return alpha
