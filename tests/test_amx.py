"""The filters' gradient by AMX: values, threads, odd sizes, in training, and where it is not to be had."""

from __future__ import annotations

import ctypes
import os
import platform
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from llvmlite import binding
from made_steps import Made
from tiny_runs import StopAt, assert_same_science, stop, train_tiny
from torch.nn import functional

from fastresnet.arch import get_arch
from fastresnet.cli import doctor
from fastresnet.engine import step_time
from fastresnet.engine.way import Way
from fastresnet.errors import UserError
from fastresnet.kernels import amx
from fastresnet.kernels.amx import TAPS, amx_conv, amx_conv_weight, amx_obstacle, takes
from fastresnet.kernels.conv import Conv3x3, check_convs, model_obstacle, set_convs
from fastresnet.resnet import build_model
from fastresnet.run import RunConfig
from fastresnet.training import MachineDiffers, resume
from fastresnet.training_warmup import warm_up_step

needs_amx = pytest.mark.skipif(amx_obstacle("cpu") is not None, reason=str(amx_obstacle("cpu")))
TOLERANCE = 2e-6  # of the greatest element: float32's rounding, ten times what was seen
WIDE = "n2-b1-c16"
NO_AMX = "this processor has no AMX for bfloat16"


@pytest.fixture(autouse=True)
def poison(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Fill every new tensor with NaN, take little work too, and let three threads share unequal parts of it."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    monkeypatch.setattr(torch.utils.deterministic, "fill_uninitialized_memory", True)
    monkeypatch.setattr(amx, "MIN_PRODUCTS", 1)
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    yield
    torch.set_num_threads(before)
    torch.use_deterministic_algorithms(False)


def made(
    batch: int, inputs: int, outputs: int, height: int, width: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return bfloat16 x and dy, and a float32 weight, drawn."""
    drawn = torch.Generator().manual_seed(inputs + 7 * height + 11 * width)
    x = torch.randn(batch, inputs, height, width, generator=drawn).bfloat16()
    dy = torch.randn(batch, outputs, height, width, generator=drawn).bfloat16()
    weight = torch.randn(outputs, inputs, TAPS, TAPS, generator=drawn) / (inputs * 9) ** 0.5
    return tuple(t.to(memory_format=torch.channels_last) for t in (x, dy, weight))  # type: ignore[return-value]


def check(x: torch.Tensor, dy: torch.Tensor) -> None:
    found = amx_conv_weight(dy, x)
    size = dy.shape[1], x.shape[1], TAPS, TAPS
    wanted = torch.nn.grad.conv2d_weight(x.double(), size, dy.double(), padding=1)
    assert found.dtype == torch.float32 and found.is_contiguous(memory_format=torch.channels_last)
    assert (found.double() - wanted).abs().max() <= TOLERANCE * wanted.abs().max()


SHAPES = {
    "a line an image's row": (3, 48, 64, 32, 32),
    "two images side by side": (9, 16, 32, 16, 16),
    "four": (33, 64, 16, 8, 8),
    "eight": (70, 32, 48, 4, 4),
    "more sums than a few parts may have": (5, 272, 256, 3, 3),
    "images that leave some of a line over": (20, 16, 32, 7, 9),
    "one image": (1, 16, 16, 5, 31),
}


@needs_amx
@pytest.mark.parametrize("shape", SHAPES.values(), ids=list(SHAPES))
def test_it_is_the_gradient(shape: tuple[int, ...]) -> None:
    x, dy, _ = made(*shape)
    check(x, dy)


@needs_amx
@settings(max_examples=25)
@given(
    *(st.integers(1, 40), st.sampled_from([16, 32, 48]), st.sampled_from([16, 64])),
    *(st.integers(1, 12) | st.just(32), st.integers(1, 32)),
    *(st.sampled_from([1, 8, 32]), st.sampled_from([1, 1 << 17, 1 << 21])),
)
def test_it_is_the_gradient_at_any_size(
    batch: int, inputs: int, outputs: int, height: int, width: int, block_lines: int, sum_bytes: int
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(amx, "BLOCK_LINES", block_lines)
        patch.setattr(amx, "MAX_SUM_BYTES", sum_bytes)
        x, dy, _ = made(batch, inputs, outputs, height, width)
        check(x, dy)


@needs_amx
def test_bits_depend_on_the_inputs_alone() -> None:
    x, dy, _ = made(32, 48, 32, 16, 16)
    found = []
    for threads in (1, 2, 3, 2):
        torch.set_num_threads(threads)
        found.append(amx_conv_weight(dy, x))
    assert all(torch.equal(one, found[0]) for one in found)


FEWER_THREADS = """
import torch
from fastresnet.kernels.amx import amx_conv_weight, amx_obstacle
assert amx_obstacle("cpu") is None
x = (torch.arange(32 * 16 * 64.0).reshape(32, 16, 8, 8) % 7 - 3).bfloat16()
torch.set_num_threads(1)  # oneDNN waits for ever for threads that it is not given
wanted = torch.nn.grad.conv2d_weight(x.float(), (16, 16, 3, 3), x.float(), padding=1)
torch.set_num_threads(3)
assert torch.equal(amx_conv_weight(x, x), wanted)  # whole numbers
"""


@needs_amx
def test_nothing_is_left_out_where_the_system_gives_fewer_threads() -> None:
    environment = os.environ | {"OMP_THREAD_LIMIT": "1"}
    done = subprocess.run(
        [sys.executable, "-c", FEWER_THREADS], env=environment, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr


@needs_amx
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_what_is_not_finite_shows(bad: float) -> None:
    x, dy, _ = made(6, 32, 32, 16, 16)
    x[2, 3, 5, 7] = bad
    found = amx_conv_weight(dy, x)
    assert not found[:, 3].isfinite().any() and found[:, [*range(3), *range(4, 32)]].isfinite().all()
    x[2, 3, 5, 7] = 1
    dy[0, 20, 0, 0] = bad
    found = amx_conv_weight(dy, x)
    assert not found[20, :, 0, 0].isfinite().any() or not found[20, :, 1, 1].isfinite().any()
    assert found[[*range(20), *range(21, 32)]].isfinite().all()


@needs_amx
def test_the_ops_are_registered_as_torch_wants_them() -> None:
    x, dy, weight = made(8, 16, 32, 16, 16)
    torch.library.opcheck(amx_conv, (x.requires_grad_(), weight.requires_grad_()))
    torch.library.opcheck(amx_conv_weight, (dy, x.detach()))


@needs_amx
def test_memory_formats_and_views_are_taken() -> None:
    x, dy, _ = made(6, 16, 32, 16, 16)
    wanted = amx_conv_weight(dy, x)
    assert torch.equal(amx_conv_weight(dy.contiguous(), x.contiguous()), wanted)
    assert torch.equal(amx_conv_weight(torch.cat([dy, dy])[6:], torch.cat([x, x])[:6]), wanted)


@needs_amx
def test_only_the_filters_gradient_is_another() -> None:
    x, dy, weight = made(8, 16, 32, 16, 16)
    conv = Conv3x3(16, 32)
    conv.weight.data = weight
    found = {}
    for convs in ("direct", "amx"):
        conv.convs, conv.weight.grad = convs, None
        images = x.float().requires_grad_()
        with torch.autocast("cpu", torch.bfloat16):
            y = conv(images)
        y.backward(dy)
        assert y.dtype == torch.bfloat16 and conv.weight.grad is not None
        found[convs] = y, images.grad, conv.weight.grad
    assert all(torch.equal(a, b) for a, b in zip(found["amx"][:2], found["direct"][:2], strict=True))
    assert torch.equal(found["amx"][2], amx_conv_weight(dy, x)), "with a float32's digits"
    torch.testing.assert_close(found["amx"][2], found["direct"][2], rtol=2**-8, atol=1e-3)
    conv.weight.requires_grad_(False)
    with torch.autocast("cpu", torch.bfloat16):
        conv(images).sum().backward()


NOT_TAKEN: dict[str, Callable[[], tuple[torch.Tensor, torch.Tensor]]] = {
    "channels": lambda: made(8, 24, 16, 16, 16)[::2],  # type: ignore[dict-item, return-value]
    "images that fill little of a line": lambda: made(8, 16, 16, 16, 23)[::2],  # type: ignore[dict-item, return-value]
    "wide images": lambda: made(4, 16, 16, 24, 33)[::2],  # type: ignore[dict-item, return-value]
    "float32": lambda: tuple(t.float() for t in made(8, 16, 16, 16, 16)[::2]),  # type: ignore[return-value]
    "bfloat16 weights": lambda: tuple(t.bfloat16() for t in made(8, 16, 16, 16, 16)[::2]),  # type: ignore
}


@pytest.mark.parametrize("name", NOT_TAKEN)
def test_what_it_does_not_take_is_done_directly(name: str) -> None:
    x, weight = NOT_TAKEN[name]()
    assert not takes(x, weight)
    conv = Conv3x3(weight.shape[1], weight.shape[0])
    conv.weight.data = weight.to(x.dtype)
    wanted = conv(x)
    conv.convs = "amx"
    assert torch.equal(conv(x), wanted)


@needs_amx
def test_little_work_is_done_directly(monkeypatch: pytest.MonkeyPatch) -> None:
    x, _, weight = made(4, 16, 32, 8, 8)
    monkeypatch.setattr(amx, "MIN_PRODUCTS", 4 * 16 * 32 * 64)
    assert takes(x, weight) and not takes(x[:3], weight)


@needs_amx
def test_an_image_of_other_channels_is_never_read_past() -> None:
    x, dy, weight = made(8, 16, 32, 16, 16)
    with pytest.raises(RuntimeError, match="to have 16 channels, but got 32 channels"):
        amx_conv(dy, weight)
    for call in (
        lambda: amx_conv_weight(dy, x[:, :8]),
        lambda: amx_conv_weight(dy[:, :8], x),
        lambda: amx_conv_weight(dy[:4], x),
        lambda: amx_conv_weight(dy, x[:, :, 1:]),
        lambda: amx_conv_weight(dy.float(), x.float()),
    ):
        with pytest.raises(AssertionError):
            call()


@needs_amx
def test_a_compiled_network_has_it_in_one_graph() -> None:
    x, dy, weight = made(8, 16, 32, 16, 16)
    conv = Conv3x3(16, 32)
    conv.weight.data, conv.convs = weight, "amx"
    with torch.autocast("cpu", torch.bfloat16):
        torch.compile(conv, backend="aot_eager", fullgraph=True)(x).backward(dy)
    assert conv.weight.grad is not None and torch.equal(conv.weight.grad, amx_conv_weight(dy, x))


@needs_amx
def test_a_second_derivative_is_refused_in_one_line() -> None:
    x, _, weight = made(8, 16, 16, 16, 16)
    y = amx_conv(x, weight.requires_grad_()).float().square().sum()
    (gradient,) = torch.autograd.grad(y, weight, create_graph=True)
    with pytest.raises(UserError, match="no second derivative"):
        gradient.sum().backward()


@needs_amx
def test_a_network_learns_what_it_does_directly() -> None:
    """Forward and the images' gradients are the same bits, so that only the filters' rounding differs."""
    torch.manual_seed(0)
    model = build_model(get_arch("resnet8")).to(memory_format=torch.channels_last)
    images = torch.randn(8, 3, 32, 32).to(memory_format=torch.channels_last)
    found: dict[str, dict[str, torch.Tensor]] = {}
    for convs in ("direct", "amx"):
        set_convs(model, convs)
        model.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            loss = functional.cross_entropy(model(images).float(), torch.arange(8))
        loss.backward()
        found[convs] = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    others = 0
    for name, direct in found["direct"].items():
        ours = found["amx"][name]
        others += not torch.equal(ours, direct)
        assert (ours - direct).abs().max() <= 2**-8 * direct.abs().max(), name
    assert others >= 3, "convolutions of stride 1"


@needs_amx
def test_a_run_with_it_resumes_to_the_same_bits_and_not_where_there_is_none(
    data: Path, runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    overrides = {"arch": WIDE}
    how: dict[str, Any] = {"convs": "amx", "amp": "bf16"}
    called = []
    run_team = amx.run_team
    monkeypatch.setattr(amx, "run_team", lambda *args: called.append(args) or run_team(*args))
    whole = train_tiny(data, tmp_path / "whole", overrides, **how)
    assert called
    run = stop(data, runs, StopAt(5), overrides, **how)
    with monkeypatch.context() as elsewhere:
        elsewhere.setattr(amx, "_processor_obstacle", lambda: NO_AMX)
        with pytest.raises(MachineDiffers, match=f"with convs amx, which cannot be had here .{NO_AMX}"):
            resume(run.name, runs_dir=runs)
    assert resume(run.name, runs_dir=runs).config.convs == "amx"
    assert_same_science(run, whole)


@pytest.mark.parametrize(
    ("winograd_s", "amx_s", "convs"), [(1.5, 0.5, "amx"), (0.4, 0.5, "winograd"), (1.0, 1.1, "direct")]
)
def test_the_fastest_convolutions_are_taken(
    winograd_s: float, amx_s: float, convs: str, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seconds = {"winograd": winograd_s, "amx": amx_s, "direct": 1.0}
    monkeypatch.setattr(step_time.StepTimes, "_timed", lambda times, *a, **k: seconds[times.step.way.convs])
    monkeypatch.setattr(amx, "_processor_obstacle", lambda: None)
    made_step = Made(data, {"arch": WIDE, "epochs": 100}, Way())
    config = made_step.chosen.config.model_copy(update={"compile": "off", "convs": "auto", "amp": "bf16"})
    chosen = replace(made_step.chosen, config=config)
    found = warm_up_step(made_step.step, made_step.recipe, chosen, made_step.data)
    assert found.way == Way(convs=convs)
    best, other = sorted(("winograd", "amx"), key=seconds.__getitem__)
    assert found.reasons["convs"] == "a step took " + ", ".join(
        f"{1e3 * seconds[name]:,.0f} ms with {name} convolutions" for name in (best, "direct", other)
    )
    made_step.loaders.close()


def test_where_it_cannot_be_had_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    wide = build_model(get_arch("resnet8"))
    monkeypatch.setattr(amx, "_processor_obstacle", lambda: None)
    assert model_obstacle(wide, "amx", "cpu", "bf16") is None
    assert "multiples of 16" in str(model_obstacle(build_model(get_arch("n2-b1-c12")), "amx", "cpu", "bf16"))
    assert model_obstacle(wide, "amx", "cuda", "bf16") == "AMX is a CPU's"
    assert model_obstacle(wide, "amx", "cpu", "off") == "AMX is for --amp bf16"
    monkeypatch.setattr(amx, "_processor_obstacle", lambda: NO_AMX)
    with pytest.raises(UserError, match=f"^--convs amx cannot be had: {NO_AMX}; use --convs auto$"):
        check_convs("amx", "cpu", "bf16")
    assert RunConfig.parse(convs="amx").convs == "amx"
    x, dy, _ = made(8, 16, 16, 16, 16)
    with pytest.raises(UserError, match=f"by AMX cannot be had: {NO_AMX}"):
        amx_conv_weight(dy, x)
    for module in ("winograd", "amx"):
        monkeypatch.setattr(f"fastresnet.kernels.{module}.team_obstacle", lambda: None)
    monkeypatch.setattr("fastresnet.engine.machine.resolve_device", lambda *_: torch.device("cpu"))
    assert (
        doctor._convs().found
        == f"auto is measured by each run: PyTorch's against Winograd's; not AMX's: {NO_AMX}"
    )


def test_a_processor_or_a_system_without_it_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    obstacle = amx._processor_obstacle.__wrapped__
    features = dict.fromkeys(("amx-tile", "amx-bf16", "avx512bw"), True)
    asked: list[tuple[int, ...]] = []
    system = SimpleNamespace(syscall=lambda *numbers: asked.append(numbers) or granted)
    monkeypatch.setattr(platform, "machine", lambda: "x86_64")
    monkeypatch.setattr(binding, "get_host_cpu_features", lambda: features)
    monkeypatch.setattr(ctypes, "CDLL", lambda name: system)
    granted = 0
    assert obstacle() is None and asked == [(158, 0x1023, 18)]
    granted = -1
    assert obstacle() == "the system does not let a process use AMX"
    features["amx-bf16"] = False
    assert obstacle() == NO_AMX
    monkeypatch.setattr(platform, "machine", lambda: "aarch64")
    assert obstacle() == "AMX is for x86-64 processors under Linux"
