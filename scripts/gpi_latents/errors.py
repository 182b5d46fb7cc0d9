"""Errors whose text is the message for the user."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable

MOST_SHOWN = 20  # entries of a list in a message


class UserError(Exception):
    """Something that the user can put right: its text says what is wrong and what to do."""


class InputError(UserError):
    """A mistake in the config or the sheet, or results that do not belong to them."""


class ModelError(UserError):
    """The model is not available, incomplete, damaged or not supported."""


class ItemError(UserError):
    """One item cannot be processed."""


class DataError(UserError, ValueError):
    """Results are missing, do not belong together, or lack what an estimate needs."""


class TensorError(DataError):
    """A file of latents is missing, damaged or holds something else."""


def error_list(subject: str, errors: list[str]) -> str:
    """A message with all errors of one subject, such as `The config`."""
    return bulleted(f"{subject} has {len(errors)} error{'s' * (len(errors) > 1)}:", errors)


def bulleted(heading: str, texts: list[str], most: int = MOST_SHOWN) -> str:
    """A heading and a list, of which the first `most` entries are shown."""
    lines = [heading, *(f"  - {text}" for text in texts[:most])]
    if len(texts) > most:
        lines.append(f"  ... and {len(texts) - most} more")
    return "\n".join(lines)


def first_line(error: BaseException) -> str:
    """The first line of an error's text that is not blank, or else its type."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)


def listed(texts: Iterable[str], most: int) -> str:
    """Texts in one line, the first `most` of them."""
    texts = list(texts)
    return "; ".join(texts[:most]) + (f"; and {len(texts) - most} more" if len(texts) > most else "")


def duration(seconds: float) -> str:
    """A time in words, such as `1 min 26 s`."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {seconds} s" if minutes else f"{seconds} s"


def exit_code(command: Callable[[], str]) -> int:
    """Run a command and print what it returns, or the error for the user; 0 if it worked, else 1."""
    try:
        print(command())
    except (UserError, OSError) as error:
        print(error, file=sys.stderr)
        return 1
    return 0
