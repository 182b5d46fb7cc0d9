"""One item from end to end, with the demo's model."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from gpi_latents import paths
from gpi_latents.errors import ItemError, ModelError, UserError
from gpi_latents.model.source import write_model
from gpi_latents.origin import Origin, read_origin
from gpi_latents.recipe import model_digest, recipe_digest
from gpi_latents.resident import engine as module
from gpi_latents.resident.engine import Engine, Request
from gpi_latents.resident.progress import WAITING
from gpi_latents.study.settings import load_config
from helpers.bench import RECIPE, demo_model
from helpers.study import draw
from PIL import Image

CONFIG = load_config({"model_id": "demo", "device": "cpu"})


@pytest.fixture(scope="module")
def engine(tmp_path_factory) -> Engine:
    before = os.getcwd()
    os.chdir(tmp_path_factory.mktemp("engine"))
    try:
        Path("results").mkdir()
        Path(paths.MODEL).write_text(demo_model())
        return Engine(CONFIG, workers=2)
    finally:
        os.chdir(before)


@pytest.fixture
def request_(tmp_path, monkeypatch) -> Request:
    monkeypatch.chdir(tmp_path)
    draw(tmp_path / "p.png", (64, 64))
    return Request("p.png", RECIPE, "a.pt", "a.png")


def made() -> set[str]:
    return {path.name for path in Path().iterdir()} - {"p.png"}


def test_an_item_leaves_its_latent_its_picture_and_a_report(engine, request_):
    finished = engine.extract(request_)
    assert (finished.done, finished.notes) == (["PNG 64 x 64 RGB"], [])
    assert (finished.shape, finished.device) == ([1, 4, 8, 8], "cpu")
    assert 0 < finished.seconds <= finished.total_seconds
    (model,) = engine.models
    latent = torch.load("a.pt", weights_only=True)
    assert torch.equal(latent, model.latent(model.prepare("p.png", RECIPE)[0], RECIPE))
    assert np.array_equal(np.asarray(Image.open("a.png")), np.asarray(model.decode(latent)))
    image = hashlib.sha256(Path("p.png").read_bytes()).hexdigest()
    model_sha256 = model_digest(json.loads(demo_model()))
    assert read_origin("a.pt") == Origin(recipe_digest(RECIPE), image, model_sha256, "p.png")
    engine.extract(Request("p.png", RECIPE, "b.pt"))
    assert made() == {"a.pt", "a.png", "b.pt"}
    assert Path("b.pt").read_bytes() == Path("a.pt").read_bytes()


def test_notes_are_in_the_report_and_in_the_latents_file(engine, request_):
    Image.new("LA", (64, 64), (9, 128)).save("p.png")
    finished = engine.extract(Request("p.png", RECIPE | {"prompt": "red " * 100}, "a.pt"))
    *picture, cut = finished.notes
    assert any("laid on white" in note for note in picture)
    assert cut == "prompt cut: tokenizer reads 77 of its 102 tokens"
    assert read_origin("a.pt").notes == finished.notes


def test_an_item_that_nobody_waits_for_ends_at_the_next_step_and_writes_nothing(engine, request_):
    asked = []

    def step(doing: str) -> None:
        asked.append(doing)
        if asked.count("making the latent") == 3:  # asked before all, then after each step
            raise InterruptedError("its Snakemake has ended")

    with pytest.raises(InterruptedError, match="its Snakemake has ended"):
        engine.extract(request_, step)
    assert asked == ["opening the picture", WAITING, *["making the latent"] * 3]
    assert not made()


@pytest.mark.fault("picture")
def test_a_picture_that_changes_while_it_is_processed_fails_its_item(engine, request_, monkeypatch):
    def change_it(doing: str) -> None:
        if doing == "making the latent":
            os.utime("p.png", (1e9, 1e9))

    with pytest.raises(ItemError, match="the picture was changed while it was read: run again"):
        engine.extract(request_, change_it)
    assert not made()
    # After the last look at it, too, as long as the latent is not written.
    write = module.write_whole

    def late_change(path: str, content: bytes) -> None:
        write(path, content)
        if path == "a.pt":
            Path("p.png").unlink()

    monkeypatch.setattr(module, "write_whole", late_change)
    with pytest.raises(ItemError, match="was changed while it was read"):
        engine.extract(request_)
    assert made() == {"a.png"}


@pytest.mark.fault("picture")
def test_a_picture_that_cannot_be_read_is_refused_by_name(engine, request_):
    Path("p.png").write_text("no picture")
    with pytest.raises(ItemError, match=r"'p\.png' cannot be read"):
        engine.extract(request_)
    Path("p.png").unlink()
    with pytest.raises(UserError, match=r"'p\.png' cannot be read: .*No such file") as found:
        engine.extract(request_)
    assert not isinstance(found.value, ItemError)  # of the disk: on_error: skip does not leave it out


def test_too_little_memory_on_a_gpu_is_an_error_with_advice(engine, request_, monkeypatch):
    def full(*_):
        raise torch.OutOfMemoryError("tried to allocate 20 GiB")

    monkeypatch.setattr(engine.models[0], "latents", full)
    with pytest.raises(UserError, match="too little memory: use a smaller image_size or batch_size") as found:
        engine.extract(request_)
    assert not isinstance(found.value, ItemError)  # of the machine: on_error: skip does not leave it out


@pytest.mark.fault("model")
def test_a_model_that_is_not_on_this_machine_is_an_error(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("results").mkdir()
    Path(paths.MODEL).write_text(json.dumps(json.loads(demo_model()) | {"model_id": "gone", "commit": None}))
    with pytest.raises(ModelError, match="gone"):
        Engine(CONFIG, workers=1)


@pytest.mark.fault("model")
@pytest.mark.parametrize("part", ["vae", "unet"])
def test_a_model_that_was_changed_after_the_run_began_is_refused(tmp_path, monkeypatch, part):
    """By its bytes, also where only items above strength 0 load the part."""
    monkeypatch.chdir(tmp_path)
    draw(tmp_path / "p.png", (64, 64))
    shutil.copytree(paths.DEMO_MODEL, "model")
    Path("results").mkdir()
    write_model(CONFIG | {"model_id": "model"}, Path(paths.MODEL))
    weights = Path("model", part, "diffusion_pytorch_model.safetensors")
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    before = weights.stat()
    weights.write_bytes(content)
    os.utime(weights, ns=(before.st_atime_ns, before.st_mtime_ns))
    with pytest.raises(ModelError, match=rf"{part}/\S+, a file of the model, was changed after the run began"):
        Engine(CONFIG, workers=1).extract(Request("p.png", RECIPE, "a.pt"))
    assert not Path("a.pt").exists()


def test_a_cpu_has_as_many_slots_as_workers_and_cores(engine):
    assert len(engine.models) == 1
    assert engine.at_once == engine.threads == min(2, os.cpu_count() or 1)
