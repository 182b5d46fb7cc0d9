"""Draw docs/demo.png, the README's picture: the report's contact sheet of some items of the demo.

.venv/bin/snakemake --cores all && .venv/bin/python docs/make_demo_picture.py
"""

import io
import os
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "scripts"))

import figures  # noqa: E402
import items  # noqa: E402
import measures  # noqa: E402
import yaml  # noqa: E402
from PIL import Image  # noqa: E402

SHOWN = [1, 2, 4, 6, 9, 12, 25, 26, 27, 28, 29, 30]  # the last six are edited

os.chdir(ROOT)
config = items.load_config(yaml.safe_load(Path("config/config.yaml").read_text(encoding="utf-8")))
results = figures.Results(config, measures.read_index("results/index.csv"))
rows = [row for row, item_id in enumerate(results.index["id"]) if item_id in {f"shape_{n:02}" for n in SHOWN}]
figures.style()
drawn = io.BytesIO()
figures.draw_sheet([(results.item_label(row), results.pair(row)) for row in rows]).savefig(drawn)
# 256 colours, so that it is small.
Image.open(drawn).convert("RGB").quantize(dither=Image.Dither.NONE).save("docs/demo.png", optimize=True)
print(f"docs/demo.png: {os.path.getsize('docs/demo.png') / 1000:.0f} kB")
