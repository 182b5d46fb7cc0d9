"""What one job per item costs with the resident model, side by side with the other ways, in one run.

    .venv/bin/python tests/benchmarks/resident.py            # both tables
    .venv/bin/python tests/benchmarks/resident.py --tiny     # the first alone: the demo's model, 500 items
    .venv/bin/python tests/benchmarks/resident.py --full     # the second alone: Stable Diffusion 1.5's shape, 6 items

Figures hold as ratios: the machine's own speed is in all of them.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from gpi_latents.paths import DEMO_MODEL
from helpers.study import ROOT, Study

COPIES = """
rule all:
    input: [f"copies/{n}.pt" for n in range(%d)]
rule copy:
    input: lambda w: f"pictures/p{w.n}.png"
    output: "copies/{n}.pt"
    log: "logs/copy/{n}.log"
    resources: in_flight=1
    shell: "cp {input} {output} > {log} 2>&1"
"""

BARE_LOOP = """
import time
from pathlib import Path
from gpi_latents.core.diffusion import Model
from gpi_latents.tensors.latent_file import latent_bytes
model = Model(%r)
recipe = {"image_size": None, "resize": "pad", "posterior": "sample", "strength": 0.0, "seed": 0}
started = time.monotonic()
for number in range(%d):
    picture, _ = model.prepare(f"pictures/p{number}.png", recipe)
    latent = model.latent(picture, recipe)
    Path(f"bare_{number}.pt").write_bytes(latent_bytes(latent))
print("items", time.monotonic() - started)
"""

# What gpi_pack 0.2.1 does for each image at strength 0: all parts loaded, both prompts encoded, the picture decoded.
REFERENCE = """
import sys, time
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from diffusers.image_processor import VaeImageProcessor
from PIL import Image
from transformers import CLIPTextModel, CLIPTokenizer
folder = %r
vae = AutoencoderKL.from_pretrained(folder, subfolder="vae")
tokenizer = CLIPTokenizer.from_pretrained(folder, subfolder="tokenizer")
text_encoder = CLIPTextModel.from_pretrained(folder, subfolder="text_encoder")
unet = UNet2DConditionModel.from_pretrained(folder, subfolder="unet")
processor = VaeImageProcessor(8)
started = time.monotonic()
with torch.no_grad():
    for number in range(%d):
        picture = Image.open(f"pictures/p{number}.png").convert("RGB")
        latent = vae.encode(processor.preprocess(picture)).latent_dist.sample() * 0.18215
        for prompt in ("a red circle", ""):
            tokens = tokenizer([prompt], padding="max_length", max_length=77, truncation=True, return_tensors="pt")
            text_encoder(tokens.input_ids)
        decoded = vae.decode(latent / 0.18215).sample
        processor.postprocess(decoded, output_type="pil")[0].save(f"reference_{number}.png")
        torch.save(latent, f"reference_{number}.pt")
print("items", time.monotonic() - started)
"""


def timed(command: list[str], folder: Path) -> tuple[float, str]:
    started = time.monotonic()
    finished = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    if finished.returncode:
        sys.exit(finished.stdout + finished.stderr)
    return time.monotonic() - started, finished.stdout


def python(code: str, folder: Path) -> tuple[float, float]:
    """Seconds of a Python process, and those that its items took."""
    seconds, output = timed([sys.executable, "-c", code], folder)
    return seconds, float(re.search(r"items ([\d.]+)", output)[1])


def study(folder: Path, count: int, size: int, **config) -> Study:
    made = Study(folder)
    made.pictures(count, (size, size))
    made.config(output_image_dir=None, **config)
    timed(made.command("model"), folder)
    return made


def load_seconds(made: Study) -> float:
    log = next((made.folder / "logs").glob("resident-*.log")).read_text()
    return float(re.search(r"loaded the model on .* in ([\d.]+) s", log)[1])


def tiny(scratch: Path, count: int) -> None:
    print(f"\nThe demo's model, {count} items of 64 x 64, strength 0, no pictures; {os.cpu_count()} cores.")
    print("Whole run of `snakemake --cores 4 --until extract`, started to ended; the rule `model` was run before.\n")
    rows = []

    few = study(scratch / "alone", 20, 64, resident=False)
    seconds, _ = timed(few.command("--until", "extract", cores=1), few.folder)
    alone = seconds / 20
    rows.append(("(a) each job loads the model (20 items, 1 core)", seconds, alone))

    copies = scratch / "copies"
    copies.mkdir()
    Study(copies).pictures(count)
    (copies / "Snakefile").write_text(COPIES % count)
    profile = ["--workflow-profile", str(ROOT / "profiles/default")]
    bare_snakemake = {}
    ours = {}
    for slots in (1, 4):
        made = study(scratch / f"slots{slots}", count, 64)
        extract = ["--until", "extract", "--resources", f"in_flight={slots}"]
        seconds, _ = timed(made.command(*extract, cores=4), made.folder)
        loading = load_seconds(made)
        ours[slots] = (seconds - loading) / count
        rows.append((f"(b) ours, {slots} in flight (loading, {loading:.1f} s, subtracted)", seconds, ours[slots]))

        for path in copies.glob("copies/*"):
            path.unlink()
        command = [sys.executable, "-m", "snakemake", "--cores", "4", "--resources", f"in_flight={slots}", *profile]
        seconds, _ = timed(command, copies)
        bare_snakemake[slots] = seconds / count
        rows.append((f"(d) Snakemake alone, copying files, {slots} in flight", seconds, seconds / count))

    seconds, items = python(BARE_LOOP % (str(DEMO_MODEL), count), made.folder)
    rows.append(
        (f"(c) bare Python loop over the core (loading, {seconds - items:.1f} s, subtracted)", seconds, items / count)
    )

    show(rows)
    print(f"\n(b) with 4 slots is {1000 * (ours[4] - bare_snakemake[4]):.1f} ms per item above (d) (aim: at most 12),")
    print(f"and (a) takes {alone / ours[4]:.0f} times as long per item (aim: at least 100).")


def full(scratch: Path, count: int) -> None:
    print(
        f"\nStable Diffusion 1.5's shape, random weights, {count} items of 512 x 512, strength 0, no pictures, float32."
    )
    folder = scratch / "sd15"
    make_sd15(folder)
    made = study(scratch / "full", count, 512, model_id=str(folder))
    for path in folder.rglob("*.safetensors"):  # both begin with the weights in the page cache
        path.read_bytes()
    run, _ = timed(made.command(cores=2), made.folder)
    loop, items = python(BARE_LOOP % (str(folder), count), made.folder)
    reference, reference_items = python(REFERENCE % (str(folder), count), made.folder)
    show(
        [
            ("ours: whole run with loading, stack and table", run, run / count),
            ("bare Python loop over the core, with loading", loop, loop / count),
            ("what the reference does, with loading", reference, reference / count),
        ]
    )
    print(f"\nOurs takes {run / loop:.2f} times the bare loop (aim: at most 1.15),")
    print(f"and the reference's way {reference / run:.2f} times ours (aim: at least 2.3).")
    print(f"Items alone, without loading: bare loop {items / count:.2f} s, reference {reference_items / count:.2f} s.")


def make_sd15(folder: Path) -> None:
    """Random weights in Stable Diffusion 1.5's shape, with the demo's tokenizer."""
    import torch
    from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

    torch.manual_seed(0)
    StableDiffusionPipeline(
        vae=AutoencoderKL(
            down_block_types=["DownEncoderBlock2D"] * 4,
            up_block_types=["UpDecoderBlock2D"] * 4,
            block_out_channels=[128, 256, 512, 512],
            layers_per_block=2,
            sample_size=512,
        ),
        unet=UNet2DConditionModel(sample_size=64, cross_attention_dim=768),
        text_encoder=CLIPTextModel(
            CLIPTextConfig(hidden_size=768, intermediate_size=3072, num_hidden_layers=12, num_attention_heads=12)
        ),
        tokenizer=CLIPTokenizer.from_pretrained(DEMO_MODEL, subfolder="tokenizer"),
        scheduler=DDIMScheduler.from_pretrained(DEMO_MODEL, subfolder="scheduler"),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    ).save_pretrained(folder)


def show(rows: list[tuple[str, float, float]]) -> None:
    print(f"| {'how':<66} | {'run, s':>8} | {'s per item':>10} |")
    print(f"| {'-' * 66} | {'-' * 7}: | {'-' * 9}: |")
    for how, seconds, each in rows:
        print(f"| {how:<66} | {seconds:8.1f} | {each:10.4f} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--full", action="store_true")
    parser.add_argument("--items", type=int, default=500)
    arguments = parser.parse_args()
    both = arguments.tiny == arguments.full
    with tempfile.TemporaryDirectory(prefix="benchmark-") as scratch:
        if both or arguments.tiny:
            tiny(Path(scratch), arguments.items)
        if both or arguments.full:
            full(Path(scratch), 6)


if __name__ == "__main__":
    main()
