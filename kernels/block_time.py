"""Times of a block under each implementation, and of the fused norms under each tuning."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import torch
from torch import nn

from fastresnet.kernels import ops
from fastresnet.kernels.fusion import Activation
from fastresnet.kernels.geometry import TUNINGS
from fastresnet.kernels.norm_act import BatchNormAct2d
from fastresnet.kernels.timing import Run, captured, sets_beyond_cache, time_interleaved

ROUNDS = 5
CALLS = 10


class BlockShape(NamedTuple):
    """Blocks alike: [batch_size, channels, side, side] in and out, ``repeats`` of them in the network.

    ``widths`` are the channels between its convolutions, whose ``sizes`` are 3 for 3x3: ``(64,)`` and ``(3, 3)`` for a
    basic block of 64 channels. The last norm takes the shortcut in blocks that have one (``joins``).
    """

    batch_size: int
    channels: int
    side: int
    repeats: int
    widths: tuple[int, ...]
    sizes: tuple[int, ...]
    joins: bool = True


class Block(nn.Module):
    """conv - norm - act - ... - conv - norm (- add) - act, as in a stage after its first block."""

    def __init__(self, shape: BlockShape, activation: Activation, kernels: str) -> None:
        super().__init__()
        self.joins = shape.joins
        channels = (shape.channels, *shape.widths, shape.channels)
        self.convs = nn.ModuleList(
            nn.Conv2d(inputs, outputs, size, padding=size // 2, bias=False)
            for inputs, outputs, size in zip(channels[:-1], channels[1:], shape.sizes, strict=True)
        )
        self.norms = nn.ModuleList(
            BatchNormAct2d(outputs, activation, kernels=kernels) for outputs in channels[1:]
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        *inner, (last_conv, last_norm) = zip(self.convs, self.norms, strict=True)
        y = x
        for conv, norm in inner:
            y = norm(conv(y))
        return last_norm(last_conv(y), residual=x if self.joins else None)


def time_blocks(
    kernels: Sequence[str],
    blocks: Sequence[BlockShape],
    activation: Activation,
    dtype: torch.dtype,
    device: torch.device,
    *,
    compiled: bool,
    launched: bool,
) -> dict[str, float]:
    """Return the seconds that all ``blocks`` take forward and backward, by implementation (medians, added up).

    ``launched`` times them operation by operation, Python and launches included; otherwise as replays of CUDA graphs.
    """
    totals = dict.fromkeys(kernels, 0.0)
    for shape in blocks:
        runs = {
            name: block_runs(name, shape, activation, dtype, device, compiled=compiled, launched=launched)
            for name in kernels
        }
        for name, times in time_interleaved(runs, device, rounds=ROUNDS, calls=CALLS).items():
            totals[name] += shape.repeats * times.p50_s
        torch._dynamo.reset()  # these graphs are of no more use, and count against the recompile limit
    return totals


def block_runs(
    kernels: str,
    shape: BlockShape,
    activation: Activation,
    dtype: torch.dtype,
    device: torch.device,
    *,
    compiled: bool,
    launched: bool,
) -> list[Run]:
    """Return calls that run one block forward and backward, one for each of several sets of inputs."""
    block = Block(shape, activation, kernels).to(device)
    block.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    module = torch.compile(block, fullgraph=True) if compiled else block
    parameters = list(block.parameters())

    def run(x: torch.Tensor, dy: torch.Tensor) -> None:
        with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
            y = module(x)
        torch.autograd.grad(y, [x, *parameters], dy)

    def prepare() -> Run:
        return partial(run, _random(shape, dtype, device).requires_grad_(), _random(shape, dtype, device))

    # the input, what both convolutions and both norms return, a gradient
    bytes_each = 6 * _random(shape, dtype, device).nbytes
    return [
        prepare() if launched else captured(prepare, device)
        for _ in range(sets_beyond_cache(bytes_each, device))
    ]


def fastest_tuning(
    blocks: Sequence[BlockShape], activation: Activation, dtype: torch.dtype, device: torch.device
) -> int:
    """Return which of TUNINGS takes the least time for the norms of ``blocks``, with and without an add."""
    totals = [0.0] * len(TUNINGS)
    for shape in blocks:
        runs = {
            str(tuning): norm_runs(shape, activation, dtype, device, tuning) for tuning in range(len(TUNINGS))
        }
        for name, times in time_interleaved(runs, device, rounds=ROUNDS, calls=CALLS).items():
            totals[int(name)] += shape.repeats * times.p50_s
    return totals.index(min(totals))


def norm_runs(
    shape: BlockShape, activation: Activation, dtype: torch.dtype, device: torch.device, tuning: int
) -> list[Run]:
    """Return calls of the two fused norms of a block, forward and backward, one for each of several input sets."""
    weight, bias = (torch.rand(shape.channels, device=device, requires_grad=True) for _ in range(2))

    def run(x: torch.Tensor, residual: torch.Tensor, dy: torch.Tensor) -> None:
        for added in (None, residual):
            y = ops.bn_act(x, weight, bias, added, 1e-5, activation, tuning)[0]
            inputs = [x, weight, bias] if added is None else [x, weight, bias, added]
            torch.autograd.grad(y, inputs, dy)

    def prepare() -> Run:
        x, residual = (_random(shape, dtype, device).requires_grad_() for _ in range(2))
        return partial(run, x, residual, _random(shape, dtype, device))

    bytes_each = 3 * _random(shape, dtype, device).nbytes
    return [captured(prepare, device) for _ in range(sets_beyond_cache(bytes_each, device))]


def _random(shape: BlockShape, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    size = (shape.batch_size, shape.channels, shape.side, shape.side)
    return torch.randn(size, dtype=dtype, device=device).contiguous(memory_format=torch.channels_last)
