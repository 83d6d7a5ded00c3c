"""Hypothesis strategies of architectures."""

from __future__ import annotations

from hypothesis import strategies as st

from fastresnet.arch import ArchSpec, Dropout


@st.composite
def specs(draw: st.DrawFn, max_channels: int = 9, max_blocks: int = 3) -> ArchSpec:
    """Any network that takes 32x32 images, small enough to build."""
    stages = draw(st.integers(1, 4))
    odd = st.sampled_from([1, 3, 5])

    def each(values: st.SearchStrategy[int]) -> tuple[int, ...]:
        if draw(st.booleans()):
            return (draw(values),) * stages
        return tuple(draw(st.lists(values, min_size=stages, max_size=stages)))

    width = draw(st.integers(1, max_channels))
    doubling = tuple(width << i for i in range(stages))
    rate = st.sampled_from([0.0, 0.1, 0.25, 1e-5, 1 / 3])
    down = draw(st.sampled_from(["stride", "maxpool"]))
    blocks = each(st.integers(0 if down == "maxpool" else 1, max_blocks))
    if not any(blocks):
        blocks = (*blocks[:-1], 1)
    block = draw(st.sampled_from(["basic", "bottleneck", "plain"]))
    return ArchSpec(
        blocks=blocks,
        channels=doubling if draw(st.booleans()) else each(st.integers(1, max_channels)),
        kernels=each(odd),
        shortcut_kernels=() if block == "plain" else each(odd),
        pool=draw(st.none() | st.integers(1, 32 >> (stages - 1))),
        stem=draw(odd),
        stem_channels=draw(st.none() | st.integers(1, max_channels)) if blocks[0] else None,
        block=block,
        activation=draw(st.sampled_from(["relu", "leaky_relu", "gelu", "silu"])),
        down=down,
        head_pool=draw(st.sampled_from(["average", "max"])),
        dropout=Dropout(head=draw(rate), block=draw(rate), stage=draw(rate)),
    )
