"""Disturb runs at random, and check that plain Snakemake then gives the results of an undisturbed run, bit for bit.

    .venv/bin/python tests/fuzz.py --minutes 60            # from a seed that is printed
    .venv/bin/python tests/fuzz.py --minutes 60 --seed 7   # the same edits and disturbances; their moments differ

Each round edits the sheet, the pictures or the model of a study of 20 items, starts Snakemake, and kills, suspends or
interrupts one of its processes or fills the disk (as root). Then Snakemake is run until nothing is left to do. What
must come out is computed without Snakemake: each item's latent by the core, the index table from the sheet. The first
difference, and every run that does not come to its end, is reported with its round, and the study is kept.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import psutil
import safetensors.numpy
import torch

sys.path.insert(0, str(Path(__file__).resolve().parent))

from gpi_latents.core.diffusion import Model, same_bits
from gpi_latents.paths import DEMO_MODEL
from gpi_latents.recipe import recipe
from gpi_latents.study.settings import load_config
from gpi_latents.study.sheet import read_items
from helpers.study import Study, draw, residents

ITEMS = 20
MOST_RUNS = 8  # until nothing is left to do
LONGEST_RUN = 300.0  # seconds
CONFIG = {"model_id": "model", "num_inference_steps": 4, "image_size": 32, "output_image_dir": None}


class Failure(Exception):
    """What a round found."""


class Fuzz:
    """One study, and what its results must be.

    Args:
        folder: a short path, empty.
    """

    def __init__(self, folder: Path):
        self.study = Study(folder / "study")
        self.folder = self.study.folder
        self.expected: dict[tuple[str, str, str], str] = {}
        self.models: dict[str, Model] = {}
        self.modified: set[str] = set()
        self.serial = 0
        self.rows = [self.row(number) for number in range(ITEMS)]
        for name, factor in (("v1", 1.0), ("v2", 1.01)):
            self.make_model(folder / name, factor)
        self.models_folder = folder
        self.link_model("v1")
        self.study.config(**CONFIG)
        self.write_sheet()

    def row(self, number: int) -> dict:
        self.picture(f"p{number}")
        strength = 0.5 if number % 5 == 4 else 0
        item = {"id": f"p{number}", "image": f"pictures/p{number}.bmp", "prompt": "a red circle"}
        return item | {"strength": strength, "seed": number, "age": number}

    def picture(self, name: str, old: bool = False) -> None:
        """A picture that was not there before, as long as any other; moved to its place, maybe with an early date."""
        self.serial += 1
        path = draw(self.folder / "pictures/new.bmp", seed=self.serial)
        if old:
            os.utime(path, (1e9 + self.serial, 1e9 + self.serial))
        path.rename(self.folder / f"pictures/{name}.bmp")

    def make_model(self, folder: Path, factor: float) -> None:
        shutil.copytree(DEMO_MODEL, folder)
        weights = folder / "vae/diffusion_pytorch_model.safetensors"
        values = safetensors.numpy.load_file(weights)
        values["encoder.conv_in.bias"] = (values["encoder.conv_in.bias"] * factor).astype(np.float16)
        safetensors.numpy.save_file(values, weights, metadata={"format": "pt"})
        for path in folder.rglob("*"):
            os.utime(path, (1e9, 1e9))
        self.models[folder.name] = Model(folder)

    def link_model(self, name: str) -> None:
        self.model = name
        (self.folder / "model").unlink(missing_ok=True)
        (self.folder / "model").symlink_to(self.models_folder / name)

    def write_sheet(self) -> None:
        self.study.sheet(self.rows)

    # --- What must come out ---

    def latent_digest(self, item, config: dict) -> str:
        chosen = recipe(config, item)
        content = (self.folder / item.image).read_bytes()
        key = (self.model, repr(sorted(chosen.items())), hashlib.sha256(content).hexdigest())
        if key not in self.expected:
            model = self.models[self.model]
            picture, _ = model.prepare(self.folder / item.image, chosen)
            latent = model.latent(picture, chosen)
            self.expected[key] = hashlib.sha256(latent.numpy().tobytes()).hexdigest()
        return self.expected[key]

    def check(self) -> None:
        """Raises Failure if the results are not those of the sheet, the pictures and the model."""
        os.chdir(self.folder)
        config = load_config(CONFIG | {"report": False})
        items = read_items(config)
        digests = [self.latent_digest(item, config) for item in items.itertuples(index=False)]
        index = self.study.index()
        tensor = torch.load("results/latents.pt", weights_only=True).numpy()
        for name, values in (("id", items["id"]), ("age", items["age"]), ("sha256", digests)):
            if list(index[name]) != list(map(str, values)):
                raise Failure(f"the column {name} of the index table is wrong")
        if [hashlib.sha256(latent.tobytes()).hexdigest() for latent in tensor] != digests:
            raise Failure("the tensor is wrong")
        images = [hashlib.sha256(Path(image).read_bytes()).hexdigest() for image in items["image"]]
        if list(index["image_sha256"]) != images:
            raise Failure("the column image_sha256 is wrong")
        latents = self.study.digests()
        if any(latents[item] != digest for item, digest in zip(items["id"], digests, strict=True)):
            raise Failure("an item's own latent is wrong")
        litter = [str(path) for path in Path("results").rglob(".*") if path.is_file()]
        if litter:
            raise Failure(f"left behind: {litter}")

    # --- Edits between runs ---

    def edit(self, chance: random.Random) -> str:
        row = chance.choice(self.rows)
        kind = chance.choice(["seed", "age", "order", "remove", "add", "picture", "older picture", "model", "nothing"])
        if kind == "model" and chance.random() < 0.5:  # everything runs again, which takes its time
            kind = "seed"
        if kind in ("seed", "age"):
            row[kind] = chance.randrange(10**6)
        elif kind == "order":
            chance.shuffle(self.rows)
        elif kind == "remove" and len(self.rows) > ITEMS - 5:
            self.rows.remove(row)
        elif kind == "add":
            self.serial += 1
            self.rows.append(self.row(1000 + self.serial))
        elif "picture" in kind:
            self.picture(row["id"], old=kind == "older picture")
        elif kind == "model":
            self.link_model("v2" if self.model == "v1" else "v1")
        self.write_sheet()
        return kind

    # --- Disturbances while one goes on ---

    def processes(self) -> dict[str, list[psutil.Process]]:
        """What runs for this study, by kind."""
        found: dict[str, list[psutil.Process]] = {"client": [], "stack": [], "resident": residents(self.folder)}
        for process in psutil.process_iter():
            try:
                line = " ".join(process.cmdline())
                if process.cwd() == str(self.folder) and "bash" not in process.name():
                    found["client"] += [process] if "extract.py" in line else []
                    found["stack"] += [process] if "stack.py" in line else []
            except (psutil.NoSuchProcess, psutil.AccessDenied):
                pass
        return found

    def disturb(self, run, kind: str, chance: random.Random) -> None:
        """Wait for a random moment of a run and do it harm."""
        moment = time.monotonic() + chance.uniform(0, 14)
        while time.monotonic() < moment and run.returncode is None:
            time.sleep(0.05)
        numbers = {"kill snakemake": signal.SIGKILL, "interrupt": signal.SIGINT, "terminate": signal.SIGTERM}
        if kind in numbers:
            with contextlib.suppress(ProcessLookupError):  # it has ended, or has no process group of its own yet
                (os.killpg if kind == "interrupt" else os.kill)(run.pid, numbers[kind])
        elif kind in ("kill client", "kill stack", "kill resident"):
            deadline = time.monotonic() + 20
            while run.returncode is None and time.monotonic() < deadline:
                if found := self.processes()[kind.removeprefix("kill ")]:
                    with contextlib.suppress(psutil.NoSuchProcess):
                        chance.choice(found).kill()
                    break
                time.sleep(0.01)
        elif kind == "suspend":
            stopped = [each for some in self.processes().values() for each in some]
            for act in (psutil.Process.suspend, psutil.Process.resume):
                for process in stopped:
                    with contextlib.suppress(psutil.NoSuchProcess):
                        act(process)
                time.sleep(chance.uniform(0.5, 4) if act is psutil.Process.suspend else 0)
        elif kind == "full disk":
            filler = self.folder / "results/filler"
            try:
                with filler.open("wb") as file:
                    while True:
                        file.write(bytes(2**16))
                        file.flush()
            except OSError:
                time.sleep(chance.uniform(1, 6))
            filler.unlink(missing_ok=True)
        elif kind == "edit":
            self.modified.add(self.edit(chance))

    def round(self, chance: random.Random) -> str:
        """One round; returns what was done."""
        edits = [self.edit(chance) for _ in range(chance.randrange(1, 4))]
        kinds = ["kill snakemake", "interrupt", "terminate", "kill client", "kill stack", "kill resident", "suspend"]
        kinds += ["edit", "none"] + (["full disk"] if os.getuid() == 0 else [])
        kind = chance.choice(kinds)
        way = chance.choice([[], [], ["--rerun-triggers", "mtime"]])
        if chance.random() < 0.1:
            shutil.rmtree(self.folder / ".snakemake", ignore_errors=True)
            edits.append("no .snakemake")
        run = self.study.start(*way)
        self.disturb(run, kind, chance)
        try:
            run.wait(LONGEST_RUN)
        except subprocess.TimeoutExpired:
            raise Failure(f"hangs after {edits}, {kind}") from None
        what = f"{', '.join(edits)}; {kind}; {' '.join(way)}"
        for _ in range(MOST_RUNS):
            run = self.study.start(*way)
            try:
                output, _ = run.communicate(LONGEST_RUN)
            except subprocess.TimeoutExpired:
                raise Failure(f"the next run hangs after {what}") from None
            if "up to date" in output:
                break
            if "--unlock" in output:
                self.study.run("--unlock")
            if "Traceback" in output:
                raise Failure(f"a traceback after {what}:\n{output[-3000:]}")
        else:
            raise Failure(f"never ends after {what}:\n{output[-3000:]}")
        try:
            self.check()
        except Failure as error:
            raise Failure(f"{error} after {what}") from None
        return what


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--seed", type=int, default=None)
    arguments = parser.parse_args()
    seed = random.randrange(10**6) if arguments.seed is None else arguments.seed
    torch.set_num_threads(1)
    same_bits()
    end = time.monotonic() + 60 * arguments.minutes
    folder = Path(tempfile.mkdtemp(prefix="fuzz"))
    if os.getuid() == 0:
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=200m", "tmpfs", folder], check=True)
    fuzz = Fuzz(folder)
    rounds = failures = 0
    while time.monotonic() < end:
        try:
            print(f"seed {seed + rounds}: {fuzz.round(random.Random(seed + rounds))}", flush=True)
        except Failure as error:
            failures += 1
            kept = tempfile.mkdtemp(prefix="fuzz-failure")
            shutil.copytree(fuzz.folder, kept, symlinks=True, dirs_exist_ok=True)
            print(f"seed {seed + rounds}: FAILURE, kept in {kept}: {error}", flush=True)
        rounds += 1
    print(f"{rounds} rounds from seed {seed}, {failures} failures")
    os.chdir("/")
    if os.getuid() == 0:
        subprocess.run(["umount", "-l", folder], check=True)
    shutil.rmtree(folder, ignore_errors=True)
    sys.exit(bool(failures))


if __name__ == "__main__":
    main()
