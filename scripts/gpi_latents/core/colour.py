"""Colours brought to sRGB, by the profile or the gamma that comes with a picture."""

from __future__ import annotations

import io
from functools import lru_cache

import numpy as np
from PIL import Image, ImageCms

from gpi_latents.joblog import DOUBTFUL

TOLERANCE = 2  # levels of 255: what changes no colour by more is sRGB itself
SRGB_GAMMA = 0.45455  # as PNG writes it
SPACES = {"RGB": ("RGB", "L", "I;16"), "GRAY": ("L", "I;16"), "CMYK": ("CMYK",)}  # the modes that a profile may be for


def to_srgb(picture: Image.Image, profile: bytes | None, gamma: float | None, notes: list[str]) -> Image.Image:
    """Apply a picture's colour profile, or else its gamma.

    Args:
        picture: without transparency; of grey in mode L, or I;16 with white at 65535.
        profile: an ICC profile.
        gamma: of the chunk gAMA of a PNG: its values are light to the power of it.
        notes: which are added to.

    Returns:
        The picture in mode RGB; a picture that is in sRGB already keeps its values.
    """
    if picture.mode not in ("L", "I;16", "CMYK"):
        picture = picture.convert("L" if picture.mode == "1" else "RGB")
    if profile:
        try:
            shown, name = _apply(picture, profile)
            if name:
                notes.append(f"colour profile {name!r} applied")
            return shown
        except (ImageCms.PyCMSError, OSError, ValueError) as error:
            notes.append(f"{DOUBTFUL}colour profile not usable ({error}), colours used as they are")
    elif picture.mode == "CMYK":
        notes.append(f"{DOUBTFUL}CMYK without a colour profile: its colours are an estimate")
    elif gamma and abs(gamma - SRGB_GAMMA) > 0.01:
        notes.append(f"gamma {gamma:g} applied")
        curve = np.rint(255 * _srgb_of_light((np.arange(65536) / 65535) ** (1 / gamma))).astype(np.uint8)
        if picture.mode == "RGB":
            return picture.point(curve[::257].tolist() * 3)
        return _through(picture, curve[:, None].repeat(3, axis=1))
    return _plain(picture)


def _plain(picture: Image.Image) -> Image.Image:
    if picture.mode == "I;16":
        picture = Image.fromarray(np.rint(np.asarray(picture) / 257).astype(np.uint8))
    return picture.convert("RGB")


def _apply(picture: Image.Image, profile: bytes) -> tuple[Image.Image, str]:
    """A picture in sRGB, and the profile's name; no name if nothing had to be done."""
    space, name = _space_and_name(profile)
    if picture.mode not in SPACES.get(space, ()):
        raise ValueError(f"it is for {space or 'nothing known'}, the picture is {picture.mode}")
    if picture.mode in ("L", "I;16"):
        curve = _grey_curve(profile)
        return (_plain(picture), "") if curve is None else (_through(picture, curve), name)
    transform = _transform(profile, picture.mode)
    return (picture.convert("RGB"), "") if transform is None else (transform.apply(picture), name)


def _through(picture: Image.Image, curve: np.ndarray) -> Image.Image:
    """A grey picture's colours in a curve (65536, 3)."""
    values = np.asarray(picture)
    return Image.fromarray((curve[::257] if picture.mode == "L" else curve)[values])


def _srgb_of_light(light: np.ndarray) -> np.ndarray:
    """IEC 61966-2-1: the values, 0 to 1, of linear light, 0 to 1."""
    return np.where(light <= 0.0031308, 12.92 * light, 1.055 * light ** (1 / 2.4) - 0.055)


@lru_cache(maxsize=16)  # pictures of one study mostly have the same
def _space_and_name(profile: bytes) -> tuple[str, str]:
    opened = ImageCms.ImageCmsProfile(io.BytesIO(profile))
    return opened.profile.xcolor_space.strip(), ImageCms.getProfileDescription(opened).strip() or "without a name"


@lru_cache(maxsize=16)
def _grey_curve(profile: bytes) -> np.ndarray | None:
    """The colours (65536, 3) of all greys of 16 bits; None if they are those of sRGB."""
    source, target = ImageCms.ImageCmsProfile(io.BytesIO(profile)), ImageCms.createProfile("sRGB")
    if _space_and_name(profile)[0] == "GRAY":
        # Without the flag, LittleCMS replaces the curve by a few straight lines.
        exactly = ImageCms.Flags.NOOPTIMIZE
        transform = ImageCms.buildTransform(source, target, "I;16", "RGB", flags=exactly)
        curve = np.asarray(transform.apply(Image.fromarray(np.arange(65536, dtype=np.uint16)[None])))[0]
    else:
        greys = Image.fromarray(np.arange(256, dtype=np.uint8)[None]).convert("RGB")
        known = np.asarray(ImageCms.buildTransform(source, target, "RGB", "RGB").apply(greys))[0]
        bands = [np.interp(np.arange(65536) / 257, np.arange(256), band) for band in known.T]
        curve = np.rint(np.stack(bands, axis=1)).astype(np.uint8)
    change = np.abs(curve[::257].astype(int) - np.arange(256)[:, None]).max()
    return None if change <= TOLERANCE else curve


@lru_cache(maxsize=16)
def _transform(profile: bytes, mode: str) -> ImageCms.ImageCmsTransform | None:
    """What brings colours to sRGB; None if they are in it already."""
    source, target = ImageCms.ImageCmsProfile(io.BytesIO(profile)), ImageCms.createProfile("sRGB")
    transform = ImageCms.buildTransform(source, target, mode, "RGB")
    if mode == "RGB":
        steps = np.arange(0, 256, 15, dtype=np.uint8)
        grid = np.stack(np.meshgrid(steps, steps, steps), axis=-1).reshape(len(steps), -1, 3)
        shown = np.asarray(transform.apply(Image.fromarray(grid)))
        if np.abs(shown.astype(int) - grid).max() <= TOLERANCE:
            return None
    return transform
