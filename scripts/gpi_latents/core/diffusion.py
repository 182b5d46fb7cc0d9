"""The core: a picture and its recipe in, the diffusion model's final latent out."""

from __future__ import annotations

import os

os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # what deterministic cuBLAS needs, before CUDA starts
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")  # its advice on packages is not for our users

import contextlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import diffusers
import torch
from diffusers.image_processor import VaeImageProcessor
from PIL import Image

from gpi_latents.core.pictures import Handling, fit_picture, open_picture
from gpi_latents.core.pipeline import Pipelines, kind, read_json
from gpi_latents.digests import Digests
from gpi_latents.errors import ItemError, ModelError
from gpi_latents.paths import DIGESTS

diffusers.utils.logging.disable_progress_bar()


_SWITCHED_OFF = [
    (torch.backends.cuda.matmul, "allow_tf32"),
    (torch.backends.cudnn, "allow_tf32"),
    (torch.backends.cudnn, "benchmark"),
    (torch.utils.deterministic, "fill_uninitialized_memory"),  # our operations read nothing unwritten
]


def same_bits() -> None:
    """Set torch so that the same recipe gives the same bits, whatever else runs.

    One CPU thread per item: with two, a sum is split in another way and differs in the last digits.
    """
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    for place, name in _SWITCHED_OFF:
        setattr(place, name, False)


@contextlib.contextmanager
def restored_settings() -> Iterator[None]:
    """Restore at the end what `same_bits` sets for the whole process."""
    before = [getattr(place, name) for place, name in _SWITCHED_OFF]
    is_deterministic = torch.are_deterministic_algorithms_enabled()
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    threads = torch.get_num_threads()
    try:
        yield
    finally:
        torch.set_num_threads(threads)
        torch.use_deterministic_algorithms(is_deterministic, warn_only=warn_only)
        for (place, name), value in zip(_SWITCHED_OFF, before, strict=True):
            setattr(place, name, value)


def devices(chosen: str) -> list[str]:
    """The devices that the config's `device` means, as torch names them: `auto` is every GPU, else the CPU.

    Raises:
        ModelError: torch does not see the GPU.
    """
    if chosen == "auto":
        chosen = "cuda" if torch.cuda.is_available() else "cpu"
    if chosen.startswith("cuda") and not torch.cuda.is_available():
        raise ModelError(f"device {chosen} is wanted, but torch sees no GPU here; use device cpu")
    return [f"cuda:{number}" for number in range(torch.cuda.device_count())] if chosen == "cuda" else [chosen]


class Model:
    """A diffusion model whose parts are loaded when an item first needs them.

    Safe to use from several threads.

    Args:
        folder: in diffusers' layout.
        device: as torch names it.
        dtype: `float32`, `float16` or `bfloat16`; a VAE that asks for it stays in float32 instead of float16, and that
            of Stable Diffusion XL also instead of bfloat16, as in diffusers.
        vae_folder: of another autoencoder than the model's own.
        variant: of the weights' files, such as `fp16`.
        allow_pickle: whether weights are read from `.bin` files too, where there are no safetensors.
        sha256: digests of the model's files by their paths, which are compared when a part is loaded.

    Raises:
        ModelError: the autoencoder's weights are incomplete, or a file has another digest.
    """

    def __init__(
        self,
        folder: str | Path,
        device: str = "cpu",
        dtype: str = "float32",
        vae_folder: str | Path | None = None,
        variant: str | None = None,
        allow_pickle: bool = False,
        sha256: Mapping[str, str] | None = None,
    ):
        self.folder = Path(folder)
        self._sha256 = sha256 or {}
        self.device = torch.device(device)
        self.dtype = getattr(torch, dtype)
        self._options = {
            "dtype": self.dtype,
            "variant": variant,
            "use_safetensors": None if allow_pickle else True,
            "local_files_only": True,
        }
        vae_folder = Path(vae_folder or self.folder / "vae")
        self.vae = self._load(vae_folder, getattr(diffusers, read_json(vae_folder / "config.json")["_class_name"]))
        self.processor = VaeImageProcessor(self.factor)
        self.pipelines = Pipelines(self.folder, self.vae, self._load)
        is_upcast = self.dtype != torch.float32 and self.vae.config.get("force_upcast")
        if is_upcast and (self.dtype == torch.float16 or self.pipelines.is_xl):
            self.vae = self.vae.to(torch.float32)
        self._checked: set[str] = set()

    def _load(self, folder: Path, kind: Any) -> Any:
        has_variant = any(folder.glob(f"*.{self._options['variant']}*"))
        options = self._options | ({} if has_variant else {"variant": None})
        part, found = kind.from_pretrained(folder, **options, output_loading_info=True)
        if found["missing_keys"]:  # diffusers and transformers would use random ones
            raise ModelError(f"the weights in {folder} are incomplete: they have no {min(found['missing_keys'])}")
        self._check_files(folder)
        return part.to(self.device).eval()

    def _check_files(self, folder: Path) -> None:
        """Check that a part's files, and all small ones, are those that were found when the run began."""
        digests = Digests(DIGESTS)
        for path, digest in self._sha256.items():
            is_read = Path(path).parent == folder or not path.endswith((".safetensors", ".bin"))
            if is_read and digests.of(path) != digest:
                raise ModelError(f"{path}, a file of the model, was changed after the run began: run snakemake again")

    @cached_property
    def factor(self) -> int:
        """How many pixels, along each side, become one position of the latent."""
        widths = self.vae.config.get("block_out_channels") or self.vae.config["encoder_block_out_channels"]
        return 2 ** (len(widths) - 1)

    @cached_property
    def multiple(self) -> int:
        """What the sides of a picture are multiples of: transformers see several positions of a latent as one patch."""
        config = self.pipelines.denoiser_config
        packed = config["in_channels"] // self.vae.config["latent_channels"]  # 4 where FLUX packs 2 x 2
        return self.factor * config.get("patch_size", 1) * max(1, math.isqrt(packed))

    @cached_property
    def native_size(self) -> tuple[int, int]:
        """(height, width) in pixels of the pictures that the model was made for."""
        side = self.pipelines.denoiser_config.get("sample_size") or 128  # FLUX's pipeline takes 128
        height, width = (side, side) if isinstance(side, int) else side
        return height * self.factor, width * self.factor

    def prepare(self, image: str | Path | Image.Image, recipe: dict[str, Any]) -> tuple[Image.Image, Handling]:
        """Open an item's picture and bring it to the size that its recipe asks for; needs no device.

        Raises:
            ItemError: the picture cannot be read.
            ModelError: the size does not suit the model.
        """
        size = recipe["image_size"] or self.native_size
        size = (size, size) if isinstance(size, int) else tuple(size)
        if recipe["resize"] != "contain" and any(side % self.multiple for side in size):
            raise ModelError(f"image_size {size[0]} x {size[1]}: this model takes multiples of {self.multiple}")
        picture, handling = open_picture(image)
        picture, fitted = fit_picture(picture, size, recipe["resize"], self.multiple)
        handling.done += fitted
        return picture, handling

    @torch.inference_mode()
    def latent(
        self, picture: Image.Image, recipe: dict[str, Any], on_step: Callable[[], Any] = lambda: None
    ) -> torch.Tensor:
        """The final latent of one item, as `latents` makes it.

        Raises:
            ItemError: the latent has NaN or infinite values.
            ModelError: as `latents`.
        """
        [latent] = self.latents([picture], [recipe], on_step)
        if isinstance(latent, ItemError):
            raise latent
        return latent

    @torch.inference_mode()
    def latents(
        self,
        pictures: Sequence[Image.Image],
        recipes: Sequence[dict[str, Any]],
        on_step: Callable[[], Any] = lambda: None,
    ) -> list[torch.Tensor | ItemError]:
        """The final latents of items, the tensors that the decoder would turn into pictures, in diffusion's scale.

        At strength 0, with z drawn from, or the mode of, the VAE's posterior (or what a VAE without one gives), it is

        - `scaling_factor * z` for Stable Diffusion 1.x, 2.x and XL;
        - `scaling_factor * (z - shift_factor)` for a VAE with a shift: Stable Diffusion 3, FLUX.1;
        - `scaling_factor * (z - latents_mean) / latents_std` for a VAE that holds these, some of XL's.

        Above, it is what the family's image-to-image pipeline in diffusers gives as `output_type="latent"` with the
        same generator, for FLUX.1 unpacked.

        Args:
            pictures: mode RGB, their sides multiples of `multiple`; at most `batch_size`, up to which they are filled.
            recipes: as `recipe.recipe` makes them, one for each picture, of one `kind`.
            on_step: called after each denoising step; what it raises ends the batch.

        Returns:
            float32 (1, C, H / factor, W / factor) on the CPU, in the model's memory layout (other kernels decode
            another), or an error if it has NaN or infinite values.

        Raises:
            ModelError: the recipes do not suit the model, a part of the model cannot be loaded, or places in a batch
                matter on this device.
        """
        size = recipes[0].get("batch_size", 1)
        pixels = torch.cat([self.processor.preprocess(picture) for picture in _filled(pictures, size)])
        if size > 1:
            self._check_places(pixels.shape[2:], recipes[0], on_step)
        made = self._computed(pixels, _filled(recipes, size), on_step)
        hint = "dtype float32 or bfloat16" if self.dtype == torch.float16 else "another seed, scheduler or strength"
        problem = f"the latent has NaN or infinite values; try {hint}"
        latents = made.split(1)[: len(recipes)]
        return [latent if torch.isfinite(latent).all() else ItemError(problem) for latent in latents]

    def decode(self, latent: torch.Tensor, batch_size: int = 1) -> Image.Image:
        """Decode one latent, as `decode_all` does."""
        return self.decode_all([latent], batch_size)[0]

    @torch.inference_mode()
    def decode_all(self, latents: Sequence[torch.Tensor], batch_size: int = 1) -> list[Image.Image]:
        """Decode latents to their pictures, together.

        Args:
            latents: each (1, C, h, w) as `latents` returns it; at most `batch_size`.
            batch_size: as in their recipes.

        Returns:
            Mode RGB, of the size that was encoded.
        """
        decoded = self._decoded(torch.cat(_filled(latents, batch_size)))
        return self.processor.postprocess(decoded[: len(latents)], output_type="pil")

    def _computed(
        self, pixels: torch.Tensor, recipes: Sequence[dict[str, Any]], on_step: Callable[[], Any]
    ) -> torch.Tensor:
        """The latents of one batch, float32 (N, C, h, w) on the CPU, from pixels (N, 3, H, W), -1 to 1."""
        recipe = recipes[0]
        # Drawn on the CPU and moved, so that every device starts from the same noise.
        generators = [torch.Generator("cpu").manual_seed(each["seed"]) for each in recipes if "seed" in each]
        # The pipeline of XL has its VAE in float32, but what goes in and out in the model's numbers.
        dtype = self.dtype if recipe["strength"] > 0 and self.pipelines.is_xl else self.vae.dtype
        encoded = self.vae.encode(pixels.to(self.device, dtype).to(self.vae.dtype))
        if "latent_dist" in encoded:
            posterior = encoded.latent_dist
            encoded = posterior.sample(generators) if recipe["posterior"] == "sample" else posterior.mode()
        else:
            encoded = encoded[0]
        latents = self._scaled(encoded.to(dtype))
        if recipe["strength"] > 0:
            size = (pixels.shape[2], pixels.shape[3])
            latents = self.pipelines.denoise(latents, size, recipes, generators, on_step)
        return latents.to("cpu", torch.float32)

    def _decoded(self, latents: torch.Tensor) -> torch.Tensor:
        return self.vae.decode(self._unscaled(latents.to(self.device, self.vae.dtype))).sample

    def _check_places(self, size: Sequence[int], recipe: dict[str, Any], on_step: Callable[[], Any]) -> None:
        """Check, once for each kind of batch, that on this device neighbours and places do not matter.

        Made-up items are computed (above strength 0 with one step), then all but the first in the place before.
        """
        brief = {"strength": 1.0, "num_inference_steps": 1, "scheduler": "auto"} if recipe["strength"] > 0 else {}
        if (checked := kind((size[0], size[1]), recipe | brief)) in self._checked:
            return
        count = recipe["batch_size"]
        pixels = 2 * torch.rand((count + 1, 3, *size), generator=torch.Generator().manual_seed(0)) - 1
        recipes = [recipe | brief | {"seed": number, "prompt": f"{number}"} for number in range(count + 1)]
        made = [self._computed(pixels[first:][:count], recipes[first:][:count], on_step) for first in (0, 1)]
        for before, after in (made, [self._decoded(latents) for latents in made]):
            if not torch.allclose(before[1:], after[:-1], rtol=0, atol=0, equal_nan=True):
                raise ModelError(f"on {self.device}, an item's place in a batch changes its numbers: set batch_size: 1")
        self._checked.add(checked)

    def prompt_notes(self, recipe: dict[str, Any]) -> list[str]:
        """What the model does not read of the prompts; nothing at strength 0, where it reads none."""
        return self.pipelines.prompt_notes(recipe) if recipe["strength"] > 0 else []

    def _scaled(self, encoded: torch.Tensor) -> torch.Tensor:
        """An encoding in diffusion's scale, by the operations, in their order, of the families' pipelines."""
        config = self.vae.config
        if moments := self._mean_and_std(encoded):
            return (encoded - moments[0]) * config.scaling_factor / moments[1]
        if shift := config.get("shift_factor"):
            return (encoded - shift) * config.scaling_factor
        return config.scaling_factor * encoded

    def _unscaled(self, latent: torch.Tensor) -> torch.Tensor:
        config = self.vae.config
        if moments := self._mean_and_std(latent):
            return latent * moments[1] / config.scaling_factor + moments[0]
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


def _filled(batch: Sequence[Any], size: int) -> list[Any]:
    """A batch, filled up with its last member."""
    return [*batch, *[batch[-1]] * (size - len(batch))]
