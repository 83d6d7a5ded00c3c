"""The gradient of 3x3 convolutions' filters by AMX, a CPU's instructions for products of bfloat16 matrices.

oneDNN, which does PyTorch's convolutions on a CPU, uses them too. Forward, and for the gradient of the input, it comes
near to what they can do, and is left to it. The filters' gradient, whose sums are over pixels, is what it is slow at.

The work is done on torch's own threads. Sums are float32, and bits depend on the inputs alone. As in AMX itself,
numbers too small to be normal are 0.
"""

from __future__ import annotations

import ctypes
import platform
import sys
from functools import cache
from typing import Any

import numpy as np
import torch

from fastresnet.errors import UserError
from fastresnet.kernels.team import channels_last, run_team, team_obstacle
from fastresnet.signals import held

TAPS = 3
CHANNELS = 16  # in a tile
LINE = 32  # pixels in a tile
TILE_BYTES = 1024
MIN_PRODUCTS = (
    3 << 23
)  # of a pixel with a weight of one tap; with fewer, calling ops of ours takes longer than it saves
MIN_FILLED = 24  # pixels of a line; with fewer, PyTorch's own is as fast
BLOCK_LINES = 32  # about, that are done at a time; what is made of them stays in a core's own cache
MAX_PARTS, MAX_SUM_BYTES = 16, 1 << 21  # of the images, each with sums of its own; of all those sums
# Of Linux's arch_prctl, and of what it is asked for: a process may not touch tiles unasked.
_ARCH_PRCTL, _ARCH_REQ_XCOMP_PERM, _XFEATURE_XTILEDATA = 158, 0x1023, 18


def amx_obstacle(device_type: str) -> str | None:
    """Return why these gradients cannot be had on this machine's ``device_type``, or None where they can."""
    if device_type != "cpu":
        return "AMX is a CPU's"
    return team_obstacle() or _processor_obstacle()


@cache
@held()  # llvmlite's strings would be disposed of twice
def _processor_obstacle() -> str | None:
    from llvmlite import binding

    if sys.platform != "linux" or platform.machine() != "x86_64":
        return "AMX is for x86-64 processors under Linux"
    features = binding.get_host_cpu_features()
    if not all(features.get(name) for name in ("amx-tile", "amx-bf16", "avx512bw")):
        return "this processor has no AMX for bfloat16"
    # Asked once, for all threads of the process.
    if ctypes.CDLL(None).syscall(_ARCH_PRCTL, _ARCH_REQ_XCOMP_PERM, _XFEATURE_XTILEDATA) != 0:
        return "the system does not let a process use AMX"
    return None


def takes(x: torch.Tensor, weight: torch.Tensor) -> bool:
    """Return whether ``x`` [B, C, H, W] can be convolved so with ``weight`` [O, C, 3, 3], padded by 1."""
    outputs, inputs, *sides = weight.shape
    return (
        x.device.type == "cpu"
        and x.dim() == 4
        and x.shape[1] == inputs  # else PyTorch's own says what is wrong
        and x.dtype == torch.bfloat16
        and weight.dtype == torch.float32
        and sides == [TAPS, TAPS]
        and inputs % CHANNELS == outputs % CHANNELS == 0
        and x.numel() * outputs >= MIN_PRODUCTS
        and 2 <= x.shape[2] <= LINE
        and 2 <= x.shape[3] <= LINE
        and LINE // x.shape[3] * x.shape[3] >= MIN_FILLED
    )


@torch.library.custom_op("fastresnet::amx_conv", mutates_args=(), device_types="cpu")
def amx_conv(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """Return bfloat16 [B, O, H, W], channels-last, of bfloat16 ``x`` and float32 ``weight``: PyTorch's own.

    The gradient of ``weight`` is :func:`amx_conv_weight`'s; see :func:`takes`.
    """
    y = torch.ops.aten.convolution(channels_last(x), weight.to(x.dtype), *_LIKE)
    return channels_last(y)


@torch.library.custom_op("fastresnet::amx_conv_weight", mutates_args=(), device_types="cpu")
def amx_conv_weight(dy: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """Return the gradient of :func:`amx_conv`'s ``weight``, float32 [O, C, 3, 3] channels-last.

    Raises:
        UserError: it cannot be had; see :func:`amx_obstacle`.
    """
    from fastresnet.kernels.amx_code import WORDS, filters_code, sums_code

    if (obstacle := amx_obstacle(x.device.type)) is not None:
        raise UserError(f"the filters' gradient by AMX cannot be had: {obstacle}; use convs='direct'")
    (batch, inputs, height, width), outputs = x.shape, dy.shape[1]
    # Machine code reads and writes by addresses alone.
    assert dy.shape == (batch, outputs, height, width)
    for images in (x, dy):
        assert images.dtype == torch.bfloat16 and images.device.type == "cpu"
        assert images.shape[1] % CHANNELS == 0
    assert batch and 1 <= height <= LINE and 1 <= width <= LINE
    x, dy, threads = channels_last(x), channels_last(dy), torch.get_num_threads()
    sum_bytes = 4 * TAPS**2 * inputs * outputs
    groups = -(-batch // (LINE // width))
    parts = _num_parts(groups, sum_bytes)
    shares = min(inputs // CHANNELS, -(-threads // parts))
    block = max(1, BLOCK_LINES // height)
    scratch_bytes = block * height * TILE_BYTES * (TAPS + outputs // CHANNELS)
    sums = torch.empty(parts * sum_bytes // 4)
    scratch = torch.empty(threads * scratch_bytes, dtype=torch.uint8)
    nothing = torch.zeros(LINE * max(inputs, outputs), dtype=x.dtype)
    assert scratch.data_ptr() % 64 == 0, "torch's tensors begin with a cache line"
    taps = sums.new_empty(outputs, TAPS, TAPS, inputs)
    shared = {"SUMS": sums.data_ptr(), "PARTS": parts}
    run_team(
        sums_code(height, width, inputs, outputs),
        WORDS,
        {"X": x.data_ptr(), "Y": dy.data_ptr(), "NUM": batch, "NOTHING": nothing.data_ptr()}
        | {"GROUPS": groups, "SHARES": shares, "BLOCK": block, "ITEMS": parts * shares}
        | {"SCRATCH": scratch.data_ptr(), "SCRATCH_BYTES": scratch_bytes, "TILES": _tiles().ctypes.data}
        | shared,
    )
    items = inputs // CHANNELS * (outputs // CHANNELS)
    run_team(
        filters_code(),
        WORDS,
        {"C": inputs, "O": outputs, "ITEMS": items, "FILTERS": taps.data_ptr()} | shared,
    )
    return taps.permute(0, 3, 1, 2)


@amx_conv.register_fake
def _(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    batch, _, height, width = x.shape
    return x.new_empty((batch, height, width, weight.shape[0])).permute(0, 3, 1, 2)


@amx_conv_weight.register_fake
def _(dy: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    return dy.new_empty((dy.shape[1], TAPS, TAPS, x.shape[1]), dtype=torch.float32).permute(0, 3, 1, 2)


def _save(ctx: Any, inputs: tuple[torch.Tensor, torch.Tensor], output: torch.Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _backward(ctx: Any, dy: torch.Tensor) -> tuple[torch.Tensor | None, torch.Tensor | None]:
    x, weight = ctx.saved_tensors
    dx = None
    if ctx.needs_input_grad[0]:
        mask = [True, False, False]
        dx = torch.ops.aten.convolution_backward(dy, x, weight.to(x.dtype), None, *_LIKE[1:], mask)[0]
    return dx, amx_conv_weight(dy, x) if ctx.needs_input_grad[1] else None


def _refuse_second_derivative(ctx: Any, *_: Any) -> None:
    raise UserError("the filters' gradient by AMX has no second derivative; use convs='direct'")


torch.library.register_autograd("fastresnet::amx_conv", _backward, setup_context=_save)
torch.library.register_autograd("fastresnet::amx_conv_weight", _refuse_second_derivative)

# Of aten's convolution: bias, stride, padding, dilation, transposed, output padding, groups.
_LIKE: tuple[Any, ...] = (None, [1, 1], [1, 1], [1, 1], False, [0, 0], 1)


def _num_parts(groups: int, sum_bytes: int) -> int:
    """Return a power of two, so that batches of such a number have parts of whole blocks."""
    most = max(1, min(MAX_PARTS, MAX_SUM_BYTES // sum_bytes, groups))
    return 1 << (most.bit_length() - 1)


@cache
def _tiles() -> np.ndarray[Any, np.dtype[np.uint8]]:
    """Return what ``ldtilecfg`` reads: eight tiles of 16 rows of 64 bytes."""
    found = np.zeros(64, np.uint8)
    found[0] = 1  # the palette
    found[16:32:2] = 64
    found[48:56] = 16
    return found
