"""Colours brought to sRGB, by the profile or the gamma that comes with a picture."""

from __future__ import annotations

import contextlib
import io
import re
from collections.abc import Callable
from functools import lru_cache

import numpy as np
from PIL import Image, ImageCms

from gpi_latents.core.opening import Opened
from gpi_latents.joblog import DOUBTFUL

TOLERANCE = 2  # levels of 255: what changes no colour by more is sRGB itself
SRGB_GAMMA = 0.45455  # as PNG writes it
SRGB_PRIMARIES = (0.3127, 0.329, 0.64, 0.33, 0.3, 0.6, 0.15, 0.06)  # white, red, green, blue; x and y of each
HDR = {16: "PQ", 18: "HLG"}  # transfer characteristics of ITU-T H.273
WIDE = {9: "BT.2020", 11: "DCI-P3", 12: "Display P3"}  # its colour primaries
SPACES = {"RGB": ("RGB", "L", "I;16"), "GRAY": ("L", "I;16"), "CMYK": ("CMYK",)}  # the modes that a profile may be for


def described(opened: Opened, notes: list[str]) -> tuple[bytes | None, float | None]:
    """What a picture's file says of its colours.

    Args:
        opened: the picture.
        notes: to which is added what the file says that is not applied.

    Returns:
        Its ICC profile, and the gamma that counts where there is none.
    """
    picture, info = opened.picture, opened.picture.info
    profile = info.get("icc_profile") or _jpeg2000_profile(opened)
    if picture.mode == "LAB":  # says itself which colours it means
        return None, None
    if profile:
        return profile, None
    if "icc_profile" in info:  # Pillow found it damaged
        notes.append(f"{DOUBTFUL}colour profile not usable (damaged), colours used as they are")
    primaries, transfer = _code_points(opened)
    if transfer in HDR:
        notes.append(f"{DOUBTFUL}HDR ({HDR[transfer]}), which is read as if it were sRGB")
    elif primaries in WIDE:
        notes.append(f"{DOUBTFUL}colours of {WIDE[primaries]}, which are read as if they were sRGB's")
    if "srgb" in info:
        return None, None
    given = info.get("chromaticity", SRGB_PRIMARIES)
    if any(abs(one - other) > 0.01 for one, other in zip(given, SRGB_PRIMARIES, strict=False)):
        notes.append(f"{DOUBTFUL}primary colours (cHRM) other than sRGB's, which are read as if they were")
    with contextlib.suppress(Exception):  # damaged metadata
        if picture.getexif().get_ifd(0xA005).get(1) == "R03":  # as cameras mark it
            notes.append(f"{DOUBTFUL}Adobe RGB by its EXIF, without a profile: read as if it were sRGB")
    return None, info.get("gamma")


def _jpeg2000_profile(opened: Opened) -> bytes | None:
    """The ICC profile in the box `colr` of a JPEG 2000, which Pillow leaves out."""
    if opened.picture.format != "JPEG2000" or opened.path is None:
        return None
    with open(opened.path, "rb") as file:
        start = file.read(2**22)
    if found := re.search(rb"(....)colr[\x02\x03]..", start, re.DOTALL):
        return start[found.end() : found.start() + int.from_bytes(found[1], "big")]
    return None


def _code_points(opened: Opened) -> tuple[int, int]:
    """Colour primaries and transfer characteristics as ITU-T H.273 counts them; 2, unspecified, where none are said."""
    if nclx := opened.picture.info.get("nclx_profile"):  # HEIC
        return nclx["color_primaries"], nclx["transfer_characteristics"]
    patterns = {"PNG": rb"\x00\x00\x00\x04cICP(.)(.)", "AVIF": rb"colrnclx(..)(..)"}
    if opened.path is None or opened.picture.format not in patterns:
        return 2, 2
    with open(opened.path, "rb") as file:
        found = re.search(patterns[opened.picture.format], file.read(2**16), re.DOTALL)
    return (int.from_bytes(found[1], "big"), int.from_bytes(found[2], "big")) if found else (2, 2)


def to_srgb(
    picture: Image.Image,
    profile: bytes | None,
    gamma: float | None,
    notes: list[str],
    all_bits: Callable[[], np.ndarray | None] = lambda: None,
) -> Image.Image:
    """Apply a picture's colour profile, or else its gamma.

    Args:
        picture: without transparency; of grey in mode L, or I;16 with white at 65535.
        profile: an ICC profile.
        gamma: of the chunk gAMA of a PNG: its values are light to the power of it.
        notes: which are added to.
        all_bits: gives the values (height, width, 3) of 16 bits of which `picture` has the upper 8; None if there are
            no more.

    Returns:
        The picture in mode RGB; a picture that is in sRGB already keeps its values.
    """
    if picture.mode not in ("L", "I;16", "CMYK"):
        picture = picture.convert("L" if picture.mode == "1" else "RGB")
    if profile:
        try:
            shown, name, transform = _apply(picture, profile)
        except (ImageCms.PyCMSError, OSError, ValueError) as error:
            notes.append(f"{DOUBTFUL}colour profile not usable ({error}), colours used as they are")
            return _plain(picture)
        if name:
            notes.append(f"colour profile {name!r} applied")
        if transform is None or (values := all_bits()) is None:
            return shown
        return _between(transform, values)
    if picture.mode == "CMYK":
        notes.append(f"{DOUBTFUL}CMYK without a colour profile: its colours are an estimate")
    elif gamma and abs(gamma - SRGB_GAMMA) > 0.01:
        notes.append(f"gamma {gamma:g} applied")
        curve = np.rint(255 * _srgb_of_light((np.arange(65536) / 65535) ** (1 / gamma))).astype(np.uint8)
        if picture.mode == "RGB":
            values = all_bits()
            return picture.point(curve[::257].tolist() * 3) if values is None else Image.fromarray(curve[values])
        return _through(picture, curve[:, None].repeat(3, axis=1))
    return _plain(picture)


def _plain(picture: Image.Image) -> Image.Image:
    if picture.mode == "I;16":
        picture = Image.fromarray(np.rint(np.asarray(picture) / 257).astype(np.uint8))
    return picture.convert("RGB")


def _apply(picture: Image.Image, profile: bytes) -> tuple[Image.Image, str, ImageCms.ImageCmsTransform | None]:
    """A picture in sRGB, the profile's name if anything had to be done, and what brings colours to sRGB."""
    space, name = _space_and_name(profile)
    if space == "GRAY" and picture.mode == "RGB":  # of a grey palette, or of 16 bits with transparency
        bands = picture.split()
        picture = bands[0] if bands[0] == bands[1] == bands[2] else picture
    if picture.mode not in SPACES.get(space, ()):
        raise ValueError(f"it is for {space or 'nothing known'}, the picture is {picture.mode}")
    if picture.mode in ("L", "I;16"):
        curve = _grey_curve(profile)
        return (_plain(picture), "", None) if curve is None else (_through(picture, curve), name, None)
    transform = _transform(profile, picture.mode)
    if transform is None:
        return picture.convert("RGB"), "", None
    return transform.apply(picture), name, transform


def _between(transform: ImageCms.ImageCmsTransform, values: np.ndarray) -> Image.Image:
    """Colours of 16 bits through a transform of 8: between its results, as the next step of each band changes them."""

    def shown(levels: np.ndarray) -> np.ndarray:
        return np.asarray(transform.apply(Image.fromarray(levels.astype(np.uint8)))).astype(np.float32)

    levels = np.minimum(values // 257, 254)
    rest = (values - levels * 257).astype(np.float32) / 257
    base = shown(levels)
    result = base.copy()
    for band in range(3):
        step = levels.copy()
        step[..., band] += 1
        result += (shown(step) - base) * rest[..., band, None]
    return Image.fromarray(np.rint(result.clip(0, 255)).astype(np.uint8))


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
