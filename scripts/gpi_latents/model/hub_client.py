"""Hugging Face's client as a job needs it: no request waits for ever, and the log tells how far a download is."""

from __future__ import annotations

import io
import sys
import time
from typing import Any

from huggingface_hub import constants, logging, set_client_factory
from huggingface_hub.utils._http import default_client_factory
from tqdm import tqdm

from gpi_latents.joblog import DOWNLOADED

EVERY = 30.0  # seconds between two lines of progress


def limit_waiting() -> None:
    """Let no request wait longer for an answer than HF_HUB_DOWNLOAD_TIMEOUT says; by default some wait for ever."""

    def limit(request: Any) -> None:
        most = constants.HF_HUB_DOWNLOAD_TIMEOUT
        given = request.extensions.get("timeout", {})
        request.extensions["timeout"] = {
            phase: min(given.get(phase) or most, most) for phase in ("connect", "read", "write", "pool")
        }

    def client() -> Any:
        made = default_client_factory()
        made.event_hooks["request"].append(limit)
        return made

    set_client_factory(client)
    logging.set_verbosity_error()  # of eight files at once, each says that it tries again, five times


class LogLines(tqdm):
    """Progress as a line of the log now and then: of a download's bars, the one that counts bytes received."""

    def __init__(self, *args: Any, **options: Any):
        self._said = -EVERY
        super().__init__(*args, **options | {"file": io.StringIO(), "disable": False})

    def display(self, *_: Any, **__: Any) -> None:
        """Say how far it is, at the end or unless that was said a moment ago."""
        now, stage = time.monotonic(), str(self.desc)
        if self.n and (
            stage.startswith("Download complete") or (stage.startswith("Down") and now >= self._said + EVERY)
        ):
            self._said = now
            print(f"{DOWNLOADED}{self.n / 1e6:,.1f} of {self.total / 1e6:,.1f} MB", file=sys.stderr, flush=True)
