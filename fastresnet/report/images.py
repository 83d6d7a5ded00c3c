"""Images in a page, and grids of them as PNG."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Sequence

import numpy as np
from markupsafe import Markup
from matplotlib.figure import Figure
from numpy.typing import NDArray
from PIL import Image

from fastresnet.report.chart import colour, png_only

PITCH = (1.15, 1.45)  # from image to image, across and down, in sides of an image
LONGEST = 15  # characters of a line below an image

Pixels = NDArray[np.uint8]  # [H, W, 3]


def data_uri(pixels: Pixels) -> Markup:
    """Return an image as a ``data:`` address, without loss."""
    file = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(pixels)).save(file, format="PNG", optimize=True)
    return Markup("data:image/png;base64," + base64.b64encode(file.getvalue()).decode())


def grid_png(title: str, images: Sequence[Pixels], texts: Sequence[str], columns: int) -> bytes:
    """Return images row by row, each with its text below; long lines are cut."""
    num_rows = max(1, math.ceil(len(images) / columns))

    def paint(figure: Figure) -> None:
        axes = figure.add_subplot()
        axes.set_axis_off()
        for place, (image, text) in enumerate(zip(images, texts, strict=True)):
            top, left = place // columns * PITCH[1], place % columns * PITCH[0]
            axes.imshow(image, interpolation="nearest", extent=(left, left + 1, top + 1, top))
            lines = "\n".join(_cut(line) for line in text.splitlines())
            axes.text(left + 0.5, top + 1.05, lines, ha="center", va="top", fontsize=7, color=colour("ink"))
        axes.set(xlim=(0, columns * PITCH[0]), ylim=(num_rows * PITCH[1], 0))

    return png_only(title, paint, size=(columns * 0.95, num_rows * 0.95 * PITCH[1] / PITCH[0]))


def _cut(text: str) -> str:
    return text if len(text) <= LONGEST else f"{text[: LONGEST - 1]}\u2026"
