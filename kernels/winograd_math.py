"""Minimal filtering (Winograd; Lavin and Gray, "Fast Algorithms for Convolutional Neural Networks", CVPR 2016).

In one dimension, ``tile`` outputs y of a filter w of 3 taps, over tile + 2 inputs x, take as many multiplications:

    y = outputs @ ((filters @ w) * (inputs @ x))

In two dimensions the same is done along columns and rows: a tile of 4x4 outputs takes 36 multiplications in place of
144, one of 6x6 outputs 64 in place of 324.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

Matrix = NDArray[np.float64]
TAPS = 3
SMALL, LARGE = 4, 6  # outputs a side of a tile
COLUMNS = 16  # of a panel of filters: channels come in multiples of it


@dataclass(frozen=True, eq=False)
class Filtering:
    """Minimal filtering by tiles of one size.

    Attributes:
        tile: outputs a side.
        points: inputs a side, and multiplications: tile + 2.
        inputs, filters, outputs: the matrices, [points, points], [points, 3] and [tile, points].
    """

    tile: int
    points: int
    inputs: Matrix
    filters: Matrix
    outputs: Matrix


def down_across(tile: int, height: int, width: int) -> tuple[int, int]:
    """Return how many tiles cover a map of outputs."""
    return -(-height // tile), -(-width // tile)


def num_products(tile: int, height: int, width: int) -> int:
    """Return the multiplications of a map of outputs, for each pair of channels."""
    return math.prod(down_across(tile, height, width)) * (tile + TAPS - 1) ** 2


def tile_of(height: int, width: int) -> int:
    """Return the tiles' side that multiplies least for a map of outputs; of equals the smaller, which rounds better.

    It is plain arithmetic, since it decides within compiled steps.
    """
    return SMALL if num_products(SMALL, height, width) <= num_products(LARGE, height, width) else LARGE


def filtering_of(height: int, width: int) -> Filtering:
    """Return the filtering of :func:`tile_of`."""
    return FILTERINGS[tile_of(height, width)]


def _coefficients(roots: list[Fraction]) -> list[float]:
    """Return the coefficients of the product of (x - root), the constant first."""
    product = [Fraction(1)]
    for root in roots:
        raised, scaled = [Fraction(0), *product], [-root * value for value in (*product, Fraction(0))]
        product = [a + b for a, b in zip(raised, scaled, strict=True)]
    return [float(value) for value in product]


def _toom_cook(*finite: Fraction | int) -> Filtering:
    """Return products of polynomials, by their values at the ``finite`` points and at infinity."""
    at = [Fraction(point) for point in finite]
    points = len(at) + 1
    tile = points - TAPS + 1
    inputs, filters, outputs = np.zeros((points, points)), np.zeros((points, TAPS)), np.zeros((tile, points))
    for row, point in enumerate(at):
        others = [other for other in at if other != point]
        inputs[row, :-1] = _coefficients(others)
        scale = math.prod([point - other for other in others])
        filters[row] = [float(point**k / scale) for k in range(TAPS)]
        outputs[:, row] = [float(point**k) for k in range(tile)]
    inputs[-1] = _coefficients(at)
    filters[-1, -1] = outputs[-1, -1] = 1
    return Filtering(tile, points, inputs, filters, outputs)


# Small points in pairs of both signs, so that transforms are few additions and rounding errors stay small.
FILTERINGS = {
    SMALL: _toom_cook(0, 1, -1, 2, -2),
    LARGE: _toom_cook(0, 1, -1, 2, -2, Fraction(1, 2), Fraction(-1, 2)),
}
