"""Models of the hub, which a stand-in serves to Hugging Face's own client, and checkpoints in one file."""

from __future__ import annotations

import errno
import hashlib
import os
import re
import shutil
import socket
import subprocess
import sys
from typing import Any

import pytest
import torch
from gpi_latents.errors import ModelError
from gpi_latents.model.hub_client import LogLines
from gpi_latents.model.source import locate, resolve
from gpi_latents.recipe import canonical
from gpi_latents.study.settings import load_config
from helpers import families
from helpers.checkpoints import PICKLED, UNET, cached, only_variant, pickle_weights
from helpers.hub import COMMIT, REPOSITORY
from helpers.study import ROOT
from huggingface_hub import constants
from safetensors.torch import save_file
from snakemake.cli import get_argument_parser

WEIGHTS = {f"{name}.safetensors" for name in PICKLED}
ORIGINAL = "stable-diffusion-v1-5/stable-diffusion-v1-5"  # its configs are those of a single file of this shape


def weights(files: list[str]) -> set[str]:
    return {name for name in files if name.endswith((".safetensors", ".bin"))}


# --- The hub ---


def test_only_what_is_used_is_downloaded_and_it_is_found_again_without_the_network(
    folder, tmp_path, serve, latents, expected
):
    unused = [f"{UNET}.fp16.safetensors", f"{UNET}.bin", "unet/openvino_model.bin", "model.safetensors", "README.md"]
    unused += [f"vae_1_0/{UNET.split('/')[1]}.safetensors", "safety_checker/model.safetensors", "unet/evil.py"]
    for name in unused:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(name)
    cache = tmp_path / "cache"
    options: dict[str, Any] = {"cache_dir": str(cache), "vae_id": REPOSITORY, "allow_pickle": True}
    with serve(folder) as served:
        found = resolve(REPOSITORY, **options)
    assert weights(served.served) == WEIGHTS
    assert not {*unused} & {*served.served}
    assert weights(list(found["sha256"])) == WEIGHTS
    assert found["commit"] == found["vae"]["commit"] == COMMIT
    assert all(map(torch.equal, latents(found, cache), expected))
    assert resolve(REPOSITORY, **options) == found


def test_what_was_interrupted_is_downloaded_by_the_next_run_and_named_without_the_network(folder, tmp_path, serve):
    cache: dict[str, Any] = {"cache_dir": str(tmp_path / "cache")}
    with serve(folder):
        found = resolve(REPOSITORY, **cache)
    file = locate(found, **cache)["folder"] / f"{UNET}.safetensors"
    file.unlink()
    with pytest.raises(ModelError, match="is not in the cache of this machine and could not be downloaded"):
        resolve(REPOSITORY, **cache)
    with pytest.raises(ModelError, match="not in the cache of this machine: run `snakemake ") as refused:
        locate(found, **cache)
    words = str(refused.value).split("`")[1].split()[1:]
    assert get_argument_parser().parse_args(words).targets == ["model"]  # or it would make everything
    with serve(folder):
        assert resolve(REPOSITORY, **cache) == found
    assert file.exists()


def test_a_variant_of_the_hub_is_taken_where_a_part_has_it(folder, tmp_path, serve):
    shutil.copy(folder / f"{UNET}.safetensors", folder / f"{UNET}.fp16.safetensors")
    with serve(folder) as served:
        found = resolve(REPOSITORY, cache_dir=str(tmp_path / "cache"), variant="fp16")
    used = WEIGHTS ^ {f"{UNET}.safetensors", f"{UNET}.fp16.safetensors"}
    assert weights(served.served) == weights(list(found["sha256"])) == used


def test_allowed_pickles_are_taken_for_those_parts_that_have_nothing_else(folder, tmp_path, serve, latents, expected):
    pickle_weights(folder, {UNET: PICKLED[UNET]})
    with serve(folder) as served:
        found = resolve(REPOSITORY, cache_dir=str(tmp_path / "cache"), allow_pickle=True)
    assert weights(served.served) == WEIGHTS ^ {f"{UNET}.safetensors", f"{UNET}.bin"}
    assert all(map(torch.equal, latents(found, tmp_path / "cache"), expected))


@pytest.mark.parametrize(
    ("prepare", "options", "message"),
    [
        (pickle_weights, {}, r"tiny has no safetensors.*strangers.*allow_pickle: true"),
        (only_variant, {}, "has for its vae only weights of the variant fp16: name it by the key variant"),
        (only_variant, {"variant": "bf16"}, "someone/tiny has no weights of the variant 'bf16'; those it has: fp16"),
        (lambda folder: None, {"variant": "fp16"}, "no weights of the variant 'fp16'; those it has: none"),
        (
            lambda folder: (folder / "model_index.json").write_text('{"_class_name": "KandinskyPipeline"}'),
            {},
            "is a KandinskyPipeline, which is not supported",
        ),
        (
            lambda folder: (folder / "model_index.json").write_text(
                (folder / "model_index.json").read_text().replace('"transformers"', '"evil"')
            ),
            {},
            "brings code of its own for its text_encoder",
        ),
        (lambda folder: (folder / "model_index.json").unlink(), {}, "has no model_index.json"),
        (lambda folder: (folder / f"{UNET}.safetensors").unlink(), {}, "incomplete: its unet has no weights"),
    ],
    ids=[
        "pickled",
        "variant unsaid",
        "other variant",
        "no variant",
        "family",
        "foreign code",
        "no model",
        "no weights",
    ],
)
def test_a_model_of_the_hub_that_cannot_be_used_is_refused_before_its_weights_are_downloaded(
    folder, tmp_path, serve, prepare, options, message
):
    prepare(folder)
    with serve(folder) as served, pytest.raises(ModelError, match=message):
        resolve(REPOSITORY, cache_dir=str(tmp_path / "cache"), **options)
    assert weights(served.served) == set()


def test_an_autoencoder_of_the_hub_with_pickled_weights_alone_is_taken_only_when_allowed(
    built, tmp_path, serve, latents, expected
):
    other = tmp_path / "other"
    shutil.copytree(built / "vae", other)
    pickle_weights(other, {"diffusion_pytorch_model": "diffusion_pytorch_model.bin"})
    options: dict[str, Any] = {"vae_id": REPOSITORY, "cache_dir": str(tmp_path / "cache")}
    with serve(other) as served:
        with pytest.raises(ModelError, match=r"autoencoder someone/tiny has no safetensors.*allow_pickle: true"):
            resolve(str(built), **options)
        assert weights(served.served) == set()
        found = resolve(str(built), **options, allow_pickle=True)
    assert all(map(torch.equal, latents(found, tmp_path / "cache"), expected))


@pytest.mark.parametrize(
    ("given", "refuses", "message"),
    [
        ({}, (401, {"X-Error-Code": "GatedRepo"}), "someone/tiny is gated.*HF_TOKEN"),  # no token
        ({}, (403, {"X-Error-Code": "GatedRepo"}), "someone/tiny is gated.*HF_TOKEN"),  # terms not accepted
        (
            {},
            (401, {"X-Error-Message": "Invalid credentials in Authorization header"}),
            r"refuses the access token .* someone/tiny \(Invalid credentials.*HF_TOKEN",
        ),
        (
            {},
            (403, {"X-Error-Message": "Please enable access to public gated repositories in your token's settings"}),
            r"refuses the access token .* someone/tiny \(Please enable .*HF_TOKEN",
        ),
        ({}, (429, {}), "takes no more requests from here for now.*try again later"),
        ({"model_id": "no/body"}, None, "no model no/body.*HF_TOKEN"),
        ({"revision": "v9"}, None, "someone/tiny has no revision 'v9'"),
        ({}, (500, {}), "could not be downloaded"),
    ],
)
def test_what_the_hub_refuses_is_said_in_words(built, tmp_path, serve, monkeypatch, given, refuses, message):
    monkeypatch.setattr("time.sleep", lambda seconds: None)  # the client tries again after some seconds
    with serve(built, refuses=refuses), pytest.raises(ModelError, match=message):
        resolve(**{"model_id": REPOSITORY, "cache_dir": str(tmp_path / "cache")} | given)


@pytest.mark.fault("model")
def test_a_file_that_arrives_in_part_is_named_and_the_next_run_goes_on(folder, tmp_path, serve, monkeypatch):
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    cache = str(tmp_path / "cache")
    weights = f"{UNET}.safetensors"
    with (
        serve(folder, sends=lambda name, content: content[:1000] if name == weights else content),
        pytest.raises(ModelError, match=r"someone/tiny .*could not be downloaded"),
    ):
        resolve(REPOSITORY, cache_dir=cache)
    with serve(folder) as served:
        found = resolve(REPOSITORY, cache_dir=cache)
    assert served.served == [weights]
    assert found["sha256"][weights] == hashlib.sha256((folder / weights).read_bytes()).hexdigest()


@pytest.mark.fault("model")
def test_weights_that_arrive_with_other_bytes_are_refused(folder, tmp_path, serve):
    def spoiled(name: str, content: bytes) -> bytes:
        return content[:-1] + b"?" if name == f"{UNET}.safetensors" else content

    message = rf"{UNET}\.safetensors is damaged: delete .* and download the model again"
    with serve(folder, sends=spoiled), pytest.raises(ModelError, match=message):
        resolve(REPOSITORY, cache_dir=str(tmp_path / "cache"))


@pytest.mark.fault("model")
@pytest.mark.timeout(120)
def test_a_hub_that_accepts_and_stays_silent_ends_in_a_message(tmp_path):
    (tmp_path / "config.json").write_text(canonical(load_config({"model_id": REPOSITORY, "cache_dir": "cache"})))
    with socket.create_server(("127.0.0.1", 0)) as silent:  # the system accepts for it
        address = f"http://127.0.0.1:{silent.getsockname()[1]}"
        ran = subprocess.run(
            [sys.executable, ROOT / "scripts/model.py", "--plan", ".", "--output", "model.json"],
            cwd=tmp_path,
            env=os.environ | {"HF_ENDPOINT": address, "HF_HUB_DOWNLOAD_TIMEOUT": "1", "HF_HUB_OFFLINE": "0"},
            capture_output=True,
            text=True,
            timeout=100,
        )
    assert ran.returncode == 1
    *_, message = ran.stderr.splitlines()
    assert re.search(
        f"could not be downloaded .{address} did not answer within 1 s.*name a folder.*HF_HUB_OFFLINE=1", message
    )
    assert "Traceback" not in ran.stderr


@pytest.mark.fault("model")
@pytest.mark.timeout(120)
def test_a_hub_that_falls_silent_when_files_are_asked_for_ends_in_a_message(built, tmp_path, serve, monkeypatch):
    monkeypatch.setattr("time.sleep", lambda seconds: None)  # the client tries again after some seconds
    monkeypatch.setattr(constants, "HF_HUB_DOWNLOAD_TIMEOUT", 0.2)
    with serve(built, silent=True), pytest.raises(ModelError, match=r"did not answer within 0.2 s.*name a folder"):
        resolve(REPOSITORY, cache_dir=str(tmp_path / "cache"))


def test_the_log_tells_how_far_a_download_is(built, tmp_path, serve, capsys):
    with serve(built) as served:
        resolve(REPOSITORY, cache_dir=str(tmp_path / "cache"))
    log = capsys.readouterr().err
    assert f"looking for the model {REPOSITORY}" in log
    received = sum((built / name).stat().st_size for name in served.served if name.endswith(".safetensors")) / 1e6
    assert f"downloaded {received:.1f} of {received:.1f} MB" in log
    assert "\r" not in log


def test_a_long_download_does_not_fill_the_log(capsys):
    bar = LogLines(total=10**9, desc="Downloading bytes", unit="B", mininterval=0, miniters=1)
    for _ in range(1000):
        bar.update(10**6)
    assert capsys.readouterr().err == "downloaded 1.0 of 1,000.0 MB\n"


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),  # as writing says it
        PermissionError(errno.EACCES, "Permission denied", "/home/someone/.cache"),
        FileNotFoundError(errno.ENOENT, "No such file or directory", "/proc/.cache"),  # where HOME is no real one
    ],
)
def test_a_cache_that_is_full_or_cannot_be_made_is_named(monkeypatch, error):
    def fail(*_, **__):
        raise error

    monkeypatch.setattr("huggingface_hub.snapshot_download", fail)
    message = f"someone/tiny cannot be stored in the cache: {error}; name a folder that has room"
    with pytest.raises(ModelError, match=re.escape(message)):
        resolve(REPOSITORY)


# --- Single files ---


def test_a_single_file_gives_the_latents_of_the_folder(built, tmp_path, latents, expected):
    """Its configs are those of Stable Diffusion 1.5 in the cache, which here stands for the tiny model."""
    cache = tmp_path / "cache"
    cached(cache, ORIGINAL, built)
    file = families.single_file(built, tmp_path / "single file.safetensors")
    found = resolve(str(file), cache_dir=str(cache))
    assert found["checkpoint"] == hashlib.sha256(file.read_bytes()).hexdigest()
    shutil.rmtree(cache / f"models--{ORIGINAL.replace('/', '--')}")
    assert all(map(torch.equal, latents(found, cache), expected))
    assert resolve(str(file), cache_dir=str(cache)) == found  # converted once


@pytest.mark.parametrize("content", [b"", b"no weights", b"\x00" * 100])
def test_a_single_file_that_is_no_checkpoint_is_refused(tmp_path, content):
    file = tmp_path / "single.safetensors"
    file.write_bytes(content)
    with pytest.raises(ModelError, match="cannot be read"):
        resolve(str(file), cache_dir=str(tmp_path / "cache"))


def test_a_single_file_that_holds_something_else_is_refused_and_leaves_nothing(built, tmp_path):
    cache = tmp_path / "cache"
    file = tmp_path / "lora.safetensors"
    save_file({"lora.up.weight": torch.zeros(4)}, file)
    with pytest.raises(ModelError, match=r"whose configs the checkpoint .* needs.* could not be downloaded"):
        resolve(str(file), cache_dir=str(cache))
    snapshot = cached(cache, ORIGINAL, built)
    with pytest.raises(ModelError, match="cannot be read as a whole model"):
        resolve(str(file), cache_dir=str(cache))
    assert list((cache / "converted").iterdir()) == []
    (snapshot / "model_index.json").write_text('{"_class_name": "KandinskyPipeline"}')
    with pytest.raises(ModelError, match=rf"lora.safetensors is made after {ORIGINAL}: .* is a KandinskyPipeline"):
        resolve(str(file), cache_dir=str(cache))
