"""Where models come from: each way gives the same latents, and what cannot be used is refused by name."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from pathlib import Path

import diffusion
import families
import items
import model
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

COMMIT = "0123456789abcdef0123456789abcdef01234567"
UNET = "unet/diffusion_pytorch_model"
VAE = "vae/diffusion_pytorch_model"
STILL = {"image_size": 64, "resize": "pad", "posterior": "sample", "seed": 7, "strength": 0.0, "version": 1}
EDITED = STILL | {
    "strength": 0.5,
    "prompt": "a red circle",
    "guidance_scale": 5.0,
    "num_inference_steps": 8,
    "scheduler": "auto",
}
PICTURE = Image.effect_mandelbrot((64, 64), (-2, -1, 1, 1), 30).convert("RGB")


@pytest.fixture(autouse=True)
def offline(monkeypatch, tmp_path):
    from huggingface_hub import constants

    diffusion.same_bits()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "user cache"))


@pytest.fixture
def folder(tmp_path) -> Path:
    return families.model("stable-diffusion", tmp_path)


def cached(cache: Path, repository: str, source: Path) -> Path:
    """Put a folder into a cache as Hugging Face's client lays it out; returns the snapshot."""
    repo = cache / f"models--{repository.replace('/', '--')}"
    snapshot = repo / "snapshots" / COMMIT
    shutil.copytree(source, snapshot)
    (repo / "refs").mkdir()
    (repo / "refs/main").write_text(COMMIT)
    return snapshot


def latents(found: dict, cache_dir: Path | None = None) -> list[torch.Tensor]:
    loaded = diffusion.Model(**model.locate(found, cache_dir and str(cache_dir)))
    return [loaded.latent(PICTURE, recipe) for recipe in (STILL, EDITED)]


def same(one: list[torch.Tensor], other: list[torch.Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def pickled(folder: Path, names: dict[str, str]) -> None:
    """Turn safetensors into the pickled weights that they once were."""
    for safe, name in names.items():
        file = folder / f"{safe}.safetensors"
        torch.save(load_file(file), folder / name)
        file.unlink()


ALL_PICKLED = {
    UNET: f"{UNET}.bin",
    VAE: f"{VAE}.bin",
    "text_encoder/model": "text_encoder/pytorch_model.bin",
}


# --- Ways to the same latents ---


def test_a_model_of_the_hub_is_known_by_its_commit(folder, tmp_path):
    cached(tmp_path / "cache", "someone/tiny", folder)
    found = model.resolve("someone/tiny", cache_dir=str(tmp_path / "cache"))
    assert found["commit"] == COMMIT
    assert (
        found["sha256"][f"{UNET}.safetensors"]
        == hashlib.sha256((folder / f"{UNET}.safetensors").read_bytes()).hexdigest()
    )
    assert same(latents(found, tmp_path / "cache"), latents(model.resolve(str(folder))))


def test_a_single_file_gives_the_latents_of_the_folder(folder, tmp_path):
    """Its configs are those of Stable Diffusion 1.5 in the cache, which here stands for the tiny model."""
    cache = tmp_path / "cache"
    cached(cache, "stable-diffusion-v1-5/stable-diffusion-v1-5", folder)
    file = families.single_file(folder, tmp_path / "single file.safetensors")
    found = model.resolve(str(file), cache_dir=str(cache))
    assert found["checkpoint"] == hashlib.sha256(file.read_bytes()).hexdigest()
    shutil.rmtree(cache / "models--stable-diffusion-v1-5--stable-diffusion-v1-5")
    assert same(latents(found, cache), latents(model.resolve(str(folder))))
    assert model.resolve(str(file), cache_dir=str(cache)) == found  # made once


def test_another_vae_is_taken_from_a_folder_or_the_hub(folder, tmp_path):
    other = tmp_path / "other"
    shutil.copytree(folder / "vae", other)
    weights = load_file(other / "diffusion_pytorch_model.safetensors")
    weights["quant_conv.bias"] += 1
    save_file(weights, other / "diffusion_pytorch_model.safetensors", metadata={"format": "pt"})
    cached(tmp_path / "cache", "someone/vae", other)
    local = model.resolve(str(folder), vae_id=str(other))
    hub = model.resolve(str(folder), vae_id="someone/vae", cache_dir=str(tmp_path / "cache"))
    assert hub["vae"]["commit"] == COMMIT
    assert hub["vae"]["sha256"] == local["vae"]["sha256"]
    assert same(latents(local), latents(hub, tmp_path / "cache"))
    assert not same(latents(local), latents(model.resolve(str(folder))))
    whole = model.resolve(str(folder), vae_id=str(folder))  # a whole model lends its autoencoder
    assert same(latents(whole), latents(model.resolve(str(folder))))


def test_a_variant_is_taken_where_a_part_has_it(folder):
    plain = latents(model.resolve(str(folder)))
    file = folder / f"{UNET}.safetensors"
    weights = {name: (tensor * 1.1).half() for name, tensor in load_file(file).items()}
    save_file(weights, folder / f"{UNET}.fp16.safetensors", metadata={"format": "pt"})
    assert same(latents(model.resolve(str(folder))), plain)
    found = model.resolve(str(folder), variant="fp16")
    assert f"{UNET}.fp16.safetensors" in found["sha256"]
    assert f"{UNET}.safetensors" not in found["sha256"]
    with pytest.raises(model.ModelError, match="has no weights of the variant 'bf16'"):
        model.resolve(str(folder), variant="bf16")
    file.unlink()
    still, edited = latents(found)
    assert torch.equal(still, plain[0])
    assert not torch.equal(edited, plain[1])


def test_pickled_weights_are_loaded_only_when_allowed(folder):
    plain = latents(model.resolve(str(folder)))
    pickled(folder, ALL_PICKLED)
    with pytest.raises(model.ModelError, match=r"can run code of strangers.*allow_pickle: true"):
        model.resolve(str(folder))
    assert same(latents(model.resolve(str(folder), allow_pickle=True)), plain)


@pytest.mark.parametrize("part", ["vae", "unet"])
def test_even_allowed_pickles_run_no_code(folder, tmp_path, part):
    class Bomb:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "exploded"),)

    pickled(folder, ALL_PICKLED)
    torch.save({"conv_in.weight": Bomb()}, folder / f"{part}/diffusion_pytorch_model.bin")
    with pytest.raises(Exception, match=r"(?i)weights|pickle|load"):
        latents(model.resolve(str(folder), allow_pickle=True))
    assert not (tmp_path / "exploded").exists()


def test_the_digest_of_large_weights_is_remembered_until_size_or_time_change(tmp_path):
    file = tmp_path / "large.safetensors"
    file.write_bytes(bytes(model.REMEMBERED_BYTES))
    first = model._sha256(file)
    known = file.stat()
    with file.open("r+b") as opened:
        opened.write(b"other")
    os.utime(file, ns=(known.st_atime_ns, known.st_mtime_ns))
    assert model._sha256(file) == first
    os.utime(file, ns=(known.st_atime_ns, known.st_mtime_ns + 1))
    assert model._sha256(file) == hashlib.sha256(file.read_bytes()).hexdigest() != first


# --- What cannot be used ---


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-100])


def shards(folder: Path) -> None:
    part = folder / "unet"
    (part / "diffusion_pytorch_model.safetensors").rename(part / "diffusion_pytorch_model-00001-of-00002.safetensors")
    index = {"weight_map": {"a": "diffusion_pytorch_model-00001-of-00002.safetensors"}}
    index["weight_map"]["b"] = "diffusion_pytorch_model-00002-of-00002.safetensors"
    (part / "diffusion_pytorch_model.safetensors.index.json").write_text(json.dumps(index))


@pytest.mark.parametrize(
    ("damage", "told"),
    [
        (lambda folder: cut(folder / f"{UNET}.safetensors"), "is damaged"),
        (lambda folder: (folder / f"{VAE}.safetensors").write_bytes(b""), "is damaged"),
        (lambda folder: (folder / f"{VAE}.safetensors").unlink(), "incomplete: its vae has no weights"),
        (lambda folder: shutil.rmtree(folder / "text_encoder"), "incomplete: it has no text_encoder"),
        (lambda folder: shutil.rmtree(folder / "tokenizer"), "incomplete: it has no tokenizer"),
        (shards, "incomplete: its unet has no diffusion_pytorch_model-00002-of-00002.safetensors"),
    ],
    ids=["cut", "empty", "no weights", "no part", "no tokenizer", "no shard"],
)
def test_a_model_that_is_not_whole_is_refused(folder, damage, told):
    damage(folder)
    with pytest.raises(model.ModelError, match=told):
        model.resolve(str(folder))


def test_a_download_that_is_not_what_its_name_says_is_refused(folder, tmp_path):
    """Hugging Face's cache names large files by their SHA-256."""
    snapshot = cached(tmp_path / "cache", "someone/tiny", folder)
    file = snapshot / f"{UNET}.safetensors"
    blob = tmp_path / "cache" / hashlib.sha256(file.read_bytes()).hexdigest()
    file.rename(blob)
    file.symlink_to(blob)
    model.resolve("someone/tiny", cache_dir=str(tmp_path / "cache"))
    content = bytearray(blob.read_bytes())
    content[-1] ^= 1
    blob.write_bytes(content)
    with pytest.raises(model.ModelError, match=f"delete {blob} and download"):
        model.resolve("someone/tiny", cache_dir=str(tmp_path / "cache"))


@pytest.mark.parametrize(
    "name",
    [
        "KandinskyV22Pipeline",
        "IFPipeline",
        "StableVideoDiffusionPipeline",
        "StableDiffusionInpaintPipeline",
        "WanPipeline",
    ],
)
def test_a_family_that_cannot_work_is_refused_before_any_job(folder, name):
    index = folder / "model_index.json"
    index.write_text(index.read_text().replace('"StableDiffusionPipeline"', f'"{name}"'))
    for refuse in (lambda: items.load_config({"model_id": str(folder)}), lambda: model.resolve(str(folder))):
        with pytest.raises((items.InputError, model.ModelError)) as refused:
            refuse()
        for told in (name, "Stable Diffusion 1.x and 2.x; Stable Diffusion XL; Stable Diffusion 3 and 3.5; FLUX.1"):
            assert told in str(refused.value)


def test_a_unet_that_wants_more_than_a_picture_is_refused(folder):
    config = folder / "unet/config.json"
    config.write_text(config.read_text().replace('"in_channels": 4', '"in_channels": 9'))
    with pytest.raises(items.InputError, match=r"9 channels for latents of 4.*inpainting"):
        items.load_config({"model_id": str(folder)})


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"model_id": "model.ckpt"}, "'model.ckpt' is a pickled file"),
        ({"model_id": "model.safetensors"}, "no such file: 'model.safetensors'"),
        ({"model_id": "demo", "vae_id": "vae.safetensors"}, "key vae_id: a single file has no config"),
        ({"model_id": "demo", "vae_id": "no such vae"}, "key vae_id: 'no such vae' is neither"),
        ({"model_id": "demo", "scheduler": "EulerAncestralDiscreteScheduler"}, "allow_stochastic_scheduler: true"),
        ({"model_id": "demo", "scheduler": "Euler"}, "key scheduler: 'Euler' is not one of"),
    ],
)
def test_a_config_that_names_what_cannot_be_is_refused_at_once(given, told):
    with pytest.raises(items.InputError) as refused:
        items.load_config(given)
    assert told in str(refused.value)


def test_demo_is_the_embedded_model_whatever_folders_there_are(tmp_path, monkeypatch):
    (tmp_path / "demo").mkdir()
    monkeypatch.chdir(tmp_path)
    assert items.load_config({"model_id": "demo"})["model_id"] == "demo"
    assert model.locate(model.resolve("demo"))["folder"] == items.DEMO_MODEL


def test_a_stochastic_scheduler_is_taken_when_allowed():
    given = {"model_id": "demo", "scheduler": "EulerAncestralDiscreteScheduler", "allow_stochastic_scheduler": True}
    assert items.load_config(given)["scheduler"] == "EulerAncestralDiscreteScheduler"


@pytest.mark.parametrize("content", [b"", b"no weights", b"\x00" * 100])
def test_a_single_file_that_is_no_checkpoint_is_refused(tmp_path, content):
    file = tmp_path / "single.safetensors"
    file.write_bytes(content)
    with pytest.raises(model.ModelError, match="cannot be read"):
        model.resolve(str(file), cache_dir=str(tmp_path / "cache"))


def test_a_single_file_that_holds_something_else_is_refused_and_leaves_nothing(folder, tmp_path):
    cache = tmp_path / "cache"
    file = tmp_path / "lora.safetensors"
    save_file({"lora.up.weight": torch.zeros(4)}, file)
    with pytest.raises(model.ModelError, match=r"whose configs the checkpoint .* needs.* could not be downloaded"):
        model.resolve(str(file), cache_dir=str(cache))
    cached(cache, "stable-diffusion-v1-5/stable-diffusion-v1-5", folder)
    with pytest.raises(model.ModelError, match="cannot be read as a whole model"):
        model.resolve(str(file), cache_dir=str(cache))
    assert list((cache / "converted").iterdir()) == []


@pytest.mark.parametrize(
    ("kind", "told"),
    [
        ("GatedRepoError", "gated.*HF_TOKEN"),
        ("RepositoryNotFoundError", "no model someone/tiny.*HF_TOKEN"),
        ("RevisionNotFoundError", "no revision 'v9'"),
    ],
)
def test_what_the_hub_refuses_is_told_in_words(monkeypatch, kind, told):
    """There is no hub here: its client's exceptions are raised in its place."""
    import diffusers
    from huggingface_hub import errors

    def refuse(*_, **__):
        error = getattr(errors, kind)
        raise error.__new__(error)

    monkeypatch.setattr(diffusers.DiffusionPipeline, "download", refuse)
    with pytest.raises(model.ModelError, match=told):
        model.resolve("someone/tiny", revision="v9")
