"""Gather, padded crop and flip of uint8 images, by row copies: the CPU path behind our own backends."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from fastresnet.loaders.gather_kernel import gather_kernel
from fastresnet.loaders.protocol import PaddingMode


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

    Raises:
        IndexError: an index lies outside ``images``.
    """
    assert images.dtype == out.dtype == np.uint8 and images.flags.c_contiguous and out.flags.c_contiguous
    assert out.shape == (len(indices), *images.shape[1:]) and images.shape[3] == 3
    assert len(crop_y) == len(crop_x) == len(flips) == len(indices)
    assert padding_mode == "zero" or padding < min(images.shape[1:3])
    source = np.asarray(images)
    gather_kernel(source, indices, crop_y, crop_x, flips, out, padding, padding_mode == "reflect")
