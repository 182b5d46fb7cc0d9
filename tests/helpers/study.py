"""A study to run real Snakemake in, and the pictures that tests need."""

from __future__ import annotations

import hashlib
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pandas as pd
import psutil
import pytest
import torch
import yaml
from PIL import Image

from helpers.forked import Forked

ROOT = Path(__file__).resolve().parent.parent.parent


def draw(path: Path, size: tuple[int, int] = (64, 64), seed: int = 0) -> Path:
    """A picture of coloured blocks; another one for each seed. Size is (width, height)."""
    random = np.random.default_rng(seed)
    blocks = random.integers(0, 256, (4, 4, 3), dtype=np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(blocks).resize(size, Image.Resampling.BICUBIC).save(path)
    return path


def wait_for(condition, seconds: float = 60.0, what: str = "the condition", show=lambda: ""):
    """Wait until `condition()` is true and return its value; fail after the deadline, with what `show()` says."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if value := condition():
            return value
        time.sleep(0.02)
    pytest.fail(f"waited {seconds} s for {what} {show()}")


def residents(folder: Path) -> list[psutil.Process]:
    """The resident models that work in a folder."""
    found = []
    for process in psutil.process_iter():
        try:
            if (
                any(part.endswith("/resident.py") for part in process.cmdline())
                and process.cwd() == str(folder.resolve())
                and process.status() != psutil.STATUS_ZOMBIE
            ):
                found.append(process)
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            pass
    return found


class Study:
    """A working directory with pictures, a sheet and a config, in which the workflow runs."""

    def __init__(self, folder: Path, workflow: Path = ROOT):
        self.folder = folder
        self.workflow = workflow
        self.environment = os.environ | {"COLUMNS": "400"}
        self._tmp = tempfile.TemporaryDirectory(prefix="gpi", ignore_cleanup_errors=True)
        self.tmp = Path(self._tmp.name)  # short, as a socket's path has to be
        self.started: list[Forked] = []
        (folder / "config").mkdir(parents=True, exist_ok=True)
        self.config()

    def config(self, **keys) -> None:
        # The report would cost each run ten seconds; the demo and tests/report make it.
        text = yaml.safe_dump({"model_id": "demo", "report": False, **keys}, allow_unicode=True)
        (self.folder / "config/config.yaml").write_text(text, encoding="utf-8")

    def sheet(self, rows: list[dict]) -> None:
        pd.DataFrame(rows).to_csv(self.folder / "config/items.csv", index=False)

    def pictures(self, count: int, size: tuple[int, int] = (64, 64), **columns) -> list[dict]:
        """Draw pictures and write their sheet; returns its rows."""
        rows = []
        for number in range(count):
            draw(self.folder / f"pictures/p{number}.png", size, seed=number)
            rows.append({"id": f"p{number}", "image": f"pictures/p{number}.png", "prompt": "a red circle", **columns})
        self.sheet(rows)
        return rows

    def arguments(self, *arguments: str, cores: int = 2) -> list[str]:
        """Snakemake's command line, without the program. With one core, one item at a time is asked of the resident."""
        in_flight = ["--resources", "in_flight=1"] if cores == 1 else []
        places = ["--snakefile", str(self.workflow / "Snakefile"), "--directory", str(self.folder)]
        return [*in_flight, *places, "--cores", str(cores), *arguments]

    def command(self, *arguments: str, cores: int = 2) -> list[str]:
        return [sys.executable, "-m", "snakemake", *self.arguments(*arguments, cores=cores)]

    def start(self, *arguments: str, cores: int = 2) -> Forked:
        output = self.tmp / f"output{len(self.started)}"
        self.started.append(Forked(self.arguments(*arguments, cores=cores), self.environment, output))
        return self.started[-1]

    def run(self, *arguments: str, cores: int = 2, fails: bool = False) -> Run:
        logs = set(self.folder.glob(".snakemake/log/*.log"))
        process = self.start(*arguments, cores=cores)
        try:
            output = process.communicate(timeout=400)[0]
        except subprocess.TimeoutExpired:
            process.kill()
            raise
        assert (process.returncode != 0) == fails, output
        log = "".join(path.read_text() for path in set(self.folder.glob(".snakemake/log/*.log")) - logs)
        return Run(output, log)

    def plan(self, *arguments: str) -> set[str]:
        """What would run, as `extract p0`, `stack` and so on; not `all` and the checksums."""
        jobs = re.findall(r'label = "(.*?)", .*style="rounded"', self.run("--dag", *arguments).output)
        names = {re.sub(r"\\n\w+:", "", job) for job in jobs}
        return {name for name in names if name != "all" and not name.startswith("checksums")}

    def log(self, item_id: str) -> str:
        return (self.folder / f"logs/extract/{item_id}.log").read_text()

    def latent(self, item_id: str) -> torch.Tensor:
        return torch.load(self.folder / f"results/hidden/hidden_{item_id}.pt", weights_only=True)

    def digests(self) -> dict[str, str]:
        """SHA-256 of every item's latent."""
        ids = [path.stem.removeprefix("hidden_") for path in (self.folder / "results/hidden").glob("hidden_*.pt")]
        return {item_id: hashlib.sha256(self.latent(item_id).numpy().tobytes()).hexdigest() for item_id in ids}

    def index(self) -> pd.DataFrame:
        return pd.read_csv(self.folder / "results/index.csv", dtype=str, keep_default_na=False)


class Run:
    """What Snakemake printed, and its own log, with the job statistics; of a dry run only --verbose prints them."""

    def __init__(self, output: str, log: str):
        self.output = output
        self.log = log
        self.text = " ".join(output.split())

    @property
    def jobs(self) -> dict[str, int]:
        """Planned jobs per rule, from the job statistics."""
        table = re.findall(r"^ *(model|extract|stack|figures|report) +(\d+) *$", self.output + self.log, re.MULTILINE)
        return {rule: int(count) for rule, count in table}
