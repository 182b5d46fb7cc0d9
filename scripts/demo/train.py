"""Train the demo's model, a small Stable Diffusion, on pictures of coloured shapes.

    python scripts/demo/train.py                  train, about 50 minutes on 2 cores; replaces config/demo/model and
                                                  its digests, which the rule `model` checks
    python scripts/demo/train.py --measure        print the quality of the model on disk, about 10 minutes
    python scripts/demo/train.py --short FOLDER   train for about 2 minutes, to see that it learns

First an autoencoder learns to draw the pictures again from latents of 4 x 8 x 8, in which a shape is nearer to another
one at its place than to itself elsewhere, so that edits keep the place. Then only its decoder learns on, at half the
cost, while the latents do not change. Last, a UNet and a text encoder learn together to remove noise from the latents
with the caption as a hint. The same seed gives the same pictures, captions, first weights and noise; the bits of the
trained weights also depend on the processor, its number of threads and the version of torch.
"""

from __future__ import annotations

import argparse
import hashlib
import math
import shutil
import sys
import time
from collections import Counter
from itertools import pairwise
from pathlib import Path

import diffusers
import numpy as np
import shapes
import torch
from diffusers.training_utils import EMAModel
from PIL import Image, ImageFilter
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn import functional
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

MODEL = Path(__file__).resolve().parents[2] / "config/demo/model"
SEED = 2026
SIDE = 64  # pixels
WORDS = [
    *("a", "large", "small", "red", "blue", "green", "yellow", "purple", "circle", "square", "triangle", "shape"),
    *("on", "the", "left", "right", "at", "top", "bottom", "light", "dark", "ground", "no", "change"),
]  # each is one token
TEXT_WIDTH = 64
PROGRESS_EVERY = 100  # steps

# The full training: pictures, and triples of them for the autoencoder; steps, batch sizes, highest learning rates.
PICTURES, TRIPLES = 16000, 4000
VAE_STEPS, VAE_BATCH, VAE_RATE = 3500, 5, 2e-3
DECODER_STEPS, DECODER_BATCH, DECODER_RATE = 3500, 16, 1e-3
UNET_STEPS, UNET_BATCH, UNET_RATE = 9500, 32, 1e-3
KL_WEIGHT = 1e-6  # keeps the latents near a normal distribution; more would blur the pictures
NEARNESS_WEIGHT = 3e-2  # falls to 0 during the training
DROPPED = 0.1  # share of captions left out, for guidance; as many are "no change"
AVERAGED = 0.999  # moving average of the UNet's and the text encoder's weights


def make_pictures(count: int, seed: int) -> tuple[list[shapes.Scene], Tensor]:
    """Random scenes and their pictures, uint8 (count, 64, 64, 3); a larger count begins with those of a smaller one."""
    random = np.random.default_rng(seed)
    scenes = [shapes.random_scene(random) for _ in range(count)]
    return scenes, torch.from_numpy(np.stack([np.asarray(shapes.draw(*scene, side=SIDE)) for scene in scenes]))


def make_triples(scenes: list[shapes.Scene], seed: int) -> Tensor:
    """Of each scene: itself, another shape or colour at its place, its shape elsewhere; uint8 (N, 3, 64, 64, 3)."""
    random = np.random.default_rng(seed)
    drawn = []
    for scene in scenes:
        other = shapes.random_scene(random)
        repainted = scene._replace(shape=other.shape, colour=other.colour)
        moved = scene._replace(size=other.size, x=other.x, y=other.y)
        drawn.append([np.asarray(shapes.draw(*each, side=SIDE)) for each in (scene, repainted, moved)])
    return torch.from_numpy(np.array(drawn))


def make_autoencoder() -> diffusers.AutoencoderKL:
    """0.86 million weights; a picture of 64 x 64 becomes a latent of 4 x 8 x 8."""
    torch.manual_seed(SEED)
    vae = diffusers.AutoencoderKL(
        down_block_types=["DownEncoderBlock2D"] * 4,
        up_block_types=["UpDecoderBlock2D"] * 4,
        block_out_channels=[16, 32, 48, 64],
        norm_num_groups=4,
        layers_per_block=1,
        latent_channels=4,
        sample_size=SIDE,
    )
    return vae.to(memory_format=torch.channels_last)  # a tenth faster


def make_unet() -> diffusers.UNet2DConditionModel:
    """2.8 million weights; it reads the words at the lower resolution only, which keeps large pictures fast."""
    torch.manual_seed(SEED)
    unet = diffusers.UNet2DConditionModel(
        sample_size=SIDE // 8,
        down_block_types=["DownBlock2D", "CrossAttnDownBlock2D"],
        up_block_types=["CrossAttnUpBlock2D", "UpBlock2D"],
        block_out_channels=[64, 104],
        norm_num_groups=8,
        layers_per_block=1,
        attention_head_dim=4,
        cross_attention_dim=TEXT_WIDTH,
    )
    return unet.to(memory_format=torch.channels_last)


def make_text_encoder(vocabulary: int) -> CLIPTextModel:
    """0.1 million weights: two layers of CLIP's text encoder."""
    torch.manual_seed(SEED)
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=vocabulary,
            hidden_size=TEXT_WIDTH,
            intermediate_size=2 * TEXT_WIDTH,
            projection_dim=TEXT_WIDTH,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=77,
            bos_token_id=0,
            eos_token_id=1,
            pad_token_id=1,
        )
    )


def make_tokenizer() -> CLIPTokenizer:
    """CLIP's byte-level tokenizer: one token for each word in `WORDS`, and tokens for any other text."""
    characters = _byte_characters()
    merges = _merges(WORDS)
    tokens = ["<|startoftext|>", "<|endoftext|>", *characters, *(character + "</w>" for character in characters)]
    tokens += ["".join(pair) for pair in merges]
    tokenizer = CLIPTokenizer(vocab={token: number for number, token in enumerate(tokens)}, merges=merges)
    tokenizer.model_max_length = 77
    return tokenizer


def _byte_characters() -> list[str]:
    """The 256 printable characters that stand for bytes in byte-level BPE (GPT-2), so that every text has tokens."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in printable]
    return [chr(byte) for byte in printable] + [chr(256 + number) for number in range(len(others))]


def _merges(words: list[str]) -> list[tuple[str, str]]:
    """Join the most frequent pair, in all words, until each word is one piece: byte-pair encoding."""
    pieces = [[*word[:-1], word[-1] + "</w>"] for word in words]
    merges = []
    while pairs := Counter(pair for parts in pieces for pair in pairwise(parts)):
        pair = max(pairs, key=lambda pair: (pairs[pair], pair))
        merges.append(pair)
        for parts in pieces:
            place = 0
            while place < len(parts) - 1:
                if (parts[place], parts[place + 1]) == pair:
                    parts[place : place + 2] = ["".join(pair)]
                place += 1
    return merges


def make_scheduler() -> diffusers.DDIMScheduler:
    """Stable Diffusion's noise."""
    return diffusers.DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
    )


def train_autoencoder(vae: diffusers.AutoencoderKL, triples: Tensor, steps: int) -> list[float]:
    """Train in place: the pictures' error, a little Kullback-Leibler divergence, and the nearness of places.

    Without the last term, the nearest red circle to a green square is often a small one in its corner, and an edit at
    low strength ends there, since it changes as little as it can. The term is a / (a + b), with a the squared distance
    of a scene's latent to that of the repainted scene, and b that to the moved one.

    Args:
        vae: in float32.
        triples: uint8 (N, 3, 64, 64, 3), of `make_triples`.
        steps: of `VAE_BATCH` triples.

    Returns:
        The pictures' error in each step.
    """
    weights = list(vae.parameters())
    optimizer, schedule = _optimizer(weights, VAE_RATE, steps)
    random = torch.Generator().manual_seed(SEED)
    losses: list[float] = []
    vae.train()
    for step in range(steps):
        chosen = torch.randint(len(triples), (VAE_BATCH,), generator=random)
        batch = _as_input(triples[chosen].transpose(0, 1).flatten(0, 1))
        posterior = vae.encode(batch).latent_dist
        error = _error(vae.decode(posterior.sample(random)).sample, batch)
        scene, repainted, moved = posterior.mean.chunk(3)
        near, far = functional.mse_loss(scene, repainted), functional.mse_loss(scene, moved)
        nearness = near / (near + far)
        loss = error + KL_WEIGHT * posterior.kl().mean() + NEARNESS_WEIGHT * (1 - step / steps) * nearness
        _update(loss, weights, optimizer, schedule)
        _note("autoencoder", losses, error.item())
    vae.eval()
    return losses


def train_decoder(
    vae: diffusers.AutoencoderKL, pictures: Tensor, latents: tuple[Tensor, Tensor], steps: int
) -> list[float]:
    """Train only the decoder of a trained autoencoder in place, so that its latents do not change.

    Args:
        vae: in float32.
        pictures: uint8 (N, 64, 64, 3).
        latents: means and standard deviations of the pictures' latents, float32 (N, 4, 8, 8), unscaled.
        steps: of `DECODER_BATCH` pictures.

    Returns:
        The pictures' error in each step.
    """
    weights = [*vae.post_quant_conv.parameters(), *vae.decoder.parameters()]
    optimizer, schedule = _optimizer(weights, DECODER_RATE, steps)
    random = torch.Generator().manual_seed(SEED + 1)
    losses: list[float] = []
    vae.train()
    for _ in range(steps):
        chosen = torch.randint(len(pictures), (DECODER_BATCH,), generator=random)
        error = _error(vae.decode(_sample(latents, chosen, random)).sample, _as_input(pictures[chosen]))
        _update(error, weights, optimizer, schedule)
        _note("decoder", losses, error.item())
    vae.eval()
    return losses


@torch.no_grad()
def encode(vae: diffusers.AutoencoderKL, pictures: Tensor) -> tuple[Tensor, Tensor]:
    """Means and standard deviations of the latents' distributions, float32 (N, 4, 8, 8) each, unscaled."""
    found = [vae.encode(_as_input(batch)).latent_dist for batch in pictures.split(100)]
    return torch.cat([posterior.mean for posterior in found]), torch.cat([posterior.std for posterior in found])


def random_caption(scene: shapes.Scene, random: np.random.Generator) -> str:
    """Some of the words that are true of a scene, sometimes none, sometimes "no change", which fits any picture."""
    kind = random.random()
    if kind < 2 * DROPPED:
        return "" if kind < DROPPED else "no change"
    shares = {"shape": 0.95, "colour": 0.95, "size": 0.5, "x": 0.3, "y": 0.3, "ground": 0.4}
    return shapes.caption(**{key: getattr(scene, key) for key, share in shares.items() if random.random() < share})


def train_denoiser(
    unet: diffusers.UNet2DConditionModel,
    text_encoder: CLIPTextModel,
    tokenizer: CLIPTokenizer,
    scheduler: diffusers.DDIMScheduler,
    scenes: list[shapes.Scene],
    latents: tuple[Tensor, Tensor],
    steps: int,
) -> list[float]:
    """Train UNet and text encoder in place to predict the noise in latents; they end as their moving averages.

    Args:
        unet: in float32.
        text_encoder: in float32.
        tokenizer: of the captions.
        scheduler: its noise at 1000 time steps, drawn with equal probability.
        scenes: N, for the captions.
        latents: means and standard deviations, float32 (N, 4, 8, 8), in diffusion's scale.
        steps: of `UNET_BATCH` latents.

    Returns:
        The mean squared error of the predicted noise in each step; 1 if nothing is learnt.
    """
    weights = [*unet.parameters(), *text_encoder.parameters()]
    average = EMAModel(weights, decay=AVERAGED)
    optimizer, schedule = _optimizer(weights, UNET_RATE, steps)
    random = torch.Generator().manual_seed(SEED)
    chance = np.random.default_rng(SEED)
    losses: list[float] = []
    unet.train()
    text_encoder.train()
    for _ in range(steps):
        chosen = torch.randint(len(scenes), (UNET_BATCH,), generator=random)
        clean = _sample(latents, chosen, random)
        noise = torch.randn(clean.shape, generator=random)
        times = torch.randint(scheduler.config.num_train_timesteps, (UNET_BATCH,), generator=random)
        words = text_encoder(_tokens(tokenizer, [random_caption(scenes[number], chance) for number in chosen]))[0]
        found = unet(scheduler.add_noise(clean, noise, times), times, words).sample
        loss = functional.mse_loss(found, noise)
        _update(loss, weights, optimizer, schedule)
        average.step(weights)
        _note("denoiser", losses, loss.item())
    average.copy_to(weights)
    unet.eval()
    text_encoder.eval()
    return losses


def _as_input(pictures: Tensor) -> Tensor:
    """uint8 (N, H, W, 3) to float32 (N, 3, H, W), -1 to 1."""
    return (pictures.permute(0, 3, 1, 2).float() / 127.5 - 1).contiguous(memory_format=torch.channels_last)


def _tokens(tokenizer: CLIPTokenizer, captions: list[str]) -> Tensor:
    """int64 (N, 77), as the pipeline makes them."""
    return tokenizer(captions, padding="max_length", max_length=77, truncation=True, return_tensors="pt").input_ids


def _sample(latents: tuple[Tensor, Tensor], chosen: Tensor, random: torch.Generator) -> Tensor:
    """Draw from the chosen of the distributions with these means and standard deviations."""
    mean, deviation = (part[chosen] for part in latents)
    return mean + deviation * torch.randn(mean.shape, generator=random)


def _error(decoded: Tensor, pictures: Tensor) -> Tensor:
    """Mean absolute error, which keeps edges sharp, and half the mean squared error."""
    return functional.l1_loss(decoded, pictures) + 0.5 * functional.mse_loss(decoded, pictures)


def _optimizer(
    weights: list[Tensor], rate: float, steps: int
) -> tuple[torch.optim.Optimizer, torch.optim.lr_scheduler.LRScheduler]:
    """AdamW; the rate rises for 100 steps, then falls to 0 along half a cosine."""
    optimizer = torch.optim.AdamW(weights, rate, weight_decay=1e-4, fused=True)
    return optimizer, torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min(1, (step + 1) / 100) * 0.5 * (1 + math.cos(math.pi * step / steps))
    )


def _update(loss: Tensor, weights: list[Tensor], optimizer: torch.optim.Optimizer, schedule) -> None:
    optimizer.zero_grad()
    loss.backward()
    torch.nn.utils.clip_grad_norm_(weights, 1.0)
    optimizer.step()
    schedule.step()


def _note(part: str, losses: list[float], loss: float) -> None:
    losses.append(loss)
    if len(losses) % PROGRESS_EVERY == 0:
        print(f"{part}: step {len(losses)}, loss {np.mean(losses[-PROGRESS_EVERY:]):.4f}", flush=True)


def train(
    folder: Path,
    pictures: int = PICTURES,
    vae_steps: int = VAE_STEPS,
    decoder_steps: int = DECODER_STEPS,
    unet_steps: int = UNET_STEPS,
    vae_folder: Path | None = None,
) -> dict[str, list[float]]:
    """Train all parts and save them as float16 in diffusers' layout.

    Args:
        folder: its content is replaced, except for README.md.
        pictures: how many are drawn.
        vae_steps: of the autoencoder's training.
        decoder_steps: of the decoder's own training.
        unet_steps: of the UNet's and the text encoder's.
        vae_folder: keeps the trained autoencoder in float32; one that exists is not trained again.

    Returns:
        The losses in each step of `autoencoder`, `decoder` and `denoiser`.
    """
    scenes, drawn = make_pictures(pictures, SEED)
    losses: dict[str, list[float]] = {}
    if vae_folder and vae_folder.exists():
        vae = diffusers.AutoencoderKL.from_pretrained(vae_folder)
    else:
        vae = make_autoencoder()
        triples = make_triples(scenes[:TRIPLES], SEED + 3)
        losses["autoencoder"] = train_autoencoder(vae, triples, vae_steps)
        seen = triples.flatten(0, 1)
        losses["decoder"] = train_decoder(vae, seen, encode(vae, seen), decoder_steps)
        if vae_folder:
            vae.save_pretrained(vae_folder)
    latents = encode(vae, drawn)
    scale = round(1 / latents[0].std().item(), 5)
    vae.register_to_config(scaling_factor=scale)
    print(f"latents: mean of each channel {latents[0].mean((0, 2, 3)).tolist()}, scaling factor {scale}", flush=True)
    tokenizer, scheduler = make_tokenizer(), make_scheduler()
    unet, text_encoder = make_unet(), make_text_encoder(len(tokenizer))
    scaled = (latents[0] * scale, latents[1] * scale)
    losses["denoiser"] = train_denoiser(unet, text_encoder, tokenizer, scheduler, scenes, scaled, unet_steps)
    pipeline = diffusers.StableDiffusionPipeline(
        vae=vae,
        unet=unet,
        text_encoder=text_encoder,
        tokenizer=tokenizer,
        scheduler=scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    save(pipeline, folder)
    return losses


def save(pipeline: diffusers.StableDiffusionPipeline, folder: Path) -> None:
    """Write the model as float16 with its SHA256SUMS, which the rule `model` checks."""
    for part in folder.glob("*"):
        if part.is_dir():
            shutil.rmtree(part)
    pipeline.save_pretrained(folder)
    for path in folder.rglob("*.safetensors"):
        # Here, not in the modules, so that the configs still ask for float32 when the model is loaded.
        save_file({name: tensor.half() for name, tensor in load_file(path).items()}, path, metadata={"format": "pt"})
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.suffix in (".json", ".safetensors"))
    lines = [f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.relative_to(folder)}\n" for path in files]
    (folder / "SHA256SUMS").write_text("".join(lines), encoding="utf-8")


class Measured:
    """The model on disk, loaded as float32 as in the workflow, and pictures that it was not trained on."""

    def __init__(self, folder: Path = MODEL, pictures: int = 100, seed: int = SEED + 1):
        self.pipeline = diffusers.StableDiffusionImg2ImgPipeline.from_pretrained(
            folder, dtype=torch.float32, local_files_only=True
        )
        self.pipeline.set_progress_bar_config(disable=True)
        self.vae = self.pipeline.vae
        self.scenes, self.drawn = make_pictures(pictures, seed)

    @torch.inference_mode()
    def reconstructed(self) -> Tensor:
        """The pictures at strength 0, with sampled latents: uint8 (N, 64, 64, 3)."""
        random = torch.Generator().manual_seed(SEED)
        latents = [self.vae.encode(_as_input(part)).latent_dist.sample(random) for part in self.drawn.split(100)]
        return torch.cat([_as_pixels(self.vae.decode(part).sample) for part in latents])

    def edited(self, prompts: list[str], strength: float) -> list[shapes.Seen]:
        """What the pictures show after an edit with the workflow's defaults: 50 steps, guidance 7.5."""
        seen = []
        for start in range(0, len(prompts), 100):  # a picture for each prompt
            part = slice(start, start + 100)
            inputs = [Image.fromarray(picture.numpy()) for picture in self.drawn[: len(prompts)][part]]
            random = [torch.Generator().manual_seed(SEED + start + number) for number in range(len(inputs))]
            made = self.pipeline(
                prompts[part],
                inputs,
                strength=strength,
                num_inference_steps=50,
                guidance_scale=7.5,
                generator=random,
            )
            seen += [shapes.measure(picture) for picture in made.images]
        return seen

    def reached(self, targets: list[tuple[str, str]], strength: float) -> tuple[list[bool], list[float]]:
        """For a (shape, colour) per picture: whether both are seen, and by how many pixels the centre of mass moved."""
        seen = self.edited([shapes.caption(shape, colour) for shape, colour in targets], strength)
        good = [(found.shape, found.colour) == target for found, target in zip(seen, targets, strict=True)]
        return good, self.moved(seen)

    def moved(self, seen: list[shapes.Seen], box: bool = False) -> list[float]:
        """Pixels between the centres of mass, or the middles of the bounding boxes; infinite if nothing is seen."""
        before = [shapes.measure(Image.fromarray(picture.numpy())) for picture in self.drawn[: len(seen)]]
        return [_distance(*pair, box) if pair[1].shape else math.inf for pair in zip(before, seen, strict=True)]


def _as_pixels(decoded: Tensor) -> Tensor:
    """float32 (N, 3, H, W), -1 to 1, to uint8 (N, H, W, 3)."""
    return ((decoded / 2 + 0.5).clamp(0, 1) * 255).round().byte().permute(0, 2, 3, 1)


def psnr(pictures: Tensor, others: Tensor) -> np.ndarray:
    """Peak signal-to-noise ratio in dB of each picture; both are uint8 (N, H, W, 3)."""
    squared = (pictures.double() - others.double()).square().mean((1, 2, 3))
    return (10 * torch.log10(255**2 / squared.clamp(min=1e-9))).numpy()


def _distance(one: shapes.Seen, other: shapes.Seen, box: bool) -> float:
    """In pixels."""
    if box:
        return SIDE * math.hypot(one.box_x - other.box_x, one.box_y - other.box_y)
    return SIDE * math.hypot(one.x - other.x, one.y - other.y)


def corners(pictures: Tensor, scenes: list[shapes.Scene]) -> Tensor:
    """Patches of 9 x 9 pixels around the four corners of the squares: uint8 (M, 9, 9, 3)."""
    patches = []
    for picture, scene in zip(pictures, scenes, strict=True):
        if scene.shape == "square":
            padded = functional.pad(picture.permute(2, 0, 1)[None].float(), (4,) * 4, mode="reflect")[0]
            for across in (-0.5, 0.5):
                for down in (-0.5, 0.5):
                    column = round((scene.x + across * scene.size) * SIDE - 0.5)
                    row = round((scene.y + down * scene.size) * SIDE - 0.5)
                    patches.append(padded[:, row : row + 9, column : column + 9].permute(1, 2, 0).byte())
    return torch.stack(patches)


def measure(folder: Path = MODEL) -> None:
    """Print the quality of the model, for its card."""
    started = time.time()
    model = Measured(folder, pictures=1000)
    decoded = model.reconstructed()
    ratios = psnr(model.drawn, decoded)
    print(f"strength 0, {len(ratios)} pictures: PSNR median {np.median(ratios):.1f} dB, ", end="")
    print(f"a tenth is below {np.percentile(ratios, 10):.1f} dB, the least {ratios.min():.1f} dB")
    same = [
        (seen.shape, seen.colour) == (scene.shape, scene.colour)
        for seen, scene in zip((shapes.measure(Image.fromarray(p.numpy())) for p in decoded), model.scenes, strict=True)
    ]
    print(f"strength 0: shape and colour kept in {100 * np.mean(same):.1f} of 100")
    blurred = [np.asarray(Image.fromarray(p.numpy()).filter(ImageFilter.GaussianBlur(1))) for p in model.drawn]
    sharp = corners(model.drawn, model.scenes)
    for name, others in {"decoded": decoded, "blurred by 1 pixel": torch.from_numpy(np.stack(blurred))}.items():
        ratio = np.median(psnr(sharp, corners(others, model.scenes)))
        print(f"corners of squares, {len(sharp)}: {name}, PSNR median {ratio:.1f} dB")

    targets = [(shape, colour) for colour in shapes.COLOURS for shape in shapes.SHAPES]
    model = Measured(folder, pictures=100, seed=SEED + 2)
    print("\ncolour and shape as asked, of 100 pictures at strength 0.7\n")
    print(f"| | {' | '.join(shapes.SHAPES)} |\n| --- |{' --- |' * len(shapes.SHAPES)}")
    for colour in shapes.COLOURS:
        cells = [sum(model.reached([(shape, colour)] * 100, 0.7)[0]) for shape in shapes.SHAPES]
        print(f"| {colour} | {' | '.join(map(str, cells))} |", flush=True)

    # Asking every picture for every pair would take long: each is asked for one, in turn.
    asked = [targets[number % len(targets)] for number in range(100)]
    prompts = [shapes.caption(shape, colour) for shape, colour in asked]
    kept = [(scene.shape, scene.colour) for scene in model.scenes]
    print("\nof 100 pictures, each asked for a pair in turn, and with the prompt 'no change'; the place is kept if the")
    print("centre of mass (in brackets: the middle of the bounding box) moves by less than 3 pixels\n")
    print("| strength | as asked | place kept | 'no change': shape and colour kept | place kept |")
    print("| --- | --- | --- | --- | --- |")
    for strength in (0.1, 0.3, 0.5, 0.7, 0.9, 1.0):
        counts = []
        for words, pairs in ((prompts, asked), (["no change"] * 100, kept)):
            seen = model.edited(words, strength)
            good = sum((found.shape, found.colour) == pair for found, pair in zip(seen, pairs, strict=True))
            mass, boxes = (sum(distance < 3 for distance in model.moved(seen, box)) for box in (False, True))
            counts += [str(good), f"{mass} ({boxes})"]
        print(f"| {strength} | {' | '.join(counts)} |", flush=True)
    print(f"\nmeasured in {time.time() - started:.0f} s")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=MODEL, help="the model to write, or to measure")
    parser.add_argument("--measure", action="store_true", help="print the quality of the model on disk")
    parser.add_argument("--short", type=Path, metavar="FOLDER", help="train briefly and write the model there")
    parser.add_argument("--vae", type=Path, help="folder that keeps the trained autoencoder, which is then used again")
    arguments = parser.parse_args()
    torch.set_num_threads(2)
    if arguments.measure:
        measure(arguments.folder)
        return 0
    started = time.time()
    short, whole = arguments.short, arguments.folder
    losses = train_briefly(short) if short else train(whole, vae_folder=arguments.vae)
    for part, values in losses.items():
        print(f"{part}: loss {np.mean(values[:5]):.3f} in the first steps, {np.mean(values[-20:]):.3f} in the last")
    print(f"{time.time() - started:.0f} s, {time.process_time():.0f} s of processor time")
    return 0


def train_briefly(folder: Path) -> dict[str, list[float]]:
    """Train for about 2 minutes; the arguments and the result are those of `train`."""
    return train(folder, pictures=1000, vae_steps=120, decoder_steps=30, unet_steps=150)


if __name__ == "__main__":
    sys.exit(main())
