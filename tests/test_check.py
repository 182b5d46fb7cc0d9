"""All pictures that cannot be read are listed at once, by the rows of the sheet."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
from gpi_latents import check as module
from gpi_latents.check import bad_pictures, check
from gpi_latents.errors import InputError, ItemError
from helpers.photos import huge
from helpers.study import ROOT, draw
from PIL import Image

GOOD = ["whole.png", "cmyk.jpg"]
BAD = {
    "cut.png": "truncated|broken|cut|image file",
    "empty.png": "it is empty",
    "text.png": "not a picture",
    "huge.png": "178 million",
    "missing.png": "no such file",
    "pipe.png": "a pipe",
}


@pytest.fixture
def pictures(tmp_path, monkeypatch) -> None:
    """In a folder with all of them."""
    monkeypatch.chdir(tmp_path)
    whole = draw(Path("whole.png")).read_bytes()
    Image.open("whole.png").convert("CMYK").save("cmyk.jpg")
    contents = {"cut.png": whole[:300], "empty.png": b"", "text.png": b"no picture", "huge.png": huge("png")}
    for name, content in contents.items():
        Path(name).write_bytes(content)
    os.mkfifo("pipe.png")


def plan(images: list[str]) -> pd.DataFrame:
    """As `read_plan` returns it; row 5 of the sheet is blank."""
    numbers = range(len(images))
    rows = [str(number + 2 + (number > 2)) for number in numbers]
    ids = [f"i{number}" for number in numbers]
    return pd.DataFrame({"sheet_row": rows, "recipe_sha256": "0", "row": numbers, "id": ids, "image": images})


def write(table: pd.DataFrame) -> Path:
    Path("plan").mkdir(exist_ok=True)
    table.to_csv("plan/plan.csv", index=False)
    return Path("plan")


@pytest.mark.fault("picture")
def test_all_bad_pictures_are_listed_with_row_id_and_reason(pictures):
    images = [GOOD[0], *BAD, GOOD[1]]
    with pytest.raises(InputError) as caught:
        check(write(plan(images)), threads=4)
    heading, *lines = str(caught.value).splitlines()
    assert heading == "6 of 8 pictures cannot be read (also in results/check.csv):"
    table = pd.read_csv("results/check.csv")
    assert table.columns.tolist() == ["row", "id", "image", "reason"]
    assert table["row"].tolist() == [3, 4, 6, 7, 8, 9]
    assert table["image"].tolist() == list(BAD)
    for line, row, pattern in zip(lines, table.itertuples(), BAD.values(), strict=True):
        assert line == f"  - row {row.row}, {row.id}: {row.reason}"
        assert re.search(pattern, row.reason), row


def test_good_pictures_are_counted_and_an_old_list_is_emptied(pictures):
    Path("results").mkdir()
    Path("results/check.csv").write_text("row,id,image,reason\n2,i0,a.png,bad\n")
    assert check(write(plan(GOOD)), threads=2) == "All 2 pictures can be read."
    assert pd.read_csv("results/check.csv").empty


def test_a_picture_of_two_rows_is_opened_once_and_both_rows_are_listed(pictures, monkeypatch):
    opened = []

    def open_picture(image: str) -> None:
        opened.append(image)
        raise ItemError("bad")

    monkeypatch.setattr(module, "open_picture", open_picture)
    bad = bad_pictures(plan(["text.png", "whole.png", "text.png"]), threads=1)
    assert sorted(opened) == ["text.png", "whole.png"]
    assert bad["row"].tolist() == ["2", "3", "4"]


def test_what_c_libraries_print_about_damaged_files_is_not_shown(pictures, monkeypatch, capfd):
    monkeypatch.setattr(module, "open_picture", lambda image: os.write(2, b"libpng: noise"))
    assert bad_pictures(plan(GOOD), threads=1).empty
    os.write(2, b"shown")
    assert capfd.readouterr().err == "shown"


def test_the_command_ends_with_1_and_the_list_and_loads_no_torch(pictures):
    command = [sys.executable, "-X", "importtime", str(ROOT / "scripts/check.py")]
    command += ["--plan", str(write(plan(["text.png"])))]
    ran = subprocess.run([*command, "--threads", "1"], capture_output=True, text=True)
    assert ran.returncode == 1
    assert "1 of 1 pictures cannot be read" in ran.stderr
    assert "Traceback" not in ran.stderr
    assert "| torch" not in ran.stderr
