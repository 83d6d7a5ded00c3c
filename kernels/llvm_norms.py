"""The passes on a CPU: what :mod:`fastresnet.kernels.reference` does, fused, on torch's own threads.

For float32 and bfloat16. Where the reference packs signs as bits, backward is given the output, whose signs they are.
Results are the same to the bit on any number of threads.
"""

from __future__ import annotations

import sys
from functools import partial
from math import gcd
from typing import Any

import torch

from fastresnet.kernels import reference
from fastresnet.kernels.fusion import Fusion, Norm
from fastresnet.kernels.reference import num_rows
from fastresnet.kernels.team import PIXEL_BYTES, channels_last, run_team, team_obstacle

LINE = 16  # channels, of as many pixels as it takes, that the code does at once
WORTH_A_CALL = 1 << 16  # elements: with fewer, calling an op of ours takes longer than it saves
PART_ELEMENTS = 1 << 15  # that a thread takes at a time
MAX_PARTS = 64  # whose sums are to be added up
STREAMED_BYTES = 1 << 23  # of rows that are written past the caches, which would read them first
_STATISTICS = Fusion("identity", "none")


def llvm_obstacle(device_type: str) -> str | None:
    """Return why these norms cannot be had on this machine's ``device_type``, or None where they can."""
    return "LLVM's norms are for CPUs" if device_type != "cpu" else team_obstacle()


def takes(x: torch.Tensor) -> bool:
    """Return whether ``x`` [B, C, H, W] can be normed so, channels-last."""
    return (
        x.device.type == "cpu"
        and x.dtype in PIXEL_BYTES
        and x.numel() >= WORTH_A_CALL
        and num_rows(x) % _fold(x) == 0
    )


class _Call:
    """One pass over rows: [num_rows / fold, fold * C], ``fold`` pixels laid end to end.

    Args:
        x: what the rows are of, and every other tensor given.
        tensors: by word.
        channels: float [C], by word.
    """

    def __init__(
        self, x: torch.Tensor, tensors: dict[str, torch.Tensor], channels: dict[str, torch.Tensor]
    ) -> None:
        self.fold, self.num_channels = _fold(x), x.shape[1]
        rows, rest = divmod(num_rows(x), self.fold)
        assert not rest, "takes(x) was to be asked"
        self.pixel_bytes = PIXEL_BYTES[x.dtype]
        self.num_parts = max(1, min(MAX_PARTS, x.numel() // PART_ELEMENTS))
        self.tensors = {"X": channels_last(x)}
        # Machine code reads and writes by addresses alone.
        for name, tensor in tensors.items():
            assert tensor.shape == x.shape and tensor.dtype == x.dtype and tensor.device == x.device
            self.tensors[name] = channels_last(tensor)
        for name, values in channels.items():
            assert values.shape == x.shape[1:2] and values.device == x.device
            values = values.detach().float()
            self.tensors[name] = values.repeat(self.fold) if self.fold > 1 else values.contiguous()
        self.sizes = {
            "ROWS": rows,
            "WIDTH": self.fold * self.num_channels,
            "PARTS": self.num_parts,
            "PART_ROWS": -(-rows // self.num_parts),
        }

    def run(self, name: str, fusion: Fusion) -> None:
        from fastresnet.kernels.llvm_norms_code import WORDS, code
        from fastresnet.kernels.vector_code import host_lanes

        words = self.sizes | {word: tensor.data_ptr() for word, tensor in self.tensors.items()}
        streamed = self.tensors["X"].nbytes >= STREAMED_BYTES
        run_team(code(name, fusion, self.pixel_bytes, host_lanes(), streamed), WORDS, words)

    def summed(self, name: str, fusion: Fusion) -> torch.Tensor:
        """Return a pass's sums, float64 [2, C]; [3, C] backward of a residual with a norm."""
        size = self.num_parts, 3 if fusion.added == "norm" else 2, self.fold, self.num_channels
        found = torch.zeros(size, dtype=torch.float64)
        self.tensors |= {"SUMS": found, "BLOCK_SUMS": torch.zeros(size)}
        self.run(name, fusion)
        return found.sum((0, 2))


def statistics(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return each channel's mean and biased variance, float32 [C]; zeros for an empty batch."""
    if not x.numel():
        return reference.statistics(x)
    shift = torch.nan_to_num(x[0, :, 0, 0].float(), 0.0, 0.0, 0.0)
    sums = _Call(x, {}, {"MEAN": shift}).summed("statistics", _STATISTICS)
    first, second = sums / num_rows(x)
    return (first + shift).float(), (second - first * first).clamp_(min=0).float()


def apply(
    fusion: Fusion, x: torch.Tensor, norm: Norm, residual: torch.Tensor | None, residual_norm: Norm | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return what ``fusion`` says, in ``x``'s dtype, and no bits."""
    y = _empty_like(x)
    if x.numel():
        call = _Call(x, {"Y": y} | _of("RESIDUAL", residual), _channels(norm, residual_norm))
        call.run("apply", fusion)
    return y, x.new_empty(0, dtype=torch.uint8)


def sums(
    fusion: Fusion,
    dy: torch.Tensor,
    x: torch.Tensor,
    norm: Norm,
    bits: torch.Tensor,
    residual: torch.Tensor | None,
    residual_norm: Norm | None,
    *,
    keep: bool = False,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the sums and g, as the reference does; in place of bits ``residual`` is the output.

    With ``keep`` g is returned whatever is added.
    """
    keeps = keep or fusion.added == "plain"
    g = _empty_like(x) if keeps else x.new_empty(0)
    if not x.numel():
        return reference.sums(fusion, dy, x, norm, bits, residual, residual_norm)
    tensors = (
        {"DY": dy}
        | _of("Y" if fusion.saves_bits else "RESIDUAL", residual)
        | ({"DRESIDUAL": g} if keeps else {})
    )
    call = _Call(x, tensors, _channels(norm, residual_norm))
    found = call.summed("sums_and_gradient" if keep else "sums", fusion)
    found[1] *= _rstd(norm)
    if residual_norm is not None:
        found[2] *= _rstd(residual_norm)
    return found.float(), g


def input_gradient(
    fusion: Fusion,
    dy: torch.Tensor,
    x: torch.Tensor,
    norm: Norm,
    sums: torch.Tensor,
    per_row: float,
    residual: torch.Tensor | None,
    residual_norm: Norm | None,
    *,
    kept: bool = False,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return dx and the gradient of a normalised residual ([0] if there is none), as the reference does.

    With ``kept`` ``dy`` is the g that :func:`sums` was to keep, and dx is written over it.
    """
    dx = dy if kept else _empty_like(x)
    dresidual = x.new_empty(0) if residual_norm is None else _empty_like(x)
    if x.numel():
        means = sums * per_row
        channels = _channels(norm, residual_norm) | {"MEAN_G": means[0], "MEAN_GX": means[1] * _rstd(norm)}
        tensors = {"DY": dy, "DX": dx} | _of("RESIDUAL", residual)
        if residual_norm is not None:
            channels["R_MEAN_GX"] = means[2] * _rstd(residual_norm)
            tensors["DRESIDUAL"] = dresidual
        _Call(x, tensors, channels).run("input_gradient_of" if kept else "input_gradient", fusion)
    return dx, dresidual


def backward(
    fusion: Fusion,
    dy: torch.Tensor,
    x: torch.Tensor,
    norm: Norm,
    bits: torch.Tensor,
    residual: torch.Tensor | None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return (dx, the plain residual's gradient or [0], the [2, C] sums), as the reference does.

    A smooth activation's slope takes longer than memory does, so it is computed once: the gradient of what was
    activated is kept, rounded to ``x``'s dtype, where dx is written over it.
    """
    if fusion.added != "none" or not fusion.is_smooth or not x.numel():
        return reference.backward(fusion, dy, x, norm, bits, residual, passes=sys.modules[__name__])
    totals, g = sums(fusion, dy, x, norm, bits, residual, None, keep=True)
    dx, _ = input_gradient(fusion, g, x, norm, totals, 1 / num_rows(x), None, None, kept=True)
    return dx, x.new_empty(0), totals


forward = partial(reference.forward, passes=sys.modules[__name__])


def _fold(x: torch.Tensor) -> int:
    """Return how many pixels are as wide as whole lines."""
    return LINE // gcd(LINE, x.shape[1])


def _channels(norm: Norm, residual_norm: Norm | None) -> dict[str, torch.Tensor]:
    channels = {"MEAN": norm.mean, "SCALE": norm.weight.float() * _rstd(norm), "BIAS": norm.bias}
    if residual_norm is None:
        return channels
    scale = residual_norm.weight.float() * _rstd(residual_norm)
    return channels | {"R_MEAN": residual_norm.mean, "R_SCALE": scale, "R_BIAS": residual_norm.bias}


def _rstd(norm: Norm) -> torch.Tensor:
    return torch.rsqrt(norm.var + norm.eps)


def _of(name: str, tensor: torch.Tensor | None) -> dict[str, Any]:
    return {} if tensor is None else {name: tensor}


def _empty_like(x: torch.Tensor) -> torch.Tensor:
    return torch.empty_like(x, memory_format=torch.channels_last)
