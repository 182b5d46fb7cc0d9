"""The recipes of containers: they agree, and what they copy is all that the workflow needs."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

from helpers.study import ROOT

BIN = Path(sys.executable).parent
DOCKERFILE = (ROOT / "envs/Dockerfile").read_text(encoding="utf-8")
DEFINITION = (ROOT / "envs/apptainer.def").read_text(encoding="utf-8")


def copied() -> list[str]:
    """The files and folders that the Dockerfile copies, from the root of the repository."""
    return [name for line in re.findall(r"^COPY (.+) \S+$", DOCKERFILE, re.MULTILINE) for name in line.split()]


def test_hadolint_finds_nothing_in_the_dockerfile():
    ran = subprocess.run([BIN / "hadolint", ROOT / "envs/Dockerfile"], capture_output=True, text=True)
    assert (ran.returncode, ran.stdout + ran.stderr) == (0, "")


def test_both_recipes_have_the_same_base_files_packages_and_install():
    assert re.findall(r"^    (\S+) /opt/gpi-latents/$", DEFINITION, re.MULTILINE) == copied()
    for pattern in (r"(?:FROM|From:) (\S+)", r"apt-get install (.*?)(?: \\)?$", r"(PIP_NO_CACHE_DIR=1) .*make (\w+)$"):
        one, other = (re.findall(pattern, recipe, re.MULTILINE) for recipe in (DOCKERFILE, DEFINITION))
        assert len(one) == 1, pattern
        assert one == other


def test_what_is_copied_is_all_that_a_run_needs(tmp_path):
    (tmp_path / "image").mkdir()
    for name in copied():
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, tmp_path / "image" / name)
    command = [BIN / "snakemake", "--snakefile", tmp_path / "image/Snakefile", "--cores", "2", "-n"]
    ran = subprocess.run([*command, "--directory", tmp_path / "image"], cwd=tmp_path, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert f"profile {tmp_path}/image/profiles/default" in ran.stderr
    assert "extract" in ran.stdout + ran.stderr
