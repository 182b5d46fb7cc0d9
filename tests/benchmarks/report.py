"""What the report of many items costs: wall and CPU seconds of its jobs, and the memory of each.

    .venv/bin/python tests/benchmarks/report.py                      # 2,000 items of the demo's shape and of SD 1.5's
    .venv/bin/python tests/benchmarks/report.py --items 20000

Latents and pictures are made up; those of (4, 64, 64) have pictures of 512 x 512 pixels.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import pandas as pd
from gpi_latents import joblog, paths
from gpi_latents.plan import PLAN_COLUMNS, read_plan
from gpi_latents.study.study import Study
from PIL import Image

ROOT = Path(__file__).resolve().parents[2]
DRAWN = 20  # different pictures, of which the items' are copies


def make_study(folder: Path, count: int, side: int) -> str:
    """A study as it is after the rule `stack`, with latents of (4, side, side); returns the folder of its plan."""
    random = np.random.default_rng(0)
    for part in ("config", "pictures", "results/images", "results/hidden", "logs/extract"):
        (folder / part).mkdir(parents=True)
    pixels = 8 * side
    for number in range(DRAWN):
        blocks = Image.fromarray(random.integers(0, 256, (12, 16, 3), dtype=np.uint8))
        picture = blocks.resize((2 * pixels, 3 * pixels // 2), Image.Resampling.BICUBIC)
        picture.save(folder / f"pictures/drawn{number}.jpg", quality=90)
        noise = random.integers(0, 24, (pixels, pixels, 3), dtype=np.uint8)
        decoded = np.asarray(picture.resize((pixels, pixels))) // 10 * 9 + noise
        Image.fromarray(decoded.astype(np.uint8)).save(folder / f"pictures/decoded{number}.png")
    rows = []
    for number in range(count):
        os.link(folder / f"pictures/decoded{number % DRAWN}.png", folder / f"results/images/gen_p{number}.png")
        finished = joblog.Finished([], [1, 4, side, side], round(random.gamma(5, 0.01), 3), 0.9, "cpu")
        (folder / f"logs/extract/p{number}.log").write_text(joblog.line(finished) + "\n")
        rows.append(
            {"id": f"p{number}", "image": f"pictures/drawn{number % DRAWN}.jpg", "prompt": "a red circle",
             "strength": 0.5 * (number % 10 == 0), "treatment": number % 2, "outcome": number % 7}
        )  # fmt: skip
    pd.DataFrame(rows).to_csv(folder / "config/items.csv", index=False)
    values = {"model_id": "demo", "stacked": "results/latents.npy", "resize": "stretch"}
    (folder / "config/config.yaml").write_text(json.dumps(values))
    latents = np.lib.format.open_memmap(folder / "results/latents.npy", "w+", "<f4", (count, 4, side, side))
    means = random.standard_normal((DRAWN, 4, side, side), dtype=np.float32)
    for number in range(count):
        latents[number] = means[number % DRAWN] + random.standard_normal((4, side, side), dtype=np.float32)
    latents.flush()
    os.chdir(folder)
    study = Study(values)
    table = read_plan(study.plan).drop(columns=PLAN_COLUMNS)
    table.assign(sha256=[f"{number:064x}" for number in range(count)]).to_csv(paths.INDEX, index=False)
    origin = {"model": {"model_id": "demo"}, "recipe_version": 1, "software": {}, "config": study.config}
    (folder / paths.PROVENANCE).write_text(json.dumps(origin))
    return study.plan


def measure(*command: str) -> dict[str, float]:
    """Wall and CPU seconds and peak memory (MB) of one process, with one thread, as Snakemake gives a job."""
    started = time.monotonic()
    threads = {f"{library}_NUM_THREADS": "1" for library in ("OMP", "OPENBLAS", "MKL")}
    process = subprocess.Popen([sys.executable, *command], env=os.environ | threads, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        sys.exit(f"failed: {command}")
    return {
        "wall, s": time.monotonic() - started,
        "CPU, s": usage.ru_utime + usage.ru_stime,
        "peak, MB": usage.ru_maxrss / 1024,
    }


def benchmark(folder: Path, count: int, side: int) -> None:
    with ProcessPoolExecutor(1) as pool:  # a process that has held the tensor would lend its peak to those it starts
        plan = pool.submit(make_study, folder, count, side).result()
    os.chdir(folder)
    print(f"\n{count:,} items, latents of (4, {side}, {side}), pictures of {8 * side} x {8 * side}; "
          f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}\n")  # fmt: skip
    print("| job | wall, s | CPU, s | peak, MB |\n| --- | ---: | ---: | ---: |")
    (folder / "results/report").mkdir()
    figures = [str(ROOT / "scripts/figures.py"), "--plan", plan, "--index", paths.INDEX, "--folder", "results/report"]
    report = [str(ROOT / "scripts/report.py"), "--plan", plan, "--provenance", paths.PROVENANCE, "--output"]
    report += [paths.REPORT, paths.REPORT_JSON]
    jobs = {"figures": figures, "report": report, "figures after an outcome was edited": figures}
    total = 0.0
    for name, command in jobs.items():
        if "edited" in name:
            index = pd.read_csv(paths.INDEX, dtype=str, keep_default_na=False)
            index.loc[len(index) // 2, "outcome"] = "9"
            index.to_csv(paths.INDEX, index=False)
        cost = measure(*command)
        total += cost["CPU, s"]
        print(f"| {name} | {cost['wall, s']:.1f} | {cost['CPU, s']:.1f} | {cost['peak, MB']:.0f} |", flush=True)
    print(f"| all of them | | {total:.1f} | |")
    size = Path("results/report.html").stat().st_size / 1e6
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    started = time.monotonic()
    subprocess.run(
        [sys.executable, "-m", "snakemake", "--snakefile", str(ROOT / "Snakefile"), "--cores", "2", "--quiet", "all",
         "--forcerun", "figures", "--allowed-rules", "figures", "report", "--", "results/report.html"],
        check=True,
    )  # fmt: skip
    seconds = time.monotonic() - started
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    print(f"| by Snakemake, nothing edited | {seconds:.1f} | {cpu:.1f} | |\n\nreport.html: {size:.1f} MB")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--items", type=int, default=2000)
    parser.add_argument(
        "--side", type=int, nargs="+", default=[8, 64], help="of the latents, an eighth of the pictures'"
    )
    parser.add_argument("--keep", type=Path, help="a new folder that is kept")
    arguments = parser.parse_args()
    for side in arguments.side:
        with tempfile.TemporaryDirectory(prefix="benchmark-") as scratch:
            folder = (arguments.keep or Path(scratch)) / f"report{side}"
            benchmark(folder, arguments.items, side)
            os.chdir("/")


if __name__ == "__main__":
    main()
