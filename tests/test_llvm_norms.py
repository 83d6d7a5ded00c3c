"""A CPU's norms in generated code: against float64, on any number of threads, in modules, in training, when chosen."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_cases import (
    ACTIVATIONS,
    ADDED,
    DEVICE,
    EPS,
    assert_close,
    expected,
    fused,
    make_problem,
    without_kinks,
)
from made_steps import Made
from tiny_runs import BATCH, StopAt, assert_same_science, stop, tiny_config, tiny_recipe, train_tiny
from torch import nn
from torch.nn import functional

from fastresnet.arch import get_arch
from fastresnet.engine import step_time, warmup
from fastresnet.engine.way import Way
from fastresnet.errors import UserError
from fastresnet.kernels import llvm_norms, llvm_norms_code, ops, vector_code
from fastresnet.kernels.dispatch import check_kernels, describe_choices
from fastresnet.kernels.llvm_norms import llvm_obstacle, takes
from fastresnet.kernels.norm_act import BatchNormAct2d
from fastresnet.kernels.ops import LLVM
from fastresnet.kernels.vector_math import GELU_END
from fastresnet.resnet import build_model, set_kernels
from fastresnet.training import resume, train
from fastresnet.training_warmup import warm_up_step

CPU = torch.device("cpu")
if DEVICE != CPU or llvm_obstacle("cpu"):
    pytest.skip(f"for CPUs; {llvm_obstacle('cpu')}", allow_module_level=True)

DTYPES = [torch.float32, torch.bfloat16]
SHAPES = {
    "five values a channel": (1, 16, 1, 5),
    "rows that end within a block": (3, 64, 7, 5),
    "several parts, the last of them short": (7, 32, 23, 20),
    "85 channels: sixteen pixels in a row": (4, 85, 6, 6),
    "24 channels: two pixels in a row": (2, 24, 9, 4),
    "one channel": (4, 1, 8, 8),
    "three channels": (5, 3, 8, 8),
    "wide": (2, 320, 5, 5),
}


@pytest.fixture(autouse=True)
def poison(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Fill every new tensor with NaN, take few elements too, and let three threads share unequal parts of them."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    monkeypatch.setattr(torch.utils.deterministic, "fill_uninitialized_memory", True)
    monkeypatch.setattr(llvm_norms, "WORTH_A_CALL", 1)
    monkeypatch.setattr(llvm_norms, "PART_ELEMENTS", 1 << 9)
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    yield
    torch.set_num_threads(before)
    torch.use_deterministic_algorithms(False)


def check(shape: tuple[int, int, int, int], activation: str, added: str, dtype: torch.dtype) -> None:
    problem = without_kinks(make_problem(shape, added, dtype), activation)
    assert takes(problem.x)
    assert_close(fused(problem, activation, LLVM), expected(problem, activation), dtype)


@pytest.mark.parametrize("shape", SHAPES.values(), ids=list(SHAPES))
@pytest.mark.parametrize("added", ADDED)
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_it_is_the_norm_and_its_gradients(
    shape: tuple[int, int, int, int], activation: str, added: str, dtype: torch.dtype
) -> None:
    check(shape, activation, added, dtype)


@pytest.mark.parametrize("added", ADDED)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_vectors_of_512_bits(added: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """Code for wide registers is split where a processor has narrow ones, and rounds the same."""
    problem = make_problem((3, 48, 7, 5), added, dtype)
    found = {}
    for lanes in (8, 16):
        monkeypatch.setattr(vector_code, "host_lanes", lambda lanes=lanes: lanes)
        found[lanes] = [part for activation in ("relu", "gelu") for part in fused(problem, activation, LLVM)]
    assert all(torch.equal(a, b) for a, b in zip(found[8], found[16], strict=True))


@pytest.mark.parametrize("activation", ["gelu", "silu"])
def test_smooth_activations_and_their_slopes_far_out(activation: str) -> None:
    """To the last bits of float32 beside 1 in float64, where exponentials vanish too; NaN and infinity as they are."""
    ends = torch.tensor([0.0, 1e-30, 1e-3, 0.3, 9.0, 13.1, 13.3, 40.0, 87.5, 1e4, 1e18, 1e30])
    z = torch.cat((-ends, ends, torch.linspace(-14, 14, 8168)))
    x = z.view(2, 16, 16, 16).contiguous(memory_format=torch.channels_last).requires_grad_()
    constants = (torch.ones(16), torch.zeros(16), torch.zeros(16), torch.ones(16) - EPS, None, None, EPS)
    y, _ = ops.bn_act_apply(x, *constants, activation, "", LLVM)
    y.sum().backward()
    exact = x.detach().double().requires_grad_()
    by_erfc = 0.5 * exact * torch.erfc(-(0.5**0.5) * exact)  # PyTorch's own is 0 in the negative tail
    wanted = by_erfc if activation == "gelu" else functional.silu(exact)
    wanted.sum().backward()
    assert exact.grad is not None and x.grad is not None
    slope = torch.where(
        exact.grad.isnan(), (exact > 0).double(), exact.grad
    )  # PyTorch's, of infinity times zero
    assert ((y - wanted).abs() <= 4e-7 * exact.abs().clamp(min=1)).all()
    if activation == "silu":
        tail = exact < -1  # where it is small itself
        assert ((y - wanted).abs() <= 4e-2 * wanted.abs() + 1e-35)[tail].all()
    end = {"gelu": -GELU_END, "silu": -90}[activation]
    assert (y[exact < end] == 0).all() and (x.grad[exact < end] == 0).all()
    assert ((x.grad - slope).abs() <= 1e-6).all()
    for value in (float("nan"), float("inf")):
        odd, _ = ops.bn_act_apply(x.detach().clone().fill_(value), *constants, activation, "", LLVM)
        torch.testing.assert_close(odd, torch.full_like(odd, value), equal_nan=True)


@pytest.mark.parametrize("added", ADDED)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_writing_past_the_caches_changes_nothing(
    added: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    problem, found = make_problem((5, 48, 16, 16), added, dtype), []
    for size in (1 << 30, 1):
        monkeypatch.setattr(llvm_norms, "STREAMED_BYTES", size)
        found.append(fused(problem, "relu", LLVM))
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


@settings(max_examples=40)
@given(
    batch=st.integers(4, 12),  # of few values a channel, x's gradient cancels
    channels=st.integers(4, 80),  # of fewer, all weights' gradients may be sums that cancel
    sides=st.tuples(st.integers(4, 12), st.integers(1, 12)),
    activation=st.sampled_from(ACTIVATIONS),
    added=st.sampled_from(ADDED),
    dtype=st.sampled_from(DTYPES),
    threads=st.integers(1, 4),
)
def test_it_is_the_norm_at_any_size_that_is_taken(
    batch: int,
    channels: int,
    sides: tuple[int, int],
    activation: str,
    added: str,
    dtype: torch.dtype,
    threads: int,
) -> None:
    torch.set_num_threads(threads)
    shape = (batch, channels, *sides)
    rows = batch * sides[0] * sides[1]
    if takes(make_problem(shape).x):
        check(shape, activation, added, dtype)
    else:
        assert rows * channels % llvm_norms.LINE


@pytest.mark.parametrize(
    ("mean", "std"),
    [(1e4, 1.0), (-3e5, 30.0), (0.0, 1e15), (0.0, 1e-6), (0.02, 1e-5)],
    ids=["large mean", "larger", "huge variance", "variance far below eps", "mean above a tiny deviation"],
)
def test_statistics_are_sound(mean: float, std: float) -> None:
    x = make_problem((3, 16, 20, 20), mean=mean, std=std).x
    found_mean, found_var = ops.bn_statistics(x, LLVM)
    exact = x.double()
    torch.testing.assert_close(found_mean.double(), exact.mean((0, 2, 3)), rtol=1e-6, atol=1e-6 * std)
    torch.testing.assert_close(found_var.double(), exact.var((0, 2, 3), correction=0), rtol=1e-4, atol=0)


def test_a_shift_far_from_the_rest_costs_no_variance() -> None:
    """The first pixel is what the others are taken relative to."""
    x = make_problem((8, 16, 16, 16)).x
    x[0, :, 0, 0] = 1e4
    _, var = ops.bn_statistics(x, LLVM)
    torch.testing.assert_close(var.double(), x.double().var((0, 2, 3), correction=0), rtol=1e-4, atol=0)


def test_a_constant_channel() -> None:
    """Variance zero: y is the bias, and only the bias has a gradient to speak of."""
    problem = make_problem((3, 16, 10, 10))
    problem.x[:, 1] = 7.25
    y, _, dweight, _, mean, var = fused(problem, "identity", LLVM)
    assert mean[1] == 7.25 and var[1] == 0 and float(dweight[1]) == 0
    assert torch.equal(y[:, 1], problem.bias[1].expand_as(y[:, 1]))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("where", [0, -1])
@pytest.mark.parametrize("added", ADDED)
@pytest.mark.parametrize("activation", ["relu", "gelu"])
def test_what_is_not_finite_shows_in_its_channel_alone(
    dtype: torch.dtype, value: float, where: int, added: str, activation: str
) -> None:
    problem = make_problem((3, 16, 5, 5), added, dtype)
    problem.x[where, 3, where, where] = value
    y, dx, *_ = fused(problem, activation, LLVM)
    others = [channel for channel in range(16) if channel != 3]
    for tensor in (y, dx):
        assert tensor[:, 3].isnan().any() and tensor[:, others].isfinite().all()
    assert y[:, 3].isnan().all()


def test_bfloat16_is_rounded_as_torch_rounds_it() -> None:
    x = torch.randn(4, 64, 16, 16).contiguous(memory_format=torch.channels_last)
    constants = (torch.ones(64), torch.zeros(64), torch.zeros(64), torch.ones(64) - EPS, None, None, EPS)
    given_float, _ = ops.bn_act_apply(x.bfloat16().float(), *constants, "identity", "", LLVM)
    given_half, _ = ops.bn_act_apply(x.bfloat16(), *constants, "identity", "", LLVM)
    assert torch.equal(given_half, given_float.bfloat16())


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("added", ADDED)
def test_bits_are_the_same_on_any_number_of_threads(dtype: torch.dtype, added: str) -> None:
    problem, found = make_problem((5, 48, 16, 16), added, dtype), []
    for threads in (1, 2, 3, 2, 3):
        torch.set_num_threads(threads)
        found.append(fused(problem, "relu", LLVM))
    assert all(torch.equal(a, b) for other in found for a, b in zip(other, found[0], strict=True))


FEWER_THREADS = """
import torch
from fastresnet.kernels import ops
torch.set_num_threads(3)
x = torch.arange(64 * 16 * 64.0).reshape(64, 16, 8, 8).contiguous(memory_format=torch.channels_last) % 7 - 3
y, mean, var, _ = ops.bn_act(x, torch.ones(16), torch.zeros(16), None, 1e-5, "relu", ops.LLVM)
torch.set_num_threads(1)
exact = x.double()
assert (mean - exact.mean((0, 2, 3))).abs().max() < 1e-6
assert (y - torch.relu(torch.nn.functional.batch_norm(exact, None, None, training=True))).abs().max() < 1e-5
"""


def test_nothing_is_left_out_where_the_system_gives_fewer_threads() -> None:
    environment = os.environ | {"OMP_THREAD_LIMIT": "1"}
    done = subprocess.run(
        [sys.executable, "-c", FEWER_THREADS], env=environment, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("op", ["bn_act", "bn_act_apply", "dual_bn_act"])
def test_the_ops_are_registered_as_torch_wants_them(op: str) -> None:
    problem = make_problem((3, 16, 6, 6), "norm" if op == "dual_bn_act" else "plain")
    x, weight, bias, residual, *residual_affine = problem.leaves()
    arguments: tuple[Any, ...] = (x, weight, bias, residual, EPS, "relu", LLVM)
    if op == "bn_act_apply":
        statistics = (torch.zeros(16), torch.ones(16))
        arguments = (x, weight, bias, *statistics, residual, None, EPS, "relu", "", LLVM)
    elif op == "dual_bn_act":
        arguments = (x, weight, bias, residual, *residual_affine, EPS, EPS, "relu", LLVM)
    torch.library.opcheck(getattr(torch.ops.fastresnet, op), arguments)


# Modules


class Norms(nn.Module):
    """A block's three kinds of norm."""

    def __init__(self, kernels: str) -> None:
        super().__init__()
        self.first = BatchNormAct2d(12, kernels=kernels)
        self.second = BatchNormAct2d(12, "leaky_relu", kernels=kernels)
        self.third = BatchNormAct2d(12, kernels=kernels)
        self.shortcut = BatchNormAct2d(12, "identity", kernels=kernels)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.second(self.first(x), x)
        return self.third(y, x * 2, self.shortcut)


def test_a_module_learns_what_the_plain_one_does(monkeypatch: pytest.MonkeyPatch) -> None:
    ours, plain = Norms("llvm"), Norms("eager")
    plain.load_state_dict(ours.state_dict())
    x = make_problem((4, 12, 9, 9)).x
    called, apply = [], llvm_norms.apply
    monkeypatch.setattr(llvm_norms, "apply", lambda *args: called.append(args[0]) or apply(*args))
    for _ in range(2):
        for model in (ours, plain):
            model(x).square().mean().backward()
    assert [fusion.added for fusion in called] == ["none", "plain", "norm"] * 2
    for model in (ours, plain):
        model.eval()
    torch.testing.assert_close(ours(x), plain(x), rtol=1e-5, atol=1e-5)
    assert ours.state_dict().keys() == plain.state_dict().keys()
    for (name, mine), theirs in zip(ours.state_dict().items(), plain.state_dict().values(), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-5, msg=name)
    for (name, one), other in zip(ours.named_parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad, rtol=1e-4, atol=1e-5, msg=name)


def test_what_it_does_not_take_is_plain(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(llvm_norms, "WORTH_A_CALL", 1000)
    monkeypatch.setattr(llvm_norms, "apply", lambda *args: pytest.fail("was called"))
    x = make_problem((8, 64, 4, 4)).x
    for module, images in (
        (BatchNormAct2d(64, kernels="llvm"), x.contiguous()),
        (BatchNormAct2d(64, kernels="llvm"), x[:, :, :, 1:]),
        (BatchNormAct2d(64, kernels="llvm").double(), x.double()),
        (BatchNormAct2d(64, kernels="llvm"), x[:1, :, :2]),  # few elements
        (BatchNormAct2d(13, kernels="llvm"), make_problem((9, 13, 5, 5)).x),  # pixels that fill no line
        (BatchNormAct2d(64, kernels="eager"), x),
    ):
        module(images)


def test_a_gradient_in_another_format_is_taken() -> None:
    problem = make_problem((4, 16, 8, 8), "plain")
    wanted = fused(problem, "relu", LLVM)
    found = fused(problem._replace(dy=problem.dy.contiguous()), "relu", LLVM)
    assert all(torch.equal(a, b) for a, b in zip(wanted, found, strict=True))


def test_a_network_learns_the_same_with_it() -> None:
    torch.manual_seed(0)
    model = build_model(get_arch("resnet8")).to(memory_format=torch.channels_last)
    images = torch.randn(8, 3, 32, 32).contiguous(memory_format=torch.channels_last)

    def gradients(kernels: str, dtype: torch.dtype) -> dict[str, torch.Tensor]:
        set_kernels(model.to(dtype), kernels)
        model.zero_grad()
        functional.cross_entropy(model(images.to(dtype)), torch.arange(8)).backward()
        return {name: p.grad.double() for name, p in model.named_parameters() if p.grad is not None}

    found = gradients("llvm", torch.float32)
    for name, wanted in gradients("eager", torch.float64).items():
        assert (found[name] - wanted).norm() <= 0.03 * wanted.norm(), name


# Runs

WIDE = {"arch": "n2-b1-c16", "batch_size": 2 * BATCH}


def test_a_run_with_it_learns_the_same_and_resumes_to_the_same_bits(
    data: Path, runs: Path, tmp_path: Path
) -> None:
    whole = train_tiny(data, tmp_path / "whole", WIDE, kernels="llvm", amp="off")
    run = stop(data, runs, StopAt(5), WIDE, kernels="llvm", amp="off")
    resumed = resume(run.name, runs_dir=runs)
    assert resumed.config.kernels == "llvm"
    assert_same_science(run, whole)
    config = tiny_config(data, kernels="eager", amp="off")
    plain = train(tiny_recipe(WIDE), config, runs_dir=tmp_path / "plain")
    assert resumed.epochs[0]["train_loss"] == pytest.approx(plain.epochs[0]["train_loss"], rel=1e-4)


@pytest.mark.parametrize(("seconds", "kernels"), [(0.5, "llvm"), (1.0, "eager")])
def test_the_faster_norms_are_taken(
    seconds: float, kernels: str, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def timed(times: step_time.StepTimes, *args: Any, **kwargs: Any) -> float:
        return seconds if times.step.way.kernels == "llvm" else 1.0

    def found(epochs: int, **changes: Any) -> warmup.WarmUp:
        config = made.chosen.config.model_copy(update={"kernels": "auto", "compile": "off"} | changes)
        recipe = made.recipe.with_overrides({"epochs": epochs})
        return warm_up_step(made.step, recipe, replace(made.chosen, config=config), made.data)

    monkeypatch.setattr(step_time.StepTimes, "_timed", timed)
    made = Made(data, {"arch": "n2-b1-c16"}, Way())
    long = found(100)
    assert long.way == Way(kernels=kernels) and long.options["kernels"] == kernels
    assert "ms with llvm norms" in long.reasons["kernels"]
    assert found(1).reasons["kernels"] == "the run is too short for measuring to pay"
    assert found(1, alike=100).way == long.way  # a board's other runs of it take the way too
    by_rule = found(100, deterministic=True)
    assert by_rule.way == Way() and by_rule.reasons["kernels"] == "deterministic, so not measured"
    asked = found(1, kernels="llvm")
    assert asked.way == Way(kernels="llvm") and asked.reasons["kernels"] == "as asked"
    made.loaders.close()


def test_norms_of_an_eager_step_outlive_a_compiled_one_that_is_slower(
    data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seconds = {Way(): 1.0, Way(kernels="llvm"): 0.5, Way(compile="on", kernels="inductor"): 0.7}
    monkeypatch.setattr(step_time.StepTimes, "_timed", lambda times, *args, **kwargs: seconds[times.step.way])
    made = Made(data, {"epochs": 10**5}, Way())
    config = made.chosen.config.model_copy(update={"kernels": "auto", "compile": "auto"})
    found = warm_up_step(made.step, made.recipe, replace(made.chosen, config=config), made.data)
    assert found.way == Way(kernels="llvm")
    assert "llvm norms" in found.reasons["kernels"] and "compiled" in found.reasons["compile"]
    made.loaders.close()


def test_where_it_cannot_be_had_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    check_kernels("llvm", CPU, "off")
    with pytest.raises(
        UserError, match="--kernels llvm cannot be had: LLVM's norms are for CPUs; use --kernels auto"
    ):
        check_kernels("llvm", torch.device("cuda"), "off")
    with pytest.raises(UserError, match=r"--kernels is 'llmv'.*did you mean 'llvm'"):
        check_kernels("llmv", CPU, "off")
    assert describe_choices(CPU, tmp_path) == "measured by each run: PyTorch's against LLVM's"
    monkeypatch.setattr("fastresnet.kernels.llvm_norms.team_obstacle", lambda: "llvmlite is not installed")
    assert "(llvmlite is not installed)" in describe_choices(CPU, tmp_path)
    with pytest.raises(UserError, match="--kernels llvm cannot be had: llvmlite is not installed; use"):
        train(tiny_recipe(), tiny_config(Path("/no/data"), kernels="llvm"), runs_dir=tmp_path / "runs")
    assert list(tmp_path.iterdir()) == []


def test_an_image_of_other_channels_is_pytorchs_error_and_never_read_past() -> None:
    norm = BatchNormAct2d(16, kernels="llvm")
    for mode in (norm.train(), norm.eval()):
        with pytest.raises(RuntimeError, match="running_mean should contain 32 elements not 16"):
            mode(torch.zeros(8, 32, 16, 16).contiguous(memory_format=torch.channels_last))


def test_code_is_generated_once_a_process() -> None:
    problem = make_problem((3, 16, 6, 6))
    fused(problem, "relu", LLVM)
    before = llvm_norms_code.code.cache_info().misses
    fused(problem, "relu", LLVM)
    assert llvm_norms_code.code.cache_info().misses == before
