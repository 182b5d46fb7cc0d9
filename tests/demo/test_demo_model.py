"""The demo: its pictures, what its model was trained on, that training learns, and how good the shipped model is."""

from __future__ import annotations

import make_sheet
import numpy as np
import pytest
import shapes
import torch
import train
from gpi_latents.core.diffusion import Model, same_bits
from gpi_latents.model import source
from helpers.study import ROOT
from PIL import Image


def test_the_shipped_pictures_and_sheet_are_what_is_drawn(tmp_path):
    sheet = make_sheet.draw_pictures(tmp_path)
    assert sheet.to_csv(index=False) == (ROOT / "config/items.csv").read_text()
    shipped = ROOT / "config/demo/images"
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(path.name for path in shipped.iterdir())
    for path in tmp_path.iterdir():
        assert Image.open(path).tobytes() == Image.open(shipped / path.name).tobytes(), path.name


def test_a_drawn_picture_shows_what_it_was_asked_for():
    random = np.random.default_rng(1)
    for side in (64, (96, 80)):
        for scene in [shapes.random_scene(random) for _ in range(200)]:
            seen = shapes.measure(shapes.draw(*scene, side=side))
            assert (seen.shape, seen.colour) == (scene.shape, scene.colour)
            assert (seen.box_x, seen.box_y) == pytest.approx((scene.x, scene.y), abs=0.04)
            below = scene.size / 6  # here a triangle's centre of mass is; the shorter side is the height
            assert (seen.x, seen.y) == pytest.approx((scene.x, scene.y + below * (scene.shape == "triangle")), abs=0.04)
            if side == 64:
                assert seen.size == pytest.approx(scene.size, abs=0.05)


def test_nothing_is_seen_on_an_empty_ground():
    assert shapes.measure(Image.new("RGB", (64, 64), (230, 230, 230))).shape is None


def test_captions_say_what_they_are_given():
    assert shapes.caption("circle", "red") == "a red circle"
    assert shapes.caption(colour="red", x=0.5, y=0.5) == "a red shape"
    words = shapes.caption("square", "blue", 0.6, 0.3, 0.8, (230, 230, 230))
    assert words == "a large blue square on the left at the bottom on a light ground"


def test_every_word_of_the_captions_is_one_token_and_other_text_has_tokens():
    tokenizer = train.make_tokenizer()
    random = np.random.default_rng(2)
    captions = [train.random_caption(shapes.random_scene(random), random) for _ in range(500)]
    words = {word for caption in captions for word in caption.split()}
    assert words == set(train.WORDS)
    for word in words:
        assert len(tokenizer(word).input_ids) == 3  # with start and end
    for text in ("rote Fläche", "図", "a\N{NO-BREAK SPACE}b"):
        assert tokenizer.unk_token_id not in tokenizer(text).input_ids[1:-1]


@pytest.fixture(scope="module")
def shipped() -> train.Measured:
    """The shipped model and pictures of other seeds than the training's."""
    same_bits()
    return train.Measured(pictures=45)


def test_the_shipped_model_draws_pictures_again_as_its_card_says(shipped):
    assert np.median(train.psnr(shipped.drawn, shipped.reconstructed())) >= 33


@pytest.mark.long
def test_the_shipped_model_edits_pictures_as_its_card_says(shipped):
    """`scripts/demo/train.py --measure` prints more."""
    pairs = [(shape, colour) for colour in shapes.COLOURS for shape in shapes.SHAPES]
    good, _ = shipped.reached(3 * pairs, strength=0.7)
    assert sum(good) >= 42
    good, moved = shipped.reached(3 * pairs, strength=0.3)
    assert sum(good) >= 40
    assert sum(distance < 3 for distance in moved) >= 37


@pytest.mark.long
def test_a_short_training_halves_the_loss_of_each_part_and_makes_a_whole_model(tmp_path):
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        losses = train.train_briefly(tmp_path)
    finally:
        torch.set_num_threads(threads)
    for part in ("autoencoder", "denoiser"):
        assert np.mean(losses[part][-20:]) <= np.mean(losses[part][:5]) / 2
    # It goes on from there, and not from the beginning; so few steps differ by chance.
    assert np.mean(losses["decoder"][-20:]) <= 1.2 * np.mean(losses["autoencoder"][-20:])
    resolved = source.resolve(str(tmp_path))
    sums = [line.split() for line in (tmp_path / "SHA256SUMS").read_text().splitlines()]
    assert resolved["sha256"] == {name: digest for digest, name in sums}
    picture = shapes.draw("square", "blue", 0.4, 0.5, 0.5, (230, 230, 230))
    recipe = {"seed": 1, "strength": 0, "posterior": "sample"}
    assert Model(tmp_path).latent(picture, recipe).std().item() == pytest.approx(1, abs=0.5)
