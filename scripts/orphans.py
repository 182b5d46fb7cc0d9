"""List the files among the results that belong to nothing in the study any more."""

import argparse
from pathlib import Path

from gpi_latents.errors import exit_code
from gpi_latents.orphans import listed_orphans

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--plan", type=Path, required=True, help="folder with the plan of the run")
    arguments = parser.parse_args()
    raise SystemExit(exit_code(lambda: listed_orphans(arguments.plan)))
