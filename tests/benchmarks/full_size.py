"""Measure Stable Diffusion XL in full size on a CPU, with random weights: loading, peak memory, time per image.

    .venv/bin/python tests/benchmarks/full_size.py /tmp/xl --dtype bfloat16 --strength 0 0.5

The model, 7 GB on disk as the hub's variant fp16 is, is made in the folder unless it is there; delete it afterwards.
One torch thread computes, as for each item of a run, so its time is what a core needs whatever else runs. Above
strength 0, one step is done, with guidance.
"""

from __future__ import annotations

import argparse
import json
import math
import multiprocessing
import resource
import shutil
import time
from pathlib import Path

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from gpi_latents.core.diffusion import Model, same_bits
from gpi_latents.paths import DEMO_MODEL
from PIL import Image
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

# As in the repository stabilityai/stable-diffusion-xl-base-1.0; what is not named is the classes' default there.
UNET = {
    "sample_size": 128,
    "block_out_channels": [320, 640, 1280],
    "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
    "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
    "attention_head_dim": [5, 10, 20],
    "transformer_layers_per_block": [1, 2, 10],
    "cross_attention_dim": 2048,
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816,
}
VAE = {
    "sample_size": 1024,
    "block_out_channels": [128, 256, 512, 512],
    "down_block_types": ["DownEncoderBlock2D"] * 4,
    "up_block_types": ["UpDecoderBlock2D"] * 4,
    "layers_per_block": 2,
    "scaling_factor": 0.13025,
    "force_upcast": True,
}
CLIP_L = {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12}
CLIP_G = {"hidden_size": 1280, "intermediate_size": 5120, "num_hidden_layers": 32, "num_attention_heads": 20}
SCHEDULER = {
    "_class_name": "EulerDiscreteScheduler",
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "steps_offset": 1,
    "timestep_spacing": "leading",
}


def make(folder: Path) -> None:
    """Write the model in diffusers' layout."""
    with torch.device("meta"):
        parts = {
            "vae": AutoencoderKL(**VAE),
            "unet": UNet2DConditionModel(**UNET),
            "text_encoder": CLIPTextModel(CLIPTextConfig(projection_dim=768, **CLIP_L)),
            "text_encoder_2": CLIPTextModelWithProjection(
                CLIPTextConfig(projection_dim=1280, hidden_act="gelu", **CLIP_G)
            ),
        }
    index = {"_class_name": "StableDiffusionXLPipeline", "force_zeros_for_empty_prompt": True}
    index["scheduler"] = ["diffusers", "EulerDiscreteScheduler"]
    for name, part in parts.items():
        library = "transformers" if name.startswith("text") else "diffusers"
        index[name] = [library, type(part).__name__]
        (folder / name).mkdir(parents=True)
        part.config.save_pretrained(folder / name) if library == "transformers" else part.save_config(folder / name)
        file = "model" if library == "transformers" else "diffusion_pytorch_model"
        shapes = {key: list(tensor.shape) for key, tensor in part.state_dict().items()}
        write_random(folder / name / f"{file}.safetensors", shapes)
    for name in ("tokenizer", "tokenizer_2"):
        index[name] = ["transformers", "CLIPTokenizer"]
        shutil.copytree(DEMO_MODEL / "tokenizer", folder / name)
    (folder / "scheduler").mkdir()
    (folder / "scheduler/scheduler_config.json").write_text(json.dumps(SCHEDULER))
    (folder / "model_index.json").write_text(json.dumps(index))


def write_random(path: Path, shapes: dict[str, list[int]]) -> None:
    """Write a safetensors file of random float16 values, one tensor after the other so that none waits in memory."""
    header, end = {}, 0
    for name, shape in shapes.items():
        start, end = end, end + 2 * math.prod(shape)
        header[name] = {"dtype": "F16", "shape": shape, "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for shape in shapes.values():
            file.write((torch.randn(math.prod(shape)) * 0.02).half().numpy().tobytes())


def measure(folder: Path, dtype: str, strength: float, size: int) -> None:
    """Load the model, extract one item, and print what it took."""
    same_bits()
    began = time.perf_counter()
    model = Model(folder, dtype=dtype)
    recipe = {"image_size": size, "resize": "pad", "posterior": "sample", "seed": 7, "strength": strength}
    if strength:
        recipe |= {"prompt": "a red circle", "guidance_scale": 5.0, "scheduler": "auto"}
        recipe |= {"num_inference_steps": math.ceil(1 / strength)}  # one is left to do
        _ = model.pipelines.loaded
    loaded, busy = time.perf_counter(), time.process_time()
    picture, _ = model.prepare(Image.effect_mandelbrot((size, size), (-2, -1, 1, 1), 30).convert("RGB"), recipe)
    model.latent(picture, recipe)
    seconds = time.process_time() - busy
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    print(
        f"{dtype}, strength {strength}, {size} pixels: loaded in {loaded - began:.0f} s, "
        f"{seconds:.0f} s of a core for the image, peak {peak:.1f} GB",
        flush=True,
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--strength", type=float, nargs="+", default=[0.0])
    parser.add_argument("--size", type=int, default=1024)
    arguments = parser.parse_args()
    if not (arguments.folder / "model_index.json").exists():
        make(arguments.folder)
    for strength in arguments.strength:  # each in its own process, for its own peak
        process = multiprocessing.get_context("spawn").Process(
            target=measure, args=(arguments.folder, arguments.dtype, strength, arguments.size)
        )
        process.start()
        process.join()
