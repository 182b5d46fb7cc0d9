"""The log of a process that goes on when nothing can be written into it."""

from __future__ import annotations

import contextlib
import io
import sys


class _Descriptor(io.FileIO):
    """An open file into which writing never fails: what cannot be written, as on a full disk, is lost."""

    def write(self, content) -> int:  # type: ignore[no-untyped-def, override]  # any buffer
        with contextlib.suppress(OSError):
            super().write(content)
        return len(content)


def keep_going() -> None:
    """Make what this process prints, and the libraries that it uses, never fail: the log is not worth an item."""
    sys.stdout, sys.stderr = (
        io.TextIOWrapper(file, encoding="utf-8", errors="backslashreplace", line_buffering=True)
        for file in (_Descriptor(number, "w", closefd=False) for number in (1, 2))
    )
