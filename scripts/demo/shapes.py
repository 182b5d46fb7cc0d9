"""Draw pictures of one coloured shape, describe them in words, and measure what a picture shows; without torch.

The demo's model is trained on these pictures, and the demo's sheet has some; what they show is known exactly.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw

COLOURS = {
    "red": (200, 30, 40),
    "blue": (30, 70, 200),
    "green": (40, 150, 60),
    "yellow": (235, 200, 40),
    "purple": (130, 50, 160),
}
SHAPES = ("circle", "square", "triangle")
GROUNDS = {"light": (222, 234), "dark": (30, 42)}  # range of each channel
OVERSAMPLING = 4  # pictures are drawn this many times larger, then averaged: edges are smooth
LARGE, SMALL = 0.48, 0.36  # the sizes from which, and up to which, these words are used
ASIDE = 0.12  # distance from the middle at which the words for places begin


class Scene(NamedTuple):
    """What a picture shows; the arguments of `draw` and `caption`."""

    shape: str
    colour: str
    size: float
    x: float
    y: float
    ground: tuple[int, int, int]


class Seen(NamedTuple):
    """What `measure` finds; `shape` and `colour` are None if there is nothing but the ground."""

    shape: str | None
    colour: str | None
    x: float
    y: float
    box_x: float
    box_y: float
    size: float


NOTHING = Seen(None, None, 0.5, 0.5, 0.5, 0.5, 0.0)


def draw(
    shape: str,
    colour: str,
    size: float,
    x: float,
    y: float,
    ground: tuple[int, int, int],
    side: int | tuple[int, int] = 64,
) -> Image.Image:
    """Draw one shape on a plain ground.

    Args:
        shape: `circle`, `square` or `triangle` (on its base, as wide as high).
        colour: a name in `COLOURS`.
        size: width of the shape as a share of the picture's shorter side, above 0, to 1.
        x: middle of the shape as a share of the picture's width, 0 (left) to 1.
        y: the same of the height, 0 (top) to 1.
        ground: RGB, 0 to 255.
        side: of the picture in pixels, one number or (width, height).

    Returns:
        Mode RGB.
    """
    width, height = (side, side) if isinstance(side, int) else side
    large = Image.new("RGB", (width * OVERSAMPLING, height * OVERSAMPLING), tuple(ground))
    half = size * min(large.size) / 2
    left, top = x * large.width - half, y * large.height - half
    right, bottom = left + 2 * half - 1, top + 2 * half - 1  # Pillow draws the last pixel too
    brush = ImageDraw.Draw(large)
    if shape == "circle":
        brush.ellipse([left, top, right, bottom], fill=COLOURS[colour])
    elif shape == "square":
        brush.rectangle([left, top, right, bottom], fill=COLOURS[colour])
    elif shape == "triangle":
        brush.polygon([(left, bottom), (right, bottom), ((left + right) / 2, top)], fill=COLOURS[colour])
    else:
        raise ValueError(f"no such shape: {shape!r}")
    return large.reduce(OVERSAMPLING)


def random_scene(random: np.random.Generator) -> Scene:
    """A random scene: any shape, colour and ground, a size from 0.25 to 0.6, wholly inside a margin of 0.06."""
    size = random.uniform(0.25, 0.6)
    room = 0.44 - size / 2
    low, high = GROUNDS[str(random.choice(list(GROUNDS)))]
    return Scene(
        shape=str(random.choice(SHAPES)),
        colour=str(random.choice(list(COLOURS))),
        size=float(size),
        x=float(0.5 + random.uniform(-room, room)),
        y=float(0.5 + random.uniform(-room, room)),
        ground=tuple(random.integers(low, high + 1, 3).tolist()),
    )


def caption(
    shape: str | None = None,
    colour: str | None = None,
    size: float | None = None,
    x: float | None = None,
    y: float | None = None,
    ground: tuple[int, int, int] | None = None,
) -> str:
    """Words for what is given, such as `a large blue square on the left on a light ground`.

    The arguments are those of `draw`; None is left out. Medium sizes and middle places have no word.
    """
    words = ["a"]
    if size is not None and size >= LARGE:
        words.append("large")
    if size is not None and size <= SMALL:
        words.append("small")
    if colour is not None:
        words.append(colour)
    words.append(shape or "shape")
    if x is not None and abs(x - 0.5) >= ASIDE:
        words.append("on the left" if x < 0.5 else "on the right")
    if y is not None and abs(y - 0.5) >= ASIDE:
        words.append("at the top" if y < 0.5 else "at the bottom")
    if ground is not None:
        words.append("on a light ground" if sum(ground) >= 3 * 128 else "on a dark ground")
    return " ".join(words)


def measure(picture: Image.Image) -> Seen:
    """Find the shape that a picture shows, by counting pixels.

    The ground is the median of the border's pixels. The foreground are the pixels that differ from it, in RGB, by more
    than half as much as the picture's most different hundredth. The colour is the named one nearest to the foreground's
    median. The shape is the one that, drawn into the foreground's bounding box, differs from it in the fewest pixels.

    Args:
        picture: mode RGB, with one shape that does not touch the border.

    Returns:
        Shares of the picture as for `draw`: `x` and `y` of the foreground's centre of mass (a triangle's is a sixth of
        its size below the middle), `box_x`, `box_y` and `size` of its bounding box.
    """
    pixels = np.asarray(picture, dtype=np.float64)
    border = np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]])
    difference = np.linalg.norm(pixels - np.median(border, axis=0), axis=2)
    furthest = np.percentile(difference, 99)
    if furthest < 40:
        return NOTHING
    is_shape = difference > furthest / 2
    rows, columns = (np.flatnonzero(is_shape.sum(axis=axis) >= 2) for axis in (1, 0))  # single pixels are noise
    if not (len(rows) and len(columns)):
        return NOTHING
    box_height, box_width = rows[-1] + 1 - rows[0], columns[-1] + 1 - columns[0]
    in_box = is_shape[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    median = np.median(pixels[is_shape], axis=0)
    return Seen(
        shape=min(SHAPES, key=lambda shape: int((_ideal(shape, box_height, box_width) != in_box).sum())),
        colour=min(COLOURS, key=lambda colour: float(np.linalg.norm(median - COLOURS[colour]))),
        x=float(np.nonzero(is_shape)[1].mean() + 0.5) / pixels.shape[1],
        y=float(np.nonzero(is_shape)[0].mean() + 0.5) / pixels.shape[0],
        box_x=(columns[0] + columns[-1] + 1) / 2 / pixels.shape[1],
        box_y=(rows[0] + rows[-1] + 1) / 2 / pixels.shape[0],
        size=float(np.sqrt(box_width * box_height)) / min(pixels.shape[:2]),
    )


def _ideal(shape: str, height: int, width: int) -> np.ndarray:
    """The pixels that a shape covers in its bounding box: bool (height, width)."""
    down = ((np.arange(height) + 0.5) / height * 2 - 1)[:, None]  # -1 at the top, 1 at the bottom
    across = ((np.arange(width) + 0.5) / width * 2 - 1)[None, :]
    if shape == "circle":
        return across**2 + down**2 <= 1
    if shape == "triangle":
        return abs(across) <= (down + 1) / 2
    return np.ones((height, width), dtype=bool)
