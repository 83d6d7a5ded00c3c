"""The blocks' 3x3 convolutions, which on a CPU can be done by minimal filtering, or their filters' gradient by AMX."""

from __future__ import annotations

import torch
from torch import nn

from fastresnet.errors import UserError
from fastresnet.kernels import amx, winograd
from fastresnet.kernels.winograd import COLUMNS

CONVS = ("direct", "winograd", "amx")
_TAKES = {"winograd": winograd.takes, "amx": amx.takes}


class Conv3x3(nn.Conv2d):
    """A 3x3 convolution of stride 1, padded by 1, without bias; its state dict is ``nn.Conv2d``'s.

    Attributes:
        convs: ``direct`` is PyTorch's own. ``winograd`` takes :func:`fastresnet.kernels.winograd.winograd_conv` where
            it can be had, which is for float32 and bf16 images on a CPU and channels in multiples of 16; ``amx``
            likewise :func:`fastresnet.kernels.amx.amx_conv`, for bf16 images.
    """

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(inputs, outputs, 3, padding=1, bias=False)
        self.convs = "direct"

    @property
    def fits(self) -> bool:
        """Its channels come in multiples of what is needed for anything but PyTorch's own."""
        return self.in_channels % COLUMNS == self.out_channels % COLUMNS == 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.convs == "direct" or torch.compiler.is_exporting():
            return super().forward(x)
        if torch.is_autocast_enabled("cpu") and x.dtype != torch.float64:  # which autocast leaves alone
            x = x.to(torch.get_autocast_dtype("cpu"))
        if not _TAKES[self.convs](x, self.weight):
            return super().forward(x)
        if self.convs == "amx":
            return torch.ops.fastresnet.amx_conv(x, self.weight)
        return torch.ops.fastresnet.winograd_conv(x, self.weight)


def set_convs(model: nn.Module, convs: str) -> None:
    """Change how every :class:`Conv3x3` of ``model`` is done, one of CONVS."""
    for module in model.modules():
        if isinstance(module, Conv3x3):
            module.convs = convs


def convs_obstacle(convs: str, device_type: str, amp: str) -> str | None:
    """Return why no convolution can be done as ``convs`` says on this machine, or None where some can.

    Args:
        convs: one of CONVS, or ``auto``.
        amp: a resolved config's.
    """
    if convs == "winograd":
        return winograd.winograd_obstacle(device_type)
    if convs == "amx":
        return amx.amx_obstacle(device_type) or (None if amp == "bf16" else "AMX is for --amp bf16")
    return None


def own_convs(device_type: str, amp: str) -> str:
    """Return which of CONVS is ours to try here: AMX's where it can be had, else Winograd's."""
    return "winograd" if convs_obstacle("amx", device_type, amp) else "amx"


def model_obstacle(model: nn.Module, convs: str, device_type: str, amp: str) -> str | None:
    """Return why no convolution of ``model`` can be done as ``convs`` says, or None where its channels let some be.

    Sizes of images are looked at with each batch.
    """
    if (obstacle := convs_obstacle(convs, device_type, amp)) is not None:
        return obstacle
    if not any(isinstance(module, Conv3x3) and module.fits for module in model.modules()):
        return f"no 3x3 convolution of stride 1 has channels in multiples of {COLUMNS}"
    return None


def check_convs(wanted: str, device_type: str, amp: str) -> None:
    """Refuse convolutions that cannot be had, before anything slow.

    Raises:
        UserError: Winograd's, or AMX's, and the device has none.
    """
    obstacle = convs_obstacle(wanted, device_type, amp)
    if obstacle is not None:
        raise UserError(f"--convs {wanted} cannot be had: {obstacle}; use --convs auto")
