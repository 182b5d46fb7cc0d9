"""The pipelines: one model for several threads, what of the prompts it reads, and what it refuses."""

from __future__ import annotations

import json
import pickle
import shutil
import struct
import threading
from pathlib import Path

import pytest
import torch
from gpi_latents.core.diffusion import Model, same_bits
from gpi_latents.errors import ModelError
from gpi_latents.model.source import locate, resolve
from gpi_latents.paths import DEMO_MODEL
from helpers import families
from helpers.families import recipe as edited
from helpers.photos import PHOTOS


@pytest.mark.parametrize("family", ["stable-diffusion-xl", "flux"])
def test_threads_do_not_disturb_each_other(family_model, family):
    """Tokenizers, schedulers and pipelines keep state; the resident uses one model from several threads."""
    model = family_model(family)
    recipes = [edited(strength, seed=seed, prompt=f"{seed}") for seed, strength in enumerate([0.3, 0.6, 0.9, 1.0])]
    picture, _ = model.prepare(PHOTOS[0], recipes[0])
    alone = [model.latent(picture, recipe) for recipe in recipes]
    together = [None] * len(recipes)

    def extract(number: int) -> None:
        same_bits()
        together[number] = model.latent(picture, recipes[number])

    threads = [threading.Thread(target=extract, args=(number,)) for number in range(len(recipes))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(torch.equal(one, other) for one, other in zip(alone, together, strict=True))


def test_what_was_made_before_does_not_matter(tmp_path):
    """After an odd number of steps, this scheduler would use other orders for an even one."""
    families.stable_diffusion(tmp_path)
    file = tmp_path / "scheduler/scheduler_config.json"
    file.write_text(file.read_text().replace("{", '{"final_sigmas_type": "sigma_min", ', 1))
    recipes = [edited(1.0, scheduler="DPMSolverSinglestepScheduler", num_inference_steps=steps) for steps in (4, 3, 4)]
    model = Model(tmp_path)
    picture, _ = model.prepare(PHOTOS[0], recipes[0])
    first, _, again = (model.latent(picture, recipe) for recipe in recipes)
    assert torch.equal(first, again)


@pytest.mark.parametrize("family", ["stable-diffusion", "stable-diffusion-3"])
def test_without_guidance_there_is_no_second_pass(family_model, family):
    model = family_model(family)
    batches = []
    denoiser = model.pipelines.loaded.unet if family == "stable-diffusion" else model.pipelines.loaded.transformer
    hook = denoiser.register_forward_pre_hook(
        lambda _, args, kwargs: batches.append(len(args[0] if args else kwargs["hidden_states"])), with_kwargs=True
    )
    for guidance, expected in ((5.0, 2), (1.0, 1), (0.0, 1)):
        recipe = edited(0.5, guidance_scale=guidance)
        picture, _ = model.prepare(PHOTOS[0], recipe)
        batches.clear()
        model.latent(picture, recipe)
        assert set(batches) == {expected}
    hook.remove()


@pytest.mark.parametrize(
    ("family", "settings", "expected"),
    [
        ("stable-diffusion-3", {"image_size": 72}, "multiples of 16"),
        ("stable-diffusion-3", {"scheduler": "DDIMScheduler"}, "does not suit this model, trained with flow matching"),
        ("stable-diffusion", {"scheduler": "FlowMatchEulerDiscreteScheduler"}, "trained with a beta schedule"),
    ],
)
def test_what_does_not_suit_the_model_is_refused(family_model, family, settings, expected):
    model = family_model(family)
    recipe = edited(0.5, **settings)
    with pytest.raises(ModelError, match=expected):
        model.latent(model.prepare(PHOTOS[0], recipe)[0], recipe)


def test_a_model_whose_settings_add_noise_in_each_step_is_refused(tmp_path):
    families.stable_diffusion(tmp_path)
    file = tmp_path / "scheduler/scheduler_config.json"
    file.write_text(file.read_text().replace("{", '{"algorithm_type": "sde-dpmsolver++", ', 1))
    model = Model(tmp_path)
    recipe = edited(0.5, scheduler="DPMSolverMultistepScheduler")
    with pytest.raises(ModelError, match="draw noise in each step"):
        model.latent(model.prepare(PHOTOS[0], recipe)[0], recipe)


@pytest.mark.parametrize(
    ("family", "expected"),
    [
        ("stable-diffusion", {"prompt cut: tokenizer reads 77 of its 202 tokens"}),
        (
            "stable-diffusion-xl",
            {f"prompt cut: {name} reads 77 of its 202 tokens" for name in ("tokenizer", "tokenizer_2")},
        ),
        (
            "flux",
            {
                "prompt cut: tokenizer reads 77 of its 202 tokens",
                "prompt cut: tokenizer_2 reads 512 of its 801 tokens",
                "this model uses no negative prompt",
            },
        ),
    ],
)
def test_what_a_model_does_not_read_of_the_prompts_is_reported(family_model, family, expected):
    model = family_model(family)
    assert set(model.prompt_notes(edited(0.5, prompt="red " * 200))) == expected
    assert model.prompt_notes(edited(0.0, prompt="red " * 200)) == []
    assert not any("cut" in note for note in model.prompt_notes(edited(0.5)))


class Owner:
    """Pickled, it makes a file when it is loaded."""

    def __reduce__(self):
        return Path.touch, (Path("owned"),)


def hostile_model(kind: str, folder: Path) -> None:
    """Turn a copy of the demo's model into one that would run code."""
    evil = "import pathlib\npathlib.Path('owned').touch()\nclass Evil:\n    pass\n"
    index = json.loads((folder / "model_index.json").read_text())
    if kind == "pipeline class from a file":
        (folder / "pipeline.py").write_text(evil)
        index["_class_name"] = ["pipeline", "Evil"]
    elif kind == "scheduler class from a file":
        (folder / "scheduler/evil.py").write_text(evil)
        index["scheduler"] = ["evil", "Evil"]
    elif kind == "tokenizer class from any module":
        index["tokenizer"] = ["subprocess", "Popen"]
    elif kind == "text encoder with code":
        config = json.loads((folder / "text_encoder/config.json").read_text())
        (folder / "text_encoder/evil.py").write_text(evil)
        config["auto_map"] = {"AutoModel": "evil.Evil", "AutoConfig": "evil.Evil"}
        (folder / "text_encoder/config.json").write_text(json.dumps(config))
    elif kind == "tokenizer with code":
        config = json.loads((folder / "tokenizer/tokenizer_config.json").read_text())
        (folder / "tokenizer/evil.py").write_text(evil)
        config["auto_map"] = {"AutoTokenizer": ["evil.Evil", None]}
        (folder / "tokenizer/tokenizer_config.json").write_text(json.dumps(config))
    elif kind == "autoencoder class":
        config = json.loads((folder / "vae/config.json").read_text())
        (folder / "vae/config.json").write_text(json.dumps(config | {"_class_name": "DiffusionPipeline"}))
    elif kind == "huge header":
        (folder / "vae/diffusion_pytorch_model.safetensors").write_bytes(struct.pack("<Q", 2**62) + b"{}")
    elif kind == "pickle named safetensors":
        (folder / "unet/diffusion_pytorch_model.safetensors").write_bytes(pickle.dumps(Owner()))
    (folder / "model_index.json").write_text(json.dumps(index))


@pytest.mark.fault("stranger")
@pytest.mark.parametrize(
    "kind",
    [
        "pipeline class from a file",
        "scheduler class from a file",
        "tokenizer class from any module",
        "text encoder with code",
        "tokenizer with code",
        "autoencoder class",
        "pickle named safetensors",
        "huge header",
    ],
)
def test_a_hostile_model_folder_executes_nothing(tmp_path, monkeypatch, kind):
    """It is refused, or loaded without the code."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(DEMO_MODEL, "model")
    hostile_model(kind, Path("model"))
    recipe = edited(1.0, num_inference_steps=2)
    refusal = ""
    try:
        loaded = Model(**locate(resolve("model")))
        picture, _ = loaded.prepare(PHOTOS[0], recipe)
        loaded.latent(picture, recipe)
    except ModelError as error:
        refusal = str(error)
    assert bool(refusal) != (kind in ("text encoder with code", "tokenizer with code")), refusal
    assert not list(tmp_path.rglob("owned"))
