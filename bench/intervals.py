"""Student's t: what a mean of few runs says, with how much certainty."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from functools import cache

LEVEL = 0.95


def t_cdf(t: float, freedom: int) -> float:
    """Return the probability that Student's t with ``freedom`` degrees of freedom is at most ``t``.

    By the finite series for whole degrees of freedom (Abramowitz and Stegun 1964, 26.7.3 and 26.7.4).
    """
    angle = math.atan2(t, math.sqrt(freedom))
    sine, cosine = math.sin(angle), math.cos(angle)
    odd = freedom % 2
    term = total = 1.0
    for k in range(2 + odd, freedom - 1, 2):
        term *= cosine**2 * (k - 1) / k
        total += term
    if freedom == 1:
        within = 2 * angle / math.pi
    elif odd:
        within = 2 / math.pi * (angle + sine * cosine * total)
    else:
        within = sine * total
    return (1 + within) / 2


@cache
def t_quantile(level: float, freedom: int) -> float:
    """Return the t that Student's t with ``freedom`` degrees of freedom stays below with probability ``level``.

    ``level`` is between 0.5 and 1.
    """
    low, high = 0.0, 1.0
    while t_cdf(high, freedom) < level:
        high *= 2
    for _ in range(200):
        middle = (low + high) / 2
        if middle in (low, high):
            break
        low, high = (middle, high) if t_cdf(middle, freedom) < level else (low, middle)
    return high


def margin(values: Sequence[float], level: float = LEVEL) -> float | None:
    """Return what to take from the mean of ``values`` for a one-sided lower bound; None of fewer than two."""
    if len(values) < 2:
        return None
    return t_quantile(level, len(values) - 1) * statistics.stdev(values) / math.sqrt(len(values))


def lower_bound(values: Sequence[float], level: float = LEVEL) -> float | None:
    """Return the one-sided lower bound of the mean; None of fewer than two values."""
    below = margin(values, level)
    return None if below is None else statistics.fmean(values) - below


def upper_bound(values: Sequence[float], level: float = LEVEL) -> float | None:
    """Return the one-sided upper bound of the mean; None of fewer than two values."""
    above = margin(values, level)
    return None if above is None else statistics.fmean(values) + above


def two_sided(values: Sequence[float], level: float = LEVEL) -> float | None:
    """Return the half-width of the mean's two-sided interval; None of fewer than two values."""
    return margin(values, (1 + level) / 2)
