"""What many items cost: planning, running and stacking, next to a bare Snakefile that copies as many files.

    .venv/bin/python tests/benchmarks/scale.py                         # all of it, about 20 minutes
    .venv/bin/python tests/benchmarks/scale.py --items 1000 5000       # smaller
    .venv/bin/python tests/benchmarks/scale.py --stack                 # stacking latents of (4, 64, 64) alone
    .venv/bin/python tests/benchmarks/scale.py --cost --items 1000     # what a job costs; 4 minutes

Figures hold as ratios: the machine's own speed is in all of them.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import numpy as np
import pandas as pd
import psutil
import torch

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests"))

from benchmarks.resident import COPIES  # noqa: E402
from gpi_latents.study.study import Study as Parsed  # noqa: E402
from gpi_latents.tensors.latent_file import latent_bytes  # noqa: E402
from helpers.study import Study, draw  # noqa: E402

Command = tuple[list[str], Path]  # a command line, and the folder to run it in
PROFILE = ["--workflow-profile", str(ROOT / "profiles/default")]


class Measured:
    """Seconds of a command, and the most memory (MB) that it and its stack job held."""

    def __init__(self, command: list[str], folder: Path):
        self.peaks: dict[str, float] = {}
        started = time.monotonic()
        process = subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        watching = threading.Thread(target=self._watch, args=[psutil.Process(process.pid)], daemon=True)
        watching.start()
        self.output = process.communicate()[0]
        self.seconds = time.monotonic() - started
        watching.join()
        if process.returncode:
            sys.exit(self.output)

    def _watch(self, process: psutil.Process) -> None:
        # Linux keeps the high-water mark itself, so looking now and then is enough.
        while process.is_running() and process.status() != psutil.STATUS_ZOMBIE:
            try:
                self._note("whole", process)
                for child in process.children(recursive=True):
                    if "stack.py" in " ".join(child.cmdline()[:2]):
                        self._note("stack.py", child)
            except psutil.NoSuchProcess:
                pass
            time.sleep(0.1)

    def _note(self, name: str, process: psutil.Process) -> None:
        try:
            status = Path(f"/proc/{process.pid}/status").read_text()
        except OSError:
            return
        for line in status.splitlines():
            if line.startswith("VmHWM"):
                self.peaks[name] = max(self.peaks.get(name, 0), int(line.split()[1]) / 1024)


def planning(scratch: Path, count: int) -> dict[str, float]:
    """Our workflow and the bare one, cold, with nothing to do, and with one row changed."""
    ours, (command, _), (bare_command, bare) = pair(scratch, count, cores=4)
    figures: dict[str, float] = {"items": count}
    cold, bare_cold = Measured(command, ours.folder), Measured(bare_command, bare)
    figures["cold, s per item"], figures["bare"] = cold.seconds / count, bare_cold.seconds / count
    figures["ratio"] = cold.seconds / bare_cold.seconds
    figures["Snakemake's peak, MB"], figures["bare peak, MB"] = cold.peaks["whole"], bare_cold.peaks["whole"]
    figures["stack job's peak, MB"] = cold.peaks["stack.py"]
    figures |= nothing_to_do((command, ours.folder), (bare_command, bare))
    sheet = pd.read_csv(ours.folder / "config/items.csv", dtype=str).assign(seed=0)
    sheet.loc[count // 2, "seed"] = 5
    ours.sheet(sheet.to_dict("records"))
    figures["one row changed, planned, s"] = Measured([*command, "--dry-run"], ours.folder).seconds
    figures["one row changed, done, s"] = Measured(command, ours.folder).seconds
    return figures


def nothing_to_do(ours: Command, bare: Command) -> dict[str, float]:
    """Of a study that is finished and of its bare Snakefile, in turns: the best of three."""
    measured = [(Measured(*ours), Measured(*bare)) for _ in range(3)]
    assert "up to date" in measured[0][0].output
    seconds, bare_seconds = (min(each.seconds for each in kind) for kind in zip(*measured, strict=True))
    return {
        "nothing to do, s": seconds,
        "bare nothing to do, s": bare_seconds,
        "nothing to do, ratio": seconds / bare_seconds,
    }


def pair(scratch: Path, count: int, cores: int) -> tuple[Study, Command, Command]:
    """A study, its command, and that of a bare Snakefile that copies the same pictures."""
    ours = Study(scratch / f"ours{count}-{cores}")
    ours.pictures(count)
    ours.config(output_image_dir=None)
    bare = scratch / f"bare{count}-{cores}"
    bare.mkdir()
    (bare / "Snakefile").write_text(COPIES % count)
    (bare / "pictures").symlink_to(ours.folder / "pictures")
    command = [sys.executable, "-m", "snakemake", "--cores", str(cores), *PROFILE]
    return ours, (ours.command(cores=cores), ours.folder), (command, bare)


def cost(scratch: Path, count: int, cores: int) -> dict[str, float]:
    """What an item costs between the first latent and the last, and what a run costs apart from that."""
    _, ours, bare = pair(scratch, count, cores)
    each, rest = {}, {}
    for name, (command, where), results in (("ours", ours, "results/hidden"), ("bare", bare, "copies")):
        cold = Measured(command, where)
        made = sorted(file.stat().st_mtime for file in os.scandir(where / results))
        each[name] = 1000 * (made[-1] - made[0]) / (count - 1)
        rest[name] = cold.seconds - (made[-1] - made[0])
    return {
        "items": count,
        "cores": cores,
        "ms per item": each["ours"],
        "bare": each["bare"],
        "ratio": each["ours"] / each["bare"],
        "rest of the run, s": rest["ours"],
        "bare rest, s": rest["bare"],
        **nothing_to_do(ours, bare),
    }


def stacking(scratch: Path, count: int) -> dict[str, float]:
    """The stack of latents of (4, 64, 64), next to `cat` of the same files into one."""
    made = Study(scratch / f"stack{count}")
    made.config(output_image_dir=None)
    made.sheet([{"id": f"p{number}", "image": "p.png", "prompt": "x"} for number in range(count)])
    draw(made.folder / "p.png")
    hidden = made.folder / "results/hidden"
    hidden.mkdir(parents=True)
    (made.folder / "results/model.json").write_text("{}")
    random = np.random.default_rng(0)
    for number in range(count):
        values = torch.from_numpy(random.standard_normal((1, 4, 64, 64), dtype=np.float32))
        latent = values.contiguous(memory_format=torch.channels_last)
        (hidden / f"hidden_p{number}.pt").write_bytes(latent_bytes(latent))
    os.sync()
    cat = Measured(["bash", "-c", "find results/hidden -name '*.pt' -print0 | xargs -0 cat > all"], made.folder)
    (made.folder / "all").unlink()
    os.sync()
    os.chdir(made.folder)
    plan = Parsed({"model_id": "demo", "output_image_dir": None}).plan
    command = [sys.executable, str(ROOT / "scripts/stack.py"), "--plan", plan]
    outputs = ["results/latents.pt", "results/index.csv", "results/provenance.json"]
    stack = Measured([*command, "--model", "results/model.json", "--output", *outputs], made.folder)
    os.chdir(scratch)
    megabytes = sum(file.stat().st_size for file in os.scandir(hidden)) / 1e6
    shutil.rmtree(made.folder)
    return {
        "items": count,
        "cat, MB/s": megabytes / cat.seconds,
        "stack job with start and table, MB/s": megabytes / stack.seconds,
        "share of cat": cat.seconds / stack.seconds,
        "stack job, s": stack.seconds,
        "peak memory, MB": stack.peaks["whole"],
    }


def show(columns: list[dict[str, float]]) -> None:
    for name in columns[0]:
        cells = [f"{column[name]:>12,.0f}" if column[name] >= 100 else f"{column[name]:>12.4g}" for column in columns]
        print(f"| {name:<38} | {' | '.join(cells)} |", flush=True)
        if name == "items":
            print(f"| {'-' * 38} | {' | '.join('-' * 11 + ':' for _ in columns)} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--items", type=int, nargs="+", default=[1000, 5000, 20000])
    parser.add_argument("--stack", action="store_true", help="only stacking")
    parser.add_argument("--cost", action="store_true", help="only the cost of a job, with 2 and 4 cores")
    parser.add_argument("--plan", action="store_true", help="all but stacking")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="benchmark-") as scratch:
        if arguments.cost:
            print(f"\nItems of 64 x 64, strength 0, the demo's model, no pictures; {os.cpu_count()} cores.\n")
            show([cost(Path(scratch), count, cores) for count in arguments.items for cores in (2, 4)])
            return
        if not arguments.plan:
            print(f"\nStacking latents of (4, 64, 64); {os.cpu_count()} cores.\n")
            show([stacking(Path(scratch), count) for count in arguments.items])
        if not arguments.stack:
            print(
                "\nItems of 64 x 64, strength 0, the demo's model, no pictures; bare: as many jobs that copy a file.\n"
            )
            show([planning(Path(scratch), count) for count in arguments.items])


if __name__ == "__main__":
    main()
