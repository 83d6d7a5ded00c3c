"""Statistics of a batch that is split over processes: every rank normalises by those of the whole."""

from __future__ import annotations

import torch
from torch import distributed


def world_group() -> str | None:
    """Return the name of the group of all ranks, None for a process on its own."""
    if not (distributed.is_available() and distributed.is_initialized()) or distributed.get_world_size() == 1:
        return None
    world = distributed.group.WORLD
    assert world is not None
    return world.group_name


def combine_ranks(
    mean: torch.Tensor, var: torch.Tensor, count: int, group: str
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return (mean, biased variance, count [1]) over all ranks of ``group``, the same bits on each.

    Args:
        mean, var: [C], this rank's; anything finite if it has no samples.
        count: values a channel has on this rank, 0 included.
    """
    # one exchange of 2C + 1 numbers; added up in rank order here, so that no rank rounds differently
    packed = torch.cat([mean, var, torch.full_like(mean[:1], count)])
    num_ranks = distributed.get_world_size()
    sent = torch.ops._c10d_functional.all_gather_into_tensor(packed, num_ranks, group)
    gathered = torch.ops._c10d_functional.wait_tensor(sent).view(num_ranks, len(packed))
    means, variances, counts = gathered.split([len(mean), len(var), 1], dim=1)
    total = counts.sum(0)
    mean = (means * counts).sum(0) / total
    var = ((variances + (means - mean).square()) * counts).sum(0) / total
    return mean, var, total
