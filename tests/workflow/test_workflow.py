"""The workflow as a user runs it: real Snakemake on real files."""

from __future__ import annotations

import json
import re
import shutil
import subprocess

import numpy as np
import pandas as pd
import pytest
import torch
from gpi_latents.core import diffusion
from helpers import families
from helpers.photos import PHOTOS
from helpers.study import ROOT, Study, draw, residents, wait_for
from PIL import Image


def test_the_demo_ends_with_latents_pictures_tensor_and_table(demo):
    sheet = pd.read_csv(ROOT / "config/items.csv", dtype=str, keep_default_na=False)
    assert demo.first.jobs == {"model": 1, "extract": len(sheet), "stack": 1, "figures": 1, "report": 1}
    stacked = torch.load(demo.folder / "results/latents.pt", weights_only=True)
    assert stacked.dtype == torch.float32
    assert stacked.shape == (len(sheet), 4, 8, 8)
    index = demo.index()
    assert index.columns[:4].tolist() == ["row", "id", "image", "prompt"]
    assert index["row"].tolist() == [str(number) for number in range(len(sheet))]
    for column in ("id", "image", "prompt", "treatment", "outcome", "size"):
        assert index[column].tolist() == sheet[column].tolist()
    digests = demo.digests()
    for row, item_id in enumerate(index["id"]):
        assert torch.equal(stacked[row : row + 1], demo.latent(item_id))
        assert index["sha256"][row] == digests[item_id]
        assert Image.open(demo.folder / f"results/images/gen_{item_id}.png").size == (64, 64)
    assert len(set(digests.values())) == len(sheet)
    assert len(list((demo.folder / "results/hidden").iterdir())) == len(sheet)


def test_the_index_has_the_settings_that_were_used(demo):
    index = demo.index().set_index("id")
    still, edited = index.loc["shape_01"], index.loc["shape_26"]
    assert (still["strength"], still["guidance_scale"], still["num_inference_steps"]) == ("0.0", "", "")
    assert (edited["strength"], edited["guidance_scale"], edited["num_inference_steps"]) == ("0.5", "7.5", "50")


def test_provenance_names_model_software_and_config(demo):
    provenance = json.loads((demo.folder / "results/provenance.json").read_text())
    assert provenance["model"]["model_id"] == "demo"
    assert len(provenance["model"]["sha256"]["vae/diffusion_pytorch_model.safetensors"]) == 64
    assert provenance["software"]["torch"].startswith("2.13.0")
    assert provenance["config"]["resize"] == "pad"
    assert provenance["recipe_version"] >= 1


def test_each_items_log_says_what_was_done(demo):
    finished = json.loads(demo.log("shape_04").splitlines()[-1])
    assert finished["done"] == ["PNG 128 x 104 RGB", "resized to 64 x 52", "reflected to 64 x 64"]
    assert finished["shape"] == [1, 4, 8, 8]


def test_a_second_run_has_nothing_to_do(demo):
    assert demo.plan() == set()


def test_gpi_packs_way_of_reading_gives_the_stack(demo):
    """`load_hiddens` of gpi_pack 0.2.1: torch.load with weights_only, stack, squeeze dimension 1."""
    ids = demo.index()["id"]
    read = torch.stack([demo.latent(item_id) for item_id in ids]).squeeze(1).numpy()
    assert np.array_equal(read, torch.load(demo.folder / "results/latents.pt", weights_only=True).numpy())


@pytest.mark.long
def test_the_commands_that_snakemake_logs_can_be_copied_and_run(demo, tmp_path):
    copy = Study(tmp_path / "copy")
    shutil.copytree(demo.folder, copy.folder, dirs_exist_ok=True)
    logs = "".join(log.read_text() for log in (copy.folder / ".snakemake/log").iterdir())
    commands = re.findall(r"^Shell command: (.*)$", logs, re.MULTILINE)
    for made in ("hidden/hidden_shape_26.pt", "model.json", "latents.pt", "report/run_times.json", "report.html"):
        (copy.folder / "results" / made).unlink()
    for script in ("model.py", "gen_shape_26.png", "stack.py", "figures.py", "report.py"):
        (command,) = [command for command in commands if script in command and "sha256sum" not in command]
        ran = subprocess.run(command, shell=True, cwd=copy.folder, env=copy.environment)
        assert ran.returncode == 0, command
    assert copy.digests() == demo.digests()
    for name in ("latents.pt", "index.csv", "provenance.json"):
        assert (copy.folder / "results" / name).read_bytes() == (demo.folder / "results" / name).read_bytes()
    assert (copy.folder / "results/report.html").exists()


@pytest.mark.long
def test_same_bits_whatever_cores_order_and_resident(tmp_path):
    """One core or two, sheet order or reversed, a used resident or none at all; 64 pixels would hide differences."""
    rows = [
        {"id": f"{path.stem}_{seed}", "image": str(path), "prompt": "a red circle", "strength": strength, "seed": seed}
        for path in PHOTOS
        for strength, seed in ((0, 1), (0.5, 2), (1.0, 3))
    ]
    digests = []
    for chosen, cores, resident in ((rows, 1, True), (rows[::-1], 2, True), (rows[-2:], 2, False)):
        study = Study(tmp_path / str(len(digests)))
        study.config(num_inference_steps=3, image_size=512, output_image_dir=None, resident=resident)
        study.sheet(chosen)
        study.run(cores=cores)
        digests.append(study.digests())
    assert len(set(digests[0].values())) == len(rows)
    assert digests[1] == digests[0]
    assert digests[2] == {row["id"]: digests[0][row["id"]] for row in rows[-2:]}


@pytest.mark.fault("model")
def test_a_model_of_the_hub_and_other_values_from_the_command_line(study):
    """A cache as huggingface_hub lays it out, and the offline switch that compute nodes use."""
    commit = "0123456789abcdef0123456789abcdef01234567"
    repo = study.folder / "cache/models--someone--tiny"
    shutil.copytree(ROOT / "config/demo/model", repo / "snapshots" / commit)
    (repo / "refs").mkdir()
    (repo / "refs/main").write_text(commit)
    study.pictures(1)
    study.environment["HF_HUB_OFFLINE"] = "1"
    values = ["cache_dir=cache", "resident=false", "image_size=32", "posterior=mode", "stacked=results/R.npy"]
    values += ["prefix_hidden=h_", "save_name=image", "output_image_dir=results/decoded"]
    study.run("--config", "model_id=someone/tiny", *values)
    assert json.loads((study.folder / "results/model.json").read_text())["commit"] == commit
    latent = torch.load(study.folder / "results/hidden/h__p0.pt", weights_only=True)
    assert latent.shape == (1, 4, 4, 4)
    assert np.array_equal(np.load(study.folder / "results/R.npy"), latent.numpy())
    assert (study.folder / "results/decoded/image_p0.png").exists()
    assert not list((study.folder / "logs").glob("resident*"))
    run = study.run("--config", "model_id=someone/other", *values, fails=True)
    assert "is not in the cache of this machine and could not be downloaded" in run.text
    assert "Traceback" not in run.output


@pytest.mark.fault("picture")
def test_one_bad_picture_costs_no_other_item_and_is_all_that_runs_again(study):
    """Then pictures of another shape, which make no tensor but have their latents."""
    rows = study.pictures(6)
    rows[0] |= {"strength": 0.5, "num_inference_steps": 2, "prompt": "red " * 100}
    study.sheet(rows)
    study.config(resize="contain")
    whole = draw(study.folder / "pictures/p1.png", (64, 40)).read_bytes()
    bad = study.folder / "pictures/p3.png"
    bad.write_bytes(whole[:200])
    run = study.run("--retries", "1", fails=True)
    assert "cannot overwrite" not in run.text  # the log of the first attempt
    assert re.search(r"row 5, p3: .*pictures/p3\.png' cannot be read", run.text)
    assert "row 2, p0: prompt cut: tokenizer reads 77 of its" in run.text
    assert '"shape"' not in run.text  # no JSON of the items that worked
    assert pd.read_csv(study.folder / "logs/failed.csv")[["sheet_row", "id"]].to_numpy().tolist() == [[5, "p3"]]
    assert sorted(study.digests()) == ["p0", "p1", "p2", "p4", "p5"]
    assert not (study.folder / "results/latents.pt").exists()
    draw(bad)
    run = study.run(fails=True)
    assert run.jobs == {"extract": 1, "stack": 1}
    assert "(4, 8, 8): 5 items (p0, p2, p3, p4, p5)" in run.text
    assert "(4, 5, 8): 1 item (p1)" in run.text
    assert not (study.folder / "results/latents.pt").exists()
    draw(study.folder / "pictures/p1.png")
    assert study.run().jobs == {"extract": 1, "stack": 1}
    assert study.index()["id"].tolist() == [f"p{number}" for number in range(6)]


@pytest.mark.fault("sheet")
def test_a_sheet_that_is_edited_during_the_run_is_taken_up_by_the_next(study):
    rows = study.pictures(2, strength=1, num_inference_steps=4)
    run = study.start()
    wait_for(lambda: residents(study.folder), what="the resident")
    study.sheet([rows[0] | {"prompt": "another"}, rows[1]])
    output = run.communicate(timeout=200)[0]
    assert run.returncode == 0, output
    assert study.index()["prompt"].tolist() == ["a red circle"] * 2
    assert study.plan() == {"extract p0", "stack"}


@pytest.mark.long
@pytest.mark.parametrize("family", ["stable-diffusion-xl", "flux"])
def test_a_sheet_may_mix_strengths_and_negative_prompts(study, family):
    """Each row gets what the core makes of it alone, whatever its neighbours on the resident are."""
    diffusion.same_bits()
    folder = families.model(family, study.folder / "models")
    rows = study.pictures(6, negative_prompt="blue", strength=0.5)
    rows[0] |= {"strength": "", "negative_prompt": ""}
    rows[1] |= {"negative_prompt": ""}
    rows[3] |= {"strength": 1}
    rows[4] |= {"strength": 0}
    rows[5] |= {"prompt": "red " * 100}
    study.sheet(rows)
    study.config(model_id=f"models/{family}", image_size=64, num_inference_steps=4, negative_prompt="green", seed=3)
    run = study.run()
    assert "row 7, p5: prompt cut: tokenizer reads 77 of its 102 tokens" in run.text
    assert len(torch.load(study.folder / "results/latents.pt", weights_only=True)) == 6
    model = diffusion.Model(folder)
    recipe = {"image_size": 64, "resize": "pad", "posterior": "sample", "seed": 3, "guidance_scale": 7.5}
    recipe |= {"num_inference_steps": 4, "scheduler": "auto"}
    for row in rows:
        own = {"strength": float(row["strength"] or 0), "negative_prompt": row["negative_prompt"] or "green"}
        picture, _ = model.prepare(study.folder / row["image"], recipe)
        latent = model.latent(picture, recipe | own | {"prompt": row["prompt"]})
        assert torch.equal(study.latent(row["id"]), latent)
