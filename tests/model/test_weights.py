"""Which of a part's files its weights are loaded from, by their names."""

from __future__ import annotations

from pathlib import PurePath

import pytest
from gpi_latents.errors import ModelError
from gpi_latents.model.weights import check_variant, chosen_weights, part_weights

NAME = "diffusion_pytorch_model"


def paths(*names: str) -> list[PurePath]:
    return [PurePath(f"unet/{name}") for name in names]


@pytest.mark.parametrize(
    ("names", "variant", "allow_pickle", "chosen"),
    [
        ([f"{NAME}.safetensors", f"{NAME}.bin", "config.json"], None, True, [f"{NAME}.safetensors"]),
        (["model.safetensors", "pytorch_model.bin"], None, True, ["model.safetensors"]),
        (["pytorch_model.bin"], None, True, ["pytorch_model.bin"]),
        (["pytorch_model.bin"], None, False, []),
        ([f"{NAME}.safetensors", f"{NAME}.fp16.safetensors"], None, False, [f"{NAME}.safetensors"]),
        ([f"{NAME}.safetensors", f"{NAME}.fp16.safetensors"], "fp16", False, [f"{NAME}.fp16.safetensors"]),
        ([f"{NAME}.safetensors"], "fp16", False, [f"{NAME}.safetensors"]),
        ([f"{NAME}.safetensors", f"{NAME}.fp16.bin"], "fp16", True, [f"{NAME}.fp16.bin"]),
        ([f"{NAME}.fp16.safetensors"], None, False, []),
        ([f"{NAME}.non_ema.safetensors"], "non_ema", False, [f"{NAME}.non_ema.safetensors"]),
        (["openvino_model.bin", "flax_model.msgpack", "model.onnx", "v1-5-pruned.safetensors"], None, True, []),
    ],
)
def test_a_variant_is_taken_where_there_is_one_and_pickles_where_there_are_no_safetensors(
    names, variant, allow_pickle, chosen
):
    assert chosen_weights(paths(*names), variant, allow_pickle) == paths(*chosen)


@pytest.mark.parametrize("name", ["{}-0000{}-of-00002.safetensors", "{}.fp16-0000{}-of-00002.safetensors"])
def test_all_shards_are_taken_in_order(name):
    files = paths(*(name.format(NAME, number) for number in (2, 1)), f"{NAME}.safetensors.index.json")
    assert chosen_weights(files, "fp16" if "fp16" in name else None, allow_pickle=False) == files[1::-1]


def test_tokenizers_and_schedulers_have_no_weights():
    for part in ("tokenizer_2", "scheduler"):
        assert part_weights(paths("model.safetensors"), part, None, allow_pickle=False, owner="The model") == []


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ([f"{NAME}.bin"], r"The model no has no safetensors weights for its unet\..*strangers.*allow_pickle: true"),
        (
            [f"{NAME}.bf16.safetensors", f"{NAME}.fp16.bin"],
            "its unet only weights of the variant bf16 or fp16: name it",
        ),
        (["config.json"], "The model no is incomplete: its unet has no weights"),
    ],
)
def test_a_part_whose_weights_cannot_be_loaded_is_refused(names, message):
    with pytest.raises(ModelError, match=message):
        part_weights(paths(*names), "unet", None, allow_pickle=False, owner="The model no")


def test_a_variant_that_no_part_has_is_refused():
    files = paths(f"{NAME}.fp16.safetensors", f"{NAME}.ema.bin", f"{NAME}.safetensors")
    check_variant(files, "ema", "The model")
    check_variant(files, None, "The model")
    with pytest.raises(ModelError, match="The model has no weights of the variant 'bf16'; those it has: ema, fp16"):
        check_variant(files, "bf16", "The model")
    with pytest.raises(ModelError, match="those it has: none"):
        check_variant(files[2:], "fp16", "The model")
