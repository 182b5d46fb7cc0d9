"""Pictures come out as viewers show them, in the size asked for; what is not a picture is refused by name."""

from __future__ import annotations

import io
import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from gpi_latents.core.pictures import fit_picture, open_picture, png_bytes
from gpi_latents.errors import ItemError
from helpers.photos import huge
from helpers.study import draw
from PIL import Image, ImageCms, features


@pytest.mark.fault("picture")
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(tmp_path, orientation):
    upright = Image.open(draw(tmp_path / "upright.png", (40, 24)))
    turned = {2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}  # orientation -> the transposition that undoes its undoing
    stored = upright.transpose(Image.Transpose(turned[orientation])) if orientation > 1 else upright
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored.save(tmp_path / "turned.png", exif=exif)
    shown, _ = open_picture(tmp_path / "turned.png")
    assert np.array_equal(np.asarray(shown), np.asarray(upright))


@pytest.mark.fault("picture")
@pytest.mark.parametrize("mode", ["RGBA", "LA", "P", "RGB", "L"])
def test_transparency_is_laid_on_white(tmp_path, mode):
    """A picture, its left half transparent over black, in every way that a PNG can say so."""
    alpha = np.full((8, 8), 255, np.uint8)
    alpha[:, :4] = 0
    grey = np.full((8, 8), 100, np.uint8)
    grey[:, :4] = 0
    options = {}
    if mode == "RGBA":
        picture = Image.fromarray(np.dstack([grey, grey, grey, alpha]))
    elif mode == "LA":
        picture = Image.fromarray(np.dstack([grey, alpha]))
    else:
        picture = Image.fromarray(grey).convert(mode)
        background = picture.getpixel((0, 0))
        options["transparency"] = background
    picture.save(tmp_path / "t.png", **options)
    shown = np.asarray(open_picture(tmp_path / "t.png")[0])
    assert (shown[:, :4] == 255).all()
    assert (shown[:, 4:] == 100).all()


@pytest.mark.fault("picture")
@pytest.mark.parametrize("suffix", ["png", "tiff", "jp2"])
def test_16_bits_are_scaled_not_clipped(tmp_path, suffix):
    ramp = np.linspace(0, 65535, 256).astype(np.uint16)[None].repeat(8, 0)
    Image.fromarray(ramp).save(tmp_path / f"ramp.{suffix}")
    shown = np.asarray(open_picture(tmp_path / f"ramp.{suffix}")[0])
    assert np.array_equal(shown[0, :, 0], np.arange(256))


@pytest.mark.fault("picture")
def test_cmyk_keeps_its_colours(tmp_path):
    colours = Image.new("RGB", (64, 64), (220, 40, 30))
    colours.convert("CMYK").save(tmp_path / "c.jpg", quality=95)
    shown = np.asarray(open_picture(tmp_path / "c.jpg")[0]).astype(int)
    assert abs(shown.mean((0, 1)) - (220, 40, 30)).max() < 4


@pytest.mark.fault("picture")
def test_a_colour_profile_is_applied_and_a_broken_one_is_not(tmp_path):
    picture = Image.new("RGB", (8, 8), (200, 100, 50))
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    # A profile of another colour space: red and green swapped, under another name.
    swapped = srgb.replace(b"rXYZ", b"????").replace(b"gXYZ", b"rXYZ").replace(b"????", b"gXYZ")
    swapped = swapped.replace("sRGB".encode("utf-16-be"), "swap".encode("utf-16-be")).replace(b"sRGB", b"swap")
    for name, profile in {"srgb": srgb, "swapped": swapped, "broken": b"no profile"}.items():
        picture.save(tmp_path / f"{name}.png", icc_profile=profile)
    assert open_picture(tmp_path / "srgb.png")[0].getpixel((0, 0)) == (200, 100, 50)
    red, green, _ = open_picture(tmp_path / "swapped.png")[0].getpixel((0, 0))
    assert red < green
    shown, handling = open_picture(tmp_path / "broken.png")
    assert shown.getpixel((0, 0)) == (200, 100, 50)
    assert any("used as they are" in note for note in handling.notes)


@pytest.mark.fault("picture")
def test_the_first_frame_of_an_animation_is_taken(tmp_path):
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    shown, handling = open_picture(tmp_path / "a.gif")
    assert shown.getpixel((0, 0)) == (255, 0, 0)
    assert "the first of 2 frames" in handling.notes


@pytest.mark.fault("picture")
@pytest.mark.parametrize("damage", ["empty", "text", "truncated"])
def test_a_damaged_picture_is_refused_by_name(tmp_path, damage):
    whole = draw(tmp_path / "whole.png").read_bytes()
    content = {"empty": b"", "text": b"no picture", "truncated": whole[: len(whole) // 2]}[damage]
    (tmp_path / "bad.png").write_bytes(content)
    with pytest.raises(ItemError, match=r"bad\.png' cannot be read"):
        open_picture(tmp_path / "bad.png")


def test_pad_keeps_all_of_the_picture(tmp_path):
    picture = Image.open(draw(tmp_path / "p.png", (80, 40)))
    fitted, _ = fit_picture(picture, (64, 64), "pad")
    shown = np.asarray(fitted)
    assert shown.shape == (64, 64, 3)
    assert np.array_equal(shown[16:48], np.asarray(picture.resize((64, 32), Image.Resampling.LANCZOS)))
    assert np.array_equal(shown[15], shown[17])  # reflected, without the border itself twice


@pytest.mark.fault("picture")
@pytest.mark.parametrize("size", [(1, 1), (5000, 1), (1, 5000), (1, 300), (63, 65), (64, 64), (200, 100)])
def test_every_picture_gets_the_size_asked_for(size):
    picture = Image.new("RGB", size, "red")
    for resize in ("pad", "crop", "stretch", "contain"):
        for target in ((64, 64), (64, 96)):
            fitted, _ = fit_picture(picture, target, resize)
            if resize == "contain":
                assert fitted.height % 8 == fitted.width % 8 == 0
            else:
                assert (fitted.height, fitted.width) == target
            assert fitted.getcolors() == [(fitted.height * fitted.width, (255, 0, 0))]


def test_crop_takes_the_centre_and_stretch_the_whole():
    picture = Image.new("RGB", (96, 32), "red")
    picture.paste("blue", (32, 0, 64, 32))
    assert fit_picture(picture, (32, 32), "crop")[0].getcolors() == [(32 * 32, (0, 0, 255))]
    stretched = fit_picture(picture, (32, 32), "stretch")[0]
    assert stretched.getpixel((0, 16)) == (255, 0, 0)
    assert stretched.getpixel((16, 16)) == (0, 0, 255)


@pytest.mark.parametrize(
    ("size", "expected"),
    [((512, 300), (304, 512)), ((1000, 333), (176, 512)), ((333, 1000), (512, 176)), ((101, 99), (104, 104))],
)
def test_contain_is_the_references_rule(size, expected):
    """gpi_pack 0.2.1: longest side at most 512, the other floored, reflected to multiples of 8, never enlarged."""
    random = np.random.default_rng(0)
    picture = Image.fromarray(random.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8))
    fitted, _ = fit_picture(picture, (512, 512), "contain")
    assert (fitted.height, fitted.width) == expected
    width, height = size
    if max(size) > 512:
        scale = 512 / max(size)
        width, height = (512, int(height * scale)) if width > height else (int(width * scale), 512)
        picture = picture.resize((width, height), Image.Resampling.LANCZOS)
    top, left = (expected[0] - height) // 2, (expected[1] - width) // 2
    assert np.array_equal(np.asarray(fitted)[top : top + height, left : left + width], np.asarray(picture))


def frames(path: Path, **options) -> None:
    first, *others = (Image.new("RGB", (8, 8), colour) for colour in ("red", "blue", "lime"))
    first.save(path, save_all=True, append_images=others, **options)


@pytest.mark.fault("picture")
@pytest.mark.parametrize(
    ("name", "note"),
    [
        ("a.gif", "the first of 3 frames"),
        ("a.png", "the first of 3 frames"),
        ("a.webp", "the first of 3 frames"),
        ("a.tiff", "the first of 3 pages"),
    ],
)
def test_of_many_frames_or_pages_the_first_is_taken_and_the_log_says_so(tmp_path, name, note):
    frames(tmp_path / name, **({"lossless": True} if name.endswith("webp") else {}))
    shown, handling = open_picture(tmp_path / name)
    assert shown.getpixel((0, 0)) == (255, 0, 0)
    assert note in handling.notes


@pytest.mark.fault("picture")
@pytest.mark.parametrize("suffix", ["png", "jpg", "gif", "webp", "tiff", "bmp"])
def test_a_picture_that_is_cut_off_is_refused(tmp_path, suffix):
    whole = tmp_path / f"whole.{suffix}"
    Image.open(draw(tmp_path / "p.png", (200, 200))).save(whole)
    (tmp_path / f"cut.{suffix}").write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])
    with pytest.raises(ItemError, match=rf"cut\.{suffix}' cannot be read"):
        open_picture(tmp_path / f"cut.{suffix}")


@pytest.mark.fault("picture")
def test_a_header_that_claims_3600_million_pixels_is_refused_before_memory_is_taken(tmp_path):
    names = []
    for kind in ("png", "gif"):
        names.append(str(tmp_path / f"huge.{kind}"))
        Path(names[-1]).write_bytes(huge(kind))
    limit = "import resource; resource.setrlimit(resource.RLIMIT_AS, (2**31, 2**31))\n"
    for name, message in zip(names, messages_of_a_new_process(names, limit), strict=True):
        assert f"{name}' has more than 178 million pixels: make it smaller" in message


@pytest.mark.fault("picture")
def test_heic_is_read_where_the_plugin_is_and_else_the_plugin_is_named(tmp_path):
    Image.new("RGB", (64, 64), "red").save(tmp_path / "p.heic")
    assert open_picture(tmp_path / "p.heic")[0].size == (64, 64)
    without = "import sys; sys.modules['pillow_heif'] = None\n"
    assert "pip install pillow-heif" in messages_of_a_new_process([tmp_path / "p.heic"], without)[0]


def messages_of_a_new_process(paths: list, setup: str) -> list[str]:
    """Why pictures are refused, one line each, in a process with a setup of its own."""
    code = (
        f"{setup}import sys\nfrom gpi_latents.core.pictures import open_picture\nfor path in sys.argv[1:]:\n"
        "    try: open_picture(path)\n    except Exception as error: print(error)"
    )
    command = [sys.executable, "-c", code, *map(str, paths)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60).stdout.splitlines()


@pytest.mark.fault("picture")
def test_avif_is_read(tmp_path):
    assert features.check("avif")
    Image.new("RGB", (64, 64), "red").save(tmp_path / "p.avif")
    assert open_picture(tmp_path / "p.avif")[0].size == (64, 64)


@pytest.mark.fault("picture")
@pytest.mark.timeout(20)
def test_what_is_not_a_file_is_refused_without_waiting_for_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # a socket's path has to be short
    Path("folder").mkdir()
    os.mkfifo("pipe")
    Path("broken link").symlink_to("nowhere.png")
    Path("endless link").symlink_to("endless link")
    Path("device").symlink_to("/dev/zero")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind("socket")
    for kind in ("folder", "pipe", "broken link", "endless link", "device", "socket", "nothing"):
        with pytest.raises(ItemError, match=rf"'{kind}' (is not a file|cannot be read)"):
            open_picture(kind)


@pytest.mark.parametrize(
    ("values", "problem"), [(np.full((8, 8), 70_000), "0 to 65535"), (np.full((8, 8), 1.5), "0 to 1")]
)
def test_values_out_of_range_are_refused(tmp_path, values, problem):
    Image.fromarray(values.astype("int32" if values.max() > 2 else "float32")).save(tmp_path / "p.tiff")
    with pytest.raises(ItemError, match=f"where {problem} is expected"):
        open_picture(tmp_path / "p.tiff")


def test_a_png_has_the_pictures_pixels(tmp_path):
    picture = Image.open(draw(tmp_path / "p.png", (30, 20)))
    shown = Image.open(io.BytesIO(png_bytes(picture)))
    assert np.array_equal(np.asarray(shown), np.asarray(picture))


def test_pictures_need_no_torch():
    assert messages_of_a_new_process(
        [], "import atexit, sys; atexit.register(lambda: print('torch' in sys.modules))\n"
    ) == ["False"]
