"""What the provenance says of the workflow itself."""

from __future__ import annotations

import subprocess

import pytest
from gpi_latents import version


def git(folder, *arguments: str) -> str:
    command = ["git", "-C", str(folder), "-c", "user.name=a", "-c", "user.email=a@b.example", *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


@pytest.fixture
def copy(tmp_path, monkeypatch):
    """A workflow of version 7 in a folder of another repository, as a downloaded copy may lie in a study's."""
    git(tmp_path, "init")
    folder = tmp_path / "copy"
    (folder / "scripts").mkdir(parents=True)
    (folder / "scripts/a.py").write_text("1\n")
    (folder / "pyproject.toml").write_text('[project]\nversion = "7"\n')
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-m", "The study's")
    monkeypatch.setattr(version, "ROOT", folder)
    return folder


def test_a_clone_has_a_commit_and_says_when_its_code_was_changed(copy):
    git(copy, "init")
    git(copy, "add", ".")
    git(copy, "commit", "-m", "The workflow's")
    commit = git(copy, "rev-parse", "HEAD")
    (copy / "notes.txt").write_text("no code\n")
    assert version.workflow() == {"version": "7", "commit": commit}
    (copy / "scripts/a.py").write_text("2\n")
    assert version.workflow() == {"version": "7", "commit": f"{commit} with changes"}


def test_a_downloaded_copy_has_no_commit_not_that_of_the_repository_around_it(copy):
    assert version.workflow() == {"version": "7", "commit": None}
