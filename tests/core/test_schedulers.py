"""The real models' scheduler settings give the times and the noise that their authors and papers name."""

from __future__ import annotations

import json
import math
import shutil

import diffusers
import numpy as np
import pytest
import torch
from gpi_latents.core.diffusion import Model
from gpi_latents.core.pipeline import _scheduler
from helpers import families
from helpers.families import recipe as edited
from helpers.photos import PHOTOS
from helpers.repositories import FAMILY, FLUX, SCHEDULERS, SD_1, SD_2, SD_3, SD_XL

# As models are set that follow "Common Diffusion Noise Schedules and Sample Steps are Flawed" (Lin et al. 2023).
ZERO_SNR = {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}


def shifted(sigma: np.ndarray, shift: float) -> np.ndarray:
    """Equation 23 of Stable Diffusion 3's paper (Esser et al. 2024); `shift` is its square root of m / n."""
    return shift * sigma / (1 + (shift - 1) * sigma)


def flux_times(steps: int, tokens: int) -> np.ndarray:
    """`get_schedule` of FLUX.1's authors, in sampling.py of github.com/black-forest-labs/flux."""
    mu = 0.5 + (1.15 - 0.5) / (4096 - 256) * (tokens - 256)
    sigma = np.linspace(1, 1 / steps, steps)
    return 1000 * math.exp(mu) / (math.exp(mu) + (1 / sigma - 1))


# Stable Diffusion's authors: every 20th of 1000, plus 1 (`make_ddim_timesteps` of github.com/CompVis/stable-diffusion).
EVERY_20TH = np.arange(981, 0, -20)
# diffusers starts from equal steps down to the shifted last of 1000 times, not to 0.
EQUAL = np.linspace(1, shifted(np.array(1 / 1000), 3.0), 28)


@pytest.mark.parametrize(
    ("name", "change", "strength", "steps", "expected"),
    [
        (SD_1, {}, 1.0, 50, EVERY_20TH),
        (SD_1, {}, 0.5, 50, EVERY_20TH[25:]),
        (SD_2, {}, 1.0, 50, EVERY_20TH),
        (SD_2, ZERO_SNR, 1.0, 50, np.arange(999, 0, -20)),  # "trailing" in Table 2 of Lin et al., counted from 0
        (SD_XL, {}, 0.5, 50, EVERY_20TH[25:]),
        (SD_3, {}, 1.0, 28, 1000 * shifted(EQUAL, 3.0)),
        (SD_3, {}, 0.5, 28, 1000 * shifted(EQUAL, 3.0)[14:]),
        (FLUX, {}, 1.0, 28, flux_times(28, tokens=4 * 6)),
        (FLUX, {}, 0.5, 28, flux_times(28, tokens=4 * 6)[14:]),
        # FLUX.1-schnell's
        (FLUX, {"shift": 1.0, "use_dynamic_shifting": False}, 1.0, 4, np.array([1000, 750, 500, 250])),
    ],
)
def test_a_real_model_denoises_at_its_authors_times(checkpoints, tmp_path, name, change, strength, steps, expected):
    folder = shutil.copytree(families.model(FAMILY[name], checkpoints), tmp_path / "model")
    (folder / "scheduler/scheduler_config.json").write_text(json.dumps(SCHEDULERS[name] | change))
    model = Model(folder)
    denoiser = getattr(model.pipelines.loaded, "unet", None) or model.pipelines.loaded.transformer
    times: list[float] = []
    denoiser.register_forward_pre_hook(
        lambda _, args, kwargs: times.append(float((kwargs["timestep"] if "timestep" in kwargs else args[1]).max())),
        with_kwargs=True,
    )
    recipe = edited(strength, num_inference_steps=steps)  # 64 x 96 pixels
    model.latent(model.prepare(PHOTOS[0], recipe)[0], recipe)
    if name == FLUX:
        times = [1000 * time for time in times]
    assert times == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("name", [SD_1, SD_2, SD_XL])
def test_a_real_models_noise_is_that_of_its_training(name):
    own = getattr(diffusers, SCHEDULERS[name]["_class_name"]).from_config(SCHEDULERS[name])
    scheduler = _scheduler(own, "auto")
    # linear_start and linear_end in v1-inference.yaml, as `make_beta_schedule` of the authors joins them
    beta = np.linspace(math.sqrt(0.00085), math.sqrt(0.012), 1000) ** 2
    alpha = np.cumprod(1 - beta)
    assert scheduler.alphas_cumprod.numpy() == pytest.approx(alpha, rel=1e-4)
    sigma = np.sqrt(1 / scheduler.alphas_cumprod.numpy() - 1)
    assert sigma[[0, -1]] == pytest.approx([0.0292, 14.6146], rel=2e-3)  # k-diffusion's and ComfyUI's limits
    assert scheduler.final_alpha_cumprod == scheduler.alphas_cumprod[0]  # the authors' `alphas_prev` begins with it
    assert not scheduler.config.clip_sample

    scheduler.set_timesteps(50)
    noisy, said, later, earlier = 0.7, -0.4, alpha[481], alpha[461]
    if name == SD_2:  # the velocity of "Progressive Distillation" (Salimans and Ho 2022), appendix D
        clean = math.sqrt(later) * noisy - math.sqrt(1 - later) * said
        noise = math.sqrt(later) * said + math.sqrt(1 - later) * noisy
    else:
        clean, noise = (noisy - math.sqrt(1 - later) * said) / math.sqrt(later), said
    expected = math.sqrt(earlier) * clean + math.sqrt(1 - earlier) * noise  # equation 12 of DDIM (Song et al. 2021)
    assert scheduler.step(torch.tensor(said), 481, torch.tensor(noisy)).prev_sample == pytest.approx(expected, rel=1e-4)


def test_noise_that_is_rescaled_ends_in_nothing_but_noise():
    """Algorithm 1 of Lin et al.: the square roots of the products are moved to 0 at the end, and keep their start."""
    own = diffusers.DDIMScheduler.from_config(SCHEDULERS[SD_2] | ZERO_SNR)
    plain = np.sqrt(np.cumprod(1 - np.linspace(math.sqrt(0.00085), math.sqrt(0.012), 1000) ** 2))
    expected = ((plain - plain[-1]) * plain[0] / (plain[0] - plain[-1])) ** 2
    assert _scheduler(own, "auto").alphas_cumprod.numpy() == pytest.approx(expected, rel=1e-3, abs=1e-7)
