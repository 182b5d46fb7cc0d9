"""Figures as SVG that stands inline in a page: in the page's font and colours, with tips on points and bars."""

from __future__ import annotations

import io
import re
from collections.abc import Iterable
from xml.etree import ElementTree
from xml.etree.ElementTree import Element

import matplotlib
from matplotlib.collections import Collection
from matplotlib.container import BarContainer
from matplotlib.figure import Figure

from gpi_latents.report import style

SVG = "{http://www.w3.org/2000/svg}"
HREF = "{http://www.w3.org/1999/xlink}href"
LEFT_OUT = {f"{SVG}metadata", f"{SVG}style", f"{SVG}clipPath"}  # a style would be the whole page's
KEPT_IDS = {"legend"}  # that a script looks for
VARIABLES = {light.lower(): f"var(--{name}, {light.lower()})" for name, (light, _) in style.PALETTE.items()}


def add_tips(points: Collection, rows: Iterable[int], texts: Iterable[str]) -> None:
    """Unless points are drawn as one picture, give each the row of its item and a text that a mouse shows.

    They travel as the addresses of links, which Matplotlib writes around the points; `render` makes titles of them.
    """
    if not points.get_rasterized():
        points.set_urls([f"{row};{style.plain(text)}" for row, text in zip(rows, texts, strict=True)])


def add_bar_tips(bars: BarContainer, texts: Iterable[str]) -> None:
    """Give each bar a text that a mouse shows."""
    for bar, text in zip(bars, texts, strict=True):
        bar.set_url(f";{style.plain(text)}")


def render(figure: Figure, name: str, title: str) -> str:
    """A figure as an SVG element, always the same text for the same figure.

    Args:
        figure: nothing in it may reach beyond its axes, since what would cut it off is left out.
        name: that its ids begin with; the page's element `{name}-caption` describes it.
        title: what a screen reader calls it.
    """
    buffer = io.StringIO()
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": name}):
        figure.savefig(buffer, format="svg", transparent=True)
    root = ElementTree.fromstring(buffer.getvalue())
    used = {element.get(HREF, "").removeprefix("#") for element in root.iter()} | KEPT_IDS
    for parent in [*root.iter()]:
        parent[:] = [child for child in parent if child.tag not in LEFT_OUT]
        _simplify(parent, name, used)
    root.attrib = {"viewBox": root.attrib["viewBox"], "role": "img", "class": "drawn"}
    root.attrib |= {"aria-labelledby": f"{name}-title", "aria-describedby": f"{name}-caption"}
    root.attrib |= {"font-family": "system-ui, sans-serif", "stroke-linejoin": "round"}
    heading = Element(f"{SVG}title", id=f"{name}-title")
    heading.text = title
    root.insert(0, heading)
    ElementTree.register_namespace("", SVG.strip("{}"))
    return ElementTree.tostring(root, encoding="unicode")


def _simplify(element: Element, name: str, used: set[str]) -> None:
    """Give an element the page's font and colours, ids that are the page's only ones, and its tip."""
    attributes = element.attrib
    element.tail = None
    if element.tag != f"{SVG}text":
        element.text = None
    attributes.pop("clip-path", None)
    if (own := attributes.pop("id", None)) in used:
        attributes["id"] = f"{name}-{own}"
    if "style" in attributes:
        plain = re.sub(r"font-family: [^;]*(; |$)", "", attributes["style"])
        attributes["style"] = re.sub(r"#[0-9a-f]{6}", lambda found: VARIABLES.get(found[0], found[0]), plain)
    for key in {"d", "x", "y", "transform"} & {*attributes}:
        numbers = re.sub(r"-?\d+\.\d{3,}", lambda found: f"{float(found[0]):.2f}", attributes[key])
        attributes[key] = " ".join(numbers.split())
    if HREF in attributes:
        address = attributes.pop(HREF)
        if element.tag == f"{SVG}a":
            row, text = address.split(";", 1)
            element.tag = f"{SVG}g"
            attributes.clear()
            attributes |= {"data-row": row} if row else {}
            tip = Element(f"{SVG}title")
            tip.text = text
            element.insert(0, tip)
        else:
            attributes["href"] = re.sub("^#", f"#{name}-", "".join(address.split()))
