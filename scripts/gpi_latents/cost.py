"""What a study will take in time, memory and disk: three of its items are timed, and all reckoned from them."""

from __future__ import annotations

import json
import math
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import psutil

from gpi_latents import paths
from gpi_latents.errors import InputError, ItemError
from gpi_latents.files import missing_files
from gpi_latents.plan import read_config, read_item_lines, read_plan
from gpi_latents.resident.engine import Engine, Request
from gpi_latents.study.stale import stale_results

STEPS = (2, 4, 6)  # about so many at most are made of the three items; each further one takes as long
LEAST_STEPS = 4  # of a full run, for PNDMScheduler
# What Snakemake takes for an item and for a run, and the report, in starts of Python with pandas, one of which is
# timed. On the machine of docs/performance.md that takes 0.4 s when nothing else runs.
PER_ITEM, PER_RUN, PER_REPORT = 0.04, 12, 15
SNAKEMAKE_BYTES = 0.5e9  # at most, for 20,000 items (docs/performance.md)


@dataclass(frozen=True)
class Measured:
    """What was measured with three items.

    Attributes:
        ids: of the items.
        passes: of the network for each of these items, as it was made.
        seconds: for each of these items, while `at_once` are made.
        at_once: items that are made at the same time.
        loading: seconds until the first item can be made.
        start: seconds of a start of Python with pandas.
        devices: as torch names them.
        memory: peak of the process that holds the model, in bytes.
        gpu_memory: peak of one GPU in bytes; 0 without one.
        sizes: of an item's latent, its picture, and its part of the tensor, in bytes, on average.
    """

    ids: list[str]
    passes: list[int]
    seconds: list[float]
    at_once: int
    loading: float
    start: float
    devices: list[str]
    memory: float
    gpu_memory: float
    sizes: tuple[float, float, float]


def cost(plan: Path, workers: int, in_flight: int) -> str:
    """Time three of the items that are to be made, and reckon what all of them will take.

    Args:
        plan: the folder of the plan.
        workers: items at a time on a CPU.
        in_flight: items that wait for the model at a time, as in a run.

    Returns:
        A text for the user.

    Raises:
        InputError: one of the three cannot be made.
        ModelError: the model cannot be loaded.
    """
    config, table = read_config(plan), read_plan(plan)
    table["recipe"] = [json.loads(line)["recipe"] for line in read_item_lines(plan)]
    table["passes"] = list(map(passes, table["recipe"]))
    results = [_results(config, item_id) for item_id in table["id"]]
    to_make = missing_files(file for files in results for file in files)
    to_make |= stale_results(config, table.drop(columns=["recipe", "passes"]), set()).keys()
    items = table[[not to_make.isdisjoint(files) for files in results]]
    if items.empty:
        return f"All {len(table)} latents are made: a run has nothing to extract."
    measured = measure(config, chosen(items), workers, min(in_flight, len(items)))
    return forecast(config, len(table), items["passes"].tolist(), measured)


def _results(config: Mapping[str, Any], item_id: str) -> list[str]:
    """The files that an item's job makes: its latent, and its decoded picture if there are any."""
    return [path for of in (paths.latent_path, paths.picture_path) if (path := of(config, item_id))]


def passes(recipe: Mapping[str, Any]) -> int:
    """How often the network runs for a recipe."""
    if recipe["strength"] == 0:
        return 0
    return int(recipe["strength"] * recipe["num_inference_steps"]) * (2 if recipe["guidance_scale"] > 1 else 1)


def shortened(recipe: dict[str, Any], steps: int) -> dict[str, Any]:
    """A recipe that makes about so many steps, if it would make more."""
    if recipe["strength"] == 0:
        return recipe
    full = max(LEAST_STEPS, 1 + math.ceil(steps / recipe["strength"]))  # one more, lest rounding leaves none
    return recipe | {"num_inference_steps": min(recipe["num_inference_steps"], full)}


def chosen(items: pd.DataFrame) -> pd.DataFrame:
    """Three of the items, or all if there are fewer: of the cheapest kind, of one between, and of the dearest.

    A kind is a number of passes; where one is taken more than once, its small, middling and large files are.
    """
    kinds = sorted(set(items["passes"]))
    wanted = [kinds[0], kinds[(len(kinds) - 1) // 2], kinds[-1]]
    found: list[Any] = []
    for kind in dict.fromkeys(wanted):
        same = items[items["passes"] == kind]
        by_size = sorted(same.index, key=lambda row: os.stat(items["image"][row]).st_size)
        count = wanted.count(kind)
        found += [by_size[(2 * number + 1) * len(by_size) // (2 * count)] for number in range(count)]
    return items.loc[list(dict.fromkeys(found))]


def measure(config: Mapping[str, Any], items: pd.DataFrame, workers: int, in_flight: int) -> Measured:
    """Make items, several at a time as in a run, into a folder that is then removed.

    Args:
        config: as `settings.load_config` returns it.
        items: the plan's rows, with their `recipe`.
        workers: items at a time on a CPU.
        in_flight: items that wait for the model at a time.

    Raises:
        InputError, ModelError: as `cost`.
    """
    os.environ["DIFFUSERS_VERBOSITY"] = "error"  # without advice on few steps, before it is imported
    engine = Engine(config, workers)
    at_once = min(engine.threads, in_flight)
    rows = list(items.itertuples())
    recipes = [shortened(row.recipe, steps) for row, steps in zip(rows, STEPS, strict=False)]
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(at_once, initializer=engine.same_bits) as pool:

        def timed(row: Any, recipe: dict[str, Any], copies: int) -> tuple[float, list[int]]:
            latents = [f"{folder}/{copy}.pt" for copy in range(copies)]
            pictures = [f"{latent}.png" if config["output_image_dir"] else None for latent in latents]
            requests = [Request(row.image, recipe, *files) for files in zip(latents, pictures, strict=True)]
            started = time.monotonic()
            try:
                finished = list(pool.map(engine.extract, requests))
            except ItemError as error:
                raise InputError(
                    f"Row {row.sheet_row}, {row.id}: {error}. Run check, which lists all such pictures"
                ) from None
            seconds = (time.monotonic() - started) / copies
            sizes = [os.path.getsize(path) if path else 0 for path in (latents[0], pictures[0])]
            return seconds, [*sizes, 4 * math.prod(finished[0].shape)]

        # First for the parts of the model that are loaded when an item needs them.
        for row, recipe in {
            recipe["strength"] > 0: (row, recipe) for row, recipe in zip(rows, recipes, strict=True)
        }.values():
            timed(row, shortened(recipe, 1), 1)
        loading = time.time() - psutil.Process().create_time()
        found = [timed(row, recipe, at_once) for row, recipe in zip(rows, recipes, strict=True)]
    return Measured(
        ids=items["id"].tolist(),
        passes=list(map(passes, recipes)),
        seconds=[seconds for seconds, _ in found],
        at_once=at_once,
        loading=loading,
        start=_start_seconds(),
        devices=[str(model.device) for model in engine.models],
        memory=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024),
        gpu_memory=_gpu_memory(engine),
        sizes=tuple(np.mean([sizes for _, sizes in found], axis=0)),
    )


def forecast(config: Mapping[str, Any], count: int, to_make: Sequence[int], measured: Measured) -> str:
    """What a run will take, as a text for the user.

    Args:
        config: as `settings.load_config` returns it.
        count: items of the study.
        to_make: the passes of each item that is still to be made.
        measured: with three of them.
    """
    slope, base = 0.0, float(np.mean(measured.seconds))
    if len(set(measured.passes)) > 1:
        line = np.polyfit(measured.passes, measured.seconds, 1)
        if line[0] > 0:  # else other programs slowed down the items of few passes
            slope, base = float(line[0]), max(float(line[1]), 0.0)
    loading = measured.loading
    items = base * len(to_make) + slope * sum(to_make)
    if not config["resident"]:
        items, loading = items + loading * len(to_make) / measured.at_once, 0.0
    each = items / len(to_make)
    others = (PER_ITEM * len(to_make) + PER_RUN + (PER_REPORT if config["report"] else 0)) * measured.start
    report = " and the report" if config["report"] else ""
    latents, pictures, tensor = (size * len(to_make) for size in measured.sizes)
    tensor *= count / len(to_make)
    disk, free = latents + pictures + tensor, shutil.disk_usage(".").free
    gpu = f", {_bytes(measured.gpu_memory)} on each GPU" if measured.gpu_memory else ""
    devices = ", ".join(measured.devices)
    lines = [
        f"{len(to_make)} of {count} items are to be made, {measured.at_once} at a time on {devices} "
        f"(timed: {', '.join(measured.ids)}).",
        f"Time: about {_time(loading + items + others)}. {_time(loading)} to load the model, {_time(items)} for the "
        f"items ({f'{each:.2g} s' if each < 10 else _time(each)} each), {_time(others)} for Snakemake{report}.",
        f"Memory: {_bytes(measured.memory)} for the model{gpu}, and up to {_bytes(SNAKEMAKE_BYTES)} for all else.",
        f"Disk: {_bytes(disk)}. {_bytes(latents)} latents, {_bytes(pictures)} decoded pictures, {_bytes(tensor)} "
        f"tensor; {_bytes(free)} are free.",
    ]
    if disk > free:
        lines.append("There is too little room: make some, or set output_image_dir: null to decode no pictures.")
    return "\n".join(lines)


def _start_seconds() -> float:
    """Of a start of Python with pandas, once its files are read."""
    for _ in range(2):
        started = time.monotonic()
        subprocess.run([sys.executable, "-c", "import pandas"], check=True)
    return time.monotonic() - started


def _gpu_memory(engine: Engine) -> float:
    import torch

    devices = [model.device for model in engine.models if model.device.type == "cuda"]
    return max(map(torch.cuda.max_memory_reserved, devices), default=0)


def _time(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def _bytes(count: float) -> str:
    """In kB, MB or GB, as file managers count."""
    power = min(max(int(math.log10(max(count, 1))) // 3, 1), 3)
    number = count / 1000**power
    return f"{number:.1f} {' kMG'[power]}B" if number < 10 else f"{number:.0f} {' kMG'[power]}B"
