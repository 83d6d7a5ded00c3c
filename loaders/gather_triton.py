"""The resident loader's kernel on a GPU: gather, padded crop and flip in one pass, a byte a lane."""

from __future__ import annotations

from contextlib import nullcontext

import torch
import triton
import triton.language as tl

BLOCK = 1024  # bytes a program writes


@triton.jit
def _gather(out, images, table, stride, height, width, padding, reflect: tl.constexpr, BLOCK: tl.constexpr):
    image = tl.program_id(0)
    offset = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    size = height * width * 3
    place = tl.load(table + image)
    flip = tl.load(table + 3 * stride + image)
    pixel = offset // 3
    x = pixel % width
    x = tl.where(flip != 0, width - 1 - x, x) + tl.load(table + 2 * stride + image) - padding
    y = pixel // width + tl.load(table + stride + image) - padding
    valid = offset < size
    if reflect:
        x = (width - 1) - tl.abs((width - 1) - tl.abs(x))
        y = (height - 1) - tl.abs((height - 1) - tl.abs(y))
        inside = valid
    else:
        inside = valid & (x >= 0) & (x < width) & (y >= 0) & (y < height)
    value = tl.load(images + place * size + (y * width + x) * 3 + offset % 3, mask=inside, other=0)
    tl.store(out + image.to(tl.int64) * size + offset, value, mask=valid)


def gather_triton(
    out: torch.Tensor, images: torch.Tensor, table: torch.Tensor, padding: int, reflect: bool
) -> None:
    """See :func:`fastresnet.loaders.resident_backend.gather_tensor`; ``out`` and ``images`` are contiguous."""
    batch, height, width, _ = out.shape
    if batch:
        grid = (batch, triton.cdiv(height * width * 3, BLOCK))
        with torch.cuda.device(out.device) if out.is_cuda else nullcontext():
            _gather[grid](out, images, table, table.stride(0), height, width, padding, reflect, BLOCK)
