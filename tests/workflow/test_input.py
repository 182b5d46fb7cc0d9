"""Mistakes and hostile texts in what a study is given: refused with a message, or taken as texts."""

from __future__ import annotations

import os
import re
import shutil

import pandas as pd
import pytest
import torch
from helpers.photos import PHOTOS, huge
from helpers.study import Study, draw, wait_for
from PIL import Image


@pytest.mark.fault("sheet")
def test_a_bad_sheet_stops_the_run_with_one_message(study):
    draw(study.folder / "p.png")
    run = study.run(fails=True)
    assert "No sheet at config/items.csv" in run.text
    lines = ["id,image,prompt,seed,strength", "u,p.png,x,-1,0", "u,no.png,x,0,0.01", "v,,x,0,0"]
    (study.folder / "config/items.csv").write_text("\n".join(lines) + "\n")
    run = study.run(fails=True)
    problems = ["row 2, column seed: ", "row 3, column id: ", "row 3, column image: no such file: 'no.png'"]
    problems += ["row 3, column strength: ", "row 4, column image: "]
    assert [run.text.count(problem) for problem in problems] == [1] * 5
    assert "Traceback" not in run.output
    assert run.jobs == {}
    assert not (study.folder / "results").exists()


@pytest.mark.fault("config")
def test_a_bad_config_stops_the_run_with_one_message(study):
    study.pictures(1)
    study.config(strenght=0.5, resize="padd")
    run = study.run("--config", "seed=x", "items=001", fails=True)
    assert "unknown key 'strenght': did you mean 'strength'?" in run.text
    for key in ("resize", "seed", "items"):
        assert run.text.count(f"key {key}: ") == 1
    assert "Traceback" not in run.output


@pytest.mark.fault("sheet")
def test_an_id_that_snakemake_takes_for_an_endless_loop_gets_its_error(study):
    draw(study.folder / "p.png")
    study.sheet([{"id": "img" + "0" * 30, "image": "p.png", "prompt": "x"}])
    run = study.run(fails=True)
    assert re.search("infinite recursion", run.text)
    assert not (study.folder / "results").exists()


@pytest.mark.fault("stranger")
def test_an_item_that_is_not_in_the_sheet_is_no_target(study):
    study.pictures(1)
    run = study.run("results/hidden/hidden_nobody.pt", fails=True)
    assert "has no item 'nobody'" in run.text


@pytest.mark.fault("picture")
def test_check_lists_all_bad_pictures_at_once_and_needs_no_model(study):
    rows = study.pictures(7)
    photos = study.folder / "pictures"
    whole = (photos / "p0.png").read_bytes()
    (photos / "p1.png").write_bytes(whole[:300])
    (photos / "p2.png").write_bytes(b"")
    (photos / "p3.png").write_text("no picture")
    (photos / "p4.png").write_bytes(huge("png"))
    (photos / "p5.png").unlink()
    os.mkfifo(photos / "p5.png")
    Image.open(photos / "p6.png").convert("CMYK").save(photos / "p6.jpg")
    rows[6]["image"] = "pictures/p6.jpg"
    study.sheet(rows)
    study.config(model_id="no/such-model", output_image_dir=None)
    # What is not a file is refused by any run.
    assert "row 7, column image: 'pictures/p5.png' is not a regular file" in study.run("check", fails=True).text
    (photos / "p5.png").unlink()
    (photos / "p5.png").write_bytes(whole)
    run = study.run("check", fails=True)
    assert "4 of 7 pictures cannot be read" in run.text
    for row, reason in enumerate(["truncated|broken|cut|image file", "empty", "not a picture", "178 million"], start=3):
        assert re.search(rf"- row {row}, p{row - 2}: [^-]*({reason})", run.text), (row, reason, run.output)
    table = pd.read_csv(study.folder / "results/check.csv")
    assert table.columns.tolist() == ["sheet_row", "id", "image", "problem", "notes"]
    assert table.loc[table["problem"].notna(), "sheet_row"].tolist() == [3, 4, 5, 6]
    for number in range(1, 5):
        (photos / f"p{number}.png").write_bytes(whole)
    assert "All 7 pictures can be read." in study.run("check").text
    assert not list((study.folder / "results").rglob("*.pt"))
    assert (study.folder / "results/check.csv").exists()  # it names p6, which is CMYK
    study.sheet(rows[:6])
    study.run("orphans")
    assert not (study.folder / "results/check.csv").exists()


@pytest.mark.fault("picture")
def test_a_path_leads_where_the_system_means_and_a_sheet_of_excel_gives_its_numbers(study):
    """Behind a link, `..` is not the folder that the path begins in; Snakemake would replace `<logs>`, not `<Logs>`."""
    pictures = {"meant": "far/a.png", "other": "a.png", "angles": "<Logs> a<b/<0>.png", "dash": "-a.png"}
    for seed, path in enumerate(pictures.values()):
        draw(study.folder / path, seed=seed)
    (study.folder / "far/inner").mkdir()
    (study.folder / "photos").symlink_to("far/inner")
    pictures |= {"linked": ".//photos/../a.png"}
    rows = "".join(f"{name};{path};red;0,5;{number},5\r\n" for number, (name, path) in enumerate(pictures.items()))
    sheet = f"sep=;\r\nid;image;prompt;strength;outcome\r\n{rows}"
    (study.folder / "config/items.csv").write_bytes(sheet.encode("utf-8-sig"))
    study.config(num_inference_steps=2)
    study.run()
    digests = study.digests()
    assert digests["linked"] == digests["meant"]
    assert len(set(digests.values())) == 4
    index = study.index()
    assert index["image"].tolist() == list(pictures.values())
    assert index["strength"].tolist() == ["0.5"] * 5
    assert index["outcome"].tolist() == ["0.5", "1.5", "2.5", "3.5", "4.5"]
    assert study.plan() == set()


HOSTILE = [
    "$(touch owned).png",
    "`touch owned`.png",
    "'; touch owned; '.png",
    '"; touch owned; ".png',
    "-rf.png",
    "~root.png",
    "a&touch owned&.png",
    "*.png",
    "%s%n.png",
    "http:--x.png",
    "con.png",
    "図 é.png",
]
IDS = ["-rf", "--help", "con", "NUL", "a..b", "_", "001", "1e5", "NA", "null", "true"]
PROMPTS = ["$(touch owned)", "`touch owned`", "'; touch owned #", "a\nb\r\nc", '"quoted"', "--help", "<script>"]
PROMPTS += ['say "no change", it\'s $HOME `id` {x}\n\\n', "rote Fläche; rm -rf *", "図"]


@pytest.mark.fault("stranger")
def test_hostile_paths_prompts_and_cells_execute_nothing_and_come_out_as_they_are(tmp_path):
    """In a folder with spaces and letters of other scripts; the resident's socket is private meanwhile."""
    study = Study(tmp_path / "étude du café 図")
    study.environment["TMPDIR"] = str(study.tmp)
    rows = []
    for name, item_id in zip(HOSTILE, [*IDS, "".join(f"{number:03}-" for number in range(32))], strict=True):
        draw(study.folder / "photos & more" / name, seed=len(rows))
        rows.append({"id": item_id, "image": f"photos & more/{name}"})
    for photo in PHOTOS:
        image = f"photos & more/the {photo.stem} – ü.jpg"
        shutil.copy(photo, study.folder / image)
        rows.append({"id": photo.stem, "image": f"./{image}"})
    for number, row in enumerate(rows):
        row |= {"prompt": PROMPTS[number % len(PROMPTS)], "strength": 0.5 if number < len(PROMPTS) else 0}
        row["note"] = f'=HYPERLINK("http://x";"{number}")'
    study.sheet(rows)
    study.config(num_inference_steps=2)
    before = set(study.folder.rglob("*"))
    run = study.start()
    socket = wait_for(lambda: list(study.tmp.glob("gpi-latents-*/*.sock")), 60, "the socket")[0]
    assert socket.parent.stat().st_mode & 0o777 == 0o700
    output = run.communicate(timeout=200)[0]
    assert run.returncode == 0, output
    made = set(study.folder.rglob("*")) - before
    assert {path.relative_to(study.folder).parts[0] for path in made} == {"results", "logs", ".snakemake"}
    assert not [path for path in made if path.name == "owned"]
    index = study.index()
    for column in ("id", "image", "prompt", "note"):
        assert index[column].tolist() == [row[column] for row in rows], column
    assert torch.load(study.folder / "results/latents.pt", weights_only=True).shape == (len(rows), 4, 8, 8)
    assert len(set(study.digests().values())) == len(rows)
    assert study.plan() == set()
