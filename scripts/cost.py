"""Time three items of the study on this machine, and say what all of it will take in time, memory and disk."""

import argparse
from pathlib import Path

from gpi_latents.cost import cost
from gpi_latents.errors import exit_code

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--plan", type=Path, required=True, help="folder with the plan of the run")
    parser.add_argument("--workers", type=int, required=True, help="items at a time on a CPU")
    parser.add_argument("--in-flight", type=int, required=True, help="items that wait for the model at a time")
    arguments = parser.parse_args()
    raise SystemExit(exit_code(lambda: cost(arguments.plan, arguments.workers, arguments.in_flight)))
