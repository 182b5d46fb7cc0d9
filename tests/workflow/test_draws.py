"""Several draws of an item, with real Snakemake: which bits they have, and what runs when there are more or fewer."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from gpi_latents import load
from helpers.study import Study, draw

STILL = {"image": "pictures/a.png", "prompt": "a", "strength": 0}
EDITED = {"image": "pictures/b.png", "prompt": "a red circle", "strength": 0.5}
ROWS = [
    {"id": "x", "draws": 3, "seed": 42, **STILL},
    {"id": "e", "draws": 2, "seed": 7, **EDITED},
    *({"id": f"x{seed}", "draws": None, "seed": seed, **STILL} for seed in (42, 43, 44)),
    *({"id": f"e{seed}", "draws": 1, "seed": seed, **EDITED} for seed in (7, 8)),
]
ONE_EACH = ["x42", "x43", "x44", "e7", "e8"]
DRAWS = ["x_1", "x_2", "x_3", "e_1", "e_2"]


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    """A study that has run: two items with several draws, and a row by hand for each of these."""
    study = Study(tmp_path_factory.mktemp("draws"))
    study.config(num_inference_steps=4, output_image_dir=None)
    for number, name in enumerate("ab"):
        draw(study.folder / f"pictures/{name}.png", seed=number)
    write(study)
    study.run()
    return study.folder


@pytest.fixture
def study(finished, tmp_path) -> Study:
    """The finished study, copied elsewhere."""
    shutil.copytree(finished, tmp_path / "study")
    copy = Study(tmp_path / "study")
    copy.config(num_inference_steps=4, output_image_dir=None)
    return copy


def write(study: Study, **draws: int) -> None:
    """Write the sheet, with other numbers of draws for some items."""
    study.sheet([row | {"draws": draws.get(str(row["id"]), row["draws"])} for row in ROWS])


def test_draws_have_the_bits_of_rows_written_by_hand_and_load_tells_them_apart(study):
    digests = study.digests()
    assert [digests[item_id] for item_id in DRAWS] == [digests[item_id] for item_id in ONE_EACH]
    assert len({digests[item_id] for item_id in DRAWS}) == 5
    R, index = load(study.folder / "results")
    assert index["id"].tolist() == DRAWS + ONE_EACH
    assert index["item"].tolist() == ["x", "x", "x", "e", "e", *ONE_EACH]
    assert index["draw"].tolist() == [1, 2, 3, 1, 2, 1, 1, 1, 1, 1]
    assert index["seed"].tolist()[:5] == [42, 43, 44, 7, 8]
    for place, item_id in enumerate(index["id"]):
        assert torch.equal(torch.tensor(R[place : place + 1]), study.latent(item_id))


def test_more_draws_run_the_new_ones_alone_and_fewer_leave_files_that_are_listed(study):
    assert study.plan() == set()
    write(study, x=5, e=4)
    assert study.plan() == {"extract x_4", "extract x_5", "extract e_3", "extract e_4", "stack"}
    write(study, x=2)
    assert study.plan() == {"stack"}
    assert study.run("orphans").output.split().count("results/hidden/hidden_x_3.pt") == 1
    write(study, x43=2)  # it gets another name, with the bits that it had
    assert study.plan() == {"extract x43_1", "extract x43_2", "stack"}


@pytest.mark.long
def test_from_three_draws_to_five_the_other_latents_stay_as_they_are(study):
    before = study.digests()
    times = {path: path.stat().st_mtime_ns for path in (study.folder / "results/hidden").iterdir()}
    write(study, x=5)
    assert study.run().jobs == {"extract": 2, "stack": 1}
    after = study.digests()
    assert after.keys() - before.keys() == {"x_4", "x_5"}
    assert {path: path.stat().st_mtime_ns for path in times} == times
    assert len(load(study.folder / "results")[1]) == 12
    assert study.plan() == set()


def test_a_bad_picture_of_several_draws_is_one_bad_picture_of_its_row(study):
    (study.folder / "pictures/b.png").write_bytes(b"no picture")
    found = study.run("check", fails=True)
    assert "3 of 7 pictures cannot be read" in found.text
    assert "row 3, e_1: " in found.text
    assert "e_2" not in found.text
