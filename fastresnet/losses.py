"""The training loss, of plain labels or of :class:`Targets` that were mixed."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch.nn import functional

from fastresnet import recipe_parts as parts


class Targets(NamedTuple):
    """What the images of a mixed batch show.

    Fields:
        labels_a: int64 [B], each image's own label.
        labels_b: int64 [B], its partner's.
        lam: float32 scalar tensor, the share of its own.
    """

    labels_a: torch.Tensor
    labels_b: torch.Tensor
    lam: torch.Tensor


LossFunction = Callable[[torch.Tensor, "torch.Tensor | Targets"], torch.Tensor]


def build_loss(part: parts.Loss) -> LossFunction:
    """Return a function of (logits, labels or Targets) to the loss.

    Logits are [B, num_classes] of any float dtype, labels int64 [B]. The loss is a float32 scalar, computed
    in float32: mean cross-entropy with label smoothing; of Targets, lam * loss(labels_a) + (1 - lam) *
    loss(labels_b) (Zhang et al. 2018).
    """

    def loss(logits: torch.Tensor, targets: torch.Tensor | Targets) -> torch.Tensor:
        logits = logits.float()
        if isinstance(targets, Targets):
            own = functional.cross_entropy(logits, targets.labels_a, label_smoothing=part.label_smoothing)
            partner = functional.cross_entropy(logits, targets.labels_b, label_smoothing=part.label_smoothing)
            return targets.lam * own + (1 - targets.lam) * partner
        return functional.cross_entropy(logits, targets, label_smoothing=part.label_smoothing)

    return loss
