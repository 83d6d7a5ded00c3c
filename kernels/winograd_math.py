"""Minimal filtering (Winograd; Lavin and Gray, "Fast Algorithms for Convolutional Neural Networks", CVPR 2016).

In one dimension, TILE outputs y of a filter w of 3 taps, over TILE + 2 inputs x, take POINTS multiplications:

    y = OUTPUTS @ ((FILTERS @ w) * (INPUTS @ x))

In two dimensions the same is done along columns and rows: a tile of 4x4 outputs takes 36 multiplications, not 144.
"""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

Matrix = NDArray[np.float64]
TAPS = 3
TILE = 4  # outputs a side
# Small integers, so that transforms are few additions and rounding errors stay small; and infinity.
FINITE_POINTS = tuple(Fraction(point) for point in (0, 1, -1, 2, -2))
POINTS = len(FINITE_POINTS) + 1
COLUMNS = 16  # of a panel of filters: channels come in multiples of it


def _coefficients(roots: list[Fraction]) -> list[float]:
    """Return the coefficients of the product of (x - root), the constant first."""
    product = [Fraction(1)]
    for root in roots:
        raised, scaled = [Fraction(0), *product], [-root * value for value in (*product, Fraction(0))]
        product = [a + b for a, b in zip(raised, scaled, strict=True)]
    return [float(value) for value in product]


def _toom_cook() -> tuple[Matrix, Matrix, Matrix]:
    """Return INPUTS, FILTERS and OUTPUTS: products of polynomials, by their values at the points."""
    inputs, filters, outputs = np.zeros((POINTS, POINTS)), np.zeros((POINTS, TAPS)), np.zeros((TILE, POINTS))
    for row, point in enumerate(FINITE_POINTS):
        others = [other for other in FINITE_POINTS if other != point]
        inputs[row, :-1] = _coefficients(others)
        scale = math.prod([point - other for other in others])
        filters[row] = [float(point**k / scale) for k in range(TAPS)]
        outputs[:, row] = [float(point**k) for k in range(TILE)]
    inputs[-1] = _coefficients(list(FINITE_POINTS))
    filters[-1, -1] = outputs[-1, -1] = 1
    return inputs, filters, outputs


INPUTS, FILTERS, OUTPUTS = _toom_cook()  # [6, 6], [6, 3], [4, 6]
