"""What the kernels are tested on, and the float64 reference they are held to, written with PyTorch's own ops.

Tests run on ``DEVICE``: the GPU, compiled, where there is one; else the CPU, in Triton's interpreter.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch.nn import functional as F

from fastresnet.catalogue import CATALOGUE
from fastresnet.kernels import ops

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
ACTIVATIONS = ("relu", "leaky_relu", "gelu", "silu", "identity")
ADDED = ("none", "plain", "norm")
EPS = 1e-5

# what the shape is there for; M is N*H*W, and a slab of up to 1,024 rows takes one pass
ONE_PASS_SHAPES = {
    "three values a channel: of two, the gradient of x cancels": (1, 8, 1, 3),
    "batch 1, blocks padded in neither direction": (1, 64, 8, 8),
    "odd maps, rows of a width no load divides": (2, 13, 5, 7),
    "two slabs, one partly outside": (3, 72, 4, 4),
}
TWO_PASS_SHAPES = {
    "odd rows, so nothing folds; fewer than 8 channels": (3, 3, 33, 19),
    "85 channels: sixteen rows fold into one of 1,360 columns": (1, 85, 32, 34),
    "16 channels: four rows fold to fill a cache line; several chunks": (5, 16, 16, 16),
    "rows that fold once only, then are 10 columns wide": (3, 5, 22, 33),
    "a column block and a quarter": (1, 80, 33, 32),
}
SHAPES = ONE_PASS_SHAPES | TWO_PASS_SHAPES

# bf16: one unit in the last place, since the interpreter cuts off where hardware rounds
NORMWISE = {torch.float32: 2e-6, torch.float16: 1.5e-3, torch.bfloat16: 1.2e-2}


def every_activation_shape() -> list[tuple[int, int]]:
    """Return the (channels, side) of every norm's input in the first report's nine networks, once each."""
    shapes = set()
    for entry in CATALOGUE:
        if entry.name in NINE:
            shapes.update(zip(entry.spec.channels, entry.spec.map_sizes(32), strict=True))
    return sorted(shapes)


NINE = (
    *("resnet10-1", "resnet10-2", "resnet12", "resnet16", "resnet20"),
    *("resnet24", "resnet32", "resnet48", "resnet86"),
)


class Problem(NamedTuple):
    """Inputs of one fused op on DEVICE, and ``dy`` to send back; channels-last."""

    x: torch.Tensor
    weight: torch.Tensor
    bias: torch.Tensor
    residual: torch.Tensor | None
    residual_weight: torch.Tensor | None
    residual_bias: torch.Tensor | None
    dy: torch.Tensor

    def leaves(self, dtype: torch.dtype | None = None) -> list[torch.Tensor | None]:
        """Return copies of the inputs that gather gradients, in their own dtypes or all in ``dtype``."""
        return [
            None if t is None else t.detach().to(dtype or t.dtype, copy=True).requires_grad_()
            for t in self[:6]
        ]


def make_problem(
    shape: tuple[int, int, int, int],
    added: str = "none",
    dtype: torch.dtype = torch.float32,
    *,
    mean: float = 0.3,
    std: float = 1.5,
    seed: int = 0,
) -> Problem:
    """Return random inputs, the same on every device; ``x`` has about that mean and standard deviation."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*size: int) -> torch.Tensor:
        return torch.randn(size, generator=generator)

    def activation(values: torch.Tensor) -> torch.Tensor:
        return values.to(dtype).to(DEVICE).contiguous(memory_format=torch.channels_last)

    def channels() -> tuple[torch.Tensor, torch.Tensor]:
        return normal(shape[1]).add(1).to(DEVICE), normal(shape[1]).to(DEVICE)

    return Problem(
        activation(normal(*shape) * std + mean),
        *channels(),
        activation(normal(*shape)) if added != "none" else None,
        *(channels() if added == "norm" else (None, None)),
        activation(normal(*shape)),
    )


def fused(problem: Problem, activation: str, tuning: int = 0) -> list[torch.Tensor]:
    """Return (y, every gradient, mean, var, ...) of the fused op."""
    leaves = problem.leaves()
    if problem.residual_weight is None:
        y, *statistics = ops.bn_act(*leaves[:4], EPS, activation, tuning)
        statistics = statistics[:2]
    else:
        y, *statistics = ops.dual_bn_act(*leaves, EPS, EPS, activation, tuning)
    y.backward(problem.dy)
    return [y.detach(), *(t.grad for t in leaves if t is not None), *statistics]


def expected(problem: Problem, activation: str) -> list[torch.Tensor]:
    """Return what :func:`fused` should, in float64 by PyTorch."""
    leaves = problem.leaves(torch.float64)
    y = activate(before_activation(*leaves), activation)
    y.backward(problem.dy.double())
    results = [y.detach(), *(t.grad for t in leaves if t is not None)]
    for tensor in (leaves[0], leaves[3] if problem.residual_weight is not None else None):
        if tensor is not None:
            results += [tensor.detach().mean((0, 2, 3)), tensor.detach().var((0, 2, 3), correction=0)]
    return results


def before_activation(x: Any, weight: Any, bias: Any, residual: Any, *residual_affine: Any) -> torch.Tensor:
    """Return ``norm(x) [+ residual | + norm(residual)]`` by PyTorch, in the inputs' own dtype."""
    z = F.batch_norm(x, None, None, weight, bias, True, 0.0, EPS)
    if residual_affine[0] is not None:
        residual = F.batch_norm(residual, None, None, *residual_affine, True, 0.0, EPS)
    return z if residual is None else z + residual


def activate(z: torch.Tensor, activation: str) -> torch.Tensor:
    return z if activation == "identity" else getattr(F, activation)(z)


def without_kinks(problem: Problem, activation: str) -> Problem:
    """Return the problem with no gradient where rounding may choose the side of relu's kink."""
    if activation not in ("relu", "leaky_relu"):
        return problem
    z = before_activation(*(None if t is None else t.double() for t in problem[:6]))
    return problem._replace(dy=torch.where(z.abs() < 1e-4, 0, problem.dy))


def assert_close(actual: list[torch.Tensor], wanted: list[torch.Tensor], dtype: torch.dtype) -> None:
    """Hold every result to its reference: by norm, and each element by its own size and the typical one."""
    assert len(actual) == len(wanted)
    for place, (result, truth) in enumerate(zip(actual, wanted, strict=True)):
        assert result.shape == truth.shape
        error = (result.double() - truth).abs()
        size = truth.norm() + 1e-6 * truth.numel() ** 0.5
        bound = NORMWISE[dtype]
        assert float(error.norm() / size) < bound, f"result {place}: {float(error.norm() / size):.1e}"
        typical = size / truth.numel() ** 0.5
        assert bool((error <= 4 * bound * (truth.abs() + typical)).all()), f"result {place}, one element"
