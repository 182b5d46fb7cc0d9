"""Which models work: what does not is refused by name, before any job."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from gpi_latents.errors import InputError, ModelError
from gpi_latents.model.family import model_files, model_id_problem, model_identity
from gpi_latents.model.source import locate, resolve
from gpi_latents.paths import DEMO_MODEL
from gpi_latents.study.settings import load_config
from helpers.checkpoints import PICKLED, UNET


@pytest.fixture
def folder(tmp_path) -> Path:
    """A copy of the demo's model without its weights."""
    return Path(shutil.copytree(DEMO_MODEL, tmp_path / "model", ignore=shutil.ignore_patterns("*.safetensors")))


@pytest.mark.fault("model")
@pytest.mark.parametrize(
    "name",
    [
        "KandinskyV22Pipeline",
        "IFPipeline",
        "StableVideoDiffusionPipeline",
        "WanPipeline",
        "LatentConsistencyModelPipeline",
        "StableDiffusionPAGPipeline",
        "StableDiffusionXLPAGPipeline",
        "StableDiffusionInpaintPipeline",
        "StableDiffusionUpscalePipeline",
        "StableDiffusionInstructPix2PixPipeline",
        "StableDiffusionControlNetPipeline",
        "FluxFillPipeline",
        "FluxKontextPipeline",
        "Flux2Pipeline",
    ],
)
def test_a_family_that_cannot_work_is_refused_before_any_job(folder, name):
    index = folder / "model_index.json"
    index.write_text(index.read_text().replace('"StableDiffusionPipeline"', f'"{name}"'))
    for refuse in (lambda: load_config({"model_id": str(folder)}), lambda: resolve(str(folder))):
        with pytest.raises((InputError, ModelError)) as refused:
            refuse()
        for text in (name, "Stable Diffusion 1.x and 2.x; Stable Diffusion XL; Stable Diffusion 3 and 3.5; FLUX.1"):
            assert text in str(refused.value)


@pytest.mark.parametrize("name", ["StableDiffusionImg2ImgPipeline", "StableDiffusionXLPipeline", "FluxImg2ImgPipeline"])
def test_both_pipelines_of_a_family_are_taken(folder, name):
    index = folder / "model_index.json"
    index.write_text(index.read_text().replace('"StableDiffusionPipeline"', f'"{name}"'))
    assert load_config({"model_id": str(folder)})["model_id"] == str(folder)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "is no model in diffusers' layout: it has no model_index.json"),
        ("{", r"model_index\.json is damaged"),
        ("[]", r"model_index\.json is damaged"),
        ('{"_class_name": "FluxPipeline", "vae": []}', r"its model_index\.json has no vae"),
    ],
)
def test_a_model_without_a_usable_index_is_refused(folder, content, message):
    (folder / "model_index.json").unlink()
    if content is not None:
        (folder / "model_index.json").write_text(content)
    with pytest.raises(InputError, match=message):
        load_config({"model_id": str(folder)})


def test_a_unet_that_wants_more_than_a_picture_is_refused(folder):
    config = folder / "unet/config.json"
    config.write_text(config.read_text().replace('"in_channels": 4', '"in_channels": 9'))
    with pytest.raises(InputError, match=r"9 channels for latents of 4.*inpainting"):
        load_config({"model_id": str(folder)})


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"model_id": "model.ckpt"}, "key model_id: 'model.ckpt' is a pickled file"),
        ({"model_id": "model.safetensors"}, "key model_id: no such file: 'model.safetensors'"),
        ({"model_id": "a/{b}"}, "key model_id: 'a/{b}' has braces"),
        ({"model_id": "../b"}, "key model_id: '../b' is neither 'demo' nor a folder"),
        ({"model_id": "demo", "vae_id": "vae.safetensors"}, "key vae_id: a single file has no config"),
        ({"model_id": "demo", "vae_id": "no such vae"}, "key vae_id: 'no such vae' is neither"),
    ],
)
def test_a_name_that_cannot_be_a_model_is_refused_at_once(given, message):
    with pytest.raises(InputError) as refused:
        load_config(given)
    assert message in str(refused.value)


def test_names_of_the_hub_and_files_are_taken(tmp_path):
    (tmp_path / "a.safetensors").touch()
    for name in (None, "demo", "stable-diffusion-v1-5/stable-diffusion-v1-5", f"{tmp_path}/a.safetensors", "."):
        assert model_id_problem(name) == ""


def test_demo_is_the_embedded_model_whatever_folders_there_are(tmp_path, monkeypatch):
    (tmp_path / "demo").mkdir()
    monkeypatch.chdir(tmp_path)
    assert load_config({"model_id": "demo"})["model_id"] == "demo"
    assert locate(resolve("demo"))["folder"] == DEMO_MODEL


def test_a_revision_of_a_local_model_is_refused(folder):
    with pytest.raises(InputError, match=r"key revision: only a .*Hugging Face.* has revisions"):
        load_config({"model_id": str(folder), "revision": "v1"})


@pytest.mark.fault("model")
def test_a_model_of_tomorrow_is_refused_with_the_remedy(folder, monkeypatch):
    monkeypatch.chdir(folder.parent)
    os.utime("model/vae/config.json", (4e9, 4e9))
    with pytest.raises(InputError, match=r"key model_id: 'model/vae/config\.json' is dated in the future"):
        load_config({"model_id": "model"})


def test_of_a_local_model_only_the_files_that_are_used_are_inputs(folder):
    def files(**keys) -> set[str]:
        found = model_files({"model_id": str(folder), "vae_id": None, "variant": None, "allow_pickle": False} | keys)
        assert found == sorted(found)
        return {str(Path(path).relative_to(folder)) for path in found}

    described = files()
    assert described == {str(path.relative_to(folder)) for path in folder.rglob("*.json")}
    for safe, pickled in PICKLED.items():
        (folder / f"{safe}.safetensors").touch()
        (folder / pickled).touch()
    (folder / f"{UNET}.fp16.safetensors").touch()
    (folder / "unet/README.md").touch()
    safe = {f"{name}.safetensors" for name in PICKLED}
    assert files() == files(allow_pickle=True) == described | safe
    assert files(variant="fp16") ^ files() == {f"{UNET}.fp16.safetensors", f"{UNET}.safetensors"}
    for name in safe:
        (folder / name).unlink()
    assert files() == described
    assert files(allow_pickle=True) == described | set(PICKLED.values())


def test_a_local_autoencoder_and_a_single_file_are_inputs_and_what_is_not_here_is_none(folder, tmp_path):
    rest = {"variant": None, "allow_pickle": False}
    (tmp_path / "single.safetensors").touch()
    assert model_files({"model_id": "demo", "vae_id": "someone/vae"} | rest) == []
    found = model_files({"model_id": f"{tmp_path}/single.safetensors", "vae_id": f"{folder}/vae"} | rest)
    assert found == [f"{folder}/vae/config.json", f"{tmp_path}/single.safetensors"]


def test_the_rule_model_runs_again_when_pickles_are_allowed_or_not_any_more_and_not_for_old_studies():
    """Its parameter is this text, which Snakemake compares with that of the last run."""

    def identity(**keys) -> str:
        return model_identity(load_config({"model_id": "someone/tiny", "revision": "v1"} | keys))

    assert identity() == identity(allow_pickle=False) == '{"model_id":"someone/tiny","revision":"v1"}'
    assert identity(allow_pickle=True) == '{"allow_pickle":true,"model_id":"someone/tiny","revision":"v1"}'
    assert identity(variant="fp16") == '{"model_id":"someone/tiny","revision":"v1","variant":"fp16"}'
    assert identity(vae_id="demo") == '{"model_id":"someone/tiny","revision":"v1","vae_id":"demo"}'


def test_the_demo_is_known_by_its_checksums():
    assert (DEMO_MODEL / "SHA256SUMS").read_text().split()[0] in model_identity(load_config({"model_id": "demo"}))


def test_what_parsing_imports_is_light():
    code = "import sys, gpi_latents.model.family; print(*sys.modules)"
    modules = subprocess.check_output([sys.executable, "-c", code], text=True).split()
    assert not {"huggingface_hub", "torch", "safetensors", "diffusers", "gpi_latents.model.download"} & {*modules}
