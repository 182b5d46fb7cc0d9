"""Put the figures and the provenance into one HTML file."""

import argparse
from pathlib import Path

from gpi_latents.errors import exit_code
from gpi_latents.paths import FIGURES
from gpi_latents.report.page import build

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--figures", nargs="+", choices=FIGURES, required=True)
    parser.add_argument("--provenance", type=Path, required=True, help="provenance.json")
    parser.add_argument("--output", type=Path, required=True, help="the HTML file, beside the folder of the figures")
    arguments = parser.parse_args()
    raise SystemExit(exit_code(lambda: build(arguments.figures, arguments.provenance, arguments.output)))
