"""SHA-256 of files, remembered for as long as their size, dates and number say that they are the same."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import time
from pathlib import Path

from gpi_latents.files import read_json, write_whole

SETTLED = 2.0  # seconds after which a further change of a file certainly changes its date


def file_digest(path: str | Path) -> str:
    """SHA-256 of a file, hexadecimal.

    Raises:
        OSError: it cannot be read.
    """
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


class Digests:
    """The digests of files, each read once until it changes.

    Args:
        memory: file that keeps them between processes; None keeps them nowhere.
    """

    def __init__(self, memory: str | Path | None = None):
        self.memory = memory
        self._known: dict[str, list] = {} if memory is None else read_json(memory)
        self._new = False

    def of(self, path: str | Path) -> str:
        """SHA-256 of a file, hexadecimal.

        Raises:
            OSError: it cannot be read.
        """
        found = os.stat(path)
        state = [found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino]
        *known, digest = self._known.get(key := os.path.join(os.getcwd(), path), [""])
        if known != state:
            digest = file_digest(path)
            if time.time() - max(found.st_mtime, found.st_ctime) > SETTLED:
                self._known[key] = [*state, digest]
                self._new = True
        return digest

    def save(self) -> None:
        """Keep the digests for other processes, if the disk allows."""
        if self.memory is not None and self._new:
            with contextlib.suppress(OSError):
                os.makedirs(os.path.dirname(self.memory), exist_ok=True)
                write_whole(self.memory, json.dumps(self._known).encode())
