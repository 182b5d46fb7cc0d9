"""Colours come out in sRGB, by what a profile does and not by its name.

The values that are right are those of IEC 61966-2-1 and of the profiles' own formulas.
"""

from __future__ import annotations

import io
import struct

import numpy as np
import pytest
import tifffile
from gpi_latents.core.pictures import open_picture
from helpers.odd_pictures import ADOBE_RGB, SRGB, chunk, cmyk_profile, grey_profile, iccp, rgb_profile, write_png
from PIL import Image, ImageCms
from skimage.color import lab2rgb

RAMP = np.arange(256, dtype=np.uint8)[None].repeat(4, 0)
RAMP_16 = np.arange(0, 65536, 64, dtype=np.uint16)[None].repeat(4, 0)
CUBE = np.stack(np.meshgrid(*[np.arange(0, 256, 17, dtype=np.uint8)] * 3), axis=-1).reshape(16, -1, 3)


def srgb(light: np.ndarray) -> np.ndarray:
    """The values, 0 to 255, of linear light, 0 to 1, by IEC 61966-2-1."""
    light = np.clip(light, 0, 1)
    return 255 * np.where(light <= 0.0031308, 12.92 * light, 1.055 * light ** (1 / 2.4) - 0.055)


def errors(path, expected: np.ndarray) -> np.ndarray:
    """How far each value of a picture is from what is right, in levels of 255."""
    shown = np.asarray(open_picture(path)[0]).astype(float)
    assert shown.shape[:2] == expected.shape[:2]
    return np.abs(shown - expected)


def notes(path) -> list[str]:
    return open_picture(path)[1].notes


@pytest.mark.fault("picture")
@pytest.mark.parametrize("name", ["linear", "sRGB linear", "sRGB IEC61966-2.1"])
@pytest.mark.parametrize(("gamma", "primaries"), [(1.0, SRGB), (2.2, SRGB), (2.199, ADOBE_RGB)])
def test_a_profile_is_applied_whatever_its_name_is(tmp_path, name, gamma, primaries):
    Image.fromarray(CUBE).save(tmp_path / "p.png", icc_profile=rgb_profile(gamma, primaries, name))
    light = (CUBE / 255) ** gamma @ np.array(primaries) @ np.linalg.inv(SRGB)
    found = errors(tmp_path / "p.png", srgb(light))
    assert found.mean() < 0.5
    assert f"colour profile {name!r} applied" in notes(tmp_path / "p.png")


@pytest.mark.fault("picture")
@pytest.mark.parametrize("name", ["sRGB built-in", "of another name"])
def test_colours_that_are_in_srgb_keep_every_bit_whatever_the_profiles_name_is(tmp_path, name):
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    replaced = name.ljust(13)[:13].encode("utf-16-be")
    profile = profile.replace("sRGB built-in".encode("utf-16-be"), replaced)
    assert ImageCms.getProfileDescription(ImageCms.ImageCmsProfile(io.BytesIO(profile))).strip() == name[:13].strip()
    Image.fromarray(CUBE).save(tmp_path / "p.png", icc_profile=profile)
    assert np.array_equal(np.asarray(open_picture(tmp_path / "p.png")[0]), CUBE)
    assert notes(tmp_path / "p.png") == []


@pytest.mark.fault("picture")
@pytest.mark.parametrize("gamma", [1.0, 1.8, 2.2])
@pytest.mark.parametrize("suffix", ["png", "jpg", "tiff"])
def test_grey_pictures_get_their_profile(tmp_path, gamma, suffix):
    path = tmp_path / f"p.{suffix}"
    Image.fromarray(RAMP).resize((1024, 32), 0).save(
        path, icc_profile=grey_profile(gamma), **{"quality": 100} if suffix == "jpg" else {}
    )
    values = np.asarray(Image.open(path))[..., None] / 255
    found = errors(path, srgb(values**gamma))
    assert found.mean() < 0.3
    assert found.max() < 0.6


@pytest.mark.fault("picture")
@pytest.mark.parametrize("gamma", [1.0, 2.2])
@pytest.mark.parametrize("suffix", ["png", "tiff"])
def test_grey_of_16_bits_keeps_them_until_its_profile_is_applied(tmp_path, gamma, suffix):
    """In 8 bits, the darkest step of linear light would be 13 levels of sRGB."""
    path = tmp_path / f"p.{suffix}"
    Image.fromarray(RAMP_16).save(path, icc_profile=grey_profile(gamma))
    found = errors(path, srgb((RAMP_16[..., None] / 65535) ** gamma))
    assert found.mean() < 0.3
    assert found.max() < 0.6


@pytest.mark.fault("picture")
@pytest.mark.parametrize("suffix", ["png", "tiff"])
def test_colours_of_16_bits_keep_them_until_their_profile_or_gamma_is_applied(tmp_path, suffix):
    """In 8 bits, the darkest step of linear light would be 13 levels of sRGB, and the error 1.1 on average."""
    light = np.random.default_rng(0).integers(0, 65536, (64, 64, 4)).astype(np.uint16)
    light[..., :3] = light[..., :3].astype(float) ** 2 / 65536  # more of the dark
    light[..., 3] = 65535
    expected = srgb(light[..., :3] / 65535)
    path = tmp_path / f"p.{suffix}"
    for bands in (3, 4):
        if suffix == "png":
            write_png(path, light[..., :bands], 16, iccp(rgb_profile(1.0)))
        else:
            tifffile.imwrite(path, light[..., :bands], photometric="rgb", iccprofile=rgb_profile(1.0))
        assert errors(path, expected).mean() < 0.4
        assert errors(path, expected).max() < 4
    write_png(tmp_path / "gamma.png", light[..., :3], 16, chunk(b"gAMA", struct.pack(">I", 100_000)))
    assert errors(tmp_path / "gamma.png", expected).max() < 0.6


@pytest.mark.fault("picture")
def test_a_profile_is_applied_to_values_of_the_range_or_the_opacity_that_the_file_says(tmp_path):
    """White at 4095; and colours multiplied by their opacity, of half of it here."""
    light = np.linspace(0.05, 1, 256)[None, :, None].repeat(8, 0).repeat(3, 2)
    values = (light * 4095).round().astype(np.uint16)
    tags = [(340, "H", 3, (0, 0, 0)), (341, "H", 3, (4095, 4095, 4095))]
    path, profile = tmp_path / "range.tiff", rgb_profile(1.0)
    tifffile.imwrite(path, values, photometric="rgb", iccprofile=profile, extratags=tags)
    assert errors(path, srgb(light)).mean() < 1
    half = np.concatenate([light * 32768, np.full_like(light[..., :1], 32768)], axis=-1).astype(np.uint16)
    path = tmp_path / "opacity.tiff"
    tifffile.imwrite(path, half, photometric="rgb", extrasamples=["assocalpha"], iccprofile=profile)
    assert errors(path, (srgb(light) + 255) / 2).mean() < 1


@pytest.mark.fault("picture")
def test_colours_of_16_bits_in_srgb_are_off_by_less_than_a_level(tmp_path):
    write_png(tmp_path / "p.png", CUBE.astype(int) * 257, 16)
    assert errors(tmp_path / "p.png", CUBE).max() == 0


@pytest.mark.fault("picture")
def test_a_grey_picture_may_have_a_profile_of_rgb(tmp_path):
    Image.fromarray(RAMP).save(tmp_path / "8.png", icc_profile=rgb_profile(1.8))
    Image.fromarray(RAMP_16).save(tmp_path / "16.png", icc_profile=rgb_profile(1.8))
    assert errors(tmp_path / "8.png", srgb((RAMP[..., None] / 255) ** 1.8)).mean() < 0.5
    assert errors(tmp_path / "16.png", srgb((RAMP_16[..., None] / 65535) ** 1.8)).mean() < 0.5


@pytest.mark.fault("picture")
def test_palettes_get_their_profile(tmp_path):
    picture = Image.fromarray(CUBE).quantize(64)
    picture.save(tmp_path / "p.png", icc_profile=rgb_profile(1.0))
    light = np.asarray(picture.convert("RGB")) / 255
    assert errors(tmp_path / "p.png", srgb(light)).mean() < 0.5


@pytest.mark.fault("picture")
def test_a_profile_is_applied_to_the_colours_before_they_are_laid_on_white(tmp_path):
    """Half transparent black is a middle grey of 127 or 128, whatever the profile."""
    write_png(tmp_path / "p.png", np.array([[[0, 0, 0, 128], [128, 128, 128, 255]]]), chunks=iccp(rgb_profile(1.0)))
    shown = np.asarray(open_picture(tmp_path / "p.png")[0])[0, :, 0].tolist()
    assert shown == [127, round(srgb(np.array(128 / 255)).item())]


@pytest.mark.fault("picture")
def test_grey_with_transparency_gets_its_profile(tmp_path):
    grey = np.stack([RAMP, np.full_like(RAMP, 255)], axis=-1)
    grey[0, 0, 1] = 0
    for bits, values in {8: grey, 16: grey.astype(np.uint16) * 257}.items():
        write_png(tmp_path / f"{bits}.png", values, bits, iccp(grey_profile(1.0)))
        found = errors(tmp_path / f"{bits}.png", srgb(RAMP[..., None] / 255))[:, 1:]
        assert found.max() < 0.6


@pytest.mark.fault("picture")
@pytest.mark.parametrize(
    ("profile", "why"), [(b"no profile", "cannot open"), (grey_profile(2.2), "it is for GRAY, the picture is RGB")]
)
def test_a_profile_that_cannot_be_used_is_a_warning(tmp_path, profile, why):
    Image.fromarray(CUBE).save(tmp_path / "p.png", icc_profile=profile)
    shown, handling = open_picture(tmp_path / "p.png")
    assert np.array_equal(np.asarray(shown), CUBE)
    (warning,) = handling.doubts
    assert "colour profile not usable" in warning
    assert why in warning


@pytest.mark.fault("picture")
@pytest.mark.parametrize(("cut", "suffix"), [("profile", "png"), ("parts", "jpg")])
def test_a_profile_that_is_damaged_in_its_file_is_a_warning(tmp_path, cut, suffix):
    path = tmp_path / f"p.{suffix}"
    if cut == "profile":
        write_png(path, CUBE, chunks=chunk(b"iCCP", b"p\0\0" + b"not zlib"))
    else:
        Image.fromarray(CUBE).save(path, icc_profile=rgb_profile(1.0) + bytes(70_000))  # in two parts
        path.write_bytes(path.read_bytes().replace(b"ICC_PROFILE\0\2", b"OTHER_THING\0\2"))
    assert "colour profile not usable (damaged)" in open_picture(path)[1].doubts[0]


@pytest.mark.fault("picture")
def test_the_profile_of_a_jpeg_2000_is_applied(tmp_path):
    """Pillow writes the colour space by number; the box is replaced by one with a profile."""
    Image.fromarray(CUBE).save(tmp_path / "p.jp2", irreversible=False)
    data, profile = (tmp_path / "p.jp2").read_bytes(), rgb_profile(1.0)
    start = data.index(b"jp2h") - 4
    at = data.index(b"colr") - 4
    old = int.from_bytes(data[at : at + 4], "big")
    box = struct.pack(">I4sBBB", len(profile) + 11, b"colr", 2, 0, 0) + profile
    length = int.from_bytes(data[start : start + 4], "big") + len(box) - old
    header = struct.pack(">I", length) + data[start + 4 : at] + box
    (tmp_path / "p.jp2").write_bytes(data[:start] + header + data[at + old :])
    assert errors(tmp_path / "p.jp2", srgb(CUBE / 255)).mean() < 0.5


@pytest.mark.fault("picture")
@pytest.mark.parametrize("gamma", [1.0, 0.55556])
@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("bands", [1, 3])
def test_the_gamma_of_a_png_counts_where_there_is_no_profile(tmp_path, gamma, bits, bands):
    """As the specification of PNG says: light is the value to the power of 1 / gamma."""
    values = RAMP if bands == 1 else CUBE
    stored = values.astype(np.uint16) * 257 if bits == 16 else values
    said = chunk(b"gAMA", struct.pack(">I", round(gamma * 100_000)))
    write_png(tmp_path / "p.png", stored, bits, said)
    expected = srgb((values / 255) ** (1 / gamma))
    assert errors(tmp_path / "p.png", expected if bands == 3 else expected[..., None]).max() < 0.6
    write_png(tmp_path / "srgb.png", stored, bits, said + chunk(b"sRGB", b"\0"))
    assert errors(tmp_path / "srgb.png", values if bands == 3 else values[..., None]).max() == 0
    write_png(tmp_path / "usual.png", stored, bits, chunk(b"gAMA", struct.pack(">I", 45455)))
    assert errors(tmp_path / "usual.png", values if bands == 3 else values[..., None]).max() == 0


@pytest.mark.fault("picture")
@pytest.mark.parametrize(
    ("chunks", "warning"),
    [
        (chunk(b"cICP", bytes([9, 16, 0, 1])), "HDR (PQ)"),
        (chunk(b"cICP", bytes([12, 13, 0, 1])), "colours of Display P3"),
        (
            chunk(b"cHRM", struct.pack(">8I", *(31270, 32900, 68000, 32000, 26500, 69000, 15000, 6000))),
            "primary colours",
        ),
        (chunk(b"cICP", bytes([1, 13, 0, 1])), None),
        (chunk(b"cHRM", struct.pack(">8I", *(31270, 32900, 64000, 33000, 30000, 60000, 15000, 6000))), None),
    ],
)
def test_colours_that_are_said_in_a_way_that_is_not_applied_are_a_warning(tmp_path, chunks, warning):
    doubts = open_picture(write_png(tmp_path / "p.png", CUBE, chunks=chunks))[1].doubts
    assert len(doubts) == (warning is not None)
    assert all(warning in doubt for doubt in doubts)


@pytest.mark.fault("picture")
def test_hdr_avif_and_adobe_rgb_that_only_exif_names_are_warnings(tmp_path):
    Image.new("RGB", (64, 64), "red").save(tmp_path / "p.avif")
    data = (tmp_path / "p.avif").read_bytes()
    at = data.index(b"colrnclx") + 10
    (tmp_path / "hdr.avif").write_bytes(data[:at] + b"\0\x10" + data[at + 2 :])
    assert open_picture(tmp_path / "p.avif")[1].doubts == []
    assert "HDR (PQ)" in open_picture(tmp_path / "hdr.avif")[1].doubts[0]
    exif = Image.Exif()
    exif[0x8769] = {0xA005: {1: "R03"}}
    Image.new("RGB", (64, 64), "red").save(tmp_path / "p.jpg", exif=exif)
    assert "Adobe RGB by its EXIF" in open_picture(tmp_path / "p.jpg")[1].doubts[0]


@pytest.mark.fault("picture")
@pytest.mark.parametrize("suffix", ["jpg", "tiff"])
def test_cmyk_gets_its_profile(tmp_path, suffix):
    """Of a press whose three inks are of one colour; Adobe's programs store the CMYK of JPEGs inverted."""
    ink = (60.0, 30.0, 20.0)
    path = tmp_path / f"p.{suffix}"
    for inks, lab in {
        (0, 0, 0, 0): (100, 0, 0),
        (255, 0, 0, 0): ink,
        (0, 0, 255, 0): ink,
        (0, 0, 0, 255): (0, 0, 0),
    }.items():
        Image.new("CMYK", (16, 16), inks).save(path, icc_profile=cmyk_profile(ink))
        assert errors(path, 255 * lab2rgb(np.full((16, 16, 3), lab, float))).mean() < 2
        assert notes(path) == ["colour profile 'some press' applied"]


@pytest.mark.fault("picture")
def test_cmyk_without_a_profile_is_a_warning(tmp_path):
    Image.new("RGB", (8, 8), "red").convert("CMYK").save(tmp_path / "p.tiff")
    assert "CMYK without a colour profile" in open_picture(tmp_path / "p.tiff")[1].doubts[0]
