"""The log of a job, as the end of a run and the report read it."""

from __future__ import annotations

import pytest
from gpi_latents import joblog

FINISHED = joblog.Finished(['turned "upright"', "é\nb"], [1, 4, 8, 8], 0.5, 1.25, "cpu", ["PNG 3 x 4 RGB"])
ERROR = "error: a.png: the picture 'a.png' cannot be read"


def log(tmp_path, text: str) -> str:
    path = tmp_path / "item.log"
    path.write_text(text, encoding="utf-8")
    return str(path)


@pytest.mark.parametrize("before", ["", "loading the model\nworking on it\n", "TIFFReadDirectory: a warning\n"])
def test_a_job_that_worked_ends_its_log_with_one_line_that_is_read_back(tmp_path, before):
    line = joblog.line(FINISHED)
    assert "\n" not in line
    path = log(tmp_path, f"{before}{line}\n")
    assert joblog.read(path) == FINISHED
    assert joblog.failure(path) == ""


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (f"{ERROR}\n", ERROR[7:]),
        (f"loading the model\nworking on it\n{ERROR}\n", ERROR[7:]),
        (f"libpng warning: bad\n{ERROR}\nmore of it\n", f"{ERROR[7:]} more of it"),
        ("error: " + "x" * 1000, "x" * 500),
        ("/bin/bash: python: command not found\n", "/bin/bash: python: command not found"),
        (
            "Traceback (most recent call last):\n  File\nKeyError: 'x'\n",
            "Traceback (most recent call last):   File KeyError: 'x'",
        ),
        ('{"a": 1}\n', '{"a": 1}'),  # some other JSON
        ("5\n", "5"),
        ("", ""),  # not begun
        ("loading the model\nworking on it\n", ""),  # killed
        ("working on it\nTraceback (most recent call last):\n  File\nKeyboardInterrupt\n\n", ""),  # by Ctrl-C
    ],
)
def test_a_job_that_failed_gives_its_reason_in_one_line(tmp_path, text, reason):
    path = log(tmp_path, text)
    assert joblog.read(path) is None
    assert joblog.failure(path) == reason


def test_a_job_that_never_started_has_neither_result_nor_reason(tmp_path):
    assert joblog.read(str(tmp_path / "item.log")) is None
    assert joblog.failure(str(tmp_path / "item.log")) == ""


def test_a_log_of_an_earlier_version_is_read(tmp_path):
    """It had all that was done among the notes."""
    line = '{"notes": ["PNG 3 x 4 RGB"], "shape": [1, 4, 8, 8], "seconds": 0.5, "total_seconds": 1.25, "device": "cpu"}'
    finished = joblog.read(log(tmp_path, f"{line}\n"))
    assert (finished.notes, finished.done) == (["PNG 3 x 4 RGB"], [])
