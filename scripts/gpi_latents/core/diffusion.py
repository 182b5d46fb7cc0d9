"""The core: a picture and its recipe in, the diffusion model's final latent out."""

from __future__ import annotations

import os

os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # what deterministic cuBLAS asks for, before CUDA starts
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")  # its advice on packages is not for our users

import copy
import inspect
import json
import math
import threading
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Any

import diffusers
import torch
from diffusers.image_processor import VaeImageProcessor
from PIL import Image

from gpi_latents.core.pictures import fit_picture, open_picture
from gpi_latents.errors import ItemError, ModelError

diffusers.utils.logging.disable_progress_bar()


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


def devices(chosen: str) -> list[str]:
    """The devices that the config's `device` means, as torch names them: `auto` is every GPU, else the CPU.

    Raises:
        ModelError: a GPU that torch does not see.
    """
    if chosen == "auto":
        chosen = "cuda" if torch.cuda.is_available() else "cpu"
    if chosen.startswith("cuda") and not torch.cuda.is_available():
        raise ModelError(f"device {chosen} was asked for, but torch sees no GPU here; use device cpu")
    return [f"cuda:{number}" for number in range(torch.cuda.device_count())] if chosen == "cuda" else [chosen]


class Model:
    """A diffusion model whose parts are loaded when an item first needs them.

    Safe to use from several threads; each has its own scheduler and tokenizers, which keep state.

    Args:
        folder: in diffusers' layout.
        device: as torch names it.
        dtype: `float32`, `float16` or `bfloat16`; a VAE that asks for it stays in float32 instead of float16.
        vae_folder: of another autoencoder than the model's own.
        variant: of the weights' files, such as `fp16`.
        allow_pickle: whether weights are read from `.bin` files too, where there are no safetensors.

    Raises:
        ItemError: an autoencoder that cannot be loaded whole.
    """

    def __init__(
        self,
        folder: str | Path,
        device: str = "cpu",
        dtype: str = "float32",
        vae_folder: str | Path | None = None,
        variant: str | None = None,
        allow_pickle: bool = False,
    ):
        self.folder = Path(folder)
        self.device = torch.device(device)
        self.dtype = getattr(torch, dtype)
        self._options = {
            "dtype": self.dtype,
            "variant": variant,
            "use_safetensors": None if allow_pickle else True,
            "local_files_only": True,
        }
        self._loading = threading.Lock()
        self._own = threading.local()
        vae_folder = Path(vae_folder or self.folder / "vae")
        self.vae = self._load(vae_folder, getattr(diffusers, _json(vae_folder / "config.json")["_class_name"]))
        if self.dtype == torch.float16 and self.vae.config.get("force_upcast"):
            self.vae = self.vae.to(torch.float32)
        self.processor = VaeImageProcessor(self.factor)

    def _load(self, folder: Path, kind: type) -> Any:
        has_variant = any(folder.glob(f"*.{self._options['variant']}*"))
        options = self._options | ({} if has_variant else {"variant": None})
        part, found = kind.from_pretrained(folder, **options, output_loading_info=True)
        if found["missing_keys"]:  # diffusers and transformers would go on with random ones
            raise ItemError(f"the weights in {folder} are incomplete: they have no {min(found['missing_keys'])}")
        return part.to(self.device).eval()

    @cached_property
    def factor(self) -> int:
        """How many pixels, along each side, become one place of the latent."""
        widths = self.vae.config.get("block_out_channels") or self.vae.config["encoder_block_out_channels"]
        return 2 ** (len(widths) - 1)

    @cached_property
    def _denoiser(self) -> dict[str, Any]:
        """The config of the UNet or of the transformer."""
        paths = (self.folder / part / "config.json" for part in ("unet", "transformer"))
        return next(_json(path) for path in paths if path.exists())

    @cached_property
    def multiple(self) -> int:
        """What the sides of a picture are multiples of: transformers see several places of the latent as one patch."""
        channels = self._denoiser["in_channels"] // self.vae.config["latent_channels"]  # 4 where FLUX packs 2 x 2
        return self.factor * self._denoiser.get("patch_size", 1) * max(1, math.isqrt(channels))

    @cached_property
    def native_size(self) -> tuple[int, int]:
        """(height, width) in pixels of the pictures that the model was made for."""
        side = self._denoiser.get("sample_size") or 128  # FLUX does not say; its pipeline takes 128
        height, width = (side, side) if isinstance(side, int) else side
        return height * self.factor, width * self.factor

    def prepare(self, image: str | Path | Image.Image, recipe: dict[str, Any]) -> tuple[Image.Image, list[str]]:
        """Open an item's picture and bring it to the size that its recipe asks for; needs no device.

        Raises:
            ItemError: the picture cannot be read, or the size does not suit the model.
        """
        size = recipe["image_size"] or self.native_size
        size = (size, size) if isinstance(size, int) else tuple(size)
        if recipe["resize"] != "contain" and any(side % self.multiple for side in size):
            raise ItemError(f"image_size {size[0]} x {size[1]}: this model takes multiples of {self.multiple}")
        picture, opened = open_picture(image)
        picture, fitted = fit_picture(picture, size, recipe["resize"], self.multiple)
        return picture, opened + fitted

    @torch.inference_mode()
    def latent(
        self, picture: Image.Image, recipe: dict[str, Any], on_step: Callable[[], None] = lambda: None
    ) -> torch.Tensor:
        """The final latent of one item, the tensor that the decoder would turn into the picture, in diffusion's scale.

        At strength 0, with z drawn from, or the mode of, the VAE's posterior (or what a VAE without one gives), it is

        - `scaling_factor * z` for Stable Diffusion 1.x, 2.x and XL;
        - `scaling_factor * (z - shift_factor)` for a VAE with a shift: Stable Diffusion 3, FLUX.1;
        - `scaling_factor * (z - latents_mean) / latents_std` for a VAE that holds these, some of XL's.

        Above, it is what the family's image-to-image pipeline in diffusers gives as `output_type="latent"` with the
        same generator, for FLUX.1 unpacked.

        Args:
            picture: mode RGB, its sides multiples of `multiple`.
            recipe: as `items.recipe` makes it.
            on_step: called after each denoising step; what it raises ends the item.

        Returns:
            float32 (1, C, H / factor, W / factor) on the CPU, in the memory layout that the model gave it: the
            same values in another one are decoded by other kernels, which differ in the last digits.

        Raises:
            ItemError: it has NaN or infinite values, or the recipe does not suit the model.
        """
        # Drawn on the CPU and moved, so that every device starts from the same noise.
        generator = torch.Generator("cpu").manual_seed(recipe["seed"]) if "seed" in recipe else None
        pixels = self.processor.preprocess(picture).to(self.device, self.vae.dtype)
        encoded = self.vae.encode(pixels)
        if "latent_dist" in encoded:
            posterior = encoded.latent_dist
            encoded = posterior.sample(generator) if recipe["posterior"] == "sample" else posterior.mode()
        else:
            encoded = encoded[0]
        latent = self._scaled(encoded)
        if recipe["strength"] > 0:
            latent = self._denoised(latent, (picture.height, picture.width), recipe, generator, on_step)
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
        unscaled = self._unscaled(latent.to(self.device, self.vae.dtype))
        return self.processor.postprocess(self.vae.decode(unscaled).sample, output_type="pil")[0]

    def prompt_notes(self, recipe: dict[str, Any]) -> list[str]:
        """What the model does not read of the prompts: the text encoders take a limited number of tokens."""
        if recipe["strength"] == 0:
            return []
        pipeline = self._pipeline(recipe["scheduler"])
        taken = inspect.signature(pipeline.__call__).parameters
        notes = []
        for kind in ("prompt", "negative_prompt"):
            text = recipe.get(kind)
            if (
                kind == "negative_prompt" and "true_cfg_scale" in taken
            ):  # FLUX: guidance is a condition, not a second pass
                notes += ["this model uses no negative prompt"] if text else []
                continue
            for name in _tokenizers(pipeline):
                tokenizer = getattr(pipeline, name)
                most = tokenizer.model_max_length
                if "T5" in type(tokenizer).__name__ and "max_sequence_length" in taken:
                    most = min(most, taken["max_sequence_length"].default)
                count = len(tokenizer(text or "", verbose=False).input_ids)
                if count > most:
                    notes.append(f"{kind} cut: {name} reads {most} of its {count} tokens")
        return notes

    def _scaled(self, encoded: torch.Tensor) -> torch.Tensor:
        """An encoding in diffusion's scale, by the operations, in their order, of the families' pipelines."""
        config = self.vae.config
        if (spread := self._mean_and_std(encoded)) is not None:
            return (encoded - spread[0]) * config.scaling_factor / spread[1]
        if shift := config.get("shift_factor"):
            return (encoded - shift) * config.scaling_factor
        return config.scaling_factor * encoded

    def _unscaled(self, latent: torch.Tensor) -> torch.Tensor:
        config = self.vae.config
        if (spread := self._mean_and_std(latent)) is not None:
            return latent * spread[1] / config.scaling_factor + spread[0]
        if shift := config.get("shift_factor"):
            return latent / config.scaling_factor + shift
        return latent / config.scaling_factor

    def _mean_and_std(self, like: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor] | None:
        names = ("latents_mean", "latents_std")
        values = [self.vae.config.get(name) for name in names]
        if None in values:
            return None
        mean, std = (torch.tensor(value, device=like.device, dtype=like.dtype).view(1, -1, 1, 1) for value in values)
        return mean, std

    def _denoised(
        self,
        latent: torch.Tensor,
        size: tuple[int, int],
        recipe: dict[str, Any],
        generator: torch.Generator,
        on_step: Callable[[], None],
    ) -> torch.Tensor:
        pipeline = self._pipeline(recipe["scheduler"])
        options = {
            "prompt": recipe["prompt"],
            "negative_prompt": recipe.get("negative_prompt"),
            "image": latent,  # with the model's channels, the pipeline takes it as encoded
            "height": size[0],
            "width": size[1],
            "strength": recipe["strength"],
            "num_inference_steps": recipe["num_inference_steps"],
            "guidance_scale": recipe["guidance_scale"],
            "generator": generator,
            "output_type": "latent",
            "callback_on_step_end": lambda *_: on_step() or {},
        }
        taken = inspect.signature(pipeline.__call__).parameters
        latent = pipeline(**{key: value for key, value in options.items() if key in taken}).images
        if latent.ndim == 3:  # FLUX's patches in a row
            latent = pipeline._unpack_latents(latent, *size, self.factor)
        return latent

    def _pipeline(self, scheduler: str) -> diffusers.DiffusionPipeline:
        """This thread's pipeline; the weights are shared, the scheduler and the tokenizers are its own."""
        pipelines = self._own.__dict__.setdefault("pipelines", {})
        if scheduler not in pipelines:
            with self._loading:
                pipeline = copy.copy(self._loaded)
                for name in _tokenizers(pipeline):
                    setattr(pipeline, name, copy.deepcopy(getattr(pipeline, name)))
            pipeline.scheduler = _scheduler(pipeline.scheduler, scheduler)
            pipelines[scheduler] = pipeline
        return pipelines[scheduler]

    @cached_property
    def _loaded(self) -> diffusers.DiffusionPipeline:
        import transformers  # slow to import, as the pipelines are
        from diffusers import AutoPipelineForImage2Image

        index = _json(self.folder / "model_index.json")
        channels = self.vae.config["latent_channels"]
        taken = self._denoiser["in_channels"] // (4 if index["_class_name"].startswith("Flux") else 1)
        if channels != taken:
            raise ItemError(
                f"the autoencoder's latents have {channels} channels, but the model takes {taken}: "
                "with this vae_id only strength 0 is possible"
            )
        transformers.utils.logging.disable_progress_bar()
        given: dict[str, Any] = {"vae": self.vae}
        for part, (library, kind) in ((part, found) for part, found in index.items() if isinstance(found, list)):
            if part in ("safety_checker", "feature_extractor", "image_encoder"):
                given[part] = None
            elif kind and part.startswith(("unet", "transformer", "text_encoder")):
                given[part] = self._load(
                    self.folder / part, getattr({"transformers": transformers}.get(library, diffusers), kind)
                )
        if "requires_safety_checker" in index:
            given["requires_safety_checker"] = False
        pipeline = AutoPipelineForImage2Image.from_pretrained(self.folder, **given, local_files_only=True)
        pipeline.set_progress_bar_config(disable=True)
        return pipeline


def _json(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8"))


def _tokenizers(pipeline: diffusers.DiffusionPipeline) -> list[str]:
    return [name for name in pipeline.components if name.startswith("tokenizer") and getattr(pipeline, name)]


def _scheduler(own: Any, name: str) -> Any:
    """A new scheduler of the class `name` with the settings of the model's `own`.

    `auto` is DDIM for models that predict noise or velocity on a beta schedule, and their own for flow matching.

    Raises:
        ItemError: it does not suit the model, or draws noise that nobody asked for.
    """
    is_flow = "FlowMatch" in type(own).__name__
    if name == "auto":
        name = type(own).__name__ if is_flow else "DDIMScheduler"
    if ("FlowMatch" in name) != is_flow:
        wanted = "flow matching" if is_flow else "a beta schedule"
        raise ItemError(f"scheduler {name} does not suit this model, trained with {wanted}; take scheduler auto")
    # As diffusers documents it, `DDIMScheduler.from_config(pipeline.scheduler.config)`: what the model's own scheduler
    # leaves unsaid (`set_alpha_to_one`, `timestep_spacing`) gets the new class's default. The one exception is that
    # DDIM and DDPM would then clip latents to -1 to 1, which is for pixels.
    unsaid = {} if is_flow or "clip_sample" in own.config else {"clip_sample": False}
    scheduler = getattr(diffusers, name).from_config(own.config, **unsaid)
    config = scheduler.config
    if config.get("stochastic_sampling") or str(config.get("algorithm_type", "")).startswith("sde"):
        raise ItemError(f"the model's settings make {name} draw noise in each step; take another scheduler")
    return scheduler
