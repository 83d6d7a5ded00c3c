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

Pixels = NDArray[np.uint8]  # [H, W, 3]


def data_uri(pixels: Pixels) -> Markup:
    """Return an image as a ``data:`` address, without loss."""
    file = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(pixels)).save(file, format="PNG", optimize=True)
    return Markup("data:image/png;base64," + base64.b64encode(file.getvalue()).decode())


def grid_png(title: str, images: Sequence[Pixels], texts: Sequence[str], columns: int) -> bytes:
    """Return images row by row, each with its text below."""
    num_rows = math.ceil(len(images) / columns)

    def paint(figure: Figure) -> None:
        for i, (image, text) in enumerate(zip(images, texts, strict=True)):
            axes = figure.add_subplot(num_rows, columns, i + 1)
            axes.imshow(image, interpolation="nearest")
            axes.set_axis_off()
            axes.text(
                0.5,
                -0.06,
                text,
                transform=axes.transAxes,
                ha="center",
                va="top",
                fontsize=7,
                color=colour("ink"),
            )

    return png_only(title, paint, size=(columns * 0.95, max(1, num_rows) * 1.2))
