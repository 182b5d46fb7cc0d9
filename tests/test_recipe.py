"""The recipe: what decides a latent, and nothing else; the same text for ever, or every old latent runs again."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pandas as pd
import pytest
from gpi_latents.recipe import canonical, recipe, recipe_digest, steps_problem, text_digest
from gpi_latents.study.settings import load_config
from gpi_latents.study.sheet import index_table, read_items

CONFIG = load_config({"model_id": "demo"})
ITEM = {
    "prompt": "x",
    "negative_prompt": "n",
    "strength": 0.5,
    "guidance_scale": 3.0,
    "num_inference_steps": 20,
    "seed": 7,
}


def chosen(config=CONFIG, **values) -> dict:
    return recipe(config, SimpleNamespace(**(ITEM | values)))


def test_a_recipe_holds_what_decides_the_latent_and_nothing_else():
    prompt_settings = {"prompt", "negative_prompt", "guidance_scale", "num_inference_steps", "scheduler"}
    assert prompt_settings <= chosen().keys()
    assert not prompt_settings & chosen(strength=0.0).keys()
    assert "seed" in chosen(strength=0.0)
    assert "seed" not in chosen(CONFIG | {"posterior": "mode"}, strength=0.0)
    assert "seed" in chosen(CONFIG | {"posterior": "mode"})
    assert "negative_prompt" not in chosen(guidance_scale=1.0)
    for key in ("device", "resident", "report", "cache_dir", "output_hidden_dir", "allow_pickle", "items"):
        assert chosen(CONFIG | {key: "other"}) == chosen()


def test_an_empty_negative_prompt_has_a_recipe_of_its_own_where_there_is_guidance():
    """For Stable Diffusion XL it is not the same as none, whose recipe stays what both once had."""
    none, empty = chosen(negative_prompt=None), chosen(negative_prompt="")
    assert none == chosen(negative_prompt="n") | {"negative_prompt": ""}
    assert empty == none | {"empty_negative_prompt": True}
    for without in ({"guidance_scale": 1.0}, {"strength": 0.0}):
        assert chosen(negative_prompt=None, **without) == chosen(negative_prompt="", **without)


def test_a_blank_cell_takes_the_configs_empty_negative_prompt(tmp_path):
    (tmp_path / "sheet.csv").write_text("image,prompt,negative_prompt\na.png,x,\nb.png,x,blue\n")
    recipes = {}
    for text in (None, ""):
        given = {"model_id": "demo", "strength": 0.5, "negative_prompt": text, "items": str(tmp_path / "sheet.csv")}
        config = load_config(given)
        items = read_items(config, check_images=False)
        recipes[text] = [recipe(config, item) for item in items.itertuples()]
        assert index_table(items, recipes[text])["negative_prompt"].tolist() == ["", "blue"]
    assert recipes[""][0] == recipes[None][0] | {"empty_negative_prompt": True}
    assert recipes[""][1] == recipes[None][1]


@pytest.mark.parametrize(
    "key", ["model_id", "revision", "variant", "vae_id", "dtype", "image_size", "resize", "posterior", "scheduler"]
)
def test_a_key_that_decides_the_latent_is_in_the_recipe(key):
    assert recipe_digest(chosen(CONFIG | {key: "other"})) != recipe_digest(chosen())


def test_only_a_batch_size_above_1_is_in_the_recipe():
    """So that no older latent is made again; at strength 0 too, where other kernels run as well."""
    assert chosen(CONFIG | {"batch_size": 1}) == chosen()
    for strength in (0.0, 0.5):
        assert chosen(CONFIG | {"batch_size": 4}, strength=strength) == chosen(strength=strength) | {"batch_size": 4}


# Made by the code of version 0.1.0, before there was a package. Never adapt these to the code.
EXAMPLES = [
    (
        {},
        {},
        '{"dtype":"float32","image_size":null,"model_id":"demo","posterior":"sample","resize":"pad","revision":null,'
        '"seed":0,"strength":0.0,"version":1}',
    ),
    (
        {"posterior": "mode"},
        {"seed": "7"},
        '{"dtype":"float32","image_size":null,"model_id":"demo","posterior":"mode","resize":"pad","revision":null,'
        '"strength":0.0,"version":1}',
    ),
    (
        {"strength": 1, "seed": 3.0},
        {"prompt": "a red circle"},
        '{"dtype":"float32","guidance_scale":7.5,"image_size":null,"model_id":"demo","negative_prompt":"",'
        '"num_inference_steps":50,"posterior":"sample","prompt":"a red circle","resize":"pad","revision":null,'
        '"scheduler":"auto","seed":3,"strength":1.0,"version":1}',
    ),
    (
        {"strength": 0.5},
        {"prompt": 'say "é", 図\nand \\ so', "negative_prompt": "blurry"},
        '{"dtype":"float32","guidance_scale":7.5,"image_size":null,"model_id":"demo","negative_prompt":"blurry",'
        '"num_inference_steps":50,"posterior":"sample","prompt":"say \\"é\\", 図\\nand \\\\ so","resize":"pad",'
        '"revision":null,"scheduler":"auto","seed":0,"strength":0.5,"version":1}',
    ),
    (
        {"strength": 0.5, "guidance_scale": 1},
        {"negative_prompt": "no effect"},
        '{"dtype":"float32","guidance_scale":1.0,"image_size":null,"model_id":"demo","num_inference_steps":50,'
        '"posterior":"sample","prompt":"p","resize":"pad","revision":null,"scheduler":"auto","seed":0,"strength":0.5,'
        '"version":1}',
    ),
    (
        {"posterior": "mode", "negative_prompt": "grey"},
        {"strength": "1e-1", "num_inference_steps": "20.0", "guidance_scale": "3", "seed": "4294967295"},
        '{"dtype":"float32","guidance_scale":3.0,"image_size":null,"model_id":"demo","negative_prompt":"grey",'
        '"num_inference_steps":20,"posterior":"mode","prompt":"p","resize":"pad","revision":null,"scheduler":"auto",'
        '"seed":4294967295,"strength":0.1,"version":1}',
    ),
    (
        {
            "image_size": 512.0,
            "resize": "crop",
            "dtype": "float16",
            "variant": "fp16",
            "vae_id": "stabilityai/sd-vae-ft-mse",
            "revision": "main",
        },
        {"seed": "4294967294"},
        '{"dtype":"float16","image_size":512,"model_id":"demo","posterior":"sample","resize":"crop","revision":"main",'
        '"seed":4294967294,"strength":0.0,"vae_id":"stabilityai/sd-vae-ft-mse","variant":"fp16","version":1}',
    ),
    (
        {"image_size": [64, 96], "resize": "stretch", "scheduler": "EulerDiscreteScheduler", "strength": 1},
        {"guidance_scale": " +7. ", "seed": ""},
        '{"dtype":"float32","guidance_scale":7.0,"image_size":[64,96],"model_id":"demo","negative_prompt":"",'
        '"num_inference_steps":50,"posterior":"sample","prompt":"p","resize":"stretch","revision":null,'
        '"scheduler":"EulerDiscreteScheduler","seed":0,"strength":1.0,"version":1}',
    ),
    (
        {"scheduler": "LCMScheduler", "allow_stochastic_scheduler": True, "device": "cuda:1", "resident": False},
        {"strength": ".25", "num_inference_steps": "999"},
        '{"dtype":"float32","guidance_scale":7.5,"image_size":null,"model_id":"demo","negative_prompt":"",'
        '"num_inference_steps":999,"posterior":"sample","prompt":"p","resize":"pad","revision":null,'
        '"scheduler":"LCMScheduler","seed":0,"strength":0.25,"version":1}',
    ),
]


@pytest.mark.parametrize(("given", "cells", "expected"), EXAMPLES)
def test_recipes_are_byte_for_byte_what_they_always_were(tmp_path, given, cells, expected):
    row = {"id": "u", "image": "a.png", "prompt": "p"} | cells
    pd.DataFrame([row]).to_csv(tmp_path / "sheet.csv", index=False)
    config = load_config({"model_id": "demo", "items": str(tmp_path / "sheet.csv")} | given)
    [item] = read_items(config, check_images=False).itertuples()
    assert canonical(recipe(config, item)) == expected
    assert recipe_digest(json.loads(expected)) == text_digest(expected)


def test_values_of_the_command_line_give_the_same_recipe_as_those_of_a_file():
    given = {"strength": "0.5", "image_size": ["64", "96"], "negative_prompt": "null", "seed": 7, "revision": "none"}
    in_file = {"strength": 0.5, "image_size": [64, 96], "negative_prompt": None, "seed": 7, "revision": None}
    for text, value in ((load_config(given, given), load_config(in_file)),):
        assert canonical(text) == canonical(value)


def test_the_index_tables_digest_is_what_it_always_was(tmp_path):
    """The rule stack has it as a parameter, so that another digest would stack old studies again."""
    text = (
        'id,image,prompt,strength,seed,Y,note\n001,a.png,"a ""x"", é",0.5,,1,NA\nb,a.png,"two\nlines",,5,007,\n'
        '-c,a.png,,1,4294967295,1e400,"\r\n"\n'
    )
    (tmp_path / "sheet.csv").write_bytes(text.encode())
    given = {"model_id": "demo", "num_inference_steps": 20, "negative_prompt": "grey"}
    config = load_config(given | {"items": str(tmp_path / "sheet.csv")})
    items = read_items(config, check_images=False)
    table = index_table(items, [recipe(config, item) for item in items.itertuples()])
    digest = "913976071e137213cfacf7378fac3d30586f794f5ecd7527483e09f403b991e5"
    assert text_digest(table.to_csv(index=False)) == digest


def test_a_digest_does_not_depend_on_the_order_of_the_keys():
    digest = "821dcba40aad4ab5a2d27064bd0efbd276edd8a703c4e6c4d4643e20e8d52494"
    assert recipe_digest({"a": 1, "é": None}) == recipe_digest({"é": None, "a": 1}) == digest


def test_a_strength_that_makes_no_step_is_refused_with_the_least_that_does():
    assert "strength 0.01 of 50 steps makes no step" in steps_problem(0.01, 50)
    assert "at least 0.02" in steps_problem(0.01, 50)
    assert steps_problem(0.02, 50) == steps_problem(0.0, 1) == ""
