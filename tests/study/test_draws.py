"""Several draws of an item in the sheet: what they are, and what is refused."""

from __future__ import annotations

import pytest
from gpi_latents.recipe import SETTINGS, recipe
from gpi_latents.study.settings import load_config
from gpi_latents.study.sheet import index_table, read_items
from helpers.sheets import read, refused

pytestmark = pytest.mark.usefixtures("folder")


def test_each_draw_of_an_item_is_as_a_row_of_its_own_with_the_next_seed():
    sheet = "id,image,prompt,seed,Y,draws\n007,a.png,x,42,1,3\n\nb,b.png,y,5,NA,1\nc,b.png,y,,2,\n"
    items = read(sheet, draws=2, seed=4294967294)
    assert items.index.tolist() == [2, 2, 2, 4, 5, 5]
    ids, seeds = ["007_1", "007_2", "007_3", "b", "c_1", "c_2"], [42, 43, 44, 5, 4294967294, 4294967295]
    assert items[["id", "seed"]].to_numpy().tolist() == [list(each) for each in zip(ids, seeds, strict=True)]
    assert items["item"].tolist() == ["007", "007", "007", "b", "c", "c"]
    assert items["draw"].tolist() == [1, 2, 3, 1, 1, 2]
    assert items["Y"].tolist() == ["1", "1", "1", "NA", "2", "2"]
    config = load_config({"model_id": "demo"})
    table = index_table(items, [recipe(config, item) for item in items.itertuples()])
    assert table["row"].tolist() == list(range(6))
    assert list(table)[-4:] == ["seed", "item", "draw", "Y"]


def test_one_draw_of_each_item_changes_nothing_in_its_table():
    sheet = "image,prompt,item,Y\na.png,x,1,2\nb.png,y,2,3\n"
    plain = read(sheet)
    assert list(plain) == ["id", "image", "prompt", *SETTINGS, "item", "Y"]
    assert read(sheet, draws=1).equals(plain)
    assert read(sheet.replace("Y", "draws").replace(",3", ",1").replace("2\nb", "NA\nb")).equals(
        plain.drop(columns="Y")
    )


@pytest.mark.fault("sheet")
@pytest.mark.parametrize(
    ("text", "config", "problems"),
    [
        ("id,image,prompt,draws\nx,a.png,p,2\nX_2,b.png,p,1\n", {}, ["row 3, column id: 'X_2' and 'x_2' of row 2"]),
        (
            "id,image,prompt,draws\nx_1,a.png,p,\nb,b.png,p,\nx,b.png,p,2\n",
            {},
            ["row 4, column id: 'x_1' is in row 2 already (the draws of an item x are x_1, x_2 and so on)"],
        ),
        (
            "image,prompt,draws\na.png,p,0\nb.png,p,2.5\n",
            {},
            ["row 2, column draws: 0 must be at", "row 3, column draws:"],
        ),
        ("image,prompt,draws\na.png,p,1001\n", {}, ["column draws: 1001 must be at most 1000"]),
        (
            "image,prompt,seed\na.png,p,4294967295\n",
            {"draws": 2},
            ["row 2, column seed: the seed of its draw 2, 4294967296"],
        ),
        (f"id,image,prompt\n{'x' * 127},a.png,p\n", {"draws": 2}, ["row 2, column id: of its draw 2, ", "at most 128"]),
        (
            "image,prompt,strength,draws\na.png,p,0.5,3\nb.png,p,0,3\n",
            {"posterior": "mode"},
            ["1 error", "row 3, column draws: all 3 would be the same, since posterior 'mode' at strength 0 leaves"],
        ),
        ("image,prompt,item\na.png,p,1\n", {"draws": 2}, ["The sheet's column 'item' has a name that the index table"]),
    ],
)
def test_draws_that_cannot_be_are_refused_by_row_and_column(text, config, problems):
    message = refused(text, **config)
    for problem in problems:
        assert problem in message


def test_the_config_of_an_older_versions_results_has_one_draw_of_each_item():
    read("image,prompt\na.png,x\nb.png,y\n")
    config = load_config({"model_id": "demo", "items": "sheet.csv"})
    assert config.pop("draws") == 1
    assert read_items(config)["id"].tolist() == ["a", "b"]
