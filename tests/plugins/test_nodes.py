"""Whether a cluster's nodes can hold a job, by what sinfo printed on test clusters."""

from __future__ import annotations

import os

import pytest
from snakemake_executor_plugin_gpi_slurm.nodes import Wish, cores, problem, read_nodes

SINFO = """\
main*|32|UNLIMITED|64000|gpu:a100:2(S:0-1),nvme:1|infinite|idle
main*|128|UNLIMITED|512000|gpu:h100:4(S:0-1),gpu:1080ti:4|infinite|down*
small|2|UNLIMITED|20000|gpu:1|30:00|mixed
both|32|UNLIMITED|64000|gpu:a100:2(S:0-1)|1-12:00:00|drained
both|2|UNLIMITED|20000|gpu:1|1-12:00:00|idle
capped|32|4|64000|(null)|2:30:00|allocated
"""

# What a job asks for, and what is wrong with it, with the flag that mends it.
PROBLEMS = [
    ({"mem_mb": 16000, "gpu": True, "cpus": 8, "minutes": 17}, ""),
    (
        {"partition": "small", "mem_mb": 32000},
        "asks for 32000 MB of memory; the largest node of partition small has "
        "20000: --set-resources extract:mem_mb=20000",
    ),
    ({"partition": "small,both", "mem_mb": 32000}, ""),
    ({"partition": "small", "mem_mb": 32000, "extra": "--nice=5 --mem 8000"}, ""),
    ({"partition": "small", "mem_mb": 32000, "extra": "-pmain"}, ""),
    (
        {"partition": "small", "cpus": 8, "in_flight": 8},
        "asks for 8 CPU cores; the largest node of partition small has 2: --resources in_flight=2",
    ),
    (
        {"partition": "capped", "cpus": 8, "rule": "stack"},
        "asks for 8 CPU cores; the largest node of partition capped has 4: --set-threads stack=4",
    ),
    (
        {"partition": "small", "minutes": 60, "rule": "stack"},
        "asks for 60 minutes; partition small allows 30: --set-resources stack:runtime=30",
    ),
    (
        {"partition": "capped", "minutes": 151, "in_flight": 8},
        "asks for 151 minutes; partition capped allows 150: take smaller groups, as in --group-components extract=25",
    ),
    ({"partition": "both", "minutes": 36 * 60}, ""),
    (
        {"partition": "both", "minutes": 36 * 60 + 1},
        "asks for 2161 minutes; partition both allows 2160: --set-resources extract:runtime=2160",
    ),
    (
        {"partition": "nowhere"},
        "asks for partition nowhere, which is not there: --default-resources slurm_partition=... "
        "(there are main, small, both, capped)",
    ),
    (
        {"partition": "capped", "gpu": True},
        "asks for a GPU; partition capped has none: "
        "--default-resources slurm_partition=... (there are main, small, both) or --config device=cpu",
    ),
    ({"gpu": True, "gpu_model": "H100", "mem_mb": 400000}, ""),
    ({"gpu": True, "gpu_model": "1080ti"}, ""),
    (
        {"gpu": True, "gpu_model": "a100", "mem_mb": 400000},  # each by itself is there
        "asks for 400000 MB of memory; the largest node of this cluster has "
        "64000: --set-resources extract:mem_mb=64000",
    ),
    (
        {"gpu": True, "gpu_model": "v100"},
        "asks for a GPU of kind v100; this cluster has 1080ti, a100, h100: --set-resources extract:gpu_model=1080ti",
    ),
    (
        {"partition": "small", "gpu": True, "gpu_model": "a100"},
        "asks for a GPU of kind a100; partition small has GPUs without a name for their kind: "
        "--default-resources slurm_partition=... (there are main, both) or leave gpu_model out",
    ),
    ({"partition": "capped", "gpu": True, "extra": "--gpus-per-node=1"}, ""),
    ({"partition": "small", "minutes": 60, "extra": "--qos=long"}, ""),  # which may have a time limit of its own
    (
        {"extra": "-M other"},
        "asks for another cluster in slurm_extra: leave it out there, and run  export SLURM_CLUSTERS=...  before",
    ),
]


@pytest.fixture
def sinfo(tmp_path, monkeypatch):
    """A command sinfo that prints the text."""
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")

    def install(text: str) -> None:
        (tmp_path / "sinfo").write_text(f"#!/bin/sh\ncat <<'EOF'\n{text}EOF\n" if text else "#!/bin/sh\nexit 1\n")
        (tmp_path / "sinfo").chmod(0o755)

    install(SINFO)
    return install


@pytest.mark.parametrize(("wish", "expected"), PROBLEMS)
def test_a_job_that_no_node_can_hold_is_refused_with_the_numbers_and_the_flag(sinfo, wish, expected):
    assert problem(Wish(**{"rule": "extract"} | wish), read_nodes()) == expected


@pytest.mark.parametrize(
    ("wish", "expected"),
    [
        ({"gpu": True}, 8),  # half of a node with two GPUs would be 16; the larger node is down
        ({"gpu": True, "cpus": 20}, 16),
        ({"cpus": 40}, 32),
        ({"cpus": 200, "mem_mb": 400000}, 128),  # there is no other
        ({"partition": "small"}, 2),
        ({"partition": "both", "gpu": True}, 2),  # the other is drained
        ({"partition": "small", "extra": "-p main"}, 8),
        ({"partition": "nowhere"}, 8),
    ],
)
def test_cores_are_what_the_nodes_have_and_at_most_the_items_in_flight(sinfo, wish, expected):
    assert cores(Wish(**{"rule": "extract", "cpus": 8} | wish), read_nodes()) == expected


def test_sbatch_own_partition_is_that_of_the_environment_or_the_default(sinfo, monkeypatch):
    wish = Wish("extract", mem_mb=32000)
    assert problem(wish, read_nodes()) == ""
    monkeypatch.setenv("SBATCH_PARTITION", "small")
    assert "partition small has 20000" in problem(wish, read_nodes())
    monkeypatch.delenv("SBATCH_PARTITION")
    sinfo(SINFO.replace("*|", "|", 2))
    assert problem(wish, read_nodes()) == ""


def test_without_a_name_any_partition_will_do_since_a_script_of_the_site_may_choose_it(sinfo):
    sinfo("cpu*|64|UNLIMITED|64000|(null)|3:00:00|idle\ngpu|1K|UNLIMITED|128000+|gpu:4|infinite|idle~\n")
    assert problem(Wish("extract", gpu=True, cpus=99, mem_mb=100000, minutes=999), read_nodes()) == ""
    assert problem(Wish("extract", gpu=True, mem_mb=200000), read_nodes()) == (
        "asks for 200000 MB of memory; the largest node of this cluster has 128000: "
        "--set-resources extract:mem_mb=128000"
    )


def test_without_an_answer_of_sinfo_there_is_no_opinion(sinfo, monkeypatch):
    wish = Wish("extract", "nowhere", cpus=99, mem_mb=10**9)
    sinfo("")
    assert (read_nodes(), problem(wish, []), cores(wish, [])) == ([], "", 99)
    monkeypatch.setenv("PATH", "")
    assert read_nodes() == []
