"""The order contract: every random draw is a hash of (seed, purpose, epoch or step, index).

One hash, splitmix64 (Steele, Lea and Flood, OOPSLA 2014). A *stream* is the 64-bit key of
(seed, purpose, time); its draw number ``index`` is output ``index`` of splitmix64 seeded with that key, shifted to a
non-negative 63-bit integer. There is no state to save: any worker, rank or device that knows the four
numbers makes the same draw. Wrap-around arithmetic on 64 bits is the same in NumPy, numba, torch and Triton.
"""

from __future__ import annotations

from enum import IntEnum
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import torch

GOLDEN = 0x9E3779B97F4A7C15
MIX1 = 0xBF58476D1CE4E5B9
MIX2 = 0x94D049BB133111EB
_MASK = (1 << 64) - 1


class Purpose(IntEnum):
    """What a draw is for. Values are part of every recorded run: add at the end, never renumber."""

    ORDER = 1
    CROP_Y = 2
    CROP_X = 3
    FLIP = 4
    INIT = 5
    SPLIT = 6
    DROPOUT = 7
    WARMUP = 8
    MIXUP = 9
    PARTNER = 10
    ROTATE = 11
    SHEAR_X = 12
    SHEAR_Y = 13
    SCALE = 14
    TRANSLATE_X = 15
    TRANSLATE_Y = 16
    BRIGHTNESS = 17
    CONTRAST = 18
    SATURATION = 19
    HUE = 20
    JITTER_ORDER = 21
    GRAYSCALE = 22
    ERASE = 23
    ERASE_AREA = 24
    ERASE_RATIO = 25
    ERASE_Y = 26
    ERASE_X = 27
    CUTOUT_Y = 28
    CUTOUT_X = 29
    SHAPES = 30
    WHITEN = 31


def _finalise(z: int) -> int:
    z = ((z ^ (z >> 30)) * MIX1) & _MASK
    z = ((z ^ (z >> 27)) * MIX2) & _MASK
    return z ^ (z >> 31)


def stream(seed: int, purpose: Purpose, time: int) -> int:
    """Return the 64-bit key of (seed, purpose, time); ``time`` is an epoch or a step.

    The parts are absorbed one after another, so that no two triples of small numbers share a stream.
    """
    key = _finalise((seed + GOLDEN) & _MASK)
    key = _finalise((key + GOLDEN * (int(purpose) + 1)) & _MASK)
    return _finalise((key + GOLDEN * (time + 1)) & _MASK)


def draw(key: int, index: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the draws of stream ``key`` at ``index``: int64, same shape, each in [0, 2**63)."""
    with np.errstate(over="ignore"):
        z = np.uint64(key) + (index.astype(np.uint64) + np.uint64(1)) * np.uint64(GOLDEN)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(MIX1)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(MIX2)
        return ((z ^ (z >> np.uint64(31))) >> np.uint64(1)).astype(np.int64)


def draw_scalar(key: np.uint64, index: np.uint64) -> np.int64:
    """Return one draw; written so that numba compiles it as it stands."""
    z = np.uint64(key) + (np.uint64(index) + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return np.int64((z ^ (z >> np.uint64(31))) >> np.uint64(1))


def draw_tensor(key: int, index: torch.Tensor) -> torch.Tensor:
    """Return the same draws as :func:`draw` on ``index``'s device: int64, same shape.

    torch shifts int64 arithmetically, so each right shift is masked to a logical one.
    """

    def signed(value: int) -> int:
        return value - (1 << 64) if value >> 63 else value

    def shift(z: torch.Tensor, bits: int) -> torch.Tensor:
        return (z >> bits) & ((1 << (64 - bits)) - 1)

    z = (index + 1) * signed(GOLDEN) + signed(key)
    z = (z ^ shift(z, 30)) * signed(MIX1)
    z = (z ^ shift(z, 27)) * signed(MIX2)
    return shift(z ^ shift(z, 31), 1)


def uniform(key: int, index: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return float64 draws in [0, 1): the 63-bit draws over 2**63, rounded down to 53 bits."""
    return (draw(key, index) >> 10).astype(np.float64) * 2.0**-53


def below(key: int, index: NDArray[np.int64], bound: int) -> NDArray[np.int64]:
    """Return int64 draws in [0, bound), by remainder: the bias is under ``bound`` / 2**63."""
    return draw(key, index) % bound


def permutation(key: int, index: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return ``index`` in the stream's order: sorted stably by draw."""
    return index[np.argsort(draw(key, index), kind="stable")]


def scalar_seed(seed: int, purpose: Purpose, time: int, index: int = 0) -> int:
    """Return one 63-bit draw, to seed a library's own generator (initialisation, dropout)."""
    return int(draw(stream(seed, purpose, time), np.array([index]))[0])
