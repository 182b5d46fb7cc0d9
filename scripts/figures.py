"""Draw the report's figures: of each a PNG file, an SVG file, and its numbers and words in a JSON file."""

import argparse
from pathlib import Path

from gpi_latents.errors import exit_code
from gpi_latents.report.figures import draw_all

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--plan", type=Path, required=True, help="folder with the plan of the run")
    parser.add_argument("--index", type=Path, required=True, help="the index table")
    parser.add_argument("--folder", type=Path, required=True, help="for the files")
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    raise SystemExit(exit_code(lambda: draw_all(**vars(arguments))))
