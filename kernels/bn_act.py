"""Triton kernels of the forward pass: batch statistics, then normalise, add and activate.

The tensors are channels-last, seen as rows by channels and cut as :mod:`fastresnet.kernels.geometry` says.
Arithmetic is float32 whatever the tensors hold. Statistics are Welford's (1962) in every thread, combined as
by Chan, Golub and LeVeque (1979): means first, then the squares about the common mean. Nothing is added
atomically, so a launch's bits depend on nothing but its inputs and its grid.
"""

from __future__ import annotations

import triton
import triton.language as tl

from fastresnet.kernels import fusion

LEAKY_SLOPE = tl.constexpr(fusion.LEAKY_SLOPE)
SQRT_HALF = tl.constexpr(0.7071067811865476)
INV_SQRT_2PI = tl.constexpr(0.3989422804014327)


@triton.jit
def activate(z, ACT: tl.constexpr):
    """Return the activation of ``z``; NaN stays NaN."""
    if ACT == "relu":
        z = tl.where(z <= 0, 0.0, z)
    elif ACT == "leaky_relu":
        z = tl.where(z > 0, z, z * LEAKY_SLOPE)
    elif ACT == "silu":
        z = z / (1 + tl.exp(-z))
    elif ACT == "gelu":
        z = 0.5 * z * (1 + tl.erf(z * SQRT_HALF))
    return z


@triton.jit
def activation_gradient(dy, z, ACT: tl.constexpr):
    """Return ``dy`` times the activation's derivative at ``z``."""
    if ACT == "relu":
        dy = tl.where(z <= 0, 0.0, dy)
    elif ACT == "leaky_relu":
        dy = tl.where(z > 0, dy, dy * LEAKY_SLOPE)
    elif ACT == "silu":
        s = 1 / (1 + tl.exp(-z))
        dy = dy * s * (1 + z * (1 - s))
    elif ACT == "gelu":
        dy = dy * (0.5 * (1 + tl.erf(z * SQRT_HALF)) + z * tl.exp(-0.5 * z * z) * INV_SQRT_2PI)
    return dy


@triton.jit
def store_bits(
    ptr, z, rows, first_column, num_rows, row_width, BLOCK_ROWS: tl.constexpr, BLOCK_COLUMNS: tl.constexpr
):
    """Store a bit an element, set unless ``z`` <= 0 (so NaN sets it); 8 neighbouring columns make a byte."""
    bit = tl.reshape(tl.where(z <= 0, 0, 1), (BLOCK_ROWS, BLOCK_COLUMNS // 8, 8))
    byte = tl.sum(bit << tl.arange(0, 8)[None, None, :], axis=2).to(tl.uint8)
    columns = first_column // 8 + tl.arange(0, BLOCK_COLUMNS // 8)
    row_bytes = (row_width + 7) // 8
    inside = (rows < num_rows)[:, None] & (columns < row_bytes)[None, :]
    tl.store(ptr + rows[:, None] * row_bytes + columns[None, :], byte, mask=inside)


@triton.jit
def partial_statistics(
    x_ptr,
    mean_ptr,
    m2_ptr,
    num_rows,
    row_width,
    chunk_rows,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_COLUMNS: tl.constexpr,
    STAGES: tl.constexpr,
):
    """Store each column's mean and sum of squared deviations over one chunk: [chunks, row_width] each."""
    chunk = tl.program_id(1)
    first_row = chunk.to(tl.int64) * chunk_rows
    rows_here = tl.minimum(num_rows - first_row, chunk_rows).to(tl.int32)
    x_ptr += first_row * row_width
    lanes = tl.arange(0, BLOCK_ROWS)
    columns = tl.program_id(0) * BLOCK_COLUMNS + tl.arange(0, BLOCK_COLUMNS)
    mean = tl.zeros((BLOCK_ROWS, BLOCK_COLUMNS), tl.float32)
    m2 = tl.zeros((BLOCK_ROWS, BLOCK_COLUMNS), tl.float32)
    seen = 0.0
    for start in tl.range(0, rows_here, BLOCK_ROWS, num_stages=STAGES):
        rows = start + lanes
        inside = (rows < rows_here)[:, None] & (columns < row_width)[None, :]
        x = tl.load(x_ptr + rows[:, None] * row_width + columns[None, :], mask=inside, other=0.0).to(
            tl.float32
        )
        seen += 1.0
        delta = tl.where(inside, x - mean, 0.0)
        mean += delta * (1.0 / seen)
        m2 += delta * (x - mean)
    count = ((rows_here - lanes + BLOCK_ROWS - 1) // BLOCK_ROWS).to(tl.float32)[:, None]
    chunk_mean = tl.sum(mean * count, axis=0) / rows_here
    deviation = mean - chunk_mean[None, :]
    rounding = tl.sum(deviation * count, axis=0) / rows_here  # of a large mean
    chunk_mean += rounding
    deviation -= rounding[None, :]
    chunk_m2 = tl.sum(m2 + count * deviation * deviation, axis=0)
    out = chunk * row_width + columns
    tl.store(mean_ptr + out, chunk_mean, mask=columns < row_width)
    tl.store(m2_ptr + out, chunk_m2, mask=columns < row_width)


@triton.jit
def combine_statistics(
    part_mean_ptr,
    part_m2_ptr,
    mean_ptr,
    var_ptr,
    num_partials,
    num_channels,
    num_rows,
    chunk_rows,
    fold,
    BLOCK_PARTIALS: tl.constexpr,
    BLOCK_CHANNELS: tl.constexpr,
):
    """Combine [num_partials, C] partial statistics into each channel's mean and biased variance.

    Partial ``p`` is of chunk ``p // fold`` of the folded view's ``num_rows``.
    """
    channels = tl.program_id(0) * BLOCK_CHANNELS + tl.arange(0, BLOCK_CHANNELS)
    live = channels < num_channels
    lanes = tl.arange(0, BLOCK_PARTIALS)
    total = 1.0 * num_rows * fold
    # means are added up as distances from the first, so that a large one costs no digits
    origin = tl.load(part_mean_ptr + channels, mask=live, other=0.0)
    distance = tl.zeros((BLOCK_PARTIALS, BLOCK_CHANNELS), tl.float32)
    for start in range(0, num_partials, BLOCK_PARTIALS):
        partials = start + lanes
        inside = (partials < num_partials)[:, None] & live[None, :]
        count = tl.minimum(num_rows - partials // fold * chunk_rows, chunk_rows).to(tl.float32)
        offsets = partials[:, None] * num_channels + channels[None, :]
        mean = tl.load(part_mean_ptr + offsets, mask=inside, other=0.0)
        distance += tl.where(inside, (mean - origin[None, :]) * count[:, None], 0.0)
    mean = origin + tl.sum(distance, axis=0) / total
    m2 = tl.zeros((BLOCK_PARTIALS, BLOCK_CHANNELS), tl.float32)
    for start in range(0, num_partials, BLOCK_PARTIALS):
        partials = start + lanes
        inside = (partials < num_partials)[:, None] & live[None, :]
        count = tl.minimum(num_rows - partials // fold * chunk_rows, chunk_rows).to(tl.float32)
        offsets = partials[:, None] * num_channels + channels[None, :]
        deviation = tl.load(part_mean_ptr + offsets, mask=inside, other=0.0) - mean[None, :]
        here = tl.load(part_m2_ptr + offsets, mask=inside, other=0.0) + count[:, None] * deviation * deviation
        m2 += tl.where(inside, here, 0.0)
    tl.store(mean_ptr + channels, mean, mask=live)
    tl.store(var_ptr + channels, tl.sum(m2, axis=0) / total, mask=live)


@triton.jit
def load_rstd(var_ptr, eps, channels, inside):
    """Return float32 1 / std of ``channels``, as a row."""
    return tl.rsqrt(tl.load(var_ptr + channels, mask=inside, other=1.0) + eps)[None, :]


@triton.jit
def load_norm(weight_ptr, bias_ptr, mean_ptr, var_ptr, eps, channels, inside):
    """Return float32 (mean, weight / std, bias) of ``channels``, as rows."""
    mean = tl.load(mean_ptr + channels, mask=inside, other=0.0)
    weight = tl.load(weight_ptr + channels, mask=inside, other=0.0).to(tl.float32)
    bias = tl.load(bias_ptr + channels, mask=inside, other=0.0).to(tl.float32)
    return mean[None, :], weight[None, :] * load_rstd(var_ptr, eps, channels, inside), bias[None, :]


@triton.jit
def apply(
    x_ptr,
    weight_ptr,
    bias_ptr,
    mean_ptr,
    var_ptr,
    eps,
    residual_ptr,
    residual_weight_ptr,
    residual_bias_ptr,
    residual_mean_ptr,
    residual_var_ptr,
    residual_eps,
    y_ptr,
    bits_ptr,
    num_rows,
    row_width,
    num_channels,
    chunk_rows,
    ACT: tl.constexpr,
    ADDED: tl.constexpr,
    BITS: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_COLUMNS: tl.constexpr,
    STAGES: tl.constexpr,
):
    """Store ``act(norm(x))``, ``act(norm(x) + residual)`` or ``act(norm(x) + norm(residual))``.

    ADDED is "none", "plain" or "norm"; with BITS the sign of what was activated is stored too.
    """
    first_row = tl.program_id(1).to(tl.int64) * chunk_rows
    rows_here = tl.minimum(num_rows - first_row, chunk_rows).to(tl.int32)
    x_ptr += first_row * row_width
    y_ptr += first_row * row_width
    first_column = tl.program_id(0) * BLOCK_COLUMNS
    columns = first_column + tl.arange(0, BLOCK_COLUMNS)
    channels = columns % num_channels
    live = columns < row_width
    mean, scale, bias = load_norm(weight_ptr, bias_ptr, mean_ptr, var_ptr, eps, channels, live)
    if ADDED != "none":
        residual_ptr += first_row * row_width
    if ADDED == "norm":
        residual_mean, residual_scale, residual_bias = load_norm(
            residual_weight_ptr,
            residual_bias_ptr,
            residual_mean_ptr,
            residual_var_ptr,
            residual_eps,
            channels,
            live,
        )
        bias += residual_bias
    if BITS:
        bits_ptr += first_row * ((row_width + 7) // 8)
    for start in tl.range(0, rows_here, BLOCK_ROWS, num_stages=STAGES):
        rows = start + tl.arange(0, BLOCK_ROWS)
        inside = (rows < rows_here)[:, None] & live[None, :]
        offsets = rows[:, None] * row_width + columns[None, :]
        z = (tl.load(x_ptr + offsets, mask=inside, other=0.0).to(tl.float32) - mean) * scale + bias
        if ADDED == "plain":
            z += tl.load(residual_ptr + offsets, mask=inside, other=0.0).to(tl.float32)
        if ADDED == "norm":
            residual = tl.load(residual_ptr + offsets, mask=inside, other=0.0).to(tl.float32)
            z += (residual - residual_mean) * residual_scale
        tl.store(y_ptr + offsets, activate(z, ACT), mask=inside)
        if BITS:
            store_bits(
                bits_ptr,
                tl.where(inside, z, 0.0),
                rows,
                first_column,
                rows_here,
                row_width,
                BLOCK_ROWS,
                BLOCK_COLUMNS,
            )


@triton.jit
def forward_one_pass(
    x_ptr,
    weight_ptr,
    bias_ptr,
    residual_ptr,
    y_ptr,
    mean_ptr,
    var_ptr,
    bits_ptr,
    eps,
    num_rows,
    num_channels,
    ACT: tl.constexpr,
    ADDED: tl.constexpr,
    BITS: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_COLUMNS: tl.constexpr,
):
    """Do the whole forward pass of a slab of channels that stays in registers: ``x`` is read once."""
    first_column = tl.program_id(0) * BLOCK_COLUMNS
    columns = first_column + tl.arange(0, BLOCK_COLUMNS)
    live = columns < num_channels
    rows = tl.arange(0, BLOCK_ROWS)
    inside = (rows < num_rows)[:, None] & live[None, :]
    offsets = rows[:, None] * num_channels + columns[None, :]
    x = tl.load(x_ptr + offsets, mask=inside, other=0.0).to(tl.float32)
    mean = tl.sum(x, axis=0) / num_rows
    centred = tl.where(inside, x - mean[None, :], 0.0)
    var = tl.sum(centred * centred, axis=0) / num_rows
    tl.store(mean_ptr + columns, mean, mask=live)
    tl.store(var_ptr + columns, var, mask=live)
    weight = tl.load(weight_ptr + columns, mask=live, other=0.0).to(tl.float32)
    bias = tl.load(bias_ptr + columns, mask=live, other=0.0).to(tl.float32)
    z = centred * (weight * tl.rsqrt(var + eps))[None, :] + bias[None, :]
    if ADDED == "plain":
        z += tl.load(residual_ptr + offsets, mask=inside, other=0.0).to(tl.float32)
    tl.store(y_ptr + offsets, activate(z, ACT), mask=inside)
    if BITS:
        store_bits(
            bits_ptr,
            tl.where(inside, z, 0.0),
            rows,
            first_column,
            num_rows,
            num_channels,
            BLOCK_ROWS,
            BLOCK_COLUMNS,
        )
