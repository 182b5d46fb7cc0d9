"""The rerun table: after each change to a finished study, which jobs run, by Snakemake's plan and by the files."""

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
import torch
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
    copy.config(**CONFIG)
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


def delete(*paths: str) -> Callable[[Study], None]:
    return lambda study: [(study.folder / path).unlink() for path in paths] and None


def touch(*paths: str) -> Callable[[Study], None]:
    return lambda study: [(study.folder / path).touch() for path in paths] and None


def jobs(items: list[str], stack: bool = True, model: bool = False) -> set[str]:
    """The jobs of a plan."""
    return {*(f"extract {item_id}" for item_id in items), *(["stack"] if stack else []), *(["model"] if model else [])}


def check(study: Study, expected: set[str]) -> None:
    """The plan and the run do these jobs, no other item's files are written, and then nothing is left to do."""
    assert study.plan() == expected
    watched = [*(study.folder / "results/hidden").iterdir(), study.folder / "results/latents.pt"]
    times = {path: path.stat().st_mtime_ns for path in watched if path.exists()}
    run = study.run()
    assert run.jobs.get("extract", 0) == sum(name.startswith("extract") for name in expected)
    assert ("up to date" in run.text) == (not expected)
    written = {path.stem.removeprefix("hidden_") for path, time in times.items() if path.stat().st_mtime_ns != time}
    known = {path.stem.removeprefix("hidden_") for path in times}
    assert written == known & {"latents" if name == "stack" else name.removeprefix("extract ") for name in expected}
    assert study.plan() == set()
    assert study.index()["id"].tolist() == rows(study)["id"].tolist()


PLANS = [
    ("image bytes changed", lambda study: draw(study.folder / "pictures/a0.png", seed=99), ["a0"], True),
    ("image touched", touch("pictures/a0.png", "pictures/big.png"), [], False),
    ("image renamed, id kept", rename_image, ["a0"], True),
    ("prompt at strength 0", sheet(a0__prompt="x"), [], True),
    ("prompt above strength 0", sheet(b0__prompt="x"), ["b0"], True),
    ("seed", sheet(a0__seed=2), ["a0"], True),
    ("strength", sheet(a0__strength=0.5), ["a0"], True),
    ("guidance", sheet(b0__guidance_scale=6), ["b0"], True),
    ("steps", sheet(b0__num_inference_steps=6), ["b0"], True),
    ("negative prompt", sheet(b0__negative_prompt="x"), ["b0"], True),
    ("settings of no effect", sheet(a0__guidance_scale=6, a1__num_inference_steps=6), [], False),
    ("two values swapped", sheet(b0__guidance_scale=4, b0__num_inference_steps=5), ["b0"], True),
    ("row added", add_row, ["new"], True),
    ("row removed", order("a0", "big", "b0", "b1"), [], True),
    ("row moved", order("b1", "a0", "a1", "big", "b0"), [], True),
    ("outcome", sheet(a0__outcome=7), [], True),
    ("config's steps, which one row uses", config(num_inference_steps=6), ["b1"], True),
    ("config's seed, which one row uses", config(seed=5), ["b1"], True),
    ("config's strength, which no row uses", config(strength=0.7), [], False),
    ("dtype", config(dtype="bfloat16"), ALL, True),
    ("resize", config(resize="crop"), ALL, True),
    ("image size", config(image_size=64), ALL, True),
    ("posterior", config(posterior="mode"), ALL, True),
    ("scheduler", config(scheduler="PNDMScheduler"), EDITED, True),
    ("folder of latents", config(output_hidden_dir="results/other"), ALL, True),
    ("names of latents", config(prefix_hidden="other"), ALL, True),
    ("tensor's name", config(stacked="results/latents.npy"), [], True),
    ("device, times", config(device="cpu", resident_idle_seconds=5, item_timeout=60), [], False),
    ("what may draw noise, cache", config(allow_stochastic_scheduler=True, cache_dir="cache"), [], False),
    ("latent deleted", delete("results/hidden/hidden_a0.pt"), ["a0"], True),
    (
        "checksums, latent deleted",
        delete("results/checksums/0.sha256", "results/hidden/hidden_a0.pt"),
        ["a0"],
        True,
    ),
    ("tensor deleted", delete("results/latents.pt"), [], True),
    ("index deleted", delete("results/index.csv"), [], True),
]


def test_after_a_change_only_what_it_touches_is_planned(study, finished, tmp_path):
    """Each change to the finished study by itself."""
    assert study.plan() == set()  # the folder copied elsewhere
    plans, expected = {}, {}
    for name, change, items, stack in PLANS:
        shutil.rmtree(study.folder)
        shutil.copytree(finished, study.folder)
        change(study)
        plans[name], expected[name] = study.plan(), jobs(items, stack)
    assert plans == expected


@pytest.mark.long
def test_after_several_changes_only_what_they_touch_runs(study):
    before = study.digests()
    draw(study.folder / "pictures/a0.png", seed=99)
    touch("pictures/big.png")(study)
    sheet(a1__prompt="x", b0__seed=7, a0__outcome=7)(study)
    add_row(study)
    check(study, jobs(["a0", "b0", "new"]))
    after = study.digests()
    assert {item_id for item_id, digest in before.items() if digest == after[item_id]} == {"a1", "big", "b1"}
    order("b1", "new", "a0", "big", "b0")(study)
    check(study, jobs([]))
    stacked = torch.load(study.folder / "results/latents.pt", weights_only=True)
    assert torch.equal(stacked[1:2], study.latent("new"))
    # The removed row's files are listed and kept.
    assert "results/hidden/hidden_a1.pt" in study.run("orphans").output.split()
    assert (study.folder / "results/hidden/hidden_a1.pt").exists()
    digests = subprocess.run(
        ["sha256sum", "--check", "results/checksums/0.sha256"], cwd=study.folder, capture_output=True, text=True
    )
    assert digests.stdout.count(": OK") == 5


@pytest.mark.long
def test_pictures_switched_on_deleted_and_switched_off(study):
    config(output_image_dir="results/images")(study)
    check(study, jobs(ALL))
    delete("results/images/gen_a0.png")(study)
    assert study.plan() == jobs(["a0"])
    config(output_image_dir="results/images", save_name="other")(study)
    assert study.plan() == jobs(ALL)
    config(output_image_dir="results/others")(study)
    assert study.plan() == jobs(ALL)
    config(save_name="other")(study)
    assert study.plan() == set()


@pytest.mark.long
def test_another_model_or_other_weights_run_everything(study):
    before = study.digests()
    shutil.copytree(ROOT / "config/demo/model", study.folder / "model")
    config(model_id="model")(study)
    check(study, jobs(ALL, model=True))
    assert study.digests() == before  # the same weights
    file = study.folder / "model/vae/diffusion_pytorch_model.safetensors"
    file.touch()
    # Weights that are not used, since there are safetensors of them.
    shutil.copy(file, file.with_suffix(".bin"))
    assert study.plan() == set()
    for key in ("allow_pickle=true", "variant=fp16", "vae_id=model"):
        assert study.plan("--config", key) == jobs(ALL, model=True)
    weights = safetensors.torch.load_file(file)
    weights["quant_conv.bias"] += 0.1
    safetensors.torch.save_file(weights, file, metadata={"format": "pt"})
    assert study.plan() == jobs(ALL, model=True)


def test_a_fresh_clone_and_edited_rules_run_nothing_and_a_raised_recipe_version_everything(study, workflow_copy):
    study.workflow = workflow_copy
    assert study.plan() == set()
    for file in [workflow_copy / "Snakefile", *(workflow_copy / "scripts").rglob("*.py")]:
        with file.open("a") as opened:
            opened.write("\n# A comment.\n")
    for file in [workflow_copy / "Snakefile", *(workflow_copy / "scripts/rules").glob("*.smk")]:
        file.write_text(file.read_text().replace(" > {log:q}", " --other-words > {log:q}"))
    assert study.plan() == set()
    assert study.plan("--workflow-profile", "slurm") == set()
    file = workflow_copy / "scripts/gpi_latents/recipe.py"
    text = file.read_text()
    assert "\nRECIPE_VERSION = 1\n" in text
    file.write_text(text.replace("\nRECIPE_VERSION = 1\n", "\nRECIPE_VERSION = 2\n"))
    assert study.plan() == jobs(ALL)


def test_a_copy_with_new_times_runs_nothing(finished, tmp_path):
    shutil.copytree(finished, tmp_path / "copy", copy_function=shutil.copyfile)
    for path in sorted((tmp_path / "copy/pictures").iterdir()):
        path.touch()  # later than the results
    copy = Study(tmp_path / "copy")
    copy.config(**CONFIG)
    assert copy.plan() == set()


@pytest.mark.long
def test_interrupted_runs_leave_only_what_was_not_finished(study):
    """Ctrl-C, then the end of a session, then kill -9."""
    table = rows(study)
    for number in range(15):
        item_id = f"n{number}"
        table.loc[item_id] = table.loc["b0"]
        new = {"id": item_id, "strength": "1", "num_inference_steps": "100", "seed": str(number)}
        table.loc[item_id, list(new)] = list(new.values())
    table.astype(str).to_csv(study.folder / "config/items.csv", index=False)
    for ending in (signal.SIGINT, signal.SIGTERM, signal.SIGKILL):
        before = study.digests()
        run = study.start(cores=1)
        wait_for(lambda: len(study.digests()) > len(before) + 1, seconds=120, what="two of the new items")  # noqa: B023
        (os.killpg if ending == signal.SIGINT else os.kill)(run.pid, ending)
        run.wait(180)  # for its running jobs, on a busy machine
        wait_for(lambda: not residents(study.folder), 30, "the resident's end")
        if ending == signal.SIGKILL:
            study.run("--unlock")
        done = study.digests()
        assert before.items() <= done.items()
        assert len(before) + 1 < len(done) < len(table)
        planned = study.plan()
        missing = {f"extract {item_id}" for item_id in table["id"] if item_id not in done}
        # An item that was killed between its latent and Snakemake's note of it is done once more.
        assert missing | {"stack"} <= planned
        assert len(planned) <= len(missing) + 2
    study.run()
    assert done.items() <= study.digests().items()


@pytest.mark.long
def test_batches_make_what_one_run_makes(study):
    """Batches take whole blocks of 100 items."""
    first = rows(study).loc[["a0"]]
    copies = [first.assign(id=f"n{number}", seed=str(number)) for number in range(200)]
    pd.concat([rows(study), *copies]).to_csv(study.folder / "config/items.csv", index=False)
    study.run()
    expected = study.digests(), (study.folder / "results/latents.pt").read_bytes()
    for folder in (".snakemake", "results"):
        shutil.rmtree(study.folder / folder)
    counts = [study.run("--batch", f"stack={number}/2").jobs for number in (1, 2)]
    assert [count["extract"] for count in counts] == [200, 5]
    assert [count.get("stack", 0) for count in counts] == [0, 1]
    assert (study.digests(), (study.folder / "results/latents.pt").read_bytes()) == expected
    assert study.plan() == set()
    # A batch asks for what is lost of its own blocks, and for no others.
    delete("results/checksums/0.sha256", "results/hidden/hidden_a0.pt")(study)
    assert study.plan("--batch", "stack=1/2") == {"extract a0"}
    planned = study.plan("--batch", "stack=1/2", "--config", "prefix_hidden=other")
    assert len(planned) == 200
