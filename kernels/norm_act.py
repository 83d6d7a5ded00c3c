"""Batch normalisation, an optional residual add and an activation as one module, in plain PyTorch."""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import nn
from torch.nn import functional as F

from fastresnet.errors import UserError, did_you_mean

NormActivation = Literal["relu", "leaky_relu", "gelu", "silu", "identity"]

KERNELS = ("eager",)
LEAKY_SLOPE = 0.01  # torch's default


def activate(x: torch.Tensor, activation: NormActivation) -> torch.Tensor:
    """Return the activation of ``x``, any shape; relu and leaky_relu overwrite it.

    ``gelu`` is the exact one (erf).
    """
    match activation:
        case "relu":
            return F.relu(x, inplace=True)
        case "leaky_relu":
            return F.leaky_relu(x, LEAKY_SLOPE, inplace=True)
        case "gelu":
            return F.gelu(x)
        case "silu":
            return F.silu(x)
        case "identity":
            return x


class BatchNormAct2d(nn.BatchNorm2d):
    """``act(bn(x) [+ residual])``, in training and in evaluation.

    Its state dict is that of ``nn.BatchNorm2d``, so weights are interchangeable with a plain model's.

    Args:
        num_channels: C.
        activation: what follows; ``identity`` for a shortcut's norm.
        kernels: the implementation; ``eager`` is plain PyTorch.

    Raises:
        UserError: an unknown activation or implementation.
    """

    def __init__(
        self, num_channels: int, activation: NormActivation = "relu", *, kernels: str = "eager"
    ) -> None:
        super().__init__(num_channels)
        _one_of("activation", activation, get_args(NormActivation))
        _one_of("kernels", kernels, KERNELS)
        self.activation: NormActivation = activation

    def forward(self, x: torch.Tensor, residual: torch.Tensor | None = None) -> torch.Tensor:
        """Return [B, C, H, W] of ``x``'s dtype; ``residual`` has ``x``'s shape and is left as it was."""
        y = super().forward(x)
        if residual is not None:
            y = y.add_(residual)  # y is the norm's own output, which its backward does not need
        return activate(y, self.activation)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, activation={self.activation}"


def _one_of(name: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        near = did_you_mean(value, allowed)
        raise UserError(f"{name} is {value!r}; it must be one of {', '.join(allowed)}{near}")
