"""The log of an item's job: written by its job, read at the end of a run and by the report.

A job that worked ends its log with one line of JSON; one that failed with `error: ` and the message.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field

from gpi_latents.files import read_text

ERROR = "error: "  # resident/client.py, which imports nothing of ours, has it too
LOADING, WORKING = STATES = ("loading the model", "working on it")  # what the resident reports of an item meanwhile
SEARCHING, DOWNLOADED = PROGRESS = ("looking for the model ", "downloaded ")  # begin lines of the log of rule model
DOUBTFUL = "warning: "  # begins a note on a picture that may be another than its user takes it for


@dataclass(frozen=True)
class Finished:
    """What a job reports of its item.

    Attributes:
        notes: what was done to the picture beyond bringing it to its size, what is doubtful about it, and what the
            model does not read of the prompts.
        shape: of the latent.
        seconds: of computing.
        total_seconds: with waiting and files, without loading the model.
        device: as torch names it.
        done: what is said of every picture: its format, size and mode, and how it was brought to its size.
    """

    notes: list[str]
    shape: list[int]
    seconds: float
    total_seconds: float
    device: str
    done: list[str] = field(default_factory=list)  # logs of earlier versions have it among the notes


def line(finished: Finished) -> str:
    """The line for the log."""
    return json.dumps(asdict(finished), ensure_ascii=False)


def read(path: str) -> Finished | None:
    """What a job reported; None if there is no log, or if the job did not finish."""
    try:
        return Finished(**json.loads(read_text(path).splitlines()[-1]))
    except (ValueError, TypeError, IndexError, RecursionError):
        return None


def failure(path: str) -> str:
    """Why a job failed, in one line of at most 500 characters; empty if it worked, did not start or was ended."""
    if read(path) is not None:
        return ""
    text = read_own(path)
    _, is_there, message = f"\n{text}".partition(f"\n{ERROR}")  # before it, what C libraries print
    lines = message.splitlines() if is_there else [line for line in text.splitlines() if line not in STATES]
    return " ".join(lines)[:500]


def read_own(path: str) -> str:
    """The text of a job's log; empty if the user ended the job by Ctrl-C, of which Python leaves a traceback."""
    text = read_text(path)
    return "" if text.endswith("KeyboardInterrupt") else text
