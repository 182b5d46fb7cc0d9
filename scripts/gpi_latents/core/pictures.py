"""Pictures as the model sees them: opened as viewers show them, and brought to its size. Needs no torch."""

from __future__ import annotations

import contextlib
import io
import os
import stat
import sys
import warnings
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image, ImageCms, ImageOps, UnidentifiedImageError

from gpi_latents.errors import ItemError

with contextlib.suppress(ImportError):  # a plugin that users can install
    import pillow_heif

    pillow_heif.register_heif_opener()


DOUBTFUL = "warning: "  # begins a note on a picture that may not be what its user takes it for


@dataclass
class Handling:
    """What was done to a picture.

    Attributes:
        done: what is said of every picture: its format, size and mode; resized, cropped, reflected.
        notes: all else that was done to it, and what is doubtful, which begins with `DOUBTFUL`.
    """

    done: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def doubts(self) -> list[str]:
        """The notes on what is doubtful."""
        return [note for note in self.notes if note.startswith(DOUBTFUL)]


def open_picture(image: str | Path | Image.Image) -> tuple[Image.Image, Handling]:
    """Open a picture, or take an open one, as viewers show it.

    The EXIF orientation and an embedded colour profile are applied, transparency is laid on white, 16 bits are scaled
    to 8. Of an animation or a file of many pages the first is taken.

    Returns:
        The picture in mode RGB, and what was done to it.

    Raises:
        ItemError: it is not a picture, or a damaged one.
    """
    done, notes = [], []
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow warns of odd metadata, which we do not use
            picture = image if isinstance(image, Image.Image) else _open(image)
            done.append(f"{picture.format or 'picture'} {picture.width} x {picture.height} {picture.mode}")
            if (count := getattr(picture, "n_frames", 1)) > 1:
                notes.append(f"the first of {count} {'pages' if picture.format == 'TIFF' else 'frames'}")
            picture.load()
            profile = picture.info.get("icc_profile")
            if picture.getexif().get(0x0112, 1) != 1:  # the tag Orientation
                picture = ImageOps.exif_transpose(picture)
                notes.append("turned upright")
            picture = _as_rgb(picture, profile, notes)
    except ItemError:
        raise
    except Exception as error:  # Pillow's plugins raise many kinds for damaged files
        raise ItemError(f"the picture {str(image)!r} cannot be read: {error or type(error).__name__}") from error
    return picture, Handling(done, notes)


def _open(path: str | Path) -> Image.Image:
    if not stat.S_ISREG(os.stat(path).st_mode):  # opening a pipe would wait for ever
        raise ItemError(f"the picture {str(path)!r} is not a file")
    try:
        return Image.open(path)
    except Image.DecompressionBombError:
        raise ItemError(
            f"the picture {str(path)!r} has more than {(Image.MAX_IMAGE_PIXELS or 0) // 500_000} million pixels: "
            "make it smaller"
        ) from None
    except UnidentifiedImageError:
        with open(path, "rb") as file:
            start = file.read(12)
        if not start:
            raise ItemError(f"the picture {str(path)!r} cannot be read: it is empty") from None
        if start[4:8] == b"ftyp":  # the container of HEIC and AVIF
            raise ItemError(
                f"the picture {str(path)!r} is in the format HEIC or AVIF, or a video: install the package pillow-heif "
                f"({sys.executable} -m pip install pillow-heif), or save it as PNG or JPEG"
            ) from None
        raise ItemError(
            f"the picture {str(path)!r} cannot be read: it is not a picture in a format that is supported, or damaged"
        ) from None


def _as_rgb(picture: Image.Image, profile: bytes | None, notes: list[str]) -> Image.Image:
    if picture.mode.startswith("I") or picture.mode == "F":
        values = np.asarray(picture, dtype=np.float64)
        full = 1.0 if picture.mode == "F" else 65535.0
        if not (values.min() >= 0 and values.max() <= full):
            raise ItemError(
                f"the picture has values from {values.min():g} to {values.max():g}, "
                f"where {'0 to 1' if full == 1 else '0 to 65535'} is expected"
            )
        notes.append("scaled to 8 bits")
        picture = Image.fromarray(np.rint(values * (255 / full)).astype(np.uint8))
    if picture.has_transparency_data:
        picture = picture.convert("RGBA")
        picture = Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture)
        notes.append("laid on white")
        picture = picture.convert("RGB")
    if profile and picture.mode in ("RGB", "CMYK"):
        try:
            source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
            name = ImageCms.getProfileDescription(source).strip()
            if "sRGB" not in name:
                target = ImageCms.createProfile("sRGB")
                picture = ImageCms.profileToProfile(picture, source, target, outputMode="RGB") or picture
                notes.append(f"colour profile {name!r} applied")
        except (ImageCms.PyCMSError, OSError) as error:
            notes.append(f"colour profile not usable ({error}), colours used as they are")
    return picture.convert("RGB")


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
