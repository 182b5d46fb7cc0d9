"""Colours, sizes and small helpers of the figures."""

from __future__ import annotations

import base64
import io
import textwrap
import warnings

import matplotlib
import matplotlib.font_manager
import numpy as np
from matplotlib.figure import Figure
from PIL import Image

WIDTH = 4.2  # inches of a figure; on a telephone, its letters of 8 points are 9 pixels high
MOST_POINTS = 2000  # of a figure, which a page can hold with their tips
DPI = 150
THUMBNAIL = 144  # pixels
# The figures' colours on a light and on a dark ground; in the page each is a CSS variable of its name. Those of groups
# are Okabe and Ito's (2008), which colour-blind people can distinguish; in print the markers do that.
PALETTE = {
    "blue": ("#0072B2", "#4AA8E0"),
    "orange": ("#E69F00", "#F0B030"),
    "green": ("#009E73", "#2FC79B"),
    "pink": ("#CC79A7", "#E39CC3"),
    "sky": ("#56B4E9", "#7CC6F0"),
    "red": ("#D55E00", "#F5803E"),
    "ink": ("#222222", "#E8E8E8"),
    "grey": ("#8A8A8A", "#9A9A9A"),
    "grid": ("#E6E6E6", "#3A3D40"),
    "paper": ("#FFFFFF", "#16181B"),
}
BLUE, ORANGE, GREEN, PINK, SKY, RED, INK, GREY, GRID, PAPER = (light for light, _ in PALETTE.values())
COLORS = [BLUE, ORANGE, GREEN, PINK, SKY, RED, INK]  # of groups
MARKERS = ["o", "^", "s", "D", "v", "P", "X"]
# For letters that Matplotlib's own font lacks, where one of these is installed.
OTHER_FONTS = [
    "Noto Sans CJK JP", "Noto Sans CJK SC", "Source Han Sans", "WenQuanYi Zen Hei", "Droid Sans Fallback",
    "Hiragino Sans", "PingFang SC", "Arial Unicode MS", "Noto Sans Arabic", "Noto Sans Devanagari",
]  # fmt: skip


def apply() -> None:
    """Set Matplotlib's looks; the user's texts are never read as mathematics."""
    installed = set(matplotlib.font_manager.get_font_names())
    matplotlib.rc("font", family=["DejaVu Sans", *(name for name in OTHER_FONTS if name in installed)], size=8)
    matplotlib.rc("text", parse_math=False, color=INK)
    matplotlib.rc("axes", labelcolor=INK, edgecolor=GREY, grid=True, axisbelow=True)
    matplotlib.rc("axes.spines", top=False, right=False)
    matplotlib.rc("grid", color=GRID, linewidth=0.6)
    matplotlib.rc(("xtick", "ytick"), color=INK, labelsize=8)
    matplotlib.rc("legend", frameon=False, fontsize=8)
    warnings.filterwarnings("ignore", message="Glyph .* missing from")


def new_figure(height: float) -> Figure:
    """An empty figure, its height in inches."""
    return Figure(figsize=(WIDTH, height), dpi=2 * DPI, layout="constrained")


def text_figure(text: str) -> Figure:
    """A figure that only says why there is nothing to draw."""
    figure = Figure(figsize=(WIDTH, 0.9), dpi=2 * DPI)
    figure.text(0.5, 0.5, textwrap.fill(text, 60), ha="center", va="center")
    return figure


def thumbnail(picture: Image.Image, side: int = THUMBNAIL) -> str:
    """A small copy of a picture, its longer side at most `side` pixels, as a data URI."""
    small = picture.copy()
    small.thumbnail((side, side), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    small.save(buffer, "WEBP", quality=82, method=4)
    return "data:image/webp;base64," + base64.b64encode(buffer.getvalue()).decode()


def fitted(picture: Image.Image, side: int) -> Image.Image:
    """A copy of a picture whose longer side has `side` pixels."""
    scale = side / max(picture.size)
    size = (max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))
    return picture.resize(size, Image.Resampling.LANCZOS if scale < 1 else Image.Resampling.BICUBIC)


def dot_size(count: int) -> float:
    """The area of a dot, in square points, so that many do not hide each other."""
    return float(np.clip(6000 / max(1, count), 3, 40))


def cut(text: str, length: int) -> str:
    """A text of at most `length` letters, as `plain` returns it."""
    text = plain(text)
    return text if len(text) <= length else text[: length - 1] + "…"


def plain(text: str) -> str:
    """One line without control characters, which no font can draw."""
    return "".join(letter if letter.isprintable() else " " for letter in text)
