"""Other ways to start the workflow: as a module of another one, by both programs, among a user's own files."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from helpers.study import ROOT, Study

MODULE = f"""
configfile: "config/config.yaml"

module latents:
    snakefile: "{ROOT}/Snakefile"
    config: config

use rule * from latents

rule mine:
    default_target: True
    input: "results/latents.pt"
    output: "mine.txt"
    shell: "cp results/index.csv mine.txt"
"""


@pytest.fixture
def mine(tmp_path) -> Study:
    """A study among files of the user whose names are those of rooms and scripts; importing one ends the process."""
    study = Study(tmp_path / "étude du café 図")
    study.pictures(2, outcome=1)
    (study.folder / "scripts").mkdir()
    for name in ("model", "items", "tensors", "gpi", "study", "run", "scripts/__init__"):
        (study.folder / f"{name}.py").write_text("import os; os._exit(9)")
    study.environment |= {"PYTHONPATH": str(study.folder)}
    return study


def run(study: Study, *command: str | Path, cwd: Path) -> str:
    ran = subprocess.run(
        command, cwd=cwd, env=study.environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    assert ran.returncode == 0, ran.stdout
    return ran.stdout


def test_the_workflow_runs_as_a_module_of_another_among_a_users_own_files(mine):
    (mine.folder / "Snakefile").write_text(MODULE)
    printed = run(mine, Path(sys.executable).with_name("snakemake"), "--cores", "2", "-p", cwd=mine.folder)
    assert "/scripts/stack.py --plan .snakemake/gpi-latents/" in printed
    assert mine.index()["id"].tolist() == ["p0", "p1"]
    assert (mine.folder / "mine.txt").read_text() == (mine.folder / "results/index.csv").read_text()
    # The same items by themselves, from elsewhere, need nothing more.
    (mine.folder / "elsewhere").mkdir()
    command = [sys.executable, "-m", "snakemake", "--snakefile", ROOT / "Snakefile", "--directory", mine.folder]
    printed = run(mine, *command, "--cores", "2", cwd=mine.folder / "elsewhere")
    assert "Nothing to be done" in printed
