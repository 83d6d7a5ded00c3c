"""The order contract's hash in Triton: the same integers as NumPy's, so that a kernel may make its own draws."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from kernel_cases import DEVICE
from optional_parts import need

need("triton")

import triton  # noqa: E402
import triton.language as tl  # noqa: E402

from fastresnet.draws import GOLDEN, MIX1, MIX2, Purpose, draw, stream  # noqa: E402

GOLDEN_TL, MIX1_TL, MIX2_TL = (tl.constexpr(constant) for constant in (GOLDEN, MIX1, MIX2))


@triton.jit
def draw_kernel(index_ptr, draws_ptr, key_low, key_high, count, BLOCK: tl.constexpr):
    """Store the draws at ``index``; the key comes in two halves, since a kernel's integers are signed."""
    offsets = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    index = tl.load(index_ptr + offsets, mask=offsets < count).to(tl.uint64)
    key = (key_high.to(tl.uint64) << 32) | key_low.to(tl.uint64)
    z = key + (index + 1) * tl.full((), GOLDEN_TL, tl.uint64)
    z = (z ^ (z >> 30)) * tl.full((), MIX1_TL, tl.uint64)
    z = (z ^ (z >> 27)) * tl.full((), MIX2_TL, tl.uint64)
    tl.store(draws_ptr + offsets, ((z ^ (z >> 31)) >> 1).to(tl.int64), mask=offsets < count)


@pytest.mark.filterwarnings("ignore:overflow encountered:RuntimeWarning")  # NumPy's, of the interpreter
@pytest.mark.parametrize(
    ("seed", "purpose", "time"), [(0, Purpose.ORDER, 0), (2**62 + 11, Purpose.SHAPES, 987_654)]
)
def test_the_same_draws(seed: int, purpose: Purpose, time: int) -> None:
    key = stream(seed, purpose, time)
    index = np.concatenate([np.arange(300), np.array([49_999, 2**31, 2**40 + 3, 2**63 - 2])]).astype(np.int64)
    index_there = torch.from_numpy(index).to(DEVICE)
    draws = torch.full_like(index_there, -1)
    draw_kernel[(triton.cdiv(len(index), 128),)](
        index_there, draws, key & 0xFFFFFFFF, key >> 32, len(index), BLOCK=128
    )
    assert np.array_equal(draws.cpu().numpy(), draw(key, index))
