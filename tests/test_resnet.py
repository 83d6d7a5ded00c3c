"""The module of a spec: equal to a plain network, counted right, and fit for compile, autocast and export."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from arch_strategies import specs
from hypothesis import given, settings
from reference_resnet import ReferenceResNet, copy_by_order
from torch import nn

from fastresnet.arch import ArchSpec, get_arch
from fastresnet.catalogue import CATALOGUE
from fastresnet.errors import UserError
from fastresnet.kernels.block_time import BlockShape
from fastresnet.kernels.norm_act import BatchNormAct2d
from fastresnet.resnet import block_shapes, build_model
from fastresnet.slug import parse_slug

SMALL = "n3-b1,2,1-c8"  # has a shortcut of both kinds

# (name or slug, image size, the plain network's arguments)
REFERENCES: list[tuple[str, int, dict[str, Any]]] = [
    (
        "resnet24",
        32,
        {
            "blocks": [3, 3, 2, 3],
            "channels": [64, 128, 128, 256],
            "kernels": [3] * 4,
            "skips": [1] * 4,
            "pool": 4,
            "features": 256,
            "stem": (3, 64),
        },
    ),
    (
        "resnet8",
        32,
        {
            "blocks": [1, 1, 1],
            "channels": [32, 64, 128],
            "kernels": [3] * 3,
            "skips": [1] * 3,
            "pool": 4,  # of an 8x8 map: four windows
            "features": 512,
            "stem": (3, 32),
        },
    ),
    (
        "improved-resnet",  # its dropout of 0.2 after each stage included
        32,
        {
            "blocks": [3, 3, 3],
            "channels": [64, 128, 256],
            "kernels": [3] * 3,
            "skips": [1] * 3,
            "pool": 8,
            "features": 1024,
            "stem": (3, 32),
            "bottleneck": True,
            "activation": "leaky_relu",
            "dropout": (0.0, 0.0, 0.2),
        },
    ),
    (
        "n4-b2,1,1,2-c6,6,10,4-f5,3,1,3-k3,1,5,3-p3-stem1x5-gelu",
        33,  # maps of 33, 17, 9 and 5; P=3 leaves the last two rows out
        {
            "blocks": [2, 1, 1, 2],
            "channels": [6, 6, 10, 4],
            "kernels": [5, 3, 1, 3],
            "skips": [3, 1, 5, 3],
            "pool": 3,
            "features": 4,
            "stem": (1, 5),
            "activation": "gelu",
        },
    ),
    (
        "n2-b2-c5-silu-dh0.5-db0.2-ds0.1",
        20,
        {
            "blocks": [2, 2],
            "channels": [5, 10],
            "kernels": [3, 3],
            "skips": [1, 1],
            "pool": 10,
            "features": 10,
            "stem": (3, 5),
            "activation": "silu",
            "dropout": (0.5, 0.2, 0.1),
        },
    ),
    (
        "n2-b2-c4-f5-bottleneck-db0.3",
        16,
        {
            "blocks": [2, 2],
            "channels": [4, 8],
            "kernels": [5, 5],
            "skips": [1, 1],
            "pool": 8,
            "features": 32,
            "stem": (3, 4),
            "bottleneck": True,
            "dropout": (0.0, 0.3, 0.0),
        },
    ),
    (
        "n4-b0,1,2,0-c6,5,8,8-f3,5,3,1-leaky_relu-maxpool",
        21,  # maps of 21, 11, 6 and 3: windows at the edge hold less
        {
            "blocks": [0, 1, 2, 0],
            "channels": [6, 5, 8, 8],
            "kernels": [3, 5, 3, 1],
            "skips": [1] * 4,
            "pool": 3,
            "features": 8,
            "stem": (3, 6),
            "activation": "leaky_relu",
            "maxpool": True,
        },
    ),
    (
        "n2-b1-c4-bottleneck-maxpool",
        16,
        {
            "blocks": [1, 1],
            "channels": [4, 8],
            "kernels": [3, 3],
            "skips": [1, 1],
            "pool": 8,
            "features": 32,
            "stem": (3, 4),
            "bottleneck": True,
            "maxpool": True,
        },
    ),
    (
        "n3-b2,1,2-c4,6,6-f3,5,3-plain-db0.3",  # maps halved in stages 2 and 3 by the blocks' only convolutions
        18,
        {
            "blocks": [2, 1, 2],
            "channels": [4, 6, 6],
            "kernels": [3, 5, 3],
            "skips": [1] * 3,
            "pool": 5,
            "features": 6,
            "stem": (3, 4),
            "plain": True,
            "dropout": (0.0, 0.3, 0.0),
        },
    ),
    (
        "n3-b0,1,1-c4,6,8-plain-maxpool-headmax",
        16,
        {
            "blocks": [0, 1, 1],
            "channels": [4, 6, 8],
            "kernels": [3] * 3,
            "skips": [1] * 3,
            "pool": 4,
            "features": 8,
            "stem": (3, 4),
            "plain": True,
            "maxpool": True,
            "head_max": True,
        },
    ),
    (
        "n2-b1-c4-p3-headmax",
        16,  # of an 8x8 map: four windows
        {
            "blocks": [1, 1],
            "channels": [4, 8],
            "kernels": [3, 3],
            "skips": [1, 1],
            "pool": 3,
            "features": 32,
            "stem": (3, 4),
            "head_max": True,
        },
    ),
]


def images(batch: int, size: int = 32, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    generator = torch.Generator().manual_seed(7)
    return torch.randn(batch, 3, size, size, generator=generator, dtype=dtype)


def build(name: str, **options: Any) -> nn.Module:
    torch.manual_seed(3)
    return build_model(get_arch(name), **options)


@pytest.mark.parametrize(("name", "size", "arguments"), REFERENCES, ids=[row[0] for row in REFERENCES])
def test_equals_a_plain_network(name: str, size: int, arguments: dict[str, Any]) -> None:
    ours = build(name, image_size=size).double()
    plain = ReferenceResNet(**arguments).double()
    for parameter in ours.parameters():  # gammas and betas off their 1 and 0
        nn.init.normal_(parameter, std=0.3)
    copy_by_order(ours, plain)
    labels = torch.tensor([1, 4, 9])
    results = []
    for model in (ours, plain):
        x = images(3, size, torch.float64).requires_grad_()
        torch.manual_seed(11)  # the same dropout masks
        logits = model.train()(x)
        nn.functional.cross_entropy(logits, labels).backward()
        gradients = [parameter.grad for parameter in model.parameters()]
        with torch.no_grad():
            evaluated = model.eval()(x)
        results.append([logits, evaluated, x.grad, *gradients, *model.buffers()])
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-11)
    assert results[0][2].abs().max() > 0


@pytest.mark.parametrize("width", range(1, 9))
def test_gradients_of_narrow_networks(width: int) -> None:
    """Channels-last in float32 as in contiguous float64: oneDNN writes outside its buffers for few channels."""
    model = build_model(parse_slug(f"n3-b1-c{width}"), 10, 16)
    exact = copy.deepcopy(model).double()
    model = model.to(memory_format=torch.channels_last)
    images = torch.randn(32, 3, 16, 16)
    for _ in range(3):  # what is written outside may only be met later
        model.zero_grad()
        model(images.to(memory_format=torch.channels_last)).square().mean().backward()
    exact(images.double()).square().mean().backward()
    for (name, weight), expected in zip(model.named_parameters(), exact.parameters(), strict=True):
        assert weight.grad is not None and expected.grad is not None
        error = (weight.grad - expected.grad).norm()
        assert error <= 0.02 * expected.grad.norm() + 1e-5, name


@given(specs())
@settings(max_examples=60)
def test_counts_are_those_of_the_module(spec: ArchSpec) -> None:
    with torch.device("meta"):
        model = build_model(spec, num_classes=7)
    assert spec.num_params(num_classes=7) == sum(parameter.numel() for parameter in model.parameters())
    seen: dict[str, tuple[int, ...]] = {}

    def watch(name: str) -> Any:
        return lambda module, args, output: seen.__setitem__(name, tuple(output.shape[1:]))

    for name, module in model.named_modules():
        if name:
            module.register_forward_hook(watch(name))
    model(torch.empty(2, 3, 32, 32, device="meta"))
    for layer in spec.layers(num_classes=7):
        module = model.get_submodule(layer.name)
        assert layer.params == sum(parameter.numel() for parameter in module.parameters()), layer.name
        assert layer.shape == seen[layer.name], layer.name
        if isinstance(module, nn.Conv2d):
            assert layer.multiply_adds == module.weight.numel() * layer.shape[1] * layer.shape[2]
    listed = [layer.name for layer in spec.layers() if layer.kind in ("conv", "norm", "linear")]
    own = [name for name, module in model.named_modules() if list(module.parameters(recurse=False))]
    assert listed == own


def test_counts_of_the_whole_catalogue() -> None:
    for spec in {entry.spec for entry in CATALOGUE}:
        with torch.device("meta"):
            model = build_model(spec)
        assert spec.num_params() == sum(parameter.numel() for parameter in model.parameters()), spec.slug


def test_zero_gamma_makes_blocks_their_shortcuts() -> None:
    with pytest.raises(UserError, match="plain blocks have no shortcuts"):
        build(SMALL + "-plain", zero_gamma=True)
    for name, last in ((SMALL, "norm2"), (SMALL + "-bottleneck", "norm3")):
        model = build(name, zero_gamma=True)
        zeroed = {
            key for key, value in model.state_dict().items() if key.endswith("weight") and not value.any()
        }
        assert zeroed == {f"stages.{i}.blocks.{j}.{last}.weight" for i, j in ((0, 0), (1, 0), (1, 1), (2, 0))}
        block = model.stages[1].blocks[1].eval()
        x = images(2).new_ones(2, block.conv1.in_channels, 8, 8)
        torch.testing.assert_close(block(x), x)
        assert all(value.any() for key, value in build(name).state_dict().items() if key.endswith("weight"))


def test_blocks_are_timed_as_they_are() -> None:
    assert block_shapes(get_arch("n2-b2,1-c4-bottleneck"), 8, 16) == [
        BlockShape(8, 16, 16, 2, (4, 4), (1, 3, 1)),
        BlockShape(8, 32, 8, 1, (8, 8), (1, 3, 1)),
    ]
    plain = block_shapes(get_arch("fastresnet8"), 8, 32)
    assert plain[0] == BlockShape(8, 64, 16, 1, (), (3,), joins=False) and len(plain) == 3


def test_the_callers_seed_decides_the_weights() -> None:
    one, same = build(SMALL), build(SMALL)
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), same.parameters(), strict=True))
    other = build_model(get_arch(SMALL))
    assert not torch.equal(one.stem.conv.weight, other.stem.conv.weight)
    assert {parameter.dtype for parameter in one.parameters()} == {torch.float32}


def test_module_names_are_stable() -> None:
    names = set(dict(build(SMALL).named_parameters()))
    assert names >= {
        "stem.conv.weight",
        "stem.norm.bias",
        "stages.0.blocks.0.conv1.weight",
        "stages.1.blocks.1.norm1.weight",
        "stages.1.blocks.1.conv2.weight",
        "stages.1.blocks.1.norm2.bias",
        "stages.2.blocks.0.shortcut.conv.weight",
        "stages.2.blocks.0.shortcut.norm.weight",
        "head.weight",
        "head.bias",
    }
    assert not any(name.startswith("stages.1.blocks.1.shortcut") for name in names)


@pytest.mark.parametrize("name", [SMALL, SMALL + "-p4-bottleneck-silu"])
def test_channels_last_stays_channels_last(name: str) -> None:
    plain, last = build(name), build(name).to(memory_format=torch.channels_last)
    strays = []

    def check(module: nn.Module, args: Any, output: torch.Tensor) -> None:
        if output.ndim == 4 and not output.is_contiguous(memory_format=torch.channels_last):
            strays.append(module)

    for module in last.modules():
        module.register_forward_hook(check)
    x = images(4)
    torch.testing.assert_close(last(x.to(memory_format=torch.channels_last)), plain(x), rtol=1e-4, atol=1e-5)
    assert not strays


@pytest.mark.parametrize("name", [SMALL, SMALL + "-bottleneck-gelu"])
def test_autocast(name: str) -> None:
    model = build(name)
    x = images(8)
    exact = model(x)
    with torch.autocast("cpu", torch.bfloat16):
        logits = model(x)
    assert logits.dtype == torch.bfloat16
    torch.testing.assert_close(logits.float(), exact, rtol=0, atol=0.1)
    logits.float().square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize("name", [SMALL, SMALL + "-p4-bottleneck-leaky_relu"])
def test_compiles_as_one_graph(name: str) -> None:
    model, twin = build(name), build(name)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    x = images(4)
    results = []
    for call, owner in ((compiled, model), (twin, twin)):
        logits = call(x)
        logits.square().sum().backward()
        results.append([logits, *(p.grad for p in owner.parameters()), *owner.buffers()])
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", [SMALL, SMALL + "-p4-bottleneck-leaky_relu-ds0.2"])
def test_exports_for_any_batch(name: str) -> None:
    model = build(name).eval()
    batch = torch.export.Dim("batch", min=1, max=64)
    program = torch.export.export(model, (images(2),), dynamic_shapes={"images": {0: batch}})
    for count in (1, 5):
        torch.testing.assert_close(program.module()(images(count)), model(images(count)))


@pytest.mark.parametrize("activation", ["relu", "leaky_relu", "gelu", "silu", "identity"])
@pytest.mark.parametrize("training", [True, False])
def test_norm_act_is_norm_then_add_then_activation(activation: str, training: bool) -> None:
    norm, plain = BatchNormAct2d(6, activation).double(), nn.BatchNorm2d(6).double()
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    plain.load_state_dict(norm.state_dict())
    norm.train(training)
    plain.train(training)
    act = {"identity": lambda x: x}.get(activation) or getattr(nn.functional, activation)
    data = torch.randn(2, 4, 6, 5, 5, dtype=torch.float64)
    for with_residual in (False, True):
        results = []
        for fused in (True, False):
            x, residual = (part.clone().requires_grad_() for part in data)
            if fused:
                y = norm(x, residual if with_residual else None)
            else:
                y = act(plain(x) + residual if with_residual else plain(x))
            y.pow(3).sum().backward()
            assert torch.equal(residual, data[1]), "the residual was overwritten"
            results.append([y, x.grad, residual.grad, *(norm if fused else plain).buffers()])
        for one, other in zip(*results, strict=True):
            if one is None or other is None:
                assert one is other
            else:
                torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-12)


def test_refusals() -> None:
    with pytest.raises(UserError, match="P may be 1 to 8"):
        build_model(parse_slug("n3-b1-c4-p9"))
    with pytest.raises(UserError, match="number of classes is 1"):
        build_model(parse_slug("n3-b1-c4"), num_classes=1)
    with pytest.raises(UserError, match=r"activation is 'rleu'.*did you mean 'relu'"):
        BatchNormAct2d(4, "rleu")  # type: ignore[arg-type]
    with pytest.raises(UserError, match=r"kernels is 'egaer'.*did you mean 'eager'"):
        build_model(parse_slug("n3-b1-c4"), kernels="egaer")
