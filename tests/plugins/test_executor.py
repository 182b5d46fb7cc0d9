"""What the executor gpi-slurm asks of Slurm; tests/workflow/test_slurm.py runs it."""

from __future__ import annotations

from snakemake_executor_plugin_gpi_slurm import sbatch
from snakemake_executor_plugin_gpi_slurm.nodes import Wish


def test_a_wish_becomes_the_flags_of_sbatch():
    group = Wish("extract", partition="fast", cpus=4, mem_mb=16000, gpu=True, gpu_model="a100", minutes=23)
    expected = {"--gres=gpu:a100:1", "--mem=16000M", "--time=23", "--cpus-per-task=4", "--partition=fast"}
    assert expected | {"--no-requeue", "--nodes=1", "--ntasks=1", "--job-name=extract"} <= {*sbatch(group)}
    assert "--gres=gpu:1" in sbatch(Wish("extract", gpu=True))
    flags = " ".join(sbatch(Wish("stack")))
    assert not [flag for flag in ("--gres", "--mem", "--time", "--partition") if flag in flags]
