"""Smooth activations and their slopes, written with LLVM for vectors of float32.

They are within 4e-7 times max(1, |z|) of the exact ones, as PyTorch's are. GELU's own size falls below that in the
negative tail, where it is within 4% of its own, and from -12.9 on is 0.
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
# Abramowitz and Stegun 26.2.17: the normal distribution's upper tail at z >= 0 is its density times this
# polynomial in 1 / (1 + TAIL_AT * z), without a constant
TAIL = (1.330274429, -1.821255978, 1.781477937, -0.356563782, 0.319381530)
TAIL_AT = 0.2316419
DENSITY = 0.3989422804014327  # of the standard normal at 0: 1 / sqrt(2 pi)


def smooth(code: Function, activation: str, z: Any) -> tuple[Any, Any]:
    """Return ``gelu`` or ``silu`` of a vector, and its slope there."""
    return {"gelu": _gelu, "silu": _silu}[activation](code, z)


def _gelu(code: Function, z: Any) -> tuple[Any, Any]:
    at, one = code.at, code.alike(1.0)
    density = at.fmul(code.alike(DENSITY), _exp(code, at.fmul(code.alike(-0.5), at.fmul(z, z))))
    t = at.fdiv(one, code.fma(code.alike(TAIL_AT), _size(code, z), one))
    tail = at.fmul(density, at.fmul(t, _polynomial(code, TAIL, t)))
    share = at.select(_is_negative(code, z), tail, at.fsub(one, tail))
    return at.fmul(z, share), code.fma(z, density, share)


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


def _size(code: Function, z: Any) -> Any:
    return code.at.select(_is_negative(code, z), code.at.fsub(code.alike(0.0), z), z)


def _is_negative(code: Function, z: Any) -> Any:
    return code.at.fcmp_ordered("<", z, code.alike(0.0))
