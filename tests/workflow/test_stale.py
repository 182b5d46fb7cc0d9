"""However Snakemake decides, a run that ends well leaves results of the sheet, the pictures and the model."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import safetensors.numpy
import torch
from gpi_latents import load
from gpi_latents.paths import DEMO_MODEL
from helpers.study import Study, draw

CONFIG = {"output_image_dir": None, "image_size": 32, "num_inference_steps": 4}


def write_sheet(study: Study, order: str = "abc", **seeds: int) -> None:
    rows = [{"id": name, "image": f"pictures/{name}.bmp", "prompt": "x", "seed": seeds.get(name, 1)} for name in order]
    study.sheet([row | {"age": 10 + number + len(seeds)} for number, row in enumerate(rows)])


def picture(study: Study, name: str, seed: int) -> None:
    """A new picture, or one that is moved to the place of an old one: as long, and older than all results."""
    path = draw(study.folder / "pictures" / "new.bmp", seed=seed)
    os.utime(path, (1e9, 1e9))
    path.rename(study.folder / f"pictures/{name}.bmp")


def assert_as_new(study: Study, tmp_path: Path) -> None:
    """The results are those of a new study with the same sheet, config, pictures and model."""
    new = Study(tmp_path / "new")
    for part in ("config", "pictures"):
        shutil.copytree(study.folder / part, new.folder / part, dirs_exist_ok=True)
    if (study.folder / "model").exists():
        shutil.copytree(study.folder / "model", new.folder / "model")
    new.run()
    assert study.digests() == new.digests()
    pd.testing.assert_frame_equal(study.index(), new.index())
    assert torch.equal(
        *(torch.load(each.folder / "results/latents.pt", weights_only=True) for each in (study, new)),
    )
    models = [json.loads((each.folder / "results/provenance.json").read_text())["model"] for each in (study, new)]
    assert models[0] == models[1]


@pytest.fixture(scope="module")
def once(tmp_path_factory) -> Path:
    study = Study(tmp_path_factory.mktemp("once"))
    study.config(**CONFIG)
    for number, name in enumerate("abc"):
        picture(study, name, seed=number)
    write_sheet(study)
    study.run()
    return study.folder


@pytest.fixture
def copy(once, tmp_path) -> Study:
    shutil.copytree(once, tmp_path / "study")
    study = Study(tmp_path / "study")
    study.config(**CONFIG)
    return study


@pytest.mark.long
@pytest.mark.fault("rerun")
@pytest.mark.parametrize("decision", ["dates alone", "no .snakemake", "touched"])
def test_edits_that_snakemake_does_not_see_reach_the_results(copy, tmp_path, decision):
    arguments = ["--rerun-triggers", "mtime"] if decision != "no .snakemake" else []
    before = (copy.folder / "results/hidden/hidden_a.pt").stat().st_mtime_ns
    write_sheet(copy, "cab", b=2)
    picture(copy, "c", seed=99)
    if decision == "no .snakemake":
        shutil.rmtree(copy.folder / ".snakemake")
    elif decision == "touched":
        copy.run("--touch")
        before = (copy.folder / "results/hidden/hidden_a.pt").stat().st_mtime_ns
    assert copy.plan(*arguments) == {"extract b", "extract c", "stack"}
    assert copy.run(*arguments).jobs["extract"] == 2
    assert (copy.folder / "results/hidden/hidden_a.pt").stat().st_mtime_ns == before
    assert "up to date" in copy.run(*arguments).text
    assert_as_new(copy, tmp_path)


@pytest.mark.long
@pytest.mark.fault("rerun")
def test_a_model_exchanged_by_a_link_is_seen_and_never_mixed(copy, tmp_path):
    for name, factor in (("v1", 1.0), ("v2", 1.01)):
        shutil.copytree(DEMO_MODEL, copy.folder / name)
        weights = copy.folder / name / "vae/diffusion_pytorch_model.safetensors"
        values = safetensors.numpy.load_file(weights)
        values["encoder.conv_in.bias"] = (values["encoder.conv_in.bias"] * factor).astype(np.float16)
        safetensors.numpy.save_file(values, weights, metadata={"format": "pt"})
        for path in (copy.folder / name).rglob("*"):
            os.utime(path, (1e9, 1e9))
    link = copy.folder / "model"
    link.symlink_to("v1")
    copy.config(**CONFIG, model_id="model")
    copy.run()
    first = copy.digests()
    link.unlink()
    link.symlink_to("v2")
    picture(copy, "d", seed=7)
    write_sheet(copy, "abcd")
    assert copy.run("--rerun-triggers", "mtime").jobs["extract"] == 4
    assert not set(first.values()) & set(copy.digests().values())
    assert_as_new(copy, tmp_path)


@pytest.mark.long
@pytest.mark.fault("rerun")
def test_after_a_failed_run_the_earlier_results_are_called_so(copy):
    copy.config(**CONFIG, report=True)
    copy.run()
    write_sheet(copy, b=5)
    (copy.folder / "pictures/c.bmp").write_text("no picture")
    text = copy.run(fails=True).text
    assert "1 of 3 items failed" in text
    assert "results/ still holds the tensor and the table of the run of 20" in text
    assert not (copy.folder / "results/report.html").exists()
    assert not (copy.folder / "results/report.json").exists()
    assert (copy.folder / "results/report.earlier.html").exists()
    with pytest.warns(UserWarning, match=r"the sheet \S+ has changed since \(column seed, column age\)"):
        _, index = load(copy.folder / "results")
    assert index["age"].tolist() == [10, 11, 12]
    write_sheet(copy)
    with pytest.warns(UserWarning, match=r"pictures have changed since: c"):
        load(copy.folder / "results")
    picture(copy, "c", seed=2)
    copy.run()
    assert (copy.folder / "results/report.html").exists()
    assert not (copy.folder / "results/report.earlier.html").exists()
    load(copy.folder / "results")


@pytest.mark.fault("rerun")
def test_a_tensor_of_another_name_leaves_no_doubt_which_one_counts(copy):
    copy.config(**CONFIG, stacked="results/latents.npy")
    text = copy.run().text
    assert "results/latents.pt is the tensor of an earlier run, which the index table no longer describes" in text
    assert "earlier run" not in copy.run("--forcerun", "stack").text
