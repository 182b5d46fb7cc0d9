"""Stops a process of the workflow at a chosen write, so that a test can kill something at just that moment.

Python imports a module `sitecustomize` at its start; this one is put on the path of a study's Snakemake, and so of its
resident and its stack. (The clients run with -I and do not see it.)
"""

from __future__ import annotations

import json

from helpers.study import Study, wait_for

SITECUSTOMIZE = """
import json, os, pathlib, re, sys, time

fault = json.loads(os.environ["GPI_TEST_FAULT"])
marker, release = pathlib.Path(fault["marker"]), pathlib.Path(fault["release"])


def stop(path, stage):
    if stage != fault["stage"] or not re.search(fault["path"], str(path)) or marker.exists():
        return
    marker.touch()
    deadline = time.monotonic() + 120
    while not release.exists() and time.monotonic() < deadline:
        time.sleep(0.02)


write_bytes, replace = pathlib.Path.write_bytes, pathlib.Path.replace


def stopping_write(self, content):
    stop(self, "before")
    if fault["stage"] == "half" and re.search(fault["path"], str(self)):
        write_bytes(self, content[: len(content) // 2])
        stop(self, "half")
    return write_bytes(self, content)


def stopping_replace(self, target):
    stop(target, "before replacing")
    answer = replace(self, target)
    stop(target, "after")
    return answer


if any(part.endswith(("resident.py", "stack.py")) for part in sys.orig_argv):
    pathlib.Path.write_bytes, pathlib.Path.replace = stopping_write, stopping_replace
"""


class Stop:
    """Where the processes of a study stop once.

    Args:
        study: whose environment is changed.
        path: a regular expression for the file.
        stage: `before` it is written, `half` written, `before replacing` what was there, or `after`.
    """

    def __init__(self, study: Study, path: str, stage: str):
        folder = study.folder.parent / "stop"
        folder.mkdir()
        (folder / "sitecustomize.py").write_text(SITECUSTOMIZE)
        self.marker, self.release_file = folder / "marker", folder / "release"
        fault = {"path": path, "stage": stage, "marker": str(self.marker), "release": str(self.release_file)}
        study.environment |= {"PYTHONPATH": str(folder), "GPI_TEST_FAULT": json.dumps(fault)}

    def reached(self) -> None:
        wait_for(self.marker.exists, 120, "the write to stop at")

    def release(self) -> None:
        self.release_file.touch()
