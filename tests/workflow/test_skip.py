"""`on_error: skip`: a run ends well without the items that fail, says so, and tries them again the next time."""

from __future__ import annotations

import shutil
import subprocess

import gpi_latents as gpi
import pandas as pd
import pytest
import torch
from helpers.faults import Stop
from helpers.study import Study, draw

pytestmark = [pytest.mark.long, pytest.mark.fault("skip")]

DAMAGED = b"no picture"


def files(study: Study) -> set[str]:
    return {str(path.relative_to(study.folder)) for path in (study.folder / "results").rglob("*") if path.is_file()}


def damage(study: Study, *ids: str) -> None:
    for item_id in ids:
        (study.folder / f"pictures/{item_id}.png").write_bytes(DAMAGED)


def results(study: Study) -> list[bytes]:
    return [(study.folder / "results" / name).read_bytes() for name in ("latents.pt", "index.csv")]


def failed(study: Study) -> list[str]:
    return pd.read_csv(study.folder / "results/failed.csv")["id"].tolist()


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Study:
    """Four items, of which nothing fails."""
    study = Study(tmp_path_factory.mktemp("whole"))
    study.pictures(4)
    study.run()
    return study


@pytest.fixture
def study(whole, tmp_path) -> Study:
    """The same four, not done yet, with on_error: skip."""
    made = Study(tmp_path / "study")
    for part in ("config", "pictures"):
        shutil.copytree(whole.folder / part, made.folder / part, dirs_exist_ok=True)
    made.config(on_error="skip")
    return made


def test_a_damaged_picture_is_left_out_said_so_and_taken_in_when_it_is_mended(study, whole):
    damage(study, "p2")
    run = study.run()
    assert "1 item failed and is left out: row 4, p2 (why: " in run.text
    assert failed(study) == ["p2"]
    own = {"results/hidden/hidden_p2.pt", "results/images/gen_p2.png"}
    assert files(study) == files(whole) - own | {"results/failed.csv"}
    with pytest.warns(UserWarning, match="1 of 4 items failed"):
        assert len(gpi.load(study.folder / "results")[0]) == 3
    check = "cat results/checksums/* | sha256sum --check"
    assert subprocess.check_output(check, shell=True, cwd=study.folder, text=True).count(": OK") == 3
    # What a sheet without that row gives, bit for bit.
    stacked = torch.load(whole.folder / "results/latents.pt", weights_only=True)[[0, 1, 3]]
    assert torch.equal(torch.load(study.folder / "results/latents.pt", weights_only=True), stacked)
    index = whole.index().drop(index=2).assign(row=["0", "1", "2"]).reset_index(drop=True)
    pd.testing.assert_frame_equal(study.index(), index)
    # Each run tries it again, in either mode.
    made = results(study)
    assert study.run().jobs == {"extract": 1, "stack": 1}
    study.config()
    run = study.run(fails=True)
    assert "1 of 4 items failed (all in " in run.text
    assert results(study) == made
    draw(study.folder / "pictures/p2.png", seed=2)
    assert study.run().jobs == {"extract": 1, "stack": 1}
    assert results(study) == results(whole)
    assert files(study) == files(whole)
    study.config(on_error="skip")
    assert study.plan() == set()


def test_where_some_items_alone_are_asked_for_one_that_fails_leaves_no_empty_file(study):
    damage(study, "p2")
    run = study.run(*(f"results/hidden/hidden_{item_id}.pt" for item_id in ("p1", "p2")))
    assert "1 of 4 latents are made" in run.text
    assert "1 made, 0 kept, 1 failed" in run.text
    assert files(study) == {"results/model.json", "results/hidden/hidden_p1.pt", "results/images/gen_p1.png"}


def test_where_every_item_fails_the_run_does(study):
    damage(study, "p0", "p1", "p2", "p3")
    run = study.run(fails=True)
    assert "None of the 4 items could be done" in run.text
    assert "4 of 4 items failed (all in " in run.text
    assert files(study) == {"results/model.json", "results/checksums/0.sha256"}
    assert study.plan() == {*(f"extract p{number}" for number in range(4)), "stack"}


def test_a_kill_between_extraction_and_stack_leaves_no_empty_file_for_a_latent(study, whole):
    damage(study, "p2")
    stop = Stop(study, (r"latents\.pt", "before replacing"))
    run = study.start()
    number = stop.reached()
    run.kill()
    stop.release(number)
    run.wait(60)
    stop.pause()
    study.run("--unlock")
    assert (study.folder / "results/hidden/hidden_p2.pt").read_bytes() == b""
    study.config()  # on_error: stop
    assert study.plan() == {"extract p2", "stack"}
    draw(study.folder / "pictures/p2.png", seed=2)
    assert study.run().jobs == {"extract": 1, "stack": 1}
    assert results(study) == results(whole)
    assert files(study) == files(whole)


def test_batches_leave_out_the_same_items(study):
    """The first batch has a whole block of a hundred, of which one fails; the last one stacks."""
    study.config(on_error="skip", output_image_dir=None)
    rows = [{"id": f"n{number}", "image": f"pictures/p{number % 2}.png", "prompt": ""} for number in range(102)]
    for number, name in ((7, "p2"), (101, "p3")):
        rows[number]["image"] = f"pictures/{name}.png"
    study.sheet(rows)
    damage(study, "p2", "p3")
    jobs = [study.run("--batch", f"stack={number}/3").jobs for number in (1, 2, 3)]
    assert [(each.get("extract"), each.get("stack")) for each in jobs] == [(100, None), (2, None), (None, 1)]
    assert failed(study) == ["n7", "n101"]
    assert len(torch.load(study.folder / "results/latents.pt", weights_only=True)) == 100
    assert "results/hidden/hidden_n7.pt" not in files(study)
