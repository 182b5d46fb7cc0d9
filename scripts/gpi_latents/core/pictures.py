"""Pictures as the model sees them: opened as viewers show them, and brought to its size. Needs no torch."""

from __future__ import annotations

import io
import warnings
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from gpi_latents.core import colour, opening, samples
from gpi_latents.errors import ItemError
from gpi_latents.joblog import DOUBTFUL

# What brings a picture upright, by its EXIF orientation.
TURNS = dict(enumerate((0, 3, 1, 5, 4, 6, 2), start=2))


@dataclass
class Handling:
    """What was done to a picture.

    Attributes:
        done: what is said of every picture: its format, size and mode; resized, cropped, reflected.
        notes: all else that was done to it, and what is doubtful, which begins with `joblog.DOUBTFUL`.
    """

    done: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def doubts(self) -> list[str]:
        """The notes on what is doubtful."""
        return [note for note in self.notes if note.startswith(DOUBTFUL)]


def open_picture(image: str | Path | Image.Image) -> tuple[Image.Image, Handling]:
    """Open a picture, or take an open one, as viewers show it; docs/pictures.md says what is done to which kind.

    Returns:
        The picture in mode RGB, and what was done to it.

    Raises:
        ItemError: it is not a picture, or a damaged one, or of a kind that cannot be read as it is meant.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow warns of odd metadata, which we do not use
            opened = opening.load(image) if isinstance(image, Image.Image) else opening.open_file(image)
            notes = opened.notes
            alpha = samples.opacity(opened, notes)
            picture = _as_rgb(opened, notes)
            if alpha is not None:
                picture.putalpha(alpha)
                picture = Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture).convert("RGB")
            if opened.orientation != 1:
                picture = picture.transpose(Image.Transpose(TURNS[opened.orientation]))
    except ItemError as error:
        raise ItemError(f"the picture {str(image)!r} {error}") from None
    except Exception as error:  # Pillow's plugins raise many kinds for damaged files
        raise ItemError(f"the picture {str(image)!r} cannot be read: {error or type(error).__name__}") from error
    return picture, Handling([opened.kind], notes)


def _as_rgb(opened: opening.Opened, notes: list[str]) -> Image.Image:
    """A picture without its transparency, in sRGB."""
    profile, gamma = colour.described(opened, notes)
    values = samples.grey_values(opened)
    if values is None:
        picture = samples.colours(opened, notes)
        if picture.mode in ("LA", "La"):
            picture = picture.convert("LA").getchannel("L")
        more = not opened.has_own_range  # which is scaled already
        return colour.to_srgb(picture, profile, gamma, notes, lambda: samples.all_16_bits(opened) if more else None)
    shares = samples.scaled(values, opened, notes)
    if profile or gamma:
        return colour.to_srgb(Image.fromarray(np.rint(shares * 65535).astype(np.uint16)), profile, gamma, notes)
    return Image.fromarray(np.rint(shares * 255).astype(np.uint8)).convert("RGB")


def fit_picture(
    picture: Image.Image, size: tuple[int, int], resize: str, multiple: int = 8
) -> tuple[Image.Image, list[str]]:
    """Bring a picture to the size that the model sees.

    Args:
        picture: mode RGB.
        size: (height, width) in pixels.
        resize: `pad` (all of the picture, its borders reflected into the rest), `crop` (the centre), `stretch`, or
            `contain` (gpi_pack 0.2.1: only ever smaller, the longest side at most max(size), the other floored,
            then reflected to `multiple`, the odd pixel right and below).
        multiple: of the sides under `contain`, the model's latent factor.

    Returns:
        The picture, of exactly `size` unless `contain`, and notes on what was done.
    """
    height, width = size
    padded = size
    if resize == "crop":
        fitted = ImageOps.fit(picture, (width, height), Image.Resampling.LANCZOS)
        return fitted, [f"cropped and resized to {width} x {height}"]
    if resize == "pad":
        scale = min(width / picture.width, height / picture.height)
        width = min(width, max(1, round(picture.width * scale)))
        height = min(height, max(1, round(picture.height * scale)))
    elif resize == "contain":
        # The arithmetic is the reference's, so that rounding falls the same way.
        longest = max(size)
        width, height = picture.size
        if max(width, height) > longest:
            if width > height:
                width, height = longest, max(1, int(height * (longest / width)))
            else:
                width, height = max(1, int(width * (longest / height))), longest
        padded = (height + -height % multiple, width + -width % multiple)
    notes = []
    if (width, height) != picture.size:
        picture = picture.resize((width, height), Image.Resampling.LANCZOS)
        notes.append(f"resized to {width} x {height}")
    down, right = padded[0] - height, padded[1] - width
    if down or right:
        borders = ((down // 2, down - down // 2), (right // 2, right - right // 2))
        picture = Image.fromarray(np.pad(np.asarray(picture), (*borders, (0, 0)), mode="reflect"))
        notes.append(f"reflected to {padded[1]} x {padded[0]}")
    return picture, notes


def png_bytes(picture: Image.Image) -> bytes:
    """A picture as the bytes of a PNG file."""
    buffer = io.BytesIO()
    picture.save(buffer, format="PNG")
    return buffer.getvalue()
