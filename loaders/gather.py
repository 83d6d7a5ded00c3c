"""Gather, padded crop and flip of uint8 images, by row copies: the CPU kernel behind our own backends."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import numba
import numpy as np
from numpy.typing import NDArray

from fastresnet.loaders.protocol import PaddingMode

_F = TypeVar("_F", bound=Callable[..., Any])


def _compiled(function: _F) -> _F:
    """Compile ``function`` free of the GIL, cached on disk where that can be written."""
    try:
        return numba.njit(nogil=True, cache=True)(function)
    except RuntimeError:  # neither __pycache__ nor the user's cache can be written
        return numba.njit(nogil=True)(function)


@_compiled
def _gather(
    images: NDArray[np.uint8],
    indices: NDArray[np.int64],
    crop_y: NDArray[np.int64],
    crop_x: NDArray[np.int64],
    flips: NDArray[np.bool_],
    out: NDArray[np.uint8],
    height: int,
    width: int,
    padding: int,
    reflect: bool,
) -> None:
    for i in range(len(indices)):
        source, target = images[indices[i]], out[i]
        dy, dx = crop_y[i] - padding, crop_x[i] - padding
        low = min(max(0, -dx), width)  # the columns low:high lie inside the image before the flip
        high = max(min(width, width - dx), low)
        for y in range(height):
            row = y + dy
            start = 3 * width * y
            inside = 0 <= row < height
            if not inside:
                if not reflect:
                    target[start : start + 3 * width] = 0
                    continue
                row = -row if row < 0 else 2 * (height - 1) - row
            origin = 3 * width * row
            if not flips[i]:
                for k in range(3 * low, 3 * high):
                    target[start + k] = source[origin + k + 3 * dx]
            else:
                last = start + 3 * (width - 1)
                for x in range(low, high):
                    for c in range(3):
                        target[last - 3 * x + c] = source[origin + 3 * (x + dx) + c]
            for edge in range(width - (high - low)):
                x = edge if edge < low else high + edge - low
                column = x + dx
                column = -column if column < 0 else 2 * (width - 1) - column
                place = start + 3 * (width - 1 - x if flips[i] else x)
                for c in range(3):
                    target[place + c] = source[origin + 3 * column + c] if reflect else 0


def gather(
    images: NDArray[np.uint8],
    indices: NDArray[np.int64],
    crop_y: NDArray[np.int64],
    crop_x: NDArray[np.int64],
    flips: NDArray[np.bool_],
    out: NDArray[np.uint8],
    *,
    padding: int,
    padding_mode: PaddingMode,
) -> None:
    """Write ``images[indices]``, each padded, cropped at (crop_y, crop_x) and then flipped, into ``out``.

    Args:
        images: uint8 [N, H, W, 3], contiguous; a read-only memory map will do.
        indices, crop_y, crop_x: int64 [B]; crops lie in [0, 2 * padding].
        flips: bool [B].
        out: uint8 [B, H, W, 3], contiguous, overwritten in full.
        padding: pixels on each side; reflect padding needs it below H and W.
    """
    _, height, width, channels = images.shape
    assert channels == 3 and out.shape == (len(indices), height, width, channels)
    assert padding_mode == "zero" or padding < min(height, width)
    source = np.asarray(images).reshape(len(images), -1)
    source.flags.writeable = False  # one compiled version, whether or not the map is read-only
    _gather(
        source, indices, crop_y, crop_x, flips, out.reshape(len(indices), -1),
        height, width, padding, padding_mode == "reflect",
    )  # fmt: skip
