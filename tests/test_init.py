"""A study from a folder of pictures: a sheet that reads as it is, joined with the right rows of a table."""

from __future__ import annotations

import os
import unicodedata
from pathlib import Path

import pandas as pd
import pytest
from gpi_latents.errors import InputError
from gpi_latents.init import init, picture_ids
from gpi_latents.study.settings import load_config
from gpi_latents.study.sheet import read_items
from helpers.study import draw

HOSTILE = [
    *("ann smith.jpg", "ä.jpg", "Ä.JPG", "ö.png", unicodedata.normalize("NFD", "ö.png"), "a/x.png", "b/x.png"),
    *("a_x.png", f"{'n' * 196}.png", f"{'n' * 195}m.png", "😀.jpg", "😂.jpg", "北京.png", "x.jpg", "x.png", "X.webp"),
    *("~tilde.png", "-dash.png", 'with,comma;semi"quote.png', "[br]*?.png", "$HOME `x`.png", "Straße.jpeg", "'q'.png"),
    *(" lead.png", "NA.png", "#hash.png", "back\\slash.png"),
]


@pytest.fixture(autouse=True)
def _in_a_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def put(*names: str, folder: str = "photos") -> None:
    for number, name in enumerate(names):
        draw(Path(folder, name), (8, 8), seed=number)


def sheet(study: str = "study") -> pd.DataFrame:
    """The sheet that was made, as a run reads it."""
    os.chdir(study)
    items = read_items(load_config({"model_id": "demo"}))
    os.chdir("..")
    return items.reset_index(drop=True)


def refused(*arguments, **more) -> str:
    """The message for what is refused; nothing is made then."""
    with pytest.raises(InputError) as caught:
        init(*arguments, **more)
    assert not os.path.lexists("study")
    return str(caught.value)


@pytest.mark.parametrize("folder", ["photos", "study/my photos", "study"])
def test_pictures_of_any_name_come_into_a_sheet_that_reads_as_it_is(folder):
    put(*HOSTILE, folder=folder)
    put(".hidden.png", "._x.png", ".folder/y.png", "@eaDir/z.png", "results/images/gen_x.png", folder=folder)
    for name in ("Thumbs.db", "notes.txt", "raw.nef"):
        Path(folder, name).write_bytes(b"no picture")
    said = init("study", folder, model="demo")
    items = sheet()
    own = HOSTILE if folder.startswith("study") else [*HOSTILE, "results/images/gen_x.png"]
    if folder == "study/my photos":
        own = [*HOSTILE, "results/images/gen_x.png"]  # of pictures, not of this study
    inside = Path(folder).relative_to("study") if folder.startswith("study") else Path(folder).absolute()
    assert sorted(items["image"]) == sorted(str(inside / name) for name in own)
    assert set(items["prompt"]) == {"no change"}
    assert "2 files that are no pictures (docs/pictures.md): notes.txt; raw.nef" in said
    assert "absolute paths" in said or folder.startswith("study")


def test_links_are_followed_once():
    put("a.jpg", folder="disk/sub")
    put("b.jpg")
    os.symlink("../disk/sub", "photos/linked")
    os.symlink("..", "disk/sub/back")
    init("study", "photos")
    assert list(sheet()["id"]) == ["b", "linked_a"]


def test_ids_are_like_the_names_and_stay_when_pictures_are_added():
    names = ["ann smith.jpg", "ä.jpg", "a/x.png", "Straße.jpeg", "2024-05-01.v2.png", "北京.png", "-dash.png"]
    ids = picture_ids(names)
    assert ids[:5] == ["ann_smith", "a", "a_x", "Strasse", "2024-05-01.v2"]
    assert ids[5].startswith("image-")
    assert picture_ids(["0.jpg", "b.png", "c/x.png", "上海.png", *reversed(names)])[4:] == ids[::-1]
    # Of two that would be the same, or differ in case alone, each has a mark of its own, whichever comes first.
    both = picture_ids(["x.png", "X.jpg", "y.png"])
    assert both[0].startswith("x-")
    assert both[1].startswith("X-")
    assert both[2] == "y"
    assert picture_ids(["X.jpg", "x.png"]) == both[1::-1]


TABLES = {
    "with the suffix": ("file", ["cy.jpg", "ann.jpg", "bob.png"]),
    "without it": ("name", ["cy", "ann", "bob"]),
    "in another case, as Windows has it": ("Image", ["CY.JPG", "Ann.jpg", "BOB.png"]),
    "with a folder": ("image", ["photos/sub/cy.jpg", "photos/ann.jpg", "photos/bob.png"]),
    "with the folder of another machine": ("path", [r"C:\p\sub\cy.jpg", r"C:\p\ann.jpg", r"C:\p\bob.png"]),
}


@pytest.mark.parametrize(("column", "names"), TABLES.values(), ids=list(TABLES))
@pytest.mark.parametrize("separator", [",", ";"])
def test_a_table_is_joined_by_the_names_of_the_pictures(column, names, separator):
    put("ann.jpg", "bob.png", "sub/cy.jpg", "dan.jpg", "1.jpg")
    table = pd.DataFrame(
        {column: [*names, names[1].replace("nn", "nnette")], "group": [1, 1, 1, 1], "outcome": ["1.5", "2", "NA", "4"]}
    )
    table.to_csv("table.csv", sep=separator, index=False)
    said = init("study", "photos", table="table.csv", prompt="a portrait")
    items = sheet()
    assert list(items["id"]) == ["sub_cy", "ann", "bob"]
    assert [Path(image).name for image in items["image"]] == ["cy.jpg", "ann.jpg", "bob.png"]
    assert list(items["outcome"]) == ["1.5", "2", "NA"]
    assert set(items["prompt"]) == {"a portrait"}
    assert "1 of its rows without a picture: row 5 (" in said
    assert "2 pictures without a row: 1.jpg; dan.jpg" in said


def test_line_breaks_in_a_table_are_read_back_as_they_were():
    put("ann.jpg", "bob.jpg")
    answers = ["one\rtwo", "three\r\nfour\nfive"]
    text = "".join(f'{name},"{answer}"\n' for name, answer in zip(["ann.jpg", "bob.jpg"], answers, strict=True))
    Path("table.csv").write_bytes(f"file,answer\n{text}".encode())
    init("study", "photos", table="table.csv", model="demo")
    assert sheet()["answer"].tolist() == answers


def test_names_with_accents_are_the_same_in_both_unicode_forms():
    put(unicodedata.normalize("NFD", "Köln.jpg"))
    Path("table.csv").write_text(f"name,y\n{unicodedata.normalize('NFC', 'Köln')},1\n", encoding="utf-8")
    init("study", "photos", table="table.csv")
    assert list(sheet()["y"]) == ["1"]


def test_a_picture_of_another_folder_is_never_taken_for_the_one_that_is_missing():
    put("treated/ann.jpg", "control/bob.jpg", "control/cy.jpg")
    Path("table.csv").write_text("file,y\ntreated/ann.jpg,1\ntreated/bob.jpg,2\ntreated/cy.jpg,3\n")
    said = init("study", "photos", table="table.csv", by="file")
    assert list(sheet()["y"]) == ["1"]
    assert "row 3 (treated/bob.jpg); row 4 (treated/cy.jpg)" in said
    Path("table.csv").write_text("file,y\ntreated/bob.jpg,2\ntreated/cy.jpg,3\n")
    with pytest.raises(InputError, match="has names of the pictures"):
        init("other", "photos", table="table.csv")


def test_settings_ids_and_prompts_of_the_table_are_used_and_named():
    put("ann.jpg", "bob.jpg")
    Path("table.csv").write_text("id;prompt;strength;file\nA1;a cat;0,5;ann\nB1;a dog;;bob\n")
    said = init("study", "photos", table="table.csv")
    items = sheet()
    assert list(items["id"]) == ["A1", "B1"]
    assert list(items["prompt"]) == ["a cat", "a dog"]
    assert list(items["strength"]) == [0.5, 0]
    assert "Used by the workflow, not only carried along: id, prompt, strength" in said


@pytest.mark.parametrize(
    ("column", "problem"),
    [("file", "row 5: '3.jpg' is the picture '3.jpg' of row 4"), ("number", "Both 'answer' and 'number' of table.csv")],
)
def test_answers_to_pictures_are_never_joined_by_their_own_numbers(column, problem):
    put(*(f"{number}.jpg" for number in (1, 2, 3, 4)))
    shown = [2, 1, 3, 3, 4, 1]  # each picture more than once, as in a table of answers
    cells = [f"{each}.jpg" if column == "file" else each for each in shown]
    pd.DataFrame({"answer": range(1, 7), column: cells}).to_csv("table.csv", index=False)
    assert problem in refused("study", "photos", table="table.csv")


def test_a_group_of_few_values_is_not_taken_for_names():
    put(*(f"{number}.jpg" for number in (1, 2, 3, 4)))
    pd.DataFrame({"treatment": [1, 0, 1, 1], "picture": [4, 3, 2, 1]}).to_csv("table.csv", index=False)
    init("study", "photos", table="table.csv")
    assert [Path(image).stem for image in sheet()["image"]] == ["4", "3", "2", "1"]


REFUSED = {
    "a picture in two rows": (
        "file,y\nann,1\nbob,2\nann.jpg,3\n",
        "row 4: 'ann.jpg' is the picture 'ann.jpg' of row 2 already\nA picture has one row",
    ),
    "a name of two pictures": (
        "file,y\nx,1\nann,2\n",
        "row 2: 'x' may be a/x.png or b/x.png: write photos/a/x.png for",
    ),
    "two columns of names": ("file,twin,y\nann,bob,1\nbob,ann,2\n", "Both 'file' and 'twin' of table.csv"),
    "no rows": ("file,y\n", "table.csv has a header but no rows"),
    "no column of names": ("person,y\n7,1\n8,2\n", "No column of table.csv has names of the pictures, such as"),
    "a column of the index table": ("file,notes\nann,1\n", "'notes' has a name that the index table needs"),
    "an image that is another thing": ("file,image\nann,scan\nbob,scan\n", "Column 'image' of table.csv does not name"),
    "a setting out of range": ("file,seed\nbob,1\ngone,2\nann,x\n", "row 4, column seed: 'x' is not a number"),
    "an id that is none": (
        "file,id\nann,1\nbob,1\n",
        "row 3, column id: '1' is in row 2 already\nIf it is a variable of",
    ),
    "a row that is too long": ("file,y\nann,1\nbob,2,5\n", "row 3"),
    "no text": ("file,y\nann,\xff\n", "is not UTF-8 (line 2)"),
}


@pytest.mark.fault("sheet")
@pytest.mark.parametrize(("text", "problem"), REFUSED.values(), ids=list(REFUSED))
def test_a_table_that_does_not_fit_is_refused_by_its_rows_and_columns(text, problem):
    put("ann.jpg", "bob.jpg", "a/x.png", "b/x.png")
    Path("table.csv").write_bytes(text.encode("latin-1"))
    assert problem in refused("study", "photos", table="table.csv")


@pytest.mark.fault("sheet")
def test_a_name_that_a_sheet_cannot_hold_is_refused_unless_the_table_leaves_it_out():
    put("good.png", "p{1}.png", "q<logs>.png", "two\nlines.png")
    os.rename("photos/good.png", os.fsdecode(b"photos/\xff.png"))
    put("good.png")
    message = refused("study", "photos")
    assert "Rename these pictures" in message
    assert all(name in message for name in ("p{1}.png", "q<logs>.png", r"two\nlines.png", r"\udcff.png"))
    assert "good" not in message
    Path("table.csv").write_text("file\ngood.png\n")
    said = init("study", "photos", table="table.csv")
    assert "4 pictures without a row" in said
    assert said.isascii()  # so a terminal of any language can show it


@pytest.mark.fault("sheet")
def test_folders_and_tables_that_are_not_there_are_named():
    assert "no folder 'photos'" in refused("study", "photos")
    os.mkdir("photos")
    assert "There is no picture in photos" in refused("study", "photos")
    put("a.jpg")
    assert "give that too, by --table" in refused("study", "photos", by="name")
    assert "no table 'gone.csv'" in refused("study", "photos", table="gone.csv")
    Path("t.csv").write_text("file\na\n")
    assert "t.csv has no column 'name'. Its columns: file" in refused("study", "photos", table="t.csv", by="name")


def test_nothing_that_exists_is_changed():
    put("a.jpg")
    os.makedirs("study/config")
    Path("study/config/config.yaml").write_text("model_id: mine\n")
    with pytest.raises(InputError, match=r"config\.yaml exists, and init changes no file: set model_id there"):
        init("study", "photos", model="demo")
    assert "config.yaml: kept as it was" in init("study", "photos")
    assert Path("study/config/config.yaml").read_text() == "model_id: mine\n"
    before = Path("study/config/items.csv").read_bytes()
    put("b.jpg")
    with pytest.raises(InputError, match=r"items\.csv exists, and init changes no file: add rows to it by hand"):
        init("study", "photos")
    assert Path("study/config/items.csv").read_bytes() == before


def test_a_model_is_checked_and_written_down():
    put("a.jpg")
    message = refused("study", "photos", model="photos")
    assert "key model_id" in message  # a folder without a model
    init("study", "photos", model="org/model")
    assert 'model_id: "org/model"' in Path("study/config/config.yaml").read_text(encoding="utf-8")
