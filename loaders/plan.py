"""An epoch as integers: which samples, in what order, cropped where, flipped or not."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fastresnet.draws import Purpose, below, draw, permutation, stream
from fastresnet.loaders.protocol import LoaderSpec, Split


@dataclass(frozen=True, kw_only=True)
class EpochPlan:
    """One rank's epoch, batch after batch.

    Attributes:
        indices: int64 [n], sample indices in the order of use.
        crop_y, crop_x: int64 [n], top left corner of the crop in the padded image, each in [0, 2 * padding].
        flips: bool [n], mirrored left to right after the crop.
        bounds: int64 [steps + 1]; batch ``s`` is rows ``bounds[s]:bounds[s + 1]``.
    """

    indices: NDArray[np.int64]
    crop_y: NDArray[np.int64]
    crop_x: NDArray[np.int64]
    flips: NDArray[np.bool_]
    bounds: NDArray[np.int64]


def num_steps(num_members: int, spec: LoaderSpec) -> int:
    """Return the steps of an epoch over ``num_members`` samples."""
    if spec.drop_last:
        return num_members // spec.batch_size
    return -(-num_members // spec.batch_size)


def plan_epoch(split: Split, spec: LoaderSpec, epoch: int) -> EpochPlan:
    """Return this rank's plan of ``epoch``, a function of the arguments alone (order contract).

    The global order is cut into global batches; of each, a rank takes a contiguous slice. A last incomplete
    batch is cut as evenly as it goes, the lower ranks taking one sample more.
    """
    members = split.members
    order = permutation(stream(spec.seed, Purpose.ORDER, epoch), members) if spec.shuffle else members
    rows, bounds = [], [0]
    for step in range(num_steps(len(members), spec)):
        batch = order[step * spec.batch_size : (step + 1) * spec.batch_size]
        lower, extra = divmod(len(batch), spec.world_size)
        start = spec.rank * lower + min(spec.rank, extra)
        rows.append(batch[start : start + lower + (spec.rank < extra)])
        bounds.append(bounds[-1] + len(rows[-1]))
    indices = np.concatenate(rows) if rows else members[:0]
    if spec.padding:
        crop_y = below(stream(spec.seed, Purpose.CROP_Y, epoch), indices, 2 * spec.padding + 1)
        crop_x = below(stream(spec.seed, Purpose.CROP_X, epoch), indices, 2 * spec.padding + 1)
    else:
        crop_y = crop_x = np.zeros(len(indices), np.int64)
    if spec.flip == "none":
        flips = np.zeros(len(indices), np.bool_)
    elif spec.flip == "random":
        flips = (draw(stream(spec.seed, Purpose.FLIP, epoch), indices) & 1).astype(np.bool_)
    else:
        flips = ((draw(stream(spec.seed, Purpose.FLIP, 0), indices) + epoch) & 1).astype(np.bool_)
    return EpochPlan(
        indices=indices, crop_y=crop_y, crop_x=crop_x, flips=flips, bounds=np.array(bounds, np.int64)
    )
