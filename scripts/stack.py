"""Stack all latents into one tensor, with the index table and the provenance."""

import argparse
import os
import sys
from pathlib import Path

from gpi_latents.errors import exit_code
from gpi_latents.tensors.stack import write_results

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--plan", type=Path, required=True, help="folder with the plan of the run")
    parser.add_argument("--model", type=Path, required=True, help="model.json")
    outputs = "tensor, index table, provenance and, to leave out items that failed, their table"
    parser.add_argument("--output", type=Path, nargs="+", required=True, help=outputs)
    arguments = parser.parse_args()
    code = exit_code(lambda: write_results(arguments.plan, arguments.model, *arguments.output))
    sys.stdout.flush()
    os._exit(code)  # at once: Python takes half a second to take torch's modules down
