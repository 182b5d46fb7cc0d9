"""Where models come from: each way gives the same latents, and what cannot be used is refused by name."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from contextlib import contextmanager
from pathlib import Path

import diffusers
import diffusion
import items
import model
import pytest
import torch
from helpers import families, hub
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


@pytest.mark.fault("stranger")
def test_pickled_weights_are_loaded_only_when_allowed(folder):
    plain = latents(model.resolve(str(folder)))
    pickled(folder, ALL_PICKLED)
    with pytest.raises(model.ModelError, match=r"can run code of strangers.*allow_pickle: true"):
        model.resolve(str(folder))
    assert same(latents(model.resolve(str(folder), allow_pickle=True)), plain)


@pytest.mark.fault("stranger")
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


@pytest.mark.parametrize("content", [b"", b"g" * 64, b"\xff" * 64, b"0" * 63])
def test_a_remembered_digest_that_is_none_is_made_anew(tmp_path, content):
    file = tmp_path / "large.safetensors"
    file.write_bytes(bytes(model.REMEMBERED_BYTES))
    digest = model._sha256(file)
    [memory] = (tmp_path / "user cache").rglob("gpi-latents/*")
    memory.write_bytes(content)
    assert model._sha256(file) == digest == memory.read_text()


def test_weights_in_shards_behind_links_and_odd_names_are_taken(folder, tmp_path):
    expected = latents(model.resolve(str(folder)))
    part = folder / "unet"
    diffusers.UNet2DConditionModel.from_pretrained(part).save_pretrained(tmp_path / "shards", max_shard_size="100KB")
    shutil.rmtree(part)
    shutil.move(tmp_path / "shards", part)
    names = [path.name for path in part.glob("*.safetensors")]
    assert len(names) > 1
    odd = tmp_path / "Modelle für Ünï [a b] 'c'"
    shutil.move(folder, odd)
    link = tmp_path / "link"
    link.symlink_to(odd)
    for source in (odd, link):
        found = model.resolve(str(source))
        assert {f"unet/{name}" for name in names} <= found["sha256"].keys()
        assert f"{source}/unet/{names[0]}" in items.model_files(items.load_config({"model_id": str(source)}))
        assert same(latents(found), expected)
    (odd / "unet/diffusion_pytorch_model.safetensors.index.json").unlink()
    with pytest.raises(model.ModelError, match=r"its unet has no diffusion_pytorch_model\.safetensors"):
        model.resolve(str(odd))


# --- What cannot be used ---


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-100])


def shards(folder: Path) -> None:
    part = folder / "unet"
    (part / "diffusion_pytorch_model.safetensors").rename(part / "diffusion_pytorch_model-00001-of-00002.safetensors")
    index = {"weight_map": {"a": "diffusion_pytorch_model-00001-of-00002.safetensors"}}
    index["weight_map"]["b"] = "diffusion_pytorch_model-00002-of-00002.safetensors"
    (part / "diffusion_pytorch_model.safetensors.index.json").write_text(json.dumps(index))


def unnamed(folder: Path, part: str) -> None:
    index = json.loads((folder / "model_index.json").read_text())
    del index[part]
    (folder / "model_index.json").write_text(json.dumps(index))


@pytest.mark.fault("model")
@pytest.mark.parametrize(
    ("damage", "told"),
    [
        (lambda folder: cut(folder / f"{UNET}.safetensors"), "is damaged"),
        (lambda folder: (folder / f"{VAE}.safetensors").write_bytes(b""), "is damaged"),
        (lambda folder: (folder / f"{VAE}.safetensors").unlink(), "incomplete: its vae has no weights"),
        (lambda folder: shutil.rmtree(folder / "text_encoder"), "incomplete: it has no text_encoder"),
        (lambda folder: shutil.rmtree(folder / "tokenizer"), "incomplete: it has no tokenizer"),
        (shards, "incomplete: its unet has no diffusion_pytorch_model-00002-of-00002.safetensors"),
        (lambda folder: (folder / "tokenizer/tokenizer.json").unlink(), "incomplete: its tokenizer has no vocabulary"),
        (
            lambda folder: (folder / "scheduler/scheduler_config.json").rename(folder / "scheduler/config.json"),
            "incomplete: its scheduler has no scheduler_config.json",
        ),
        (lambda folder: unnamed(folder, "scheduler"), "its model_index.json has no scheduler"),
        (lambda folder: unnamed(folder, "tokenizer"), "its model_index.json has no tokenizer"),
        (lambda folder: unnamed(folder, "unet"), "its model_index.json has no unet"),
        (lambda folder: (folder / "unet/config.json").write_text("[]"), "incomplete: its unet has no config.json"),
        (
            lambda folder: shutil.copy(folder / "unet/config.json", folder / "vae"),
            "no autoencoder that can be used but a UNet2DConditionModel. These can: AutoencoderKL, ",
        ),
    ],
    ids=[
        *("cut", "empty", "no weights", "no part", "no tokenizer", "no shard", "no vocabulary", "no scheduler config"),
        *("scheduler unnamed", "tokenizer unnamed", "unet unnamed", "odd config", "other vae"),
    ],
)
def test_a_model_that_is_not_whole_is_refused(folder, damage, told):
    damage(folder)
    with pytest.raises(model.ModelError, match=told):
        model.resolve(str(folder))


@pytest.mark.parametrize("part", ["unet", "text_encoder", "scheduler"])
def test_another_vae_that_is_no_autoencoder_is_refused(folder, part):
    with pytest.raises(model.ModelError, match=f"{part} holds no autoencoder|{part} is incomplete|incomplete: its vae"):
        model.resolve("demo", vae_id=str(folder / part))


def test_a_revision_of_a_local_model_is_refused(folder):
    with pytest.raises(items.InputError, match="key revision: only a model of Hugging Face has revisions"):
        items.load_config({"model_id": str(folder), "revision": "v1"})


@pytest.mark.fault("model")
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


# --- What the hub has, as a stand-in serves it to Hugging Face's own client ---


@pytest.fixture
def serve(monkeypatch):
    from huggingface_hub import constants

    @contextmanager
    def serve(folder: Path, **options):
        with hub.Hub(folder, **options) as served:
            monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
            monkeypatch.setattr(constants, "ENDPOINT", served.address)
            template = constants.HUGGINGFACE_CO_URL_TEMPLATE.split("/{repo_id}")[1]
            monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", served.address + "/{repo_id}" + template)
            yield served
            monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)

    return serve


def weights(files: list[str]) -> list[str]:
    return [name for name in files if name.endswith((".safetensors", ".bin"))]


def only_variant(folder: Path) -> None:
    for file in folder.glob("*/*.safetensors"):
        file.rename(file.with_suffix(".fp16.safetensors"))


def test_only_what_is_used_is_downloaded_and_it_is_found_again_without_the_network(folder, tmp_path, serve):
    expected = latents(model.resolve(str(folder)))
    (folder / "README.md").write_text("A model.")
    for name in (f"{UNET}.fp16.safetensors", f"{UNET}.bin", "unet/openvino_model.bin", "vae_1_0/model.safetensors"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(b"not to be used")
    cache = tmp_path / "cache"
    with serve(folder) as served:
        found = model.resolve(hub.REPOSITORY, cache_dir=str(cache), vae_id=hub.REPOSITORY, allow_pickle=True)
    used = {f"{name}.safetensors" for name in (UNET, VAE, "text_encoder/model")}
    assert set(weights(served.served)) == set(weights(list(found["sha256"]))) == used
    assert found["commit"] == found["vae"]["commit"] == hub.COMMIT
    assert same(latents(found, cache), expected)
    assert model.resolve(hub.REPOSITORY, cache_dir=str(cache), vae_id=hub.REPOSITORY) == found


@pytest.mark.parametrize(
    ("prepare", "options", "told"),
    [
        (
            lambda folder: pickled(folder, ALL_PICKLED),
            {},
            r"tiny has no safetensors.*strangers.*allow_pickle: true",
        ),
        (only_variant, {}, "has for its vae only weights of the variant fp16: name it by the key variant"),
        (only_variant, {"variant": "bf16"}, "someone/tiny has no weights of the variant 'bf16'; those it has: fp16"),
        (lambda folder: None, {"variant": "fp16"}, "no weights of the variant 'fp16'; those it has: none"),
        (
            lambda folder: (folder / "model_index.json").write_text('{"_class_name": "KandinskyPipeline"}'),
            {},
            "is a KandinskyPipeline, which is not supported",
        ),
        (lambda folder: (folder / "model_index.json").unlink(), {}, "has no model_index.json"),
    ],
    ids=["pickled", "variant unsaid", "other variant", "no variant", "family", "no model"],
)
def test_a_model_of_the_hub_that_cannot_be_used_is_refused_before_its_weights_come(
    folder, tmp_path, serve, prepare, options, told
):
    prepare(folder)
    with serve(folder) as served, pytest.raises(model.ModelError, match=told):
        model.resolve(hub.REPOSITORY, cache_dir=str(tmp_path / "cache"), **options)
    assert weights(served.served) == []


def test_an_autoencoder_of_the_hub_with_pickled_weights_alone_is_taken_only_when_allowed(folder, tmp_path, serve):
    other = tmp_path / "other"
    shutil.copytree(folder / "vae", other)
    pickled(other, {"diffusion_pytorch_model": "diffusion_pytorch_model.bin"})
    options = {"vae_id": hub.REPOSITORY, "cache_dir": str(tmp_path / "cache")}
    with serve(other) as served:
        with pytest.raises(model.ModelError, match=r"autoencoder someone/tiny has no safetensors.*allow_pickle: true"):
            model.resolve(str(folder), **options)
        assert weights(served.served) == []
        found = model.resolve(str(folder), **options, allow_pickle=True)
    assert same(latents(found, tmp_path / "cache"), latents(model.resolve(str(folder))))


@pytest.mark.parametrize(
    ("given", "refuses", "told"),
    [
        ({}, (403, "GatedRepo"), "someone/tiny is gated.*HF_TOKEN"),
        ({"model_id": "no/body"}, None, "no model no/body.*HF_TOKEN"),
        ({"revision": "v9"}, None, "someone/tiny has no revision 'v9'"),
        ({}, (500, ""), "could not be downloaded"),
    ],
)
def test_what_the_hub_refuses_is_told_in_words(folder, tmp_path, serve, given, refuses, told):
    with serve(folder, refuses=refuses), pytest.raises(model.ModelError, match=told):
        model.resolve(**{"model_id": hub.REPOSITORY, "cache_dir": str(tmp_path / "cache")} | given)


def test_pickles_that_were_allowed_once_are_refused_when_they_are_not_any_more(tmp_path, monkeypatch):
    """No file and no other setting of the rule `model` has changed then, so it would not run."""
    monkeypatch.chdir(tmp_path)
    made = {"model_id": "someone/tiny", "revision": None, "variant": None, "commit": hub.COMMIT, "vae": None}
    Path("results").mkdir()
    given = {"model_id": "someone/tiny"}
    for name, refused in ((f"{UNET}.safetensors", False), (f"{UNET}.bin", True)):
        Path("results/model.json").write_text(json.dumps(made | {"sha256": {name: "0"}}))
        items.load_config(given | {"allow_pickle": True})
        items.load_config(given | {"revision": "other"})
        if refused:
            with pytest.raises(items.InputError, match=r"someone/tiny came as pickled files.*allow_pickle: true"):
                items.load_config(given)
        else:
            items.load_config(given)


def test_of_a_local_model_only_the_files_that_are_used_are_inputs(folder):
    def files(**keys) -> list[str]:
        return items.model_files(items.load_config({"model_id": str(folder), **keys}))

    before = files()
    for name, suffix in ALL_PICKLED.items():
        shutil.copy(folder / f"{name}.safetensors", folder / suffix)
    shutil.copy(folder / f"{UNET}.safetensors", folder / f"{UNET}.fp16.safetensors")
    assert files() == files(allow_pickle=True) == before
    assert {*files(variant="fp16")} ^ {*before} == {f"{folder}/{UNET}.fp16.safetensors", f"{folder}/{UNET}.safetensors"}
    for name in ALL_PICKLED:
        (folder / f"{name}.safetensors").unlink()
    assert {*files(allow_pickle=True)} - {*before} == {f"{folder}/{name}" for name in ALL_PICKLED.values()}
    with pytest.raises(items.InputError, match=r"has no safetensors weights for its vae.*allow_pickle: true"):
        files()
