"""A CPU's 2x2 max pool in generated code: PyTorch's own to the bit, in modules and when it is not to be had."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_cases import DEVICE
from torch.nn import functional

from fastresnet.arch import get_arch
from fastresnet.errors import UserError
from fastresnet.kernels import max_pool, vector_code
from fastresnet.kernels.llvm_norms import llvm_obstacle
from fastresnet.kernels.max_pool import MaxPool2x2, takes
from fastresnet.resnet import build_model, set_kernels

CPU = torch.device("cpu")
if DEVICE != CPU or llvm_obstacle("cpu"):
    pytest.skip(f"for CPUs; {llvm_obstacle('cpu')}", allow_module_level=True)

DTYPES = [torch.float32, torch.bfloat16]


@pytest.fixture(autouse=True)
def poison(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Fill every new tensor with NaN, take few elements too, and let three threads share unequal parts of them."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    monkeypatch.setattr(torch.utils.deterministic, "fill_uninitialized_memory", True)
    monkeypatch.setattr(max_pool, "WORTH_A_CALL", 1)
    monkeypatch.setattr(max_pool, "PART_ELEMENTS", 1 << 8)
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    yield
    torch.set_num_threads(before)
    torch.use_deterministic_algorithms(False)


def made(shape: tuple[int, int, int, int], dtype: torch.dtype, seed: int = 0) -> torch.Tensor:
    """Return images of few different values, so that many are equal, with zeros of both signs and infinities."""
    draws = torch.Generator().manual_seed(seed)
    values = torch.tensor([-torch.inf, -2.0, -1.0, -0.0, 0.0, 1.0, 1.5, torch.inf])
    x = values[torch.randint(len(values), shape, generator=draws)].to(dtype)
    return x.contiguous(memory_format=torch.channels_last)


def pooled(x: torch.Tensor, dy: torch.Tensor, kernels: str) -> tuple[torch.Tensor, torch.Tensor]:
    x = x.clone(memory_format=torch.preserve_format).requires_grad_()
    y = MaxPool2x2(kernels)(x)
    y.backward(dy)
    assert x.grad is not None
    return y.detach(), x.grad


def check(x: torch.Tensor) -> None:
    assert takes(x)
    batch, channels, height, width = x.shape
    dy = made((batch, channels, height // 2, width // 2), x.dtype, seed=9)
    for ours, theirs in zip(pooled(x, dy, "llvm"), pooled(x, dy, "eager"), strict=True):
        assert ours.dtype == x.dtype and ours.is_contiguous(memory_format=torch.channels_last)
        assert torch.equal(ours.isnan(), theirs.isnan())
        # As integers, by which -0 is not 0.
        bits = torch.int16 if x.dtype == torch.bfloat16 else torch.int32
        a, b = (
            each.contiguous().nan_to_num(0.0, torch.inf, -torch.inf).view(bits) for each in (ours, theirs)
        )
        assert torch.equal(a, b)


@settings(max_examples=40)
@given(
    batch=st.integers(1, 5),
    lines=st.integers(1, 5),
    height=st.integers(1, 9),
    width=st.integers(1, 9),
    dtype=st.sampled_from(DTYPES),
    lanes=st.sampled_from([8, 16]),
    streamed=st.booleans(),
    seed=st.integers(0, 2**32),
)
def test_it_is_pytorchs_to_the_bit(
    batch: int, lines: int, height: int, width: int, dtype: torch.dtype, lanes: int, streamed: bool, seed: int
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(vector_code, "host_lanes", lambda: lanes)
        patch.setattr(max_pool, "STREAMED_BYTES", 0 if streamed else 1 << 40)
        check(made((batch, 16 * lines, 2 * height, 2 * width), dtype, seed))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_nan_comes_through_and_takes_the_gradient(dtype: torch.dtype) -> None:
    x = made((3, 32, 8, 6), dtype)
    x[torch.rand(x.shape, generator=torch.Generator().manual_seed(1)) < 0.3] = torch.nan
    check(x)


def test_a_network_learns_what_it_does_with_pytorchs_pool(monkeypatch: pytest.MonkeyPatch) -> None:
    called, run = [], max_pool._run
    monkeypatch.setattr(max_pool, "_run", lambda name, *rest: called.append(name) or run(name, *rest))
    model = build_model(get_arch("n3-b1-c16-maxpool")).to(memory_format=torch.channels_last)
    set_kernels(model, "llvm")
    images = torch.randn(4, 3, 32, 32).to(memory_format=torch.channels_last)
    found = {}
    for pool in ("llvm", "eager"):
        for module in model.modules():
            if isinstance(module, MaxPool2x2):
                module.kernels = pool
        model.zero_grad()
        model(images).square().sum().backward()
        found[pool] = [parameter.grad for parameter in model.parameters()]
    assert called == ["forward"] * 2 + ["backward"] * 2
    assert all(torch.equal(a, b) for a, b in zip(found["llvm"], found["eager"], strict=True))


def test_a_gradient_in_another_format_is_taken() -> None:
    x = made((2, 16, 8, 8), torch.float32)
    dy = torch.randn(2, 16, 4, 4)
    assert not dy.is_contiguous(memory_format=torch.channels_last)
    assert all(torch.equal(a, b) for a, b in zip(pooled(x, dy, "llvm"), pooled(x, dy, "eager"), strict=True))


def test_what_it_does_not_take_is_pytorchs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(max_pool, "WORTH_A_CALL", 1000)
    monkeypatch.setattr(max_pool, "_run", lambda *args: pytest.fail("was called"))
    x = made((4, 16, 8, 8), torch.float32)
    for images in (
        x.double(),
        x.contiguous(),
        x[:, :, 1:],  # of odd height
        x[:, :, :, 1:],
        made((4, 24, 8, 8), torch.float32),  # pixels that fill no line
        x[:1, :, :4],  # few elements
    ):
        assert torch.equal(MaxPool2x2("llvm")(images), functional.max_pool2d(images, 2, ceil_mode=True))
    MaxPool2x2("eager")(x)


def test_the_op_is_registered_as_torch_wants_it() -> None:
    x = made((2, 16, 6, 4), torch.float32).requires_grad_()
    torch.library.opcheck(torch.ops.fastresnet.max_pool, (x,))


def test_a_compiled_network_has_it_in_one_graph() -> None:
    x = made((2, 16, 6, 4), torch.float32).requires_grad_()
    compiled = torch.compile(MaxPool2x2("llvm"), backend="aot_eager", fullgraph=True)
    assert torch.equal(compiled(x), functional.max_pool2d(x, 2))


def test_a_second_derivative_is_refused_in_one_line() -> None:
    x = made((2, 16, 6, 4), torch.float32).requires_grad_()
    (dx,) = torch.autograd.grad(torch.ops.fastresnet.max_pool(x).square().sum(), x, create_graph=True)
    with pytest.raises(UserError, match="no second derivative"):
        dx.sum().backward()
