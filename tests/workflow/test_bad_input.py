"""What a study may be given by mistake or by a stranger: each ends in a message that says what to do, or just works."""

from __future__ import annotations

import ast
import os
import pickle
import re
import socket
import struct
import subprocess
import sys
from pathlib import Path

import items
import pandas as pd
import pytest
import torch
import yaml
from helpers.photos import huge
from helpers.study import ROOT, Study, draw, wait_for
from PIL import Image

SCHEMA = yaml.safe_load((ROOT / "config/schema.yaml").read_text())

pytestmark = pytest.mark.timeout(120)


# --- Pictures ---


def put(kind: str, path: Path) -> None:
    """Something that is no picture file, where one should be."""
    if kind == "folder":
        path.mkdir()
    elif kind == "pipe":
        os.mkfifo(path)
    elif kind == "broken link":
        path.symlink_to("gone.png")
    elif kind == "endless link":
        path.symlink_to(path.name)
    elif kind == "device":
        path.symlink_to("/dev/zero")
    elif kind == "socket":
        server = socket.socket(socket.AF_UNIX)
        here = os.getcwd()
        os.chdir(path.parent)  # a socket's path is short
        server.bind(path.name)
        os.chdir(here)
        server.close()


NO_FILES = {
    "folder": "'p.png' is a folder",
    "pipe": "'p.png' is not a file that a picture can be read from",
    "broken link": "'p.png' is a link to 'gone.png', which is not there",
    "endless link": "'p.png' cannot be looked at: Too many levels of symbolic links",
    "device": "'p.png' is not a file that a picture can be read from",
    "socket": "'p.png' is not a file that a picture can be read from",
}


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    """The working directory, with a picture `a.png` in `photos`."""
    monkeypatch.chdir(tmp_path)
    draw(tmp_path / "photos/a.png")
    return tmp_path


def refused(text: str | bytes, **config) -> str:
    Path("config").mkdir(exist_ok=True)
    Path("config/items.csv").write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(items.InputError) as caught:
        items.read_items(items.load_config({"model_id": "demo", **config}))
    return str(caught.value)


@pytest.mark.fault("picture")
@pytest.mark.parametrize("kind", NO_FILES)
def test_what_is_no_file_is_refused_before_the_run_and_does_not_hang_the_core(folder, kind):
    put(kind, folder / "p.png")
    assert f"row 2, column image: {'no such file: ' * (kind == 'folder')}{NO_FILES[kind]}" in refused(
        "image,prompt\np.png,x\n"
    )


@pytest.mark.fault("picture")
@pytest.mark.skipif(os.getuid() != 0, reason="only root can become another user")
@pytest.mark.parametrize(("mode", "told"), [(0o711, "read"), (0o644, "cannot be looked at: Permission denied")])
def test_folders_that_can_be_entered_or_listed_alone(tmp_path, mode, told):
    """A picture in the first is read; one in the second is refused by its row."""
    draw(tmp_path / "photos/a.png")
    (tmp_path / "config").mkdir()
    (tmp_path / "config/items.csv").write_text("image,prompt\nphotos/a.png,x\n")
    for folder in [tmp_path, *tmp_path.parents][:-1]:
        if folder.stat().st_mode & 0o005 != 0o005:
            folder.chmod(0o755)
    (tmp_path / "photos").chmod(mode)
    code = (
        "import os, sys; sys.path.insert(0, sys.argv[1]); import items\n"
        "config = items.load_config({'model_id': 'demo'})\n"
        "items.read_items(config)\n"  # imports what the other user may not be able to
        "os.setuid(65534)\n"
        "try: items.read_items(config); print('read')\n"
        "except items.InputError as error: print(error)"
    )
    command = [sys.executable, "-c", code, str(ROOT / "scripts")]
    assert told in subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60).stdout


@pytest.mark.fault("picture")
def test_a_picture_of_tomorrow_is_refused_with_the_remedy(folder):
    draw(folder / "p.png")
    os.utime("p.png", (4e9, 4e9))
    assert "row 2, column image: 'p.png' is dated in the future (2096-" in refused("image,prompt\np.png,x\n")


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


# --- Sheets and configs ---


@pytest.mark.fault("sheet")
def test_a_bad_row_among_100_000_is_named(folder):
    rows = "".join(f"i{number},photos/a.png,x,{number}\n" for number in range(100_000))
    assert "has 1 fault:\n  - row 100002, column id: 'i7' stands in row 9 already" in refused(
        f"id,image,prompt,outcome\n{rows}i7,photos/a.png,x,1\n"
    )


@pytest.mark.fault("sheet")
@pytest.mark.parametrize(
    ("column", "value", "told"),
    [
        ("strength", "true", "'true' is not a number"),
        ("strength", "FALSE", "'FALSE' is not a number"),
        ("strength", "0,5", "decimals are written with a point"),
        ("strength", "inf", "'inf' is not a number"),
        ("strength", "-inf", "'-inf' is not a number"),
        ("strength", "NaN", "'NaN' is not a number"),
        ("guidance_scale", "1e400", "is too large"),
        ("guidance_scale", "1_000", "is not a number"),
        ("guidance_scale", "٣", "is not a number"),
        ("seed", "0x10", "is not a number"),
        ("seed", "=1+1", "'=1+1' is not a number"),
        ("num_inference_steps", "1e9", "must be at most 999"),
        ("prompt", "x" * 100_000, "the text has 100000 characters, more than 10000"),
        ("negative_prompt", "x" * 100_000, "the text has 100000 characters, more than 10000"),
        ("id", "../../x", "is not a valid text"),
        ("id", "/etc/passwd", "is not a valid text"),
        ("id", "a b", "is not a valid text"),
        ("id", "$(id)", "is not a valid text"),
        ("id", "é", "is not a valid text"),
        ("id", "x" * 129, "at most 128 characters"),
        ("id", "0" * 30, "takes for an endless loop"),
        ("id", "img" + "ab" * 20, "takes for an endless loop"),
        ("image", "photos/{a}.png", "without braces"),
        ("image", "photos/a\tb.png", "is not a valid text"),
    ],
)
def test_a_cell_that_cannot_be_is_refused_by_row_and_column(folder, column, value, told):
    cells = {"id": "a", "image": "photos/a.png", "prompt": "x"} | {column: f'"{value}"'}
    message = refused(",".join(cells) + "\n" + ",".join(cells.values()) + "\n")
    assert f"row 2, column {column}: " in message
    assert told in message
    assert len(message) < 1000


@pytest.mark.fault("sheet")
@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("image\tprompt\nphotos/a.png\tx\n", r"separated by '\t', not by commas"),
        ("image|prompt\nphotos/a.png|x\n", "separated by '|', not by commas"),
        ("image,prompt,image\nphotos/a.png,x,y\n", "column 'image' stands there 2 times"),
        ("image,prompt,\nphotos/a.png,x,y\n", "column 3 has no name"),
        ("image,prompt\n".encode("utf-16"), "is not UTF-8 (line 1)"),
        ("image,prompt\nphotos/a.png,é\n".encode("latin-1"), "is not UTF-8 (line 2)"),
        ('image,prompt\nphotos/a.png,"x\n', "is not a regular CSV file"),
        ("image,prompt\nphotos/a.png,\0\n", "line 2 has a NUL byte"),
        ("\n\n\n", "has no header in row 1"),
        (b"PK\x03\x04" + bytes(100), "has a NUL byte"),
    ],
)
def test_a_file_that_is_no_such_sheet_is_refused(folder, text, told):
    assert told in refused(text)


@pytest.mark.fault("sheet")
def test_ids_that_a_disk_takes_for_one_are_refused_there(folder, monkeypatch):
    draw(folder / "photos/A.png")
    text = "image,prompt\nphotos/a.png,x\nphotos/A.png,x\n"
    monkeypatch.setattr(items, "_ignores_case", lambda path: True)  # as macOS and Windows do
    assert "row 3, column id: 'A' and 'a' of row 2 name the same files on this disk" in refused(text)
    monkeypatch.undo()
    monkeypatch.chdir(folder)
    assert items.read_items(items.load_config({"model_id": "demo"}))["id"].tolist() == ["a", "A"]


@pytest.mark.fault("config")
@pytest.mark.parametrize("key", SCHEMA["properties"])
def test_a_value_of_the_wrong_kind_is_refused_by_its_key(key):
    with pytest.raises(items.InputError, match=f"key {key}: "):
        items.load_config({"model_id": "demo", key: {"a": 1}})


@pytest.mark.fault("config")
@pytest.mark.parametrize(
    ("config", "told"),
    [
        ({"output_image_dir": "photos"}, "key output_image_dir puts results into the folder of 'photos/a.png'"),
        ({"output_hidden_dir": "photos/"}, "key output_hidden_dir puts results into the folder of 'photos/a.png'"),
        ({"output_hidden_dir": "linked"}, "key output_hidden_dir puts results into the folder of 'photos/a.png'"),
        ({"stacked": "photos/R.npy"}, "key stacked puts results into the folder of 'photos/a.png'"),
        ({"output_image_dir": "config"}, "key output_image_dir puts results into the folder of 'config/items.csv'"),
        ({"items": "results/items.csv"}, "key stacked puts results into the folder of 'results/items.csv'"),
        ({"items": "results/items.csv", "stacked": "R/R.pt"}, "'results/items.csv' lies in results, the folder of the"),
    ],
)
def test_results_never_go_among_the_users_own_files(folder, config, told):
    (folder / "linked").symlink_to("photos")
    (folder / "results").mkdir()
    (folder / "results/items.csv").write_text("image,prompt\nphotos/a.png,x\n")
    assert told in refused("image,prompt\nphotos/a.png,x\n", **config)


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


@pytest.mark.fault("stranger")
def test_sockets_are_private(tmp_path):
    study = Study(tmp_path / "study")
    study.environment["TMPDIR"] = str(study.tmp)
    study.pictures(1)
    run = study.start()
    found = wait_for(lambda: list(study.tmp.glob("gpi-latents-*/*.sock")), 60, "the socket")[0]
    assert found.parent.stat().st_mode & 0o777 == 0o700
    assert run.wait(120) == 0


def test_the_page_of_faults_names_its_tests_and_no_others():
    marked = set()
    for file in (ROOT / "tests").glob("test_*.py"):
        for node in ast.parse(file.read_text()).body:
            decorators = " ".join(map(ast.unparse, getattr(node, "decorator_list", [])))
            marked |= {node.name} if "pytest.mark.fault(" in decorators else set()
    assert set(re.findall(r"`(test_\w+)`", (ROOT / "tests/FAULTS.md").read_text())) == marked
