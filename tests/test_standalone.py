"""`extract_images` takes the place of gpi_pack's function of that name, without Snakemake."""

from __future__ import annotations

import importlib.util
from dataclasses import replace
from pathlib import Path

import gpi_latents
import numpy as np
import pandas as pd
import pytest
import torch
from diffusers import DDIMScheduler, StableDiffusionXLImg2ImgPipeline
from gpi_latents import extract_images, paths, standalone
from gpi_latents.core.diffusion import Model, same_bits
from gpi_latents.errors import ItemError
from gpi_latents.origin import read_origin
from gpi_latents.paths import DEMO_MODEL
from gpi_latents.resident.engine import Engine, Request
from gpi_latents.study.settings import load_config
from helpers import families
from helpers.bench import RECIPE, demo_model
from helpers.study import draw
from PIL import Image
from safetensors.torch import load_file, save_file


@pytest.fixture
def pictures(tmp_path) -> list[Path]:
    return [draw(tmp_path / f"{n}.png", size, seed=n) for n, size in enumerate([(64, 64), (100, 60), (600, 300)])]


def read(paths: list[Path]) -> list[torch.Tensor]:
    return [torch.load(path, weights_only=True) for path in paths]


def test_the_example_of_the_references_documentation_works(pictures, tmp_path):
    paths = extract_images(
        images=[str(path) for path in pictures],
        prompts=["no change"] * 3,
        output_hidden_dir=str(tmp_path / "hidden"),
        output_image_dir=str(tmp_path / "images"),
        save_name="image",
        prefix_hidden="hidden_",
        model_id="demo",
        strength=0,
    )
    assert paths == [tmp_path / f"hidden/hidden__{n}.pt" for n in range(3)]
    latents = read(paths)
    assert [latent.dtype for latent in latents] == [torch.float32] * 3
    assert [tuple(latent.shape) for latent in latents] == [(1, 4, 8, 8), (1, 4, 8, 13), (1, 4, 32, 64)]
    sizes = [Image.open(tmp_path / f"images/image_{n}.png").size for n in range(3)]
    assert sizes == [(64, 64), (104, 64), (512, 256)]


def test_its_latents_are_those_of_the_workflow(pictures, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("results").mkdir()
    Path(paths.MODEL).write_text(demo_model())
    engine = Engine(load_config({"model_id": "demo", "device": "cpu"}), workers=1)
    contain = {"model_id": "demo", "revision": None, "dtype": "float32", "image_size": 512, "resize": "contain"}
    settings = {"strength": 0.5, "num_inference_steps": 4, "seed": 5}
    made = extract_images(pictures, "a red circle", tmp_path / "function", model_id="demo", **settings)
    for picture, path in zip(pictures, made, strict=True):
        engine.extract(Request(str(picture), RECIPE | contain | settings | {"scheduler": "auto"}, "a.pt"))
        assert torch.equal(*read([path, Path("a.pt")]))
        assert read_origin(path) == replace(read_origin("a.pt"), model_sha256="")


def test_its_batches_give_the_latents_of_the_workflow(pictures, tmp_path, monkeypatch):
    """Two of its pictures have one size; a batch that is not full gives the same as a full one."""
    monkeypatch.chdir(tmp_path)
    Path("results").mkdir()
    Path(paths.MODEL).write_text(demo_model())
    engine = Engine(load_config({"model_id": "demo", "device": "cpu", "batch_size": 2}), workers=1)
    contain = {"revision": None, "dtype": "float32", "image_size": 512, "resize": "contain", "batch_size": 2}
    settings = {"strength": 0.5, "num_inference_steps": 4, "seed": 5}
    given = [pictures[0], pictures[0], *pictures]
    made = extract_images(given, "a red circle", "function", "images", model_id="demo", batch_size=2, **settings)
    assert [path.name for path in made] == [f"hidden_{number}.pt" for number in range(5)]
    for number, (picture, path) in enumerate(zip(given, made, strict=True)):
        chosen = RECIPE | contain | settings | {"scheduler": "auto"}
        engine.extract(Request(str(picture), chosen, "a.pt", "a.png", alone=True))
        assert torch.equal(*read([path, Path("a.pt")]))
        assert read_origin(path) == replace(read_origin("a.pt"), model_sha256="")
        assert Path(f"images/gen_{number}.png").read_bytes() == Path("a.png").read_bytes()


def test_no_module_takes_the_name_of_a_public_function():
    for name in gpi_latents.__all__:
        assert importlib.util.find_spec(f"gpi_latents.{name}") is None
        assert callable(getattr(gpi_latents, name))


@pytest.mark.parametrize("kind", [str, Path, Image.open])
def test_one_picture_may_be_a_text_a_path_or_an_open_picture(pictures, tmp_path, kind):
    expected = extract_images(pictures[:1], ["x"], tmp_path / "a", model_id="demo", seed=1)
    paths = extract_images(kind(pictures[0]), "x", tmp_path / "b", model_id="demo", seed=1)
    assert torch.equal(*read([expected[0], paths[0]]))


def test_existing_files_are_replaced_and_nothing_else_is_made(pictures, tmp_path):
    first = extract_images(pictures[0], "x", tmp_path / "out", model_id="demo", seed=1)
    before = read(first)[0]
    again = extract_images(pictures[0], "x", tmp_path / "out", model_id="demo", seed=2)
    assert first == again
    assert not torch.equal(before, read(again)[0])
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["hidden_0.pt"]
    extract_images(pictures[0], "x", tmp_path / "out", model_id="demo", seed=1)
    assert torch.equal(before, read(first)[0])


def test_without_a_seed_chance_differs_from_picture_to_picture(pictures, tmp_path):
    one, other = read(extract_images([pictures[0]] * 2, "x", tmp_path / "out", model_id="demo"))
    assert not torch.equal(one, other)


def test_a_drawn_seed_is_one_that_can_be_given(pictures, tmp_path, monkeypatch):
    monkeypatch.setattr("secrets.randbelow", lambda limit: limit - 1)
    [drawn] = extract_images(pictures[0], "x", tmp_path / "a", model_id="demo")
    [given] = extract_images(pictures[0], "x", tmp_path / "b", model_id="demo", seed=2**32 - 1)
    assert drawn.read_bytes() == given.read_bytes()


def test_no_negative_prompt_and_an_empty_one_are_diffusers_none_and_empty(pictures, tmp_path):
    """XL's pipeline takes zeros for none."""
    folder = families.model("stable-diffusion-xl", tmp_path)
    pipeline = StableDiffusionXLImg2ImgPipeline.from_pretrained(folder)
    pipeline.scheduler = DDIMScheduler.from_config(pipeline.scheduler.config, clip_sample=False)
    options = {"strength": 0.5, "num_inference_steps": 4, "guidance_scale": 5.0}
    same_bits()
    made = []
    for negative in (None, "", "blue"):
        settings = options | {"negative_prompt": negative}
        [path] = extract_images(pictures[0], "a red circle", tmp_path / "out", model_id=folder, seed=5, **settings)
        generator = torch.Generator("cpu").manual_seed(5)
        given = {"prompt": "a red circle", "image": Image.open(pictures[0]), "generator": generator}
        made += read([path])
        assert torch.equal(made[-1], pipeline(**given, **settings, output_type="latent").images)
    assert not torch.equal(made[0], made[1])


def test_the_model_is_loaded_once_for_repeated_calls_until_its_files_change(pictures, tmp_path, monkeypatch):
    folder = families.model("stable-diffusion", tmp_path)
    loaded = []
    monkeypatch.setattr(standalone, "Model", lambda **given: loaded.append(given) or Model(**given))
    [first] = read(extract_images(pictures[0], "x", tmp_path / "out", model_id=folder, seed=1))
    [again] = read(extract_images(pictures[0], "x", tmp_path / "out", model_id=folder, seed=1))
    assert torch.equal(first, again)
    assert len(loaded) == 1
    file = folder / "vae/diffusion_pytorch_model.safetensors"
    save_file({name: 2 * weights for name, weights in load_file(file).items()}, file, {"format": "pt"})
    [trained] = read(extract_images(pictures[0], "x", tmp_path / "out", model_id=folder, seed=1))
    assert not torch.equal(first, trained)


def test_columns_of_a_table_and_numbers_of_numpy_are_accepted(pictures, tmp_path):
    paths = [str(path) for path in pictures]
    expected = read(
        extract_images(
            paths, ["a", "b", "c"], tmp_path / "a", model_id="demo", strength=0.5, num_inference_steps=4, seed=3
        )
    )
    table = pd.DataFrame({"image": paths, "prompt": ["a", "b", "c"]}, index=[7, 8, 9])
    numbers = {"strength": np.float32(0.5), "num_inference_steps": np.int32(4), "seed": np.int64(3)}
    for images, prompts in (
        (table["image"], table["prompt"]),
        (np.array(paths), np.array(["a", "b", "c"])),
        ((path for path in pictures), table["prompt"].to_numpy()),
    ):
        made = extract_images(images, prompts, tmp_path / "b", model_id="demo", device="auto", **numbers)
        assert all(torch.equal(one, other) for one, other in zip(expected, read(made), strict=True))


def test_a_relative_model_is_another_one_in_another_working_directory(pictures, tmp_path, monkeypatch):
    made = []
    for name, family in (("one", "stable-diffusion"), ("two", "stable-diffusion-tiny-vae")):
        (tmp_path / name).mkdir()
        families.model(family, tmp_path).rename(tmp_path / name / "model")
        monkeypatch.chdir(tmp_path / name)
        made += read(extract_images(pictures[0], "x", "out", model_id="model", seed=1))
    assert not torch.equal(*made)
    # What is loaded later comes from the same model.
    monkeypatch.chdir(tmp_path)
    options = {"strength": 1, "num_inference_steps": 2, "seed": 1}
    extract_images(pictures[0], "x", "out", model_id="two/model", **options)


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        ({"prompts": ["a", None, "c"]}, r"prompts\[1\] is of the type NoneType, not a text"),
        ({"images": np.zeros((1, 8, 8, 3))}, r"images\[0\] is of the type ndarray, not a path or a PIL picture"),
        ({"prompts": ["a", "b"]}, "3 images and 2 prompts"),
        ({"strength": 1.5}, "strength: 1.5 must be at most 1"),
        ({"strength": 0.01, "num_inference_steps": 20}, "makes no step at all"),
        ({"guidance_scale": float("nan")}, "not a finite number"),
        ({"seed": -1}, "seed: -1 must be at least 0"),
        ({"seed": np.uint64(2**32)}, "seed: 4294967296 must be at most 4294967295"),
        ({"save_name": "../x"}, "save_name"),
        ({"device": "tpu"}, "device"),
        ({"model_id": "no such model"}, "is neither 'demo' nor a folder"),
    ],
)
def test_impossible_settings_are_refused_before_anything_is_loaded_or_written(pictures, tmp_path, settings, problem):
    given = {"images": pictures, "prompts": "x", "output_hidden_dir": tmp_path / "out", "model_id": "demo"} | settings
    with pytest.raises(ValueError, match=problem):
        extract_images(**given)
    assert not (tmp_path / "out").exists()


def test_a_bad_picture_is_named_and_those_before_it_are_done(pictures, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"images\[1\]: no such file"):
        extract_images([pictures[0], "nowhere.png"], "x", tmp_path / "out", model_id="demo")
    assert not (tmp_path / "out").exists()
    pictures[1].write_text("no picture")
    with pytest.raises(ItemError, match=r"images\[1\]: the picture .* cannot be read"):
        extract_images(pictures, "x", tmp_path / "out", model_id="demo")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["hidden_0.pt"]


def test_settings_of_the_callers_torch_stay_as_they_are(pictures, tmp_path):
    torch.use_deterministic_algorithms(False)
    torch.set_num_threads(2)
    random = torch.random.get_rng_state()
    try:
        extract_images(pictures[0], "x", tmp_path / "out", model_id="demo", strength=0.5, seed=1)
        assert torch.get_num_threads() == 2
        assert not torch.are_deterministic_algorithms_enabled()
        assert torch.equal(random, torch.random.get_rng_state())
    finally:
        same_bits()


def test_a_progress_bar_is_shown_and_a_cut_prompt_is_reported(pictures, tmp_path, capsys):
    with pytest.warns(UserWarning, match=r"images\[0\]: prompt cut"):
        extract_images(
            pictures[0], "red " * 100, tmp_path / "out", model_id="demo", strength=0.5, num_inference_steps=2
        )
    assert "Extracting: 100%" in capsys.readouterr().err


def test_a_picture_is_the_decoded_latent(pictures, tmp_path):
    paths = extract_images(pictures[0], "x", tmp_path / "a", tmp_path / "b", model_id="demo", seed=1)
    shown = np.asarray(Image.open(tmp_path / "b/gen_0.png"))
    assert np.array_equal(shown, np.asarray(Model(DEMO_MODEL).decode(read(paths)[0])))
