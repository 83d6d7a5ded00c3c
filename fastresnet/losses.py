"""The training loss, of plain labels or of :class:`Targets` that were mixed, and the images that a step keeps."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
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


def build_loss(part: parts.Loss, *, of_each: bool = False) -> LossFunction:
    """Return a function of (logits, labels or Targets) to the loss.

    Logits are [B, num_classes] of any float dtype, labels int64 [B]. The loss is a float32 scalar, computed
    in float32: mean cross-entropy with label smoothing; of Targets, lam * loss(labels_a) + (1 - lam) *
    loss(labels_b) (Zhang et al. 2018).

    Args:
        of_each: give the loss of each image, float32 [B], and not their mean.
    """
    cross_entropy = partial(
        functional.cross_entropy,
        label_smoothing=part.label_smoothing,
        reduction="none" if of_each else "mean",
    )

    def loss(logits: torch.Tensor, targets: torch.Tensor | Targets) -> torch.Tensor:
        logits = logits.float()
        if isinstance(targets, Targets):
            own, partner = (cross_entropy(logits, labels) for labels in targets[:2])
            return targets.lam * own + (1 - targets.lam) * partner
        return cross_entropy(logits, targets)

    return loss


class Filter:
    """Low-loss filtering: chooses which images of a batch are trained on.

    Args:
        part: the recipe's; its ``keep`` is below 1.
    """

    def __init__(self, part: parts.Loss) -> None:
        self.keep = part.keep
        self._losses = build_loss(part, of_each=True)

    def num_kept(self, num_images: int) -> int:
        """Return how many of a batch are kept: the share, rounded; 2 at least, where there are, as norms need."""
        return min(num_images, max(2, round(self.keep * num_images)))

    @torch.no_grad()
    def __call__(
        self, logits: torch.Tensor, targets: torch.Tensor | Targets
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the places of the images with the highest loss, int64 [num_kept(B)], and the mean loss of all B."""
        losses = self._losses(logits, targets)
        return losses.topk(self.num_kept(len(losses))).indices, losses.mean()


def taken(targets: torch.Tensor | Targets, places: torch.Tensor) -> torch.Tensor | Targets:
    """Return the targets of some images of a batch."""
    if isinstance(targets, Targets):
        return Targets(targets.labels_a[places], targets.labels_b[places], targets.lam)
    return targets[places]
