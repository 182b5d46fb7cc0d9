"""Draw one figure of the report into a PNG file, with its numbers and words in a JSON file."""

import argparse
from pathlib import Path

from gpi_latents.errors import exit_code
from gpi_latents.paths import FIGURES
from gpi_latents.report.figures import draw

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--plan", type=Path, required=True, help="folder with the plan of the run")
    parser.add_argument("--figure", choices=FIGURES, required=True)
    parser.add_argument("--index", type=Path, required=True, help="the index table")
    parser.add_argument("--output", type=Path, nargs=2, required=True, help="the PNG file and the JSON file")
    arguments = parser.parse_args()
    raise SystemExit(exit_code(lambda: draw(arguments.figure, arguments.plan, arguments.index, *arguments.output)))
