"""What an item costs on Slurm: our executor and Snakemake's `slurm` with the same groups, on a test cluster.

    .venv/bin/python tests/benchmarks/slurm.py --items 50

Needs Debian's packages slurmctld, slurmd, slurm-client and munge. Figures hold as ratios.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests"))

from benchmarks.resident import load_seconds, show  # noqa: E402
from helpers.slurm_cluster import Cluster  # noqa: E402
from helpers.study import Study  # noqa: E402


def run(made: Study, cluster: Cluster, *arguments: str) -> float:
    """Seconds of a run up to the last latent, the model's rule having been run before."""
    command = [sys.executable, "-m", "snakemake", "--snakefile", str(ROOT / "Snakefile"), "--until", "extract"]
    environment = cluster.environment
    started = time.monotonic()
    finished = subprocess.run([*command, *arguments], cwd=made.folder, env=environment, capture_output=True, text=True)
    if finished.returncode:
        sys.exit(finished.stdout + finished.stderr)
    return time.monotonic() - started


def study(folder: Path, count: int) -> Study:
    made = Study(folder)
    made.pictures(count)
    made.config(output_image_dir=None)
    made.run("model")
    return made


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--items", type=int, default=50, help="in the group")
    count = parser.parse_args().items
    print(f"One group of {count} items of 64 x 64, strength 0, the demo's model; {os.cpu_count()} cores;")
    names = ("snakemake", "snakemake-executor-plugin-slurm", "snakemake-executor-plugin-slurm-jobstep")
    print(", ".join(f"{name} {version(name)}" for name in names) + ".\n")
    group = ["--group-components", f"extract={count}", "--seconds-between-status-checks", "1"]
    with tempfile.TemporaryDirectory(prefix="benchmark-") as scratch:
        cluster = Cluster(Path(scratch) / "slurm")
        cluster.start()
        try:
            made = study(Path(scratch) / "ours", count)
            ours = run(made, cluster, "--workflow-profile", "slurm", *group)
            loading = load_seconds(made)
            made = study(Path(scratch) / "theirs", count)
            theirs = run(
                made, cluster, *group,
                "--workflow-profile", "none", "--executor", "slurm", "--jobs", "20",
                "--set-resource-scopes", "in_flight=local", "--resources", "in_flight=1",
                "--slurm-status-command", "squeue",
                "--slurm-init-seconds-before-status-checks", "1",
                "--default-resources", "slurm_account=none", "slurm_partition=main",
            )  # fmt: skip
            alone = study(Path(scratch) / "alone", 1)
            single = run(
                alone, cluster,
                "--workflow-profile", "none", "--executor", "slurm", "--jobs", "20",
                "--slurm-status-command", "squeue", "--slurm-init-seconds-before-status-checks", "1",
                "--seconds-between-status-checks", "1",
                "--default-resources", "slurm_account=none", "slurm_partition=main",
            )  # fmt: skip
        finally:
            cluster.stop()
    show(
        [
            (f"profiles/slurm, a group of {count} (loading takes {loading:.1f} s of it)", ours, ours / count),
            (f"executor slurm, a group of {count}", theirs, theirs / count),
            ("executor slurm, one item alone", single, single),
        ]
    )
    print(f"\nThe slurm executor takes {theirs / ours:.1f} times as long for the group; ours is for 2 and more.")


if __name__ == "__main__":
    main()
