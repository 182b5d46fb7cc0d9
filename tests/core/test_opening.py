"""Files are read for their picture alone: previews are not taken for it, and damaged texts do not hinder."""

from __future__ import annotations

import errno
import os
import re
import struct
import zlib

import numpy as np
import pytest
import tifffile
from gpi_latents.core import samples
from gpi_latents.core.opening import FORMATS
from gpi_latents.core.pictures import open_picture
from gpi_latents.errors import ItemError
from helpers.odd_pictures import chunk, iccp, rgb_profile, write_png
from helpers.study import ROOT, draw
from PIL import EpsImagePlugin, Image

COLOURS = np.random.default_rng(0).integers(0, 256, (40, 24, 3), dtype=np.uint8)
XMP = b"""<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">
<rdf:Description xmlns:tiff="http://ns.adobe.com/tiff/1.0/" tiff:Orientation="6"/></rdf:RDF></x:xmpmeta>"""


def write_raw(path) -> None:
    """Laid out as cameras lay out raw photographs: a small preview, and the sensor's values in a page below it."""
    is_dng = path.suffix == ".dng" or "dng" in path.stem
    tags = [(50706, "B", 4, bytes([1, 4, 0, 0]))] if is_dng else []
    with tifffile.TiffWriter(path) as writer:
        kind = 0 if path.stem.startswith("full") else 1
        writer.write(COLOURS[::4, ::4], photometric="rgb", subifds=1, subfiletype=kind, extratags=tags)
        writer.write(np.zeros((40, 24), np.uint16), photometric="cfa", subfiletype=0)


@pytest.mark.fault("picture")
@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("p.dng", "is a raw photograph (DNG)"),
        ("p.nef", "is a raw photograph (NEF)"),
        ("full.ARW", "is a raw photograph (ARW)"),
        ("full dng renamed.tif", "is a raw photograph (DNG)"),
        ("renamed.tif", "begins with a reduced copy of the picture, as raw photographs do"),
    ],
)
def test_a_raw_photograph_is_not_taken_for_its_preview(tmp_path, name, message):
    write_raw(tmp_path / name)
    assert Image.open(tmp_path / name).size == (6, 10)  # what Pillow takes it for
    with pytest.raises(ItemError, match=re.escape(f"{name}' {message}: export it as PNG, TIFF or JPEG")):
        open_picture(tmp_path / name)


@pytest.mark.fault("picture")
@pytest.mark.parametrize(
    ("name", "start"),
    [
        ("p.raf", b"FUJIFILMCCD-RAW 0201"),
        ("p.cr3", b"\0\0\0\x18ftypcrx \0\0\0\1"),
        ("p.rw2", b"IIU\0\x18\0\0\0"),
        ("p.orf", b"IIRO\x08\0\0\0"),
    ],
)
def test_a_raw_photograph_that_pillow_does_not_know_is_refused_as_such(tmp_path, name, start):
    (tmp_path / name).write_bytes(start.ljust(1000, b"\0"))
    with pytest.raises(ItemError, match=rf"is a raw photograph \({name[2:].upper()}\): export it"):
        open_picture(tmp_path / name)


@pytest.mark.fault("stranger")
@pytest.mark.timeout(60)
@pytest.mark.parametrize("name", ["p.eps", "p.png"])
def test_a_picture_that_is_a_program_is_refused_and_not_run(tmp_path, monkeypatch, name):
    """Pillow would start Ghostscript, here one that leaves a trace and never ends."""
    (tmp_path / "gs").write_text(f"#!/bin/sh\ntouch {tmp_path}/started\n[ $1 = --version ] || sleep 1000\n")
    (tmp_path / "gs").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    monkeypatch.setattr(EpsImagePlugin, "gs_binary", None)
    program = "%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 64 64\n%%EndComments\n{} loop\n%%EOF\n"
    (tmp_path / name).write_text(program)
    assert Image.open(tmp_path / name).format == "EPS"
    with pytest.raises(ItemError, match=r"is a drawing .*, not a picture of pixels: export it as PNG"):
        open_picture(tmp_path / name)
    assert not (tmp_path / "started").exists()


def test_every_format_of_pixels_that_pillow_decodes_itself_is_accepted_and_documented():
    Image.init()
    handed_on = {"BUFR", "EPS", "FPX", "GRIB", "HDF5", "IPTC", "MIC", "MPEG", "WMF"}
    assert set(Image.OPEN) - handed_on <= FORMATS
    page = (ROOT / "docs/pictures.md").read_text(encoding="utf-8")
    accepted = page[page.index("## Accepted") : page.index("## Refused")].upper().replace("JPEG 2000", "JPEG2000")
    assert FORMATS - {"HEIF"} <= set(re.findall(r"\w+", accepted))


@pytest.mark.fault("picture")
def test_canons_raw_photographs_are_known_by_their_first_bytes(tmp_path):
    """A whole picture in the first page, with CR after the eight bytes of a TIFF."""
    tifffile.imwrite(tmp_path / "p.tif", COLOURS, photometric="rgb")
    data = bytearray((tmp_path / "p.tif").read_bytes())
    with tifffile.TiffFile(tmp_path / "p.tif") as tiff:
        start = tiff.pages[0].offset
    moved = bytes(data) + data[start:]  # tags may be anywhere
    offset = len(data)
    (tmp_path / "p.tif").write_bytes(moved[:4] + offset.to_bytes(4, "little") + b"CR" + moved[10:])
    with pytest.raises(ItemError, match=r"is a raw photograph \(CR2\)"):
        open_picture(tmp_path / "p.tif")


@pytest.mark.fault("picture")
def test_a_finished_picture_may_have_a_raw_photographs_name_and_smaller_pages_behind_it(tmp_path):
    Image.open(draw(tmp_path / "p.png")).save(tmp_path / "p.nef", format="JPEG")
    assert open_picture(tmp_path / "p.nef")[0].size == Image.open(tmp_path / "p.png").size
    with tifffile.TiffWriter(tmp_path / "pyramid.tif") as writer:
        writer.write(COLOURS, photometric="rgb")
        writer.write(COLOURS[::2, ::2], photometric="rgb", subfiletype=1)
    shown, handling = open_picture(tmp_path / "pyramid.tif")
    assert np.array_equal(np.asarray(shown), COLOURS)
    assert handling.notes == ["the first of 2 pages"]


@pytest.mark.fault("picture")
@pytest.mark.parametrize("place", ["before", "after"])
@pytest.mark.parametrize(
    "text",
    [
        chunk(b"tEXt", b"Comment\0of a broken copy", is_sound=False),
        chunk(b"zTXt", b"Comment\0\0" + zlib.compress(bytes(3_000_000))),
        chunk(b"iTXt", b"Comment\0\1\0\0\0" + zlib.compress(bytes(3_000_000))),
        chunk(b"zTXt", b"Comment\0\7" + zlib.compress(b"of an unknown compression")),
        chunk(b"pHYs", b"12"),
        chunk(b"tIME", b"1234567", is_sound=False),
        b"".join(chunk(b"tEXt", b"Comment\0" + bytes([65 + number]) * 17_000_000) for number in range(4)),
    ],
    ids=["damaged", "large", "large unicode", "unknown", "short", "damaged time", "many"],
)
def test_a_png_is_read_whatever_its_texts_are(tmp_path, text, place):
    write_png(tmp_path / "p.png", COLOURS, **{"chunks" if place == "before" else "after": text})
    shown, handling = open_picture(tmp_path / "p.png")
    assert np.array_equal(np.asarray(shown), COLOURS)
    assert handling.notes == []


@pytest.mark.fault("picture")
def test_all_16_bits_of_a_png_are_read_whatever_its_texts_are(tmp_path):
    text = chunk(b"zTXt", b"Comment\0\0" + zlib.compress(bytes(3_000_000)))
    gamma = chunk(b"gAMA", struct.pack(">I", 100_000))
    values = np.random.default_rng(0).integers(0, 65536, (40, 24, 3))
    for colours in (gamma, iccp(rgb_profile(1.8))):
        plain, _ = open_picture(write_png(tmp_path / "p.png", values, 16, colours))
        shown, handling = open_picture(write_png(tmp_path / "q.png", values, 16, colours + text))
        assert np.array_equal(np.asarray(shown), np.asarray(plain))
        assert not handling.doubts
        assert any("applied" in note for note in handling.notes)


@pytest.mark.fault("disk")
def test_a_disk_that_fails_on_a_second_read_leaves_no_colour_profile_out(tmp_path, monkeypatch):
    path = write_png(tmp_path / "p.png", COLOURS.astype(int) * 257, 16, iccp(rgb_profile(1.8)))

    def fails(file):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(samples, "open_raster", fails)
    with pytest.raises(ItemError, match="Input/output error") as caught:
        open_picture(path)
    assert isinstance(caught.value.__cause__, OSError)


@pytest.mark.fault("picture")
def test_a_png_with_a_damaged_text_is_still_turned_and_refused_where_its_pixels_are_damaged(tmp_path):
    damaged = chunk(b"tEXt", b"Comment\0of a broken copy", is_sound=False)
    xmp = chunk(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + XMP)
    write_png(tmp_path / "p.png", COLOURS, chunks=xmp + damaged)
    shown, handling = open_picture(tmp_path / "p.png")
    assert np.array_equal(np.asarray(shown), np.rot90(COLOURS, -1))
    assert handling.notes == ["turned upright"]
    whole = write_png(tmp_path / "p.png", COLOURS, chunks=damaged).read_bytes()
    (tmp_path / "p.png").write_bytes(whole[:-200])
    with pytest.raises(ItemError, match=r"p\.png' cannot be read"):
        open_picture(tmp_path / "p.png")


@pytest.mark.fault("picture")
@pytest.mark.parametrize("suffix", ["png", "jpg", "tiff", "webp"])
@pytest.mark.parametrize("orientation", [0, 1, 6, 9])
def test_only_what_was_turned_is_noted_as_turned(tmp_path, suffix, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(COLOURS).save(tmp_path / f"p.{suffix}", exif=exif)
    shown, handling = open_picture(tmp_path / f"p.{suffix}")
    assert shown.size == ((40, 24) if orientation == 6 else (24, 40))
    assert handling.notes == (["turned upright"] if orientation == 6 else [])


@pytest.mark.fault("picture")
@pytest.mark.parametrize("suffix", ["jpg", "png", "webp"])
def test_a_picture_with_damaged_exif_is_read_as_it_lies(tmp_path, suffix):
    Image.fromarray(COLOURS).save(tmp_path / f"p.{suffix}", exif=b"Exif\0\0no tags at all")
    assert open_picture(tmp_path / f"p.{suffix}")[0].size == (24, 40)


@pytest.mark.fault("picture")
def test_the_largest_of_an_icons_pictures_is_taken(tmp_path):
    Image.fromarray(COLOURS[:24]).save(tmp_path / "p.ico", sizes=[(12, 12), (24, 24)])
    shown, handling = open_picture(tmp_path / "p.ico")
    assert np.array_equal(np.asarray(shown), COLOURS[:24])
    assert handling.notes == ["the largest of 2 sizes"]
