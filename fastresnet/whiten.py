"""Whitening patterns: filters that the stem begins with, made from patches of the training images.

After Page's "How to train your ResNet" (2019) and Jordan's airbench (2024), which have them in a frozen layer of their
own. Here they are some of the stem's filters, so that a network has the parameters that it has without.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional

from fastresnet.augment import normalisation
from fastresnet.draws import Purpose, permutation, stream
from fastresnet.errors import UserError
from fastresnet.loaders.dataset import Dataset
from fastresnet.loaders.protocol import Split
from fastresnet.recipe import Recipe
from fastresnet.recipe_parts import Whiten

AT_ONCE = 2**22  # values of patches that are laid out together: 32 MiB
ALIKE = 1e-6  # of two entries of a direction, which is the larger is not left to rounding


class Whitening:
    """Makes the patterns of a run.

    Args:
        recipe: its arch decides how large and how many they are, its normalisation how images are seen.
        part: its ``init.whiten``.
        dataset: the run's.
        device: where patches are added up; the result is the same on each.

    Raises:
        UserError: the stem's filters are larger than the images.
    """

    def __init__(self, recipe: Recipe, part: Whiten, dataset: Dataset, device: torch.device) -> None:
        spec = recipe.arch_spec()
        self.part = part
        self.kernel, self.width = spec.stem, spec.stem_width
        self.image_size = dataset.image_size
        self.device = device
        if self.kernel > self.image_size:
            raise UserError(
                f"init.whiten looks at patches of the stem's {self.kernel}x{self.kernel} pixels, and the images have "
                f"{self.image_size}x{self.image_size}; choose an arch with a smaller stem, or leave init.whiten out"
            )
        _, std = normalisation(recipe, dataset.mean, dataset.std)
        self.scale = np.repeat(1 / (255 * np.asarray(std, np.float64)), self.kernel**2)

    def warm_up(self) -> None:
        """Have the device's libraries started: what that takes is no part of the patterns."""
        shape = (2, self.image_size, self.image_size, 3)
        patch_covariance(np.zeros(shape, np.uint8), self.kernel, self.device)

    def filters(self, split: Split, seed: int) -> torch.Tensor:
        """Return the patterns of images of ``split``: float32 [min(6 FF, width), 3, F, F], on the CPU."""
        order = permutation(stream(seed, Purpose.WHITEN, 0), split.members)
        images = split.pixels(np.sort(order[: self.part.num]))
        covariance = patch_covariance(images, self.kernel, self.device) * np.outer(self.scale, self.scale)
        found = patterns(covariance, self.part.eps)[: self.width]
        return torch.from_numpy(found.astype(np.float32)).view(-1, 3, self.kernel, self.kernel)


def patch_covariance(
    images: NDArray[np.uint8], kernel: int, device: torch.device | str
) -> NDArray[np.float64]:
    """Return the covariance of all whole patches of ``images`` [N, S, S, 3], in bytes: [3 FF, 3 FF].

    A patch is laid out as a filter is: channel, row, column. Sums of products of bytes are exact in float64 up to
    10**11 patches, so they do not depend on the device, its threads or the order of adding.
    """
    places, size = (images.shape[1] - kernel + 1) ** 2, 3 * kernel**2
    products = torch.zeros(size, size, dtype=torch.float64, device=device)
    sums = torch.zeros(size, dtype=torch.float64, device=device)
    for some in torch.from_numpy(images).split(max(1, AT_ONCE // (size * places))):
        patches = functional.unfold(some.to(device).permute(0, 3, 1, 2).double(), kernel)
        products += (patches @ patches.mT).sum(0)
        sums += patches.sum((0, 2))
    mean = sums.cpu().numpy() / (len(images) * places)
    return products.cpu().numpy() / (len(images) * places) - np.outer(mean, mean)


def patterns(covariance: NDArray[np.float64], eps: float) -> NDArray[np.float64]:
    """Return the whitening directions of a covariance [n, n], and then their negatives: [2n, n].

    Each is an eigenvector over sqrt(eigenvalue + eps), the greatest eigenvalue first. Of the two signs it has that by
    which its first entry of about the greatest size is positive.
    """
    values, columns = np.linalg.eigh(covariance)
    variances, rows = np.maximum(values[::-1], 0), columns.T[::-1]
    sizes = np.abs(rows)
    leading = np.argmax(sizes >= sizes.max(1, keepdims=True) * (1 - ALIKE), axis=1)
    signs = np.sign(rows[np.arange(len(rows)), leading])
    directions = rows * (signs / np.sqrt(variances + eps))[:, None]
    return np.concatenate([directions, -directions])
