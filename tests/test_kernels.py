"""The fused norms against float64: every shape that matters, every activation, forward and backward."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from kernel_cases import (
    ACTIVATIONS,
    ADDED,
    DEVICE,
    EPS,
    ONE_PASS_SHAPES,
    SHAPES,
    TWO_PASS_SHAPES,
    assert_close,
    every_activation_shape,
    expected,
    fused,
    make_problem,
    without_kinks,
)
from optional_parts import need

need("triton")

from fastresnet.kernels import ops, reference  # noqa: E402
from fastresnet.kernels.fusion import Fusion, Norm  # noqa: E402
from fastresnet.kernels.geometry import TUNINGS, plan_one_pass, plan_two_pass  # noqa: E402
from fastresnet.kernels.launch import Launcher  # noqa: E402

COMPILED = DEVICE.type == "cuda"
BATCH = 512 if COMPILED else 1  # the interpreter takes a second for what a GPU does in a microsecond


@pytest.fixture(autouse=True)
def poison(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Fill every new tensor with NaN (bits: ones), so that an element no kernel writes is found out."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    monkeypatch.setattr(torch.utils.deterministic, "fill_uninitialized_memory", True)
    assert torch.empty(3).isnan().all()
    yield
    torch.use_deterministic_algorithms(False)


def check(shape: tuple[int, int, int, int], activation: str, added: str, dtype: torch.dtype) -> None:
    problem = without_kinks(make_problem(shape, added, dtype), activation)
    assert_close(fused(problem, activation), expected(problem, activation), dtype)


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("added", ADDED)
def test_shapes(shape: tuple[int, int, int, int], added: str) -> None:
    check(shape, "relu", added, torch.float32)


@pytest.mark.parametrize("shape", [(2, 13, 5, 7), (5, 16, 16, 16)], ids=["one pass", "two passes"])
@pytest.mark.parametrize("added", ADDED)
@pytest.mark.parametrize(
    ("activation", "dtype"),
    [("relu", torch.bfloat16), ("silu", torch.bfloat16), ("leaky_relu", torch.float16)],
)
def test_half_precision(
    shape: tuple[int, int, int, int], added: str, activation: str, dtype: torch.dtype
) -> None:
    check(shape, activation, added, dtype)


@pytest.mark.parametrize("shape", [(2, 13, 5, 7), (3, 5, 22, 33)], ids=["one pass", "two passes"])
@pytest.mark.parametrize("added", ADDED)
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_activations(shape: tuple[int, int, int, int], activation: str, added: str) -> None:
    check(shape, activation, added, torch.float32)


@pytest.mark.parametrize(("channels", "side"), every_activation_shape())
def test_every_activation_shape_of_the_nine_networks(channels: int, side: int) -> None:
    check((BATCH, channels, side, side), "relu", "plain", torch.bfloat16)


def test_the_shapes_take_the_passes_they_are_named_for() -> None:
    def rows(shape: tuple[int, int, int, int]) -> int:
        return shape[0] * shape[2] * shape[3]

    assert all(plan_one_pass(rows(shape), shape[1]) for shape in ONE_PASS_SHAPES.values())
    assert not any(plan_one_pass(rows(shape), shape[1]) for shape in TWO_PASS_SHAPES.values())
    folds = [plan_two_pass(rows(shape), shape[1], 1).fold for shape in TWO_PASS_SHAPES.values()]
    assert folds == [1, 16, 4, 2, 1]
    assert plan_two_pass(5 * 16 * 16, 16, 1).num_chunks > 1


@pytest.mark.parametrize("tuning", range(1, len(TUNINGS)))
@pytest.mark.parametrize("added", ADDED)
def test_every_tuning_computes_the_same(tuning: int, added: str) -> None:
    problem = without_kinks(make_problem((3, 20, 22, 33), added), "relu")
    assert_close(fused(problem, "relu", tuning), expected(problem, "relu"), torch.float32)


@pytest.mark.parametrize("shape", [(4, 12, 9, 9), (3, 12, 20, 20)], ids=["one pass", "two passes"])
@pytest.mark.parametrize(
    ("mean", "std"),
    [(1e4, 1.0), (-3e5, 30.0), (0.0, 1e15), (0.0, 1e-6), (0.02, 1e-5)],
    ids=["large mean", "larger", "huge variance", "variance far below eps", "mean above a tiny deviation"],
)
def test_statistics_are_sound(shape: tuple[int, int, int, int], mean: float, std: float) -> None:
    """Sums of squares less squared sums in float32 would have no correct digit in the first two."""
    x = make_problem(shape, mean=mean, std=std).x
    exact = x.double()
    for got_mean, got_var in (
        ops.bn_statistics(x, 0),
        ops.bn_act(x, torch.ones(12, device=DEVICE), torch.zeros(12, device=DEVICE), None, EPS, "relu", 0)[
            1:3
        ],
    ):
        torch.testing.assert_close(got_mean.double(), exact.mean((0, 2, 3)), rtol=1e-6, atol=1e-6 * std)
        torch.testing.assert_close(got_var.double(), exact.var((0, 2, 3), correction=0), rtol=1e-4, atol=0)


@pytest.mark.parametrize("shape", [(4, 4, 9, 9), (3, 4, 20, 20)], ids=["one pass", "two passes"])
def test_constant_channel(shape: tuple[int, int, int, int]) -> None:
    """Variance zero: y is the bias, and only the bias has a gradient to speak of."""
    problem = make_problem(shape)
    problem.x[:, 1] = 7.25
    y, dx, dweight, dbias, _, mean, var = [
        *fused(problem, "identity")[:4],
        None,
        *fused(problem, "identity")[4:],
    ]
    assert mean[1] == 7.25 and var[1] == 0
    assert torch.equal(y[:, 1], problem.bias[1].expand_as(y[:, 1]))
    assert float(dweight[1]) == 0
    torch.testing.assert_close(dbias[1], problem.dy[:, 1].sum(), rtol=1e-5, atol=1e-4)
    assert_close(
        [y, dx, dweight, dbias, mean, var], expected(problem, "identity"), torch.bfloat16
    )  # 1 / sqrt(eps) magnifies


@pytest.mark.parametrize("shape", [(4, 4, 9, 9), (3, 4, 20, 20)], ids=["one pass", "two passes"])
@pytest.mark.parametrize("value", [float("inf"), float("-inf"), float("nan")])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_what_is_not_finite_stays_in_its_channel(
    shape: tuple[int, int, int, int], value: float, activation: str
) -> None:
    problem = make_problem(shape)
    problem.x[1, 2, 3, 4] = value
    y, dx, dweight, _, mean, var = fused(problem, activation)
    sound = torch.tensor([0, 1, 3], device=DEVICE)
    for result in (y, dx):
        assert result[:, 2].isnan().all()
        assert result[:, sound].isfinite().all()
    for result in (dweight, mean, var):
        assert not result[2].isfinite()
        assert result[sound].isfinite().all()


def test_infinite_gradient_stays_in_its_channel() -> None:
    problem = make_problem((3, 4, 20, 20), "plain")
    problem.dy[0, 1, 0, 0] = float("inf")
    _, dx, dweight, dbias, dresidual, *_ = fused(problem, "identity")
    sound = torch.tensor([0, 2, 3], device=DEVICE)
    assert not dx[:, 1].isfinite().any() and not dweight[1].isfinite() and not dbias[1].isfinite()
    assert dx[:, sound].isfinite().all() and dresidual[0, 1, 0, 0] == float("inf")
    assert int(dresidual.isfinite().logical_not().sum()) == 1


@pytest.mark.parametrize("added", ADDED)
def test_any_memory_layout_gives_the_same_bits(added: str) -> None:
    problem = make_problem((3, 12, 20, 20), added)
    straight = fused(problem, "gelu")
    wide = {
        "contiguous": lambda t: t.contiguous(),
        "every other row of a larger tensor": lambda t: t.repeat_interleave(2, 2)[:, :, ::2],
        "some channels of a larger tensor": lambda t: torch.cat([t, t], 1).contiguous(
            memory_format=torch.channels_last
        )[:, :12],
        "transposed": lambda t: t.transpose(2, 3).contiguous().transpose(2, 3),
    }
    for name, lay_out in wide.items():
        x, dy = lay_out(problem.x), lay_out(problem.dy)
        residual = None if problem.residual is None else lay_out(problem.residual)
        assert not x.is_contiguous(memory_format=torch.channels_last), name
        leaves = problem._replace(x=x, dy=dy, residual=residual).leaves()
        leaves[0] = x.detach().requires_grad_()  # a leaf's copy would be dense
        again = fused(problem._replace(x=x, dy=dy, residual=residual), "gelu")
        assert all(torch.equal(a, b) for a, b in zip(straight, again, strict=True)), name


@pytest.mark.parametrize("shape", [(3, 72, 4, 4), (5, 16, 16, 16)], ids=["one pass", "two passes"])
@pytest.mark.parametrize("added", ADDED)
def test_every_launch_gives_the_same_bits(shape: tuple[int, int, int, int], added: str) -> None:
    problem = make_problem(shape, added, torch.bfloat16)
    first = fused(problem, "relu")
    for _ in range(5 if COMPILED else 1):
        assert all(torch.equal(a, b) for a, b in zip(first, fused(problem, "relu"), strict=True))


def test_empty_batch() -> None:
    """A rank may get no samples of the last batch: zeros to exchange, and nothing to normalise."""
    for tuning in (0, ops.PLAIN):
        problem = make_problem((0, 6, 4, 4), "plain")
        mean, var = ops.bn_statistics(problem.x, tuning)
        assert mean.tolist() == var.tolist() == [0.0] * 6
        leaves = problem.leaves()
        count = torch.tensor([8.0], device=DEVICE)
        y, _ = ops.bn_act_apply(
            *leaves[:3],
            torch.zeros(6, device=DEVICE),
            torch.ones(6, device=DEVICE),
            leaves[3],
            None,
            EPS,
            "relu",
            "",
            tuning,
        )
        y.backward(problem.dy)
        assert y.shape == problem.x.shape and leaves[1].grad.tolist() == [0.0] * 6 and count


@pytest.mark.parametrize("added", ["none", "plain"])
def test_empty_batch_by_its_own_statistics(added: str) -> None:
    """The plain operations' gradients of nothing are zeros, and no division by it."""
    problem = make_problem((0, 6, 4, 4), added)
    fusion, residual = Fusion("relu", added), problem.residual
    _, mean, var, bits = reference.forward(fusion, problem.x, problem.weight, problem.bias, residual, EPS)
    norm = Norm(problem.weight, problem.bias, mean, var, EPS)
    dx, _, totals = reference.backward(fusion, problem.dy, problem.x, norm, bits, residual)
    assert dx.shape == problem.x.shape and totals.tolist() == [[0.0] * 6] * 2


@pytest.mark.parametrize("shape", [(3, 13, 4, 4), (3, 24, 33, 19), (1, 85, 32, 34)])
@pytest.mark.parametrize("activation", ["relu", "leaky_relu"])
def test_saved_bits(shape: tuple[int, int, int, int], activation: str) -> None:
    """Where rows do not fold, the kernels' bits are the reference's; folded, as many are set."""
    problem = make_problem(shape, "plain")
    norm = Norm(problem.weight, problem.bias, *reference.statistics(problem.x), EPS)
    fusion = Fusion(activation, "plain")
    _, ours = Launcher(TUNINGS[0]).forward(
        fusion, problem.x, problem.weight, problem.bias, problem.residual, EPS
    )[2:]
    _, theirs = reference.apply(fusion, problem.x, norm, problem.residual, None)
    assert ours.shape == theirs.shape and ours.dtype == theirs.dtype == torch.uint8
    if shape[1] != 85:
        assert torch.equal(ours, theirs)
    ones = [sum(bin(byte).count("1") for byte in bits.tolist()) for bits in (ours, theirs)]
    assert ones[0] == ones[1] > 0
