"""Find or download the model, and write down exactly which one it is."""

import argparse
from pathlib import Path

from gpi_latents.errors import exit_code
from gpi_latents.model.source import write_model
from gpi_latents.plan import read_config

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--plan", type=Path, required=True, help="folder with the plan of the run")
    parser.add_argument("--output", type=Path, required=True, help="the JSON file to write")
    arguments = parser.parse_args()
    raise SystemExit(exit_code(lambda: write_model(read_config(arguments.plan), arguments.output)))
