"""The report's statistics of latents and pictures. The tensor stays on disk and is read in parts, without torch."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from gpi_latents.core.pictures import fit_picture, open_picture
from gpi_latents.errors import ItemError
from gpi_latents.tensors.tensor_file import open_latents

CHUNK = 32 * 2**20  # bytes of the tensor that are in memory at a time
SCATTERED = 64  # rows that are read at a time; far apart, each may map megabytes of the file around it
PCA_SAMPLE = 1000  # items from which the axes are computed
PCA_BYTES = 128 * 2**20  # that these may take
AXES = 32  # principal components that the search for near-duplicates looks at
COMPARED = 20000  # items among which near-duplicates are searched for
PAIRS = 1000  # random ones, whose median distance is the typical one
NEAR = 0.2  # of the typical distance between two items, below which they are near-duplicates
HISTOGRAM_SAMPLE = 500  # items whose values the histograms hold
FAR = 5.0  # robust standard deviations, beyond which an item is an outlier
IDENTICAL = 99.0  # dB, for pictures without any difference, whose PSNR is infinite


def evenly_spaced(count: int, most: int) -> np.ndarray:
    """At most `most` of the rows 0..count-1, evenly spaced, the first and the last among them."""
    return np.unique(np.linspace(0, count - 1, min(count, most)).round().astype(int))


def chunks(path: str | Path) -> Iterator[tuple[int, np.ndarray]]:
    """The tensor in parts of about `CHUNK` bytes.

    Yields:
        The row that a part begins with, and the part, float32 (n, C, H, W).
    """
    latents = open_latents(path)
    step = max(1, CHUNK // max(1, latents[0].nbytes))
    for row in range(0, len(latents), step):
        # Mapped again, since the pages that were read count as this process's memory until their map is gone.
        yield row, np.array(open_latents(path)[row : row + step])


def take(path: str | Path, rows: np.ndarray) -> np.ndarray:
    """Some rows of the tensor, float32 (n, C, H, W)."""
    latents = open_latents(path)
    taken = np.empty((len(rows), *latents.shape[1:]), np.float32)
    step = max(1, min(SCATTERED, CHUNK // max(1, latents[0].nbytes)))
    for start in range(0, len(rows), step):
        part = slice(start, start + step)
        taken[part] = open_latents(path)[rows[part]]
    return taken


@dataclass
class Map:
    """Principal components of all latents.

    Attributes:
        scores: float32 (N, k), the items' places on the k axes of the sample, k at most `AXES`.
        shares: (k,), the share of all items' variance along each axis, 0 to 1.
        sampled: how many items the axes were computed from.
        variance: the mean squared distance of an item from the mean of all.
    """

    scores: np.ndarray
    shares: np.ndarray
    sampled: int
    variance: float


def principal_components(path: str | Path) -> Map:
    """Principal component analysis of the latents, every value a variable.

    The axes come from an evenly spaced sample, by the eigenvectors of its inner products, which for fewer items than
    values are faster than those of the covariance and give the same (Jolliffe 2002, Principal Component Analysis,
    3.5); all items are placed on them.
    """
    latents = open_latents(path)
    count, width = len(latents), latents[0].size
    most = max(2, min(PCA_SAMPLE, PCA_BYTES // (4 * width)))
    rows = evenly_spaced(count, most)
    sample = take(path, rows).reshape(len(rows), width)
    centre = sample.mean(axis=0, dtype=np.float64).astype(np.float32)
    sample -= centre
    values, vectors = np.linalg.eigh(sample @ sample.T)
    order = np.argsort(values)[::-1][: min(AXES, len(rows) - 1)]
    # Below this, an axis is only rounding.
    order = [number for number in order if values[number] > 1e-6 * max(values[-1], 1e-12)]
    vectors = vectors[:, order]
    # An axis may point either way: let the item that is furthest out on it be on the right.
    vectors *= np.sign(vectors[np.abs(vectors).argmax(axis=0), np.arange(len(order))])
    axes = vectors.T @ sample / np.sqrt(values[order])[:, None]
    del sample
    scores = np.empty((count, len(order)), np.float32)
    squares = 0.0
    total = np.zeros(width)
    for row, part in chunks(path):
        flat = part.reshape(len(part), width) - centre
        scores[row : row + len(part)] = flat @ axes.T
        squares += float(np.einsum("ij,ij->", flat, flat, dtype=np.float64))
        total += flat.sum(axis=0, dtype=np.float64)
    variance = max(0.0, squares / count - float((total / count) @ (total / count)))
    if not np.isfinite(variance) or variance <= 1e-12 * max(1.0, float(centre @ centre)):
        variance, scores = 0.0, scores[:, :0]
    shares = scores.var(axis=0, dtype=np.float64) / variance if variance else np.zeros(0)
    return Map(scores, shares, len(rows), variance)


@dataclass
class Neighbours:
    """Each item's nearest other one.

    Attributes:
        rows: (n,), the items that were compared.
        nearest: (n,), the row of each one's nearest among them.
        distances: (n,), between the two in all values, as a share of the typical distance (the median over `PAIRS`
            random pairs).
    """

    rows: np.ndarray
    nearest: np.ndarray
    distances: np.ndarray


def neighbours(path: str | Path, found: Map, among: np.ndarray) -> Neighbours:
    """Find each item's nearest other one in the space of the principal components, and measure how far it is.

    A distance there is never more than the true one, so that near-duplicates are near there too. Of more than
    `COMPARED` items, only an evenly spaced sample is compared.

    Args:
        path: of the tensor.
        found: its principal components.
        among: (items,), the rows that may be compared, such as one draw of each item.
    """
    count = len(among)
    rows = among[evenly_spaced(count, COMPARED)]
    if len(rows) < 2 or not found.variance:
        return Neighbours(rows[:0], rows[:0], np.zeros(0))
    scores = found.scores[rows]
    squares = np.einsum("ij,ij->i", scores, scores)
    nearest = np.empty(len(rows), int)
    step = max(1, CHUNK // (4 * len(rows)))
    for start in range(0, len(rows), step):
        stop = min(start + step, len(rows))
        distances = squares[None] - 2 * scores[start:stop] @ scores.T  # without the term that is the same in a row
        distances[np.arange(stop - start), np.arange(start, stop)] = np.inf
        nearest[start:stop] = rows[distances.argmin(axis=1)]
    random = np.random.default_rng(0)
    some = random.integers(0, count, PAIRS)
    others = (some + random.integers(1, count, PAIRS)) % count
    typical = float(np.median(_apart(path, among[some], among[others])))
    if not typical:  # more than half of the pairs are the same
        typical = float(np.sqrt(2 * found.variance * count / (count - 1)))
    return Neighbours(rows, nearest, _apart(path, rows, nearest) / typical)


def _apart(path: str | Path, rows: np.ndarray, others: np.ndarray) -> np.ndarray:
    """The Euclidean distances between the latents of two lists of rows."""
    distances = np.empty(len(rows))
    step = max(1, CHUNK // (2 * open_latents(path)[0].nbytes))
    for start in range(0, len(rows), step):
        part = slice(start, start + step)
        apart = (take(path, rows[part]) - take(path, others[part])).reshape(len(rows[part]), -1)
        distances[part] = np.sqrt(np.einsum("ij,ij->i", apart, apart, dtype=np.float64))
    return distances


@dataclass
class Values:
    """The distribution of the latents' values.

    Attributes:
        means, stds: float64 (N, C), of each item's channels.
        edges: (C, bins + 1) and `counts`: (C, bins), the histogram of each channel over the items of a sample,
            without the lowest and the highest 0.1 % of the values.
        sampled: how many items these are.
    """

    means: np.ndarray
    stds: np.ndarray
    edges: np.ndarray
    counts: np.ndarray
    sampled: int


def values(path: str | Path, bins: int = 80) -> Values:
    """Means, standard deviations and histograms of the latents' values, by channel."""
    shape = open_latents(path).shape
    means, stds = np.empty(shape[:2]), np.empty(shape[:2])
    for row, part in chunks(path):
        means[row : row + len(part)] = part.mean(axis=(2, 3), dtype=np.float64)
        stds[row : row + len(part)] = part.std(axis=(2, 3), dtype=np.float64)
    rows = evenly_spaced(shape[0], min(HISTOGRAM_SAMPLE, max(1, PCA_BYTES // (4 * int(np.prod(shape[1:]))))))
    sample = take(path, rows)
    some = sample.reshape(-1)[:: max(1, sample.size // 1_000_000)]
    ends = tuple(np.percentile(some, [0.1, 99.9]))
    pairs = [np.histogram(sample[:, channel], bins, ends) for channel in range(shape[1])]
    return Values(means, stds, np.array([pair[1] for pair in pairs]), np.array([pair[0] for pair in pairs]), len(rows))


def distances_from_median(table: np.ndarray, scale: float) -> np.ndarray:
    """How many robust standard deviations each value is from its column's median.

    The robust standard deviation is 1.4826 times the median absolute deviation (Rousseeuw and Croux 1993), here at
    least a thousandth of `scale`, so that columns of equal values make no outliers of rounding.
    """
    apart = table - np.median(table, axis=0)
    deviation = 1.4826 * np.median(np.abs(apart), axis=0)
    return apart / np.maximum(deviation, max(1e-3 * scale, 1e-12))


class Pair(NamedTuple):
    """An input as the model saw it, and the decoded latent: pictures in mode RGB of one size."""

    seen: Image.Image
    decoded: Image.Image


def pair(config: dict[str, Any], image: str, decoded: str | Path) -> Pair:
    """Open an item's two pictures.

    Args:
        config: the workflow's.
        image: the path in the sheet.
        decoded: the path of the decoded picture, whose size is the model's.

    Raises:
        ItemError: one is missing or damaged, or they are not of one size.
    """
    other, picture = open_picture(decoded)[0], open_picture(image)[0]
    size = (other.height, other.width)
    if config["resize"] == "contain":  # limits the longest side, by default to the model's native size
        size = (config["image_size"] or max(size),) * 2
    for multiple in (8, 16, 32, 64):  # the latent factor matters under `contain` alone
        seen, _ = fit_picture(picture, size, config["resize"], multiple)
        if seen.size == other.size:
            return Pair(seen, other)
    raise ItemError(
        f"{image} as the model sees it is {seen.width} x {seen.height}, the decoded picture {other.width} x "
        f"{other.height}: one of them was changed"
    )


def errors(pictures: Pair) -> tuple[float, float]:
    """How far a decoded picture is from what was encoded.

    Returns:
        PSNR in dB, over the values 0 to 255 of all three colours, at most `IDENTICAL`; and the mean structural
        similarity of the grey pictures (Wang, Bovik, Sheikh and Simoncelli 2004), at most 1, windows of 7 x 7 pixels.
    """
    from skimage.metrics import structural_similarity

    seen, decoded = (np.asarray(picture, np.float32) for picture in pictures)
    error = float(np.mean((seen - decoded) ** 2, dtype=np.float64))
    psnr = min(IDENTICAL, 10 * np.log10(255**2 / error)) if error else IDENTICAL
    grey = [np.asarray(picture.convert("L"), np.float32) for picture in pictures]
    window = min(7, *grey[0].shape)
    ssim = structural_similarity(*grey, data_range=255, win_size=window - (window + 1) % 2)
    return float(psnr), float(ssim)
