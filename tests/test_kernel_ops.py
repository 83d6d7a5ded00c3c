"""The ops as PyTorch sees them: registration, gradients, what is saved, compile, export, autocast."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
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
from optional_parts import need
from torch import nn
from torch._dynamo.testing import CompileCounterWithBackend

from fastresnet.errors import UserError
from fastresnet.kernels import ops
from fastresnet.kernels.norm_act import BatchNormAct2d

SHAPE = (2, 8, 4, 3)


@pytest.fixture(params=[ops.PLAIN, 0], ids=["plain", "triton"])
def tuning(request: pytest.FixtureRequest) -> int:
    if request.param != ops.PLAIN:
        need("triton")
    return request.param


def op_calls(tuning: int) -> dict[str, tuple[Any, tuple[Any, ...]]]:
    """Return a call of every op: its name, itself, its arguments."""
    problem = make_problem(SHAPE, "norm", torch.float32)
    x, weight, bias, residual, residual_weight, residual_bias = problem.leaves()
    mean, var = (t.detach() for t in ops.bn_statistics(x.detach(), ops.PLAIN))
    norm = (weight, bias, mean, var)
    bits = ops.bn_act(x, weight, bias, residual, EPS, "relu", ops.PLAIN)[3]
    dy, residual_norm = problem.dy, (residual_weight, residual_bias, mean + 0.1, var + 0.1)
    return {
        "bn_act": (ops.bn_act, (x, weight, bias, residual, EPS, "relu", tuning)),
        "bn_act, nothing added": (ops.bn_act, (x, weight, bias, None, EPS, "silu", tuning)),
        "bn_statistics": (ops.bn_statistics, (x.detach(), tuning)),
        "bn_act_apply": (ops.bn_act_apply, (x, *norm, residual, None, EPS, "gelu", "", tuning)),
        "dual_bn_act": (
            ops.dual_bn_act,
            (x, weight, bias, residual, residual_weight, residual_bias, EPS, EPS, "relu", tuning),
        ),
        "bn_act_backward": (
            ops.bn_act_backward,
            (dy, x, *norm, bits, None, EPS, "relu", True, tuning),
        ),
        "bn_act_sums": (ops.bn_act_sums, (dy, x, *norm, bits[:0], None, EPS, "silu", False, tuning)),
        "bn_act_input_gradient": (
            ops.bn_act_input_gradient,
            (dy, x, *norm, torch.stack([mean, mean]), EPS, "relu", False, tuning),
        ),
        "dual_bn_act_backward": (
            ops.dual_bn_act_backward,
            (dy, x, *norm, residual, *residual_norm, EPS, EPS, "relu", tuning),
        ),
    }


CALLS = list(op_calls(ops.PLAIN))
CHECKED_ELSEWHERE = ("winograd", "amx", "max_pool")  # in a test module by that name
BACKWARDS = ["bn_act_backward", "bn_act_sums", "bn_act_input_gradient", "dual_bn_act_backward"]


@pytest.mark.parametrize("name", CALLS)
def test_registration(name: str, tuning: int) -> None:
    op, arguments = op_calls(tuning)[name]
    # a backward op has a derivative only to refuse it: it is checked as it is called, without gradients
    if name in BACKWARDS:
        arguments = tuple(a.detach() if isinstance(a, torch.Tensor) else a for a in arguments)
    torch.library.opcheck(op, arguments)


def test_every_op_is_checked() -> None:
    registered = {
        name.split("::")[1].split(".")[0]
        for name in torch._C._dispatch_get_all_op_names()
        if name.startswith("fastresnet::") and not any(other in name for other in CHECKED_ELSEWHERE)
    }
    assert registered == {name.split(",")[0] for name in CALLS}


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("added", ADDED)
def test_gradcheck_in_float64(activation: str, added: str) -> None:
    leaves = make_problem(SHAPE, added, torch.float64).leaves(torch.float64)

    def run(*inputs: torch.Tensor | None) -> torch.Tensor:
        if added == "norm":
            return ops.dual_bn_act(*inputs, EPS, EPS, activation, ops.PLAIN)[0]
        return ops.bn_act(*inputs[:4], EPS, activation, ops.PLAIN)[0]

    assert torch.autograd.gradcheck(run, leaves)


@pytest.mark.parametrize("activation", ["relu", "gelu"])
def test_gradcheck_of_constant_statistics(activation: str) -> None:
    x, weight, bias, residual, *_ = make_problem(SHAPE, "plain", torch.float64).leaves(torch.float64)
    mean, var = torch.randn(8, dtype=torch.float64), torch.rand(8, dtype=torch.float64) + 0.5

    def run(x: Any, weight: Any, bias: Any, residual: Any) -> torch.Tensor:
        mean_here, var_here = mean.to(x.device), var.to(x.device)
        return ops.bn_act_apply(
            x, weight, bias, mean_here, var_here, residual, None, EPS, activation, "", ops.PLAIN
        )[0]

    assert torch.autograd.gradcheck(run, (x, weight, bias, residual))


@pytest.mark.parametrize("added", ADDED)
def test_a_second_derivative_is_refused(added: str, tuning: int) -> None:
    leaves = make_problem(SHAPE, added).leaves()
    if added == "norm":
        y = ops.dual_bn_act(*leaves, EPS, EPS, "silu", tuning)[0]
    else:
        y = ops.bn_act(*leaves[:4], EPS, "silu", tuning)[0]
    (dx,) = torch.autograd.grad(y.square().sum(), leaves[0], create_graph=True)
    with pytest.raises(UserError, match="no second derivative; build with kernels='eager'"):
        dx.square().sum().backward()


@pytest.mark.parametrize(
    ("activation", "added", "extra"),
    [
        ("relu", "none", 0),
        ("relu", "plain", 2 * 8 * 12 // 8),  # a bit an element
        ("gelu", "plain", 0),  # the residual, which is an input
        ("gelu", "norm", 0),
    ],
)
def test_backward_keeps_inputs_and_statistics_alone(
    activation: str, added: str, extra: int, tuning: int
) -> None:
    leaves = make_problem(SHAPE, added, torch.bfloat16).leaves()
    inputs = {t.data_ptr() for t in leaves if t is not None}
    kept: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.data_ptr() not in inputs and tensor.numel():
            kept[tensor.data_ptr()] = tensor.nbytes
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        if added == "norm":
            y = ops.dual_bn_act(*leaves, EPS, EPS, activation, tuning)[0]
        else:
            y = ops.bn_act(*leaves[:4], EPS, activation, tuning)[0]
    statistics = (2 if added == "norm" else 1) * 2 * 8 * 4  # mean and variance of 8 channels, float32
    assert y.requires_grad and sum(kept.values()) == statistics + extra


class Net(nn.Module):
    """A stem, a block with a shortcut of its own and one with an identity: every kind of fusion."""

    def __init__(self, kernels: str) -> None:
        super().__init__()
        self.conv = nn.ModuleList(
            nn.Conv2d(i, o, 3, padding=1, bias=False) for i, o in ((3, 8), (8, 8), (8, 8), (8, 8))
        )
        self.norm = nn.ModuleList(BatchNormAct2d(8, "relu", kernels=kernels) for _ in range(3))
        self.shortcut_norm = BatchNormAct2d(8, "identity", kernels=kernels)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.norm[0](self.conv[0](x))
        x = self.norm[1](self.conv[1](x), residual=self.conv[2](x), residual_norm=self.shortcut_norm)
        return self.norm[2](self.conv[3](x), residual=x).mean((2, 3))


def make_net(kernels: str) -> Net:
    torch.manual_seed(0)
    return Net(kernels).to(DEVICE, memory_format=torch.channels_last)


def images() -> torch.Tensor:
    values = torch.randn(2, 3, 6, 6, generator=torch.Generator().manual_seed(1))
    return values.to(DEVICE).contiguous(memory_format=torch.channels_last)


def step(net: nn.Module, run: Callable[[torch.Tensor], torch.Tensor]) -> list[torch.Tensor]:
    """Return (logits, gradients, buffers) of one training step."""
    logits = run(images())
    logits.square().sum().backward()
    return [
        logits.detach(),
        *(p.grad for p in net.parameters()),
        *(b.clone().double() for b in net.buffers()),
    ]


@pytest.mark.parametrize("training", [True, False])
def test_a_net_of_them_is_the_plain_net(training: bool) -> None:
    need("triton")
    results = []
    for kernels in ("eager", "triton"):
        net = make_net(kernels).train(training)
        results.append(step(net, net))
    torch.testing.assert_close(*results, rtol=2e-4, atol=2e-5)


@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_compiled_whole(backend: str) -> None:
    """One graph, no break, the same numbers, buffers moved once."""
    need("triton")
    net, plain = make_net("triton"), make_net("triton")
    compiled = torch.compile(net, backend=backend, fullgraph=True)
    torch.testing.assert_close(step(net, compiled), step(plain, plain), rtol=1e-4, atol=1e-5)


def test_compiled_once() -> None:
    need("triton")
    torch._dynamo.reset()
    counter = CompileCounterWithBackend("aot_eager")
    net = make_net("triton")
    compiled = torch.compile(net, backend=counter, fullgraph=True)
    for _ in range(3):
        step(net, compiled)
    assert counter.frame_count == 1


@pytest.mark.parametrize("training", [True, False])
def test_export(training: bool) -> None:
    need("triton")
    net = make_net("triton").train(training)
    exported = torch.export.export(net, (images(),))
    names = {str(node.target) for node in exported.graph.nodes if "fastresnet" in str(node.target)}
    assert names == (
        {"fastresnet.bn_act.default", "fastresnet.dual_bn_act.default"}
        if training
        else {"fastresnet.bn_act_apply.default"}
    )
    torch.testing.assert_close(exported.module()(images()), net(images()))


def test_autocast_keeps_weights_and_statistics_in_float32() -> None:
    need("triton")
    net = make_net("triton")
    seen = []
    net.norm[1].register_forward_hook(
        lambda module, inputs, output: seen.append((inputs[0].dtype, output.dtype))
    )
    with torch.autocast(DEVICE.type, torch.bfloat16):
        loss = net(images()).float().square().sum()
    loss.backward()
    assert seen == [(torch.bfloat16, torch.bfloat16)]
    assert all(p.grad.dtype == torch.float32 for p in net.parameters())
    assert all(norm.running_var.dtype == torch.float32 for norm in net.norm)
    plain = make_net("eager")
    with torch.autocast(DEVICE.type, torch.bfloat16):
        plain_loss = plain(images()).float().square().sum()
    torch.testing.assert_close(loss, plain_loss, rtol=2e-2, atol=0)
    torch.testing.assert_close(net.norm[0].running_mean, plain.norm[0].running_mean)


@pytest.mark.parametrize("added", ADDED)
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_plain_ops_against_float64(activation: str, added: str) -> None:
    problem = without_kinks(make_problem((3, 13, 5, 7), added), activation)
    assert_close(fused(problem, activation, ops.PLAIN), expected(problem, activation), torch.float32)
