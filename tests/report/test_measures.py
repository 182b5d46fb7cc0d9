"""The report's statistics."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from gpi_latents.core.pictures import fit_picture, open_picture
from gpi_latents.errors import ItemError
from gpi_latents.report import measures
from helpers.report import random_latents
from helpers.study import draw
from PIL import Image

any_chunk = pytest.mark.parametrize("chunk", [1, 10_000, 10**9])


@pytest.fixture
def tensor(tmp_path):
    """A function that writes latents into a file and returns its path."""

    def write(latents: np.ndarray) -> Path:
        np.save(tmp_path / "latents.npy", latents.astype(np.float32))
        return tmp_path / "latents.npy"

    return write


@any_chunk
def test_the_axes_are_those_of_a_singular_value_decomposition(tensor, monkeypatch, chunk):
    latents = random_latents(40) * np.linspace(0.1, 3, 8, dtype=np.float32) + 5
    monkeypatch.setattr(measures, "CHUNK", chunk)
    found = measures.principal_components(tensor(latents))
    flat = latents.reshape(40, -1).astype(float)
    flat -= flat.mean(axis=0)
    u, s, _ = np.linalg.svd(flat, full_matrices=False)
    assert found.sampled == 40
    assert np.allclose(found.shares, (s**2 / (s**2).sum())[: measures.AXES], rtol=1e-3)
    assert np.allclose(np.abs(found.scores[:, :5]), np.abs(u * s)[:, :5], atol=1e-2)
    assert found.variance == pytest.approx((flat**2).sum() / 40, rel=1e-4)
    assert (found.scores[np.abs(found.scores).argmax(axis=0), range(found.scores.shape[1])] > 0).all()


def test_axes_of_a_sample_are_near_those_of_all_and_the_shares_are_of_all(tensor, monkeypatch):
    strong = np.random.default_rng(1).standard_normal((300, 3)).astype(np.float32) * [30, 20, 10]
    latents = random_latents(300)
    latents[:, :3, 0, 0] += strong
    path = tensor(latents)
    every = measures.principal_components(path)
    monkeypatch.setattr(measures, "PCA_SAMPLE", 60)
    some = measures.principal_components(path)
    assert some.sampled == 60
    assert some.scores.shape[0] == 300
    assert np.allclose(some.shares[:3], every.shares[:3], rtol=0.1)
    assert np.abs(np.corrcoef(some.scores[:, 0], every.scores[:, 0])[0, 1]) > 0.99


@any_chunk
def test_each_items_nearest_neighbour_is_found(tensor, monkeypatch, chunk):
    latents = random_latents(60)
    latents[41] = latents[7] + 0.01 * random_latents(1, seed=5)[0]
    latents[50] = latents[3]
    monkeypatch.setattr(measures, "CHUNK", chunk)
    monkeypatch.setattr(measures, "PAIRS", 100)
    path = tensor(latents)
    found = measures.neighbours(path, measures.principal_components(path), np.arange(len(latents)))
    assert list(found.rows) == list(range(60))
    assert [found.nearest[row] for row in (7, 41, 3, 50)] == [41, 7, 50, 3]
    assert found.distances[7] == pytest.approx(0.01 * 16 / (2**0.5 * 16), rel=0.2)
    assert found.distances[3] == 0
    apart = np.linalg.norm((latents - latents[found.nearest]).reshape(60, -1), axis=1)
    assert np.allclose(found.distances / found.distances[0], apart / apart[0], rtol=1e-4)


@any_chunk
def test_means_and_spreads_are_those_of_each_items_channels(tensor, monkeypatch, chunk):
    latents = random_latents(30) * 3 + 1
    monkeypatch.setattr(measures, "CHUNK", chunk)
    found = measures.values(tensor(latents), bins=10)
    assert np.allclose(found.means, latents.mean(axis=(2, 3)), atol=1e-6)
    assert np.allclose(found.stds, latents.std(axis=(2, 3)), atol=1e-6)
    assert found.sampled == 30
    assert found.counts.shape == (4, 10)
    assert found.counts.sum() == pytest.approx(0.998 * latents.size, abs=3)


def test_errors_are_those_of_scikit_image():
    from skimage.metrics import peak_signal_noise_ratio, structural_similarity

    one, other = (
        Image.fromarray(np.random.default_rng(n).integers(0, 256, (40, 64, 3), dtype=np.uint8)) for n in (1, 2)
    )
    psnr, ssim = measures.errors(measures.Pair(one, other))
    assert psnr == pytest.approx(peak_signal_noise_ratio(np.asarray(one), np.asarray(other)))
    grey = [np.asarray(picture.convert("L")) for picture in (one, other)]
    assert ssim == pytest.approx(structural_similarity(*grey), abs=1e-4)
    assert measures.errors(measures.Pair(one, one)) == (measures.IDENTICAL, 1.0)


@pytest.mark.parametrize("size", [(100, 75), (50, 61), (640, 200), (64, 64)])
@pytest.mark.parametrize("resize", ["pad", "crop", "stretch", "contain"])
def test_the_input_is_shown_as_the_model_saw_it(tmp_path, resize, size):
    picture = draw(tmp_path / "p.png", size)
    for multiple in (8, 16):
        seen, _ = fit_picture(open_picture(picture)[0], (64, 64), resize, multiple)
        Image.new("RGB", seen.size).save(tmp_path / "gen.png")
        for image_size in (None, 64):
            config = {"resize": resize, "image_size": image_size}
            pair = measures.pair(config, str(picture), tmp_path / "gen.png")
            assert np.array_equal(np.asarray(pair.seen), np.asarray(seen))


def test_a_picture_of_another_size_is_not_compared(tmp_path):
    draw(tmp_path / "p.png", (64, 40))
    Image.new("RGB", (40, 64)).save(tmp_path / "gen.png")
    with pytest.raises(ItemError, match="one of them was changed"):
        measures.pair({"resize": "contain", "image_size": 64}, str(tmp_path / "p.png"), tmp_path / "gen.png")
