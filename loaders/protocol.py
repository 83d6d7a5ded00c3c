"""What every loader backend takes and gives: Split, LoaderSpec, Batch, Loader."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple, Protocol, runtime_checkable

import numpy as np
import torch
from numpy.typing import NDArray

from fastresnet.errors import UserError

PaddingMode = Literal["zero", "reflect"]
Flip = Literal["none", "random", "alternating"]


class Batch(NamedTuple):
    """One rank's share of one step, on the run's device, cropped and flipped.

    Fields:
        images: uint8 [B, 3, H, W], channels-last in memory.
        labels: int64 [B].
        indices: int64 [B], each sample's place in its data set.

    A backend may reuse the storage for a later batch: it is valid until the iterator is advanced.
    """

    images: torch.Tensor
    labels: torch.Tensor
    indices: torch.Tensor


class EncodedImages(Protocol):
    """JPEG or PNG files by sample index."""

    @property
    def all_of_size(self) -> bool:
        """Every image is a square of the data set's size; otherwise scale to it and crop the centre."""

    def read(self, index: int) -> NDArray[np.uint8]:
        """Return the bytes of one file: uint8 [n]."""

    def decode(self, index: int) -> NDArray[np.uint8]:
        """Return one image as a pack would hold it: uint8 [S, S, 3]. Raises a UserError naming a broken file."""


@dataclass(frozen=True, kw_only=True)
class Split:
    """The samples a loader draws from.

    Attributes:
        images: uint8 [N, H, W, 3], usually a read-only memory map.
        labels: int64 [N].
        members: int64 [M], ascending: the sample indices that belong to this split (M <= N).
        beton: the user's own .beton file of just these images and labels, if that is where they come from.
        encoded: the JPEG or PNG files of these images, if they are not packed; ``images`` then has a shape and
            no pixels, and only a backend that decodes can open the split.
    """

    images: NDArray[np.uint8]
    labels: NDArray[np.int64]
    members: NDArray[np.int64]
    beton: Path | None = None
    encoded: EncodedImages | None = None

    def pixels(self, indices: NDArray[np.int64]) -> NDArray[np.uint8]:
        """Return the images of ``indices`` [n]: uint8 [n, H, W, 3], in their order."""
        if self.encoded is not None:
            return np.stack([self.encoded.decode(index) for index in indices.tolist()])
        return self.images[indices]


@dataclass(frozen=True, kw_only=True)
class LoaderSpec:
    """What a loader is to yield; nothing in it depends on the backend.

    Attributes:
        batch_size: samples a step over all ranks.
        seed: the run's seed.
        shuffle: a new order each epoch, else ascending index.
        drop_last: leave out the last incomplete batch.
        padding: pixels added on each side before the random crop; 0 for none.
        padding_mode: what the padding holds.
        flip: ``random`` draws anew each epoch, ``alternating`` draws once and flips every other epoch
            (Jordan 2024, airbench).
        rank, world_size: which contiguous slice of each global batch this process takes.
    """

    batch_size: int
    seed: int = 0
    shuffle: bool = True
    drop_last: bool = False
    padding: int = 0
    padding_mode: PaddingMode = "reflect"
    flip: Flip = "none"
    rank: int = 0
    world_size: int = 1

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise UserError(f"batch size is {self.batch_size}; it must be at least 1")
        if self.batch_size % self.world_size:
            raise UserError(
                f"batch size {self.batch_size} does not divide over {self.world_size} processes; "
                f"choose a multiple of {self.world_size}"
            )


@runtime_checkable
class Loader(Protocol):
    """One split, one epoch at a time, in the order contract's order."""

    @property
    def num_samples(self) -> int:
        """Samples an epoch yields over all ranks."""

    def __len__(self) -> int:
        """Steps in a whole epoch."""

    def set_epoch(self, epoch: int, start_step: int = 0) -> None:
        """Choose the epoch, and the step within it, that the next iteration starts from."""

    def __iter__(self) -> Iterator[Batch]:
        """Yield the epoch's batches from the start step on."""

    def close(self) -> None:
        """Free threads, processes, memory and file handles; calling it again does nothing."""
