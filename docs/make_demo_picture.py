"""Draw docs/demo.png, the README's picture, from the demo's results: inputs above, decoded latents below."""

import sys
from pathlib import Path

from PIL import Image

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "scripts"))

import diffusion  # noqa: E402
import pandas as pd  # noqa: E402

SHOWN = ["shape_01", "shape_02", "shape_04", "shape_26", "shape_28", "shape_30"]

index = pd.read_csv(ROOT / "results/index.csv").set_index("id")
sheet = Image.new("RGB", (len(SHOWN) * 136 - 8, 2 * 136 - 8), "white")
for column, item_id in enumerate(SHOWN):
    picture, _ = diffusion.open_picture(ROOT / index.loc[item_id, "image"])
    seen, _ = diffusion.fit_picture(picture, (64, 64), "pad")
    decoded = Image.open(ROOT / f"results/images/gen_{item_id}.png")
    for row, shown in enumerate((seen, decoded)):
        sheet.paste(shown.resize((128, 128), Image.Resampling.NEAREST), (column * 136, row * 136))
sheet.save(ROOT / "docs/demo.png", optimize=True)
