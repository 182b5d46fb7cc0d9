"""Put the figures and the provenance into one HTML file."""

import argparse
from pathlib import Path

from gpi_latents.errors import exit_code
from gpi_latents.paths import figures
from gpi_latents.plan import read_config, read_plan
from gpi_latents.report.page import build

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--plan", type=Path, required=True, help="folder with the plan of the run")
    parser.add_argument("--provenance", type=Path, required=True, help="provenance.json")
    parser.add_argument("--output", type=Path, nargs=2, required=True, help="the HTML file, and the JSON file")
    arguments = parser.parse_args()
    names = figures(read_config(arguments.plan), read_plan(arguments.plan))
    raise SystemExit(exit_code(lambda: build(names, arguments.provenance, *arguments.output)))
