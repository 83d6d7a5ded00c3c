"""BatchNormAct2d: nn.BatchNorm2d's state and statistics, and which path takes which tensor."""

from __future__ import annotations

import copy
import subprocess
import sys
from typing import Any

import pytest
import torch
from kernel_cases import DEVICE
from optional_parts import need
from torch import nn
from torch.nn import functional as F

from fastresnet.arch import get_arch
from fastresnet.errors import UserError
from fastresnet.kernels import norm_act
from fastresnet.kernels.norm_act import KERNELS, BatchNormAct2d
from fastresnet.resnet import build_model

TRITON = [kernels for kernels in KERNELS if kernels.startswith("triton")]


@pytest.fixture
def launches(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the kernel passes that run, as they run."""
    need("triton")
    from fastresnet.kernels.launch import Launcher

    names: list[str] = []
    for name in ("forward", "apply", "statistics"):
        method = getattr(Launcher, name)

        def record(*args: Any, name: str = name, method: Any = method) -> Any:
            names.append(name)
            return method(*args)

        monkeypatch.setattr(Launcher, name, record)
    return names


def activation(
    shape: tuple[int, ...] = (3, 6, 5, 4), seed: int = 0, dtype: torch.dtype = torch.float32
) -> torch.Tensor:
    values = torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * 3 + 2
    return values.to(DEVICE, dtype).contiguous(memory_format=torch.channels_last)


def randomise(norm: nn.BatchNorm2d) -> None:
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for tensor in (norm.weight, norm.bias, norm.running_mean):
            tensor.copy_(torch.randn(tensor.shape, generator=generator))
        norm.running_var.copy_(torch.rand(norm.running_var.shape, generator=generator) + 0.2)


@pytest.mark.parametrize("kernels", KERNELS)
def test_state_dict_is_batch_norms(kernels: str) -> None:
    if kernels in TRITON:
        need("triton")
    plain, ours = nn.BatchNorm2d(6).to(DEVICE), BatchNormAct2d(6, kernels=kernels).to(DEVICE)
    randomise(plain)
    assert list(plain.state_dict()) == list(ours.state_dict())
    ours.load_state_dict(plain.state_dict())
    x = activation()
    for module in (plain, ours):
        module.train()(x)
    back = nn.BatchNorm2d(6).to(DEVICE)
    back.load_state_dict(ours.state_dict())
    torch.testing.assert_close(back.eval()(x), plain.eval()(x))


@pytest.mark.parametrize("momentum", [0.1, 0.01, None])
def test_running_statistics_are_batch_norms(momentum: float | None) -> None:
    need("triton")
    plain, ours = nn.BatchNorm2d(6).to(DEVICE), BatchNormAct2d(6, kernels="triton").to(DEVICE)
    plain.momentum = ours.momentum = momentum
    for step in range(3):
        x = activation(seed=step)
        plain(x)
        ours(x)
        for name, buffer in plain.named_buffers():
            torch.testing.assert_close(getattr(ours, name), buffer, rtol=1e-6, atol=1e-6)
    assert ours.num_batches_tracked.dtype == torch.int64 and int(ours.num_batches_tracked) == 3


def test_a_shortcuts_running_statistics_move_too() -> None:
    need("triton")
    norms = [BatchNormAct2d(6, name, kernels="triton").to(DEVICE) for name in ("relu", "identity")]
    shortcut = activation(seed=1)
    norms[0](activation(), residual=shortcut, residual_norm=norms[1])
    plain = nn.BatchNorm2d(6).to(DEVICE)
    plain(shortcut)
    for name, buffer in plain.named_buffers():
        torch.testing.assert_close(getattr(norms[1], name), buffer, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("added", ["none", "plain", "norm"])
@pytest.mark.parametrize("kernels", ["inductor", *TRITON])
def test_every_implementation_agrees(kernels: str, added: str, training: bool) -> None:
    need("triton")
    x, residual = activation(), activation(seed=1)
    results = []
    for implementation in ("eager", kernels):
        norm = BatchNormAct2d(6, "silu", kernels=implementation).to(DEVICE).train(training)
        shortcut = BatchNormAct2d(6, "identity", kernels=implementation).to(DEVICE).train(training)
        randomise(norm)
        randomise(shortcut)
        inputs = [x.clone().requires_grad_(), residual.clone().requires_grad_()]
        y = norm(
            inputs[0],
            *([] if added == "none" else [inputs[1]]),
            **({"residual_norm": shortcut} if added == "norm" else {}),
        )
        y.square().sum().backward()
        gradients = [
            t.grad for t in (*inputs, *norm.parameters(), *shortcut.parameters()) if t.grad is not None
        ]
        results.append(
            [y.detach(), *gradients, *(b.double() for b in (*norm.buffers(), *shortcut.buffers()))]
        )
    torch.testing.assert_close(*results, rtol=1e-4, atol=1e-4)
    assert torch.equal(residual, activation(seed=1)), "the residual is left as it was"


def test_channels_last_on_a_gpu_is_fused(launches: list[str]) -> None:
    norm = BatchNormAct2d(6, kernels="triton").to(DEVICE)
    norm(activation(), residual=activation())
    assert launches == ["forward"]
    norm.eval()(activation())
    assert launches == ["forward", "apply"]
    norm.train()(
        activation(),
        residual=activation(),
        residual_norm=BatchNormAct2d(6, "identity", kernels="triton").to(DEVICE),
    )
    assert launches[2:] == ["statistics", "statistics", "apply"]


@pytest.mark.parametrize(
    "case",
    ["contiguous NCHW", "residual in NCHW", "float64", "a residual of another dtype", "eager", "inductor"],
)
def test_anything_else_takes_the_plain_path(case: str, launches: list[str]) -> None:
    x, residual = activation(), activation(seed=1)
    kernels, norm_dtype = "triton", torch.float32
    if case == "contiguous NCHW":
        x = x.contiguous()
    elif case == "residual in NCHW":
        residual = residual.contiguous()
    elif case == "float64":
        x, residual, norm_dtype = x.double(), residual.double(), torch.float64
    elif case == "a residual of another dtype":
        residual = residual.half()
    else:
        kernels = case
    norm = BatchNormAct2d(6, kernels=kernels).to(DEVICE, norm_dtype)
    y = norm(x, residual=residual)
    assert launches == []
    torch.testing.assert_close(y, F.relu(F.batch_norm(x, None, None, training=True) + residual))


def test_a_cpu_without_the_interpreter_takes_the_plain_path(
    launches: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(norm_act, "INTERPRETED", False)
    norm = BatchNormAct2d(6, kernels="triton")
    norm(activation().cpu())
    assert launches == []


def test_one_value_a_channel_is_refused_as_by_batch_norm() -> None:
    need("triton")
    x = activation((1, 6, 1, 1))
    assert x.is_contiguous(memory_format=torch.channels_last)
    messages = []
    for module in (nn.BatchNorm2d(6), BatchNormAct2d(6, kernels="triton")):
        with pytest.raises(ValueError, match="more than 1 value per channel") as caught:
            module.to(DEVICE)(x)
        messages.append(str(caught.value))
    assert messages[0] == messages[1]


def test_three_dimensions_are_refused_as_by_batch_norm() -> None:
    for kernels in KERNELS:
        with pytest.raises(ValueError, match="expected 4D input"):
            BatchNormAct2d(6, kernels=kernels).to(DEVICE)(torch.randn(2, 6, 3, device=DEVICE))


def test_unknown_kernels_are_named() -> None:
    with pytest.raises(UserError, match="did you mean 'triton'"):
        BatchNormAct2d(6, kernels="tritn")


def test_copies_are_independent() -> None:
    """As the average of weights makes them."""
    need("triton")
    norm = BatchNormAct2d(6, kernels="triton").to(DEVICE)
    other = copy.deepcopy(norm)
    other(activation())
    assert int(norm.num_batches_tracked) == 0 and int(other.num_batches_tracked) == 1


def test_a_network_trains_alike_with_and_without_kernels() -> None:
    """Some steps of plain SGD: the same losses, to what rounding makes of them."""
    need("triton")
    generator = torch.Generator().manual_seed(3)
    images = (
        torch.randn(8, 3, 16, 16, generator=generator)
        .to(DEVICE)
        .contiguous(memory_format=torch.channels_last)
    )
    labels = torch.randint(10, (8,), generator=generator).to(DEVICE)
    curves = []
    for kernels in ("eager", "triton"):
        torch.manual_seed(0)
        model = build_model(get_arch("n2-b1-c8"), image_size=16, kernels=kernels).to(
            DEVICE, memory_format=torch.channels_last
        )
        optimizer = torch.optim.SGD(model.parameters(), 0.05, momentum=0.9)
        losses = []
        for _ in range(4):
            optimizer.zero_grad()
            loss = F.cross_entropy(model(images), labels)
            loss.backward()
            optimizer.step()
            losses.append(float(loss.detach()))
        curves.append(losses)
    assert curves[0][-1] < curves[0][0] - 0.1
    assert curves[0] == pytest.approx(curves[1], rel=1e-3)


@pytest.mark.parametrize("kernels", ["eager", "inductor"])
def test_plain_kernels_never_load_triton(kernels: str) -> None:
    program = f"""
import sys, torch
from fastresnet.kernels.norm_act import BatchNormAct2d
for activation in ("relu", "identity"):
    norm = BatchNormAct2d(4, activation, kernels={kernels!r})
    x = torch.randn(2, 4, 3, 3, requires_grad=True).contiguous(memory_format=torch.channels_last)
    norm(x, residual=x).sum().backward()
    norm.eval()(x)
assert "triton" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", program], check=True, timeout=120)
