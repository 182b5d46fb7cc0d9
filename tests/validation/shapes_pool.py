"""Drawn pictures of a coloured shape, whose latents the real workflow makes with the demo's model."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pandas as pd

ROOT = Path(__file__).resolve().parent.parent.parent
if (DEMO := str(ROOT / "scripts/demo")) not in sys.path:
    sys.path.insert(0, DEMO)

import shapes  # noqa: E402

FEATURES = ["red", "size", "light", "dot"]


def draw_pool(folder: Path, count: int, seed: int) -> pd.DataFrame:
    """Draw pictures and write a study around them.

    Args:
        folder: gets `pictures`, `config/items.csv` and `config/config.yaml`.
        count: of pictures.
        seed: of the features.

    Returns:
        The sheet: `id`, `image`, `prompt` and the `FEATURES`, which are independent of each other: `red` (1) rather
        than blue (0), `size` (share of the side), `light` (brightness of the ground, 0 to 1), `dot` (1: one pixel in a
        corner is a little darker).
    """
    random = np.random.default_rng(seed)
    (folder / "pictures").mkdir(parents=True, exist_ok=True)
    (folder / "config").mkdir(exist_ok=True)
    rows = []
    for number in range(count):
        scene = shapes.random_scene(random)
        red, dot = (int(value) for value in random.integers(0, 2, 2))
        scene = scene._replace(shape="circle" if random.integers(2) else "square", colour="red" if red else "blue")
        picture = shapes.draw(*scene)
        if dot:
            picture.putpixel((2, 2), tuple(max(0, value - 12) for value in scene.ground))
        name = f"pictures/{number:04d}.png"
        picture.save(folder / name)
        light = sum(scene.ground) / (3 * 255)
        row = {"id": f"{number:04d}", "image": name, "prompt": "no change", "red": red, "size": round(scene.size, 4)}
        rows.append(row | {"light": round(light, 4), "dot": dot})
    sheet = pd.DataFrame(rows)
    sheet.to_csv(folder / "config/items.csv", index=False)
    (folder / "config/config.yaml").write_text("model_id: demo\noutput_image_dir: null\nreport: false\n")
    return sheet
