"""A folder in which clients are started by hand, as the rule `extract` starts them."""

from __future__ import annotations

import functools
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil
from gpi_latents import paths, plan
from gpi_latents.recipe import canonical
from gpi_latents.study.settings import load_config

from helpers.study import ROOT, Study, draw, residents, wait_for

CLIENT = "gpi_latents/resident/client.py"  # in the folder scripts
ITEM = {"prompt": "a red circle", "strength": 1.0, "seed": 3, "num_inference_steps": 4, "guidance_scale": 7.5}
ITEM |= {"negative_prompt": "", "scheduler": "DDIMScheduler"}
RECIPE = ITEM | {"model_id": "demo", "image_size": None, "resize": "pad", "posterior": "sample", "version": 1}
LONG = {"num_inference_steps": 999}  # some seconds for one item


class Bench(Study):
    """Starts clients of one resident, whose run is this test's process.

    Args:
        folder: to work in.
        stub: whether the resident has `StubEngine` instead of a model, which starts fast.
        settings: of the config.
    """

    def __init__(self, folder: Path, stub: bool = False, **settings):
        super().__init__(folder)
        self.environment["TMPDIR"] = str(self.tmp)
        self.environment.pop("XDG_RUNTIME_DIR", None)
        for part in ("results/hidden", "results/images"):
            (folder / part).mkdir(parents=True)
        self.plan_folder = write_config(folder / "plan", **settings)
        (folder / paths.MODEL).write_text(demo_model())
        self.script = ROOT / "scripts/extract.py"
        if stub:  # the client starts the resident.py beside the script
            copied = folder / CLIENT
            copied.parent.mkdir(parents=True)
            shutil.copy(ROOT / "scripts" / CLIENT, copied)
            self.script = Path(shutil.copy(self.script, folder))
            (folder / "resident.py").symlink_to(ROOT / "tests/helpers/stub_engine.py")

    def client(
        self,
        name: str,
        image: str | None = None,
        run: int | None = None,
        picture: bool = False,
        on_error: str = "stop",
        place: int | None = None,
        stdout: Any = subprocess.PIPE,
        **settings,
    ) -> subprocess.Popen:
        """A client for one item.

        Args:
            name: of the item.
            image: path of its picture; None draws one.
            run: process number of the Snakemake that asks; None is this process.
            picture: whether the latent is decoded.
            on_error: `stop` or `skip`.
            place: in the plan; None adds the item there.
            stdout: as `subprocess.Popen` takes it.
            settings: of the recipe.
        """
        if image is None:
            image = str(draw(self.folder / f"{name}.png", seed=len(name)))
        outputs = [f"results/hidden/{name}.pt", f"results/images/{name}.png"][: 1 + picture]
        options = {"--plan": self.plan_folder, "--resident": "bench", "--workers": 2, "--run": run or os.getpid()}
        options["--on-error"] = on_error
        options["--item"] = self.place(image, **settings) if place is None else place
        arguments = [str(part) for option in options.items() for part in option]
        return subprocess.Popen(
            [sys.executable, "-I", "-S", str(self.script), *arguments, "--output", *outputs],
            cwd=self.folder,
            env=self.environment,
            stdout=stdout,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def place(self, image: str, **settings) -> int:
        """Add an item to the plan; returns where its line begins."""
        with (self.plan_folder / plan.ITEMS).open("ab") as file:
            place = file.tell()
            file.writelines(plan.item_lines([image], [canonical(RECIPE | settings)]))
        return place

    def hidden(self) -> list[str]:
        """The names of the latents."""
        return sorted(path.name for path in (self.folder / "results/hidden").glob("*.pt"))

    def begun(self, name: str) -> None:
        """Wait until a stub has begun an item."""
        wait_for((self.folder / f"results/hidden/{name}.pt.begun").exists, what=f"{name} to begin")

    def abandoned(self, name: str) -> None:
        """Wait until a stub has given up an item."""
        wait_for((self.folder / f"results/hidden/{name}.pt.abandoned").exists, what=f"{name} to be given up")

    def resident(self) -> psutil.Process:
        return wait_for(lambda: residents(self.folder), what="the resident")[0]

    def resident_log(self) -> str:
        return "".join(path.read_text() for path in (self.folder / "logs").glob("resident*.log"))

    def loaded(self) -> bool:
        return "loaded the model" in self.resident_log()

    def socket_path(self) -> str:
        return str(wait_for(lambda: list(self.tmp.glob("*/*.sock")), what="the socket")[0])

    def nothing_left(self) -> bool:
        left = [*self.tmp.rglob("gpi-latents*"), *(self.folder / "results").rglob("*.tmp")]
        return not left and not residents(self.folder)

    def end(self) -> None:
        """Kill the residents."""
        for process in residents(self.folder):
            process.kill()


def finished(client: subprocess.Popen, code: int = 0) -> str:
    """What a client printed, once it has ended with the exit code."""
    output = client.communicate(timeout=120)[0]
    assert client.returncode == code, output
    return output


def write_config(folder: Path, **settings) -> Path:
    """Write a plan that has a config alone, with the demo's model."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(canonical(load_config({"model_id": "demo", **settings})))
    assert plan.read_config(folder)["model_id"]
    return folder


@functools.cache
def demo_model() -> str:
    """What the rule `model` writes for the demo."""
    from gpi_latents.model.source import resolve

    return json.dumps(resolve("demo"), indent=2)
