"""Results that something else made than is planned are found, whatever the dates of files and Snakemake say."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
import torch
from gpi_latents import paths
from gpi_latents.digests import Digests, file_digest
from gpi_latents.model.source import write_model
from gpi_latents.origin import Origin, read_origin
from gpi_latents.plan import read_config, read_plan
from gpi_latents.recipe import model_digest
from gpi_latents.run import remove_failed
from gpi_latents.study.outdated import outdated
from gpi_latents.study.study import Study
from gpi_latents.tensors.latent_file import latent_bytes
from gpi_latents.tensors.stack import write_results

pytestmark = pytest.mark.usefixtures("folder")
SHEET = "id,image,prompt,seed,age\na,a.png,x,1,30\nb,b.png,y,2,40\n"
RESULTS = [Path("results/latents.pt"), Path("results/index.csv"), Path("results/provenance.json")]
A, B = "results/hidden/hidden_a.pt", "results/hidden/hidden_b.pt"


def study(text: str = SHEET, **config) -> Study:
    Path("sheet.csv").write_text(text)
    return Study({"model_id": "demo", "items": "sheet.csv", "report": False, **config})


def index() -> pd.DataFrame:
    return pd.read_csv(paths.INDEX, dtype=str, keep_default_na=False)


def make(found: Study, ids: str = "ab", is_stacked: bool = True) -> None:
    """What a run of a study leaves, as far as the files tell what made them."""
    Path("results/hidden").mkdir(parents=True, exist_ok=True)
    plan = read_plan(found.plan)
    if found.stale.get(paths.MODEL) or not os.path.exists(paths.MODEL):
        write_model(read_config(found.plan), Path(paths.MODEL))
    model = model_digest(json.loads(Path(paths.MODEL).read_text()))
    for item in plan.itertuples():
        if item.id in ids:
            origin = Origin(item.recipe_sha256, file_digest(item.image), model, item.image)
            path = Path(found.config["output_hidden_dir"], f"hidden_{item.id}.pt")
            path.write_bytes(latent_bytes(torch.zeros(1, 4, 2, 2), origin))
    if is_stacked:
        write_results(Path(found.plan), Path(paths.MODEL), *RESULTS)


@pytest.fixture
def made(folder) -> None:
    for name in ("a", "b"):
        Path(f"{name}.png").write_text(name * 5)
    make(study())
    assert study().stale == {}


def replaced(path: str, text: str) -> None:
    """Another file moved to a place: as long as the one before, and older than all results."""
    Path("other").write_text(text)
    os.utime("other", (1e9, 1e9))
    os.replace("other", path)


EDITS: list[tuple[str, str, dict, dict[str, str]]] = [
    ("outcome", SHEET.replace("40", "41"), {}, {paths.INDEX: "column age"}),
    ("order", SHEET.splitlines()[0] + "\nb,b.png,y,2,40\na,a.png,x,1,30\n", {}, {paths.INDEX: "other rows"}),
    ("row removed", "".join(SHEET.splitlines(True)[:2]), {}, {paths.INDEX: "other rows"}),
    ("row added", SHEET + "c,a.png,x,1,30\n", {}, {paths.INDEX: "other rows"}),
    ("column renamed", SHEET.replace(",age", ",Age"), {}, {paths.INDEX: "other columns"}),
    ("seed", SHEET.replace("y,2", "y,3"), {}, {B: "settings", paths.INDEX: "column seed"}),
    ("posterior", SHEET, {"posterior": "mode"}, {A: "settings", B: "settings", paths.INDEX: "column seed"}),
    ("resize", SHEET, {"resize": "crop"}, {A: "settings", B: "settings", paths.INDEX: "other settings"}),
    ("picture's name", SHEET.replace("b.png", "a.png"), {}, {B: "picture", paths.INDEX: "column image"}),
    ("nothing that matters", SHEET.replace("id", "\ufeffid"), {"device": "cpu", "strength": 0}, {}),
]


@pytest.mark.usefixtures("made")
@pytest.mark.parametrize(("text", "config", "expected"), [edit[1:] for edit in EDITS], ids=[edit[0] for edit in EDITS])
def test_an_edit_of_the_sheet_or_the_config_is_seen_in_the_results(text, config, expected):
    assert study(text, **config).stale == expected


@pytest.mark.usefixtures("made")
def test_checksums_of_other_rows_are_seen():
    Path("results/checksums").mkdir()
    with open("results/checksums/0.sha256", "w") as file:
        subprocess.run(["sha256sum", "--", A, B], stdout=file, check=True)
    assert study().stale == {}
    for text in (EDITS[1][1], EDITS[2][1], EDITS[3][1]):  # moved, removed, added
        assert study(text).stale == {"results/checksums/0.sha256": "other rows", paths.INDEX: "other rows"}


PICTURES: list[tuple[str, Callable[[], None], dict[str, str]]] = [
    ("older, as many bytes", lambda: replaced("b.png", "other"), {B: "picture"}),
    ("newer, as many bytes", lambda: Path("b.png").write_text("other") and None, {B: "picture"}),
    ("touched", lambda: os.utime("b.png"), {}),
    ("the same again", lambda: replaced("b.png", "bbbbb"), {}),
]


@pytest.mark.usefixtures("made")
@pytest.mark.parametrize(("change", "expected"), [each[1:] for each in PICTURES], ids=[each[0] for each in PICTURES])
def test_another_picture_of_the_same_name_is_seen_by_its_content(change, expected):
    change()
    assert study().stale == expected
    for path in (A, B):
        os.utime(path)  # as `snakemake --touch` does, and Snakemake itself when a job has ended
    # Nobody knows any more when it was read; its log does.
    assert study().stale == {}
    for path, text in ((A, ""), (B, "")):
        log = Path(paths.item_log(path[-4]))
        log.parent.mkdir(parents=True, exist_ok=True)
        log.write_text(text)
        os.utime(log, (1e9, 1e9))
    assert study().stale == expected


@pytest.mark.usefixtures("made")
def test_a_folder_of_pictures_exchanged_by_a_link_is_seen():
    for name, text in (("one", "aaaaa"), ("two", "other")):
        Path(name).mkdir()
        Path(name, "a.png").write_text(text)
        os.utime(Path(name, "a.png"), (1e9, 1e9))
    Path("pictures").symlink_to("one")
    text = SHEET.replace("a.png", "pictures/a.png")
    make(study(text))
    assert study(text).stale == {}
    Path("pictures").unlink()
    Path("pictures").symlink_to("two")
    assert study(text).stale == {A: "picture"}


@pytest.mark.usefixtures("made")
def test_what_was_made_after_the_table_is_judged_by_its_own_file():
    edited = SHEET.replace("y,2", "y,3")
    make(study(edited), "b", is_stacked=False)  # the run ends before the stack
    assert study(edited).stale == {paths.INDEX: "column seed"}
    assert study(SHEET).stale == {B: "settings"}
    os.remove(paths.INDEX)
    assert study(edited).stale == {}
    assert study(SHEET).stale == {B: "settings"}


@pytest.mark.fault("picture")
@pytest.mark.usefixtures("made")
def test_the_table_does_not_tell_of_files_in_another_folder_or_put_back_since_then():
    config = {"output_hidden_dir": "results/other"}
    Path("results/other").mkdir()
    replaced("b.png", "other")
    make(study(**config))
    assert study(**config).stale == {}
    assert study().stale == {B: "picture"}  # the latents of the first folder are of the first picture
    edited = SHEET.replace("y,2", "y,3")
    before = Path(B).read_bytes()
    make(study(edited))
    assert study(edited).stale == {}
    Path("backup").write_bytes(before)
    os.utime("backup", (1e9, 1e9))
    os.replace("backup", B)
    assert study(edited).stale == {B: "settings"}


@pytest.mark.usefixtures("made")
def test_results_of_an_earlier_version_get_a_new_table_alone():
    for path in (A, B):
        content = Path(path).read_bytes()
        recipe = read_plan(study().plan)["recipe_sha256"].iloc["ab".index(path[-4])]
        Path(path).write_bytes(content[: content.rindex(b"PK\5\6") + 20] + b"\x40\x00" + recipe.encode())
    lines = Path(paths.INDEX).read_text().splitlines()
    place = lines[0].split(",").index("recipe_sha256")
    cells = [line.split(",") for line in lines]
    Path(paths.INDEX).write_text("".join(",".join(row[:place] + row[place + 3 :]) + "\n" for row in cells))
    assert study().stale == {paths.INDEX: "no column 'recipe_sha256'"}
    assert study(SHEET.replace("y,2", "y,3")).stale == {B: "settings", paths.INDEX: "no column 'recipe_sha256'"}
    assert outdated(Path("results").absolute(), index()) == ""
    write_results(Path(study().plan), Path(paths.MODEL), *RESULTS)
    assert study().stale == {}
    os.utime(paths.INDEX, (1e9, 1e9))
    Path("b.png").write_text("other")
    assert outdated(Path("results").absolute(), index()) == ""  # what its picture was is not known
    make(study())
    os.utime(paths.INDEX, (1e9, 1e9))
    Path("b.png").write_text("again")
    assert outdated(Path("results").absolute(), index()) == "pictures have changed since: b"


@pytest.mark.parametrize("guidance", [1, 5])
def test_xl_items_of_an_earlier_version_without_a_negative_prompt_are_made_again(made, guidance):
    text = "id,image,prompt,strength,negative_prompt,guidance_scale\n"
    text += f"a,a.png,x,0.5,,{guidance}\nb,b.png,x,0.5,cats,{guidance}\n"
    make(study(text))
    for path in (A, B):
        recipe = read_plan(study(text).plan)["recipe_sha256"].iloc["ab".index(path[-4])]
        Path(path).write_bytes(latent_bytes(torch.zeros(1, 4, 2, 2))[:-2] + b"\x40\x00" + recipe.encode())
    write_results(Path(study(text).plan), Path(paths.MODEL), *RESULTS)
    assert study(text).stale == {}
    model = json.loads(Path(paths.MODEL).read_text())
    Path(paths.MODEL).write_text(json.dumps(model | {"family": "StableDiffusionXLPipeline"}))
    assert list(study(text).stale) == ([A] if guidance > 1 else [])


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("family", ["StableDiffusionXLPipeline", "StableDiffusionPipeline"])
def test_xl_items_of_an_earlier_version_in_half_precision_are_made_again(made, family, dtype):
    """By their files, and where the index table is newer, whose provenance did not say how XL was encoded."""
    make(study(dtype=dtype))
    model = json.loads(Path(paths.MODEL).read_text()) | {"family": family}
    Path(paths.MODEL).write_text(json.dumps(model))
    provenance = json.loads(Path(paths.PROVENANCE).read_text()) | {"model": model}
    del provenance["model_sha256"]
    Path(paths.PROVENANCE).write_text(json.dumps(provenance))
    stale = dict.fromkeys([A, B], "model") if "XL" in family and dtype != "float32" else {}
    assert study(dtype=dtype).stale == stale
    for path in stale:  # as the engine makes them now
        origin = replace(read_origin(path), model_sha256=model_digest(model, dtype))
        Path(path).write_bytes(latent_bytes(torch.zeros(1, 4, 2, 2), origin))
    assert study(dtype=dtype).stale == {}
    write_results(Path(study(dtype=dtype).plan), Path(paths.MODEL), *RESULTS)
    assert study(dtype=dtype).stale == {}


def make_without_b(found: Study) -> None:
    """As `make`, with `on_error: skip`, where b fails."""
    make(found, "a", is_stacked=False)
    Path(B).write_bytes(b"")
    Path("logs/extract").mkdir(parents=True, exist_ok=True)
    Path(paths.item_log("b")).write_text("error: b.png: cut off")
    Path("results/checksums").mkdir(exist_ok=True)
    with open("results/checksums/0.sha256", "w") as file:
        subprocess.run(["sha256sum", "--", A], stdout=file, check=True)
    write_results(Path(found.plan), Path(paths.MODEL), *RESULTS, Path(paths.SKIPPED))


@pytest.mark.usefixtures("made")
@pytest.mark.fault("skip")
def test_an_item_that_was_left_out_is_tried_again_and_makes_nothing_else_stale():
    def found(on_error: str) -> Study:
        return study(on_error=on_error, output_image_dir=None)

    make_without_b(found("skip"))
    checksums = ["results/checksums/0.sha256"]
    for mode in ("skip", "stop"):
        assert found(mode).stale == {B: "failed"}  # the run was killed before it removed the empty file
        assert found(mode).lost(checksums) == []
    remove_failed(found("skip").config, found("skip").items)
    assert not Path(B).exists()
    for mode in ("skip", "stop"):
        assert found(mode).stale == {}
        assert found(mode).lost(checksums) == [B]
    assert outdated(Path("results").absolute(), index()) == ""


@pytest.mark.usefixtures("made")
@pytest.mark.fault("skip")
@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (SHEET.replace("30", "31"), {paths.INDEX: "column age"}),
        (SHEET.replace("40", "41"), {}),  # of the row that is not in the table
        (SHEET.replace("b.png", "a.png"), {paths.INDEX: "other rows"}),
        ("".join(SHEET.splitlines(True)[:2]), {paths.INDEX: "other rows"}),
        (SHEET + "c,a.png,x,1,30\n", {"results/checksums/0.sha256": "other rows", paths.INDEX: "other rows"}),
    ],
)
def test_an_edit_of_the_sheet_is_seen_beside_an_item_that_was_left_out(text, expected):
    make_without_b(study(on_error="skip"))
    remove_failed(study().config, study().items)
    assert study(text, on_error="skip").stale == expected


def test_another_model_behind_the_same_link_is_seen(made, tmp_path):
    for name in ("v1", "v2"):
        shutil.copytree(paths.DEMO_MODEL, name)
        if name == "v2":
            config = Path(name, "unet/config.json")
            config.write_text(config.read_text().replace("}", " }"))
        for path in Path(name).rglob("*"):
            os.utime(path, (1e9, 1e9))
    Path("model").symlink_to("v1")
    make(study(model_id="model"))
    assert study(model_id="model").stale == {}
    Path("model").unlink()
    Path("model").symlink_to("v2")
    assert study(model_id="model").stale == {paths.MODEL: "another model"}
    assert study(model_id="demo").stale[paths.MODEL] == "another model"
    found = study(model_id="model")
    write_model(read_config(found.plan), Path(paths.MODEL))
    assert study(model_id="model").stale == {A: "model", B: "model"}


def test_a_file_is_read_again_only_if_it_may_have_changed(tmp_path, monkeypatch):
    path = tmp_path / "file"
    path.write_text("one")
    memory = tmp_path / "memory/digests.json"
    monkeypatch.setattr("gpi_latents.digests.SETTLED", -1)
    digests = Digests(memory)
    first = digests.of(path)
    assert first == file_digest(path)
    digests.save()
    monkeypatch.setattr("gpi_latents.digests.file_digest", lambda path: pytest.fail("read again"))
    assert Digests(memory).of(path) == first
    monkeypatch.undo()
    replaced(str(path), "two")
    assert Digests(memory).of(path) == file_digest(path) != first
    memory.write_text("[")
    assert Digests(memory).of(path) == file_digest(path)


def test_a_file_that_was_just_changed_is_not_remembered(tmp_path):
    path = tmp_path / "file"
    path.write_text("one")
    digests = Digests(tmp_path / "digests.json")
    digests.of(path)
    digests.save()
    assert not (tmp_path / "digests.json").exists()
