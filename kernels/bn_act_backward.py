"""Triton kernels of the backward pass: the two sums a channel needs, then the gradients of the inputs.

With ``g`` the gradient of what was activated, ``xhat`` the normalised input and means over the N*H*W rows,
``dx = weight / std * (g - mean(g) - xhat * mean(g * xhat))``, ``dbias = sum(g)``, ``dweight = sum(g * xhat)``
(Ioffe and Szegedy, 2015). ``g`` is recomputed from the inputs; under a plain residual add it is the
residual's gradient too, so the first pass stores it and the second reads it in place of ``dy``.
"""

from __future__ import annotations

import triton
import triton.language as tl

from fastresnet.kernels.bn_act import LEAKY_SLOPE, activation_gradient, load_norm, load_rstd


@triton.jit
def load_bits(
    ptr, rows, first_column, num_rows, row_width, BLOCK_ROWS: tl.constexpr, BLOCK_COLUMNS: tl.constexpr
):
    """Return a block of what ``store_bits`` stored, as booleans."""
    columns = first_column // 8 + tl.arange(0, BLOCK_COLUMNS // 8)
    row_bytes = (row_width + 7) // 8
    inside = (rows < num_rows)[:, None] & (columns < row_bytes)[None, :]
    byte = tl.load(ptr + rows[:, None] * row_bytes + columns[None, :], mask=inside, other=0).to(tl.int32)
    bit = (byte[:, :, None] >> tl.arange(0, 8)[None, None, :]) & 1
    return tl.reshape(bit, (BLOCK_ROWS, BLOCK_COLUMNS)) != 0


@triton.jit
def gradient_from_bits(dy, positive, ACT: tl.constexpr):
    """Return ``dy`` times the derivative of an activation that is linear on either side of zero."""
    if ACT == "relu":
        dy = tl.where(positive, dy, 0.0)
    elif ACT == "leaky_relu":
        dy = tl.where(positive, dy, dy * LEAKY_SLOPE)
    return dy


@triton.jit
def partial_sums(
    dy_ptr,
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
    bits_ptr,
    g_ptr,
    sums_ptr,
    num_rows,
    row_width,
    num_channels,
    chunk_rows,
    sums_stride,
    ACT: tl.constexpr,
    ADDED: tl.constexpr,
    BITS: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_COLUMNS: tl.constexpr,
    STAGES: tl.constexpr,
):
    """Store each column's sums over one chunk: of g, of g * xhat, and of g * xhat of a "norm" residual.

    With a "plain" residual ``g`` itself is stored.
    """
    chunk = tl.program_id(1)
    first_row = chunk.to(tl.int64) * chunk_rows
    rows_here = tl.minimum(num_rows - first_row, chunk_rows).to(tl.int32)
    dy_ptr += first_row * row_width
    x_ptr += first_row * row_width
    first_column = tl.program_id(0) * BLOCK_COLUMNS
    columns = first_column + tl.arange(0, BLOCK_COLUMNS)
    channels = columns % num_channels
    live = columns < row_width
    mean, scale, bias = load_norm(weight_ptr, bias_ptr, mean_ptr, var_ptr, eps, channels, live)
    READ_RESIDUAL: tl.constexpr = ADDED == "plain" and (ACT == "silu" or ACT == "gelu")
    if ADDED == "norm" or READ_RESIDUAL:
        residual_ptr += first_row * row_width
    if ADDED == "plain":
        g_ptr += first_row * row_width
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
    sum_g = tl.zeros((BLOCK_ROWS, BLOCK_COLUMNS), tl.float32)
    sum_gx = tl.zeros((BLOCK_ROWS, BLOCK_COLUMNS), tl.float32)
    sum_gr = tl.zeros((BLOCK_ROWS, BLOCK_COLUMNS), tl.float32)
    for start in tl.range(0, rows_here, BLOCK_ROWS, num_stages=STAGES):
        rows = start + tl.arange(0, BLOCK_ROWS)
        inside = (rows < rows_here)[:, None] & live[None, :]
        offsets = rows[:, None] * row_width + columns[None, :]
        dy = tl.load(dy_ptr + offsets, mask=inside, other=0.0).to(tl.float32)
        centred = tl.where(
            inside, tl.load(x_ptr + offsets, mask=inside, other=0.0).to(tl.float32) - mean, 0.0
        )
        z = centred * scale + bias
        if ADDED == "norm":
            residual = tl.load(residual_ptr + offsets, mask=inside, other=0.0).to(tl.float32)
            residual = tl.where(inside, residual - residual_mean, 0.0)
            z += residual * residual_scale
        if BITS:
            positive = load_bits(
                bits_ptr, rows, first_column, rows_here, row_width, BLOCK_ROWS, BLOCK_COLUMNS
            )
            g = gradient_from_bits(dy, positive, ACT)
        else:
            if READ_RESIDUAL:
                z += tl.load(residual_ptr + offsets, mask=inside, other=0.0).to(tl.float32)
            g = activation_gradient(dy, z, ACT)
        if ADDED == "plain":
            tl.store(g_ptr + offsets, g, mask=inside)
        sum_g += g
        sum_gx += g * centred
        if ADDED == "norm":
            sum_gr += g * residual
    out = sums_ptr + chunk * row_width + columns
    tl.store(out, tl.sum(sum_g, axis=0), mask=live)
    # 1 / std is loaded here, not held in registers all along
    rstd = load_rstd(var_ptr, eps, channels, live)
    tl.store(out + sums_stride, tl.sum(sum_gx * rstd, axis=0), mask=live)
    if ADDED == "norm":
        residual_rstd = load_rstd(residual_var_ptr, residual_eps, channels, live)
        tl.store(out + 2 * sums_stride, tl.sum(sum_gr * residual_rstd, axis=0), mask=live)


@triton.jit
def combine_sums(
    part_ptr,
    sums_ptr,
    num_partials,
    num_channels,
    part_stride,
    BLOCK_PARTIALS: tl.constexpr,
    BLOCK_CHANNELS: tl.constexpr,
):
    """Add [sums, num_partials, C] partial sums up to [sums, C]."""
    which = tl.program_id(1)
    part_ptr += which * part_stride
    channels = tl.program_id(0) * BLOCK_CHANNELS + tl.arange(0, BLOCK_CHANNELS)
    total = tl.zeros((BLOCK_PARTIALS, BLOCK_CHANNELS), tl.float32)
    for start in range(0, num_partials, BLOCK_PARTIALS):
        partials = start + tl.arange(0, BLOCK_PARTIALS)
        inside = (partials < num_partials)[:, None] & (channels < num_channels)[None, :]
        total += tl.load(
            part_ptr + partials[:, None] * num_channels + channels[None, :], mask=inside, other=0.0
        )
    tl.store(sums_ptr + which * num_channels + channels, tl.sum(total, axis=0), mask=channels < num_channels)


@triton.jit
def input_gradient(
    dy_ptr,
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
    sums_ptr,
    dx_ptr,
    dresidual_ptr,
    num_rows,
    row_width,
    num_channels,
    chunk_rows,
    per_row,
    ACT: tl.constexpr,
    ADDED: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_COLUMNS: tl.constexpr,
    STAGES: tl.constexpr,
):
    """Store the gradient of ``x``, and of the residual if it is normalised ("norm").

    ``dy`` is ``g`` itself if ADDED is "plain". ``sums`` [sums, C] times ``per_row`` are the means over the
    batch.
    """
    first_row = tl.program_id(1).to(tl.int64) * chunk_rows
    rows_here = tl.minimum(num_rows - first_row, chunk_rows).to(tl.int32)
    dy_ptr += first_row * row_width
    x_ptr += first_row * row_width
    dx_ptr += first_row * row_width
    columns = tl.program_id(0) * BLOCK_COLUMNS + tl.arange(0, BLOCK_COLUMNS)
    channels = columns % num_channels
    live = columns < row_width
    mean, scale, bias = load_norm(weight_ptr, bias_ptr, mean_ptr, var_ptr, eps, channels, live)
    mean_g = tl.load(sums_ptr + channels, mask=live, other=0.0)[None, :] * per_row
    slope = tl.load(sums_ptr + num_channels + channels, mask=live, other=0.0)[None, :] * per_row
    slope *= load_rstd(var_ptr, eps, channels, live)
    if ADDED == "norm":
        residual_ptr += first_row * row_width
        dresidual_ptr += first_row * row_width
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
        residual_slope = tl.load(sums_ptr + 2 * num_channels + channels, mask=live, other=0.0)[None, :]
        residual_slope *= per_row * load_rstd(residual_var_ptr, residual_eps, channels, live)
    for start in tl.range(0, rows_here, BLOCK_ROWS, num_stages=STAGES):
        rows = start + tl.arange(0, BLOCK_ROWS)
        inside = (rows < rows_here)[:, None] & live[None, :]
        offsets = rows[:, None] * row_width + columns[None, :]
        g = tl.load(dy_ptr + offsets, mask=inside, other=0.0).to(tl.float32)
        centred = tl.load(x_ptr + offsets, mask=inside, other=0.0).to(tl.float32) - mean
        if ADDED == "norm":
            residual = tl.load(residual_ptr + offsets, mask=inside, other=0.0).to(tl.float32) - residual_mean
            g = activation_gradient(g, centred * scale + bias + residual * residual_scale, ACT) - mean_g
            dresidual = residual_scale * (g - residual * residual_slope)
            tl.store(dresidual_ptr + offsets, dresidual, mask=inside)
        elif ADDED == "plain":
            g -= mean_g
        else:
            g = activation_gradient(g, centred * scale + bias, ACT) - mean_g
        tl.store(dx_ptr + offsets, scale * (g - centred * slope), mask=inside)


@triton.jit
def backward_one_pass(
    dy_ptr,
    x_ptr,
    weight_ptr,
    bias_ptr,
    mean_ptr,
    var_ptr,
    eps,
    residual_ptr,
    bits_ptr,
    dx_ptr,
    g_ptr,
    sums_ptr,
    num_rows,
    num_channels,
    ACT: tl.constexpr,
    ADDED: tl.constexpr,
    BITS: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_COLUMNS: tl.constexpr,
):
    """Do the whole backward pass of a slab of channels in registers: ``dy`` and ``x`` are read once."""
    first_column = tl.program_id(0) * BLOCK_COLUMNS
    columns = first_column + tl.arange(0, BLOCK_COLUMNS)
    live = columns < num_channels
    rows = tl.arange(0, BLOCK_ROWS)
    inside = (rows < num_rows)[:, None] & live[None, :]
    offsets = rows[:, None] * num_channels + columns[None, :]
    mean, scale, bias = load_norm(weight_ptr, bias_ptr, mean_ptr, var_ptr, eps, columns, live)
    g = tl.load(dy_ptr + offsets, mask=inside, other=0.0).to(tl.float32)
    centred = tl.where(inside, tl.load(x_ptr + offsets, mask=inside, other=0.0).to(tl.float32) - mean, 0.0)
    if BITS:
        g = gradient_from_bits(
            g, load_bits(bits_ptr, rows, first_column, num_rows, num_channels, BLOCK_ROWS, BLOCK_COLUMNS), ACT
        )
    else:
        z = centred * scale + bias
        if ADDED == "plain" and (ACT == "silu" or ACT == "gelu"):
            z += tl.load(residual_ptr + offsets, mask=inside, other=0.0).to(tl.float32)
        g = activation_gradient(g, z, ACT)
    if ADDED == "plain":
        stored = g.to(g_ptr.dtype.element_ty)
        tl.store(g_ptr + offsets, stored, mask=inside)
        g = stored.to(tl.float32)  # what a second pass would read, in half the registers
    xhat = centred * load_rstd(var_ptr, eps, columns, live)
    sum_g = tl.sum(g, axis=0)
    sum_gx = tl.sum(g * xhat, axis=0)
    tl.store(sums_ptr + columns, sum_g, mask=live)
    tl.store(sums_ptr + num_channels + columns, sum_gx, mask=live)
    dx = scale * (g - sum_g[None, :] / num_rows - xhat * (sum_gx / num_rows)[None, :])
    tl.store(dx_ptr + offsets, dx, mask=inside)
