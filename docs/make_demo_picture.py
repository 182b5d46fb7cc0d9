"""Draw docs/demo.png, the README's picture: the report's contact sheet of some items of the demo.

.venv/bin/snakemake --cores all && .venv/bin/python docs/make_demo_picture.py
"""

import io
import json
import os
from pathlib import Path

from gpi_latents import paths
from gpi_latents.report import style
from gpi_latents.report.facts import Results, read_index
from gpi_latents.report.picture_figures import draw_sheet
from PIL import Image

SHOWN = [1, 2, 4, 6, 9, 12, 25, 26, 27, 28, 29, 30]  # the last six are edited

os.chdir(Path(__file__).resolve().parent.parent)
config = json.loads(Path(paths.PROVENANCE).read_text(encoding="utf-8"))["config"]
results = Results(config, read_index(paths.INDEX))
rows = [row for row, item_id in enumerate(results.index["id"]) if item_id in {f"shape_{n:02}" for n in SHOWN}]
style.apply()
drawn = io.BytesIO()
draw_sheet([(results.item_label(row), results.pair(row)) for row in rows]).savefig(drawn)
# 256 colours, so that it is small.
Image.open(drawn).convert("RGB").quantize(dither=Image.Dither.NONE).save("docs/demo.png", optimize=True)
print(f"docs/demo.png: {os.path.getsize('docs/demo.png') / 1000:.0f} kB")
