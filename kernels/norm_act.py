"""Batch normalisation, an optional residual add and an activation as one module."""

from __future__ import annotations

import os
from typing import get_args

import torch
from torch import nn
from torch.nn import functional as F

from fastresnet.errors import UserError, did_you_mean
from fastresnet.kernels.fusion import LEAKY_SLOPE, Activation
from fastresnet.kernels.geometry import TUNINGS
from fastresnet.kernels.llvm_norms import takes
from fastresnet.kernels.ops import LLVM, PLAIN
from fastresnet.kernels.ranks import combine_ranks, world_group
from fastresnet.kernels.reference import num_rows

# "triton" is the first tuning, "triton-1" the second; "inductor" is the plain module, left to torch.compile; "llvm"
# is for a CPU
TRITON_KERNELS = ("triton", *(f"triton-{index}" for index in range(1, len(TUNINGS))))
KERNELS = ("eager", "inductor", "llvm", *TRITON_KERNELS)
FUSED_DTYPES = (torch.bfloat16, torch.float16, torch.float32)
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"  # then Triton runs on a CPU, slowly


def activate(x: torch.Tensor, activation: Activation) -> torch.Tensor:
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

    The Triton kernels take channels-last bf16, fp16 or float32 on a GPU; ``llvm`` channels-last bf16 or float32
    on a CPU, as :func:`fastresnet.kernels.llvm_norms.takes` says. Any other input (contiguous NCHW) takes plain
    PyTorch's path, which is also that of ``eager`` and ``inductor``: those never load Triton or LLVM.

    Args:
        num_channels: C. activation: what follows; ``identity`` for a shortcut's norm. kernels: one of
        KERNELS. sync: in training, normalise by the statistics of all ranks' batches (as
        ``nn.SyncBatchNorm``, on CPUs too).

    Raises:
        UserError: an unknown activation or implementation.
    """

    def __init__(
        self,
        num_channels: int,
        activation: Activation = "relu",
        *,
        kernels: str = "eager",
        sync: bool = False,
    ) -> None:
        super().__init__(num_channels)
        _one_of("activation", activation, get_args(Activation))
        _one_of("kernels", kernels, KERNELS)
        self.activation: Activation = activation
        self.kernels = kernels
        self.sync = sync

    def forward(
        self,
        x: torch.Tensor,
        residual: torch.Tensor | None = None,
        residual_norm: BatchNormAct2d | None = None,
    ) -> torch.Tensor:
        """Return [B, C, H, W] of ``x``'s dtype.

        Args:
            x: float [B, C, H, W].
            residual: of ``x``'s shape, added before the activation; it is left as it was.
            residual_norm: the ``identity`` norm of the residual, a shortcut's, which is applied to it first.
        """
        tuning = self._tuning(x, residual)
        group = world_group() if self.sync and self.training else None
        if tuning is None and group is None:
            return self._plain(x, residual, residual_norm)
        self._check_input_dim(x)
        if residual_norm is not None:
            assert residual is not None and residual_norm.activation == "identity"
            if tuning is not None and group is None and self.training and residual_norm.training:
                return self._dual(x, residual, residual_norm, tuning)
            residual = residual_norm(residual)
        if group is not None:
            return self._synced(x, residual, PLAIN if tuning is None else tuning, group)
        assert tuning is not None
        if self.training:
            return self._batch(x, residual, tuning)
        return self._running(x, residual, tuning)

    def _tuning(self, x: torch.Tensor, residual: torch.Tensor | None) -> int | None:
        """Return what the kernels are to be launched with, None where they do not take these tensors."""
        if x.dim() != 4 or x.shape[1] != self.num_features:
            return None  # PyTorch's own says what is wrong
        if self.kernels == "llvm":
            if not takes(x):
                return None
        elif (
            self.kernels not in TRITON_KERNELS
            or x.dtype not in FUSED_DTYPES
            or not (x.is_cuda or INTERPRETED)
        ):
            return None
        for tensor in (x,) if residual is None else (x, residual):
            fits = tensor.dtype == x.dtype and tensor.shape == x.shape
            if not (fits and tensor.is_contiguous(memory_format=torch.channels_last)):
                return None
        return LLVM if self.kernels == "llvm" else TRITON_KERNELS.index(self.kernels)

    def _plain(
        self, x: torch.Tensor, residual: torch.Tensor | None, residual_norm: BatchNormAct2d | None
    ) -> torch.Tensor:
        y = super().forward(x)
        if residual is not None:
            if residual_norm is not None:
                residual = residual_norm(residual)
            y = y.add_(residual)  # y is the norm's own output, which its backward does not need
        return activate(y, self.activation)

    def _batch(self, x: torch.Tensor, residual: torch.Tensor | None, tuning: int) -> torch.Tensor:
        _check_batch(x)
        y, mean, var, _ = torch.ops.fastresnet.bn_act(
            x, self.weight, self.bias, residual, self.eps, self.activation, tuning
        )
        self._track(mean, var, num_rows(x))
        return y

    def _dual(
        self, x: torch.Tensor, residual: torch.Tensor, residual_norm: BatchNormAct2d, tuning: int
    ) -> torch.Tensor:
        _check_batch(x)
        y, mean, var, residual_mean, residual_var = torch.ops.fastresnet.dual_bn_act(
            *(x, self.weight, self.bias, residual, residual_norm.weight, residual_norm.bias),
            *(self.eps, residual_norm.eps, self.activation, tuning),
        )
        self._track(mean, var, num_rows(x))
        residual_norm._track(residual_mean, residual_var, num_rows(x))
        return y

    def _synced(
        self, x: torch.Tensor, residual: torch.Tensor | None, tuning: int, group: str
    ) -> torch.Tensor:
        mean, var = torch.ops.fastresnet.bn_statistics(x.detach(), tuning)
        mean, var, count = combine_ranks(mean, var, num_rows(x), group)
        self._track(mean, var, count)
        y, _ = torch.ops.fastresnet.bn_act_apply(
            *(x, self.weight, self.bias, mean, var, residual, count),
            *(self.eps, self.activation, group, tuning),
        )
        return y

    def _running(self, x: torch.Tensor, residual: torch.Tensor | None, tuning: int) -> torch.Tensor:
        assert self.running_mean is not None and self.running_var is not None
        mean, var = self.running_mean.float(), self.running_var.float()
        y, _ = torch.ops.fastresnet.bn_act_apply(
            *(x, self.weight, self.bias, mean, var, residual, None),
            *(self.eps, self.activation, "", tuning),
        )
        return y

    def _track(self, mean: torch.Tensor, var: torch.Tensor, count: int | torch.Tensor) -> None:
        """Move the running statistics as ``nn.BatchNorm2d`` does; ``count`` is of values in a channel."""
        assert self.running_mean is not None and self.running_var is not None
        assert self.num_batches_tracked is not None
        self.num_batches_tracked.add_(1)
        step = 1 / self.num_batches_tracked.float() if self.momentum is None else self.momentum
        self.running_mean.lerp_(mean.to(self.running_mean.dtype), step)
        self.running_var.lerp_((var * (count / (count - 1))).to(self.running_var.dtype), step)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, activation={self.activation}, kernels={self.kernels}"


def _check_batch(x: torch.Tensor) -> None:
    if num_rows(x) == 1:
        raise ValueError(f"Expected more than 1 value per channel when training, got input size {x.size()}")


def _one_of(name: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        near = did_you_mean(value, allowed)
        raise UserError(f"{name} is {value!r}; it must be one of {', '.join(allowed)}{near}")
