"""The diffusion part of a model: its family's image-to-image pipeline in diffusers, with a scheduler of choice."""

from __future__ import annotations

import copy
import inspect
import json
import threading
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import diffusers
import torch

from gpi_latents.errors import ModelError
from gpi_latents.recipe import canonical

NOT_LOADED = ("safety_checker", "feature_extractor", "image_encoder")


class Pipelines:
    """The pipelines of one model: loaded at first use, then one for each thread and scheduler, with shared weights.

    Args:
        folder: of the model, in diffusers' layout.
        vae: its autoencoder.
        load_part: loads a part of the model, given its folder and class.
    """

    def __init__(self, folder: Path, vae: Any, load_part: Callable[[Path, Any], Any]):
        self.folder = folder
        self.vae = vae
        self._load_part = load_part
        self._loading = threading.Lock()
        self._own = threading.local()

    @cached_property
    def denoiser_config(self) -> dict[str, Any]:
        """The config of the UNet or of the transformer."""
        paths = (self.folder / part / "config.json" for part in ("unet", "transformer"))
        return next(read_json(path) for path in paths if path.exists())

    @cached_property
    def is_xl(self) -> bool:
        """Whether it is a Stable Diffusion XL, whose pipeline encodes in float32 if its VAE asks for it."""
        return read_json(self.folder / "model_index.json")["_class_name"].startswith("StableDiffusionXL")

    def denoise(
        self,
        encoded: torch.Tensor,
        size: tuple[int, int],
        recipes: Sequence[dict[str, Any]],
        generators: list[torch.Generator],
        on_step: Callable[[], Any],
    ) -> torch.Tensor:
        """Add noise to encoded pictures and denoise them.

        Args:
            encoded: (N, C, h, w) in diffusion's scale.
            size: (height, width) of the pictures in pixels.
            recipes: N of one kind, with strength above 0.
            generators: N that draw the noise.
            on_step: called after each step.

        Returns:
            The final latents, of the same shape.

        Raises:
            ModelError: the autoencoder or the scheduler does not suit the model.
        """
        recipe = recipes[0]
        pipeline = copy.copy(self._pipeline(recipe["scheduler"]))
        pipeline.scheduler = copy.deepcopy(pipeline.scheduler)  # some keep a part of their state for the next picture
        options = {
            "prompt": [each["prompt"] for each in recipes],
            # An empty text is not the same as none: XL's pipeline takes zeros for none.
            "negative_prompt": [each["negative_prompt"] for each in recipes] if _has_negative(recipe) else None,
            "image": encoded,  # with the model's channels, the pipeline takes it as encoded
            "height": size[0],
            "width": size[1],
            "strength": recipe["strength"],
            "num_inference_steps": recipe["num_inference_steps"],
            "guidance_scale": recipe["guidance_scale"],
            "generator": generators,
            "output_type": "latent",
            "callback_on_step_end": lambda *_: on_step() or {},
        }
        accepted = inspect.signature(pipeline.__call__).parameters
        denoised = pipeline(**{key: value for key, value in options.items() if key in accepted}).images
        if denoised.ndim == 3:  # FLUX's patches in a row
            denoised = pipeline._unpack_latents(denoised, *size, size[0] // encoded.shape[-2])
        return denoised

    def prompt_notes(self, recipe: dict[str, Any]) -> list[str]:
        """What the model does not read of the prompts: the text encoders read a limited number of tokens."""
        pipeline = self._pipeline(recipe["scheduler"])
        accepted = inspect.signature(pipeline.__call__).parameters
        notes = []
        for kind in ("prompt", "negative_prompt"):
            text = recipe.get(kind) or ""
            if kind == "negative_prompt" and "true_cfg_scale" in accepted:  # FLUX's guidance makes no second pass
                notes += ["this model uses no negative prompt"] if text else []
                continue
            for name in _tokenizers(pipeline):
                tokenizer = getattr(pipeline, name)
                most = tokenizer.model_max_length
                if "T5" in type(tokenizer).__name__ and "max_sequence_length" in accepted:
                    most = min(most, accepted["max_sequence_length"].default)
                count = len(tokenizer(text, verbose=False).input_ids)
                if count > most:
                    notes.append(f"{kind} cut: {name} reads {most} of its {count} tokens")
        return notes

    def _pipeline(self, scheduler: str) -> Any:
        """This thread's pipeline: schedulers and tokenizers keep state, so each thread has its own."""
        pipelines = self._own.__dict__.setdefault("pipelines", {})
        if scheduler not in pipelines:
            with self._loading:
                pipeline = copy.copy(self.loaded)
                for name in _tokenizers(pipeline):
                    setattr(pipeline, name, copy.deepcopy(getattr(pipeline, name)))
            pipeline.scheduler = _scheduler(pipeline.scheduler, scheduler)
            pipelines[scheduler] = pipeline
        return pipelines[scheduler]

    @cached_property
    def loaded(self) -> Any:
        """The pipeline with the model's own scheduler.

        Raises:
            ModelError: the autoencoder's latents are not what the model takes.
        """
        import transformers  # slow to import, as the pipelines are
        from diffusers import AutoPipelineForImage2Image

        index = read_json(self.folder / "model_index.json")
        channels = self.vae.config["latent_channels"]
        expected = self.denoiser_config["in_channels"] // (4 if index["_class_name"].startswith("Flux") else 1)
        if channels != expected:
            raise ModelError(
                f"the autoencoder's latents have {channels} channels, but the model takes {expected}: "
                "with this vae_id only strength 0 is possible"
            )
        transformers.utils.logging.disable_progress_bar()
        given: dict[str, Any] = {"vae": self.vae}
        for part, (library, kind) in ((part, found) for part, found in index.items() if isinstance(found, list)):
            if part in NOT_LOADED or kind is None:  # none: Stable Diffusion 3 saved without its T5
                given[part] = None
            elif part.startswith(("unet", "transformer", "text_encoder")):
                module = transformers if library == "transformers" else diffusers
                given[part] = self._load_part(self.folder / part, getattr(module, kind))
        if "requires_safety_checker" in index:
            given["requires_safety_checker"] = False
        pipeline = AutoPipelineForImage2Image.from_pretrained(self.folder, **given, local_files_only=True)
        pipeline.set_progress_bar_config(disable=True)
        return pipeline


def kind(size: tuple[int, int], recipe: dict[str, Any]) -> str:
    """What items have in common that go through the model together: their size and all but texts and seed."""
    own = ("prompt", "negative_prompt", "empty_negative_prompt", "seed")
    shared = {key: value for key, value in recipe.items() if key not in own}
    return canonical([size, _has_negative(recipe), shared])


def _has_negative(recipe: dict[str, Any]) -> bool:
    return bool(recipe.get("negative_prompt")) or "empty_negative_prompt" in recipe


def read_json(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8"))


def _tokenizers(pipeline: Any) -> list[str]:
    return [name for name in pipeline.components if name.startswith("tokenizer") and getattr(pipeline, name)]


def _scheduler(own: Any, name: str) -> Any:
    """A new scheduler of the class `name` with the settings of the model's `own`.

    `auto` is DDIM for models that predict noise or velocity on a beta schedule, and their own for flow matching.

    Raises:
        ModelError: it does not suit the model, or draws noise that the recipe does not ask for.
    """
    is_flow = "FlowMatch" in type(own).__name__
    if name == "auto":
        name = type(own).__name__ if is_flow else "DDIMScheduler"
    if ("FlowMatch" in name) != is_flow:
        wanted = "flow matching" if is_flow else "a beta schedule"
        raise ModelError(f"scheduler {name} does not suit this model, trained with {wanted}; use scheduler auto")
    # As diffusers documents it, `DDIMScheduler.from_config(pipeline.scheduler.config)`: what the model's own scheduler
    # does not set (`set_alpha_to_one`, `timestep_spacing`) gets the new class's default. The one exception is that
    # DDIM and DDPM would then clip latents to -1 to 1, which is for pixels.
    added = {} if is_flow or "clip_sample" in own.config else {"clip_sample": False}
    scheduler = getattr(diffusers, name).from_config(own.config, **added)
    config = scheduler.config
    if config.get("stochastic_sampling") or str(config.get("algorithm_type", "")).startswith("sde"):
        raise ModelError(f"the model's settings make {name} draw noise in each step; use another scheduler")
    return scheduler
