"""The core: a picture and its recipe in, the diffusion model's final latent out."""

from __future__ import annotations

import copy
import io
import json
import os
import threading
import warnings
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Any

os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # what deterministic cuBLAS asks for, before CUDA starts

os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")  # its advice on packages is not for our users

import diffusers
import numpy as np
import torch
from diffusers import AutoencoderKL
from diffusers.image_processor import VaeImageProcessor
from PIL import Image, ImageCms, ImageOps

diffusers.utils.logging.disable_progress_bar()


class ItemError(Exception):
    """One item cannot be done; its text is the message for the user."""


def same_bits() -> None:
    """Set torch so that the same recipe gives the same bits, whatever else runs.

    One CPU thread per item: with two, a sum is split in another way and differs in the last digits.
    """
    torch.set_num_threads(1)
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cudnn.benchmark = False
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = False  # our operations read nothing unwritten


def open_picture(path: str | Path) -> tuple[Image.Image, list[str]]:
    """Open a picture as it looks.

    The EXIF orientation and an embedded colour profile are applied, transparency is laid on white, 16 bits become 8
    by scaling. Of an animation or a multi-page file the first frame is taken.

    Returns:
        The picture in mode RGB, and notes on what was done to it.

    Raises:
        ItemError: it is no picture, or a damaged one.
    """
    notes = []
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow warns of odd metadata, which we do not use
            picture = Image.open(path)
            notes.append(f"{picture.format} {picture.width} x {picture.height} {picture.mode}")
            if getattr(picture, "n_frames", 1) > 1:
                notes.append(f"the first of {picture.n_frames} frames")
            picture.load()
            profile = picture.info.get("icc_profile")
            if picture.getexif().get(0x0112, 1) != 1:  # the tag Orientation
                picture = ImageOps.exif_transpose(picture)
                notes.append("turned upright")
            picture = _as_rgb(picture, profile, notes)
    except ItemError:
        raise
    except Exception as error:  # Pillow's plugins raise many kinds for damaged files
        raise ItemError(f"the picture {str(path)!r} cannot be read: {error or type(error).__name__}") from error
    return picture, notes


def _as_rgb(picture: Image.Image, profile: bytes | None, notes: list[str]) -> Image.Image:
    if picture.mode.startswith("I") or picture.mode == "F":
        values = np.asarray(picture, dtype=np.float64)
        full = 1.0 if picture.mode == "F" else 65535.0
        if not (values.min() >= 0 and values.max() <= full):
            raise ItemError(
                f"the picture has values from {values.min():g} to {values.max():g}, "
                f"where {'0 to 1' if full == 1 else '0 to 65535'} can be shown"
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
                picture = ImageCms.profileToProfile(picture, source, ImageCms.createProfile("sRGB"), outputMode="RGB")
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


class Model:
    """A Stable Diffusion model whose parts are loaded when an item first needs them.

    Safe to use from several threads; each has its own scheduler and tokenizer, which keep state.

    Args:
        folder: in diffusers' layout.
        device: as torch names it.
        dtype: `float32`, `float16` or `bfloat16`; a VAE that asks for it stays in float32 instead of float16.
    """

    def __init__(self, folder: str | Path, device: str = "cpu", dtype: str = "float32"):
        self.folder = Path(folder)
        self.device = torch.device(device)
        self.dtype = getattr(torch, dtype)
        self._loading = threading.Lock()
        self._parts: dict[str, Any] = {}
        self._own = threading.local()
        self.vae = AutoencoderKL.from_pretrained(folder, subfolder="vae", torch_dtype=self.dtype, use_safetensors=True)
        if self.dtype == torch.float16 and self.vae.config.force_upcast:
            self.vae = self.vae.to(torch.float32)
        self.vae = self.vae.to(self.device).eval()
        self.multiple = 2 ** (len(self.vae.config.block_out_channels) - 1)
        self.processor = VaeImageProcessor(self.multiple)

    @cached_property
    def native_size(self) -> tuple[int, int]:
        """(height, width) in pixels of the pictures that the model was made for."""
        side = json.loads((self.folder / "unet/config.json").read_text(encoding="utf-8"))["sample_size"]
        height, width = (side, side) if isinstance(side, int) else side
        return height * self.multiple, width * self.multiple

    def prepare(self, path: str | Path, recipe: dict[str, Any]) -> tuple[Image.Image, list[str]]:
        """Open an item's picture and bring it to the size that its recipe asks for; needs no device."""
        size = recipe["image_size"] or self.native_size
        size = (size, size) if isinstance(size, int) else tuple(size)
        picture, opened = open_picture(path)
        picture, fitted = fit_picture(picture, size, recipe["resize"], self.multiple)
        return picture, opened + fitted

    @torch.inference_mode()
    def latent(
        self, picture: Image.Image, recipe: dict[str, Any], on_step: Callable[[], None] = lambda: None
    ) -> torch.Tensor:
        """The final latent of one item, the tensor that the decoder would turn into the picture.

        At strength 0 it is `scaling_factor * z` with z drawn from, or the mode of, the VAE's posterior; above, what
        diffusers' `StableDiffusionImg2ImgPipeline` gives as `output_type="latent"` with the same generator.

        Args:
            picture: mode RGB, its sides multiples of `multiple`.
            recipe: as `items.recipe` makes it.
            on_step: called after each denoising step; what it raises ends the item.

        Returns:
            float32 (1, C, H / multiple, W / multiple) on the CPU, in the memory layout that the model gave it: the
            same values in another one are decoded by other kernels, which differ in the last digits.

        Raises:
            ItemError: it has NaN or infinite values.
        """
        # Drawn on the CPU and moved, so that every device starts from the same noise.
        generator = torch.Generator("cpu").manual_seed(recipe["seed"]) if "seed" in recipe else None
        pixels = self.processor.preprocess(picture).to(self.device, self.vae.dtype)
        posterior = self.vae.encode(pixels).latent_dist
        encoded = posterior.sample(generator) if recipe["posterior"] == "sample" else posterior.mode()
        latent = self.vae.config.scaling_factor * encoded
        if recipe["strength"] > 0:
            latent = self._pipeline(recipe["scheduler"])(
                prompt=recipe["prompt"],
                negative_prompt=recipe.get("negative_prompt"),
                image=latent,  # with the model's channels, the pipeline takes it as encoded
                strength=recipe["strength"],
                num_inference_steps=recipe["num_inference_steps"],
                guidance_scale=recipe["guidance_scale"],
                generator=generator,
                output_type="latent",
                callback_on_step_end=lambda *_: on_step() or {},
            ).images
        latent = latent.to("cpu", torch.float32)
        if not torch.isfinite(latent).all():
            hint = "dtype float32 or bfloat16" if self.dtype == torch.float16 else "another seed, scheduler or strength"
            raise ItemError(f"the latent has NaN or infinite values; try {hint}")
        return latent

    @torch.inference_mode()
    def decode(self, latent: torch.Tensor) -> Image.Image:
        """The picture that a latent stands for.

        Args:
            latent: (1, C, h, w) as `latent` returns it.

        Returns:
            Mode RGB, of the size that was encoded.
        """
        scaled = latent.to(self.device, self.vae.dtype) / self.vae.config.scaling_factor
        return self.processor.postprocess(self.vae.decode(scaled).sample, output_type="pil")[0]

    def _pipeline(self, scheduler: str) -> diffusers.DiffusionPipeline:
        """This thread's pipeline; the weights are shared, the scheduler and the tokenizer are its own."""
        from diffusers import StableDiffusionImg2ImgPipeline  # with transformers, slow to import

        pipelines = self._own.__dict__.setdefault("pipelines", {})
        if scheduler not in pipelines:
            with self._loading:
                if not self._parts:
                    self._parts = self._load_text_and_unet()
                parts = self._parts | {"tokenizer": copy.deepcopy(self._parts["tokenizer"])}
            pipeline = StableDiffusionImg2ImgPipeline(
                vae=self.vae,
                **parts,
                scheduler=getattr(diffusers, scheduler).from_pretrained(self.folder, subfolder="scheduler"),
                safety_checker=None,
                feature_extractor=None,
                requires_safety_checker=False,
            )
            pipeline.set_progress_bar_config(disable=True)
            pipelines[scheduler] = pipeline
        return pipelines[scheduler]

    def _load_text_and_unet(self) -> dict[str, Any]:
        import transformers
        from diffusers import UNet2DConditionModel
        from transformers import CLIPTextModel, CLIPTokenizer

        transformers.utils.logging.disable_progress_bar()
        options = {"torch_dtype": self.dtype, "use_safetensors": True}
        return {
            "tokenizer": CLIPTokenizer.from_pretrained(self.folder, subfolder="tokenizer"),
            "text_encoder": CLIPTextModel.from_pretrained(self.folder, subfolder="text_encoder", **options)
            .to(self.device)
            .eval(),
            "unet": UNet2DConditionModel.from_pretrained(self.folder, subfolder="unet", **options)
            .to(self.device)
            .eval(),
        }


def latent_bytes(latent: torch.Tensor, recipe_digest: str = "") -> bytes:
    """A latent as the bytes of a `.pt` file that `torch.load(..., weights_only=True)` reads.

    Args:
        latent: as `Model.latent` returns it.
        recipe_digest: what made it, kept as the comment of the file, which is a zip file; torch does not look at it.
    """
    buffer = io.BytesIO()
    torch.save(latent.clone(), buffer)
    comment = recipe_digest.encode()
    return buffer.getvalue()[:-2] + len(comment).to_bytes(2, "little") + comment  # a zip file ends with the two


def picture_bytes(picture: Image.Image) -> bytes:
    """A picture as the bytes of a PNG file."""
    buffer = io.BytesIO()
    picture.save(buffer, format="PNG")
    return buffer.getvalue()
