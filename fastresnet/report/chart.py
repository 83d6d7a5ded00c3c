"""A figure: drawn once with matplotlib, as inline SVG that takes the page's colours and as PNG."""

from __future__ import annotations

import html
import io
import re
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import matplotlib
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from fastresnet.report.palette import LIGHT, NUM_SERIES
from fastresnet.report.tables import Table
from fastresnet.signals import held

PNG_DPI = 160
TITLE_INCHES = 0.4  # which the PNG has and the page's caption stands for
SERIES = tuple(f"series{i}" for i in range(NUM_SERIES))
DASHES = ("-", (0, (5, 2)), (0, (1.5, 1.5)), (0, (6, 2, 1.5, 2)))

STYLE: dict[Any, Any] = {
    "font.family": "sans-serif",
    "font.size": 10,
    "svg.fonttype": "none",  # text stays text: found, read aloud, in the page's font
    "svg.hashsalt": "fastresnet",
    "text.parse_math": False,  # a class may be called $x$
    "text.color": LIGHT["ink"],
    "axes.facecolor": "none",
    "axes.edgecolor": LIGHT["line"],
    "axes.labelcolor": LIGHT["muted"],
    "axes.titlecolor": LIGHT["ink"],
    "axes.titlesize": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": LIGHT["grid"],
    "grid.linewidth": 0.8,
    "xtick.color": LIGHT["line"],
    "ytick.color": LIGHT["line"],
    "xtick.labelcolor": LIGHT["muted"],
    "ytick.labelcolor": LIGHT["muted"],
    "lines.linewidth": 1.8,
    "lines.markersize": 4,
    "patch.edgecolor": "none",
    "figure.facecolor": "none",
}


@dataclass(frozen=True, kw_only=True)
class Chart:
    """A figure of a page.

    Attributes:
        name: its HTML id and the PNG's file name, without suffix.
        title: with the data set where it shows figures measured on one.
        alt: what it shows, for those who do not see it.
        note: how it is to be read; may be empty.
        numbers: what it is drawn from; None where another table of the page has it.
        svg: to stand in HTML.
        png: on white.
        width: in CSS pixels, at which its text has the page's size.
    """

    name: str
    title: str
    alt: str
    note: str = ""
    numbers: Table | None = None
    svg: Markup
    png: bytes
    width: int


def draw(
    name: str,
    title: str,
    alt: str,
    paint: Callable[[Figure], None],
    *,
    size: tuple[float, float],
    note: str = "",
    numbers: Table | None = None,
) -> Chart:
    """Return what ``paint`` draws on a figure of ``size`` inches."""
    with held(), matplotlib.rc_context(STYLE), warnings.catch_warnings():
        # A class may be called anything: the page has the reader's fonts, the PNG a box for a missing letter.
        warnings.filterwarnings("ignore", message="Glyph.*missing")
        figure = Figure(figsize=size, layout="constrained")
        paint(figure)
        svg, png = io.BytesIO(), io.BytesIO()
        figure.savefig(svg, format="svg", metadata={"Date": None})
        figure.set_size_inches(size[0], size[1] + TITLE_INCHES)
        figure.suptitle(title, fontsize=11, x=0.01, ha="left", wrap=True)
        figure.savefig(png, format="png", dpi=PNG_DPI, facecolor=LIGHT["page"])
    return Chart(
        name=name,
        title=title,
        alt=alt,
        note=note,
        numbers=numbers,
        svg=Markup(_inline(svg.getvalue().decode(), name, alt)),
        png=png.getvalue(),
        width=round(size[0] * 96),
    )


def png_only(title: str, paint: Callable[[Figure], None], *, size: tuple[float, float]) -> bytes:
    """Return ``paint``'s figure as PNG, for what the page itself shows as a table."""
    return draw("unused", title, "", paint, size=size).png


def colour(name: str) -> str:
    """Return a palette colour, in its light value: the SVG's CSS replaces it."""
    return LIGHT[name]


def percent_axis(axes: Axes, which: str = "y") -> None:
    """Label an axis of shares in percent."""
    (axes.yaxis if which == "y" else axes.xaxis).set_major_formatter(lambda share, _: f"{100 * share:g}%")


def _inline(svg: str, name: str, alt: str) -> str:
    """Return matplotlib's document as an element that can stand in a page, in the page's colours and font."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>|<!--.*?-->|<style.*?</style>", "", svg, flags=re.DOTALL)
    # Ids are made anew by every figure, and a page holds many.
    svg = re.sub(r'\bid="([^"]+)"', rf'id="{name}-\1"', svg)
    svg = re.sub(r"url\(#([^)]+)\)", rf"url(#{name}-\1)", svg)
    svg = re.sub(r'xlink:href="#([^"]+)"', rf'href="#{name}-\1"', svg)
    for key, value in LIGHT.items():
        svg = svg.replace(value, f"var(--{key})")
    svg = re.sub(r"font: ([^;\"]*?px) [^;\"]*", r"font: \1 var(--font)", svg)
    svg = re.sub(r' xmlns:xlink="[^"]*"| version="1.1"', "", svg)
    head = f'<svg role="img" aria-label="{html.escape(alt)}"'
    return re.sub(
        r'<svg( height="[^"]*"| width="[^"]*"|( viewBox="[^"]*")| xmlns="[^"]*")*', rf"{head}\2", svg, count=1
    )
