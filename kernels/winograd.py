"""3x3 convolutions of stride 1 on a CPU by minimal filtering (Winograd), forward and backward.

PyTorch's own convolutions on a CPU, oneDNN's, multiply every weight with every pixel: 144 products for a tile of 4x4
outputs, where these take 36, and 324 for one of 6x6, where these take 64: a map has the tiles that multiply it least.
The arithmetic is float32 whatever the images are, and its rounding error some ten times a direct convolution's, about
1e-5 of the greatest output. (At stride 2 the same idea saves 1.8 times the products, which its transforms eat up.)

The work is done on torch's own threads. Bits depend on the inputs and the number of threads alone.
"""

from __future__ import annotations

import math
from typing import Any

import torch

from fastresnet.kernels.team import PIXEL_BYTES, channels_last, run_team, team_obstacle
from fastresnet.kernels.winograd_math import COLUMNS, TAPS, Filtering, down_across, filtering_of, tile_of

MIN_TILES = 96  # of either size; below, transforming the filters takes as long as is saved by the small ones


def winograd_obstacle(device_type: str) -> str | None:
    """Return why these convolutions cannot be had on this machine's ``device_type``, or None where they can."""
    if device_type != "cpu":
        return "Winograd's are for CPUs"
    return team_obstacle()


def takes(x: torch.Tensor, weight: torch.Tensor) -> bool:
    """Return whether ``x`` [B, C, H, W] can be convolved so with ``weight`` [O, C, 3, 3], padded by 1."""
    outputs, inputs, *sides = weight.shape
    return (
        x.device.type == "cpu"
        and x.dim() == 4
        and x.shape[1] == inputs  # else PyTorch's own says what is wrong
        and x.dtype in PIXEL_BYTES
        and weight.dtype == torch.float32
        and sides == [TAPS, TAPS]
        and inputs % COLUMNS == outputs % COLUMNS == 0
        and _num_tiles(x, tile_of(*x.shape[2:])) >= MIN_TILES
    )


@torch.library.custom_op("fastresnet::winograd_conv", mutates_args=(), device_types="cpu")
def winograd_conv(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """Return [B, O, H, W] of ``x``'s dtype, channels-last; see :func:`takes`."""
    outputs, inputs = weight.shape[:2]
    _check(x, inputs, weight)
    taps = weight.permute(2, 3, 1, 0).contiguous()
    return _convolved(x, outputs, {"X": taps.data_ptr(), "CHANNEL": outputs, "TAP": inputs * outputs})


@torch.library.custom_op("fastresnet::winograd_conv_input", mutates_args=(), device_types="cpu")
def winograd_conv_input(dy: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """Return the gradient of :func:`winograd_conv`'s ``x``: the convolution with the filters turned round."""
    _check(dy, weight.shape[0], weight)
    inputs, filters = weight.shape[1], channels_last(weight)
    last = filters.data_ptr() + filters.element_size() * inputs * (TAPS**2 - 1)
    return _convolved(dy, inputs, {"X": last, "CHANNEL": inputs * TAPS**2, "TAP": -inputs})


@torch.library.custom_op("fastresnet::winograd_conv_weight", mutates_args=(), device_types="cpu")
def winograd_conv_weight(dy: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """Return the gradient of :func:`winograd_conv`'s ``weight``, float32 [O, C, 3, 3] channels-last."""
    from fastresnet.kernels.winograd_code import GRADIENT_TILES, WORDS, gradient_code, host_target, taps_code

    inputs, outputs = x.shape[1], dy.shape[1]
    _check(x, inputs)
    _check(dy, outputs)
    assert x.dtype == dy.dtype and x.shape[0] == dy.shape[0] and x.shape[2:] == dy.shape[2:]
    target, filtering = host_target(), filtering_of(*dy.shape[2:])
    x, dy = channels_last(x), channels_last(dy)
    parts = min(torch.get_num_threads(), -(-_num_tiles(dy, filtering.tile) // GRADIENT_TILES))
    gradient = torch.zeros(parts, filtering.points**2, outputs, inputs)
    code = gradient_code(PIXEL_BYTES[x.dtype], target, filtering)
    _over_tiles(code, filtering, x, dy, gradient, GRADIENT_TILES, parts)
    taps = gradient.new_empty(outputs, TAPS, TAPS, inputs).permute(0, 3, 1, 2)
    run_team(
        taps_code(target, filtering),
        WORDS,
        {
            "FILTERS": gradient.data_ptr(),
            "Y": taps.data_ptr(),
            "C": inputs,
            "O": outputs,
            "NUM_BLOCKS": outputs,
            "PARTS": parts,
        },
    )
    return taps


@winograd_conv.register_fake
def _(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    return _empty(x, weight.shape[0], x.dtype, *x.shape[2:])


@winograd_conv_input.register_fake
def _(dy: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    return _empty(dy, weight.shape[1], dy.dtype, *dy.shape[2:])


@winograd_conv_weight.register_fake
def _(dy: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    return dy.new_empty((dy.shape[1], TAPS, TAPS, x.shape[1]), dtype=torch.float32).permute(0, 3, 1, 2)


def _save(ctx: Any, inputs: tuple[torch.Tensor, torch.Tensor], output: torch.Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _backward(ctx: Any, dy: torch.Tensor) -> tuple[torch.Tensor | None, torch.Tensor | None]:
    x, weight = ctx.saved_tensors
    dx = winograd_conv_input(dy, weight) if ctx.needs_input_grad[0] else None
    return dx, winograd_conv_weight(dy, x) if ctx.needs_input_grad[1] else None


torch.library.register_autograd("fastresnet::winograd_conv", _backward, setup_context=_save)


def _check(images: torch.Tensor, channels: int, weight: torch.Tensor | None = None) -> None:
    """Assert what machine code takes for granted, which reads and writes by addresses alone."""
    assert images.dim() == 4 and images.device.type == "cpu" and images.dtype in PIXEL_BYTES
    assert images.shape[1] == channels and channels % COLUMNS == 0
    if weight is not None:
        assert weight.device.type == "cpu" and weight.dtype == torch.float32
        assert (
            weight.shape[2:] == (TAPS, TAPS) and weight.shape[0] % COLUMNS == weight.shape[1] % COLUMNS == 0
        )


def _empty(like: torch.Tensor, channels: int, dtype: torch.dtype, height: int, width: int) -> torch.Tensor:
    """Return an uninitialised channels-last [B, channels, height, width]."""
    return like.new_empty((len(like), height, width, channels), dtype=dtype).permute(0, 3, 1, 2)


def _convolved(x: torch.Tensor, outputs: int, filters: dict[str, int]) -> torch.Tensor:
    """Return the convolution of ``x`` with ``filters``, the words that say where they lie."""
    from fastresnet.kernels.winograd_code import BLOCK_TILES, WORDS, filters_code, host_target, pass_code

    target, filtering, inputs = host_target(), filtering_of(*x.shape[2:]), x.shape[1]
    x = channels_last(x)
    transformed = torch.empty(filtering.points**2 * inputs * outputs)
    sizes = {"C": inputs, "O": outputs, "NUM_BLOCKS": inputs}
    run_team(filters_code(target, filtering), WORDS, filters | sizes | {"FILTERS": transformed.data_ptr()})
    y = _empty(x, outputs, x.dtype, *x.shape[2:])
    code = pass_code(PIXEL_BYTES[x.dtype], target, filtering)
    _over_tiles(code, filtering, x, y, transformed, BLOCK_TILES)
    return y


def _num_tiles(y: torch.Tensor, tile: int) -> int:
    """Return how many tiles a batch of maps has."""
    return len(y) * math.prod(down_across(tile, *y.shape[2:]))


def _over_tiles(
    code: int,
    filtering: Filtering,
    x: torch.Tensor,
    y: torch.Tensor,
    filters: torch.Tensor,
    block_tiles: int,
    parts: int = 0,
) -> None:
    """Run code over the tiles of ``y``, ``block_tiles`` at a time; ``parts``: those with sums of their own."""
    from fastresnet.kernels.winograd_code import PLANE_GAP, WORDS

    outputs, height, width = y.shape[1:]
    channels, num_tiles = x.shape[1] + outputs, _num_tiles(y, filtering.tile)
    down, across = down_across(filtering.tile, height, width)
    num_values = filtering.points**2 * (block_tiles * channels + 2 * PLANE_GAP)
    planes = torch.empty(torch.get_num_threads() * num_values)
    nothing, nowhere = torch.zeros(channels), torch.empty(channels)
    run_team(
        code,
        WORDS,
        {
            "X": x.data_ptr(),
            "C": x.shape[1],
            "Y": y.data_ptr(),
            "O": outputs,
            "HEIGHT": height,
            "WIDTH": width,
        }
        | {"NUM_TILES": num_tiles, "DOWN": down, "ACROSS": across}
        | {"NUM_BLOCKS": -(-num_tiles // block_tiles), "PARTS": parts}
        | {"FILTERS": filters.data_ptr(), "PLANES": planes.data_ptr(), "PLANE_BYTES": 4 * num_values}
        | {"NOTHING": nothing.data_ptr(), "NOWHERE": nowhere.data_ptr()},
    )
