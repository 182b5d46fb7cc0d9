"""The log of a process that goes on when nothing can be written into it."""

from __future__ import annotations

import contextlib
import io
import os
import sys


class _Descriptor(io.RawIOBase):
    """An open file into which writing never fails: what cannot be written, as on a full disk, is lost."""

    def __init__(self, number: int):
        self.number = number

    def writable(self) -> bool:
        return True

    def fileno(self) -> int:
        return self.number

    def write(self, content) -> int:  # type: ignore[no-untyped-def, override]  # any buffer
        with contextlib.suppress(OSError):
            os.write(self.number, content)
        return len(content)


def keep_going() -> None:
    """Make what this process prints, and the libraries that it uses, never fail: the log is not worth an item."""
    sys.stdout, sys.stderr = (
        io.TextIOWrapper(_Descriptor(number), encoding="utf-8", errors="backslashreplace", line_buffering=True)  # type: ignore[type-var]
        for number in (1, 2)
    )
