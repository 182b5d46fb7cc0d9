"""A resident without a model, for tests of everything around it: it starts in half a second and needs no torch.

Run as a program with the arguments of scripts/resident.py.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

from gpi_latents.core.pictures import open_picture
from gpi_latents.errors import ModelError
from gpi_latents.files import write_whole
from gpi_latents.joblog import Finished

STEP_SECONDS = 0.01


class StubEngine:
    """As `engine.Engine`, but a latent is the recipe's text, and each step of an item takes `STEP_SECONDS`."""

    def __init__(self, config: dict, workers: int, replicas: int | None = None):
        if "gone" in Path("results/model.json").read_text():
            raise ModelError("the model gone is not on this machine")
        print("a library shows its progress", file=sys.stderr, flush=True)
        self.models = [SimpleNamespace(device="stub")]
        self.threads = self.at_once = workers
        self.has_batches = config["batch_size"] > 1
        self.hangs = threading.Event()  # all items of the batch

    def same_bits(self) -> None:
        pass

    def extract(self, request, step: Callable[[str], None]) -> Finished:
        """Leaves files beside the latent that say how far it came."""
        step("opening the picture")
        if Path(request.image).name == "hang.png":
            if self.has_batches:
                self.hangs.set()
            else:
                Path(f"{request.latent}.hangs").touch()
                threading.Event().wait()
        if Path(request.image).name == "model.png":
            raise ModelError("a file of the model was changed")
        if Path(request.image).name == "kill.png":
            time.sleep(0.5)  # so that others are at work beside it
            os.kill(os.getpid(), signal.SIGKILL)
        _, handling = open_picture(request.image)
        Path(f"{request.latent}.begun").touch()
        for _ in range(request.recipe["num_inference_steps"]):
            time.sleep(STEP_SECONDS)
            try:
                step("making the latent")
            except InterruptedError:
                Path(f"{request.latent}.abandoned").touch()
                raise
            if self.hangs.is_set():
                threading.Event().wait()
        Path(f"{request.latent}.begun").unlink()
        write_whole(request.latent, json.dumps(request.recipe).encode())
        return Finished(handling.notes, [1, 4, 8, 8], 0.1, 0.2, "stub", handling.done)


if __name__ == "__main__":
    import runpy

    from gpi_latents import paths
    from gpi_latents.resident import server

    server.Engine = StubEngine
    runpy.run_path(str(paths.SCRIPTS / "resident.py"), run_name="__main__")
