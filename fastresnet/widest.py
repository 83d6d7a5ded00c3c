"""The widest network under a budget of parameters."""

from __future__ import annotations

from collections.abc import Sequence

from fastresnet.arch import MAX_CHANNELS, MAX_STAGES, ArchSpec, whole_number
from fastresnet.errors import UserError
from fastresnet.words import counted


def widest_under(
    budget: int, stages: int, blocks: int | Sequence[int], *, num_classes: int = 10, image_size: int = 32
) -> ArchSpec:
    """Return the widest spec with at most ``budget`` parameters: basic blocks, F=3, K=1, C doubling, global pooling.

    Raises:
        UserError: not even one channel fits, or ``stages`` or ``blocks`` is out of range.
    """
    stages = whole_number("number of stages", stages, 1, MAX_STAGES)
    counts = (blocks,) * stages if isinstance(blocks, int) else tuple(blocks)
    if len(counts) != stages:
        raise UserError(
            f"blocks has {len(counts)} values for {counted(stages, 'stage')}; give 1 value or {stages}"
        )
    template = ArchSpec(blocks=counts, channels=(1,) * stages)
    return widest_like(template, budget, num_classes=num_classes, image_size=image_size)


def widest_like(template: ArchSpec, budget: int, *, num_classes: int = 10, image_size: int = 32) -> ArchSpec:
    """Return ``template`` with the widest C, doubling a stage, that has at most ``budget`` parameters.

    All else is the template's; a stem whose width is its own keeps it.

    Raises:
        UserError: not even one channel fits, or the network does not take images of this size.
    """
    budget = whole_number("budget", budget, 1, 1 << 62)

    def spec(width: int) -> ArchSpec:
        return template.replace(channels=tuple(width << i for i in range(template.num_stages)))

    least = spec(1).num_params(num_classes, image_size)
    if least > budget:
        raise UserError(f"no width fits a budget of {budget:,} parameters: one channel takes {least:,}")
    # The widest known to fit, and one known not to be allowed.
    fits, limit = 1, (MAX_CHANNELS >> (template.num_stages - 1)) + 1
    while limit - fits > 1:
        middle = (fits + limit) // 2
        if spec(middle).num_params(num_classes, image_size) <= budget:
            fits = middle
        else:
            limit = middle
    # A stage 1 that puts out as many channels as a stem of its own width needs no projection: it may take fewer
    # parameters than a narrower one.
    alike, rest = divmod(template.stem_channels or 0, template.expansion)
    if not rest and fits < alike <= MAX_CHANNELS >> (template.num_stages - 1):
        fits = alike if spec(alike).num_params(num_classes, image_size) <= budget else fits
    return spec(fits)
