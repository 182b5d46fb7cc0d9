"""A working directory for the tests of sheets and configs."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    """The working directory, with the files `a.png`, `b.png` and `photos/a.png`; what is in them does not matter."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("GPI_PLAN", raising=False)
    for name in ("a.png", "b.png", "photos/a.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    return tmp_path
