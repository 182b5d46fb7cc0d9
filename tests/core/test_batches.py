"""Batches: at one size, neither neighbours nor the place in a batch nor filling up changes an item's bits."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from gpi_latents.core.diffusion import Model
from gpi_latents.errors import ItemError, ModelError
from helpers import families
from helpers.families import recipe as edited
from helpers.photos import PHOTOS

SIZE = 3
ITEMS = [("a red circle", "blue", 7), ("red " * 100, "", 8), ("", "grey sky", 2**32 - 1), ("a dog", "blue", 0)]
# Which items are computed together: each in two places at least, among others, and alone.
BATCHES = [(0, 1, 2), (3, 0, 1), (2, 3, 0), (0,), (1,), (2,), (3,)]
KINDS = [("stable-diffusion", 0.0, {}), ("stable-diffusion-xl", 0.5, {}), ("flux", 0.5, {})]
SETTINGS = [(0.0, {}), (0.0, {"posterior": "mode"}), (0.5, {}), (0.5, {"guidance_scale": 1.0})]
SETTINGS += [(0.5, {"negative_prompt": None})]
MORE_KINDS = [(family, *more) for family in families.FAMILIES for more in SETTINGS if (family, *more) not in KINDS]


def item(number: int, strength: float, **settings) -> dict:
    prompt, negative, seed = ITEMS[number]
    own = {"prompt": prompt, "negative_prompt": negative, "seed": seed, "num_inference_steps": 4}
    return edited(strength, **own | settings)


@pytest.mark.parametrize(
    ("family", "strength", "settings"), [*KINDS, *(pytest.param(*kind, marks=pytest.mark.long) for kind in MORE_KINDS)]
)
def test_neighbours_place_and_filling_do_not_matter(family_model, family, strength, settings):
    model = family_model(family)
    recipes = [item(number, strength, **settings) for number in range(len(ITEMS))]
    photos = [PHOTOS[number % len(PHOTOS)] for number in range(len(ITEMS))]
    pictures = [model.prepare(photo, recipe)[0] for photo, recipe in zip(photos, recipes, strict=True)]
    latents: list[list[torch.Tensor]] = [[] for _ in ITEMS]
    decoded: list[list[np.ndarray]] = [[] for _ in ITEMS]
    for batch in BATCHES:
        made = model.latents([pictures[n] for n in batch], [recipes[n] | {"batch_size": SIZE} for n in batch])
        for number, latent, picture in zip(batch, made, model.decode_all(made, SIZE), strict=True):
            latents[number].append(latent)
            decoded[number].append(np.asarray(picture))
    for number, recipe in enumerate(recipes):
        assert all(torch.equal(latents[number][0], other) for other in latents[number])
        assert all(np.array_equal(decoded[number][0], other) for other in decoded[number])
        alone = model.latent(pictures[number], recipe)
        assert (latents[number][0] - alone).abs().max() < 1e-4 * alone.std()
        assert np.abs(decoded[number][0].astype(int) - np.asarray(model.decode(alone))).max() <= 1


@pytest.mark.parametrize("scheduler", ["EulerAncestralDiscreteScheduler", "UniPCMultistepScheduler"])
def test_each_item_draws_its_own_noise_in_each_step(family_model, scheduler):
    model = family_model("stable-diffusion")
    recipes = [item(number, 0.5, scheduler=scheduler) for number in (0, 2)]
    picture, _ = model.prepare(PHOTOS[0], recipes[0])
    together = model.latents([picture] * 2, [recipe | {"batch_size": 2} for recipe in recipes])
    for latent, recipe in zip(together, recipes, strict=True):
        alone = model.latent(picture, recipe)
        assert (latent - alone).abs().max() < 1e-4 * alone.std()


def test_an_item_with_nan_fails_alone(checkpoints):
    model = Model(families.model("stable-diffusion", checkpoints))
    recipes = [item(number, 0.5, batch_size=SIZE) for number in range(SIZE)]
    picture, _ = model.prepare(PHOTOS[0], recipes[0])
    expected = model.latents([picture] * SIZE, recipes)
    encode = model.vae.encode

    def with_nan(pixels: torch.Tensor):
        pixels = pixels.clone()
        pixels[1] = torch.nan
        return encode(pixels)

    model.vae.encode = with_nan
    made = model.latents([picture] * SIZE, recipes)
    assert isinstance(made[1], ItemError)
    assert all(torch.equal(made[place], expected[place]) for place in (0, 2))


@pytest.mark.parametrize("part", ["encode", "decode"])
def test_a_device_on_which_places_matter_is_refused(checkpoints, part):
    """Such as one whose kernels add up the first item's numbers in another order."""
    model = Model(families.model("stable-diffusion", checkpoints))
    compute = getattr(model.vae, part)

    def first_differs(batch: torch.Tensor):
        if len(batch) > 1:
            batch = torch.cat([batch[:1] * (1 + 1e-6), batch[1:]])
        return compute(batch)

    setattr(model.vae, part, first_differs)
    recipe = item(0, 0.0)
    picture, _ = model.prepare(PHOTOS[0], recipe)
    model.decode(model.latent(picture, recipe))
    with pytest.raises(ModelError, match="an item's place in a batch changes its numbers: set batch_size: 1"):
        model.latent(picture, recipe | {"batch_size": SIZE})
