"""Where models come from: each way gives the same latents, and what is damaged is refused by name."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from gpi_latents.errors import ModelError
from gpi_latents.model.family import model_files
from gpi_latents.model.source import locate, read_model, resolve, write_model
from gpi_latents.paths import DEMO_MODEL
from gpi_latents.study.settings import load_config
from helpers.checkpoints import UNET, VAE, cached, pickle_weights
from helpers.hub import COMMIT
from safetensors.torch import load_file, save_file


def same(one: list[torch.Tensor], other: list[torch.Tensor]) -> bool:
    return all(map(torch.equal, one, other))


# --- Ways to the same latents ---


def test_a_model_of_the_hub_is_known_by_its_commit(built, tmp_path, latents, expected):
    cached(tmp_path / "cache", "someone/tiny", built)
    found = resolve("someone/tiny", cache_dir=str(tmp_path / "cache"))
    assert found["commit"] == COMMIT
    digest = hashlib.sha256((built / f"{UNET}.safetensors").read_bytes()).hexdigest()
    assert found["sha256"][f"{UNET}.safetensors"] == digest
    assert same(latents(found, tmp_path / "cache"), expected)


def test_another_vae_is_taken_from_a_folder_or_the_hub(built, tmp_path, latents, expected):
    other = tmp_path / "other"
    shutil.copytree(built / "vae", other)
    weights = load_file(other / "diffusion_pytorch_model.safetensors")
    weights["quant_conv.bias"] += 1
    save_file(weights, other / "diffusion_pytorch_model.safetensors", metadata={"format": "pt"})
    cached(tmp_path / "cache", "someone/vae", other)
    local = resolve(str(built), vae_id=str(other))
    hub = resolve(str(built), vae_id="someone/vae", cache_dir=str(tmp_path / "cache"))
    assert hub["vae"]["commit"] == COMMIT
    assert hub["vae"]["sha256"] == local["vae"]["sha256"]
    assert same(latents(local), latents(hub, tmp_path / "cache"))
    assert not same(latents(local), expected)
    whole = resolve(str(built), vae_id=str(built))  # the autoencoder of a whole model
    assert same(latents(whole), expected)
    assert resolve(str(built), vae_id="demo")["vae"]["sha256"].keys() == local["vae"]["sha256"].keys()


def test_a_variant_is_taken_where_a_part_has_it(folder, latents, expected):
    file = folder / f"{UNET}.safetensors"
    weights = {name: (tensor * 1.1).half() for name, tensor in load_file(file).items()}
    save_file(weights, folder / f"{UNET}.fp16.safetensors", metadata={"format": "pt"})
    assert same(latents(resolve(str(folder))), expected)
    found = resolve(str(folder), variant="fp16")
    assert f"{UNET}.fp16.safetensors" in found["sha256"]
    assert f"{UNET}.safetensors" not in found["sha256"]
    with pytest.raises(ModelError, match="has no weights of the variant 'bf16'"):
        resolve(str(folder), variant="bf16")
    file.unlink()
    still, edited = latents(found)
    assert torch.equal(still, expected[0])
    assert not torch.equal(edited, expected[1])


@pytest.mark.fault("stranger")
def test_pickled_weights_are_loaded_only_when_allowed(folder, latents, expected):
    pickle_weights(folder)
    with pytest.raises(ModelError, match=r"can run code of strangers.*allow_pickle: true"):
        resolve(str(folder))
    assert same(latents(resolve(str(folder), allow_pickle=True)), expected)


@pytest.mark.fault("stranger")
@pytest.mark.parametrize("part", ["vae", "unet"])
def test_even_allowed_pickles_run_no_code(folder, tmp_path, latents, part):
    class Bomb:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "exploded"),)

    pickle_weights(folder)
    torch.save({"conv_in.weight": Bomb()}, folder / f"{part}/diffusion_pytorch_model.bin")
    with pytest.raises(Exception, match=r"(?i)weights|pickle|load"):
        latents(resolve(str(folder), allow_pickle=True))
    assert not (tmp_path / "exploded").exists()


def test_weights_in_shards_behind_links_and_odd_names_are_taken(folder, tmp_path, latents, expected):
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
        found = resolve(str(source))
        assert {f"unet/{name}" for name in names} <= found["sha256"].keys()
        assert model_files(load_config({"model_id": str(source)})) == [f"{source}/{name}" for name in found["sha256"]]
        assert same(latents(found), expected)
    (odd / "unet/diffusion_pytorch_model.safetensors.index.json").unlink()
    with pytest.raises(ModelError, match=r"its unet has no diffusion_pytorch_model\.safetensors"):
        resolve(str(odd))


# --- What is not whole ---


def cut(folder: Path) -> None:
    file = folder / f"{UNET}.safetensors"
    file.write_bytes(file.read_bytes()[:-100])


def lose_a_shard(folder: Path) -> None:
    part = folder / "unet"
    (part / "diffusion_pytorch_model.safetensors").rename(part / "diffusion_pytorch_model-00001-of-00002.safetensors")
    index = {"weight_map": {"a": "diffusion_pytorch_model-00001-of-00002.safetensors"}}
    index["weight_map"]["b"] = "diffusion_pytorch_model-00002-of-00002.safetensors"
    (part / "diffusion_pytorch_model.safetensors.index.json").write_text(json.dumps(index))


def unname(folder: Path, part: str) -> None:
    index = json.loads((folder / "model_index.json").read_text())
    del index[part]
    (folder / "model_index.json").write_text(json.dumps(index))


DAMAGES = {
    "cut": (cut, "is damaged"),
    "empty": (lambda folder: (folder / f"{VAE}.safetensors").write_bytes(b""), "is damaged"),
    "cloned without git-lfs": (
        lambda folder: (folder / f"{VAE}.safetensors").write_text(
            f"version https://git-lfs.github.com/spec/v1\noid sha256:{'0' * 64}\nsize 334643276\n"
        ),
        r"vae/diffusion_pytorch_model\.safetensors is no weights .* `git lfs pull`",
    ),
    "no weights": (lambda folder: (folder / f"{VAE}.safetensors").unlink(), "incomplete: its vae has no weights"),
    "no part": (lambda folder: shutil.rmtree(folder / "text_encoder"), "incomplete: it has no text_encoder"),
    "no tokenizer": (lambda folder: shutil.rmtree(folder / "tokenizer"), "incomplete: it has no tokenizer"),
    "no shard": (lose_a_shard, "incomplete: its unet has no diffusion_pytorch_model-00002-of-00002.safetensors"),
    "no vocabulary": (
        lambda folder: (folder / "tokenizer/tokenizer.json").unlink(),
        "incomplete: its tokenizer has no vocabulary",
    ),
    "a vocabulary that cannot be read here": (
        lambda folder: (folder / "tokenizer/tokenizer.json").rename(folder / "tokenizer/spiece.model"),
        r"has for its tokenizer only a spiece\.model .*pip install sentencepiece",
    ),
    "no scheduler config": (
        lambda folder: (folder / "scheduler/scheduler_config.json").rename(folder / "scheduler/config.json"),
        "incomplete: its scheduler has no scheduler_config.json",
    ),
    "scheduler unnamed": (lambda folder: unname(folder, "scheduler"), "its model_index.json has no scheduler"),
    "tokenizer unnamed": (lambda folder: unname(folder, "tokenizer"), "its model_index.json has no tokenizer"),
    "unet unnamed": (lambda folder: unname(folder, "unet"), "its model_index.json has no unet"),
    "odd config": (lambda folder: (folder / "unet/config.json").write_text("[]"), "unet/config.json is damaged"),
    "no config": (lambda folder: (folder / "unet/config.json").unlink(), "incomplete: its unet has no config.json"),
    "cut config": (
        lambda folder: (folder / "text_encoder/config.json").write_text("{"),
        "text_encoder/config.json is damaged",
    ),
    "other vae": (
        lambda folder: shutil.copy(folder / "unet/config.json", folder / "vae"),
        "holds UNet2DConditionModel, not a supported autoencoder: AutoencoderKL, ",
    ),
}


@pytest.mark.fault("model")
@pytest.mark.parametrize("damage", DAMAGES)
def test_a_model_that_is_not_whole_is_refused(folder, damage):
    do, message = DAMAGES[damage]
    do(folder)
    with pytest.raises(ModelError, match=message):
        resolve(str(folder))


@pytest.mark.parametrize(
    ("part", "message"),
    [
        ("unet", "unet holds UNet2DConditionModel, not a supported autoencoder"),
        ("text_encoder", "text_encoder holds another model, not a supported autoencoder"),
        ("scheduler", r"The autoencoder .*scheduler is incomplete: it has no vae"),
    ],
)
def test_another_vae_that_is_no_autoencoder_is_refused(built, part, message):
    with pytest.raises(ModelError, match=message):
        resolve("demo", vae_id=str(built / part))


@pytest.mark.fault("model")
def test_a_download_that_is_not_what_its_name_says_is_refused(built, tmp_path):
    """Hugging Face's cache names large files by their SHA-256."""
    cache: dict[str, Any] = {"cache_dir": str(tmp_path / "cache")}
    file = cached(tmp_path / "cache", "someone/tiny", built) / f"{UNET}.safetensors"
    blob = tmp_path / "cache" / hashlib.sha256(file.read_bytes()).hexdigest()
    file.rename(blob)
    file.symlink_to(blob)
    resolve("someone/tiny", **cache)
    content = bytearray(blob.read_bytes())
    content[-1] ^= 1
    blob.write_bytes(content)
    with pytest.raises(ModelError, match=f"delete {blob} and download"):
        resolve("someone/tiny", **cache)


def test_weights_that_changed_are_seen_whatever_their_size_and_date(folder):
    file = folder / f"{UNET}.safetensors"
    first = resolve(str(folder))["sha256"]
    known = file.stat()
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    os.utime(file, ns=(known.st_atime_ns, known.st_mtime_ns))
    second = resolve(str(folder))["sha256"]
    assert [name for name in first if first[name] != second[name]] == [f"{UNET}.safetensors"]


def test_a_damaged_demo_model_is_refused(tmp_path, monkeypatch):
    shutil.copytree(DEMO_MODEL, tmp_path / "demo")
    (tmp_path / "demo/scheduler/scheduler_config.json").write_text("{}")
    monkeypatch.setattr("gpi_latents.model.source.DEMO_MODEL", tmp_path / "demo")
    with pytest.raises(ModelError, match=r"The demo model in .* is damaged: get this repository again"):
        resolve("demo")


# --- results/model.json ---


def test_the_model_is_written_for_the_jobs_and_read_by_them(built, tmp_path):
    file = tmp_path / "model.json"
    text = write_model(load_config({"model_id": str(built), "vae_id": "demo"}), file)
    assert text == f"StableDiffusionPipeline {built}, 10 files"
    assert read_model(file) == resolve(str(built), vae_id="demo")
    # Snakemake compares the bytes: another order of keys would run every item of an old study again.
    keys = ["checkpoint", "commit", "family", "model_id", "revision", "sha256", "vae", "variant"]
    assert list(json.loads(file.read_text())) == keys
    assert file.read_text() == json.dumps(read_model(file), indent=2, sort_keys=True) + "\n"


@pytest.mark.parametrize("content", [None, "{"])
def test_a_missing_or_damaged_description_of_the_model_is_named(tmp_path, content):
    if content:
        (tmp_path / "model.json").write_text(content)
    with pytest.raises(ModelError, match=r"model\.json cannot be read .*: delete it and run snakemake again"):
        read_model(tmp_path / "model.json")


def test_a_local_model_that_was_moved_away_is_named(folder):
    found = resolve(str(folder), vae_id=str(folder / "vae"))
    shutil.rmtree(folder)
    with pytest.raises(ModelError, match=f"'{folder}' does not exist"):
        locate(found)
    with pytest.raises(ModelError, match=r"/vae' does not exist"):
        locate(found | {"model_id": "demo"})
