"""What a study may be given by mistake or by a stranger: each ends in a message that says what to do, or just works."""

from __future__ import annotations

import ast
import os
import pickle
import re
import struct
from pathlib import Path

import items
import pandas as pd
import pytest
import torch
from helpers.photos import huge
from helpers.study import ROOT, draw
from PIL import Image

pytestmark = pytest.mark.timeout(120)


# --- Pictures ---


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    """The working directory, with a picture `a.png` in `photos`."""
    monkeypatch.chdir(tmp_path)
    draw(tmp_path / "photos/a.png")
    return tmp_path


@pytest.mark.fault("picture")
def test_check_lists_all_bad_pictures_at_once_and_needs_no_model(study):
    rows = study.pictures(8)
    photos = study.folder / "pictures"
    whole = (photos / "p0.png").read_bytes()
    (photos / "p1.png").write_bytes(whole[:300])
    (photos / "p2.png").write_bytes(b"")
    (photos / "p3.png").write_text("no picture")
    (photos / "p4.png").write_bytes(huge("png"))
    (photos / "p5.png").unlink()
    (photos / "p6.png").unlink()
    os.mkfifo(photos / "p6.png")
    Image.open(photos / "p7.png").convert("CMYK").save(photos / "p7.jpg")
    rows[7]["image"] = "pictures/p7.jpg"
    study.sheet(rows)
    study.config(model_id="no/such-model", output_image_dir=None)
    run = study.run("check", fails=True)
    told = ["truncated|broken|cut|image file", "it is empty", "not a picture", "178 million", "no such file", "a pipe"]
    assert "6 of 8 pictures cannot be read" in run.text
    for row, reason in enumerate(told, start=3):
        assert re.search(rf"- row {row}, p{row - 2}: [^-]*({reason})", run.text), (row, reason, run.output)
    table = pd.read_csv(study.folder / "results/check.csv")
    assert table.columns.tolist() == ["row", "id", "image", "reason"]
    assert table["row"].tolist() == [3, 4, 5, 6, 7, 8]
    for row in rows[1:7]:
        Path(study.folder / row["image"]).unlink(missing_ok=True)
        (study.folder / row["image"]).write_bytes(whole)
    assert "All 8 pictures can be read." in study.run("check").text
    assert not list((study.folder / "results").rglob("*.pt"))


# --- Strangers ---


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


@pytest.mark.fault("stranger")
def test_hostile_paths_prompts_and_cells_execute_nothing_and_come_out_as_they_are(study):
    prompts = ["$(touch owned)", "`touch owned`", "'; touch owned #", "a\nb\r\nc", '"quoted"', "--help", "<script>"]
    ids = [
        "-rf",
        "--help",
        "con",
        "NUL",
        "a..b",
        "_",
        "".join(f"{number:03}-" for number in range(32)),
        "001",
        "1e5",
        "NA",
        "null",
        "true",
    ]
    rows = []
    for name, item_id in zip(HOSTILE, ids, strict=True):
        draw(study.folder / "photos & more" / name, seed=len(rows))
        number = len(rows)
        row = {"id": item_id, "image": f"photos & more/{name}", "prompt": prompts[number % len(prompts)]}
        rows.append(row | {"strength": 0.5 if number < 7 else 0, "note": f'=HYPERLINK("http://x";"{number}")'})
    study.sheet(rows)
    before = set(study.folder.rglob("*"))
    study.run("--config", "num_inference_steps=2")
    made = set(study.folder.rglob("*")) - before
    assert {path.relative_to(study.folder).parts[0] for path in made} == {"results", "logs", ".snakemake"}
    assert not [path for path in made if path.name == "owned"]
    index = study.index()
    for column in ("id", "image", "prompt", "note"):
        assert index[column].tolist() == [row[column] for row in rows], column
    assert len(torch.load(study.folder / "results/latents.pt", weights_only=True)) == len(rows)
    assert len(set(study.digests().values())) == len(rows)
    assert "Nothing to be done" in study.run("--config", "num_inference_steps=2").text


class Owner:
    """Pickled, it makes a file when it is loaded."""

    def __reduce__(self):
        return Path.touch, (Path("owned"),)


@pytest.mark.fault("stranger")
@pytest.mark.parametrize("kind", ["pickle", "zip of a pickle", "safetensors with a huge header", "huge shape"])
def test_a_hostile_latent_executes_nothing_and_is_refused_by_name(folder, kind):
    import stack

    bad = folder / "hidden_bad.pt"
    if kind == "pickle":
        bad.write_bytes(pickle.dumps(Owner()))
    elif kind == "zip of a pickle":
        torch.save({"x": Owner()}, bad)
    elif kind == "huge shape":
        torch.save(torch.zeros(1).expand(1, 4, 2**20, 2**20), bad)
    else:
        bad.write_bytes(struct.pack("<Q", 2**62) + b"{}")
    torch.save(torch.zeros(1, 4, 8, 8), folder / "hidden_good.pt")
    with pytest.raises(items.InputError, match=r"(hidden_bad\.pt is not a latent|different shapes)"):
        stack.stack(["hidden_good.pt", "hidden_bad.pt"], ["good", "bad"], Path("R.pt"), {})
    assert not (folder / "owned").exists()


def test_the_page_of_faults_names_its_tests_and_no_others():
    marked = set()
    for file in (ROOT / "tests").glob("test_*.py"):
        for node in ast.parse(file.read_text()).body:
            decorators = " ".join(map(ast.unparse, getattr(node, "decorator_list", [])))
            marked |= {node.name} if "pytest.mark.fault(" in decorators else set()
    assert set(re.findall(r"`(test_\w+)`", (ROOT / "tests/FAULTS.md").read_text())) == marked
