"""Items of one kind go through the model together, in batches of a fixed size.

Whether an item has company does not change its numbers: a batch that is not full is filled up, always to the same size.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from gpi_latents.errors import ItemError, UserError
from gpi_latents.resident.progress import DECODING, MAKING, WAITING

if TYPE_CHECKING:  # it imports torch, which is slow
    import torch
    from PIL import Image

    from gpi_latents.core.diffusion import Model

LONGEST_WAIT = 0.5  # seconds that an item waits for others of its kind while a model is free


@dataclass(eq=False)
class Job:
    """One item on its way through the model.

    Attributes:
        kind: what all items of a batch have in common.
        picture: mode RGB, fitted.
        recipe: as `recipe.recipe` makes it.
        is_decoded: whether the latent's picture is wanted.
        step: told what comes next; what it raises ends the item.
        patience: seconds to wait for others at most; 0 of an item that is alone.
        made: gets what was made, or an error.
    """

    kind: str
    picture: Image.Image
    recipe: dict[str, Any]
    is_decoded: bool
    step: Callable[[str], None]
    patience: float = LONGEST_WAIT
    made: Future[Made] = field(default_factory=Future)
    since: float = field(default_factory=time.monotonic)

    def goes_on(self, doing: str) -> bool:
        """Say what comes next; whether anybody still waits for the item."""
        if not self.made.done():
            try:
                self.step(doing)
            except Exception as error:
                self.fail(error)
        return not self.made.done()

    def fail(self, error: Exception) -> None:
        """End the item with an error, unless it has ended."""
        if not self.made.done():
            self.made.set_exception(error)


@dataclass(frozen=True)
class Made:
    """What the model made of an item.

    Attributes:
        latent: float32 (1, C, h, w).
        decoded: its picture, None if none is wanted.
        notes: what the model does not read of the prompts.
        seconds: of computing, the item's share in its batch.
        device: as torch names it.
    """

    latent: torch.Tensor
    decoded: Image.Image | None
    notes: list[str]
    seconds: float
    device: str


class Batches:
    """Gathers items of one kind, and has a thread for each slot that computes them.

    Args:
        slots: the models; one that computes several batches at a time stands there several times.
        size: items in a batch.
        initializer: called in each thread.
    """

    def __init__(self, slots: Sequence[Model], size: int, initializer: Callable[[], None]):
        self.size = size
        self._initializer = initializer
        self._waiting: list[Job] = []
        self._changed = threading.Condition()
        for model in slots:
            threading.Thread(target=self._work, args=(model,), daemon=True).start()

    def make(self, job: Job) -> Made:
        """Have an item computed, with others or alone, and wait for it.

        Raises:
            Exception: what its `step` raised, or the model.
        """
        with self._changed:
            self._waiting.append(job)
            self._changed.notify()
        return job.made.result()

    def _work(self, model: Model) -> None:
        self._initializer()
        while True:
            self._compute(model, self._next())

    def _next(self) -> list[Job]:
        """Wait for a batch: of the oldest item that has enough company, or has waited long enough for it."""
        with self._changed:
            while True:
                now = time.monotonic()
                for first in self._waiting:
                    batch = [job for job in self._waiting if job.kind == first.kind][: self.size]
                    if len(batch) == self.size or now - first.since >= first.patience:
                        self._waiting = [job for job in self._waiting if job not in batch]
                        return batch
                ends = [job.since + job.patience - now for job in self._waiting]
                self._changed.wait(min(ends, default=None))

    def _compute(self, model: Model, batch: list[Job]) -> None:
        """Compute a batch; an item that nobody waits for any more, or that fails, does not take the others along."""
        import torch

        jobs = [job for job in batch if job.goes_on(MAKING)]
        try:
            if jobs:
                self._make(model, jobs)
        except Exception as error:
            # No program can go on with a GPU after most of these. Another resident tries the items one by one; one that
            # is alone is told, since it is no fault of its own.
            if isinstance(error, torch.AcceleratorError) and any(job.patience for job in jobs):
                print(f"ending: {model.device} has failed: {error}", file=sys.stderr, flush=True)
                os._exit(1)
            if len(jobs) > 1 and not isinstance(error, UserError | torch.OutOfMemoryError):
                error.__traceback__ = None  # which holds the batch's tensors
                for job in jobs:
                    job.goes_on(WAITING)
                for job in jobs:  # one of them is to blame; the others get the same numbers without it
                    self._compute(model, [job])
            for job in jobs:
                job.fail(error)

    def _make(self, model: Model, jobs: list[Job]) -> None:
        def on_step() -> None:
            going = [job.goes_on(MAKING) for job in jobs]
            if not any(going):
                raise InterruptedError("nobody waits for this batch")

        started = time.monotonic()
        latents = model.latents([job.picture for job in jobs], [job.recipe for job in jobs], on_step)
        notes = [model.prompt_notes(job.recipe) for job in jobs]
        good = []
        for job, latent in zip(jobs, latents, strict=True):
            if isinstance(latent, ItemError):
                job.fail(latent)
            elif job.goes_on(DECODING) and job.is_decoded:
                good.append((job, latent))
        pictures = model.decode_all([latent for _, latent in good], self.size) if good else []
        decoded = {job: picture for (job, _), picture in zip(good, pictures, strict=True)}
        seconds = (time.monotonic() - started) / len(jobs)
        for job, latent, own in zip(jobs, latents, notes, strict=True):
            if not job.made.done():
                job.made.set_result(Made(latent, decoded.get(job), own, seconds, str(model.device)))
