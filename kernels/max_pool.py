"""2x2 max pooling, which on a CPU can be done in generated code, on torch's own threads.

The same values and gradients as PyTorch's own, to the bit, but for the bits of a NaN. That one writes an int64 an
output, which says where its value came from, and reads it back; here backward looks for the greatest once more.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from fastresnet.errors import UserError
from fastresnet.kernels.llvm_norms import LINE, STREAMED_BYTES, WORTH_A_CALL
from fastresnet.kernels.team import PIXEL_BYTES, channels_last, run_team

PART_ELEMENTS = 1 << 13  # of the output, that a thread takes at a time


def takes(x: torch.Tensor) -> bool:
    """Return whether ``x`` [B, C, H, W] can be pooled so."""
    return (
        x.device.type == "cpu"
        and x.dim() == 4
        and x.dtype in PIXEL_BYTES
        and x.numel() >= WORTH_A_CALL
        and x.shape[1] % LINE == x.shape[2] % 2 == x.shape[3] % 2 == 0
        and x.is_contiguous(memory_format=torch.channels_last)
    )


@torch.library.custom_op("fastresnet::max_pool", mutates_args=(), device_types="cpu")
def max_pool(x: torch.Tensor) -> torch.Tensor:
    """Return [B, C, H / 2, W / 2] of ``x``'s dtype, channels-last; see :func:`takes`."""
    _check(x)
    y = _empty(x, 2)
    _run("forward", x, {"Y": y})
    return y


@torch.library.custom_op("fastresnet::max_pool_backward", mutates_args=(), device_types="cpu")
def max_pool_backward(dy: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """Return dx of :func:`max_pool`; of equal values the first has the gradient, of NaNs the last."""
    _check(x)
    batch, channels, height, width = x.shape
    assert dy.shape == (batch, channels, height // 2, width // 2) and dy.dtype == x.dtype
    dx = _empty(x, 1)
    _run("backward", x, {"DY": channels_last(dy), "DX": dx})
    return dx


@max_pool.register_fake
def _(x: torch.Tensor) -> torch.Tensor:
    return _empty(x, 2)


@max_pool_backward.register_fake
def _(dy: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    return _empty(x, 1)


def _save(ctx: Any, inputs: tuple[torch.Tensor], output: torch.Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _differentiate(ctx: Any, dy: torch.Tensor) -> torch.Tensor:
    return max_pool_backward(dy, *ctx.saved_tensors)


def _refuse_second_derivative(ctx: Any, *_: Any) -> None:
    raise UserError(
        "the generated max pool has no second derivative; use kernels='eager' to differentiate twice"
    )


max_pool.register_autograd(_differentiate, setup_context=_save)
max_pool_backward.register_autograd(_refuse_second_derivative)


class MaxPool2x2(nn.MaxPool2d):
    """A 2x2 max pool of stride 2, which rounds up.

    Attributes:
        kernels: as a norm's; with ``llvm`` the generated code pools what :func:`takes` says, else PyTorch's own does.
    """

    def __init__(self, kernels: str = "eager") -> None:
        super().__init__(2, ceil_mode=True)
        self.kernels = kernels

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.kernels != "llvm" or torch.compiler.is_exporting() or not takes(x):
            return F.max_pool2d(x, 2, ceil_mode=True)
        return torch.ops.fastresnet.max_pool(x)


def _run(name: str, x: torch.Tensor, tensors: dict[str, torch.Tensor]) -> None:
    from fastresnet.kernels.max_pool_code import WORDS, code
    from fastresnet.kernels.vector_code import host_lanes

    batch, channels, height, width = x.shape
    rows = batch * height // 2
    sizes = {"ROWS": rows, "PIXELS": width // 2, "C": channels}
    sizes["PART_ROWS"] = max(1, PART_ELEMENTS // (width // 2 * channels))
    sizes["PARTS"] = -(-rows // sizes["PART_ROWS"])
    words = sizes | {word: tensor.data_ptr() for word, tensor in ({"X": x} | tensors).items()}
    streamed = x.nbytes >= STREAMED_BYTES
    run_team(code(name, PIXEL_BYTES[x.dtype], host_lanes(), streamed), WORDS, words)


def _check(x: torch.Tensor) -> None:
    """Assert what machine code takes for granted, which reads and writes by addresses alone."""
    assert x.dim() == 4 and x.device.type == "cpu" and x.dtype in PIXEL_BYTES
    assert x.shape[1] % LINE == x.shape[2] % 2 == x.shape[3] % 2 == 0
    assert x.is_contiguous(memory_format=torch.channels_last)


def _empty(x: torch.Tensor, divisor: int) -> torch.Tensor:
    batch, channels, height, width = x.shape
    size = batch, channels, height // divisor, width // divisor
    return torch.empty(size, dtype=x.dtype, device=x.device, memory_format=torch.channels_last)
