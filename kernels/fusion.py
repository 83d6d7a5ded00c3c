"""What one fused op does: :class:`Fusion`, and the norm it does it with: :class:`Norm`."""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch

Activation = Literal["relu", "leaky_relu", "gelu", "silu", "identity"]
Added = Literal["none", "plain", "norm"]

LEAKY_SLOPE = 0.01  # torch's default


class Fusion(NamedTuple):
    """``act(norm(x))``, ``act(norm(x) + residual)`` or ``act(norm(x) + norm(residual))``.

    Fields:
        activation: gelu is the exact one (erf). added: what is added before the activation: nothing, a
        residual as it is, or a residual with a norm of its own.
    """

    activation: Activation
    added: Added

    @property
    def saves_bits(self) -> bool:
        """Whether backward takes one bit an element: E / 8 bytes where the residual itself would be 2E.

        Only a plain residual needs anything: otherwise backward reads all that was activated as it is.
        """
        return self.added == "plain" and self.activation in ("relu", "leaky_relu")

    @property
    def saves_residual(self) -> bool:
        """Whether backward reads the plain residual again, the derivative being no function of a sign."""
        return self.added == "plain" and self.is_smooth

    @property
    def is_smooth(self) -> bool:
        """Whether the activation's slope is a function of more than a sign."""
        return self.activation in ("silu", "gelu")


class Norm(NamedTuple):
    """One batch norm of C channels.

    Fields:
        weight, bias: [C], any float dtype.
        mean, var: [C], float32 (float64 for float64 tensors); the variance is the biased one.
        eps: added to the variance.
    """

    weight: torch.Tensor
    bias: torch.Tensor
    mean: torch.Tensor
    var: torch.Tensor
    eps: float
