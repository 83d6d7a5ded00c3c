"""Mixup and cutmix of a batch with itself: a function of (seed, epoch, step), on any number of ranks."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from fastresnet import recipe_parts as parts
from fastresnet.draws import Purpose, below, permutation, stream, uniform
from fastresnet.errors import UserError
from fastresnet.losses import Targets


class SentDraw(NamedTuple):
    """A :class:`MixDraw` on the device: ``share`` float32 scalar, ``partners`` int64 [B], ``box`` int64 [4]."""

    share: torch.Tensor
    partners: torch.Tensor
    box: torch.Tensor


class MixDraw(NamedTuple):
    """What one step mixes, on the host.

    Fields:
        lam: share of each image's own label; for cutmix, of its own pixels.
        partners: int64 [B], places within this rank's batch.
        box: rows and columns (y0, y1, x0, x1) that cutmix takes from the partner; zeros for mixup.
    """

    lam: float
    partners: NDArray[np.int64]
    box: tuple[int, int, int, int]


class Mix:
    """Mixes each batch with a permutation of itself within blocks of ``part.block`` samples, or whole.

    Args:
        part: the recipe's mix.
        seed: the run's.
        batch_size: samples a step over all ranks.
        drop_last: as the loader's; several ranks need it, for an incomplete batch is cut across blocks.
        rank, world_size: which contiguous slice of each batch this process holds.

    Raises:
        UserError: blocks that would lie in two ranks.
    """

    def __init__(
        self,
        part: parts.Mix,
        *,
        seed: int,
        batch_size: int,
        drop_last: bool = False,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        local = batch_size // world_size
        block = part.block or batch_size
        if world_size > 1 and local % block:
            whole = "" if part.block else ", the whole batch"
            raise UserError(
                f"mix.block is {part.block}{whole}, and each of {world_size} processes holds {local} samples of "
                "a batch; choose a block that divides that number"
            )
        if world_size > 1 and not drop_last:
            raise UserError(f"{part.name} over {world_size} processes needs drop_last = true")
        self.part = part
        self.block = block
        self.seed = seed
        self.offset = rank * local

    def draw(self, epoch: int, step: int, num_images: int, height: int, width: int) -> MixDraw:
        """Return the draw of ``step`` of ``epoch`` (both from 0) for this rank's ``num_images`` images."""
        lam = beta(self.part.alpha, stream(self.seed, Purpose.MIXUP, epoch), step)
        key = stream(stream(self.seed, Purpose.PARTNER, epoch), Purpose.PARTNER, step)
        places = np.arange(self.offset, self.offset + num_images)
        blocks = np.split(places, range(self.block, num_images, self.block))
        partners = np.concatenate([permutation(key, block) for block in blocks]) - self.offset
        if self.part.name == "mixup":
            return MixDraw(lam, partners, (0, 0, 0, 0))
        at = np.array([step])
        mid_y, mid_x = (
            int(below(stream(stream(self.seed, Purpose.MIXUP, epoch), purpose, 0), at, bound)[0])
            for purpose, bound in ((Purpose.CUTOUT_Y, height), (Purpose.CUTOUT_X, width))
        )
        # As torchvision's CutMix: sides of sqrt(1 - lam) of the image, cut at the border; lam is the rest.
        half = math.sqrt(1 - lam) / 2
        half_y, half_x = int(half * height), int(half * width)
        y0, y1 = max(mid_y - half_y, 0), min(mid_y + half_y, height)
        x0, x1 = max(mid_x - half_x, 0), min(mid_x + half_x, width)
        return MixDraw(1 - (y1 - y0) * (x1 - x0) / (height * width), partners, (y0, y1, x0, x1))

    def apply(
        self, images: torch.Tensor, labels: torch.Tensor, epoch: int, step: int
    ) -> tuple[torch.Tensor, Targets]:
        """Return the mixed images and their targets, on the images' device, without waiting for it.

        ``images`` is float [B, 3, H, W] and keeps its dtype and memory format, ``labels`` int64 [B].
        """
        return self.mixed(images, labels, self.send(images, epoch, step))

    def send(self, images: torch.Tensor, epoch: int, step: int) -> SentDraw:
        """Return the draw of ``step`` of ``epoch`` for ``images`` [B, 3, H, W], on their device."""
        lam, partners, box = self.draw(epoch, step, len(images), *images.shape[-2:])
        share = torch.tensor(lam, dtype=torch.float32)
        parts = (share, torch.from_numpy(partners), torch.tensor(box))
        return SentDraw(*(_sent(part, images.device) for part in parts))

    def mixed(
        self, images: torch.Tensor, labels: torch.Tensor, sent: SentDraw
    ) -> tuple[torch.Tensor, Targets]:
        """Return what :meth:`apply` does, of a draw that is on the device: the same operations whatever it is."""
        targets = Targets(labels, labels[sent.partners], sent.share)
        others = images[sent.partners]
        if self.part.name == "mixup":
            # In float32, so that images and labels are mixed by the same share.
            return torch.lerp(others.float(), images.float(), sent.share).to(images.dtype), targets
        y0, y1, x0, x1 = sent.box.unbind()
        y = torch.arange(images.shape[2], device=images.device).view(-1, 1)
        x = torch.arange(images.shape[3], device=images.device)
        inside = (y >= y0) & (y < y1) & (x >= x0) & (x < x1)
        return torch.where(inside, others, images), targets


def beta(alpha: float, key: int, index: int) -> float:
    """Return draw ``index`` of stream ``key`` from Beta(alpha, alpha), in float64 on the host.

    As the ratio of two gamma draws (Marsaglia and Tsang 2000).
    """
    first, second = (_log_gamma_draw(alpha, stream(key, Purpose.MIXUP, which), index) for which in (0, 1))
    return 1 / (1 + math.exp(second - first)) if second - first < 700 else 0.0


def _log_gamma_draw(alpha: float, key: int, index: int) -> float:
    """Return the logarithm of a draw from Gamma(alpha, 1): a small alpha does not underflow so."""

    def uniforms(attempt: int) -> tuple[float, float, float]:
        drawn = uniform(stream(key, Purpose.MIXUP, index), np.arange(3 * attempt, 3 * attempt + 3))
        return tuple(1 - drawn)  # in (0, 1]

    boost, *_ = uniforms(0)
    # Below 1, Gamma(alpha) is Gamma(alpha + 1) times the (1 / alpha)-th power of a uniform.
    shape, log_boost = (alpha, 0.0) if alpha >= 1 else (alpha + 1, math.log(boost) / alpha)
    d = shape - 1 / 3
    c = 1 / math.sqrt(9 * d)
    attempt = 1
    while True:
        radius, turn, u = uniforms(attempt)
        x = math.sqrt(-2 * math.log(radius)) * math.cos(2 * math.pi * turn)
        if c * x > -1:
            log_v = 3 * math.log1p(c * x)
            if math.log(u) <= x * x / 2 + d - d * math.exp(log_v) + d * log_v:
                return math.log(d) + log_v + log_boost
        attempt += 1


def _sent(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Return the tensor on ``device``; to a GPU from pinned memory, so that the host need not wait."""
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)
