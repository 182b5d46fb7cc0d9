"""All pictures that cannot be read are listed at once, by the rows of the sheet, and what was done to the others."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from gpi_latents import check as module
from gpi_latents.check import check, checked_pictures
from gpi_latents.core.pictures import Handling
from gpi_latents.errors import InputError, ItemError
from helpers.photos import huge
from helpers.study import ROOT, draw
from PIL import Image

GOOD = ["whole.png", "grey.jpg"]
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
    Image.open("whole.png").convert("L").save("grey.jpg")
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
    assert table.columns.tolist() == ["sheet_row", "id", "image", "problem", "notes"]
    assert table["sheet_row"].tolist() == [3, 4, 6, 7, 8, 9]
    assert table["image"].tolist() == list(BAD)
    for line, row, pattern in zip(lines, table.itertuples(), BAD.values(), strict=True):
        assert line == f"  - row {row.sheet_row}, {row.id}: {row.problem}"
        assert re.search(pattern, row.problem), row


def test_good_pictures_are_counted_and_an_old_list_is_emptied(pictures):
    Path("results").mkdir()
    Path("results/check.csv").write_text("sheet_row,id,image,problem,notes\n2,i0,a.png,bad,\n")
    assert check(write(plan(GOOD)), threads=2) == "All 2 pictures can be read."
    assert pd.read_csv("results/check.csv").empty


@pytest.mark.fault("picture")
def test_what_was_done_to_pictures_is_told_by_kind_and_what_is_doubtful_first(pictures):
    """Six of transparency and one whose values use a quarter of their range at most; the plain one is not listed."""
    transparent = Image.new("RGBA", (8, 8), "red")
    transparent.putpixel((0, 0), (0, 0, 0, 0))
    images = [f"t{number}.png" for number in range(6)]
    for image in images:
        transparent.save(image)
    Image.fromarray(np.arange(64, dtype=np.uint16).reshape(8, 8) * 200).save("dark.tiff")
    text = check(write(plan([*images, "whole.png", "dark.tiff"])), threads=2)
    heading, notes, first, *others = text.splitlines()
    assert heading == "All 8 pictures can be read."
    assert notes == "Notes on pictures, each in results/check.csv:"
    assert re.match(r"  - 1 picture: warning: less than a quarter of the range .*\(i7\)$", first)
    assert others[0] == "  - 6 pictures: laid on white (i0, i1, i2, ...)"
    table = pd.read_csv("results/check.csv", keep_default_na=False)
    assert table["id"].tolist() == ["i0", "i1", "i2", "i3", "i4", "i5", "i7"]
    assert table["notes"].tolist()[:6] == ["laid on white"] * 6
    assert set(table["problem"]) == {""}
    with pytest.raises(InputError) as caught:
        check(write(plan(["text.png", images[0]])), threads=2)
    problem, _, *notes = str(caught.value).splitlines()[1:]
    assert "i0: the picture 'text.png'" in problem
    assert notes == ["  - 1 picture: laid on white (i1)"]


def test_a_picture_of_two_rows_is_opened_once_and_both_rows_are_listed(pictures, monkeypatch):
    opened = []

    def open_picture(image: str) -> None:
        opened.append(image)
        raise ItemError("bad")

    monkeypatch.setattr(module, "open_picture", open_picture)
    table = checked_pictures(plan(["text.png", "whole.png", "text.png"]), threads=1)
    assert sorted(opened) == ["text.png", "whole.png"]
    assert table["problem"].tolist() == ["bad", "bad", "bad"]


def test_what_c_libraries_print_about_damaged_files_is_not_shown(pictures, monkeypatch, capfd):
    def open_picture(image: str) -> tuple[None, Handling]:
        os.write(2, b"libpng: noise")
        return None, Handling()

    monkeypatch.setattr(module, "open_picture", open_picture)
    checked_pictures(plan(GOOD), threads=1)
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
