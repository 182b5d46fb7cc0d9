"""Photographs of clothes whose latents the real workflow makes in the latent space of Stable Diffusion 1.x.

The photographs are Fashion-MNIST's (Zalando; 28 x 28 pixels, grey), as Debian's package `dataset-fashion-mnist` has
them. The autoencoder is the tiny one of Ollin Boer Bohan (`taesd`), in the folder that the environment variable
GPI_TEST_WEIGHTS names. Neither is part of this repository.
"""

from __future__ import annotations

import gzip
import os
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image

ROOT = Path(__file__).resolve().parent.parent.parent
DATASET = Path("/usr/share/datasets/fashion-mnist")
PAIRS = {"trousers or bag": (1, 8), "shirt or coat": (6, 4)}  # the data set's numbers of these classes
TINTS = {"red": (1.0, 0.6, 0.6), "blue": (0.6, 0.6, 1.0)}  # factors of the channels
SIDE = 64  # of a picture in pixels
SMALL = 44  # side of the photograph in it, where it is small


def weights() -> Path:
    """The folder of the autoencoder's weights, which need not be there."""
    return Path(os.environ.get("GPI_TEST_WEIGHTS", ROOT.parent / "shared/weights")).absolute() / "taesd"


def what_is_missing() -> str | None:
    """Why the study on photographs cannot run here; None if it can."""
    if not DATASET.is_dir():
        return f"{DATASET} is not there: it comes with Debian's package dataset-fashion-mnist"
    if not weights().is_dir():
        return f"{weights()} is not there: the environment variable GPI_TEST_WEIGHTS names the folder around taesd"
    return None


def draw_pool(folder: Path, counts: dict[str, int], seed: int, is_reported: bool) -> pd.DataFrame:
    """Write photographs, tinted, and a study around them.

    Args:
        folder: gets `pictures`, `config/items.csv` and `config/config.yaml`.
        counts: how many photographs of each of the `PAIRS`, half of each class.
        seed: of the tints and sizes.
        is_reported: take the photographs from the end of the data set, rather than from its beginning, where those are
            on which settings are chosen.

    Returns:
        The sheet: `id`, `image`, `prompt`, `pair`, and features that are independent of each other: `first` (1 for
        trousers or shirt, 0 for bag or coat), `red` (1) rather than blue (0), `large` (1: the photograph fills the
        picture), `hidden` (0 or 1; not in the picture).
    """
    random = np.random.default_rng(seed)
    (folder / "pictures").mkdir(parents=True, exist_ok=True)
    (folder / "config").mkdir(exist_ok=True)
    photographs, classes = _read_dataset()
    rows = []
    for pair, count in counts.items():
        for first, number in zip((1, 0), PAIRS[pair], strict=True):
            places = np.flatnonzero(classes == number)
            for place in places[-(count // 2) :] if is_reported else places[: count // 2]:
                red, large, hidden = (int(value) for value in random.integers(0, 2, 3))
                name = f"pictures/{place:05d}.png"
                _picture(photographs[place], "red" if red else "blue", SIDE if large else SMALL).save(folder / name)
                row = {"id": f"{place:05d}", "image": name, "prompt": "no change", "pair": pair, "first": first}
                rows.append(row | {"red": red, "large": large, "hidden": hidden})
    sheet = pd.DataFrame(rows)
    sheet.to_csv(folder / "config/items.csv", index=False)
    settings = f"model_id: demo\nvae_id: {weights()}\nimage_size: {SIDE}\noutput_image_dir: null\nreport: false\n"
    (folder / "config/config.yaml").write_text(settings)
    return sheet


def _read_dataset() -> tuple[np.ndarray, np.ndarray]:
    """All photographs, uint8 (70000, 28, 28), and their classes, uint8 (70000,), in the data set's order."""
    photographs, classes = [], []
    for part in ("train", "t10k"):
        content = gzip.decompress((DATASET / f"{part}-images-idx3-ubyte.gz").read_bytes())
        photographs.append(np.frombuffer(content, np.uint8, offset=16).reshape(-1, 28, 28))
        content = gzip.decompress((DATASET / f"{part}-labels-idx1-ubyte.gz").read_bytes())
        classes.append(np.frombuffer(content, np.uint8, offset=8))
    return np.concatenate(photographs), np.concatenate(classes)


def _picture(photograph: np.ndarray, tint: str, side: int) -> Image.Image:
    """The photograph, tinted, in the middle of a black square."""
    grey = np.asarray(Image.fromarray(photograph).resize((side, side), Image.Resampling.BICUBIC), np.float32)
    picture = Image.new("RGB", (SIDE, SIDE))
    tinted = (grey[..., None] * np.array(TINTS[tint])).round().astype(np.uint8)
    picture.paste(Image.fromarray(tinted), ((SIDE - side) // 2, (SIDE - side) // 2))
    return picture
