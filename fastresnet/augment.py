"""What a recipe does to images after crop and flip: batched, on the device, parameters sent once an epoch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from fastresnet import augment_draws as draws
from fastresnet import augment_ops as ops
from fastresnet import recipe_augment as parts

if TYPE_CHECKING:
    from fastresnet.recipe import Recipe


class Normalise(nn.Module):
    """Float32 images [B, 3, H, W] in [0, 1] less the mean, over the standard deviation, per channel."""

    scale: torch.Tensor
    shift: torch.Tensor

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        for name, values in (
            ("scale", 1 / np.asarray(std, np.float64)),
            ("shift", -np.asarray(mean, np.float64) / np.asarray(std, np.float64)),
        ):
            channels = torch.tensor(values, dtype=torch.float32).view(1, 3, 1, 1)
            self.register_buffer(name, channels, persistent=False)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return torch.addcmul(self.shift, images, self.scale)

    def inverse(self, images: torch.Tensor) -> torch.Tensor:
        """Return the images in [0, 1] that ``images`` were made from."""
        return (images - self.shift) / self.scale


class Augment(nn.Module):
    """Turns a loader's uint8 batch into the network's input, on the device it was moved to.

    Args:
        part: the recipe's; its crop and flip are the loader's affair.
        mean, std: per channel, of images in [0, 1].
        image_size: side in pixels.
    """

    table: torch.Tensor

    def __init__(
        self, part: parts.Augment, mean: Sequence[float], std: Sequence[float], image_size: int
    ) -> None:
        super().__init__()
        names = [op.name for op in part.ops]
        self.ops = part.ops if "normalise" in names else (*part.ops, parts.NormaliseHere(name="normalise"))
        self.augments = bool(part.ops) and names != ["normalise"]
        self.image_size = image_size
        self.normalise = Normalise(mean, std)
        self.register_buffer("table", torch.zeros(0, 0), persistent=False)

    def begin_epoch(
        self, seed: int, epoch: int, members: NDArray[np.int64], device: torch.device | str
    ) -> None:
        """Draw the parameters of ``members`` (int64 indices) for ``epoch`` and send them to ``device``.

        The table is float32 [greatest index + 1, columns]; later epochs overwrite it in place.
        """
        if not self.augments:
            return
        columns = [
            _columns(op, draws.uniforms(seed, epoch, place, members), self.image_size)
            for place, op in enumerate(self.ops)
        ]
        drawn = np.concatenate([c for c in columns if c is not None], axis=1)
        rows = np.zeros((int(members.max()) + 1, drawn.shape[1]), np.float32)
        rows[members] = drawn
        table = torch.from_numpy(rows)
        if torch.device(device).type == "cuda":
            table = table.pin_memory()
        if self.table.shape == table.shape and self.table.device == torch.empty(0, device=device).device:
            self.table.copy_(table, non_blocking=True)
        else:
            self.table = table.to(device)

    def forward(
        self, images: torch.Tensor, indices: torch.Tensor | None, dtype: torch.dtype, train: bool
    ) -> torch.Tensor:
        """Return images [B, 3, H, W] of ``dtype``, channels-last, normalised; augmented where ``train``.

        ``images`` is uint8 [B, 3, H, W], ``indices`` int64 [B], of the members given to :meth:`begin_epoch`; they
        are for training alone.
        """
        x = images.contiguous(memory_format=torch.channels_last).float() / 255
        if not (train and self.augments):
            return self.normalise(x).to(dtype)
        assert indices is not None
        drawn = self.table[indices]
        column = 0
        for op in self.ops:
            if isinstance(op, parts.NormaliseHere):
                x = self.normalise(x)
            else:
                x = _apply(op, x, drawn[:, column : column + _width(op)])
                column += _width(op)
        return x.to(dtype)


def normalisation(
    recipe: Recipe, mean: Sequence[float], std: Sequence[float]
) -> tuple[Sequence[float], Sequence[float]]:
    """Return the recipe's own mean and standard deviation, or the data set's where it has none.

    A channel that is the same in every pixel has deviation 0: it becomes 0, not NaN.
    """
    own = recipe.normalise
    return (own.mean, own.std) if own else (mean, [deviation or 1.0 for deviation in std])


def build_augment(recipe: Recipe, mean: Sequence[float], std: Sequence[float], image_size: int) -> Augment:
    """Return the recipe's augmentation; ``mean`` and ``std`` are the data set's, unless the recipe has its own."""
    return Augment(recipe.augment, *normalisation(recipe, mean, std), image_size)


def _width(op: parts.AugmentOp) -> int:
    """Return the columns that :func:`_columns` gives for ``op``."""
    if isinstance(op, parts.Rotation | parts.Affine):
        return 6
    if isinstance(op, parts.ColorJitter):
        return 19 if op.hue else 9
    if isinstance(op, parts.Erasing | parts.Cutout):
        return 4
    return 1 if isinstance(op, parts.Grayscale) else 0


def _columns(op: parts.AugmentOp, u: draws.Uniforms, size: int) -> NDArray[np.float64] | None:
    """Return what :func:`_apply` needs: float64 [n, columns], or None where it needs nothing."""
    if isinstance(op, parts.Rotation):
        angle = draws.draw_rotation(op, u)
        zero = np.zeros_like(angle)
        # torchvision's rotate turns the other way from its affine.
        return draws.inverse_affine(-angle, zero, zero, zero + 1, zero)
    if isinstance(op, parts.Affine):
        return draws.inverse_affine(**draws.draw_affine(op, u, size))
    if isinstance(op, parts.ColorJitter):
        return draws.jitter_columns(op, u)
    if isinstance(op, parts.Grayscale):
        return draws.draw_grayscale(op, u)[:, None]
    if isinstance(op, parts.Erasing):
        return draws.draw_erasing(op, u, size)
    if isinstance(op, parts.Cutout):
        return draws.draw_cutout(op, u, size)
    return None


def _apply(op: parts.AugmentOp, x: torch.Tensor, drawn: torch.Tensor) -> torch.Tensor:
    """Return the batch after ``op`` with the parameters ``drawn`` [B, columns]."""
    if isinstance(op, parts.Rotation | parts.Affine):
        return ops.resample(x, drawn, op.interpolation == "bilinear")
    if isinstance(op, parts.ColorJitter):
        for i in range(3):
            x = ops.blend(x, drawn[:, 3 * i : 3 * i + 3])
        if op.hue:
            x = ops.shift_hue(x, drawn[:, 9])
            for i in range(3):
                x = ops.blend(x, drawn[:, 10 + 3 * i : 13 + 3 * i])
        return x
    if isinstance(op, parts.Grayscale):
        return ops.gray_where(x, drawn[:, 0])
    return ops.erase(x, drawn)
