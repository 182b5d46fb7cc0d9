"""The README's estimate as a user runs it: in a clone with what `make gpi` alone installs, in a process of its own."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from helpers.photos import PHOTOS
from helpers.study import ROOT
from PIL import Image


def readme_code() -> str:
    """The Python of the README's section on estimates."""
    section = (ROOT / "README.md").read_text(encoding="utf-8").split("## From latents to effects")[1]
    return section.split("```python\n")[1].split("```")[0]


def forty_photographs(folder: Path) -> None:
    """A study of parts of photographs that nobody here drew, with an effect of 2."""
    random = np.random.default_rng(0)
    (folder / "photos").mkdir(parents=True)
    (folder / "config").mkdir()
    rows = []
    for number in range(40):
        with Image.open(PHOTOS[number % len(PHOTOS)]) as photo:
            left, top = (int(random.integers(0, side - 200)) for side in photo.size)
            photo.convert("RGB").crop((left, top, left + 200, top + 200)).save(folder / f"photos/{number}.png")
        treatment = number // len(PHOTOS) % 2
        outcome = round(2 * treatment + random.normal(), 3)
        row = {"image": f"photos/{number}.png", "prompt": "no change"}
        rows.append(row | {"treatment": treatment, "outcome": outcome})
    pd.DataFrame(rows).to_csv(folder / "config/items.csv", index=False)
    (folder / "config/config.yaml").write_text("model_id: demo\nreport: false\noutput_image_dir: null\n")


@pytest.mark.long
@pytest.mark.timeout(1200)  # pip takes minutes
def test_make_gpi_installs_all_that_the_readmes_code_needs_and_keeps_torch(tmp_path):
    clone, study = tmp_path / "a clone", tmp_path / "eine Prüfung"
    names = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for name in filter(None, names.split("\0")):
        (clone / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, clone / name)
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "VIRTUAL_ENV"))}

    def run(*command: str | Path, folder: Path) -> str:
        done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    run("make", "gpi", folder=clone)
    python = clone / ".venv/bin/python"
    installed = run(python, "-m", "pip", "list", "--format=freeze", folder=clone)
    assert re.search(r"^torch==2\.13\.0", installed, re.MULTILINE)
    assert not re.search(r"^(torchvision|nvidia|pytest)", installed, re.MULTILINE)
    forty_photographs(study)
    snakemake = [clone / ".venv/bin/snakemake", "--snakefile", clone / "Snakefile", "--cores", "2"]
    run(*snakemake, "--directory", study, folder=tmp_path)
    run(*snakemake, "--config", "report=false", "output_image_dir=null", folder=clone)  # the demo
    for folder, count in ((study, 40), (clone, 24)):
        before = sorted(folder.iterdir())
        printed = run(python, "-c", readme_code(), folder=folder)
        assert re.search(rf"\b{count}\b", printed), printed
        lower, upper = map(float, re.search(r"(-?\d+\.\d+) to (-?\d+\.\d+)", printed).groups())
        assert lower < upper
        assert sorted(folder.iterdir()) == before
