"""The passes in plain PyTorch: what the kernels are checked against, and what runs where Triton does not.

Same functions, arguments and results as :mod:`fastresnet.kernels.launch`, for tensors on any device in any
memory format. float64 is computed in float64, everything else in float32.
"""

from __future__ import annotations

import sys
from typing import Any

import torch
from torch.nn import functional as F

from fastresnet.kernels.fusion import LEAKY_SLOPE, Fusion, Norm
from fastresnet.kernels.geometry import ceil_div

_HERE = sys.modules[__name__]


def statistics(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return each channel's mean and biased variance over [B, C, H, W]; zeros for an empty batch."""
    x = _wide(x)
    if not x.numel():
        return x.new_zeros(x.shape[1]), x.new_zeros(x.shape[1])
    mean = x.mean((0, 2, 3))
    return mean, (x - _row(mean)).square().mean((0, 2, 3))


def apply(
    fusion: Fusion, x: torch.Tensor, norm: Norm, residual: torch.Tensor | None, residual_norm: Norm | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return what ``fusion`` says, in ``x``'s dtype, and its bits (uint8 [0] if it saves none)."""
    z = _before_activation(x, norm, residual, residual_norm)
    bits = _pack(z) if fusion.saves_bits else x.new_empty(0, dtype=torch.uint8)
    match fusion.activation:
        case "relu":
            z = F.relu(z)
        case "leaky_relu":
            z = F.leaky_relu(z, LEAKY_SLOPE)
        case "silu":
            z = F.silu(z)
        case "gelu":
            z = F.gelu(z)
    return _like(x, z), bits


def sums(
    fusion: Fusion,
    dy: torch.Tensor,
    x: torch.Tensor,
    norm: Norm,
    bits: torch.Tensor,
    residual: torch.Tensor | None,
    residual_norm: Norm | None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the sums over the batch; and ``g``, the gradient of what was activated, for a plain residual.

    The sums are [2, C], or [3, C] with a normalised residual: of g, g * xhat and g * the residual's xhat.
    """
    g = _gradient(fusion, dy, x, norm, bits, residual, residual_norm)
    totals = [g.sum((0, 2, 3)), (g * _xhat(x, norm)).sum((0, 2, 3))]
    if residual is not None and residual_norm is not None:
        totals.append((g * _xhat(residual, residual_norm)).sum((0, 2, 3)))
    return torch.stack(totals), _like(x, g) if fusion.added == "plain" else x.new_empty(0)


def input_gradient(
    fusion: Fusion,
    dy: torch.Tensor,
    x: torch.Tensor,
    norm: Norm,
    sums: torch.Tensor,
    per_row: float,
    residual: torch.Tensor | None,
    residual_norm: Norm | None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the gradient of ``x`` and that of a normalised residual ([0] if there is none).

    Args:
        dy: the output's gradient; under a plain residual the ``g`` that :func:`sums` returned.
        sums: as :func:`sums` returned them; times ``per_row`` they are means over the batch.
    """
    no_bits = x.new_empty(0, dtype=torch.uint8)
    g = (
        _wide(dy)
        if fusion.added == "plain"
        else _gradient(fusion, dy, x, norm, no_bits, residual, residual_norm)
    )
    means = sums * per_row
    g = g - _row(means[0])
    dx = _row(_scale(norm)) * (g - _xhat(x, norm) * _row(means[1]))
    if residual is None or residual_norm is None:
        return _like(x, dx), x.new_empty(0)
    dresidual = _row(_scale(residual_norm)) * (g - _xhat(residual, residual_norm) * _row(means[2]))
    return _like(x, dx), _like(residual, dresidual)


def forward(
    fusion: Fusion,
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor,
    residual: torch.Tensor | None,
    eps: float,
    passes: Any = _HERE,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return (y, mean, var, bits) of a norm by the batch's own statistics, with the functions of ``passes``."""
    mean, var = passes.statistics(x)
    y, bits = passes.apply(fusion, x, Norm(weight, bias, mean, var, eps), residual, None)
    return y, mean, var, bits


def backward(
    fusion: Fusion,
    dy: torch.Tensor,
    x: torch.Tensor,
    norm: Norm,
    bits: torch.Tensor,
    residual: torch.Tensor | None,
    passes: Any = _HERE,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return (dx, the plain residual's gradient or [0], the [2, C] sums) of :func:`forward`."""
    totals, g = passes.sums(fusion, dy, x, norm, bits, residual, None)
    dy = g if fusion.added == "plain" else dy
    dx, _ = passes.input_gradient(fusion, dy, x, norm, totals, 1 / max(num_rows(x), 1), None, None)
    return dx, g, totals


def num_rows(x: torch.Tensor) -> int:
    """Return the values a channel of [B, C, H, W] has."""
    return x.shape[0] * x.shape[2] * x.shape[3]


def _wide(x: torch.Tensor) -> torch.Tensor:
    return x if x.dtype == torch.float64 else x.float()


def _row(channels: torch.Tensor) -> torch.Tensor:
    return channels[:, None, None]


def _like(x: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    return torch.empty_like(x, memory_format=torch.channels_last).copy_(values)


def _scale(norm: Norm) -> torch.Tensor:
    return norm.weight.to(norm.var.dtype) * torch.rsqrt(norm.var + norm.eps)


def _xhat(x: torch.Tensor, norm: Norm) -> torch.Tensor:
    return (_wide(x) - _row(norm.mean)) * _row(torch.rsqrt(norm.var + norm.eps))


def _before_activation(
    x: torch.Tensor, norm: Norm, residual: torch.Tensor | None, residual_norm: Norm | None
) -> torch.Tensor:
    z = (_wide(x) - _row(norm.mean)) * _row(_scale(norm)) + _row(norm.bias)
    if residual is None:
        return z
    if residual_norm is None:
        return z + _wide(residual)
    return (
        z
        + (_wide(residual) - _row(residual_norm.mean)) * _row(_scale(residual_norm))
        + _row(residual_norm.bias)
    )


def _gradient(
    fusion: Fusion,
    dy: torch.Tensor,
    x: torch.Tensor,
    norm: Norm,
    bits: torch.Tensor,
    residual: torch.Tensor | None,
    residual_norm: Norm | None,
) -> torch.Tensor:
    dy = _wide(dy)
    if fusion.activation == "identity":
        return dy
    if fusion.saves_bits:
        positive = _unpack(bits, x)
        return torch.where(positive, dy, 0 if fusion.activation == "relu" else dy * LEAKY_SLOPE)
    z = _before_activation(x, norm, residual, residual_norm)
    match fusion.activation:
        case "relu":
            return torch.where(z <= 0, 0, dy)
        case "leaky_relu":
            return torch.where(z > 0, dy, dy * LEAKY_SLOPE)
        case "silu":
            s = torch.sigmoid(z)
            return dy * s * (1 + z * (1 - s))
        case "gelu":
            density = torch.exp(-0.5 * z * z) * 0.3989422804014327  # of the standard normal, 1 / sqrt(2 pi)
            return dy * (0.5 * (1 + torch.erf(z * 0.5**0.5)) + z * density)


def _pack(z: torch.Tensor) -> torch.Tensor:
    """Return bits, set unless ``z`` <= 0: a byte is 8 neighbouring channels of a pixel."""
    bit = (~(z <= 0)).permute(0, 2, 3, 1).flatten(0, 2)
    bit = F.pad(bit, (0, -bit.shape[1] % 8)).unflatten(1, (-1, 8)).to(torch.uint8)
    return (bit << torch.arange(8, dtype=torch.uint8, device=z.device)).sum(2, dtype=torch.uint8).flatten()


def _unpack(bits: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    batch, channels, height, width = x.shape
    byte = bits.view(batch, height, width, ceil_div(channels, 8), 1)
    bit = (byte >> torch.arange(8, dtype=torch.uint8, device=x.device)) & 1
    return bit.flatten(3)[..., :channels].permute(0, 3, 1, 2).bool()
