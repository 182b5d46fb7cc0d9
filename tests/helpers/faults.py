"""Stops a process of the workflow at chosen writes, so that a test can kill something at just that moment.

Python imports a module `sitecustomize` at its start; this one is put on the path of a study's Snakemake, and so of its
resident and its stack. (The clients run with -I and do not see it.)
"""

from __future__ import annotations

import json

from helpers.study import Study, residents, wait_for

SITECUSTOMIZE = '''
import json, os, pathlib, re, sys, time

points = json.loads(os.environ["GPI_TEST_POINTS"])
folder = pathlib.Path(__file__).parent


def stop(path, stage):
    for number, (pattern, chosen) in enumerate(points):
        marker = folder / f"reached{number}"
        if stage == chosen and re.search(pattern, str(path)) and not marker.exists():
            marker.touch()
            deadline = time.monotonic() + 120
            while not (folder / f"released{number}").exists() and time.monotonic() < deadline:
                time.sleep(0.02)


open_, replace = pathlib.Path.open, pathlib.Path.replace


class Stopping:
    """A file that is open to be written whole, by one call."""

    def __init__(self, file, path):
        self.file, self.path = file, path

    def __getattr__(self, name):
        return getattr(self.file, name)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.file.close()

    def write(self, content):
        if any(stage == "half" and re.search(pattern, str(self.path)) for pattern, stage in points):
            self.file.write(content[: len(content) // 2])
            self.file.flush()
            stop(self.path, "half")
            content = content[len(content) // 2 :]
        return self.file.write(content)


def stopping_open(self, mode="r", *arguments, **options):
    if mode not in ("xb", "wb"):
        return open_(self, mode, *arguments, **options)
    stop(self, "before")
    return Stopping(open_(self, mode, *arguments, **options), self)


def stopping_replace(self, target):
    stop(target, "before replacing")
    answer = replace(self, target)
    stop(target, "after")
    return answer


if any(part.endswith(("resident.py", "stack.py")) for part in sys.orig_argv):
    pathlib.Path.open, pathlib.Path.replace = stopping_open, stopping_replace
'''


class Stop:
    """Where the processes of a study stop, once at each point.

    Args:
        study: whose environment is changed.
        points: a regular expression for the file and a stage: `before` it is written, `half` written, `before
            replacing` what was there, or `after`.
    """

    def __init__(self, study: Study, *points: tuple[str, str]):
        self.folder = study.folder.parent / "stop"
        self.folder.mkdir()
        (self.folder / "sitecustomize.py").write_text(SITECUSTOMIZE)
        self.waiting = set(range(len(points)))
        self.study = study
        self.environment = {"PYTHONPATH": str(self.folder), "GPI_TEST_POINTS": json.dumps(points)}
        self.resume()

    def resume(self) -> None:
        """Stop at the points that no process has reached, from the next run on."""
        # A resident that is about to end would serve a run that starts at once, and would stop nowhere.
        wait_for(lambda: not residents(self.study.folder), 60, "the resident of the last run to end")
        self.study.environment |= self.environment

    def pause(self) -> None:
        """Stop nowhere, from the next run on."""
        del self.study.environment["PYTHONPATH"]

    def reached(self) -> int:
        """Wait until one more of the points is reached; returns its number."""
        number = wait_for(self._reached, 120, "the write to stop at", self._show)[0]
        self.waiting.remove(number)
        return number

    def release(self, number: int) -> None:
        (self.folder / f"released{number}").touch()

    def _show(self) -> str:
        run = self.study.started[-1]
        return f"the run {'goes on' if run.returncode is None else 'has ended'}:\n{run.text()}"

    def _reached(self) -> list[int]:
        return [number for number in self.waiting if (self.folder / f"reached{number}").exists()]
