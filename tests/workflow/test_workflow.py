"""The workflow as a user runs it: real Snakemake on real files."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pandas as pd
import pytest
import safetensors.torch
import torch
from helpers.study import ROOT, Study, draw, residents, wait_for
from PIL import Image
from test_diffusion import PHOTOS


def test_the_demo_ends_with_latents_pictures_tensor_and_table(demo):
    sheet = pd.read_csv(ROOT / "config/items.csv", dtype=str, keep_default_na=False)
    assert demo.first.jobs == {"model": 1, "extract": len(sheet), "stack": 1}
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


def test_the_index_tells_the_settings_that_were_used(demo):
    index = demo.index().set_index("id")
    still, edited = index.loc["shape_01"], index.loc["shape_26"]
    assert (still["strength"], still["guidance_scale"], still["num_inference_steps"]) == ("0.0", "", "")
    assert (edited["strength"], edited["guidance_scale"], edited["num_inference_steps"]) == ("0.5", "7.5", "50")


def test_provenance_names_model_software_and_config(demo):
    told = json.loads((demo.folder / "results/provenance.json").read_text())
    assert told["model"]["model_id"] == "demo"
    assert len(told["model"]["sha256"]["vae/diffusion_pytorch_model.safetensors"]) == 64
    assert told["software"]["torch"].startswith("2.13.0")
    assert told["config"]["resize"] == "pad"
    assert told["recipe_version"] >= 1


def test_each_items_log_tells_what_was_done(demo):
    assert "128 x 104 RGB; resized to 64 x 52; reflected to 64 x 64; latent 1 x 4 x 8 x 8" in demo.log("shape_04")


def test_a_second_run_has_nothing_to_do(demo):
    assert "Nothing to be done" in demo.run().text


def test_gpi_packs_way_of_reading_gives_the_stack(demo):
    """`load_hiddens` of gpi_pack 0.2.1: torch.load with weights_only, stack, squeeze dimension 1."""
    ids = demo.index()["id"]
    read = torch.stack([demo.latent(item_id) for item_id in ids]).squeeze(1).numpy()
    assert np.array_equal(read, torch.load(demo.folder / "results/latents.pt", weights_only=True).numpy())


@pytest.mark.parametrize("size", [64, 512])
def test_same_bits_whatever_cores_order_and_resident(tmp_path, size):
    """One core or two, sheet order or reversed, a fresh resident or a used one, or none at all."""
    steps = {"num_inference_steps": 4, "image_size": size, "output_image_dir": None}
    first = Study(tmp_path / "one")
    rows = [
        {"id": path.stem, "image": str(path), "prompt": "a red circle", "strength": strength, "seed": seed}
        for path in PHOTOS
        for strength, seed in ((0, 1), (0.5, 2), (1.0, 3))
    ]
    for row in rows:
        row["id"] += f"_{row['seed']}"
    first.config(**steps)
    first.sheet(rows)
    first.run(cores=1)
    digests = first.digests()
    assert len(set(digests.values())) == len(rows)
    second = Study(tmp_path / "two")
    second.config(**steps)
    second.sheet(rows[::-1])
    second.run(cores=2)
    assert second.digests() == digests
    alone = Study(tmp_path / "alone")
    alone.config(**steps, resident=False)
    alone.sheet(rows[-2:])
    alone.run(cores=2)
    assert alone.digests() == {row["id"]: digests[row["id"]] for row in rows[-2:]}


def test_photographs_below_a_path_with_a_space_and_other_letters(tmp_path):
    study = Study(tmp_path / "étude du café 図")
    for photo in PHOTOS:
        (study.folder / "my photos").mkdir(exist_ok=True)
        shutil.copy(photo, study.folder / "my photos" / f"the {photo.stem} – ü.jpg")
    prompts = ['say "no change", it\'s $HOME `id` {x}\n\\n', "rote Fläche; rm -rf *", "図"]
    study.sheet(
        [
            {"id": photo.stem, "image": f"./my photos/the {photo.stem} – ü.jpg", "prompt": prompt, "strength": 0.5}
            for photo, prompt in zip(PHOTOS, prompts, strict=True)
        ]
    )
    study.run("--config", "num_inference_steps=4")
    assert study.index()["prompt"].tolist() == prompts
    assert torch.load(study.folder / "results/latents.pt", weights_only=True).shape == (3, 4, 8, 8)
    assert "Nothing to be done" in study.run("--config", "num_inference_steps=4").text


@pytest.mark.fault("sheet")
@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("picture,prompt\np.png,x\n", "column 'image' is missing"),
        ("image,Prompt\np.png,x\n", "unknown column 'Prompt': did you mean 'prompt'?"),
        ("image,prompt\n,x\n", "row 2, column image: it is empty"),
        ("image,prompt\nno.png,x\n", "row 2, column image: no such file: 'no.png'"),
        ("id,image,prompt\nu,p.png,x\nu,p.png,x\n", "row 3, column id: 'u' stands in row 2 already"),
        ("id,image,prompt\n../u,p.png,x\n", "row 2, column id: '../u' is not a valid text"),
        ("image,prompt,strength\np.png,x,2\n", "row 2, column strength: 2.0 must be at most 1"),
        ("image,prompt,strength\np.png,x,0.01\n", "row 2, column strength: strength 0.01 of 50 steps"),
        ("image,prompt,seed\np.png,x,-1\n", "row 2, column seed: -1 must be at least 0"),
        (b"image,prompt\np.png,caf\xe9\n", "is not UTF-8 (line 2)"),
        ("image,prompt\n", "has a header but no rows"),
        (None, "No sheet at config/items.csv"),
    ],
)
def test_a_bad_sheet_stops_the_run_with_one_message(study, text, told):
    draw(study.folder / "p.png")
    if text is not None:
        (study.folder / "config/items.csv").write_bytes(text if isinstance(text, bytes) else text.encode())
    run = study.run(fails=True)
    assert run.text.count(told) == 1
    assert "Traceback" not in run.output
    assert run.jobs == {}
    assert not (study.folder / "results").exists()


@pytest.mark.fault("config")
def test_a_bad_config_stops_the_run_with_one_message(study):
    study.pictures(1)
    study.config(strenght=0.5, resize="padd")
    run = study.run("--config", "seed=x", "items=001", fails=True)
    assert "unknown key 'strenght': did you mean 'strength'?" in run.text
    assert "key resize: 'padd' is not one of" in run.text
    assert "key seed: 'x' is not of type integer" in run.text
    assert "items: '...'" in run.text
    assert "Traceback" not in run.output


def test_values_from_the_command_line(study):
    study.pictures(2)
    study.run("--config", "output_image_dir=null", "resident=false", "image_size=32", "posterior=mode")
    assert not (study.folder / "results/images").exists()
    assert study.latent("p0").shape == (1, 4, 4, 4)
    assert not list((study.folder / "logs").glob("resident*"))


@pytest.mark.fault("picture")
def test_one_bad_picture_costs_no_other_item_and_is_all_that_runs_again(study):
    study.pictures(6)
    whole = (study.folder / "pictures/p3.png").read_bytes()
    (study.folder / "pictures/p3.png").write_bytes(whole[:200])
    run = study.run(fails=True)
    assert "pictures/p3.png' cannot be read" in run.text
    assert sorted(study.digests()) == ["p0", "p1", "p2", "p4", "p5"]
    assert not (study.folder / "results/latents.pt").exists()
    (study.folder / "pictures/p3.png").write_bytes(whole)
    assert study.run().jobs == {"extract": 1, "stack": 1}
    assert study.index()["id"].tolist() == [f"p{number}" for number in range(6)]


def test_only_what_changed_runs_again(study):
    rows = study.pictures(4, outcome=1, strength=0.5, num_inference_steps=4)
    study.run()
    before = study.digests()
    times = {path.name: path.stat().st_mtime_ns for path in (study.folder / "results/hidden").iterdir()}
    rows[0]["outcome"] = 2
    study.sheet(rows)
    assert study.run().jobs == {"stack": 1}
    assert study.index()["outcome"].tolist() == ["2", "1", "1", "1"]
    for row in rows:
        row["seed"] = 0  # the default's value
    rows[1]["seed"] = 5
    study.sheet(rows)
    assert study.run().jobs == {"extract": 1, "stack": 1}
    draw(study.folder / "pictures/p2.png", seed=99)
    assert study.run().jobs == {"extract": 1, "stack": 1}
    after = study.digests()
    assert [name for name in after if after[name] != before[name]] in (["p1", "p2"], ["p2", "p1"])
    study.sheet(rows[::-1])
    assert study.run().jobs == {"stack": 1}
    stacked = torch.load(study.folder / "results/latents.pt", weights_only=True)
    assert torch.equal(stacked[0:1], study.latent("p3"))
    now = {path.name: path.stat().st_mtime_ns for path in (study.folder / "results/hidden").iterdir()}
    assert {name for name in now if now[name] != times[name]} == {"hidden_p1.pt", "hidden_p2.pt"}


@pytest.mark.parametrize("suffix", ["npy", "safetensors"])
def test_other_formats_of_the_tensor(study, suffix):
    study.pictures(3)
    study.config(stacked=f"results/R.{suffix}", prefix_hidden="hidden_", save_name="image")
    study.run()
    target = study.folder / f"results/R.{suffix}"
    read = np.load(target) if suffix == "npy" else safetensors.torch.load_file(target)["latents"].numpy()
    paths = [study.folder / f"results/hidden/hidden__p{number}.pt" for number in range(3)]
    assert np.array_equal(read, torch.cat([torch.load(path, weights_only=True) for path in paths]).numpy())
    assert (study.folder / "results/images/image_p0.png").exists()


def test_different_shapes_make_no_tensor_but_keep_the_latents(study):
    study.pictures(3)
    draw(study.folder / "pictures/p1.png", (64, 40))
    run = study.run("--config", "resize=contain", fails=True)
    assert "(4, 8, 8): 2 items (p0, p2)" in run.text
    assert "(4, 5, 8): 1 item (p1)" in run.text
    assert len(study.digests()) == 3
    assert not (study.folder / "results/latents.pt").exists()


@pytest.mark.fault("stranger")
def test_an_item_that_is_not_in_the_sheet_is_no_target(study):
    study.pictures(1)
    run = study.run("results/hidden/hidden_nobody.pt", fails=True)
    assert "has no item 'nobody'" in run.text


@pytest.mark.fault("sheet")
def test_a_sheet_that_changes_during_the_run_is_not_stacked(study):
    rows = study.pictures(2, strength=1, num_inference_steps=300)
    run = study.start()
    wait_for(lambda: residents(study.folder), what="the resident")
    rows[0]["prompt"] = "another"
    study.sheet(rows)
    output = run.communicate(timeout=200)[0]
    assert run.returncode != 0
    assert "was changed during the run: run again" in " ".join(output.split())
    assert not (study.folder / "results/index.csv").exists()
    assert study.run().jobs == {"extract": 1, "stack": 1}


@pytest.mark.fault("model")
@pytest.mark.parametrize(
    ("prepare", "told"),
    [
        (lambda folder: (folder / "model_index.json").unlink(), "has no model_index.json"),
        (lambda folder: (folder / "model_index.json").write_text("{"), "is damaged"),
        (
            lambda folder: (folder / "model_index.json").write_text('{"_class_name": "KandinskyPipeline"}'),
            "is a KandinskyPipeline",
        ),
        (lambda folder: shutil.rmtree(folder / "unet"), "is incomplete: it has no unet"),
        (
            lambda folder: (folder / "vae/diffusion_pytorch_model.safetensors").rename(
                folder / "vae/pytorch_model.bin"
            ),
            "has no safetensors weights for its vae",
        ),
        (
            lambda folder: (folder / "vae/diffusion_pytorch_model.safetensors").write_bytes(b"x" * 100),
            "is damaged",
        ),
    ],
)
def test_a_bad_model_is_refused_with_a_message(study, prepare, told):
    study.pictures(1)
    shutil.copytree(ROOT / "config/demo/model", study.folder / "model")
    prepare(study.folder / "model")
    study.config(model_id="model")
    run = study.run(fails=True)
    assert told in run.text
    assert not list((study.folder / "results").rglob("*.pt"))


def test_cut_prompts_are_told_of_a_failed_run_too(study):
    study.pictures(2, strength=0.5, num_inference_steps=2, prompt="red " * 100)
    (study.folder / "pictures/p1.png").write_text("no picture")
    assert "row 2, p0: prompt cut: tokenizer reads 77 of its" in study.run(fails=True).text


@pytest.mark.parametrize("family", ["stable-diffusion-xl", "flux"])
def test_a_sheet_may_mix_strengths_and_negative_prompts(study, family):
    """Each row gets what the core makes of it alone, whatever its neighbours on the resident are."""
    import diffusion
    from helpers import families

    diffusion.same_bits()
    folder = families.model(family, study.folder / "models")
    rows = study.pictures(6)
    own = [
        {"strength": "", "negative_prompt": ""},
        {"strength": 0.5, "negative_prompt": ""},
        {"strength": 0.5, "negative_prompt": "blue"},
        {"strength": 1, "negative_prompt": "blue"},
        {"strength": 0, "negative_prompt": "blue"},
        {"strength": 0.5, "negative_prompt": "blue", "prompt": "red " * 100},
    ]
    study.sheet([row | settings for row, settings in zip(rows, own, strict=True)])
    study.config(model_id=f"models/{family}", image_size=64, num_inference_steps=4, negative_prompt="green", seed=3)
    run = study.run()
    assert "row 7, p5: prompt cut: tokenizer reads 77 of its 102 tokens" in run.text
    assert len(torch.load(study.folder / "results/latents.pt", weights_only=True)) == 6
    model = diffusion.Model(folder)
    for row, settings in zip(rows, own, strict=True):
        recipe = {
            "image_size": 64,
            "resize": "pad",
            "posterior": "sample",
            "seed": 3,
            "strength": float(settings["strength"] or 0),
            "prompt": settings.get("prompt", row["prompt"]),
            "negative_prompt": settings["negative_prompt"] or "green",
            "guidance_scale": 7.5,
            "num_inference_steps": 4,
            "scheduler": "auto",
        }
        picture, _ = model.prepare(study.folder / row["image"], recipe)
        assert torch.equal(study.latent(row["id"]), model.latent(picture, recipe))


def test_a_local_model_gives_the_demos_latents_and_its_change_is_noticed(study, demo):
    shutil.copytree(ROOT / "config/demo/model", study.folder / "model")
    shutil.copytree(ROOT / "config/demo/images", study.folder / "config/demo/images")
    shutil.copy(ROOT / "config/items.csv", study.folder / "config")
    study.config(model_id="model")
    study.run()
    assert study.digests() == demo.digests()
    for path in (study.folder / "model").rglob("*.safetensors"):
        path.touch()
    assert "Nothing to be done" in study.run().text
    file = study.folder / "model/vae/diffusion_pytorch_model.safetensors"
    weights = safetensors.torch.load_file(file)
    weights["quant_conv.bias"] += 0.1
    safetensors.torch.save_file(weights, file, metadata={"format": "pt"})
    assert study.run().jobs == {"model": 1, "extract": 30, "stack": 1}
    assert study.digests() != demo.digests()


def test_a_hub_model_is_found_in_the_cache_without_the_network(study):
    """A cache as huggingface_hub lays it out, and the offline switch that compute nodes use."""
    commit = "0123456789abcdef0123456789abcdef01234567"
    repo = study.folder / "cache/models--someone--tiny"
    shutil.copytree(ROOT / "config/demo/model", repo / "snapshots" / commit)
    (repo / "refs").mkdir()
    (repo / "refs/main").write_text(commit)
    study.pictures(1)
    study.config(model_id="someone/tiny", cache_dir="cache")
    study.environment["HF_HUB_OFFLINE"] = "1"
    study.run()
    assert json.loads((study.folder / "results/model.json").read_text())["commit"] == commit
    study.config(model_id="someone/other", cache_dir="cache")
    run = study.run(fails=True)
    assert "is not in the cache of this machine and could not be downloaded" in run.text
    assert "Traceback" not in run.output


def test_parsing_and_the_client_import_nothing_heavy():
    """Neither torch nor diffusers while Snakemake parses; the client runs without site-packages."""
    import subprocess
    import sys

    code = "import sys; sys.path.insert(0, 'scripts'); import items; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert not {"torch", "diffusers", "transformers"} & set(loaded.split())
    code = "import sys; sys.path.insert(0, 'scripts'); import extract; print(*sys.modules)"
    loaded = subprocess.run(
        [sys.executable, "-I", "-S", "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    assert not {"json", "argparse", "re", "socket", "subprocess"} & set(loaded.split())


def test_pins_agree():
    """requirements.txt, environment.yaml and requirements-dev.txt name the same versions."""
    import yaml

    def pins(name: str) -> dict[str, str]:
        lines = (ROOT / "envs" / name).read_text().splitlines()
        return dict(line.split("==") for line in lines if "==" in line)

    required = pins("requirements.txt")
    environment = yaml.safe_load((ROOT / "envs/environment.yaml").read_text())
    conda = dict(line.split("==") for line in environment["dependencies"][-1]["pip"])
    assert conda == required
    assert required["torch"] == "2.13.0"
    development = pins("requirements-dev.txt")
    assert all(required[name] == version for name, version in development.items() if name in required)
    asked = [
        line.split("==")[0]
        for line in (ROOT / "envs/requirements.in").read_text().splitlines()
        if line and line[0] != "#"
    ]
    assert set(asked) <= set(required)


def test_the_shipped_demo_model_is_what_its_digests_say_and_small():
    import model

    resolved = model.resolve("demo")
    assert resolved["family"] == "StableDiffusionPipeline"
    folder = ROOT / "config/demo/model"
    assert sum(path.stat().st_size for path in folder.rglob("*")) < 8_000_000
    assert {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()} == {
        "README.md",
        "SHA256SUMS",
        *resolved["sha256"],
    }
