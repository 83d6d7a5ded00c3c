"""Smooth activations and their slopes, written with LLVM for vectors of float32.

They are within 4e-7 times max(1, |z|) of the exact ones, as PyTorch's are. So GELU, whose own size falls below that in
the negative tail, ends there: below -GELU_END it is 0.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir

from fastresnet.kernels.vector_code import INT32, Function

LOG2_E, LN2_HIGH, LN2_LOW = 1.4426950408889634, 0.693359375, -2.12194440e-4
# exp(r) = 1 + r + r**2 * (...), for |r| <= ln(2) / 2: Cephes' expf
EXP = (1.9875691500e-4, 1.3981999507e-3, 8.3334519073e-3, 4.1665795894e-2, 1.6666665459e-1, 5.0000001201e-1)
LEAST = -83.0  # where exponentials, and what is made of them here, are not yet subnormal, which is slow
WHOLE = 12582912.0  # 1.5 * 2**23: a float32 this large has no fraction, and the lowest bits hold its integer
# The normal distribution is 1/2 + z * GELU_SHARE(u), GELU's slope 1/2 + z * GELU_SLOPE(u); u is
# 2 * (z / GELU_END)**2 - 1, in [-1, 1], where the polynomials' terms do not cancel; z is held to the ends.
# Least-squares fits, reweighted until the greatest error was least (Lawson 1961): 4e-8 and 1.9e-7.
GELU_END = 5.5
GELU_SHARE = (
    *(5.38080349e-04, -1.36883080e-03, 1.02383702e-03, -1.22939667e-03, 4.23638755e-03),
    *(-7.67467543e-03, 1.04686171e-02, -1.46713629e-02, 2.02879831e-02, -2.61124689e-02),
    *(3.20817418e-02, -3.87872681e-02, 4.77369912e-02, -6.41724765e-02, 1.28551930e-01),
)
GELU_SLOPE = (
    *(-4.90986789e-03, 1.21202599e-02, -6.42489968e-03, 4.10066685e-03, -2.78236344e-02, 4.95664999e-02),
    *(-5.30861169e-02, 6.06563948e-02, -7.29194805e-02, 7.53351897e-02, -6.88571557e-02),
    *(6.01872280e-02, -5.37258238e-02, 5.36708720e-02, -6.57401383e-02, 1.28759176e-01),
)


def smooth(code: Function, activation: str, z: Any) -> tuple[Any, Any]:
    """Return ``gelu`` or ``silu`` of a vector, and its slope there."""
    return {"gelu": _gelu, "silu": _silu}[activation](code, z)


def _gelu(code: Function, z: Any) -> tuple[Any, Any]:
    at, half = code.at, code.alike(0.5)
    held = _held(code, z, GELU_END)
    u = code.fma(at.fmul(held, held), code.alike(2 / GELU_END**2), code.alike(-1.0))
    share = code.fma(held, _split(code, GELU_SHARE, u), half)
    slope = code.fma(held, _split(code, GELU_SLOPE, u), half)
    is_inside = at.fcmp_unordered(">=", z, code.alike(-GELU_END))  # a NaN stays one
    nothing = code.alike(0.0)
    return at.fmul(z, at.select(is_inside, share, nothing)), at.select(is_inside, slope, nothing)


def _silu(code: Function, z: Any) -> tuple[Any, Any]:
    at, one = code.at, code.alike(1.0)
    power = _exp(code, at.fsub(code.alike(0.0), _size(code, z)))  # at most 1
    share = at.fdiv(at.select(_is_negative(code, z), power, one), at.fadd(one, power))
    return at.fmul(z, share), at.fmul(share, code.fma(z, at.fsub(one, share), one))


def _exp(code: Function, x: Any) -> Any:
    """Return the exponential of a vector of numbers up to 0; below LEAST 0, of a NaN anything."""
    at, bits = code.at, ir.VectorType(INT32, code.lanes)
    whole = code.fma(x, code.alike(LOG2_E), code.alike(WHOLE))
    number = at.fsub(whole, code.alike(WHOLE))
    rest = code.fma(number, code.alike(-LN2_HIGH), x)
    rest = code.fma(number, code.alike(-LN2_LOW), rest)
    value = code.fma(_polynomial(code, EXP, rest), at.fmul(rest, rest), at.fadd(rest, code.alike(1.0)))
    exponent = at.shl(at.bitcast(whole, bits), code.alike_bits(23))
    power = at.bitcast(at.add(at.bitcast(value, bits), exponent), code.vector)
    return at.select(at.fcmp_ordered("<", x, code.alike(LEAST)), code.alike(0.0), power)


def _polynomial(code: Function, factors: tuple[float, ...], x: Any) -> Any:
    """Return the polynomial with these factors, that of the highest power first."""
    value = code.alike(factors[0])
    for factor in factors[1:]:
        value = code.fma(value, x, code.alike(factor))
    return value


def _split(code: Function, factors: tuple[float, ...], x: Any) -> Any:
    """Return :func:`_polynomial`, of even and of odd powers apart, which do not wait for each other."""
    square = code.at.fmul(x, x)
    num = len(factors)
    even, odd = factors[(num - 1) % 2 :: 2], factors[num % 2 :: 2]
    return code.fma(_polynomial(code, odd, square), x, _polynomial(code, even, square))


def _size(code: Function, z: Any) -> Any:
    return code.at.select(_is_negative(code, z), code.at.fsub(code.alike(0.0), z), z)


def _held(code: Function, z: Any, end: float) -> Any:
    """Return z held to [-end, end]; of a NaN itself."""
    at, low, high = code.at, code.alike(-end), code.alike(end)
    below = at.select(at.fcmp_ordered(">", z, high), high, z)
    return at.select(at.fcmp_ordered("<", below, low), low, below)


def _is_negative(code: Function, z: Any) -> Any:
    return code.at.fcmp_ordered("<", z, code.alike(0.0))
