"""The config: which keys and values are accepted, and which are refused with which words."""

from __future__ import annotations

import datetime
import json
import re
import runpy

import pytest
import yaml
from gpi_latents.study.settings import KEYS, load_config, meaning
from helpers.sheets import refused_config
from helpers.study import ROOT
from jsonschema import Draft202012Validator


def test_every_key_has_a_default_of_its_type_and_comes_in_the_documented_order():
    config = load_config({})
    assert list(config) == list(KEYS)
    assert config["model_id"] == "stable-diffusion-v1-5/stable-diffusion-v1-5"
    for key in ("strength", "resident_idle_seconds"):
        assert isinstance(config[key], float)


@pytest.mark.parametrize(
    ("key", "one", "other", "kind"),
    [
        ("strength", 1, 1.0, float),
        ("guidance_scale", 7, 7.0, float),
        ("num_inference_steps", 20, 20.0, int),
        ("seed", 3, 3.0, int),
        ("image_size", 64, 64.0, int),
        ("image_size", [64, 96], [64.0, 96], list),
    ],
)
def test_a_number_has_one_type_however_it_is_written(key, one, other, kind):
    values = [load_config({key: value})[key] for value in (one, other)]
    assert [json.dumps(value) for value in values] == [json.dumps(kind(one))] * 2
    assert isinstance(values[1], kind)


@pytest.mark.fault("config")
def test_all_problems_of_the_config_are_shown_at_once():
    given = {"seeds": 1, 7: 1, "strength": 2, "items": 5, "resize": "padd", "image_size": 100}
    message = refused_config(given | {"revision": datetime.date(2026, 1, 1), "posterior": "Mode"})
    assert message.startswith("The config has 8 errors:\n")
    for part in (
        "unknown key 'seeds': did you mean 'seed'?",
        "unknown key 7\n",
        "key strength: 2 must be at most 1",
        "key items: 5 is not a text; one that looks like a number, a date, true or false needs quotes",
        "in the config file: items: '...'. The sheet, a CSV file with one row per item.\n",
        "config file: revision: '...'. Branch, tag or commit",
        "key resize: 'padd' is not one of 'pad', 'crop', 'stretch' or 'contain'\n",
        "key posterior: 'Mode' is not one of 'sample' or 'mode'",
        "key image_size: 100 must be a multiple of 8\n",
    ):
        assert part in message


@pytest.mark.fault("config")
@pytest.mark.parametrize("key", KEYS)
def test_a_value_of_the_wrong_kind_is_refused_by_its_key(key):
    for value in ({"a": 1}, [{}], float("nan"), b"x"):
        assert f"key {key}: " in refused_config({key: value})
    if load_config({})[key] is not None and key != "output_image_dir":
        assert f"key {key}: None is not" in refused_config({key: None})


@pytest.mark.fault("config")
@pytest.mark.parametrize(
    ("given", "problem"),
    [
        ({"strength": float("nan")}, "key strength: nan is not a finite number"),
        ({"strength": True}, "key strength: True is not a number. How far the picture is changed"),
        ({"strength": "0.5"}, "key strength: '0.5' is not a number"),
        ({"strength": -0.1}, "key strength: -0.1 must be at least 0"),
        ({"guidance_scale": 1000.5}, "key guidance_scale: 1000.5 must be at most 1000"),
        ({"guidance_scale": 10**400}, "key guidance_scale: 1000"),
        ({"num_inference_steps": 2.5}, "key num_inference_steps: 2.5 is not a whole number"),
        ({"num_inference_steps": 0}, "key num_inference_steps: 0 must be at least 1"),
        ({"num_inference_steps": 1000}, "key num_inference_steps: 1000 must be at most 999"),
        ({"seed": True}, "key seed: True is not a whole number"),
        ({"seed": -1}, "key seed: -1 must be at least 0"),
        ({"seed": 2**32}, "key seed: 4294967296 must be at most 4294967295"),
        ({"resident": 1}, "key resident: 1 is not true or false. Whether one process per node"),
        ({"resident": "false"}, "key resident: 'false' is not true or false"),
        ({"resident_idle_seconds": 0.5}, "key resident_idle_seconds: 0.5 must be at least 1"),
        ({"resident_idle_seconds": 86401}, "key resident_idle_seconds: 86401 must be at most 86400"),
        ({"image_size": 0}, "key image_size: 0 must be at least 8"),
        ({"image_size": 8200}, "key image_size: 8200 must be at most 8192"),
        ({"image_size": [64, 100]}, "key image_size: 100 must be a multiple of 8"),
        ({"image_size": [64]}, "key image_size: [64] must have two numbers, [height, width]"),
        ({"image_size": [64, 64, 64]}, "key image_size: [64, 64, 64] must have two numbers"),
        ({"image_size": True}, "key image_size: True is not a whole number"),
        ({"image_size": [True, 64]}, "key image_size: "),
        ({"image_size": "64"}, "key image_size: '64' is not a whole number"),
        ({"device": "gpu"}, "key device: 'gpu' is not a valid text. Where the model runs"),
        ({"device": "cpu\n"}, r"key device: 'cpu\n' is not a valid text"),
        ({"dtype": "float64"}, "key dtype: 'float64' is not one of 'float32', 'float16' or 'bfloat16'"),
        ({"variant": "a b"}, "key variant: 'a b' is not a valid text"),
        ({"items": ""}, "key items: it is empty"),
        ({"vae_id": ""}, "key vae_id: it is empty"),
        ({"report_color": ""}, "key report_color: it is empty"),
        ({"negative_prompt": "x" * 10001}, "the text has 10001 characters, more than 10000"),
        ({"prefix_hidden": "a/b"}, "key prefix_hidden: 'a/b' is not a valid text"),
        ({"prefix_hidden": "a\n"}, r"key prefix_hidden: 'a\n' is not a valid text"),
        ({"save_name": "x" * 65}, "key save_name: "),
        ({"stacked": "-R/all.pt"}, "below the working directory, not beginning with `-`"),
        ({"stacked": "results/latents.csv"}, "key stacked: 'results/latents.csv' is not a valid text"),
        ({"stacked": "results/hidden/hidden_a.pt"}, "key stacked: it would be among the items' own files"),
        ({"stacked": "results//images/a.npy"}, "key stacked: it would be among the items' own files"),
        ({"strength": 0.01}, "keys strength and num_inference_steps: strength 0.01 of 50 steps makes no step"),
        ({"resize": "contain", "image_size": [64, 96]}, "key image_size: resize 'contain' limits the longest side"),
        ({"vae_id": "vae.safetensors"}, "key vae_id: a single file has no config"),
        ({"model_id": "no such model"}, "key model_id: 'no such model' is neither 'demo' nor a folder"),
        ({"vae_id": "no such model"}, "key vae_id: 'no such model' is neither"),
        ({"model_id": "m{o}del"}, "key model_id: 'm{o}del' has braces"),
        ({"model_id": "<logs>/m"}, "key model_id: Snakemake would replace '<logs>' in a path"),
        ({"vae_id": "<logs>/m"}, "key vae_id: Snakemake would replace '<logs>' in a path"),
        ({"scheduler": "DDPMScheduler"}, "key scheduler: DDPMScheduler draws noise in each step"),
        ({"scheduler": "NoScheduler"}, "key scheduler: 'NoScheduler' is not one of 'auto', 'DDIMScheduler'"),
    ],
)
def test_a_config_that_cannot_work_is_refused(given, problem):
    message = refused_config(given)
    assert message.startswith("The config has 1 error:\n  - ")
    assert problem in message
    assert len(message) < 1000


@pytest.mark.fault("config")
@pytest.mark.parametrize("path", ["/tmp/x", "../x", "a/../../x", "~/x", "a{b}", "a<b>", ".", "a/.", "", "a\n", "a\0"])
@pytest.mark.parametrize("key", ["output_hidden_dir", "output_image_dir", "stacked"])
def test_results_stay_below_the_working_directory(key, path):
    assert f"key {key}: " in refused_config({key: path + ".pt" if key == "stacked" and path[-1:] == "x" else path})


def test_a_scheduler_that_draws_noise_is_accepted_if_that_is_allowed():
    load_config({"scheduler": "LCMScheduler", "allow_stochastic_scheduler": True})


def test_texts_of_the_command_line_become_what_a_config_file_would_hold():
    given = {
        "output_image_dir": "null",
        "negative_prompt": "None",
        "revision": "~",
        "variant": "",
        "resident": "false",
        "report": "Off",
        "allow_stochastic_scheduler": "yes",
        "image_size": ["64", "96"],
        "strength": "0.5",
        "seed": "4294967295",
        "items": "null",
        "cache_dir": "false",
    }
    config = load_config(given, given)
    assert [config[key] for key in ("output_image_dir", "negative_prompt", "revision", "variant")] == [None] * 4
    assert (config["resident"], config["report"], config["allow_stochastic_scheduler"]) == (False, False, True)
    assert config["image_size"] == [64, 96]
    assert (config["strength"], config["seed"]) == (0.5, 2**32 - 1)
    assert (config["items"], config["cache_dir"]) == ("null", "false")


@pytest.mark.fault("config")
def test_texts_of_the_command_line_that_cannot_be_are_refused():
    given = {"seed": "x", "strength": "null", "image_size": ["x", "64"], "guidance_scale": "2000", "resident": "maybe"}
    message = refused_config(given | {"items": 1}, (*given, "items"))  # items=001 on the command line
    assert "has 6 errors" in message
    for part in (
        "key seed: 'x' is not a whole number",
        "key strength: 'null' is not a number",
        "key image_size: ",
        "key guidance_scale: 2000.0 must be at most 1000",
        "key resident: 'maybe' is not true or false",
        "needs quotes in the config file: items: '...'",
    ):
        assert part in message
    assert "key image_size: 'x' is not a whole number" in refused_config({"image_size": "x"}, ("image_size",))


def test_what_is_generated_from_the_settings_is_up_to_date():
    for path, text in runpy.run_path(str(ROOT / "scripts/reference.py"))["texts"]().items():
        assert path.read_text(encoding="utf-8") == text, f"{path.name} is out of date: run make reference"


def test_the_readme_and_the_schema_for_editors_have_every_key_and_column():
    readme = (ROOT / "config/README.md").read_text(encoding="utf-8")
    documented = re.findall(r"^\| `(\w+)` \|.* ([^ |]+) \|$", readme, re.MULTILINE)
    columns = ["id", "image", "prompt", "negative_prompt", "strength", "guidance_scale", "num_inference_steps", "seed"]
    assert [name for name, _ in documented] == [*KEYS, *columns, "draws"]
    schema = json.loads((ROOT / "config/schema.json").read_text(encoding="utf-8"))
    assert list(schema["properties"]) == list(KEYS)
    assert all(rule["description"].endswith((".", "`.")) for rule in schema["properties"].values())
    validator = Draft202012Validator(schema)
    assert validator.is_valid(load_config({}))
    wrong = {"seed": -1, "strength": 2, "image_size": [64], "resize": "padd", "stacked": "/a.pt", "seeds": 1}
    for key, value in wrong.items():
        assert not validator.is_valid({key: value}), key


def test_the_demos_config_shows_every_key_with_its_default():
    shown = (ROOT / "config/config.yaml").read_text(encoding="utf-8")
    for key, field in KEYS.items():
        assert meaning(field)
        lines = re.findall(rf"^#? ?({key}: .*?)(?:  +#| #|$)", shown, re.MULTILINE)
        assert lines, f"config.yaml does not show {key}"
        assert field.default in [yaml.safe_load(line)[key] for line in lines]
