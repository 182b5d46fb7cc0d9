"""Values come out as shares of the range that their file gives them, and transparency on white.

The values that are right are those that tifffile writes or reads, or the formulas of a colour space.
"""

from __future__ import annotations

import struct

import numpy as np
import pytest
import tifffile
from gpi_latents.core.pictures import open_picture
from gpi_latents.errors import ItemError
from helpers.odd_pictures import chunk, rgb_profile, write_png
from PIL import Image
from skimage.color import lab2rgb

SHARES = np.linspace(0, 1, 256)[None].repeat(8, 0)  # of the range from black to white
GREYS = np.arange(256)[None].repeat(8, 0)
COLOURS = np.stack([SHARES, SHARES[:, ::-1], SHARES**2], axis=-1)
SMIN, SMAX = 340, 341


def shown(path) -> np.ndarray:
    return np.asarray(open_picture(path)[0]).astype(int)


def doubts(path) -> str:
    return " ".join(open_picture(path)[1].doubts)


@pytest.mark.fault("picture")
@pytest.mark.parametrize("photometric", ["minisblack", "miniswhite"])
@pytest.mark.parametrize("compression", [None, "zlib"])
@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("dtype", ["bool", "uint8", "uint16", "int16", "float32"])
def test_black_and_white_of_a_tiff_are_where_its_tags_say(tmp_path, dtype, order, compression, photometric):
    most = 1 if dtype in ("bool", "float32") else np.iinfo(dtype).max
    values = SHARES * most if dtype == "float32" else (SHARES * most).round()
    path = tmp_path / "p.tiff"
    tifffile.imwrite(path, values.astype(dtype), photometric=photometric, byteorder=order, compression=compression)
    share = tifffile.imread(path).astype(float) / most
    if photometric == "miniswhite":
        share = 1 - share
        if (dtype, order) == ("uint16", ">") or dtype == "int16":  # kinds that Pillow does not know
            with pytest.raises(ItemError, match=r"photometric interpretation 0.* save it as PNG"):
                open_picture(path)
            return
    assert np.abs(shown(path) - 255 * share[..., None]).max() <= 0.5 + 1e-4
    assert doubts(path) == ""


def write_bits(path, values: np.ndarray, bits: int, photometric: int = 1) -> None:
    """A grey TIFF of any number of bits, which tifffile does not write without another package."""
    each = (values[..., None] >> np.arange(bits - 1, -1, -1)) & 1
    packed = np.packbits(each.reshape(len(values), -1).astype(np.uint8), axis=1).tobytes()
    height, width = values.shape
    tags = {256: width, 257: height, 258: bits, 259: 1, 262: photometric, 273: 110, 277: 1, 279: len(packed)}
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags.items())
    path.write_bytes(b"II*\0" + struct.pack("<IH", 8, len(tags)) + entries + bytes(4) + packed)


@pytest.mark.fault("picture")
@pytest.mark.parametrize("bits", [2, 4])
@pytest.mark.parametrize("photometric", [0, 1])
def test_greys_of_2_and_4_bits_fill_the_range(tmp_path, bits, photometric):
    values = np.arange(2**bits).repeat(8)[None].repeat(8, 0)
    write_bits(tmp_path / "p.tiff", values, bits, photometric)
    share = values / (2**bits - 1)
    assert np.array_equal(shown(tmp_path / "p.tiff")[..., 0], np.rint(255 * (share if photometric else 1 - share)))


@pytest.mark.fault("picture")
@pytest.mark.parametrize("most", [255, 1023, 4095, 16383])
@pytest.mark.parametrize("bands", [1, 3])
def test_values_that_use_little_of_their_range_are_a_warning_and_right_where_the_file_says_the_range(
    tmp_path, most, bands
):
    """Sensors of 8 to 14 bits, stored in 16 without a word."""
    values = ((SHARES if bands == 1 else COLOURS) * most).round().astype(np.uint16)
    photometric = "minisblack" if bands == 1 else "rgb"
    tifffile.imwrite(tmp_path / "silent.tiff", values, photometric=photometric)
    assert "less than a quarter of the range" in doubts(tmp_path / "silent.tiff")
    write_png(tmp_path / "silent.png", values, 16, chunk(b"sBIT", bytes([most.bit_length()] * bands)))
    assert "less than a quarter of the range" in doubts(tmp_path / "silent.png")
    tags = [(tag, "H", bands, (value,) * bands if bands > 1 else value) for tag, value in {SMIN: 0, SMAX: most}.items()]
    tifffile.imwrite(tmp_path / "said.tiff", values // 2, photometric=photometric, extratags=tags, compression="zlib")
    path = tmp_path / "said.tiff"
    expected = tifffile.imread(path) / most * 255
    assert np.abs(shown(path) - (expected if bands == 3 else expected[..., None])).max() <= 0.5
    assert doubts(path) == ""
    assert f"scaled from values of 0 to {most}" in open_picture(path)[1].notes


@pytest.mark.fault("picture")
def test_a_range_that_does_not_hold_or_is_the_pictures_own_is_a_warning(tmp_path):
    values = (SHARES * 40_000 + 10_000).astype(np.uint16)
    for name, low, high in [("small", 0, 20_000), ("own", values.min(), values.max())]:
        tags = [(SMIN, "H", 1, int(low)), (SMAX, "H", 1, int(high))]
        tifffile.imwrite(tmp_path / f"{name}.tiff", values, photometric="minisblack", extratags=tags)
    assert np.array_equal(shown(tmp_path / "small.tiff")[..., 0], np.rint(values / 257))
    assert "which are not used" in doubts(tmp_path / "small.tiff")
    tags = [(SMIN, "H", 4, (0, 0, 0, 0)), (SMAX, "H", 4, (40_000,) * 4)]
    colours = np.concatenate([COLOURS, np.ones_like(COLOURS[..., :1])], axis=-1) * 40_000
    tifffile.imwrite(tmp_path / "alpha.tiff", colours.astype(np.uint16), photometric="rgb", extratags=tags)
    assert "cannot be applied to such a picture" in doubts(tmp_path / "alpha.tiff")
    assert "it is stretched" in doubts(tmp_path / "own.tiff")
    assert shown(tmp_path / "own.tiff")[0, [0, -1], 0].tolist() == [0, 255]


@pytest.mark.fault("picture")
def test_12_bits_are_scaled_as_such_and_10_are_refused(tmp_path):
    values = np.linspace(0, 4095, 256).astype(int)[None].repeat(8, 0)
    write_bits(tmp_path / "12.tiff", values, 12)
    assert np.array_equal(shown(tmp_path / "12.tiff")[..., 0], np.rint(values / 4095 * 255))
    assert doubts(tmp_path / "12.tiff") == ""
    with Image.open(tmp_path / "12.tiff") as loaded:
        loaded.load()
        assert np.array_equal(np.asarray(open_picture(loaded)[0]), shown(tmp_path / "12.tiff"))
    write_bits(tmp_path / "10.tiff", values // 4, 10)
    with pytest.raises(ItemError, match=r"bits of its bands \(10,\).* save it as PNG"):
        open_picture(tmp_path / "10.tiff")


@pytest.mark.fault("picture")
@pytest.mark.parametrize(
    ("values", "problem"),
    [
        (np.full((8, 8), 70_000, np.int32), "from 70000 to 70000, where 0 to 65535"),
        (np.full((8, 8), -1, np.int16), "from -1 to -1, where 0 to 32767"),
        (np.full((8, 8), -1, np.int8), "from -1 to -1, where 0 to 127"),
        (np.full((8, 8), 1.5, np.float32), "from 1.5 to 1.5, where 0 to 1"),
        (np.full((8, 8), np.nan, np.float32), "from nan to nan, where 0 to 1"),
    ],
)
def test_values_out_of_range_are_refused_by_name(tmp_path, values, problem):
    tifffile.imwrite(tmp_path / "p.tiff", values)
    with pytest.raises(ItemError, match=rf"p\.tiff' has values {problem} is expected"):
        open_picture(tmp_path / "p.tiff")


@pytest.mark.fault("picture")
@pytest.mark.parametrize("compression", [None, "zlib"])
@pytest.mark.parametrize("dtype", ["uint8", "uint16"])
def test_planes_are_read_rightly_or_refused(tmp_path, dtype, compression):
    """Pillow takes half of each value of 16 bits in planes that are not compressed."""
    values = (COLOURS * np.iinfo(dtype).max).round().astype(dtype)
    path = tmp_path / "p.tiff"
    planes = np.moveaxis(values, -1, 0)
    tifffile.imwrite(path, planes, photometric="rgb", planarconfig="separate", compression=compression)
    if (dtype, compression) == ("uint16", None):
        with pytest.raises(ItemError, match=r"16 bits in separate planes, .*export it as PNG"):
            open_picture(path)
    else:
        assert np.abs(shown(path) - values / np.iinfo(dtype).max * 255).max() < 1


@pytest.mark.fault("picture")
@pytest.mark.parametrize("most", [255, 65535])
def test_a_palette_may_be_of_8_bits_though_16_are_due(tmp_path, most):
    """Some programs write so; libtiff, and so most viewers, take a palette without any value above 255 for that."""
    palette = np.stack([np.arange(256), np.arange(256)[::-1], np.full(256, 100)]) * (most // 255)
    tifffile.imwrite(tmp_path / "p.tiff", GREYS.astype(np.uint8), photometric="palette", colormap=palette.astype("u2"))
    expected = np.stack([GREYS, 255 - GREYS, np.full_like(GREYS, 100)], axis=-1)
    assert np.array_equal(shown(tmp_path / "p.tiff"), expected)


@pytest.mark.fault("picture")
def test_a_bitmap_of_16_bits_has_them_for_three_colours(tmp_path):
    values = np.arange(32)
    packed = (values << 11 | values[::-1] << 6 | 31).astype("<u2").tobytes()  # 5, 6 and 5 bits
    masks = struct.pack("<III", 0xF800, 0x7E0, 0x1F)
    header = struct.pack("<IiiHHIIiiII", 40, 32, 1, 1, 16, 3, len(packed), 0, 0, 0, 0) + masks
    (tmp_path / "p.bmp").write_bytes(struct.pack("<2sIHHI", b"BM", 66 + len(packed), 0, 0, 66) + header + packed)
    expected = np.stack([values / 31, values[::-1] * 2 / 63, np.full(32, 1)], axis=-1) * 255
    assert np.abs(shown(tmp_path / "p.bmp") - expected).max() <= 1
    assert open_picture(tmp_path / "p.bmp")[1].notes == []


@pytest.mark.fault("picture")
def test_lab_of_a_tiff_is_what_the_formulas_say(tmp_path):
    lab = np.stack(np.meshgrid([40, 50, 60], [-20, 0, 20], [-20, 0, 20], indexing="ij"), axis=-1).reshape(1, -1, 3)
    stored = (lab * (2.55, 1, 1)).round().astype(int).astype(np.uint8)  # a and b as signed numbers
    tifffile.imwrite(
        tmp_path / "p.tiff", stored, photometric="cielab", iccprofile=rgb_profile(1.0)
    )  # of no use for Lab
    assert np.abs(shown(tmp_path / "p.tiff") - lab2rgb(lab.astype(float)) * 255).mean() < 3
    assert doubts(tmp_path / "p.tiff") == ""


@pytest.mark.fault("picture")
@pytest.mark.parametrize("bits", [1, 2, 4, 8, 16])
@pytest.mark.parametrize("bands", [1, 3])
def test_a_colour_of_a_png_that_is_transparent_is_so_alone(tmp_path, bits, bands):
    """Its neighbours, which differ in the last bit, stay what they are."""
    if bands == 3 and bits < 8:
        return
    most = 2**bits - 1
    colour = most // 3
    values = np.array([[0, colour, colour + 1, most]])
    key = struct.pack(">H", colour) * bands
    stored = values if bands == 1 else values[..., None].repeat(3, -1)
    write_png(tmp_path / "p.png", stored, bits, chunk(b"tRNS", key))
    expected = values * (255 / most)
    expected[values == colour] = 255
    assert np.abs(shown(tmp_path / "p.png")[..., 0] - expected).max() < 1
    assert "laid on white" in open_picture(tmp_path / "p.png")[1].notes


@pytest.mark.fault("picture")
@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_what_is_wholly_transparent_is_refused_and_what_is_wholly_opaque_is_not_noted(tmp_path, mode):
    for alpha in (0, 255):
        picture = Image.new("RGBA", (8, 8), (200, 100, 50, alpha))
        if mode == "P":
            picture.quantize(2).save(tmp_path / f"{alpha}.png")
        else:
            picture.convert(mode).save(tmp_path / f"{alpha}.png")
    with pytest.raises(ItemError, match=r"0\.png' is wholly transparent: save it without transparency"):
        open_picture(tmp_path / "0.png")
    assert open_picture(tmp_path / "255.png")[1].notes == []


@pytest.mark.fault("picture")
@pytest.mark.parametrize("kind", ["unassalpha", "assocalpha", "unspecified", None])
def test_a_fourth_band_of_near_infrared_is_a_warning_or_left_out(tmp_path, kind):
    colours = (COLOURS * 255).astype(np.uint8)
    infrared = np.random.default_rng(0).integers(0, 256, (*colours.shape[:2], 1), dtype=np.uint8)
    path = tmp_path / "p.tiff"
    bands = np.concatenate([colours, infrared], axis=-1)
    tifffile.imwrite(path, bands, photometric="rgb", extrasamples=[kind] if kind else None)
    if kind == "unspecified":
        assert np.array_equal(shown(path), colours)
        assert open_picture(path)[1].notes == ["of 4 bands only the first 3 are used"]
    else:
        assert "near infrared" in doubts(path)


@pytest.mark.fault("picture")
@pytest.mark.parametrize("bands", [2, 4])
def test_colours_that_are_multiplied_by_their_opacity_are_divided_first(tmp_path, bands):
    """Associated alpha: what lies on white is the stored colour and the white that shows through."""
    alpha = np.array([[255, 255, 255, 255, 128, 64, 10]], np.uint8)
    stored = np.stack([alpha // 2] * (bands - 1) + [alpha], axis=-1)
    photometric = "rgb" if bands == 4 else "minisblack"
    path = tmp_path / "p.tiff"
    tifffile.imwrite(path, stored, photometric=photometric, extrasamples=["assocalpha"], planarconfig="contig")
    assert np.abs(shown(path)[..., 0] - (alpha // 2 + 255.0 - alpha)).max() <= 1
    assert open_picture(path)[1].notes == ["laid on white"]


@pytest.mark.fault("picture")
def test_a_mask_and_a_soft_edge_are_no_warning(tmp_path):
    alpha = np.full((64, 64), 255, np.uint8)
    alpha[:, :20], alpha[:, 20:30] = 0, 128
    picture = Image.new("RGB", (64, 64), "red")
    picture.putalpha(Image.fromarray(alpha))
    picture.save(tmp_path / "p.png")
    assert open_picture(tmp_path / "p.png")[1].notes == ["laid on white"]
