"""Repositories of the hub as they really are, around small untrained weights.

`repositories.json` has the files of each with their sizes in bytes. Those above a megabyte are the hub's own answers,
as people published them (github.com, June to September 2026: lists of `HfApi.model_info(files_metadata=True)`, and a
manifest of FLUX.1-schnell's snapshot); those of Stable Diffusion 2.1 are from marigold-v1-0, which has its parts, and
from memory. The small ones are from memory, and matter to nothing but a sum.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from helpers import families

SIZES: dict[str, dict[str, int]] = json.loads(Path(__file__).with_suffix(".json").read_text())
SD_1 = "stable-diffusion-v1-5/stable-diffusion-v1-5"
SD_2 = "stabilityai/stable-diffusion-2-1"
SD_XL = "stabilityai/stable-diffusion-xl-base-1.0"
SD_3 = "stabilityai/stable-diffusion-3.5-large"
FLUX = "black-forest-labs/FLUX.1-dev"
FAMILY = {SD_1: "stable-diffusion", SD_2: "stable-diffusion-2", SD_XL: "stable-diffusion-xl"}
FAMILY |= {SD_3: "stable-diffusion-3", FLUX: "flux"}

_BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "num_train_timesteps": 1000}
_BETAS |= {"clip_sample": False, "set_alpha_to_one": False, "skip_prk_steps": True, "steps_offset": 1}
_BETAS |= {"trained_betas": None}
# scheduler/scheduler_config.json of each, whole; those of 1.5 and XL as published, the others from memory.
SCHEDULERS = {
    SD_1: {"_class_name": "PNDMScheduler", "_diffusers_version": "0.6.0"} | _BETAS,
    SD_2: {"_class_name": "DDIMScheduler", "_diffusers_version": "0.8.0", "prediction_type": "v_prediction"} | _BETAS,
    SD_XL: {"_class_name": "EulerDiscreteScheduler", "_diffusers_version": "0.19.0.dev0"}
    | {"interpolation_type": "linear", "prediction_type": "epsilon", "sample_max_value": 1.0}
    | {"timestep_spacing": "leading", "use_karras_sigmas": False}
    | _BETAS,
    SD_3: {"_class_name": "FlowMatchEulerDiscreteScheduler", "_diffusers_version": "0.29.0.dev0"}
    | {"num_train_timesteps": 1000, "shift": 3.0},
    FLUX: {"_class_name": "FlowMatchEulerDiscreteScheduler", "_diffusers_version": "0.30.0.dev0"}
    | {"base_image_seq_len": 256, "base_shift": 0.5, "max_image_seq_len": 4096, "max_shift": 1.15}
    | {"num_train_timesteps": 1000, "shift": 3.0, "use_dynamic_shifting": True},
}
# What their model_index.json says otherwise than diffusers writes today.
_INDEX = {
    SD_1: {
        "_diffusers_version": "0.6.0",
        "feature_extractor": ["transformers", "CLIPImageProcessor"],
        "safety_checker": ["stable_diffusion", "StableDiffusionSafetyChecker"],
    },
    SD_2: {
        "_diffusers_version": "0.8.0",
        "feature_extractor": ["transformers", "CLIPFeatureExtractor"],  # transformers has it no more
        "requires_safety_checker": False,
        "safety_checker": [None, None],
    },
    SD_XL: {"_diffusers_version": "0.19.0.dev0", "force_zeros_for_empty_prompt": True, "add_watermarker": None},
    SD_3: {"_diffusers_version": "0.30.3.dev0", "tokenizer_3": ["transformers", "T5TokenizerFast"]},
    FLUX: {"_diffusers_version": "0.30.0.dev0", "tokenizer_2": ["transformers", "T5TokenizerFast"]},
}
_INDEX[SD_1]["requires_safety_checker"] = None  # none of these keys at that time
# The keys of a part's config when its first repository was made, with diffusers 0.6.0.
_OLD_KEYS = {"_class_name", "act_fn", "block_out_channels", "down_block_types", "in_channels", "layers_per_block"}
_OLD_KEYS |= {"norm_num_groups", "out_channels", "sample_size", "up_block_types", "latent_channels"}
_OLD_KEYS |= {"attention_head_dim", "center_input_sample", "cross_attention_dim", "downsample_padding"}
_OLD_KEYS |= {"flip_sin_to_cos", "freq_shift", "mid_block_scale_factor", "norm_eps"}


def skeleton(repository: str, folder: Path) -> Path:
    """Fill a folder with all files of a repository; return a model beside it that has the same weights as of today."""
    plain = families.model(FAMILY[repository], folder.with_name("plain"))
    (plain / "scheduler/scheduler_config.json").write_text(json.dumps(SCHEDULERS[repository]))
    weights = {
        part: _weights(repository, plain / part) for part in _parts(repository) if any(plain.glob(f"{part}/*.s*"))
    }
    for name in SIZES[repository]:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.parent.name
        is_part = (plain / part).is_dir()
        if path.name == "model_index.json":
            index = json.loads((plain / name).read_text()) | _INDEX[repository]
            path.write_text(json.dumps({key: value for key, value in index.items() if value is not None}))
        elif path.name == "scheduler_config.json":
            path.write_text(json.dumps(SCHEDULERS[repository]))
        elif is_part and part.startswith("tokenizer"):
            _write_tokenizer(plain / part, path)
        elif is_part and path.name == "config.json":
            path.write_text(json.dumps(_config(repository, json.loads((plain / name).read_text()))))
        elif is_part and (
            found := re.fullmatch(r"(model|diffusion_pytorch_model)(\.\w+)?(.*)\.safetensors", path.name)
        ):
            _write_weights(weights[part], path, *found.groups())
        elif not path.exists():  # an index is written with its weights
            path.write_text(f"not to be read: {name}")
    return plain


def _parts(repository: str) -> set[str]:
    return {name.split("/")[0] for name in SIZES[repository] if "/" in name}


def _config(repository: str, config: dict) -> dict:
    """A part's config as it was written then."""
    if repository not in (SD_1, SD_2):
        return config
    if "model_type" in config:  # CLIP's first configs had wrong numbers, which transformers replaces by the highest
        return config | {"bos_token_id": 0, "eos_token_id": 2, "pad_token_id": 1}
    known = _OLD_KEYS | ({"use_linear_projection"} if repository == SD_2 else set())
    return {key: value for key, value in config.items() if key in known} | {"_diffusers_version": "0.6.0"}


def _weights(repository: str, part: Path) -> dict[str, torch.Tensor]:
    """A part's weights by the names that they have in the repository."""
    weights = load_file(next(part.glob("*.safetensors")))
    config = json.loads((part / "config.json").read_text())
    if config.get("model_type") == "clip_text_model":
        weights = {
            name if name.startswith(("text_model", "text_projection")) else f"text_model.{name}": tensor
            for name, tensor in weights.items()
        }
        if repository in (SD_1, SD_2):
            weights["text_model.embeddings.position_ids"] = torch.arange(config["max_position_embeddings"])[None]
    if repository in (SD_1, SD_2) and part.name == "vae":
        old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
        pattern = r"(attentions\.0\.)(" + "|".join(map(re.escape, old)) + ")"
        weights = {re.sub(pattern, lambda f: f[1] + old[f[2]], name): tensor for name, tensor in weights.items()}
    return weights


def _write_weights(weights: dict[str, torch.Tensor], path: Path, stem: str, variant: str | None, shard: str) -> None:
    """Write the weights, or their share in a shard with its index."""
    names = sorted(weights)
    if shard:
        number, count = map(int, re.findall(r"\d{5}", shard))
        share = {
            name: f"{stem}{variant or ''}-{i % count + 1:05}-of-{count:05}.safetensors" for i, name in enumerate(names)
        }
        index = path.with_name(f"{stem}.safetensors.index{variant or ''}.json")
        index.write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": share}))
        names = names[number - 1 :: count]
    tensors = {
        name: weights[name].half() if variant and weights[name].is_floating_point() else weights[name] for name in names
    }
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path, metadata={"format": "pt"})


def _write_tokenizer(plain: Path, path: Path) -> None:
    """A tokenizer's file: CLIP's comes as a vocabulary and merges alone, T5's with a whole tokenizer too."""
    whole = json.loads((plain / "tokenizer.json").read_text())
    if path.name == "tokenizer.json":
        path.write_text(json.dumps(whole))
    elif path.name == "vocab.json":
        path.write_text(json.dumps(whole["model"]["vocab"]))
    elif path.name == "merges.txt":
        merges = [pair if isinstance(pair, str) else " ".join(pair) for pair in whole["model"]["merges"]]
        path.write_text("\n".join(["#version: 0.2", *merges, ""]))
    elif path.name == "tokenizer_config.json" and "merges" in whole["model"]:
        token = {"__type": "AddedToken", "lstrip": False, "normalized": True, "rstrip": False, "single_word": False}
        tokens = {
            key: token | {"content": f"<|{kind}oftext|>"}
            for key, kind in (("bos_token", "start"), ("eos_token", "end"))
        }
        config = {
            "add_prefix_space": False,
            "do_lower_case": True,
            "errors": "replace",
            "model_max_length": 77,
        } | tokens
        config |= {
            "name_or_path": "openai/clip-vit-large-patch14",
            "pad_token": "<|endoftext|>",
            "tokenizer_class": "CLIPTokenizer",
        }
        path.write_text(json.dumps(config | {"unk_token": tokens["eos_token"]}))
    elif path.name == "tokenizer_config.json":
        path.write_text((plain / path.name).read_text())
    elif path.name == "special_tokens_map.json" and "merges" in whole["model"]:
        path.write_text(json.dumps({"pad_token": "<|endoftext|>"}))
    elif path.name == "special_tokens_map.json":
        path.write_text(json.dumps({"eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}))
    else:
        path.write_bytes(b"spiece")
