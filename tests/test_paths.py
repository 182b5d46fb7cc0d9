"""Paths from the working directory."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from gpi_latents import paths


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("a.png", "a.png"),
        ("./a.png", "a.png"),
        (".//./a.png", "a.png"),
        ("photos//./a.png", "photos/a.png"),
        ("photos/././/a.png", "photos/a.png"),
        ("link/../a.png", "link/../a.png"),
        ("./../a.png", "../a.png"),
        ("//tmp/./a.png", "/tmp/a.png"),
        (".hidden./.a.png", ".hidden./.a.png"),
        ("... /.../a.png", "... /.../a.png"),
    ],
)
def test_a_path_made_plain_names_the_same_file(tmp_path, monkeypatch, path, expected):
    """Snakemake warns of `./` and `//`; what `..` means depends on links, so that it stays."""
    (tmp_path / "study/photos").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "study")
    (tmp_path / "elsewhere/inner").mkdir(parents=True)
    Path("link").symlink_to("../elsewhere/inner")
    assert paths.plain(path) == expected
    if not path.startswith("/"):
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        Path(path).touch()
        assert os.path.samefile(path, paths.plain(path))
