"""Two studies with known truth: estimates from the workflow's latents, and the effect that was put in.

    python tests/validation/study.py

One is on drawn shapes (`shapes_pool`), one on photographs of clothes (`fashion_pool`; left out where these or the
autoencoder are not there). The real workflow makes the latents of a pool of pictures. Each repetition chooses pictures
from the pool so that the treatment depends on the confounder, and draws their outcomes, which depend on both:

    P(treated | confounder) = 1 / (1 + exp(-strength * confounder)),
    outcome = TRUTH * treatment + SHIFT * confounder + noise,

with a confounder of mean 0 and standard deviation 1 and noise of standard deviation 1. The estimators (`estimators`)
see the treatment and the outcome; of the confounder they see nothing, the latents, or its values.
"""

from __future__ import annotations

import argparse
import multiprocessing
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

ROOT = Path(__file__).resolve().parent.parent.parent
if (TESTS := str(ROOT / "tests")) not in sys.path:
    sys.path.insert(0, TESTS)

import gpi_latents  # noqa: E402
from validation import fashion_pool, summary  # noqa: E402
from validation.estimators import (  # noqa: E402
    OLD_SETTINGS,
    aipw_on_components,
    difference_in_means,
    estimate,
    readability,
    regression,
)
from validation.shapes_pool import draw_pool  # noqa: E402

TRUTH = 1.0
SHIFT = 1.0
SHAPES = 3000  # pictures
PHOTOGRAPHS = {"trousers or bag": 7600, "shirt or coat": 2400}
READINGS = 3  # repetitions of a scenario in which it is measured how well the latents show the confounder


class Scenario(NamedTuple):
    """What is estimated, from how many items; `treatment` and `confounder` are columns of the pool's sheet."""

    study: str  # shapes or photographs
    name: str
    treatment: str
    confounder: str
    items: int
    strength: float
    repetitions: int
    pair: str | None = None  # of `fashion_pool.PAIRS`


MAIN = Scenario("shapes", "main", "red", "light", 1000, 1.0, 36)
CLOTHES = Scenario("photographs", "main", "red", "first", 1000, 1.0, 36, "trousers or bag")
SCENARIOS = [
    MAIN,
    MAIN._replace(name="200 items", items=200, repetitions=36),
    MAIN._replace(name="strong confounding", strength=3.0, repetitions=18),
    MAIN._replace(name="treatment barely encoded", treatment="dot", repetitions=18),
    MAIN._replace(name="confounder hard to read", confounder="size", repetitions=18),
    MAIN._replace(name="confounder barely encoded", confounder="dot", repetitions=18),
    CLOTHES,
    CLOTHES._replace(name="200 items", items=200, repetitions=36),
    CLOTHES._replace(name="5,000 items", items=5000, repetitions=7),
    CLOTHES._replace(name="size as treatment", treatment="large", repetitions=18),
    CLOTHES._replace(name="shirt or coat", pair="shirt or coat", repetitions=18),
    CLOTHES._replace(name="confounder not in the picture", confounder="hidden", repetitions=18),
]


def run_workflow(folder: Path) -> None:
    """Make the results of a study, as a user would."""
    command = [sys.executable, "-m", "snakemake", "--snakefile", str(ROOT / "Snakefile"), "--directory", str(folder)]
    finished = subprocess.run([*command, "--cores", "2"], capture_output=True, text=True)
    if finished.returncode:
        raise RuntimeError(finished.stdout + finished.stderr)


def choose(index: pd.DataFrame, scenario: Scenario, seed: list[int]) -> pd.DataFrame:
    """One repetition's items, with columns `treatment`, `confounder` (standardised) and `outcome`.

    A picture is taken with a probability that is proportional to that of its own treatment, given its confounder, until
    there are enough.
    """
    random = np.random.default_rng(seed)
    if scenario.pair:
        index = index[index["pair"] == scenario.pair]
    confounder = index[scenario.confounder]
    table = index.assign(
        treatment=index[scenario.treatment], confounder=(confounder - confounder.mean()) / confounder.std(ddof=0)
    )
    propensity = 1 / (1 + np.exp(-scenario.strength * table["confounder"]))
    of_own = np.where(table["treatment"] == 1, propensity, 1 - propensity)
    chosen = random.permutation(np.flatnonzero(random.random(len(table)) < of_own / of_own.max()))[: scenario.items]
    if len(chosen) < scenario.items:
        raise ValueError(f"The pool of {len(index)} has too few pictures for {scenario}")
    table = table.iloc[chosen]
    outcome = TRUTH * table["treatment"] + SHIFT * table["confounder"] + random.normal(0, 1, len(table))
    return table.assign(outcome=outcome)


def repeat(results: Path, scenario: Scenario, place: int, number: int) -> tuple[list[dict], dict]:
    """One repetition.

    Args:
        results: of the pool.
        scenario: what to repeat.
        place: of the scenario among all, which is part of the seed.
        number: of the repetition.

    Returns:
        A line for each estimator, with `estimate` and `standard_error`; and a line with the warnings of
        `gpi_latents.estimate` (columns `summary.WARNINGS`, 0 or 1), what they are decided by, and `readable`.
    """
    import torch

    torch.set_num_threads(1)
    R, index = gpi_latents.load(results, check=False)
    chosen = choose(index, scenario, [2027, place, number])
    Y, T, confounder = (chosen[name].to_numpy() for name in ("outcome", "treatment", "confounder"))
    latents = np.asarray(R[chosen["row"]]).reshape(len(chosen), -1)
    old = estimate(latents, Y, T, seeds=[number], **OLD_SETTINGS)
    effect = estimate(latents, Y, T)
    estimates = {
        "naive": difference_in_means(Y, T),
        "components": aipw_on_components(latents, Y, T, number),
        "old": (old.estimate, old.standard_error),
        "estimate": (effect.estimate, effect.standard_error),
        "oracle": regression(Y, T, confounder),
    }
    line: dict[str, Any] = {"study": scenario.study, "scenario": scenario.name, "repetition": number}
    lines = [
        line | {"estimator": name, "estimate": round(value, 5), "standard_error": round(error, 5)}
        for name, (value, error) in estimates.items()
    ]
    middle = effect.by_seed.median()
    measures = {
        "gain": 1 - middle["outcome_loss"] / middle["means_loss"],
        "auc": middle["auc"],
        "explained": middle["explained"],
        "spread": effect.by_seed["estimate"].std() / middle["standard_error"],
        "readable": readability(latents, confounder, T, number) if number < READINGS else np.nan,
    }
    warned = {kind: int(any(text.startswith(kind) for text in effect.warnings)) for kind in summary.WARNINGS}
    return lines, line | warned | {name: round(value, 4) for name, value in measures.items()}


def run(pools: dict[str, Path], scenarios: list[Scenario], workers: int) -> tuple[pd.DataFrame, pd.DataFrame]:
    """All repetitions, for the scenarios whose study has a pool (by its name, the folder): the lines of `repeat`."""
    tasks = [
        (pools[scenario.study] / "results", scenario, place, number)
        for place, scenario in enumerate(scenarios)
        if scenario.study in pools
        for number in range(scenario.repetitions)
    ]
    if workers == 1:
        found = [repeat(*task) for task in tasks]
    else:
        with multiprocessing.get_context("spawn").Pool(workers) as pool:
            found = pool.starmap(repeat, tasks, chunksize=1)
    return pd.DataFrame([line for lines, _ in found for line in lines]), pd.DataFrame([line for _, line in found])


def make_pools(folder: Path) -> dict[str, Path]:
    """Pictures and latents of each study, by its name, as far as they are not there; photographs where they can be."""
    pools = {"shapes": folder / "shapes"}
    if not (pools["shapes"] / "config/items.csv").exists():
        draw_pool(pools["shapes"], SHAPES, seed=2026)
    if reason := fashion_pool.what_is_missing():
        print(f"The study on photographs is left out: {reason}", flush=True)
    else:
        pools["photographs"] = folder / "photographs"
        if not (pools["photographs"] / "config/items.csv").exists():
            fashion_pool.draw_pool(pools["photographs"], PHOTOGRAPHS, seed=2026, is_reported=True)
    for pool in pools.values():
        run_workflow(pool)
        gpi_latents.load(pool / "results")  # checks the tensor once, for all repetitions
    return pools


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, help="keep the pictures and latents here, and use them again")
    parser.add_argument("--output", type=Path, default=ROOT / "docs", help="folder of validation*.csv and .png")
    parser.add_argument("--workers", type=int, default=2, help="processes, of one thread each")
    arguments = parser.parse_args()
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="gpi") as temporary:
        pools = make_pools(arguments.folder or Path(temporary))
        print(f"latents after {time.monotonic() - started:.0f} s", flush=True)
        estimates, warned = run(pools, SCENARIOS, arguments.workers)
    estimates.to_csv(arguments.output / "validation.csv", index=False)
    warned.to_csv(arguments.output / "validation_warnings.csv", index=False)
    summary.draw_figure(estimates, arguments.output / "validation.png")
    print(summary.table(estimates))
    print(summary.warnings_table(estimates, warned))
    print(f"{time.monotonic() - started:.0f} s")


if __name__ == "__main__":
    main()
