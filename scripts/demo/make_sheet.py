"""Draw the demo's pictures and write its sheet. Run `make demo` after a change here."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import shapes

CONFIG = Path(__file__).resolve().parents[2] / "config"
SEED = 2026
SIDES = [(64, 64), (96, 80), (80, 96), (128, 104)]  # (width, height): not all square, to show padding
UNCHANGED = 24  # pictures at strength 0
EDITS = [  # strength, and a prompt that asks for something else than the picture shows
    (0.3, "a green circle"),
    (0.5, "a yellow triangle"),
    (0.7, "a purple square"),
    (0.7, "a red circle on a dark ground"),
    (0.9, "a small yellow circle"),
    (1.0, "a large green triangle on the left"),
]


def draw_pictures(folder: Path) -> pd.DataFrame:
    """Draw the pictures of a coloured shape and return their sheet.

    The treatment is the colour, red or blue; the covariate is the shape's size, which shifts the outcome too and makes
    treatment more likely.

    Args:
        folder: gets the pictures.

    Returns:
        A row for each: id, image, prompt, strength, seed, treatment, outcome, size.
    """
    random = np.random.default_rng(SEED)
    rows = []
    for number in range(UNCHANGED + len(EDITS)):
        size = float(random.uniform(0.35, 0.6))
        treated = int(random.random() < 0.1 + 2.4 * (size - 0.35))
        room = 0.36 - size / 2  # so far from the border that padding mirrors nothing but the ground
        scene = shapes.random_scene(random)._replace(
            shape="circle" if number % 2 else "square",
            colour="red" if treated else "blue",
            size=size,
            x=0.5 + random.uniform(-room, room),
            y=0.5 + random.uniform(-room, room),
        )
        name = f"{number + 1:02d}_{scene.colour}_{scene.shape}.png"
        shapes.draw(*scene, side=SIDES[number % len(SIDES)]).save(folder / name)
        outcome = 1 + 2 * treated + 3 * size + random.normal(0, 0.5)
        strength, prompt = ("", "no change") if number < UNCHANGED else EDITS[number - UNCHANGED]
        rows.append(
            {
                "id": f"shape_{number + 1:02d}",
                "image": f"config/demo/images/{name}",
                "prompt": prompt,
                "strength": strength,
                "seed": 100 + number if number % 5 == 0 else "",
                "treatment": treated,
                "outcome": round(float(outcome), 3),
                "size": round(size, 3),
            }
        )
    return pd.DataFrame(rows)


if __name__ == "__main__":
    images = CONFIG / "demo/images"
    shutil.rmtree(images, ignore_errors=True)
    images.mkdir()
    draw_pictures(images).to_csv(CONFIG / "items.csv", index=False)
