"""The core: pictures come out as they look, and latents are those of plain diffusers, bit for bit."""

from __future__ import annotations

import io
from pathlib import Path

import diffusion
import matplotlib
import numpy as np
import pytest
import sklearn
import torch
from diffusers import AutoencoderKL, DDIMScheduler, EulerDiscreteScheduler, StableDiffusionImg2ImgPipeline
from diffusers.image_processor import VaeImageProcessor
from helpers.study import ROOT, draw
from PIL import Image, ImageCms

DEMO = ROOT / "config/demo/model"
PHOTOS = [
    Path(matplotlib.get_data_path()) / "sample_data/grace_hopper.jpg",
    Path(sklearn.__file__).parent / "datasets/images/china.jpg",
    Path(sklearn.__file__).parent / "datasets/images/flower.jpg",
]
STILL = {"image_size": None, "resize": "pad", "posterior": "sample", "seed": 7, "strength": 0.0, "version": 1}


@pytest.fixture(scope="module")
def model():
    diffusion.same_bits()
    return diffusion.Model(DEMO)


def edited(strength: float, **settings) -> dict:
    text = {"prompt": "a red circle", "negative_prompt": "blue", "guidance_scale": 7.5, "num_inference_steps": 20}
    return STILL | text | {"strength": strength, "scheduler": "DDIMScheduler"} | settings


# --- Pictures ---


@pytest.mark.fault("picture")
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(tmp_path, orientation):
    upright = Image.open(draw(tmp_path / "upright.png", (40, 24)))
    turned = {2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}  # orientation -> the transposition that undoes its undoing
    stored = upright.transpose(Image.Transpose(turned[orientation])) if orientation > 1 else upright
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored.save(tmp_path / "turned.png", exif=exif)
    shown, _ = diffusion.open_picture(tmp_path / "turned.png")
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
    shown = np.asarray(diffusion.open_picture(tmp_path / "t.png")[0])
    assert (shown[:, :4] == 255).all()
    assert (shown[:, 4:] == 100).all()


@pytest.mark.fault("picture")
@pytest.mark.parametrize("suffix", ["png", "tiff"])
def test_16_bits_are_scaled_not_clipped(tmp_path, suffix):
    ramp = np.linspace(0, 65535, 256).astype(np.uint16)[None].repeat(8, 0)
    Image.fromarray(ramp).save(tmp_path / f"ramp.{suffix}")
    shown = np.asarray(diffusion.open_picture(tmp_path / f"ramp.{suffix}")[0])
    assert np.array_equal(shown[0, :, 0], np.arange(256))


@pytest.mark.fault("picture")
def test_cmyk_looks_as_it_looks(tmp_path):
    colours = Image.new("RGB", (64, 64), (220, 40, 30))
    colours.convert("CMYK").save(tmp_path / "c.jpg", quality=95)
    shown = np.asarray(diffusion.open_picture(tmp_path / "c.jpg")[0]).astype(int)
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
    assert diffusion.open_picture(tmp_path / "srgb.png")[0].getpixel((0, 0)) == (200, 100, 50)
    red, green, _ = diffusion.open_picture(tmp_path / "swapped.png")[0].getpixel((0, 0))
    assert red < green
    shown, notes = diffusion.open_picture(tmp_path / "broken.png")
    assert shown.getpixel((0, 0)) == (200, 100, 50)
    assert any("used as they are" in note for note in notes)


@pytest.mark.fault("picture")
def test_the_first_frame_of_an_animation_is_taken(tmp_path):
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    shown, notes = diffusion.open_picture(tmp_path / "a.gif")
    assert shown.getpixel((0, 0)) == (255, 0, 0)
    assert "the first of 2 frames" in notes


@pytest.mark.fault("picture")
@pytest.mark.parametrize("damage", ["empty", "text", "truncated"])
def test_a_damaged_picture_is_refused_by_name(tmp_path, damage):
    whole = draw(tmp_path / "whole.png").read_bytes()
    content = {"empty": b"", "text": b"no picture", "truncated": whole[: len(whole) // 2]}[damage]
    (tmp_path / "bad.png").write_bytes(content)
    with pytest.raises(diffusion.ItemError, match=r"bad\.png' cannot be read"):
        diffusion.open_picture(tmp_path / "bad.png")


def test_pad_keeps_all_of_the_picture(tmp_path):
    picture = Image.open(draw(tmp_path / "p.png", (80, 40)))
    fitted, _ = diffusion.fit_picture(picture, (64, 64), "pad")
    shown = np.asarray(fitted)
    assert shown.shape == (64, 64, 3)
    assert np.array_equal(shown[16:48], np.asarray(picture.resize((64, 32), Image.Resampling.LANCZOS)))
    assert np.array_equal(shown[15], shown[17])  # reflected, without the border itself twice


@pytest.mark.fault("picture")
@pytest.mark.parametrize("size", [(1, 1), (5000, 1), (1, 300), (63, 65), (64, 64), (200, 100)])
@pytest.mark.parametrize("resize", ["pad", "crop", "stretch"])
def test_every_picture_gets_the_size_asked_for(size, resize):
    for target in ((64, 64), (64, 96)):
        fitted, _ = diffusion.fit_picture(Image.new("RGB", size, "red"), target, resize)
        assert (fitted.height, fitted.width) == target
        assert fitted.getcolors() == [(fitted.height * fitted.width, (255, 0, 0))]


def test_crop_takes_the_centre_and_stretch_the_whole():
    picture = Image.new("RGB", (96, 32), "red")
    picture.paste("blue", (32, 0, 64, 32))
    assert diffusion.fit_picture(picture, (32, 32), "crop")[0].getcolors() == [(32 * 32, (0, 0, 255))]
    stretched = diffusion.fit_picture(picture, (32, 32), "stretch")[0]
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
    fitted, _ = diffusion.fit_picture(picture, (512, 512), "contain")
    assert (fitted.height, fitted.width) == expected
    width, height = size
    if max(size) > 512:
        scale = 512 / max(size)
        width, height = (512, int(height * scale)) if width > height else (int(width * scale), 512)
        picture = picture.resize((width, height), Image.Resampling.LANCZOS)
    top, left = (expected[0] - height) // 2, (expected[1] - width) // 2
    assert np.array_equal(np.asarray(fitted)[top : top + height, left : left + width], np.asarray(picture))


# --- Latents ---


@pytest.mark.parametrize("photo", PHOTOS, ids=lambda path: path.stem)
@pytest.mark.parametrize("size", [64, 512])
@pytest.mark.parametrize("posterior", ["sample", "mode"])
def test_at_strength_0_the_latent_is_diffusers_encoding(model, photo, size, posterior):
    recipe = STILL | {"image_size": size, "posterior": posterior}
    picture, _ = model.prepare(photo, recipe)
    latent = model.latent(picture, recipe)
    vae = AutoencoderKL.from_pretrained(DEMO, subfolder="vae")
    with torch.no_grad():
        encoded = vae.encode(VaeImageProcessor(8).preprocess(picture)).latent_dist
    drawn = encoded.sample(torch.Generator("cpu").manual_seed(7)) if posterior == "sample" else encoded.mode()
    assert latent.dtype == torch.float32
    assert latent.shape == (1, 4, size // 8, size // 8)
    assert torch.equal(latent, drawn * vae.config.scaling_factor)


@pytest.mark.parametrize("strength", [0.3, 0.6, 1.0])
@pytest.mark.parametrize(
    ("scheduler", "guidance", "negative"),
    [(DDIMScheduler, 7.5, "blue"), (DDIMScheduler, 1.0, ""), (EulerDiscreteScheduler, 3.0, "")],
)
def test_above_strength_0_the_latent_is_the_pipelines(model, strength, scheduler, guidance, negative):
    recipe = edited(strength, scheduler=scheduler.__name__, guidance_scale=guidance, negative_prompt=negative)
    picture, _ = model.prepare(PHOTOS[0], recipe)
    latent = model.latent(picture, recipe)
    pipeline = StableDiffusionImg2ImgPipeline.from_pretrained(DEMO, safety_checker=None)
    pipeline.scheduler = scheduler.from_config(pipeline.scheduler.config)
    options = {
        "prompt": "a red circle",
        "negative_prompt": negative,
        "image": picture,
        "strength": strength,
        "num_inference_steps": 20,
        "guidance_scale": guidance,
    }
    expected = pipeline(**options, generator=torch.Generator("cpu").manual_seed(7), output_type="latent").images
    assert torch.equal(latent, expected)
    shown = pipeline(**options, generator=torch.Generator("cpu").manual_seed(7)).images[0]
    assert np.array_equal(np.asarray(model.decode(latent)), np.asarray(shown))


def test_at_strength_0_neither_unet_nor_text_encoder_is_loaded(tmp_path):
    """They are not even there, apart from the UNet's config, which tells the native size."""
    import shutil

    for part in ("vae", "unet"):
        shutil.copytree(DEMO / part, tmp_path / part)
    (tmp_path / "unet/diffusion_pytorch_model.safetensors").unlink()
    model = diffusion.Model(tmp_path)
    picture, _ = model.prepare(PHOTOS[0], STILL)
    assert model.latent(picture, STILL).shape == (1, 4, 8, 8)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_other_dtypes_give_float32_latents_close_to_float32s(model, dtype):
    """float16 keeps this VAE, which asks for it, in float32."""
    other = diffusion.Model(DEMO, dtype=dtype)
    for recipe, tolerance in ((STILL, 0.02), (edited(0.5), 0.2)):
        picture, _ = model.prepare(PHOTOS[0], recipe)
        latent = other.latent(picture, recipe)
        assert latent.dtype == torch.float32
        assert (latent - model.latent(picture, recipe)).abs().max() < tolerance * model.latent(
            picture, recipe
        ).std() * 5
        assert other.decode(latent).size == (64, 64)
    assert other.vae.dtype == (torch.float32 if dtype == "float16" else torch.bfloat16)


def test_a_latent_with_nan_is_refused():
    broken = diffusion.Model(DEMO)
    broken.vae.register_to_config(scaling_factor=float("nan"))
    picture, _ = broken.prepare(PHOTOS[0], STILL)
    with pytest.raises(diffusion.ItemError, match="NaN or infinite"):
        broken.latent(picture, STILL)


@pytest.mark.parametrize("recipe", [STILL, edited(0.3)], ids=["strength 0", "strength 0.3"])
def test_a_latents_file_is_the_same_bytes_loads_safely_and_decodes_to_the_picture(model, recipe):
    picture, _ = model.prepare(PHOTOS[0], recipe)
    latent = model.latent(picture, recipe)
    content = diffusion.latent_bytes(latent)
    assert content == diffusion.latent_bytes(model.latent(picture, recipe))
    loaded = torch.load(io.BytesIO(content), weights_only=True)
    assert torch.equal(loaded, latent)
    assert np.array_equal(np.asarray(model.decode(loaded)), np.asarray(model.decode(latent)))


def test_an_item_has_one_thread_whatever_the_machine_has():
    torch.set_num_threads(2)
    diffusion.same_bits()
    assert torch.get_num_threads() == 1
