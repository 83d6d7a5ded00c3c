"""The fused norms as PyTorch ops: ``torch.ops.fastresnet.*``.

Registered with ``torch.library``, so torch.compile, export, CUDA graphs and DDP work through them. All are
functional: they return the batch's mean and biased variance and the module updates its buffers. (The
variance, not 1 / std: the running variance could not be had back from that where the variance is small beside
eps.) Saved for backward are the inputs, the per-channel statistics and, under a plain residual, a bit an
element or the residual.

There is no autocast rule: an op takes the dtypes it is given, and returns ``x``'s. Under autocast the
convolutions hand over bf16 while weights and statistics stay float32, as with ``F.batch_norm``.

Arguments that recur: ``x`` [B, C, H, W], and ``residual`` of the same shape and dtype; ``weight``, ``bias``
[C] of any float dtype; ``mean``, ``var`` [C] float32 (float64 for float64 ``x``); ``tuning``: which of
``geometry.TUNINGS`` the kernels are launched with, PLAIN for the same in plain PyTorch, LLVM for a CPU's own
code, which has backward take the output in place of bits. Results are channels-last.
"""

from typing import cast

import torch
from torch import Tensor

from fastresnet.errors import UserError
from fastresnet.kernels import llvm_norms, reference
from fastresnet.kernels.fusion import Activation, Fusion, Norm
from fastresnet.kernels.geometry import TUNINGS, bits_size
from fastresnet.kernels.reference import num_rows

PLAIN = -1
LLVM = -2


@torch.library.custom_op("fastresnet::bn_act", mutates_args=())
def bn_act(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    residual: Tensor | None,
    eps: float,
    activation: str,
    tuning: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return (y, mean, var, bits): ``y = act(norm(x) [+ residual])`` by the batch's own statistics."""
    return _passes(tuning).forward(_plain(activation, residual is not None), x, weight, bias, residual, eps)


@torch.library.custom_op("fastresnet::bn_act_backward", mutates_args=())
def bn_act_backward(
    dy: Tensor,
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    mean: Tensor,
    var: Tensor,
    bits: Tensor,
    residual: Tensor | None,
    eps: float,
    activation: str,
    added: bool,
    tuning: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return (dx, dresidual, sums) of :func:`bn_act`; the sums are dbias and dweight."""
    norm = Norm(weight, bias, mean, var, eps)
    return _passes(tuning).backward(_plain(activation, added), dy, x, norm, bits, residual)


@torch.library.custom_op("fastresnet::bn_statistics", mutates_args=())
def bn_statistics(x: Tensor, tuning: int) -> tuple[Tensor, Tensor]:
    """Return (mean, var) of the batch, which ranks exchange before :func:`bn_act_apply`; no gradient."""
    return _passes(tuning).statistics(x)


@torch.library.custom_op("fastresnet::bn_act_apply", mutates_args=())
def bn_act_apply(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    mean: Tensor,
    var: Tensor,
    residual: Tensor | None,
    count: Tensor | None,
    eps: float,
    activation: str,
    group: str,
    tuning: int,
) -> tuple[Tensor, Tensor]:
    """Return (y, bits): ``y = act(norm(x) [+ residual])`` by given statistics.

    Args:
        count: float32 [1], values a channel has over all ranks of the process group named ``group``: the
            statistics are theirs, and backward differentiates through them. None: statistics are constants.
    """
    norm = Norm(weight, bias, mean, var, eps)
    return _passes(tuning).apply(_plain(activation, residual is not None), x, norm, residual, None)


@torch.library.custom_op("fastresnet::bn_act_sums", mutates_args=())
def bn_act_sums(
    dy: Tensor,
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    mean: Tensor,
    var: Tensor,
    bits: Tensor,
    residual: Tensor | None,
    eps: float,
    activation: str,
    added: bool,
    tuning: int,
) -> tuple[Tensor, Tensor]:
    """Return (sums, g): this rank's share of dbias and dweight, and dresidual ([0] if none)."""
    norm = Norm(weight, bias, mean, var, eps)
    return _passes(tuning).sums(_plain(activation, added), dy, x, norm, bits, residual, None)


@torch.library.custom_op("fastresnet::bn_act_input_gradient", mutates_args=())
def bn_act_input_gradient(
    dy: Tensor,
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    mean: Tensor,
    var: Tensor,
    means: Tensor,
    eps: float,
    activation: str,
    added: bool,
    tuning: int,
) -> Tensor:
    """Return dx; ``means`` are all ranks' sums over their count, ``dy`` is g if a residual was added."""
    norm = Norm(weight, bias, mean, var, eps)
    return _passes(tuning).input_gradient(_plain(activation, added), dy, x, norm, means, 1.0, None, None)[0]


@torch.library.custom_op("fastresnet::dual_bn_act", mutates_args=())
def dual_bn_act(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    residual: Tensor,
    residual_weight: Tensor,
    residual_bias: Tensor,
    eps: float,
    residual_eps: float,
    activation: str,
    tuning: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Return (y, mean, var, residual's mean, residual's var): ``y = act(norm(x) + norm(residual))``."""
    passes = _passes(tuning)
    mean, var = passes.statistics(x)
    residual_mean, residual_var = passes.statistics(residual)
    norm = Norm(weight, bias, mean, var, eps)
    residual_norm = Norm(residual_weight, residual_bias, residual_mean, residual_var, residual_eps)
    y, _ = passes.apply(_dual(activation), x, norm, residual, residual_norm)
    return y, mean, var, residual_mean, residual_var


@torch.library.custom_op("fastresnet::dual_bn_act_backward", mutates_args=())
def dual_bn_act_backward(
    dy: Tensor,
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    mean: Tensor,
    var: Tensor,
    residual: Tensor,
    residual_weight: Tensor,
    residual_bias: Tensor,
    residual_mean: Tensor,
    residual_var: Tensor,
    eps: float,
    residual_eps: float,
    activation: str,
    tuning: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return (dx, dresidual, sums): the sums are dbias of either norm, dweight, the residual's dweight."""
    passes, fusion = _passes(tuning), _dual(activation)
    norm = Norm(weight, bias, mean, var, eps)
    residual_norm = Norm(residual_weight, residual_bias, residual_mean, residual_var, residual_eps)
    no_bits = x.new_empty(0, dtype=torch.uint8)
    sums, _ = passes.sums(fusion, dy, x, norm, no_bits, residual, residual_norm)
    per_row = 1 / max(num_rows(x), 1)
    dx, dresidual = passes.input_gradient(fusion, dy, x, norm, sums, per_row, residual, residual_norm)
    return dx, dresidual, sums


def _passes(tuning: int):
    if tuning == PLAIN:
        return reference
    if tuning == LLVM:
        return llvm_norms
    from fastresnet.kernels.launch import Launcher

    return Launcher(TUNINGS[tuning])


def _plain(activation: str, added: bool) -> Fusion:
    return Fusion(cast(Activation, activation), "plain" if added else "none")


def _dual(activation: str) -> Fusion:
    return Fusion(cast(Activation, activation), "norm")


@bn_act.register_fake
def _(x, weight, bias, residual, eps, activation, tuning):
    fusion = _plain(activation, residual is not None)
    return _fake_like(x), *_fake_statistics(x), _fake_bits(fusion, x, tuning)


@bn_act_backward.register_fake
def _(dy, x, weight, bias, mean, var, bits, residual, eps, activation, added, tuning):
    return _fake_like(x), _fake_like(x) if added else x.new_empty(0), mean.new_empty((2, x.shape[1]))


@bn_statistics.register_fake
def _(x, tuning):
    return _fake_statistics(x)


@bn_act_apply.register_fake
def _(x, weight, bias, mean, var, residual, count, eps, activation, group, tuning):
    return _fake_like(x), _fake_bits(_plain(activation, residual is not None), x, tuning)


@bn_act_sums.register_fake
def _(dy, x, weight, bias, mean, var, bits, residual, eps, activation, added, tuning):
    return mean.new_empty((2, x.shape[1])), _fake_like(x) if added else x.new_empty(0)


@bn_act_input_gradient.register_fake
def _(dy, x, weight, bias, mean, var, means, eps, activation, added, tuning):
    return _fake_like(x)


@dual_bn_act.register_fake
def _(x, weight, bias, residual, residual_weight, residual_bias, eps, residual_eps, activation, tuning):
    return _fake_like(x), *_fake_statistics(x), *_fake_statistics(residual)


@dual_bn_act_backward.register_fake
def _(dy, x, weight, bias, mean, var, residual, *rest):
    return _fake_like(x), _fake_like(residual), mean.new_empty((3, x.shape[1]))


def _fake_like(x: Tensor) -> Tensor:
    return torch.empty_like(x, memory_format=torch.channels_last)


def _fake_statistics(x: Tensor) -> tuple[Tensor, Tensor]:
    dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
    return x.new_empty(x.shape[1], dtype=dtype), x.new_empty(x.shape[1], dtype=dtype)


def _fake_bits(fusion: Fusion, x: Tensor, tuning: int) -> Tensor:
    saved = fusion.saves_bits and tuning != LLVM
    return x.new_empty(bits_size(num_rows(x), x.shape[1]) if saved else 0, dtype=torch.uint8)


def _kept(fusion: Fusion, residual: Tensor | None, y: Tensor, tuning: int) -> Tensor | None:
    """Return what backward takes as the residual: itself, or the output in place of bits."""
    if fusion.saves_bits and tuning == LLVM:
        return y
    return residual if fusion.saves_residual else None


def _save_bn_act(ctx, inputs, output):
    x, weight, bias, residual, ctx.eps, ctx.activation, ctx.tuning = inputs
    y, mean, var, bits = output
    ctx.mark_non_differentiable(mean, var, bits)
    ctx.added = residual is not None
    kept = _kept(_plain(ctx.activation, ctx.added), residual, y, ctx.tuning)
    ctx.save_for_backward(x, weight, bias, mean, var, bits, kept)


def _differentiate_bn_act(ctx, dy, *_):
    x, weight, bias, *rest = ctx.saved_tensors
    dx, dresidual, sums = bn_act_backward(
        dy, x, weight, bias, *rest, ctx.eps, ctx.activation, ctx.added, ctx.tuning
    )
    return (
        dx,
        sums[1].to(weight.dtype),
        sums[0].to(bias.dtype),
        dresidual if ctx.added else None,
        None,
        None,
        None,
    )


def _save_bn_act_apply(ctx, inputs, output):
    x, weight, bias, mean, var, residual, count, ctx.eps, ctx.activation, ctx.group, ctx.tuning = inputs
    y, bits = output
    ctx.mark_non_differentiable(bits)
    ctx.added = residual is not None
    kept = _kept(_plain(ctx.activation, ctx.added), residual, y, ctx.tuning)
    ctx.save_for_backward(x, weight, bias, mean, var, bits, kept, count)


def _differentiate_bn_act_apply(ctx, dy, _):
    x, weight, bias, mean, var, bits, residual, count = ctx.saved_tensors
    constants = (ctx.eps, ctx.activation, ctx.added, ctx.tuning)
    sums, g = bn_act_sums(dy, x, weight, bias, mean, var, bits, residual, *constants)
    if count is None:
        means = torch.zeros_like(sums)
    else:
        from torch.distributed._functional_collectives import all_reduce

        means = all_reduce(sums, "sum", ctx.group) / count
    dx = bn_act_input_gradient(g if ctx.added else dy, x, weight, bias, mean, var, means, *constants)
    gradients = (dx, sums[1].to(weight.dtype), sums[0].to(bias.dtype), None, None, g if ctx.added else None)
    return *gradients, None, None, None, None, None


def _save_dual_bn_act(ctx, inputs, output):
    x, weight, bias, residual, residual_weight, residual_bias, *ctx.constants = inputs
    _, *statistics = output
    ctx.mark_non_differentiable(*statistics)
    ctx.save_for_backward(
        x, weight, bias, *statistics[:2], residual, residual_weight, residual_bias, *statistics[2:]
    )


def _differentiate_dual_bn_act(ctx, dy, *_):
    saved = ctx.saved_tensors
    weight, bias, residual_weight, residual_bias = saved[1], saved[2], saved[6], saved[7]
    dx, dresidual, sums = dual_bn_act_backward(dy, *saved, *ctx.constants)
    dbias = sums[0]
    return (
        *(dx, sums[1].to(weight.dtype), dbias.to(bias.dtype)),
        *(dresidual, sums[2].to(residual_weight.dtype), dbias.to(residual_bias.dtype, copy=True)),
        *(None, None, None, None),
    )


def _refuse_second_derivative(ctx, *_):
    raise UserError(
        "the fused batch norm has no second derivative; build with kernels='eager' to differentiate twice"
    )


bn_act.register_autograd(_differentiate_bn_act, setup_context=_save_bn_act)
bn_act_apply.register_autograd(_differentiate_bn_act_apply, setup_context=_save_bn_act_apply)
dual_bn_act.register_autograd(_differentiate_dual_bn_act, setup_context=_save_dual_bn_act)
for _op in (bn_act_backward, bn_act_sums, bn_act_input_gradient, dual_bn_act_backward):
    _op.register_autograd(_refuse_second_derivative)
