"""The rerun table: after each change to a finished study, which jobs run, asked of Snakemake and seen by the files."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import safetensors.torch
from helpers.study import ROOT, Study, draw, residents, wait_for
from PIL import Image

CONFIG = {"output_image_dir": None, "num_inference_steps": 4, "image_size": 32}
STILL = ["a0", "a1", "big"]  # strength 0
EDITED = ["b0", "b1"]  # strength 0.5; b1 takes its steps and its seed from the config
ALL = STILL + EDITED


@pytest.fixture(scope="session")
def finished(tmp_path_factory) -> Path:
    """A study that has run, with a photograph of several MB."""
    study = Study(tmp_path_factory.mktemp("finished"))
    study.config(**CONFIG)
    for number, item_id in enumerate(ALL):
        draw(study.folder / f"pictures/{item_id}.png", seed=number)
    noise = np.random.default_rng(0).integers(0, 256, (1200, 1000, 3), dtype=np.uint8)
    Image.fromarray(noise).save(study.folder / "pictures/big.png")
    settings = {"strength": 0, "seed": 1, "guidance_scale": 5, "num_inference_steps": 4, "negative_prompt": ""}
    rows = [{"id": item_id, "image": f"pictures/{item_id}.png", "prompt": "a", **settings} for item_id in ALL]
    for row in rows[3:]:
        row["strength"] = 0.5
    rows[4] |= {"num_inference_steps": None, "seed": None}
    pd.DataFrame(rows).assign(outcome=1).astype({"num_inference_steps": "Int64", "seed": "Int64"}).to_csv(
        study.folder / "config/items.csv", index=False
    )
    study.run()
    return study.folder


@pytest.fixture
def study(finished, tmp_path) -> Study:
    """The finished study, copied elsewhere with its `.snakemake`."""
    shutil.copytree(finished, tmp_path / "study")
    copy = Study(tmp_path / "study")
    shutil.copy2(finished / "config/config.yaml", copy.folder / "config")
    return copy


def rows(study: Study) -> pd.DataFrame:
    return pd.read_csv(study.folder / "config/items.csv", dtype=str, keep_default_na=False).set_index("id", drop=False)


def sheet(**cells: object) -> Callable[[Study], None]:
    """A change of cells, as row__column=value."""

    def change(study: Study) -> None:
        table = rows(study)
        for place, value in cells.items():
            table.loc[tuple(place.split("__"))] = str(value)
        table.to_csv(study.folder / "config/items.csv", index=False)

    return change


def order(*ids: str) -> Callable[[Study], None]:
    return lambda study: rows(study).loc[list(ids)].to_csv(study.folder / "config/items.csv", index=False)


def add_row(study: Study) -> None:
    table = rows(study)
    table.loc["new"] = table.loc["a0"]
    table.loc["new", "id"] = "new"
    table.to_csv(study.folder / "config/items.csv", index=False)


def config(**keys: object) -> Callable[[Study], None]:
    return lambda study: study.config(**CONFIG | keys)


def rename_image(study: Study) -> None:
    (study.folder / "pictures/a0.png").rename(study.folder / "pictures/other.png")
    sheet(a0__image="pictures/other.png")(study)


def local_model(study: Study) -> None:
    shutil.copytree(ROOT / "config/demo/model", study.folder / "model")
    study.config(**CONFIG | {"model_id": "model"})


def delete(*paths: str) -> Callable[[Study], None]:
    return lambda study: [(study.folder / path).unlink() for path in paths] and None


def touch(*paths: str) -> Callable[[Study], None]:
    return lambda study: [(study.folder / path).touch() for path in paths] and None


def check(study: Study, items: list[str], stack: bool, model: bool = False) -> None:
    """The plan and the run do these jobs, and no other item's files are written."""
    expected = {"model": model, "extract": len(items), "stack": stack}
    expected = {rule: int(count) for rule, count in expected.items() if count}
    assert study.run("--dry-run").jobs == expected
    watched = [*(study.folder / "results/hidden").iterdir(), study.folder / "results/latents.pt"]
    times = {path: path.stat().st_mtime_ns for path in watched if path.exists()}
    run = study.run()
    assert run.jobs == expected
    assert ("Nothing to be done" in run.text) == (not expected)
    written = {path.stem.removeprefix("hidden_") for path, time in times.items() if path.stat().st_mtime_ns != time}
    known = {path.stem.removeprefix("hidden_") for path in times}
    assert written == known & ({*items} | ({"latents"} if stack else set()))
    assert study.run().jobs == {}
    assert study.index()["id"].tolist() == rows(study)["id"].tolist()


@pytest.mark.long
@pytest.mark.parametrize(
    ("change", "items", "stack"),
    [
        pytest.param(lambda study: None, [], False, id="the study folder copied elsewhere"),
        pytest.param(lambda s: draw(s.folder / "pictures/a0.png", seed=99), ["a0"], True, id="image bytes changed"),
        pytest.param(touch("pictures/a0.png", "pictures/big.png"), [], False, id="image touched"),
        pytest.param(rename_image, ["a0"], True, id="image renamed, id kept"),
        pytest.param(sheet(a0__prompt="x"), [], True, id="prompt at strength 0"),
        pytest.param(sheet(b0__prompt="x"), ["b0"], True, id="prompt above strength 0"),
        pytest.param(sheet(a0__seed=2), ["a0"], True, id="seed"),
        pytest.param(sheet(a0__strength=0.5), ["a0"], True, id="strength"),
        pytest.param(sheet(b0__guidance_scale=6), ["b0"], True, id="guidance"),
        pytest.param(sheet(b0__num_inference_steps=6), ["b0"], True, id="steps"),
        pytest.param(sheet(b0__negative_prompt="x"), ["b0"], True, id="negative prompt"),
        pytest.param(sheet(a0__guidance_scale=6, a1__num_inference_steps=6), [], False, id="settings of no effect"),
        pytest.param(sheet(b0__guidance_scale=4, b0__num_inference_steps=5), ["b0"], True, id="two values swapped"),
        pytest.param(add_row, ["new"], True, id="row added"),
        pytest.param(order("a0", "big", "b0", "b1"), [], True, id="row removed"),
        pytest.param(order("b1", "a0", "a1", "big", "b0"), [], True, id="row moved"),
        pytest.param(sheet(a0__outcome=7), [], True, id="outcome"),
        pytest.param(config(num_inference_steps=6), ["b1"], True, id="config's steps, which one row uses"),
        pytest.param(config(seed=5), ["b1"], True, id="config's seed, which one row uses"),
        pytest.param(config(strength=0.7), [], False, id="config's strength, which no row uses"),
        pytest.param(config(dtype="bfloat16"), ALL, True, id="dtype"),
        pytest.param(config(resize="crop"), ALL, True, id="resize"),
        pytest.param(config(image_size=64), ALL, True, id="image size"),
        pytest.param(config(posterior="mode"), ALL, True, id="posterior"),
        pytest.param(config(scheduler="PNDMScheduler"), EDITED, True, id="scheduler"),
        pytest.param(config(output_image_dir="results/images"), ALL, True, id="pictures switched on"),
        pytest.param(config(device="cpu", resident_idle_seconds=5), [], False, id="device, idle time"),
        pytest.param(delete("results/hidden/hidden_a0.pt"), ["a0"], True, id="latent deleted"),
        pytest.param(delete("results/latents.pt"), [], True, id="tensor deleted"),
        pytest.param(delete("results/index.csv"), [], True, id="index deleted"),
    ],
)
def test_after_a_change_only_what_it_touches_runs(study, change, items, stack):
    change(study)
    check(study, items, stack)


@pytest.mark.long
def test_another_model_or_other_weights_run_everything(study):
    local_model(study)
    check(study, ALL, stack=True, model=True)
    file = study.folder / "model/vae/diffusion_pytorch_model.safetensors"
    file.touch()
    # Weights that are not used, since there are safetensors of them.
    shutil.copy(file, file.with_suffix(".bin"))
    study.config(**CONFIG | {"model_id": "model", "allow_pickle": True})
    check(study, [], stack=False)
    weights = safetensors.torch.load_file(file)
    weights["quant_conv.bias"] += 0.1
    safetensors.torch.save_file(weights, file, metadata={"format": "pt"})
    check(study, ALL, stack=True, model=True)


@pytest.mark.long
def test_pictures_switched_off_or_deleted(study):
    config(output_image_dir="results/images")(study)
    study.run()
    delete("results/images/gen_a0.png")(study)
    check(study, ["a0"], stack=True)
    config()(study)
    check(study, [], stack=False)


@pytest.mark.long
def test_another_revision_runs_everything(study):
    config(revision="other")(study)
    check(study, ALL, stack=True, model=True)


@pytest.mark.long
def test_a_fresh_clone_and_comments_run_nothing_and_a_raised_recipe_version_everything(study, workflow_copy):
    study.workflow = workflow_copy
    check(study, [], stack=False)
    for name in ("Snakefile", "scripts/diffusion.py", "scripts/resident.py", "scripts/extract.py", "scripts/stack.py"):
        with (workflow_copy / name).open("a") as file:
            file.write("\n# A comment.\n")
    check(study, [], stack=False)
    file = workflow_copy / "scripts/items.py"
    text = file.read_text()
    assert "\nRECIPE_VERSION = 1\n" in text
    file.write_text(text.replace("\nRECIPE_VERSION = 1\n", "\nRECIPE_VERSION = 2\n"))
    check(study, ALL, stack=True)


@pytest.mark.long
def test_a_copy_with_new_times_runs_nothing(finished, tmp_path):
    shutil.copytree(finished, tmp_path / "copy", copy_function=shutil.copyfile)
    for path in sorted((tmp_path / "copy/pictures").iterdir()):
        path.touch()  # later than the results
    copy = Study(tmp_path / "copy")
    copy.config(**CONFIG)
    check(copy, [], stack=False)


@pytest.mark.long
@pytest.mark.parametrize("ending", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_an_interrupted_run_leaves_only_what_was_not_finished(study, ending):
    before = study.digests()
    table = rows(study)
    for number in range(8):
        table.loc[f"n{number}"] = table.loc["b0"]
        table.loc[f"n{number}", ["id", "strength", "num_inference_steps", "seed"]] = [
            f"n{number}",
            "1",
            "400",
            str(number),
        ]
    table.astype(str).to_csv(study.folder / "config/items.csv", index=False)
    run = study.start(cores=1)
    wait_for(lambda: len(study.digests()) > len(before) + 1, what="two of the new items")
    (os.killpg if ending == signal.SIGINT else os.kill)(run.pid, ending)
    run.communicate(timeout=60)
    if ending == signal.SIGKILL:
        study.run("--unlock")
    wait_for(lambda: not residents(study.folder), 30, "the resident's end")
    done = study.digests()
    assert len(before) + 1 < len(done) < len(table)
    missing = len(table) - len(done)
    plan = study.run("--dry-run").jobs
    assert plan["stack"] == 1
    # An item that was killed between its latent and Snakemake's note of it is done once more.
    assert missing <= plan["extract"] <= missing + 1
    study.run()
    assert {item_id: study.digests()[item_id] for item_id in done} == done


@pytest.mark.long
def test_a_removed_rows_files_are_told_and_kept_but_not_stacked(study):
    order("a0", "big", "b0", "b1")(study)
    study.run()
    assert "results/hidden/hidden_a1.pt" in study.run("orphans").output.split()
    assert (study.folder / "results/hidden/hidden_a1.pt").exists()
    assert "a1" not in study.index()["id"].tolist()


@pytest.mark.long
def test_batches_make_what_one_run_makes(study):
    """Batches take whole blocks of 100 items."""
    first = rows(study).loc[["a0"]]
    copies = [first.assign(id=f"n{number}", seed=str(number)) for number in range(245)]
    pd.concat([rows(study), *copies]).to_csv(study.folder / "config/items.csv", index=False)
    study.run()
    expected = study.digests(), (study.folder / "results/latents.pt").read_bytes()
    for folder in (".snakemake", "results"):
        shutil.rmtree(study.folder / folder)
    counts = [study.run("--batch", f"stack={number}/2").jobs for number in (1, 2)]
    assert [count["extract"] for count in counts] == [200, 50]
    assert [count.get("stack", 0) for count in counts] == [0, 1]
    assert (study.digests(), (study.folder / "results/latents.pt").read_bytes()) == expected
    assert study.run().jobs == {}
    # A batch asks for what is lost of its own blocks, and for no others.
    delete("results/checksums/0.sha256", "results/hidden/hidden_a0.pt")(study)
    assert study.run("--batch", "stack=1/2").jobs == {"extract": 1}
    assert study.run("-n", "--batch", "stack=1/2", "--config", "prefix_hidden=other").jobs["extract"] == 200


@pytest.mark.long
def test_the_checksums_are_those_of_the_files_and_lost_ones_are_made_again(study):
    file = study.folder / "results/checksums/0.sha256"
    told = subprocess.run(["sha256sum", "--check", file], cwd=study.folder, capture_output=True, text=True)
    assert told.stdout.count(": OK") == len(ALL)
    # Both gone, so that nothing but the tensor tells of the item.
    delete("results/checksums/0.sha256", "results/hidden/hidden_a0.pt")(study)
    check(study, ["a0"], stack=True)
    assert file.exists()
