"""Launches of the Triton kernels: what :mod:`fastresnet.kernels.reference` does, on a GPU or interpreted.

Tensors that are not channels-last are copied to it first. Imports Triton: import this only where it is to
run.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import lru_cache

import torch

from fastresnet.kernels import bn_act, bn_act_backward, reference
from fastresnet.kernels.fusion import Fusion, Norm
from fastresnet.kernels.geometry import (
    OnePass,
    Tuning,
    TwoPass,
    bits_size,
    ceil_div,
    plan_one_pass,
    plan_two_pass,
    power_above,
)
from fastresnet.kernels.reference import num_rows

COMBINE_CHANNELS = 8  # a program: many narrow ones, since each reads every partial of its channels
COMBINE_PARTIALS = 256
NO_NORM = (None, None, None, None, 0.0)


@dataclass(frozen=True)
class Launcher:
    """The passes as kernels, two-pass ones cut by ``tuning``."""

    tuning: Tuning

    def statistics(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return each channel's mean and biased variance, float32 [C] each; zeros for an empty batch."""
        mean, var = _float32(x, x.shape[1]), _float32(x, x.shape[1])
        if not x.numel():
            return mean.zero_(), var.zero_()
        x = _channels_last(x)
        plan = self._plan(x)
        means, m2s = (_float32(x, plan.num_chunks, plan.row_width) for _ in range(2))
        with _on(x):
            bn_act.partial_statistics[plan.num_blocks, plan.num_chunks](
                x, means, m2s, plan.num_rows, plan.row_width, plan.chunk_rows, **_blocks(plan)
            )
            bn_act.combine_statistics[(ceil_div(x.shape[1], COMBINE_CHANNELS),)](
                *(means, m2s, mean, var, plan.num_partials, x.shape[1]),
                *(plan.num_rows, plan.chunk_rows, plan.fold),
                **_combine_blocks(plan),
            )
        return mean, var

    def apply(
        self,
        fusion: Fusion,
        x: torch.Tensor,
        norm: Norm,
        residual: torch.Tensor | None,
        residual_norm: Norm | None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return what ``fusion`` says, in ``x``'s dtype, and its bits (uint8 [0] if it saves none)."""
        x, residual = _channels_last(x), _optional(residual)
        y, bits = torch.empty_like(x), _empty_bits(fusion, x)
        if x.numel():
            plan = self._plan(x)
            with _on(x):
                bn_act.apply[plan.num_blocks, plan.num_chunks](
                    *(x, *norm, residual, *(residual_norm or NO_NORM), y, bits),
                    *(plan.num_rows, plan.row_width, x.shape[1], plan.chunk_rows),
                    **_flags(fusion),
                    **_blocks(plan),
                )
        return y, bits

    def sums(
        self,
        fusion: Fusion,
        dy: torch.Tensor,
        x: torch.Tensor,
        norm: Norm,
        bits: torch.Tensor,
        residual: torch.Tensor | None,
        residual_norm: Norm | None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the [2 or 3, C] sums of g, g * xhat, g * the residual's xhat; g under a plain residual."""
        dy, x, residual = _channels_last(dy), _channels_last(x), _optional(residual)
        totals = _float32(x, 3 if fusion.added == "norm" else 2, x.shape[1])
        g = torch.empty_like(x) if fusion.added == "plain" else x.new_empty(0)
        if not x.numel():
            return totals.zero_(), g
        plan = self._plan(x)
        parts = _float32(x, len(totals), plan.num_chunks, plan.row_width)
        with _on(x):
            bn_act_backward.partial_sums[plan.num_blocks, plan.num_chunks](
                *(dy, x, *norm, residual, *(residual_norm or NO_NORM), bits, g, parts),
                *(plan.num_rows, plan.row_width, x.shape[1], plan.chunk_rows, parts.stride(0)),
                **_flags(fusion),
                **_blocks(plan),
            )
            bn_act_backward.combine_sums[ceil_div(x.shape[1], COMBINE_CHANNELS), len(totals)](
                *(parts, totals, plan.num_partials, x.shape[1], parts.stride(0)), **_combine_blocks(plan)
            )
        return totals, g

    def input_gradient(
        self,
        fusion: Fusion,
        dy: torch.Tensor,
        x: torch.Tensor,
        norm: Norm,
        sums: torch.Tensor,
        per_row: float,
        residual: torch.Tensor | None,
        residual_norm: Norm | None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the gradient of ``x`` and that of a normalised residual ([0] if there is none)."""
        dy, x, residual = _channels_last(dy), _channels_last(x), _optional(residual)
        dx = torch.empty_like(x)
        dresidual = torch.empty_like(x) if fusion.added == "norm" else x.new_empty(0)
        if x.numel():
            plan = self._plan(x)
            with _on(x):
                bn_act_backward.input_gradient[plan.num_blocks, plan.num_chunks](
                    *(dy, x, *norm, residual, *(residual_norm or NO_NORM), sums, dx, dresidual),
                    *(plan.num_rows, plan.row_width, x.shape[1], plan.chunk_rows, per_row),
                    ACT=fusion.activation,
                    ADDED=fusion.added,
                    **_blocks(plan),
                )
        return dx, dresidual

    def forward(
        self,
        fusion: Fusion,
        x: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor,
        residual: torch.Tensor | None,
        eps: float,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return (y, mean, var, bits) by the batch's own statistics; one pass where a slab stays on chip."""
        plan = plan_one_pass(num_rows(x), x.shape[1])
        if plan is None:
            return reference.forward(fusion, x, weight, bias, residual, eps, self)
        x, residual = _channels_last(x), _optional(residual)
        y, bits = torch.empty_like(x), _empty_bits(fusion, x)
        mean, var = _float32(x, x.shape[1]), _float32(x, x.shape[1])
        with _on(x):
            bn_act.forward_one_pass[(plan.num_blocks,)](
                *(x, weight, bias, residual, y, mean, var, bits, eps, num_rows(x), x.shape[1]),
                **_flags(fusion),
                **_blocks(plan),
            )
        return y, mean, var, bits

    def backward(
        self,
        fusion: Fusion,
        dy: torch.Tensor,
        x: torch.Tensor,
        norm: Norm,
        bits: torch.Tensor,
        residual: torch.Tensor | None,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return (dx, the plain residual's gradient or [0], the [2, C] sums) of :meth:`forward`."""
        plan = plan_one_pass(num_rows(x), x.shape[1])
        if plan is None:
            return reference.backward(fusion, dy, x, norm, bits, residual, self)
        dy, x, residual = _channels_last(dy), _channels_last(x), _optional(residual)
        dx, totals = torch.empty_like(x), _float32(x, 2, x.shape[1])
        g = torch.empty_like(x) if fusion.added == "plain" else x.new_empty(0)
        with _on(x):
            bn_act_backward.backward_one_pass[(plan.num_blocks,)](
                *(dy, x, *norm, residual, bits, dx, g, totals, num_rows(x), x.shape[1]),
                **_flags(fusion),
                **_blocks(plan),
            )
        return dx, g, totals

    def _plan(self, x: torch.Tensor) -> TwoPass:
        return plan_two_pass(num_rows(x), x.shape[1], _num_processors(x.device), self.tuning)


@lru_cache
def _num_processors(device: torch.device) -> int:
    # interpreted, one: programs run one after another, and a few show what many would
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 1


def _on(x: torch.Tensor) -> AbstractContextManager[object]:
    return torch.cuda.device(x.device) if x.is_cuda else nullcontext()


def _flags(fusion: Fusion) -> dict[str, str | bool]:
    return {"ACT": fusion.activation, "ADDED": fusion.added, "BITS": fusion.saves_bits}


def _blocks(plan: OnePass | TwoPass) -> dict[str, int]:
    blocks = {"BLOCK_ROWS": plan.block_rows, "BLOCK_COLUMNS": plan.block_columns, "num_warps": plan.num_warps}
    return blocks if isinstance(plan, OnePass) else blocks | {"STAGES": plan.num_stages}


def _combine_blocks(plan: TwoPass) -> dict[str, int]:
    partials = min(COMBINE_PARTIALS, power_above(plan.num_partials))
    return {"BLOCK_PARTIALS": partials, "BLOCK_CHANNELS": COMBINE_CHANNELS}


def _channels_last(x: torch.Tensor) -> torch.Tensor:
    return x.contiguous(memory_format=torch.channels_last)


def _optional(x: torch.Tensor | None) -> torch.Tensor | None:
    return None if x is None else _channels_last(x)


def _float32(x: torch.Tensor, *shape: int) -> torch.Tensor:
    return torch.empty(shape, dtype=torch.float32, device=x.device)


def _empty_bits(fusion: Fusion, x: torch.Tensor) -> torch.Tensor:
    size = bits_size(num_rows(x), x.shape[1]) if fusion.saves_bits else 0
    # rows of odd widths are packed tighter in a folded view: the rest is zero, not whatever was there
    make = torch.zeros if x.shape[1] % 8 else torch.empty
    return make(size, dtype=torch.uint8, device=x.device)
