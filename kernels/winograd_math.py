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

    def down_across(self, height: int, width: int) -> tuple[int, int]:
        """Return how many tiles cover a map of outputs."""
        return -(-height // self.tile), -(-width // self.tile)

    def num_products(self, height: int, width: int) -> int:
        """Return the multiplications of a map of outputs, for each pair of channels."""
        down, across = self.down_across(height, width)
        return down * across * self.points**2


def filtering_of(height: int, width: int) -> Filtering:
    """Return what multiplies least for a map of outputs; of equals the smaller tiles, which round better."""
    return min(FILTERINGS, key=lambda filtering: filtering.num_products(height, width))


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
FILTERINGS = (
    _toom_cook(0, 1, -1, 2, -2),
    _toom_cook(0, 1, -1, 2, -2, Fraction(1, 2), Fraction(-1, 2)),
)
