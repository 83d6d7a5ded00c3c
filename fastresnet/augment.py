"""Batched augmentation on the device: everything a recipe does to images after crop and flip."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from fastresnet import recipe_augment as parts


class Augment(nn.Module):
    """Turns a loader's uint8 batch into the network's input."""

    def __init__(
        self, part: parts.Augment, mean: Sequence[float], std: Sequence[float], image_size: int
    ) -> None:
        super().__init__()
        scale = 1 / (255 * np.asarray(std, np.float64))
        shift = -np.asarray(mean, np.float64) / np.asarray(std, np.float64)
        self.register_buffer(
            "scale", torch.tensor(scale, dtype=torch.float32).view(1, 3, 1, 1), persistent=False
        )
        self.register_buffer(
            "shift", torch.tensor(shift, dtype=torch.float32).view(1, 3, 1, 1), persistent=False
        )

    def begin_epoch(
        self, seed: int, epoch: int, members: NDArray[np.int64], device: torch.device | str
    ) -> None:
        """Draw the parameters of every member for ``epoch`` and send them to ``device``."""

    def forward(
        self, images: torch.Tensor, indices: torch.Tensor, dtype: torch.dtype, train: bool
    ) -> torch.Tensor:
        """Return images [B, 3, H, W] of ``dtype``, channels-last, normalised; augmented where ``train``.

        ``images`` is uint8 [B, 3, H, W], ``indices`` int64 [B].
        """
        x = torch.addcmul(self.shift, images.float(), self.scale)
        return x.to(dtype).contiguous(memory_format=torch.channels_last)
