"""The one command for a GPU, which no machine of the tests has, runs in miniature on a CPU."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
from helpers.study import ROOT


@pytest.mark.long
def test_the_command_for_a_gpu_writes_its_tables(tmp_path):
    command = [sys.executable, ROOT / "tests/benchmarks/gpu.py", "--device", "cpu", "--quick", "--output", tmp_path]
    one_thread = os.environ | {"OMP_NUM_THREADS": "1"}  # torch's threads hinder those of other tests
    ran = subprocess.run(command, capture_output=True, text=True, env=one_thread)
    assert ran.returncode == 0, ran.stderr
    lines = (tmp_path / "gpu.md").read_text(encoding="utf-8").splitlines()
    assert lines[0].startswith("no GPU; torch 2.")
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines if line.startswith("| ")]
    rows = {tuple(row[:2]): row[2:] for row in cells}
    assert rows["stable-diffusion", "exact / exact"][2] == "exact / exact"  # against diffusers and the CPU in float32
    assert rows["stable-diffusion", "1"] == rows["stable-diffusion", "4"] == ["0", "0", "0"]
    assert ("8 items beside it", "8 the same latents") in rows
    for how in ("diffusers' pipeline in a loop", "as gpi_pack does", "ours, batch_size 1", "ours, batch_size 4"):
        assert float(rows[how, "float32"][0]) > 0
