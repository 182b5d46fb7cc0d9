"""All that has to be seen on a GPU, by one command: is it right, the same again, and how much of the GPU does it use?

    .venv/bin/python tests/benchmarks/gpu.py                           # on a machine with a GPU, under 10 minutes
    .venv/bin/python tests/benchmarks/gpu.py --device cpu --quick      # in miniature, to try this script itself

It prints Markdown tables for docs/performance.md, and writes them to gpu.md in the folder --output (default: the
environment variable OUT, else the working directory) after each part. It needs a card of 24 GB and 5 GB of disk. On a
machine that has PyTorch and transformers, but neither this environment nor a network, carry seven wheels, 9 MB:

    pip download --no-deps --only-binary=:all: --python-version 3.12 --implementation cp --dest build/wheels \\
        --platform manylinux_2_17_x86_64 --platform manylinux2014_x86_64 \\
        diffusers==0.42.1 importlib_metadata==10.2.0 pydantic==2.14.3 pydantic_core==2.50.4 annotated-types==0.8.0 \\
        typing-inspection==0.4.5 typing-extensions==4.16.0
    python3 -m pip install --no-index --no-deps --upgrade --target /tmp/site build/wheels/*.whl   # there
    PYTHONPATH=/tmp/site:scripts python3 tests/benchmarks/gpu.py                                   # there
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import gc
import hashlib
import multiprocessing
import os
import random
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import diffusers
import torch
import transformers
from benchmarks.resident import make_sd15
from gpi_latents import paths
from gpi_latents.core.diffusion import Model, restored_settings, same_bits
from gpi_latents.model.source import write_model
from gpi_latents.recipe import recipe
from gpi_latents.resident.engine import Engine, Request
from gpi_latents.study.settings import load_config
from helpers import families, pipelines
from helpers.photos import PHOTOS
from helpers.study import draw
from PIL import Image

DTYPES = ("float32", "float16", "bfloat16")


class Work:
    """An engine as the resident has it, in the working directory, for a model's folder and keys of the config."""

    def __init__(self, model: Path, **config: Any):
        self.config = load_config({"model_id": str(model), **config})
        Path(paths.MODEL).parent.mkdir(exist_ok=True)
        write_model(self.config, Path(paths.MODEL))
        self.engine = Engine(self.config, workers=os.cpu_count() or 1, replicas=1)

    def extract(self, items: list[SimpleNamespace]) -> dict[str, str]:
        """Extract items in the resident's threads; SHA-256 of the latents, or what went wrong, by the items' ids."""

        def one(item: SimpleNamespace) -> str:
            chosen = recipe(self.config | {"image_size": item.size}, item)
            path = f"{os.getpid()}_{item.id}.pt"
            try:
                self.engine.extract(Request(str(item.image), chosen, path))
            except Exception as error:
                traceback.print_exc()
                return str(error)
            return hashlib.sha256(torch.load(path, weights_only=True).numpy().tobytes()).hexdigest()

        with ThreadPoolExecutor(self.engine.threads, initializer=self.engine.same_bits) as threads:
            return dict(zip([item.id for item in items], threads.map(one, items), strict=True))

    def free(self) -> None:
        """Free the device's memory; the engine's threads hold the model as long as the process lives."""
        for model in self.engine.models:
            loaded = model.pipelines.loaded.components.values() if "loaded" in vars(model.pipelines) else []
            for part in (model.vae, *loaded):
                if isinstance(part, torch.nn.Module):
                    part.to("meta")


def item(strength: float, seed: int, size: tuple[int, int] = (64, 96), name: str = "") -> SimpleNamespace:
    settings = families.settings(strength, seed=seed)
    return SimpleNamespace(id=name or f"{strength}_{seed}", image=PHOTOS[0], size=list(size), **settings)


ITEMS = [item(strength, seed) for strength in (0.0, 0.5) for seed in range(4)]  # which fill batches of 4


def families_part(options: argparse.Namespace) -> str:
    """Every family against its own pipeline in diffusers on the same device, and on the CPU."""
    same_bits()
    rows = []
    for family in options.families:
        folder = families.model(family, Path("models"))
        reference = Model(folder)  # on the CPU, in float32
        cells = []
        for dtype in DTYPES:
            model = Model(folder, device=options.device, dtype=dtype)
            pipeline = pipelines.load(family, folder, dtype=model.dtype).to(options.device)
            picture, _ = model.prepare(PHOTOS[0], families.recipe(0))
            ours = [model.latent(picture, families.recipe(strength)) for strength in (0, 0.5)]
            theirs = pipelines.by_pipeline(pipeline, picture, families.settings(0.5))
            pipeline.vae.to(model.vae.dtype)  # XL's in float16, which its pipeline also computes in float32
            encoded = pipelines.encoded(family, pipeline, picture, seed=7)
            cells += [f"{difference(ours[0], encoded)} / {difference(ours[1], theirs)}"]
            on_cpu = [reference.latent(picture, families.recipe(strength)) for strength in (0, 0.5)]
            cells += [f"{difference(ours[0], on_cpu[0])} / {difference(ours[1], on_cpu[1])}"]
        rows.append([family, *cells[::2], *cells[1::2]])
    head = [f"diffusers, {dtype}" for dtype in DTYPES] + [f"CPU in float32, {dtype}" for dtype in DTYPES]
    title = "Largest differences of latents from diffusers' pipelines on the same device, and from the CPU"
    return table(title + ", at strength 0 / 0.5", ["family", *head], rows)


def difference(ours: torch.Tensor, theirs: torch.Tensor) -> str:
    largest = (ours - theirs.to("cpu", torch.float32)).abs().max().item()
    return f"{largest:.0e}" if largest else "exact"


def bits_part(options: argparse.Namespace) -> str:
    """The same latents in many runs, in several orders, beside other work, in two processes at once, in batches."""
    models = [(families.model(name, Path("models")).absolute(), n) for name in options.families for n in (1, 4)]
    works = [Work(model, device=options.device, resize="crop", batch_size=size) for model, size in models]
    expected = [work.extract(ITEMS) for work in works]
    counts, pairs = [], list(zip(works, expected, strict=True))
    for beside in (contextlib.nullcontext(), other_work(options.device)):
        with beside:
            counts.append([sum(differing(*pair) for _ in range(options.runs)) for pair in pairs])
    with ProcessPoolExecutor(2, multiprocessing.get_context("spawn")) as processes:  # CUDA does not survive a fork
        made = [processes.submit(in_a_process, models, options.device) for _ in range(2)]
        both = zip(expected, *(each.result() for each in made), strict=True)
        counts.append([sum(found[key] != wanted[key] for found in two for key in wanted) for wanted, *two in both])
    columns = zip(*counts, strict=True)
    rows = [[model.name, str(size), *map(str, row)] for (model, size), row in zip(models, columns, strict=True)]
    head = ["family", "batch_size", "alone", "beside other work", "two processes at once"]
    title = f"Latents that differed: of 8 items in {options.runs} runs, each in another order; of 16 in two processes"
    return table(title, head, rows)


def differing(work: Work, expected: dict[str, str]) -> int:
    found = work.extract(random.sample(ITEMS, len(ITEMS)))
    return sum(found[key] != digest or " " in digest for key, digest in expected.items())


def in_a_process(models: list[tuple[Path, int]], device: str) -> list[dict[str, str]]:
    with tempfile.TemporaryDirectory() as scratch, contextlib.chdir(scratch):
        return [Work(model, device=device, resize="crop", batch_size=size).extract(ITEMS) for model, size in models]


@contextlib.contextmanager
def other_work(device: str) -> Iterator[None]:
    """Another process that keeps the device busy."""
    code = f"import torch; a = torch.rand(2048, 2048, device='{device}')\nwhile True: print((a @ a).sum().item())"
    with subprocess.Popen([sys.executable, "-uc", code], stdout=subprocess.PIPE) as process:
        process.stdout.readline()
        threading.Thread(target=process.stdout.read, daemon=True).start()  # so that it never waits
        try:
            yield
        finally:
            process.kill()


def memory_part(options: argparse.Namespace) -> str:
    """An item that is too large fails by itself; those at work beside it and after it give their latents."""
    work = Work(families.model("stable-diffusion", Path("models")), device=options.device, resize="crop")
    expected = work.extract(ITEMS)
    items = [*ITEMS[:3], item(0.0, 7, (8192, 8192), "huge"), *ITEMS[3:]]
    if options.device == "cuda":
        torch.cuda.set_per_process_memory_fraction(2**30 / torch.cuda.get_device_properties(0).total_memory)
        found = work.extract(items)
        torch.cuda.set_per_process_memory_fraction(1.0)
    else:
        found = work.extract(ITEMS) | {"huge": "needs a GPU"}
    same = sum(found[key] == expected[key] for key in expected)
    rows = [["8192 x 8192 pixels", found["huge"].split("(")[0]], ["8 items beside it", f"{same} the same latents"]]
    return table("With 1 GiB of the GPU's memory", ["item", "what became of it"], rows)


def speed_part(options: argparse.Namespace) -> str:
    """Images per second in Stable Diffusion 1.5's shape, ours and others', and how much of the GPU they use."""
    side = 64 if options.quick else 512
    folder = families.model("stable-diffusion", Path("models")) if options.quick else Path("sd15")
    if not options.quick:
        make_sd15(folder)
    pictures = [draw(Path(f"pictures/{n}.png"), (side, side), n) for n in range(options.items)]
    settings = {"prompt": "a red circle", "negative_prompt": None, "num_inference_steps": 25, "guidance_scale": 7.5}
    tables, kernels = [], {}
    for strength in (0.0, 0.5):
        given = settings | {"strength": strength, "size": side}
        items = [SimpleNamespace(id=f"{n}", seed=n, image=path, **given) for n, path in enumerate(pictures)]
        rows = []
        for dtype in DTYPES[: 1 if options.quick else 2]:
            for name, work in ways(folder, dtype, options):
                rows.append([name, dtype, *measured(work, items, options.device)])
                if (name, dtype) == ("ours, batch_size 1", "float32"):
                    kernels = profiled(functools.partial(work, items[:4]), options.device)[1]
                del work
                gc.collect()
        title = f"{side} x {side} pixels, strength {strength:g}{' of 25 steps, guidance 7.5' if strength else ''}"
        tables.append(table(title, ["how", "dtype", "images per s", "GPU in use, %", "no kernel, %", "GiB"], rows))
    total = sum(kernels.values())
    top = sorted(kernels.items(), key=lambda entry: -entry[1])[:10]
    rows = [[f"`{name[:90]}`", f"{100 * seconds / total:.1f}"] for name, seconds in top]
    tables.append(table("Where the time goes: ours, batch_size 1, float32, strength 0.5", ["kernel", "%"], rows))
    return "\n\n".join(tables)


def ways(folder: Path, dtype: str, options: argparse.Namespace) -> Iterator[tuple[str, Callable[[list], Any]]]:
    """Each way to extract items, by its name: others in torch's own settings, with TF32 and chance, ours in our own."""
    pipeline = pipelines.load("stable-diffusion", folder, dtype=getattr(torch, dtype)).to(options.device)
    yield "diffusers' pipeline in a loop", functools.partial(loop, pipeline, False)
    if dtype == "float32":  # gpi_pack knows no other
        yield "as gpi_pack does", functools.partial(loop, pipeline, True)
    del pipeline
    with restored_settings():
        for size in options.sizes:
            work = Work(folder, device=options.device, dtype=dtype, batch_size=size)
            yield f"ours, batch_size {size}", work.extract
            work.free()


def loop(pipeline: Any, decodes: bool, items: list[SimpleNamespace]) -> None:
    """A plain loop over pictures; as gpi_pack 0.2.1 with the prompts encoded and each latent decoded and saved."""
    for item in items:
        picture = Image.open(item.image).convert("RGB")
        if item.strength:
            latent = pipelines.by_pipeline(pipeline, picture, vars(item) | {"scheduler": "auto"})
        else:
            latent = pipelines.encoded("stable-diffusion", pipeline, picture, item.seed)
        if decodes:
            with torch.no_grad():
                pipeline.encode_prompt(item.prompt, pipeline.device, 1, True)
                pipelines.decoded("stable-diffusion", pipeline, latent).save("loop.png")
        torch.save(latent.cpu(), "loop.pt")


def measured(work: Callable[[list], Any], items: list[SimpleNamespace], device: str) -> list[str]:
    """Images per second; % of the time in which the GPU worked (by its driver) and no kernel ran (torch); peak GiB."""
    work(items[:8])  # loads the parts
    used: list[int] = []
    ended = threading.Event()
    watch = threading.Thread(target=utilisation, args=(used, ended))
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        watch.start()
    started = time.monotonic()
    work(items)
    speed = f"{len(items) / (time.monotonic() - started):.2f}"
    if device != "cuda":
        return [speed, "–", "–", "–"]
    ended.set()
    watch.join()
    memory = torch.cuda.max_memory_allocated() / 2**30
    wall, kernels = profiled(functools.partial(work, items[:8]), device)
    idle = 1 - sum(kernels.values()) / wall
    return [speed, f"{sum(used) / len(used):.0f}" if used else "–", f"{100 * idle:.0f}", f"{memory:.1f}"]


def utilisation(used: list[int], ended: threading.Event) -> None:
    """Sample the share of time, in percent, in which a kernel ran; needs nvidia-ml-py."""
    with contextlib.suppress(ModuleNotFoundError):
        while not ended.wait(0.1):
            used.append(torch.cuda.utilization())


def profiled(work: Callable[[], Any], device: str) -> tuple[float, dict[str, float]]:
    """Seconds of some work, and those of each kernel in it, by the kernels' names; on a CPU of each operation."""
    is_gpu = device == "cuda"
    activity = torch.profiler.ProfilerActivity.CUDA if is_gpu else torch.profiler.ProfilerActivity.CPU
    with torch.profiler.profile(activities=[activity]) as profile:
        started = time.monotonic()
        work()
        wall = time.monotonic() - started
    spent = "self_device_time_total" if is_gpu else "self_cpu_time_total"  # microseconds
    return wall, {event.key: getattr(event, spent) / 1e6 for event in profile.key_averages()}


def table(title: str, head: list[str], rows: list[list[str]]) -> str:
    lines = [f"{title}:", "", f"| {' | '.join(head)} |", "| --- " * len(head) + "|"]
    return "\n".join(lines + [f"| {' | '.join(row)} |" for row in rows])


PARTS = {"families": families_part, "bits": bits_part, "memory": memory_part, "speed": speed_part}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--items", type=int, help="of the part speed; a multiple of 8")
    parser.add_argument("--output", type=Path, default=Path(os.environ.get("OUT", ".")))
    options = parser.parse_args()
    options.items = options.items or (2 if options.quick else 32)
    options.families = ["stable-diffusion"] if options.quick else list(families.FAMILIES)
    options.runs, options.sizes = (2, [1, 4]) if options.quick else (10, [1, 4, 8])
    options.output.mkdir(parents=True, exist_ok=True)
    report = (options.output / "gpu.md").absolute()
    diffusers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    card = torch.cuda.get_device_name() if options.device == "cuda" else "no GPU"
    report.write_text(f"{card}; torch {torch.__version__}, diffusers {diffusers.__version__}.\n", encoding="utf-8")
    with tempfile.TemporaryDirectory(prefix="gpu-") as scratch, contextlib.chdir(scratch):
        for part in options.parts:
            started = time.monotonic()
            try:
                with restored_settings():
                    text = PARTS[part](options)
            except Exception:  # the other parts are worth their time all the same
                text = f"{part} failed:\n\n{traceback.format_exc()}"
            text += f"\n\n{part}: {time.monotonic() - started:.0f} s\n"
            print(text, flush=True)
            with report.open("a", encoding="utf-8") as file:
                file.write(f"\n{text}")


if __name__ == "__main__":
    main()
