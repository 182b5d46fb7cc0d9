"""What the nodes of a cluster have, and whether one of them can hold a job. Without `sinfo`: no opinion."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from math import inf

from snakemake_executor_plugin_gpi_slurm.states import environment

SINFO = ("sinfo", "--noheader", "--exact", "--all", "--format=%P|%c|%B|%m|%G|%l|%T")
# What sbatch's own flags in slurm_extra decide; of that we know nothing then.
FLAGS = {
    "clusters": ("-M", "--clusters"),
    "partition": ("-p", "--partition"),
    "mem_mb": ("--mem", "--mem-per-cpu", "--mem-per-gpu"),
    "cpus": ("-c", "--cpus-per-task", "--cpus-per-gpu"),
    "gpus": ("-G", "--gres", "--gpus", "--gpus-per-node", "--gpus-per-task"),
    "minutes": ("-t", "--time", "-q", "--qos"),  # a QOS may have a time limit of its own
}
UNITS = {"mem_mb": "MB of memory", "cpus": "CPU cores", "minutes": "minutes"}
PARTITION = "--default-resources slurm_partition"


@dataclass(frozen=True)
class Node:
    """What nodes of one partition have that are all the same."""

    partition: str
    is_default: bool
    cpus: int  # that the partition gives of them
    mem_mb: int
    gpus: dict[str, int]  # by kind, which is "" where Slurm has no name for it
    minutes: float  # the partition's time limit, or infinite
    is_up: bool  # takes jobs, now or after those that it has


@dataclass(frozen=True)
class Wish:
    """What a job asks for, on one node.

    Attributes:
        rule: whose resources ask for it.
        partition: one, or several with commas, or None for sbatch's default.
        in_flight: how many items a group works on at a time; 0 if the job is no group.
        extra: the flags of sbatch that the user adds.
    """

    rule: str
    partition: str | None = None
    cpus: int = 1
    mem_mb: int = 0
    gpu: bool = False
    gpu_model: str | None = None
    minutes: int = 0
    in_flight: int = 0
    extra: str = ""


def read_nodes() -> list[Node]:
    """The kinds of nodes in all partitions; none if sinfo is not there or fails."""
    try:
        answer = subprocess.run(SINFO, env=environment(), capture_output=True, text=True, timeout=60)
    except (OSError, subprocess.TimeoutExpired):
        return []
    return [_node(*line.split("|")) for line in answer.stdout.splitlines() if line.count("|") == 6]


def problem(wish: Wish, nodes: list[Node]) -> str:
    """Why no node can ever hold the job, and the flag that mends it, as in "asks for ..."; "" if one can.

    Raises:
        ValueError: `extra` has an unbalanced quote.
    """
    by_user = set_by_user(wish.extra)
    if "clusters" in by_user:  # squeue would not find the job
        return "asks for another cluster in slurm_extra: leave it out there, and run  export SLURM_CLUSTERS=...  before"
    if not nodes or "partition" in by_user:
        return ""
    # Where none is named, the default one, or as on many clusters that which a script of the site takes.
    asked = _partition(wish)
    places = _in_partition(wish, nodes) if asked else nodes
    if not places:
        return f"asks for partition {asked}, which is not there: {PARTITION}=... (there are {_names(nodes)})"
    where = f"partition {_names(places)}" if asked else "this cluster"
    if wish.gpu and "gpus" not in by_user:
        without, places = places, [node for node in places if _gpus(wish, node)]
        if not places:
            return _no_gpu(wish, where, without, nodes)
    for quantity, unit in UNITS.items():
        asked, most = getattr(wish, quantity), max(getattr(node, quantity) for node in places)
        if quantity in by_user:
            continue
        if asked > most:
            has = f"{where} allows" if quantity == "minutes" else f"the largest node of {where} has"
            return f"asks for {asked} {unit}; {has} {most}: {_mend(wish, quantity, most)}"
        places = [node for node in places if getattr(node, quantity) >= asked]
    return ""


def cores(wish: Wish, nodes: list[Node]) -> int:
    """CPUs to ask for: at most those wished, and what a node has for each of its GPUs, so that all can be used."""
    places = [node for node in _in_partition(wish, nodes) if node.mem_mb >= wish.mem_mb]
    places = [node for node in places if not wish.gpu or _gpus(wish, node)]
    places = [node for node in places if node.is_up] or places
    if not places or "partition" in set_by_user(wish.extra):
        return wish.cpus
    return min(wish.cpus, max(max(1, node.cpus // (_gpus(wish, node) if wish.gpu else 1)) for node in places))


def _no_gpu(wish: Wish, where: str, places: list[Node], nodes: list[Node]) -> str:
    kinds = sorted({kind for node in places for kind in node.gpus if kind})
    mend = []
    if elsewhere := _names(node for node in nodes if _gpus(wish, node)):
        mend.append(f"{PARTITION}=... (there are {elsewhere})")
    if kinds:
        has, other = f"has {', '.join(kinds)}", f"--set-resources {wish.rule}:gpu_model={kinds[0]}"
    elif any(node.gpus for node in places):
        has, other = "has GPUs without a name for their kind", "leave gpu_model out"
    else:
        has, other = "has none", "--config device=cpu"
    kind = f" of kind {wish.gpu_model}" if wish.gpu_model else ""
    return f"asks for a GPU{kind}; {where} {has}: {' or '.join([*mend, other])}"


def _mend(wish: Wish, quantity: str, most: float) -> str:
    if quantity == "mem_mb":
        return f"--set-resources {wish.rule}:mem_mb={most}"
    if quantity == "cpus":
        return f"--resources in_flight={most}" if wish.in_flight else f"--set-threads {wish.rule}={most}"
    if wish.in_flight:
        return "take smaller groups, as in --group-components extract=25"
    return f"--set-resources {wish.rule}:runtime={most}"


def set_by_user(extra: str) -> set[str]:
    """What of `FLAGS` the user's own flags of sbatch decide."""
    flags = {re.sub("=.*", "", word) if word.startswith("--") else word[:2] for word in shlex.split(extra)}
    return {what for what, names in FLAGS.items() if flags & set(names)}


def _partition(wish: Wish) -> str:
    return wish.partition or os.environ.get("SBATCH_PARTITION", "")


def _in_partition(wish: Wish, nodes: list[Node]) -> list[Node]:
    asked = _partition(wish).split(",")
    return [node for node in nodes if (node.partition in asked if asked != [""] else node.is_default)]


def _gpus(wish: Wish, node: Node) -> int:
    """How many GPUs of the kind wished the node has."""
    kind = (wish.gpu_model or "").lower()
    return sum(count for name, count in node.gpus.items() if kind in ("", name.lower()))


def _names(nodes: Iterable[Node]) -> str:
    return ", ".join(dict.fromkeys(node.partition for node in nodes))


def _node(partition: str, cpus: str, most_cpus: str, mem_mb: str, gres: str, time: str, state: str) -> Node:
    """From the columns of `SINFO`: gres as in "gpu:a100:4(S:0-1),nvme:1", time as in "1-12:00:00" or "infinite"."""
    gpus: dict[str, int] = {}
    for entry in re.sub(r"\(.*?\)", "", gres).split(","):
        name, *kind = entry.split(":")
        count = int(kind.pop()) if kind and kind[-1].isdigit() else 1
        if name == "gpu":
            gpus[":".join(kind)] = count
    days, _, clock = time.rpartition("-")
    parts = [int(part) for part in clock.split(":") if part.isdigit()]  # hours, minutes, seconds
    hours, minutes = (0, *parts)[-3:-1] if len(parts) > 1 else (0, 0)
    return Node(
        partition=partition.rstrip("*"),
        is_default=partition.endswith("*"),
        cpus=min(_number(cpus), _number(most_cpus)),
        mem_mb=_number(mem_mb),
        gpus=gpus,
        minutes=60 * (24 * int(days or 0) + hours) + minutes if parts else inf,
        is_up=not re.match("down|drain|fail|maint|unknown|future", state),
    )


def _number(text: str) -> int:
    """Of "64000" and "64000+"; beyond all wishes if it is written in another way."""
    return int(text.rstrip("+")) if text.rstrip("+").isdigit() else sys.maxsize
