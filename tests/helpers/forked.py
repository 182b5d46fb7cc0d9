"""Start Snakemake as a fork of a process that has imported it already, which saves each call two seconds.

Nothing of gpi_latents is imported there, so a fork runs the workflow that it is given, an edited copy too.
"""

from __future__ import annotations

import multiprocessing
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(
    ["snakemake.cli", "snakemake.report.html_reporter", "rich.console", "rich.table", "pydantic", "pandas"]
)


def _snakemake(arguments: list[str], environment: dict[str, str], output: str) -> None:
    from snakemake import cli

    os.setsid()
    written = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    for stream in (1, 2):
        os.dup2(written, stream)
    os.close(written)
    os.environ.clear()
    os.environ.update(environment)
    os.chdir("/")
    tempfile.tempdir = None  # asks the environment again
    sys.argv = ["snakemake", *arguments]
    cli.main(arguments)


class Forked:
    """A running Snakemake, with what tests need of `subprocess.Popen`; its output goes to a file.

    Args:
        arguments: of the command line.
        environment: all of its environment variables.
        output: the file for what it prints.
    """

    def __init__(self, arguments: list[str], environment: Mapping[str, str], output: Path):
        self.output = output
        self.process = CONTEXT.Process(target=_snakemake, args=(arguments, dict(environment), str(output)))
        self.process.start()
        self.pid = self.process.pid

    @property
    def returncode(self) -> int | None:
        return self.process.exitcode

    def wait(self, timeout: float | None = None) -> int:
        self.process.join(timeout)
        if self.process.exitcode is None:
            raise subprocess.TimeoutExpired("snakemake", timeout or 0)
        return self.process.exitcode

    def communicate(self, timeout: float | None = None) -> tuple[str, None]:
        self.wait(timeout)
        return self.text(), None

    def text(self) -> str:
        """What it has printed up to now."""
        return self.output.read_text(errors="replace")

    def send_signal(self, number: int) -> None:
        os.kill(self.pid, number)

    def kill(self) -> None:
        self.process.kill()
