"""Colours, sizes and small helpers of the figures."""

from __future__ import annotations

import base64
import io
import warnings

import matplotlib
import matplotlib.font_manager
import numpy as np
from matplotlib.figure import Figure
from PIL import Image

WIDTH = 8.0  # inches of a figure, which fill a printed page
DPI = 150
THUMBNAIL = 144  # pixels
# Okabe and Ito's colours (2008), which colour-blind people can distinguish; in print the markers do that.
PALETTE = ["#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#F0E442"]
BLUE, ORANGE, _, _, SKY, RED, _ = PALETTE
MARKERS = ["o", "^", "s", "D", "v", "P", "X"]
GREY = "#8A8A8A"
INK = "#222222"
# For letters that Matplotlib's own font lacks, where one of these is installed.
OTHER_FONTS = [
    "Noto Sans CJK JP", "Noto Sans CJK SC", "Source Han Sans", "WenQuanYi Zen Hei", "Droid Sans Fallback",
    "Hiragino Sans", "PingFang SC", "Arial Unicode MS", "Noto Sans Arabic", "Noto Sans Devanagari",
]  # fmt: skip


def apply() -> None:
    """Set Matplotlib's looks; the user's texts are never read as mathematics."""
    installed = set(matplotlib.font_manager.get_font_names())
    matplotlib.rc("font", family=["DejaVu Sans", *(name for name in OTHER_FONTS if name in installed)], size=9)
    matplotlib.rc("text", parse_math=False, color=INK)
    matplotlib.rc("axes", labelcolor=INK, edgecolor=GREY, grid=True, axisbelow=True)
    matplotlib.rc("axes.spines", top=False, right=False)
    matplotlib.rc("grid", color="#E6E6E6", linewidth=0.6)
    matplotlib.rc(("xtick", "ytick"), color=INK)
    matplotlib.rc("legend", frameon=False, fontsize=8)
    warnings.filterwarnings("ignore", message="Glyph .* missing from")


def new_figure(height: float) -> Figure:
    """An empty figure, its height in inches."""
    return Figure(figsize=(WIDTH, height), dpi=DPI, layout="constrained")


def text_figure(text: str) -> Figure:
    """A figure that only says why there is nothing to draw."""
    figure = Figure(figsize=(WIDTH, 1.2), dpi=DPI)
    figure.text(0.5, 0.5, text, ha="center", va="center", size=10)
    return figure


def thumbnail(picture: Image.Image) -> str:
    """A small copy of a picture as a data URI."""
    small = picture.copy()
    small.thumbnail((THUMBNAIL, THUMBNAIL), Image.Resampling.LANCZOS)
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
