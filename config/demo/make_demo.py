"""Make all that the demo ships: its pictures, its sheet and its model. Run `make demo` after a change here.

The model has the shape of Stable Diffusion, but is untrained: its weights are random numbers from a fixed seed. It
shows that everything works; its latents depend on the picture, but they mean nothing.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from PIL import Image, ImageDraw
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

HERE = Path(__file__).resolve().parent
SEED = 2026
COLOURS = {"red": (200, 30, 40), "blue": (30, 70, 200)}
SIZES = [(64, 64), (96, 72), (60, 90), (128, 80)]  # (width, height): not all square, so that padding is seen
PROMPTS = ["a red circle", "a blue square"]


def draw_pictures(folder: Path) -> pd.DataFrame:
    """Draw 24 pictures of a coloured shape and return their sheet.

    The treatment is the colour; the covariate is the shape's size, which shifts the outcome too and makes treatment
    more likely.
    """
    random = np.random.default_rng(SEED)
    rows = []
    for number in range(24):
        size = float(random.uniform(0.2, 0.8))
        treated = int(random.random() < 0.2 + 0.6 * size)
        colour = "red" if treated else "blue"
        shape = "circle" if number % 2 else "square"
        width, height = SIZES[number % len(SIZES)]
        ground = tuple(int(value) for value in random.integers(200, 250, 3))
        half = size * min(width, height) / 2
        x, y = width / 2 + random.uniform(-4, 4), height / 2 + random.uniform(-4, 4)
        large = Image.new("RGB", (width * 4, height * 4), ground)  # drawn large, then reduced: smooth edges
        box = [4 * (x - half), 4 * (y - half), 4 * (x + half), 4 * (y + half)]
        draw = ImageDraw.Draw(large)
        (draw.ellipse if shape == "circle" else draw.rectangle)(box, fill=COLOURS[colour])
        name = f"{number + 1:02d}_{colour}_{shape}.png"
        large.resize((width, height), Image.Resampling.LANCZOS).save(folder / name)
        outcome = 1 + 2 * treated + 3 * size + random.normal(0, 0.5)
        edited = number >= 20
        rows.append(
            {
                "id": f"shape_{number + 1:02d}",
                "image": f"config/demo/images/{name}",
                "prompt": PROMPTS[number % 2],
                "strength": [0.3, 0.6, 0.8, 1.0][number - 20] if edited else "",
                "seed": 100 + number if number % 5 == 0 else "",
                "treatment": treated,
                "outcome": round(float(outcome), 3),
                "size": round(size, 3),
            }
        )
    return pd.DataFrame(rows)


def make_model(folder: Path, width: int = 8, sample_size: int = 8, seed: int = SEED) -> None:
    """Write an untrained model of Stable Diffusion's shape in diffusers' layout.

    Args:
        folder: is made.
        width: channels of the first blocks; sets the number of weights.
        sample_size: native side of the latents, an eighth of the pictures' side in pixels.
        seed: of the weights.
    """
    torch.manual_seed(seed)
    vae = AutoencoderKL(
        down_block_types=["DownEncoderBlock2D"] * 4,
        up_block_types=["UpDecoderBlock2D"] * 4,
        block_out_channels=[width, width, 2 * width, 2 * width],
        norm_num_groups=4,
        layers_per_block=1,
        latent_channels=4,
        sample_size=8 * sample_size,
    )
    unet = UNet2DConditionModel(
        sample_size=sample_size,
        down_block_types=["DownBlock2D", "CrossAttnDownBlock2D"],
        up_block_types=["CrossAttnUpBlock2D", "UpBlock2D"],
        block_out_channels=[2 * width, 4 * width],
        norm_num_groups=4,
        layers_per_block=1,
        attention_head_dim=2,
        cross_attention_dim=4 * width,
    )
    characters = _byte_characters()
    tokens = ["<|startoftext|>", "<|endoftext|>", *characters, *(character + "</w>" for character in characters)]
    tokenizer = CLIPTokenizer(vocab={token: number for number, token in enumerate(tokens)}, merges=[])
    tokenizer.model_max_length = 77
    text_encoder = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokens),
            hidden_size=4 * width,
            intermediate_size=8 * width,
            num_hidden_layers=2,
            num_attention_heads=2,
            max_position_embeddings=77,
            bos_token_id=0,
            eos_token_id=1,
            pad_token_id=1,
        )
    )
    scheduler = DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
    )
    StableDiffusionPipeline(
        vae=vae,
        unet=unet,
        text_encoder=text_encoder,
        tokenizer=tokenizer,
        scheduler=scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    ).save_pretrained(folder)


def write_digests(folder: Path) -> None:
    """Write SHA256SUMS, which the rule `model` checks and which tells Snakemake that the demo model is another."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    lines = [f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.relative_to(folder)}\n" for path in files]
    (folder / "SHA256SUMS").write_text("".join(lines), encoding="utf-8")


def _byte_characters() -> list[str]:
    """The 256 printable stand-ins for bytes of byte-level BPE (GPT-2), so that every text has tokens."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in printable]
    return [chr(byte) for byte in printable] + [chr(256 + number) for number in range(len(others))]


if __name__ == "__main__":
    for made in ("images", "model"):
        shutil.rmtree(HERE / made, ignore_errors=True)
        (HERE / made).mkdir()
    draw_pictures(HERE / "images").to_csv(HERE.parent / "items.csv", index=False)
    make_model(HERE / "model")
    write_digests(HERE / "model")
    index = json.loads((HERE / "model/model_index.json").read_text())
    print(f"{index['_class_name']}: {sum(f.stat().st_size for f in (HERE / 'model').rglob('*') if f.is_file())} bytes")
