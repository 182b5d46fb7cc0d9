"""The files of pictures: opened and loaded, or refused by name, with what they say of their values."""

from __future__ import annotations

import contextlib
import io
import os
import re
import stat
import struct
import sys
import zlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

from PIL import Image, ImageFile, ImagePalette, TiffImagePlugin, UnidentifiedImageError

from gpi_latents.errors import ItemError
from gpi_latents.joblog import DOUBTFUL

with contextlib.suppress(ImportError):  # a plugin that users can install
    import pillow_heif

    pillow_heif.register_heif_opener()

# The formats of pixels that are decoded in this process. Pillow hands others on: PostScript is a program, which
# Ghostscript would run, perhaps for ever.
FORMATS = frozenset(
    (
        *("AVIF", "BLP", "BMP", "CUR", "DCX", "DDS", "DIB", "FITS", "FLI", "FTEX", "GBR", "GIF", "HEIF", "ICNS", "ICO"),
        *("IM", "IMT", "JPEG", "JPEG2000", "MCIDAS", "MPO", "MSP", "PCD", "PCX", "PIXAR", "PNG", "PPM", "PSD", "QOI"),
        *("SGI", "SPIDER", "SUN", "TGA", "TIFF", "WEBP", "XBM", "XPM", "XVTHUMB"),
    )
)
# How drawings begin: PostScript (also with a preview), PDF, WMF, SVG.
DRAWINGS = (b"%!PS", b"\xc5\xd0\xd3\xc6", b"%PDF", b"\xd7\xcd\xc6\x9a", b"<svg", b"<?xml")
# Of the files that cameras write.
RAW_SUFFIXES = frozenset(
    f".{name}"
    for name in (
        *("3fr", "arw", "cr2", "cr3", "crw", "dcr", "dng", "erf", "iiq", "kdc", "mef", "mos", "mrw", "nef", "nrw"),
        *("orf", "pef", "raf", "raw", "rw2", "rwl", "sr2", "srf", "srw", "x3f"),
    )
)
EXPORT = "export it as PNG, TIFF or JPEG with the program that you view it with"
ORIENTATION = 0x0112
BITS, PHOTOMETRIC, SAMPLES, PLANAR, COLORMAP, SAMPLE_FORMAT = 258, 262, 277, 284, 320, 339  # tags of TIFF
NEW_SUBFILE_TYPE, SUBFILE_TYPE, SMIN, SMAX, DNG_VERSION = 254, 255, 340, 341, 50706
SIGNED = 2  # a value of SAMPLE_FORMAT
PNG = b"\x89PNG\r\n\x1a\n"
# The chunks of a PNG beside the critical ones that its colours depend on.
PNG_COLOURS = (b"tRNS", b"gAMA", b"cHRM", b"sRGB", b"iCCP", b"cICP", b"eXIf", b"acTL", b"fcTL", b"fdAT")


@dataclass
class Opened:
    """A picture as its file holds it.

    Attributes:
        picture: loaded, of any mode; not turned yet, unless Pillow did.
        kind: its format, size and mode, as text.
        path: None if the picture was open already.
        sound: the file's bytes without what Pillow could not read; None if it could read all.
        orientation: how it is to be turned yet, 1 to 8 as EXIF counts; 1 is upright.
        bits: of one value in the file.
        is_signed: whether its whole numbers may be negative.
        white_is_zero: whether they count from white to black, which Pillow has not undone.
        low, high: the values of black and white, where the file says so.
        notes: on its frames, its orientation and its bands.
    """

    picture: Image.Image
    kind: str
    path: str | Path | None
    sound: bytes | None = None
    orientation: int = 1
    bits: int = 8
    is_signed: bool = False
    white_is_zero: bool = False
    low: float | None = None
    high: float | None = None
    notes: list[str] = field(default_factory=list)

    @property
    def has_own_range(self) -> bool:
        """Whether the file says another range of its values than that of 16 bits."""
        return self.high is not None and (self.low, self.high) != (0, 65535)


def open_file(path: str | Path) -> Opened:
    """Open and load a picture's file.

    Raises:
        ItemError: it is not a picture, a raw photograph, or not of a kind that can be read rightly.
        Exception: Pillow's plugins raise many kinds for damaged files.
    """
    if not stat.S_ISREG(os.stat(path).st_mode):  # opening a pipe would wait for ever
        raise ItemError("is not a file")
    try:
        try:
            return load(open_raster(path), path)
        except (ItemError, Image.DecompressionBombError):
            raise
        except Exception:  # perhaps of texts alone, which Pillow reads too
            if (sound := _png_without_texts(path)) is None:
                raise
            opened = load(open_raster(io.BytesIO(sound)), path)
            opened.sound = sound
            return opened
    except UnidentifiedImageError:
        _refuse_unknown(path)
    except Image.DecompressionBombError:
        most = (Image.MAX_IMAGE_PIXELS or 0) // 500_000
        raise ItemError(f"has more than {most} million pixels: make it smaller") from None


def open_raster(file: str | Path | io.BytesIO) -> ImageFile.ImageFile:
    """Open a picture in one of `FORMATS`, as `PIL.Image.open` does."""
    Image.init()
    return Image.open(file, formats=[name for name in Image.ID if name in FORMATS])


def load(picture: Image.Image, path: str | Path | None = None) -> Opened:
    """Load an open picture, and look up what it and its file say.

    Raises:
        ItemError: as `open_file`.
    """
    kind = f"{picture.format or 'picture'} {picture.width} x {picture.height} {picture.mode}"
    opened = Opened(picture, kind, path)
    if (count := getattr(picture, "n_frames", 1)) > 1:
        opened.notes.append(f"the first of {count} {'pages' if picture.format == 'TIFF' else 'frames'}")
    if len(sizes := picture.info.get("sizes", ())) > 1:  # of icons
        opened.notes.append(f"the largest of {len(sizes)} sizes")
    opened.bits = 16 if picture.mode.startswith("I") else 8
    if found := re.match(r"(?!BGR).*;(\d+)", _rawmode(picture)):  # BGR;16 is 16 bits for all three
        opened.bits = int(found[1])
    before = None
    if tags := getattr(picture, "tag_v2", {}):
        before = tags.get(ORIENTATION)  # Pillow turns TIFFs while it loads them
        _refuse_raw(tags, path)
        _look_up(opened, tags)
    picture.load()
    opened.orientation = _orientation(picture)
    if opened.orientation != 1 or before in range(2, 9):
        opened.notes.append("turned upright")
    return opened


def _orientation(picture: Image.Image) -> int:
    try:
        value = picture.getexif().get(ORIENTATION, 1)
    except Exception:  # damaged metadata
        return 1
    return value if value in range(1, 9) else 1


def _rawmode(picture: Any) -> str:
    """How Pillow is about to unpack the values, such as `RGB;16B`; empty where it does not say so."""
    args = picture.tile[0][3] if getattr(picture, "tile", None) else ""
    first = args[0] if isinstance(args, tuple) and args else args
    return first if isinstance(first, str) else ""


def _refuse_raw(tags: Any, path: str | Path | None) -> None:
    """Refuse a TIFF whose first picture is not the photograph but a preview of it."""
    suffix, start = Path(path or "").suffix.lower(), b""
    if path:
        with open(path, "rb") as file:
            start = file.read(10)
    if DNG_VERSION in tags or suffix in RAW_SUFFIXES or start[8:] == b"CR":
        name = suffix[1:].upper() if suffix in RAW_SUFFIXES else "DNG" if DNG_VERSION in tags else "CR2"
        raise ItemError(f"is a raw photograph ({name}): {EXPORT}")
    kind = tags.get(NEW_SUBFILE_TYPE)
    if (isinstance(kind, int) and kind & 1) or tags.get(SUBFILE_TYPE) == 2:
        raise ItemError(f"begins with a reduced copy of the picture, as raw photographs do: {EXPORT}")


def _look_up(opened: Opened, tags: Any) -> None:
    """What the tags of a TIFF say."""
    picture: Any = opened.picture
    bits, codec = max(tags.get(BITS, (1,))), picture.tile[0][0] if picture.tile else ""
    is_inverted = tags.get(PHOTOMETRIC) == 0
    if tags.get(PLANAR) == 2 and codec == "raw":
        # Pillow unpacks each plane as plain values of 8 bits, or of 32 in this machine's order.
        is_plain = (bits == 32 and tags.prefix == b"II") or (bits == 8 and not is_inverted)
        if not is_plain:
            raise ItemError(f"is a TIFF of {bits} bits in separate planes, which cannot be read: {EXPORT}")
    if codec == "libtiff" and _rawmode(picture).endswith(("BF", "BS")):
        # libtiff has put the bytes into this machine's order already, which Pillow knows of fewer kinds.
        picture.tile = [
            tile._replace(args=(re.sub("B(.)$", r"N\1", tile[3][0]), *tile[3][1:])) for tile in picture.tile
        ]
    if picture.mode in ("P", "PA") and max(tags[COLORMAP]) < 256:  # of 8 bits, where 16 are due
        picture.palette = ImagePalette.raw("RGB;L", bytes(tags[COLORMAP]))
    opened.bits = bits
    opened.is_signed = picture.mode in ("I", "L") and SIGNED in tags.get(SAMPLE_FORMAT, ())
    opened.white_is_zero = is_inverted and picture.mode.startswith(("I", "F"))
    if bits > 8 and SMAX in tags:
        low, high = (value[0] if isinstance(value, tuple) else value for value in (tags.get(SMIN, 0), tags[SMAX]))
        with contextlib.suppress(TypeError, ValueError):  # no numbers
            opened.low, opened.high = float(low), float(high)
    used, bands = len(picture.getbands()), tags.get(SAMPLES, 1)
    if bands > used:
        doubtful = DOUBTFUL if used == 1 and bands > 2 else ""
        opened.notes.append(f"{doubtful}of {bands} bands only the first {'is' if used == 1 else f'{used} are'} used")


def _refuse_unknown(path: str | Path) -> NoReturn:
    """Why Pillow knows no picture in a file, for `open_file`."""
    with open(path, "rb") as file:
        start = file.read(12)
        suffix = Path(path).suffix.lower()
        if not start:
            raise ItemError("cannot be read: it is empty")
        if suffix in RAW_SUFFIXES:
            raise ItemError(f"is a raw photograph ({suffix[1:].upper()}): {EXPORT}")
        if start.startswith(DRAWINGS):
            raise ItemError(f"is a drawing (PostScript, PDF, WMF, SVG), not a picture of pixels: {EXPORT}")
        if start[4:8] == b"ftyp":  # the container of HEIC and AVIF
            raise ItemError(
                "is in the format HEIC or AVIF, or a video: install the package pillow-heif "
                f"({sys.executable} -m pip install pillow-heif), or save it as PNG or JPEG"
            )
        if start[:4] in (b"II*\0", b"MM\0*"):
            file.seek(0)
            tags: dict[int, Any] = {}
            with contextlib.suppress(Exception):
                directory = TiffImagePlugin.ImageFileDirectory_v2(file.read(8))
                file.seek(directory.next)
                directory.load(file)
                tags = dict(directory)
            if BITS in tags:
                raise ItemError(
                    f"cannot be read: it is damaged, or a TIFF of a kind that is not supported (bits of its bands "
                    f"{tags[BITS]}, sample format {tags.get(SAMPLE_FORMAT, (1,))}, photometric interpretation "
                    f"{tags.get(PHOTOMETRIC, 'missing')}): save it as PNG, or as TIFF of 8 bits in RGB or grey"
                )
    raise ItemError("cannot be read: it is not a picture in a format that is supported, or damaged")


def _png_without_texts(path: str | Path) -> bytes | None:
    """A PNG's bytes without damaged and large texts, and without other chunks that its colours do not depend on.

    None if it is no PNG, or has no such chunk.
    """
    with open(path, "rb") as file:
        if file.read(len(PNG)) != PNG:
            return None
        data = PNG + file.read()
    kept, position = [PNG], len(PNG)
    while position + 12 <= len(data):
        (length,) = struct.unpack_from(">I", data, position)
        kind, chunk = data[position + 4 : position + 8], data[position : position + 12 + length]
        if not kind.isalpha() or len(chunk) < length + 12:  # more is broken than a text
            return None
        if kind[:1].isupper() or kind in PNG_COLOURS or _is_short_sound_xmp(kind, chunk):
            kept.append(chunk)
        position += len(chunk)
    kept.append(data[position:])
    sound = b"".join(kept)
    return sound if len(sound) < len(data) else None


def _is_short_sound_xmp(kind: bytes, chunk: bytes) -> bool:
    """Whether it is a text from which Pillow may take the orientation."""
    is_xmp = kind == b"iTXt" and chunk[8:].startswith(b"XML:com.adobe.xmp\0\0")
    return is_xmp and len(chunk) < 2**20 and chunk[-4:] == struct.pack(">I", zlib.crc32(chunk[4:-4]))
