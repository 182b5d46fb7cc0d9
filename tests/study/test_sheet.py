"""The sheet: what is accepted, and what is refused by row and column."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from gpi_latents.errors import InputError
from gpi_latents.recipe import SETTINGS, recipe
from gpi_latents.study.settings import load_config
from gpi_latents.study.sheet import index_table, read_items, safe_id
from helpers.sheets import read, refused

pytestmark = pytest.mark.usefixtures("folder")


@pytest.mark.fault("sheet")
def test_cells_stay_as_they_are_written():
    for name in ("001", "NA", "1e5"):
        Path(f"{name}.png").touch()
    text = 'image,prompt,id,group\n001.png,null,001,007\n\nNA.png,"a, ""b""\r\nc",NA,None\n,,,\n1e5.png,,1e5,1e400\n'
    for content in (text.encode(), text.encode("utf-8-sig")):
        items = read(content)
        assert items["id"].tolist() == ["001", "NA", "1e5"]
        assert items["prompt"].tolist() == ["null", 'a, "b"\r\nc', ""]
        assert items["group"].tolist() == ["007", "None", "1e400"]
        assert items.index.tolist() == [2, 4, 6]


@pytest.mark.parametrize("ending", ["\n", "\r\n", "\r"])
def test_any_line_ending_is_accepted(ending):
    items = read(f"image,prompt,Y{ending}a.png,x,1{ending}b.png,y,2")
    assert items[["image", "prompt", "Y"]].to_numpy().tolist() == [["a.png", "x", "1"], ["b.png", "y", "2"]]


def test_ids_are_by_default_the_file_names_of_the_images():
    assert read("image,prompt\na.png,x\nb.png,y\n")["id"].tolist() == ["a", "b"]
    message = refused("image,prompt\na.png,x\nphotos/a.png,y\n")
    assert "row 3, column id: 'a' is in row 2 already" in message
    assert "column id to choose another" in message


def test_a_name_that_is_no_valid_id_gets_the_proposal_of_one():
    names = {"my dog": "my_dog", "Köln (1)": "Koln_1", ".x y": "x_y", "x" * 129: "x" * 128, "犬": "image"}
    message = refused("image,prompt\n" + "".join(f"{name}.png,x\n" for name in names))
    for row, (name, proposed) in enumerate(names.items(), 2):
        assert f"row {row}, column id: {name!r} is not a valid id. Valid would be {proposed} (made from" in message
    assert refused("id,image,prompt\nmy dog,a.png,x\n").endswith("Valid would be my_dog")
    assert safe_id("-1.A_b") == "-1.A_b"


def test_a_row_overrides_the_config_and_a_blank_cell_does_not():
    text = "image,prompt,strength,seed,num_inference_steps\na.png,x, 0.5 ,4294967295,20.0\nb.png,y,, ,\n"
    items = read(text, strength=0.25, seed=7, num_inference_steps=30, negative_prompt="grey")
    assert items["strength"].tolist() == [0.5, 0.25]
    assert items["seed"].tolist() == [2**32 - 1, 7]
    assert items["num_inference_steps"].tolist() == [20, 30]
    assert items["negative_prompt"].tolist() == ["grey", "grey"]
    assert {type(value) for value in items["strength"]} == {float}
    assert {type(value) for value in [*items["seed"], *items["num_inference_steps"]]} == {int}


@pytest.mark.parametrize("cell", ["NA", " NA ", "N/A", "NaN", "nan", "<NA>", "NULL", "", " "])
def test_a_missing_setting_takes_the_configs_value(cell):
    Path("NA.png").touch()
    columns = ",".join(SETTINGS)
    items = read(f"id,image,prompt,{columns}\nNA,NA.png,NA{f',{cell}' * 5}\n", negative_prompt="grey", seed=3)
    assert items[SETTINGS].to_numpy().tolist() == [["grey", 0.0, 7.5, 50, 3]]
    assert items[["id", "image", "prompt"]].to_numpy().tolist() == [["NA", "NA.png", "NA"]]


@pytest.mark.fault("sheet")
def test_a_prompt_may_be_blank_but_not_missing_where_it_plays_a_part():
    text = "id,image,prompt,strength\na,a.png,,0.5\nb,a.png, ,0.5\nc,a.png,NA,0\nd,a.png,NA,\ne,a.png,NAB,1\n"
    assert read(text)["prompt"].tolist() == ["", " ", "NA", "NA", "NAB"]
    message = refused(text, strength=0.5)
    assert "has 1 error:\n  - row 5, column prompt: 'NA' stands for a missing value: write the prompt, or" in message


def test_the_index_table_shows_the_settings_that_have_an_effect_then_your_columns():
    items = read("image,prompt,Y,strength,seed\na.png,x,1,,\nb.png,y,NA,0.5,3\n", posterior="mode")
    config = load_config({"model_id": "demo", "posterior": "mode"})
    table = index_table(items, [recipe(config, item) for item in items.itertuples()])
    assert table.astype(str).to_csv(index=False).splitlines() == [
        "row,id,image,prompt,negative_prompt,strength,guidance_scale,num_inference_steps,seed,Y",
        "0,a,a.png,x,,0.0,,,,1",
        "1,b,b.png,y,,0.5,7.5,50,3,NA",
    ]


@pytest.mark.fault("sheet")
@pytest.mark.parametrize(
    ("text", "problems"),
    [
        ("prompt\nx\n", ["column 'image' is missing"]),
        ("picture,text\na.png,x\n", ["column 'image' is missing", "column 'prompt' is missing"]),
        ("image,Prompt\na.png,x\n", ["unknown column 'Prompt': did you mean 'prompt'?"]),
        ("image,promt\na.png,x\n", ["unknown column 'promt': did you mean 'prompt'?"]),
        ("image,prompt,Guidance Scale\na.png,x,1\n", ["did you mean 'guidance_scale'?"]),
        ("image,prompt,guidence_scale\na.png,x,1\n", ["did you mean 'guidance_scale'?"]),
        ("image,prompt,prompt\na.png,x,y\n", ["column 'prompt' appears 2 times"]),
        ("image,prompt,image\na.png,x,y\n", ["column 'image' appears 2 times"]),
        ("image,prompt,\na.png,x,y\n", ["column 3 has no name"]),
        ("image,prompt,row\na.png,x,y\n", ["column 'row' has a name that the index table needs"]),
        ("image,prompt,sha256\na.png,x,y\n", ["column 'sha256' has a name that the index table needs"]),
        ("image,prompt,sheet_row\na.png,x,y\n", ["column 'sheet_row' has a name that the index table needs"]),
        ("image,prompt,recipe_sha256\na.png,x,y\n", ["column 'recipe_sha256' has a name that the index table needs"]),
        ("image,prompt\n,x\n", ["row 2, column image: it is empty"]),
        ("image,prompt\na.png,x\nno.png,y\n", ["row 3, column image: no such file: 'no.png'"]),
        ("image,prompt\n.,x\n", ["row 2, column image: no such file: '.'"]),
        ("image,prompt\na{b}.png,x\n", ["row 2, column image: 'a{b}.png' is not a valid text", "without braces"]),
        ("id,image,prompt\nu,a.png,x\nu,b.png,y\n", ["row 3, column id: 'u' is in row 2 already"]),
        ('id,image,prompt\n"u\n",a.png,x\n', ["row 2, column id: 'u\\n' is not a valid text"]),
        ("image,prompt,strength\na.png,x,1.5\n", ["row 2, column strength: 1.5 must be at most 1"]),
        ("image,prompt,strength\na.png,x,-0.1\n", ["row 2, column strength: -0.1 must be at least 0"]),
        ("image,prompt,strength\na.png,x,0.01\n", ["row 2, column strength: strength 0.01 of 50 steps makes no step"]),
        ("image,prompt,num_inference_steps\na.png,x,0\n", ["column num_inference_steps: 0 must be at least 1"]),
        ("image,prompt,num_inference_steps\na.png,x,2.5\n", ["num_inference_steps: 2.5 is not a whole number"]),
        ("image,prompt,guidance_scale\na.png,x,-1\n", ["column guidance_scale: -1.0 must be at least 0"]),
        ("image,prompt,seed\na.png,x,-1\n", ["row 2, column seed: -1 must be at least 0"]),
        (f"image,prompt,seed\na.png,x,{2**32}\n", [f"column seed: {2**32} must be at most 4294967295"]),
        (f"image,prompt,seed\na.png,x,{'1' * 5000}\n", ["column seed: '1111", "is too large"]),
        ("image,prompt\n", ["has a header but no rows"]),
        ("image,prompt\n\n,\n", ["has a header but no rows"]),
        ("", ["is empty"]),
        ("image;Prompt;Y\na.png;x;1,5\n", ["unknown column 'Prompt': did you mean 'prompt'?"]),
        ("image|prompt\na.png|x\n", ["separated by '|': save it again as CSV with commas, semicolons or tabs"]),
        ("sep=|\nimage|prompt\na.png|x\n", ["separated by '|': save it again as CSV"]),
        ("sep=;\n", ["is empty"]),
        (",image,prompt\nu,a.png,x\nu,b.png,y\n", ["column 1 has no name"]),
        (",image,prompt\n1,a.png,x\n,b.png,y\n", ["column 1 has no name"]),
        ('image;prompt\na.png;"x\n', ["a text with a semicolon or a newline needs double quotes"]),
        (
            "image;prompt\n1;a.png;x\n2;b.png;y\n",
            ["row 3: 3 cells, the header", "write.table", "row.names=FALSE"],
        ),
        ("image,prompt,strength\na.png, N/A ,0.5\n", ["row 2, column prompt: ' N/A ' stands for a missing"]),
        ("image,prompt\na.png,x,y\nb.png\n", ["row 2: 3 cells, the header has 2", "row 3: 1 cells, the header has 2"]),
        ('image,prompt\na.png,"x\n', ["is not a regular CSV file (unexpected end of data)"]),
        ('image,prompt\na.png,"x" y\n', ["is not a regular CSV file", "a quote in it is doubled"]),
        ("image,prompt\na.png,x\0\n", ["line 2 has a NUL byte"]),
    ],
)
def test_a_bad_sheet_is_refused_with_row_and_column(text, problems):
    message = refused(text)
    assert "sheet.csv" in message
    for problem in problems:
        assert problem in message


@pytest.mark.fault("sheet")
@pytest.mark.parametrize(
    ("column", "value", "problem"),
    [
        ("strength", "true", "'true' is not a number"),
        ("strength", "FALSE", "'FALSE' is not a number"),
        ("strength", "0,5", "'0,5' is not a number; decimals are written with a point"),
        ("strength", "inf", "'inf' is not a number"),
        ("strength", "-inf", "'-inf' is not a number"),
        ("strength", "none", "'none' is not a number"),
        ("guidance_scale", "1e400", "'1e400' is too large"),
        ("guidance_scale", "1_000", "is not a number"),
        ("guidance_scale", "٣", "is not a number"),
        ("seed", "0x10", "is not a number"),
        ("seed", "=1+1", "'=1+1' is not a number"),
        ("num_inference_steps", "1e9", "1000000000 must be at most 999"),
        ("prompt", "x" * 100_000, "the text has 100000 characters, more than 10000"),
        ("negative_prompt", "x" * 100_000, "the text has 100000 characters, more than 10000"),
        ("id", "../../x", "is not a valid text"),
        ("id", "/etc/passwd", "is not a valid text"),
        ("id", "../u", "'../u' is not a valid text"),
        ("id", ".u", "'.u' is not a valid text. Name of the item"),
        ("id", "a b", "is not a valid text"),
        ("id", "$(id)", "is not a valid text"),
        ("id", "é", "is not a valid text"),
        ("id", "x" * 129, "at most 128 characters"),
        ("image", "photos/{a}.png", "without braces"),
        ("image", "photos/a\tb.png", "is not a valid text"),
        ("image", "<logs>/a.png", "'<logs>/a.png' is not a valid text. Path of the picture"),
        ("image", "photos/a<x_1>.png", "words in angle brackets such as `<logs>`, which Snakemake would replace"),
    ],
)
def test_a_cell_that_cannot_be_is_refused_by_row_and_column(column, value, problem):
    cells = {"id": "a", "image": "a.png", "prompt": "x"} | {column: f'"{value}"'}
    message = refused(",".join(cells) + "\n" + ",".join(cells.values()) + "\n")
    assert f"has 1 error:\n  - row 2, column {column}: " in message
    assert problem in message
    assert len(message) < 1000


@pytest.mark.fault("sheet")
@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ("image,prompt\n".encode("utf-16"), "has a header but no rows"),
        ("image,prompt\n".encode("utf-16-le"), "line 1 has a NUL byte"),
        ("image,prompt\na.png,x\nb.png,café\n".encode("latin-1"), "is not UTF-8 (line 3)"),
        ("\n\n\n", "has no header in row 1"),
        (b"PK\x03\x04" + bytes(100), "has a NUL byte"),
    ],
)
def test_a_file_that_is_not_a_sheet_is_refused(content, problem):
    assert problem in refused(content)


@pytest.mark.fault("sheet")
def test_a_sheet_that_cannot_be_opened_is_named():
    Path("folder.csv").mkdir()
    assert "The sheet folder.csv cannot be read: Is a directory" in refused("", items="folder.csv")
    assert "No sheet at none.csv (looked from" in refused("", items="none.csv")


@pytest.mark.fault("sheet")
def test_all_problems_are_shown_at_once_up_to_twenty():
    rows = "".join(f"none{number}.png,x,{2 + number}\n" for number in range(30))
    message = refused("image,prompt,strength\n" + rows)
    assert "has 60 errors" in message
    lines = [line for line in message.splitlines() if line.startswith("  - row")]
    assert len(lines) == 20
    places = [line.split(":")[0] for line in lines[:3]]
    assert places == ["  - row 2, column image", "  - row 2, column strength", "  - row 3, column image"]
    assert message.endswith("... and 40 more")


@pytest.mark.fault("sheet")
def test_a_bad_row_among_100_000_is_named():
    rows = "".join(f"i{number},a.png,x,{number}\n" for number in range(100_000))
    message = refused(f"id,image,prompt,outcome\n{rows}i7,a.png,x,1\n")
    assert "has 1 error:\n  - row 100002, column id: 'i7' is in row 9 already" in message


@pytest.mark.fault("sheet")
def test_ids_that_differ_only_in_case_are_refused():
    message = refused("id,image,prompt\na,a.png,x\nb,b.png,x\nA,b.png,x\n")
    assert "has 1 error:\n  - row 4, column id: 'A' and 'a' of row 2 differ only in case" in message


@pytest.mark.fault("picture")
def test_what_is_not_a_file_is_refused_by_row_before_the_run():
    Path("link.png").symlink_to("gone.png")
    os.mkfifo("pipe.png")
    message = refused("image,prompt\nphotos,x\na.png,x\nlink.png,x\npipe.png,x\nno.png,x\n")
    assert "has 4 errors" in message
    assert "row 2, column image: no such file: 'photos' is a folder" in message
    assert "row 4, column image: 'link.png' is a link to 'gone.png'" in message
    assert "row 5, column image: 'pipe.png' is not a regular file" in message
    assert "row 6, column image: no such file: 'no.png' (looked from" in message


@pytest.mark.fault("picture")
@pytest.mark.skipif(os.getuid() != 0, reason="only root can become another user")
def test_folders_that_can_be_entered_or_listed_alone(folder):
    """A picture in the first is read; one in the second is refused by its row."""
    for name, mode in {"entered": 0o711, "listed": 0o644}.items():
        (folder / name).mkdir()
        (folder / name / f"{name}.png").touch()
        (folder / name).chmod(mode)
    for parent in [folder, *folder.parents][:-1]:
        parent.chmod(parent.stat().st_mode | 0o055)
    Path("sheet.csv").write_text("image,prompt\nentered/entered.png,x\nlisted/listed.png,x\n")
    config = load_config({"model_id": "demo", "items": "sheet.csv"})
    assert len(read_items(config)) == 2  # root may, and Python imports what the other user may not be able to
    try:
        os.seteuid(65534)
        with pytest.raises(InputError) as caught:
            read_items(config)
    finally:
        os.seteuid(0)
    message = str(caught.value)
    assert "has 1 error:\n  - row 3, column image: " in message
    assert "'listed/listed.png' cannot be accessed: Permission denied" in message


@pytest.mark.fault("picture")
def test_a_picture_of_tomorrow_is_refused_with_the_remedy():
    os.utime("a.png", (4e9, 4e9))
    assert "row 2, column image: 'a.png' is dated in the future (2096-" in refused("image,prompt\na.png,x\n")


def test_the_column_that_colours_the_map_must_exist():
    text = "image,prompt,treatment\na.png,x,1\n"
    for column in ("treatment", "id", "image", "seed"):
        read(text, report_color=column)
    assert "has no column 'treatmnt': did you mean 'treatment'?" in refused(text, report_color="treatmnt")
    read(text, report_color="treatmnt", report=False)


@pytest.mark.fault("config")
@pytest.mark.parametrize(
    ("config", "problem"),
    [
        ({"output_image_dir": "photos"}, "key output_image_dir puts results into the folder of 'photos/a.png'"),
        ({"output_hidden_dir": "photos/"}, "key output_hidden_dir puts results into the folder of 'photos/a.png'"),
        ({"output_hidden_dir": "linked"}, "key output_hidden_dir puts results into the folder of 'photos/a.png'"),
        ({"stacked": "photos/R.npy"}, "key stacked puts results into the folder of 'photos/a.png'"),
        ({"output_image_dir": "config"}, "key output_image_dir puts results into the folder of 'config/items.csv'"),
        ({"items": "results/items.csv"}, "key stacked puts results into the folder of 'results/items.csv'"),
        ({"items": "results/items.csv", "stacked": "R/R.pt"}, "'results/items.csv' is in results, the folder of the"),
        ({"items": "logs/items.csv"}, "'logs/items.csv' is in logs, the folder of the results"),
    ],
)
def test_results_never_go_among_the_users_own_files(folder, config, problem):
    (folder / "linked").symlink_to("photos")
    for name in ("config", "results", "logs"):
        (folder / name).mkdir()
        (folder / name / "items.csv").write_text("image,prompt\nphotos/a.png,x\n")
    assert problem in refused("", **({"items": "config/items.csv"} | config))
