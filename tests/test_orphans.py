"""Files that belong to nothing in the study any more."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from gpi_latents import paths
from gpi_latents.orphans import orphans
from gpi_latents.tensors.tensor_file import tensor_writer

CONFIG = {
    "output_hidden_dir": "results/hidden",
    "output_image_dir": "results/images",
    "prefix_hidden": "hidden",
    "save_name": "gen",
    "stacked": "all/R [x].npy",
    "report": True,
}


@pytest.fixture(autouse=True)
def in_study(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(paths, "BLOCK", 2)
    make(*(f"results/hidden/hidden_{item_id}.pt" for item_id in "abcdef"))
    make(*(f"results/images/gen_{item_id}.png" for item_id in "abcdef"))
    make(*(f"results/checksums/{number}.sha256" for number in range(3)))
    make("results/hidden/notes.txt", "results/images/other.png", "logs/x", "results/model.json")
    make(*(f"results/report/map.{kind}" for kind in ("png", "svg", "json")), "results/report.html")
    tensor("all/R [x].npy")


def make(*files: str) -> None:
    for file in files:
        Path(file).parent.mkdir(parents=True, exist_ok=True)
        Path(file).write_text(file)


def tensor(*files: str) -> None:
    for file in files:
        Path(file).parent.mkdir(parents=True, exist_ok=True)
        values = np.zeros((2, 4, 2, 2), np.float32)
        with tensor_writer(Path(file), values.shape, {}) as opened:
            opened.write(values.tobytes())


def test_of_a_study_without_changes_nothing_is_listed():
    assert orphans(CONFIG, list("abcdef"), ["map"]) == []


def test_files_of_rows_that_are_gone_are_listed():
    expected = [f"results/hidden/hidden_{item_id}.pt" for item_id in "cde"]
    expected += [f"results/images/gen_{item_id}.png" for item_id in "cde"] + ["results/checksums/2.sha256"]
    assert orphans(CONFIG, ["a", "b", "f"], ["map"]) == expected
    without = orphans(CONFIG | {"output_image_dir": None}, ["a", "b"], ["map"])
    assert not [path for path in without if path.startswith("results/images")]


def test_tensors_that_the_config_no_longer_names_are_listed():
    """By what they hold, since the files of the user may have such names too."""
    old = ["all/R [x].pt", "results/latents.pt", "results/latents.safetensors"]
    tensor(*old, "all [x]/other.npy", "elsewhere/R.pt")
    np.save("results/mine.npy", np.zeros(3))
    make("results/mine.pt")
    assert orphans(CONFIG, "abcdef", ["map"]) == old


def test_figures_and_reports_that_are_no_longer_made_are_listed():
    old = [f"results/report/overlap.{kind}" for kind in ("json", "png")]  # of a column treatment that is gone
    make(*old, "results/report.earlier.html")  # which a failed run has left
    assert orphans(CONFIG, "abcdef", ["map"]) == old
    all_of_them = [f"results/report/map.{kind}" for kind in ("json", "png", "svg")] + old
    all_of_them += ["results/report.html", "results/report.earlier.html"]
    assert orphans(CONFIG | {"report": False}, "abcdef", ["map"]) == all_of_them
