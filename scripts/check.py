"""Open every picture of the sheet, without any model, and list all that cannot be read."""

import argparse
from pathlib import Path

from gpi_latents.check import check
from gpi_latents.errors import exit_code

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--plan", type=Path, required=True, help="folder with the plan of the run")
    parser.add_argument("--threads", type=int, required=True, help="pictures that are opened at the same time")
    arguments = parser.parse_args()
    raise SystemExit(exit_code(lambda: check(arguments.plan, arguments.threads)))
