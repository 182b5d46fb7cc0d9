"""What the executor gpi-slurm makes of the answers of Slurm's commands, those too that a test cluster cannot give."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from snakemake_executor_plugin_gpi_slurm.states import COMPLETED, FAILED, UNKNOWN, Status, read_states

REST = "|None||N/A|N/A|main"
STATES = [
    ({"squeue": "7|RUNNING|None|n1|100|N/A|main"}, Status("RUNNING", "None", "n1", 100, None, "main")),
    ({"squeue": "7|PENDING|Priority||N/A|N/A|a,b"}, Status("PENDING", "Priority", partition="a,b")),
    ({"squeue": "7|COMPLETED|None|n1|100|130|main"}, Status("COMPLETED", "None", "n1", 100, 130, "main")),
    (
        {"squeue": f"8|RUNNING{REST}", "sacct": "7|COMPLETED||n1|100|130|main"},
        Status("COMPLETED", "", "n1", 100, 130, "main"),
    ),
    (
        {"squeue": f"8|RUNNING{REST}", "sacct": f"7|CANCELLED by 1000{REST}"},
        Status("CANCELLED", "None", partition="main"),
    ),
    ({"squeue": f"8|RUNNING{REST}", "sacct": ""}, Status(UNKNOWN)),  # no trace of it
    ({"squeue": ""}, Status(UNKNOWN)),
    ({}, None),  # the controller does not answer; the job may well be running
    ({"sacct": f"7|TIMEOUT{REST}"}, Status("TIMEOUT", "None", partition="main")),
]


@pytest.fixture
def answers(tmp_path, monkeypatch):
    """Slurm's commands print the given texts here, and fail where none is given."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")

    def answer(**commands: str) -> None:
        for name in ("squeue", "sacct"):
            text = commands.get(name)
            script = "exit 1\n" if text is None else f"echo {name} >> calls\ncat <<'EOF'\n{text}\nEOF\n"
            (tmp_path / name).write_text(f"#!/bin/sh\n{script}")
            (tmp_path / name).chmod(0o755)

    return answer


@pytest.mark.parametrize(("commands", "expected"), STATES)
def test_a_jobs_state_is_what_slurm_says(answers, commands, expected):
    answers(**commands)
    assert read_states(["7"]) == ({"7": expected} if expected else {})
    if expected and expected.state not in ("RUNNING", "PENDING", COMPLETED):
        assert FAILED[expected.state]


def test_what_users_like_to_see_in_tables_hides_no_job(answers, monkeypatch):
    monkeypatch.setenv("SQUEUE_PARTITION", "other")
    answers(squeue="")
    Path("squeue").write_text(f'#!/bin/sh\n[ "$SQUEUE_PARTITION" ] || echo "7|RUNNING{REST}"\n')
    assert read_states(["7"])["7"].state == "RUNNING"


def test_slurm_is_asked_once_for_all_jobs(answers):
    answers(squeue=f"7|RUNNING{REST}\n8|COMPLETED{REST}\n9|PENDING{REST}", sacct="")
    assert list(read_states(["7", "8", "9"])) == ["7", "8", "9"]
    assert Path("calls").read_text().split() == ["squeue"]


def test_snakemake_which_loads_all_executors_whenever_it_starts_loads_ours_quickly():
    """It imports the standard library and what Snakemake has imported already."""
    code = "import sys, snakemake.executors.local, snakemake_interface_executor_plugins.executors.remote\n"
    code += "before = {*sys.modules}; import snakemake_executor_plugin_gpi_slurm; print(*{*sys.modules} - before)"
    names = subprocess.check_output([sys.executable, "-c", code], text=True).split()
    assert {name.split(".")[0] for name in names} - sys.stdlib_module_names == {"snakemake_executor_plugin_gpi_slurm"}
