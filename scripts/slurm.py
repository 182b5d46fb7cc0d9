"""What profiles/slurm has Snakemake call: `submit` hands a job to Slurm, `status` prints a job's state."""

import os
import sys

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))  # which Python does not do with -I
from gpi_latents.slurm import main

if __name__ == "__main__":
    raise SystemExit(main())
