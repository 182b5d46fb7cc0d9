"""The sheet's file as statistics programs and spreadsheets write it."""

from __future__ import annotations

import pytest
from gpi_latents.recipe import SETTINGS
from helpers.sheets import read, refused

pytestmark = pytest.mark.usefixtures("folder")

# What R's write.csv, write.csv2 and write.table, pandas and Excel make of one table.
R_CSV = '''\
"","id","image","prompt","strength","seed","Y"
"1","001","a.png","x",0.5,7,1.5
"2","002","b.png","a; ""b""",NA,NA,NA
'''
R_CSV2 = '''\
"";"id";"image";"prompt";"strength";"seed";"Y"
"1";"001";"a.png";"x";0,5;7;1,5
"2";"002";"b.png";"a; ""b""";NA;NA;NA
'''
PANDAS = '''\
;id;image;prompt;strength;seed;Y
0;001;a.png;x;0,5;7.0;1,5
1;002;b.png;"a; ""b""";;;NA
'''
EXCEL = '''\
id;image;prompt;strength;seed;Y;;
001;a.png;x;0,5;7;1,5;;
002;b.png;"a; ""b""";;;NA;;
;;;;;;;
'''


@pytest.mark.fault("sheet")
@pytest.mark.parametrize(
    ("content", "notes"),
    [
        (R_CSV.encode(), ["row numbers"]),
        (R_CSV2.encode(), ["separated by semicolons", "row numbers", "column strength: decimal", "column Y: decimal"]),
        (R_CSV.replace(",", "\t").encode(), ["separated by tabs", "row numbers"]),
        (PANDAS.encode(), ["separated by semicolons", "row numbers", "column strength: decimal", "column Y: decimal"]),
        (
            ("sep=;\n" + EXCEL).replace("\n", "\r\n").encode("utf-8-sig"),
            ["separated by semicolons", "2 blank columns", "column strength: decimal", "column Y: decimal"],
        ),
        (
            EXCEL.replace("a; ", "a~").replace(";", "\t").replace("a~", "a; ").replace("\n", "\r\n").encode("utf-16"),
            ["separated by tabs", "2 blank columns", "column strength: decimal", "column Y: decimal"],
        ),
    ],
)
def test_what_statistics_programs_and_spreadsheets_write_is_read_and_noted(content, notes):
    items = read(content, strength=0.25)
    assert list(items) == ["id", "image", "prompt", *SETTINGS, "Y"]
    assert items["id"].tolist() == ["001", "002"]
    assert items["prompt"].tolist() == ["x", 'a; "b"']
    assert items["strength"].tolist() == [0.5, 0.25]
    assert items["seed"].tolist() == [7, 0]
    assert items["Y"].tolist() == ["1.5", "NA"]
    assert items.index.tolist() == [2, 3]  # as a spreadsheet counts them
    assert len(items.attrs["notes"]) == len(notes)
    for note, part in zip(items.attrs["notes"], notes, strict=True):
        assert note.startswith("The sheet sheet.csv: ")
        assert part in note


def test_a_sheet_with_commas_is_read_as_it_is_written():
    items = read('image,prompt,Y,Z\na.png,"x; y; z","1,5",1.000\nb.png,y\t,2,\n')
    assert items[["prompt", "Y", "Z"]].to_numpy().tolist() == [["x; y; z", "1,5", "1.000"], ["y\t", "2", ""]]
    assert items.attrs["notes"] == []


@pytest.mark.parametrize(
    ("cells", "expected", "note"),
    [
        (["1,5", "2", "", "NA", "-,5", "1,25e-3"], ["1.5", "2", "", "NA", "-.5", "1.25e-3"], "decimal commas are read"),
        (["1,234", "12,5"], ["1.234", "12.5"], "decimal commas are read as points"),
        (["1,234", "0,234"], ["1.234", "0.234"], "decimal commas are read as points"),
        (["1,234", "999"], None, "'1,234' may have decimals or a separator of thousands: write thousands without"),
        (["1.234", "999"], None, "'1.234' may have decimals or a separator of thousands: write thousands without"),
        (["1.234,5", "7,5"], None, "it has both commas and points: write all decimals alike"),
        (["1.5", "7,5"], None, "it has both commas and points: write all decimals alike"),
        (["1.5", "7"], None, ""),
        (["1,5", "about 2"], None, ""),
        (["01.02.2024", "02.02.2024"], None, ""),
        (["1,2,3", "x"], None, ""),
    ],
)
def test_decimal_commas_become_points_where_a_whole_column_is_numbers(cells, expected, note):
    rows = "".join(f"i{number};a.png;0,5;{cell}\n" for number, cell in enumerate(cells))
    items = read(f"id;image;prompt;Y\n{rows}")
    assert items["Y"].tolist() == (expected or cells)
    assert set(items["prompt"]) == {"0,5"}
    assert items.attrs["notes"][0] == "The sheet sheet.csv: it is separated by semicolons"
    assert len(items.attrs["notes"]) == 1 + bool(note)
    assert note in items.attrs["notes"][-1]


@pytest.mark.fault("sheet")
def test_numbers_that_may_be_thousands_are_refused_as_settings():
    text = "image;prompt;strength;seed\na.png;x;0,500;1.000\nb.png;x;1,000;2\n"
    assert "has 1 error:\n  - row 2, column seed: '1.000' may be thousands: write" in refused(text, posterior="mode")
    message = refused("image\tprompt\tguidance_scale\tseed\na.png\tx\t1,000\t1,000\n")
    assert "row 2, column guidance_scale: '1,000' is not a number; decimals are written with a point" in message
    assert "row 2, column seed: '1,000' may be thousands" in message
    assert read("image,prompt,seed\na.png,x,1.000\n")["seed"].tolist() == [1]
