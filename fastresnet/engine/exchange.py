"""Gradients of a batch that is split over ranks: one all-reduce a step, after which every rank has the whole's."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import nn

from fastresnet.engine.distributed import Ranks
from fastresnet.kernels.norm_act import BatchNormAct2d
from fastresnet.losses import Filter


class Whole(NamedTuple):
    """What a step over all ranks saw, the same bits on each.

    Fields:
        loss: float32 scalar, the mean over the batch; not finite if it is so on any rank.
        num_correct, num_samples: float32 scalars.
    """

    loss: torch.Tensor
    num_correct: torch.Tensor
    num_samples: torch.Tensor


class Exchange:
    """Sends a step's gradients, and what else must be the same on all ranks, through one buffer.

    Gradients, losses and (where each rank normalises by its own) the norms' running statistics are averaged over
    samples: the ranks' shares of an incomplete batch differ. Statistics are averaged at every step, although a
    mean at the next evaluation would be the same but for rounding, so that a run resumed anywhere has the same
    bits. Where each rank keeps some of its samples to learn from, gradients are averaged over those.

    Args:
        model: on its device, its weights the same on all ranks.
        ranks: several.
        batch_size: samples a step over all ranks.
        num_samples: of an epoch, incomplete batches included.
        sync_norms: normalise by the statistics of the whole batch; otherwise by those of a rank's share.
        filter: chooses what each rank keeps of its share; None keeps all.
    """

    def __init__(
        self,
        model: nn.Module,
        ranks: Ranks,
        *,
        batch_size: int,
        num_samples: int,
        sync_norms: bool,
        filter: Filter | None = None,
    ) -> None:
        self.ranks = ranks
        self.batch_size = batch_size
        self.num_samples = num_samples
        self.share = batch_size // ranks.world_size
        self._num_kept = filter.num_kept if filter is not None else int
        self.norms = [module for module in model.modules() if isinstance(module, BatchNormAct2d)]
        for norm in self.norms:
            norm.sync = sync_norms
        self.sync_norms = sync_norms
        self._weights = [weight for weight in model.parameters() if weight.requires_grad]
        self._statistics = [] if sync_norms else [_known(n) for norm in self.norms for n in _running(norm)]
        sent = [*self._weights, *self._statistics]
        self._buffer = torch.zeros(sum(t.numel() for t in sent) + 4, device=sent[0].device)
        self._num_learned = sum(weight.numel() for weight in self._weights)
        self._places, start = [], 0
        for tensor in sent:
            # weights are dense, in whatever order: a gradient keeps its memory format
            self._places.append(self._buffer.as_strided(tensor.shape, tensor.stride(), start))
            start += tensor.numel()

    def is_complete(self, epoch_step: int) -> bool:
        """Return whether step ``epoch_step`` (from 0) of an epoch is over a whole batch."""
        return (epoch_step + 1) * self.batch_size <= self.num_samples

    def weigh(self, loss: torch.Tensor, size: int) -> torch.Tensor:
        """Return the mean loss of ``size`` samples as it counts beside the other ranks'."""
        return loss if size == self.share else loss * (size / self.share)

    def weigh_kept(self, loss: torch.Tensor, size: int) -> torch.Tensor:
        """Return the mean loss of what was kept of ``size`` samples as it counts beside the other ranks'."""
        kept, usual = self._num_kept(size), self._num_kept(self.share)
        return loss if kept == usual else loss * (kept / usual)

    @torch.no_grad()
    def __call__(self, loss: torch.Tensor, num_correct: torch.Tensor, size: int) -> Whole:
        """Replace gradients and statistics by the whole batch's, and return what it was like.

        Args:
            loss: of all this rank's samples, weighed. num_correct: of its samples. size: how many they are.
        """
        num_weights = len(self._weights)
        gradients = [_known(weight.grad) for weight in self._weights]
        torch._foreach_copy_(self._places[:num_weights], gradients)
        if self._statistics:
            places = self._places[num_weights:]
            torch._foreach_copy_(places, self._statistics)
            if size != self.share:
                torch._foreach_mul_(places, size / self.share)
        tail = self._buffer[-4:]
        counts = (torch.full_like(loss, count) for count in (size, self._num_kept(size)))
        tail.copy_(torch.stack((loss, num_correct, *counts)))
        self.ranks.add(self._buffer)
        num_correct, num_samples = tail[1].clone(), tail[2].clone()
        self._buffer[: self._num_learned].div_(tail[3] / self._num_kept(self.share))
        self._buffer[self._num_learned :].div_(num_samples / self.share)
        for weight, place in zip(self._weights, self._places, strict=False):
            weight.grad = place
        if self._statistics:
            torch._foreach_copy_(self._statistics, self._places[num_weights:])
        return Whole(tail[0].clone(), num_correct, num_samples)

    def skip(self, num_passes: int) -> None:
        """Stand in for the forward passes and the backward pass of a share without samples."""
        for weight in self._weights:
            weight.grad = torch.zeros_like(weight)
        for norm in self.norms:
            assert norm.num_batches_tracked is not None
            norm.num_batches_tracked += num_passes


def _running(norm: BatchNormAct2d) -> tuple[torch.Tensor | None, torch.Tensor | None]:
    return norm.running_mean, norm.running_var


def _known(tensor: torch.Tensor | None) -> torch.Tensor:
    assert tensor is not None
    return tensor
