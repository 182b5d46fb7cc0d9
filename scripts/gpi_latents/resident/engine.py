"""The model on its devices: one item from end to end."""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gpi_latents import joblog
from gpi_latents.digests import file_digest
from gpi_latents.errors import ItemError, UserError
from gpi_latents.files import state, write_whole
from gpi_latents.model.source import locate, read_model
from gpi_latents.origin import Origin
from gpi_latents.recipe import model_digest, recipe_digest
from gpi_latents.resident.batches import LONGEST_WAIT, Batches, Job
from gpi_latents.resident.progress import WAITING


@dataclass(frozen=True)
class Request:
    """What one job asks for.

    Attributes:
        image: path of the picture.
        recipe: as `recipe.recipe` makes it.
        latent: path of the latent's file.
        picture: path of the decoded picture's file; None if none is wanted.
        alone: whether no other item may be at work meanwhile.
    """

    image: str
    recipe: dict[str, Any]
    latent: str
    picture: str | None = None
    alone: bool = False


class Engine:
    """The model, loaded: one replica per GPU, or on the CPU one that all worker threads share.

    Args:
        config: as `settings.load_config` returns it.
        workers: items at a time on a CPU.
        replicas: how many GPUs are used at most; None is all of them.

    Raises:
        ModelError: the model is not on this machine, or cannot be loaded.
    """

    def __init__(self, config: Mapping[str, Any], workers: int, replicas: int | None = None):
        found = read_model()
        located = locate(found, config["cache_dir"])

        from gpi_latents.core import diffusion  # imports torch, which is slow, so after what may fail at once

        self.model_sha256 = model_digest(found, config["dtype"])
        diffusion.same_bits()
        devices = diffusion.devices(config["device"])[:replicas]
        self.models = [diffusion.Model(device=name, dtype=config["dtype"], **located) for name in devices]
        on_cpu = devices == ["cpu"]
        slots = self.models * (min(workers, os.cpu_count() or 1) if on_cpu else 1)
        self.same_bits = diffusion.same_bits  # torch counts its threads for each of ours
        self.batches = Batches(slots, config["batch_size"], self.same_bits)
        self.at_once = len(slots) * config["batch_size"]
        # A thread has one item, from end to end. While a GPU computes, others open and save pictures.
        self.threads = self.at_once + (0 if on_cpu else 4 * config["batch_size"])

    def extract(self, request: Request, step: Callable[[str], None] = lambda doing: None) -> joblog.Finished:
        """Extract one item, in a thread of its own.

        Args:
            request: what to make.
            step: told what comes next, as `progress.Progress.step`; what it raises ends the item, of which nothing is
                written then.

        Raises:
            ItemError: the item itself cannot be processed, or its picture was changed meanwhile.
            ModelError: the model does not suit the config, or has changed.
            UserError: the disk with the pictures cannot be read, or there is too little memory.
            OSError: a result cannot be written.
        """
        import torch

        from gpi_latents.core.pictures import png_bytes
        from gpi_latents.core.pipeline import kind
        from gpi_latents.tensors.latent_file import latent_bytes

        step("opening the picture")
        started = time.monotonic()
        before = state(request.image)
        try:
            picture, handling = self.models[0].prepare(request.image, request.recipe)
        except ItemError as error:
            if _is_of_machine(error.__cause__):
                raise UserError(str(error)) from error
            raise
        image_sha256 = file_digest(request.image)
        step(WAITING)
        shared = kind(picture.size, request.recipe)
        patience = 0 if request.alone else LONGEST_WAIT
        try:
            made = self.batches.make(Job(shared, picture, request.recipe, bool(request.picture), step, patience))
        except torch.OutOfMemoryError as error:
            hint = "use a smaller image_size or batch_size, dtype float16, or a device with more memory"
            # No fault of the item: what else the device holds decides, and items left out for it would be a bias.
            raise UserError(f"the device has too little memory: {hint} ({error})") from error
        notes = handling.notes + made.notes
        origin = Origin(recipe_digest(request.recipe), image_sha256, self.model_sha256, request.image, notes)
        step("writing the latent")
        _check_unchanged(request.image, before)
        # The latent comes last: with it the item is finished.
        if made.decoded is not None and request.picture is not None:
            write_whole(request.picture, png_bytes(made.decoded))
        write_whole(request.latent, latent_bytes(made.latent, origin))
        try:
            _check_unchanged(request.image, before)
        except ItemError:
            Path(request.latent).unlink()  # newer than the picture, it would hide the change from Snakemake
            raise
        total = time.monotonic() - started
        times = round(made.seconds, 3), round(total, 3)
        return joblog.Finished(notes, list(made.latent.shape), *times, made.device, handling.done)


def _is_of_machine(error: BaseException | None) -> bool:
    """Whether a picture could not be read because of its disk or the memory, not because of what is in its file.

    EINVAL is also what a damaged file gives that names a place beyond all files.
    """
    return isinstance(error, MemoryError) or getattr(error, "errno", None) not in (None, errno.EINVAL)


def _check_unchanged(image: str, before: tuple[int, int] | None) -> None:
    if state(image) != before:
        raise ItemError("the picture was changed while it was read: run again")
