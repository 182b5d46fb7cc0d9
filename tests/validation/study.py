"""A study with known truth: estimates from the workflow's latents, and the effect that was put in.

    python tests/validation/study.py

Pictures of a coloured shape are drawn with random features: colour, size, place, ground, and a faint dot. The real
workflow makes their latents with the demo's model. Each repetition chooses pictures from this pool so that the
treatment depends on the confounder, and draws their outcomes, which depend on both:

    P(treated | confounder) = 1 / (1 + exp(-strength * confounder)),
    outcome = TRUTH * treatment + SHIFT * confounder + noise,

with a confounder of mean 0 and standard deviation 1 and noise of standard deviation 1. The estimators see the treatment
and the outcome; of the confounder they see nothing (difference in means), the latents (`gpi_pack`), or its values.
"""

from __future__ import annotations

import argparse
import contextlib
import io
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
sys.path[:0] = [str(ROOT / "scripts/demo"), str(ROOT / "tests")]

import gpi_latents  # noqa: E402
import shapes  # noqa: E402

TRUTH = 1.0
SHIFT = 1.0
POOL = 3000  # pictures
FEATURES = ["red", "size", "light", "dot"]
# Chosen on other pictures (a pool of seed 77), never on those that are reported.
SCALE = 1 / 30
SETTINGS: dict[str, Any] = {
    "architecture_z": [64, 16],
    "architecture_y": [256, 1],
    "lr": 3e-3,
    "batch_size": 64,
    "patience": 30,
    "dropout": 0.0,
    "plot_propensity": False,
    "verbose": False,
}
ESTIMATORS = {"naive": "difference in means", "latents": "gpi_pack on latents", "oracle": "confounder known"}
MEASURES = ["bias", "RMSE", "coverage"]


class Scenario(NamedTuple):
    """What is estimated, from how many items; `treatment` and `confounder` are among the `FEATURES`."""

    name: str
    treatment: str
    confounder: str
    items: int
    strength: float
    repetitions: int


MAIN = Scenario("main", "red", "light", 1000, 1.0, 100)
SCENARIOS = [
    MAIN,
    MAIN._replace(name="few items", items=150, repetitions=30),
    MAIN._replace(name="strong confounding", strength=3.0, repetitions=30),
    MAIN._replace(name="treatment barely encoded", treatment="dot", repetitions=30),
    MAIN._replace(name="confounder hard to read", confounder="size", repetitions=30),
    MAIN._replace(name="confounder barely encoded", confounder="dot", repetitions=30),
]


def draw_pool(folder: Path, count: int, seed: int) -> pd.DataFrame:
    """Draw pictures and write a study around them.

    Args:
        folder: gets `pictures`, `config/items.csv` and `config/config.yaml`.
        count: of pictures.
        seed: of the features.

    Returns:
        The sheet: `id`, `image`, `prompt` and the `FEATURES`, which are independent of each other: `red` (1) rather
        than blue (0), `size` (share of the side), `light` (brightness of the ground, 0 to 1), `dot` (1: one pixel in a
        corner is a little darker).
    """
    random = np.random.default_rng(seed)
    (folder / "pictures").mkdir(parents=True, exist_ok=True)
    (folder / "config").mkdir(exist_ok=True)
    rows = []
    for number in range(count):
        scene = shapes.random_scene(random)
        red, dot = (int(value) for value in random.integers(0, 2, 2))
        scene = scene._replace(shape="circle" if random.integers(2) else "square", colour="red" if red else "blue")
        picture = shapes.draw(*scene)
        if dot:
            picture.putpixel((2, 2), tuple(max(0, value - 12) for value in scene.ground))
        name = f"pictures/{number:04d}.png"
        picture.save(folder / name)
        light = sum(scene.ground) / (3 * 255)
        row = {"id": f"{number:04d}", "image": name, "prompt": "no change", "red": red, "size": round(scene.size, 4)}
        rows.append(row | {"light": round(light, 4), "dot": dot})
    sheet = pd.DataFrame(rows)
    sheet.to_csv(folder / "config/items.csv", index=False)
    (folder / "config/config.yaml").write_text("model_id: demo\noutput_image_dir: null\nreport: false\n")
    return sheet


def run_workflow(folder: Path) -> None:
    """Make the results of a study, as a user would."""
    command = [sys.executable, "-m", "snakemake", "--snakefile", str(ROOT / "Snakefile"), "--directory", str(folder)]
    finished = subprocess.run([*command, "--cores", "2"], capture_output=True, text=True)
    if finished.returncode:
        raise RuntimeError(finished.stdout + finished.stderr)


def choose(index: pd.DataFrame, scenario: Scenario, seed: list[int]) -> pd.DataFrame:
    """One repetition's items, with columns `treatment`, `confounder` (standardised) and `outcome`.

    A picture is taken with the probability of its own treatment, given its confounder, until there are enough.
    """
    random = np.random.default_rng(seed)
    confounder = index[scenario.confounder]
    table = index.assign(
        treatment=index[scenario.treatment], confounder=(confounder - confounder.mean()) / confounder.std(ddof=0)
    )
    propensity = 1 / (1 + np.exp(-scenario.strength * table["confounder"]))
    is_taken = random.random(len(table)) < np.where(table["treatment"] == 1, propensity, 1 - propensity)
    chosen = random.permutation(np.flatnonzero(is_taken))[: scenario.items]
    if len(chosen) < scenario.items:
        raise ValueError(f"The pool of {len(index)} has too few pictures for {scenario}")
    table = table.iloc[chosen]
    outcome = TRUTH * table["treatment"] + SHIFT * table["confounder"] + random.normal(0, 1, len(table))
    return table.assign(outcome=outcome)


def difference_in_means(Y: np.ndarray, T: np.ndarray) -> tuple[float, float]:
    """The estimate and its standard error (Welch)."""
    treated, control = Y[T == 1], Y[T == 0]
    variance = treated.var(ddof=1) / len(treated) + control.var(ddof=1) / len(control)
    return float(treated.mean() - control.mean()), float(np.sqrt(variance))


def regression(Y: np.ndarray, T: np.ndarray, confounder: np.ndarray) -> tuple[float, float]:
    """The treatment's coefficient by least squares, adjusted for the confounder, and its standard error."""
    X = np.column_stack([T, np.ones_like(Y), confounder])
    coefficients = np.linalg.lstsq(X, Y, rcond=None)[0]
    residuals = Y - X @ coefficients
    covariance = np.linalg.inv(X.T @ X) * (residuals @ residuals) / (len(Y) - X.shape[1])
    return float(coefficients[0]), float(np.sqrt(covariance[0, 0]))


def estimate(R: np.ndarray, Y: np.ndarray, T: np.ndarray, seed: int) -> tuple[float, float]:
    """The effect and its standard error by `gpi_pack`, with the README's settings.

    The network must find the treatment's part of the outcome in its input T and the confounder's part in R. But R shows
    the treatment too, and what is credited to R is lost to the effect. With a small R, a wide outcome model and few
    deconfounding features, the weights of T learn faster than those of R. The propensity model takes these features
    unscaled: if all had one variance, those that barely vary would count as much as any, and a few propensities near 0
    or 1 could decide the estimate.

    Args:
        R: latents, float32 (N, C * H * W).
        Y: outcomes (N,).
        T: treatments (N,), 0 or 1.
        seed: of the folds.
    """
    import matplotlib.pyplot as plt
    from gpi_latents.gpi.gpi_pack_import import import_gpi_pack
    from sklearn.linear_model import LogisticRegression

    np.random.seed(seed)  # gpi_pack draws its folds from NumPy's global generator
    with contextlib.redirect_stdout(io.StringIO()):
        estimated = import_gpi_pack().estimate_k_ate(SCALE * R / R.std(), Y, T, ps_model=LogisticRegression, **SETTINGS)
    plt.close("all")  # the curve of each training
    return estimated


def repeat(results: Path, scenario: Scenario, number: int) -> list[dict[str, Any]]:
    """One repetition: a line for each estimator, with `estimate` and `standard_error`."""
    import torch

    torch.set_num_threads(1)
    R, index = gpi_latents.load(results, check=False)
    place = [known.name for known in SCENARIOS].index(scenario.name)
    chosen = choose(index, scenario, [2027, place, number])
    Y, T = chosen["outcome"].to_numpy(), chosen["treatment"].to_numpy()
    latents = np.asarray(R[chosen["row"]]).reshape(len(chosen), -1)
    estimates = {
        "naive": difference_in_means(Y, T),
        "latents": estimate(latents, Y, T, number),
        "oracle": regression(Y, T, chosen["confounder"].to_numpy()),
    }
    line = {"scenario": scenario.name, "repetition": number}
    return [
        line | {"estimator": name, "estimate": round(value, 5), "standard_error": round(error, 5)}
        for name, (value, error) in estimates.items()
    ]


def run(results: Path, scenarios: list[Scenario], workers: int) -> pd.DataFrame:
    """All repetitions: `scenario`, `repetition`, `estimator`, `estimate`, `standard_error`."""
    tasks = [(results, scenario, number) for scenario in scenarios for number in range(scenario.repetitions)]
    if workers == 1:
        lines = [repeat(*task) for task in tasks]
    else:
        with multiprocessing.get_context("spawn").Pool(workers) as pool:
            lines = pool.starmap(repeat, tasks, chunksize=5)
    return pd.DataFrame([line for several in lines for line in several])


def summary(lines: pd.DataFrame) -> pd.DataFrame:
    """How each estimator does in each scenario.

    Returns:
        `bias`, `RMSE` and `coverage` (of the interval estimate +- 1.96 standard errors), each with its Monte-Carlo
        standard error in a column of that name with ` error`; `repetitions`.
    """

    def of(group: pd.DataFrame) -> pd.Series:
        count = len(group)
        error = group["estimate"] - TRUTH
        is_covered = error.abs() <= 1.96 * group["standard_error"]
        rmse = np.sqrt((error**2).mean())
        return pd.Series(
            {
                "bias": error.mean(),
                "bias error": error.std() / np.sqrt(count),
                "RMSE": rmse,
                "RMSE error": (error**2).std() / np.sqrt(count) / (2 * rmse),
                "coverage": is_covered.mean(),
                "coverage error": np.sqrt(is_covered.mean() * (1 - is_covered.mean()) / count),
                "repetitions": count,
            }
        )

    return lines.groupby(["scenario", "estimator"], sort=False)[["estimate", "standard_error"]].apply(of)


def table(measured: pd.DataFrame) -> str:
    """The summary as a Markdown table, Monte-Carlo standard errors in brackets."""
    lines = [
        "| scenario (repetitions) | estimator | bias | RMSE | coverage of the 95% interval |",
        "| --- | --- | ---: | ---: | ---: |",
    ]
    for (scenario, estimator), values in measured.iterrows():
        cells = [
            f"{values['bias']:+.3f} ({values['bias error']:.3f})",
            f"{values['RMSE']:.3f} ({values['RMSE error']:.3f})",
            f"{values['coverage']:.0%} ({values['coverage error']:.0%})",
        ]
        name = f"{scenario} ({values['repetitions']:.0f})"
        lines.append(f"| {name} | {ESTIMATORS[estimator]} | {' | '.join(cells)} |")
    return "\n".join(lines)


def draw_figure(lines: pd.DataFrame, path: Path) -> None:
    """Left the estimates of the main scenario, right each scenario's bias with 1.96 Monte-Carlo standard errors."""
    import matplotlib.pyplot as plt

    looks = {"naive": ("#D55E00", "s"), "latents": ("#0072B2", "o"), "oracle": ("#555555", "^")}  # Okabe and Ito
    measured = summary(lines)
    scenarios = list(lines["scenario"].unique())
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4), width_ratios=[2, 3], layout="constrained")
    main = lines[lines["scenario"] == scenarios[0]]
    jitter = np.random.default_rng(0)
    for place, (name, (colour, marker)) in enumerate(looks.items()):
        values = main.loc[main["estimator"] == name, "estimate"]
        places = place + jitter.uniform(-0.2, 0.2, len(values))
        left.scatter(places, values, 18, colour, marker=marker, alpha=0.5, linewidths=0)
        left.hlines(values.mean(), place - 0.3, place + 0.3, color=colour, linewidth=2.5)
    left.axhline(TRUTH, color="black", linestyle="--", linewidth=1)
    left.text(-0.4, TRUTH, "truth", va="bottom")
    left.set_xticks(range(3), [text.replace(" on ", "\non ").replace(" in ", "\nin ") for text in ESTIMATORS.values()])
    left.set_ylabel("estimated effect")
    left.set_title(f"{scenarios[0]}, {len(main) // 3} repetitions (bar: mean)")
    for offset, (name, (colour, marker)) in zip((0.22, 0, -0.22), looks.items(), strict=True):
        values = measured.xs(name, level="estimator")
        places = np.arange(len(scenarios))[::-1] + offset
        error = 1.96 * values["bias error"]
        right.errorbar(values["bias"], places, xerr=error, fmt=marker, color=colour, capsize=2, label=ESTIMATORS[name])
        for x, y, share in zip(values["bias"] + error, places, values["coverage"], strict=True):
            right.annotate(
                f"{share:.0%}", (x, y), (5, 0), "data", "offset points", va="center", fontsize=8, color=colour
            )
    right.axvline(0, color="black", linestyle="--", linewidth=1)
    right.set_yticks(range(len(scenarios)), scenarios[::-1])
    right.set_xlabel("bias; the number is the coverage of the 95% interval")
    right.set_title("where it works and where it breaks")
    right.margins(x=0.12)
    right.legend(loc="upper center", bbox_to_anchor=(0.5, -0.18), ncols=3, frameon=False)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, help="keep the pictures and latents here, and use them again")
    parser.add_argument("--output", type=Path, default=ROOT / "docs", help="folder of validation.csv and .png")
    parser.add_argument("--workers", type=int, default=2, help="processes, of one thread each")
    arguments = parser.parse_args()
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="gpi") as temporary:
        folder = arguments.folder or Path(temporary)
        if not (folder / "config/items.csv").exists():
            draw_pool(folder, POOL, seed=2026)
        run_workflow(folder)
        gpi_latents.load(folder / "results")  # checks the tensor once, for all repetitions
        print(f"latents after {time.monotonic() - started:.0f} s", flush=True)
        lines = run(folder / "results", SCENARIOS, arguments.workers)
    lines.to_csv(arguments.output / "validation.csv", index=False)
    draw_figure(lines, arguments.output / "validation.png")
    print(table(summary(lines)))
    print(f"{time.monotonic() - started:.0f} s")


if __name__ == "__main__":
    main()
