"""The log of an item's job: written by the resident, read by the end of a run and by the report.

A job that worked ends its log with one line of JSON; one that failed with `error: ` and the message, which
scripts/extract.py prints.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass

from gpi_latents.files import read_text

ERROR = "error: "


@dataclass(frozen=True)
class Finished:
    """What a job says of its item.

    Attributes:
        notes: what was done to the picture and to the prompts.
        shape: of the latent.
        seconds: of computing.
        total_seconds: with waiting and files, without loading the model.
        device: as torch names it.
    """

    notes: list[str]
    shape: list[int]
    seconds: float
    total_seconds: float
    device: str


def line(finished: Finished) -> str:
    """The line for the log."""
    return json.dumps(asdict(finished), ensure_ascii=False)


def read(path: str) -> Finished | None:
    """What the log of a job says; None if there is none, or if the job did not finish."""
    try:
        return Finished(**json.loads(read_text(path).splitlines()[-1]))
    except (ValueError, TypeError, IndexError):
        return None


def failure(path: str) -> str:
    """Why a job failed, in one line of at most 500 characters; empty if it worked or did not come to an end."""
    text = read_text(path)
    if read(path) is not None:
        return ""
    _, is_there, message = ("\n" + text).partition("\n" + ERROR)
    lines = message.splitlines() if is_there else [line for line in text.splitlines() if not is_state(line)]
    return " ".join(lines)[:500]


def is_state(line: str) -> bool:
    """Whether a line only says what the resident is doing."""
    return line in STATES


STATES = ("loading the model", "working on it")
