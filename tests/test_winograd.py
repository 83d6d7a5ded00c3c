"""Winograd's convolutions against PyTorch's: values, gradients, rounding, threads, odd sizes, and in training."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from made_steps import Made
from tiny_runs import BATCH, StopAt, assert_same_science, stop, train_tiny
from torch.nn import functional

from fastresnet.arch import get_arch
from fastresnet.engine import step_time, warmup
from fastresnet.engine.way import Way
from fastresnet.errors import UserError
from fastresnet.kernels import winograd_code
from fastresnet.kernels.conv import CONVS, Conv3x3, check_convs, model_obstacle, set_convs
from fastresnet.kernels.winograd import (
    takes,
    winograd_conv,
    winograd_conv_input,
    winograd_conv_weight,
    winograd_obstacle,
)
from fastresnet.kernels.winograd_code import NARROW, WIDE
from fastresnet.kernels.winograd_math import FILTERINGS, TAPS, Filtering, num_products, tile_of
from fastresnet.resnet import build_model
from fastresnet.run import Convs, RunConfig
from fastresnet.training import resume
from fastresnet.training_warmup import warm_up_step

pytestmark = pytest.mark.skipif(winograd_obstacle("cpu") is not None, reason=str(winograd_obstacle("cpu")))
# Of the greatest element, which a float32's rounding errors grow with; about three times what was seen.
TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 2**-8}


def made(
    batch: int, inputs: int, outputs: int, height: int, width: int, dtype: torch.dtype = torch.float32
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return x, weight and dy, drawn."""
    drawn = torch.Generator().manual_seed(inputs + 7 * height + 11 * width)
    x = torch.randn(batch, inputs, height, width, generator=drawn).to(dtype)
    weight = torch.randn(outputs, inputs, TAPS, TAPS, generator=drawn) / (inputs * 9) ** 0.5
    dy = torch.randn(batch, outputs, height, width, generator=drawn).to(dtype)
    return tuple(t.to(memory_format=torch.channels_last) for t in (x, weight, dy))  # type: ignore[return-value]


def exact(x: torch.Tensor, weight: torch.Tensor, dy: torch.Tensor) -> list[torch.Tensor]:
    """Return y, dx and dweight in float64."""
    x, weight = x.double().requires_grad_(), weight.double().requires_grad_()
    y = functional.conv2d(x, weight, padding=1)
    return [y.detach(), *torch.autograd.grad(y, (x, weight), dy.double())]


def close(found: torch.Tensor, wanted: torch.Tensor, tolerance: float) -> bool:
    return bool((found.double() - wanted).abs().max() <= tolerance * wanted.abs().max())


@given(st.sampled_from([*FILTERINGS.values()]), st.lists(st.floats(-8, 8), min_size=11, max_size=11))
def test_a_tile_in_one_dimension_is_a_convolution(filtering: Filtering, values: list[float]) -> None:
    x, w = np.array(values[: filtering.points]), np.array(values[-TAPS:])
    wanted = [x[i : i + TAPS] @ w for i in range(filtering.tile)]
    found = filtering.outputs @ ((filtering.filters @ w) * (filtering.inputs @ x))
    np.testing.assert_allclose(found, wanted, atol=1e-9)


@pytest.mark.parametrize(
    ("height", "width", "tile", "products"),
    [
        *((32, 32, 4, 64 * 36), (24, 24, 6, 16 * 64), (16, 16, 4, 16 * 36), (12, 12, 6, 4 * 64)),
        *((8, 8, 4, 4 * 36), (6, 6, 6, 64), (4, 4, 4, 36), (3, 3, 4, 36)),
        (15, 31, 4, 32 * 36),  # as many as of greater tiles, 18 * 64
        (11, 17, 6, 6 * 64),
        (24, 16, 6, 12 * 64),
    ],
)
def test_a_map_has_the_tiles_that_multiply_it_least(
    height: int, width: int, tile: int, products: int
) -> None:
    assert tile_of(height, width) == tile
    assert min(num_products(each, height, width) for each in FILTERINGS) == products
    assert num_products(tile, height, width) == products


def test_a_compiled_network_has_it_without_a_break() -> None:
    """Dynamo refused how its tiles were chosen, so that each convolution broke the graph."""
    convs = torch.nn.Sequential(Conv3x3(16, 16), Conv3x3(16, 32))
    set_convs(convs, "winograd")
    x, _, _ = made(6, 16, 16, 24, 24)
    compiled = torch.compile(convs, backend="aot_eager", fullgraph=True)
    found, wanted = compiled(x.requires_grad_()), convs(x)
    assert torch.equal(found, wanted)
    assert torch.equal(*(torch.autograd.grad(y.sum(), x)[0] for y in (found, wanted)))


SHAPES = {
    "whole tiles": (3, 16, 32, 32, 32),
    "tiles cut off below and right": (12, 32, 16, 15, 31),
    "one tile an image": (100, 16, 48, 4, 4),
    "images smaller than a tile": (97, 16, 16, 3, 2),
    "wide": (4, 96, 160, 28, 28),
    "one greater tile an image": (100, 16, 32, 6, 6),
    "greater tiles cut off": (20, 32, 16, 11, 17),
}


@pytest.mark.parametrize("target", [NARROW, WIDE], ids=["256 bits", "512 bits"])
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("shape", SHAPES.values(), ids=list(SHAPES))
def test_it_is_the_convolution_and_its_gradients(
    shape: tuple[int, ...],
    dtype: torch.dtype,
    target: winograd_code.Target,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Code for wide registers is split where a processor has narrow ones."""
    monkeypatch.setattr(winograd_code, "host_target", lambda: target)
    x, weight, dy = made(*shape, dtype=dtype)
    assert takes(x, weight)
    x.requires_grad_()
    weight.requires_grad_()
    y = winograd_conv(x, weight)
    dx, dweight = torch.autograd.grad(y, (x, weight), dy)
    assert y.is_contiguous(memory_format=torch.channels_last) and y.dtype == dx.dtype == dtype
    assert dweight.dtype == torch.float32
    wanted_y, wanted_dx, wanted_dweight = exact(x, weight, dy)
    assert close(y, wanted_y, TOLERANCE[dtype])
    assert close(dx, wanted_dx, TOLERANCE[dtype])
    assert close(dweight, wanted_dweight, TOLERANCE[torch.float32])


@settings(max_examples=20)
@given(
    *(st.integers(1, 40), st.sampled_from([16, 32, 48]), st.sampled_from([16, 64])),
    *(st.integers(1, 19), st.integers(1, 19)),
)
def test_it_is_the_convolution_at_any_size(
    batch: int, inputs: int, outputs: int, height: int, width: int
) -> None:
    x, weight, dy = made(batch, inputs, outputs, height, width)
    found = winograd_conv(x, weight), winograd_conv_input(dy, weight), winograd_conv_weight(dy, x)
    for one, wanted in zip(found, exact(x, weight, dy), strict=True):
        assert close(one, wanted, TOLERANCE[torch.float32])


def test_the_ops_are_registered_as_torch_wants_them() -> None:
    x, weight, dy = made(6, 16, 16, 16, 16)
    torch.library.opcheck(winograd_conv, (x.requires_grad_(), weight.requires_grad_()))
    torch.library.opcheck(winograd_conv_input, (dy, weight.detach()))
    torch.library.opcheck(winograd_conv_weight, (dy, x.detach()))


def test_memory_formats_and_views_are_taken() -> None:
    x, weight, _ = made(6, 16, 32, 16, 16)
    wanted = winograd_conv(x, weight)
    assert torch.equal(winograd_conv(x.contiguous(), weight.contiguous()), wanted)
    assert torch.equal(
        winograd_conv(torch.cat([x, x])[::2][3:], weight), torch.cat([wanted, wanted])[::2][3:]
    )


def test_bits_depend_on_the_number_of_threads_alone() -> None:
    x, weight, dy = made(32, 32, 32, 16, 16)
    before = torch.get_num_threads()
    found: dict[int, list[tuple[torch.Tensor, ...]]] = {}
    try:
        for threads in (1, 2, 1, 2, 3, 2):
            torch.set_num_threads(threads)
            results = (
                winograd_conv(x, weight),
                winograd_conv_input(dy, weight),
                winograd_conv_weight(dy, x),
            )
            found.setdefault(threads, []).append(results)
    finally:
        torch.set_num_threads(before)
    for runs in found.values():
        assert all(torch.equal(a, b) for run in runs for a, b in zip(run, runs[0], strict=True))
    # Each output is summed by one thread; only the filters' gradient is shared out.
    assert all(torch.equal(found[1][0][i], found[3][0][i]) for i in (0, 1))


FEWER_THREADS = """
import torch
from fastresnet.kernels.winograd import winograd_conv_weight
x = torch.arange(32 * 16 * 64.0).reshape(32, 16, 8, 8) % 7 - 3
torch.set_num_threads(1)  # oneDNN waits for ever for threads that it is not given
wanted = torch.nn.grad.conv2d_weight(x, (16, 16, 3, 3), x, padding=1)
torch.set_num_threads(3)
found = winograd_conv_weight(x, x)
assert (found - wanted).abs().max() <= 1e-4 * wanted.abs().max(), (found - wanted).abs().max()
"""


def test_nothing_is_left_out_where_the_system_gives_fewer_threads() -> None:
    """Parts that were a missing thread's were not added up."""
    environment = os.environ | {"OMP_THREAD_LIMIT": "1"}
    done = subprocess.run(
        [sys.executable, "-c", FEWER_THREADS], env=environment, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_what_is_not_finite_shows(bad: float) -> None:
    x, weight, _ = made(6, 16, 16, 16, 16)
    x[2, 3, 5, 7] = bad
    y = winograd_conv(x, weight)
    assert not torch.isfinite(y[2, :, 4:7, 6:9]).any() and torch.isfinite(y[[0, 1, 3, 4, 5]]).all()


NOT_TAKEN = {
    "channels": made(6, 24, 16, 16, 16)[:2],
    "channels of outputs": made(6, 16, 24, 16, 16)[:2],
    "few tiles": made(2, 16, 16, 16, 16)[:2],
    "float64": tuple(t.double() for t in made(6, 16, 16, 16, 16)[:2]),
    "1x1": (made(6, 16, 16, 16, 16)[0], torch.zeros(16, 16, 1, 1)),
}


@pytest.mark.parametrize("name", NOT_TAKEN)
def test_what_it_does_not_take_is_done_directly(name: str) -> None:
    x, weight = NOT_TAKEN[name]
    assert not takes(x, weight)
    if weight.shape[2] == TAPS:
        conv = Conv3x3(weight.shape[1], weight.shape[0]).to(weight.dtype)
        wanted = conv(x)
        conv.convs = "winograd"
        assert torch.equal(conv(x), wanted)


def test_a_module_is_that_of_torch_but_for_how_it_is_done() -> None:
    x, _, _ = made(6, 16, 16, 16, 16)
    plain = torch.nn.Conv2d(16, 16, 3, padding=1, bias=False)
    conv = Conv3x3(16, 16)
    conv.load_state_dict(plain.state_dict())
    assert torch.equal(conv(x), plain(x))
    conv.convs = "winograd"
    assert torch.equal(conv(x), winograd_conv(x, conv.weight)) and not torch.equal(conv(x), plain(x))
    with torch.autocast("cpu", torch.bfloat16):
        y = conv(x)
    assert y.dtype == torch.bfloat16
    assert torch.equal(y, winograd_conv(x.bfloat16(), conv.weight))
    conv.weight.requires_grad_(False)
    conv(x.requires_grad_()).sum().backward()
    assert conv.weight.grad is None and x.grad is not None


def test_a_network_learns_the_same_with_it() -> None:
    """A ReLU whose input is nearly 0 may fall on the other side, as with direct convolutions it may too."""
    torch.manual_seed(0)
    model = build_model(get_arch("resnet8")).to(memory_format=torch.channels_last)
    images, labels = made(8, 3, 16, 32, 32)[0], torch.arange(8)

    def gradients(convs: str, dtype: torch.dtype) -> dict[str, torch.Tensor]:
        set_convs(model.to(dtype), convs)
        model.zero_grad()
        functional.cross_entropy(model(images.to(dtype)), labels).backward()
        return {name: p.grad.double() for name, p in model.named_parameters() if p.grad is not None}

    found = gradients("winograd", torch.float32)
    for name, wanted in gradients("direct", torch.float64).items():
        assert (found[name] - wanted).norm() <= 0.03 * wanted.norm(), name


def test_a_run_with_it_resumes_to_the_same_bits(data: Path, runs: Path, tmp_path: Path) -> None:
    overrides = {"arch": "n2-b1-c16", "batch_size": 2 * BATCH}
    whole = train_tiny(data, tmp_path / "whole", overrides, convs="winograd")
    run = stop(data, runs, StopAt(5), overrides, convs="winograd")
    assert resume(run.name, runs_dir=runs).config.convs == "winograd"
    assert_same_science(run, whole)


@pytest.mark.parametrize(("seconds", "convs"), [(0.5, "winograd"), (1.0, "direct")])
def test_the_faster_convolutions_are_taken(
    seconds: float, convs: str, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def timed(times: step_time.StepTimes, *args: Any, **kwargs: Any) -> float:
        return seconds if times.step.way.convs == "winograd" else 1.0

    monkeypatch.setattr(step_time.StepTimes, "_timed", timed)
    overrides = {"arch": "n2-b1-c16", "epochs": 100}
    made_step = Made(data, overrides, Way())
    config = made_step.chosen.config.model_copy(update={"compile": "off", "convs": "auto"})
    chosen = replace(made_step.chosen, config=config)
    found = warm_up_step(made_step.step, made_step.recipe, chosen, made_step.data)
    assert found.way == Way(convs=convs) and found.options["convs"] == convs
    assert found.reasons["convs"] == (
        f"a step took {1e3 * seconds:,.0f} ms with winograd convolutions, 1,000 ms with direct convolutions"
    )
    few = made_step.recipe.with_overrides({"epochs": 1})
    found = warm_up_step(made_step.step, few, chosen, made_step.data)
    assert found.way == Way() and found.reasons["convs"] == "the run is too short for measuring to pay"
    monkeypatch.setattr(warmup, "WORTH_GENERATING_S", 0.0)
    found = warm_up_step(made_step.step, few, chosen, made_step.data)
    assert found.reasons["convs"] == "the run is too short for measuring to pay", "in steps"
    by_rule = replace(chosen, config=config.model_copy(update={"deterministic": True}))
    found = warm_up_step(made_step.step, made_step.recipe, by_rule, made_step.data)
    assert found.way == Way() and found.reasons["convs"] == "deterministic, so not measured"
    made_step.loaders.close()


def test_slow_steps_are_measured_few_times(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    steps: list[Way] = []

    def timed(times: step_time.StepTimes, *args: Any, **kwargs: Any) -> float:
        steps.append(times.step.way)
        return 2.5 if times.step.way.convs == "winograd" else 5.0

    monkeypatch.setattr(step_time.StepTimes, "_timed", timed)
    made_step = Made(data, {"arch": "n2-b1-c16", "epochs": 100}, Way())
    config = made_step.chosen.config.model_copy(
        update={"compile": "off", "kernels": "eager", "convs": "auto"}
    )
    chosen = replace(made_step.chosen, config=config)
    assert warm_up_step(made_step.step, made_step.recipe, chosen, made_step.data).way.convs == "winograd"
    assert len(steps) <= 16 and steps.count(Way()) <= 7, "twice that, minutes of a deep network, before"
    made_step.loaders.close()


def test_an_image_of_other_channels_is_pytorchs_error_and_never_read_past() -> None:
    conv = Conv3x3(16, 16)
    conv.convs = "winograd"
    with pytest.raises(RuntimeError, match="to have 16 channels, but got 32 channels"):
        conv(torch.zeros(8, 32, 16, 16))
    assert conv(torch.zeros(16, 16, 16)).shape == (16, 16, 16)
    x, weight = torch.zeros(8, 32, 16, 16), torch.zeros(16, 16, 3, 3)
    for call in (
        lambda: torch.ops.fastresnet.winograd_conv(x, weight),
        lambda: torch.ops.fastresnet.winograd_conv(x[:, :16], weight.bfloat16()),
        lambda: torch.ops.fastresnet.winograd_conv_input(x, weight),
        lambda: torch.ops.fastresnet.winograd_conv_weight(x.bfloat16(), x),
        lambda: torch.ops.fastresnet.winograd_conv_weight(x[:, :24], x),
    ):
        with pytest.raises(AssertionError):
            call()


def test_autocast_leaves_float64_alone() -> None:
    conv = Conv3x3(16, 16).double()
    conv.convs = "winograd"
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert conv(torch.zeros(8, 16, 16, 16, dtype=torch.float64)).dtype == torch.float64


def test_parts_are_no_more_than_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine of many cores keeps no sums that nothing is added to."""
    asked: list[tuple[int, ...]] = []
    zeros = torch.zeros
    monkeypatch.setattr(torch, "zeros", lambda *size, **kw: asked.append(size) or zeros(*size, **kw))
    x = torch.ones(96, 16, 4, 4)
    before = torch.get_num_threads()
    torch.set_num_threads(8)
    found = winograd_conv_weight(x, x)
    torch.set_num_threads(before)
    assert (3, 36, 16, 16) in asked
    assert torch.allclose(found, torch.nn.grad.conv2d_weight(x, (16, 16, 3, 3), x, padding=1), rtol=1e-4)


def test_where_it_cannot_be_had_is_said() -> None:
    narrow, wide = build_model(get_arch("n2-b1-c12")), build_model(get_arch("resnet8"))
    assert "multiples of 16" in str(model_obstacle(narrow, "winograd", "cpu", "off"))
    assert model_obstacle(wide, "winograd", "cpu", "off") is None
    assert model_obstacle(wide, "winograd", "cuda", "off") == "Winograd's are for CPUs"
    with pytest.raises(UserError, match="--convs winograd cannot be had: Winograd's are for CPUs"):
        check_convs("winograd", "cuda", "off")
    with pytest.raises(UserError, match=r"^convs is 'winogard'; did you mean 'winograd'"):
        RunConfig.parse(convs="winogard")
    assert get_args(Convs) == ("auto", *CONVS)
