"""The layers of a spec, one by one: where every parameter and multiply-add count comes from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from fastresnet.arch import ArchSpec

LayerKind = Literal["conv", "norm", "dropout", "pool", "linear"]


@dataclass(frozen=True, kw_only=True)
class Layer:
    """One layer of a network, under the name of its module.

    Attributes:
        name: module path, such as ``stages.0.blocks.1.conv1``.
        kind: a ``norm`` includes the residual add and the activation that follow it.
        detail: kernel and stride, activation, probability or window, for people; may be empty.
        shape: output of one image: (C, H, W), or one length after the flatten.
        params: learnable parameters.
        multiply_adds: for one image; convolutions and linear layers only, 0 for the rest.
    """

    name: str
    kind: LayerKind
    detail: str
    shape: tuple[int, ...]
    params: int = 0
    multiply_adds: int = 0


def list_layers(spec: ArchSpec, num_classes: int, image_size: int) -> list[Layer]:
    """Return every layer, a block's shortcut last; :meth:`ArchSpec.layers` checks the arguments first."""
    layers = _conv_norm("stem.{}", (3, spec.stem_width), spec.stem, 1, image_size, spec.activation)
    inputs, side = spec.stem_width, image_size
    for stage, stage_side in enumerate(spec.map_sizes(image_size)):
        if stage and spec.down == "maxpool":
            layers += _down(spec, stage, inputs, (side, stage_side))
            inputs, side = spec.outputs[stage], stage_side
        for index in range(spec.blocks[stage]):
            stride = 2 if stage and not index and spec.down == "stride" else 1
            layers += _block(spec, stage, index, inputs, stride, (side, stage_side))
            inputs, side = spec.outputs[stage], stage_side
        layers += _dropout(f"stages.{stage}.dropout", spec.dropout.stage, (inputs, side, side))
    pooled = spec.pooled_size(image_size)
    window = side if spec.pool is None else spec.pool
    layers.append(
        Layer(
            name="pool",
            kind="pool",
            detail=f"{window}x{window} {spec.head_pool}",
            shape=(inputs, pooled, pooled),
        )
    )
    features = inputs * pooled**2
    layers += _dropout("dropout", spec.dropout.head, (features,))
    weights = features * num_classes
    head = Layer(
        name="head",
        kind="linear",
        detail=f"from {features:,}",
        shape=(num_classes,),
        params=weights + num_classes,
        multiply_adds=weights,
    )
    return [*layers, head]


def _down(spec: ArchSpec, stage: int, inputs: int, sides: tuple[int, int]) -> list[Layer]:
    """What halves the map of a stage before its blocks, from ``sides[0]`` to ``sides[1]`` pixels a side."""
    path, before, side = f"stages.{stage}.down", *sides
    outputs = spec.outputs[stage]
    conv, _ = _conv_norm(path + ".{}", (inputs, outputs), spec.kernels[stage], 1, before, "")
    _, norm = _conv_norm(path + ".{}", (inputs, outputs), spec.kernels[stage], 1, side, spec.activation)
    pool = Layer(name=path + ".pool", kind="pool", detail="2x2 max", shape=(outputs, side, side))
    return [conv, pool, norm]


def _block(
    spec: ArchSpec, stage: int, index: int, inputs: int, stride: int, sides: tuple[int, int]
) -> list[Layer]:
    """The layers of one block, whose map goes from ``sides[0]`` to ``sides[1]`` pixels a side."""
    path = f"stages.{stage}.blocks.{index}"
    width, kernel, act = spec.channels[stage], spec.kernels[stage], spec.activation
    outputs = width * spec.expansion
    before, side = sides
    if spec.block == "bottleneck":
        layers = _conv_norm(path + ".{}1", (inputs, width), 1, 1, before, act)
        layers += _conv_norm(path + ".{}2", (width, width), kernel, stride, side, act)
        layers += _dropout(f"{path}.dropout", spec.dropout.block, (width, side, side))
        layers += _conv_norm(path + ".{}3", (width, outputs), 1, 1, side, f"add, {act}")
    elif spec.block == "basic":
        layers = _conv_norm(path + ".{}1", (inputs, width), kernel, stride, side, act)
        layers += _dropout(f"{path}.dropout", spec.dropout.block, (width, side, side))
        layers += _conv_norm(path + ".{}2", (width, outputs), kernel, 1, side, f"add, {act}")
    else:
        layers = _dropout(f"{path}.dropout", spec.dropout.block, (inputs, before, before))
        return layers + _conv_norm(path + ".{}1", (inputs, outputs), kernel, stride, side, act)
    if stride > 1 or inputs != outputs:
        kernel = spec.shortcut_kernels[stage]
        layers += _conv_norm(path + ".shortcut.{}", (inputs, outputs), kernel, stride, side, "")
    return layers


def _conv_norm(
    path: str, channels: tuple[int, int], kernel: int, stride: int, side: int, after: str
) -> list[Layer]:
    """A convolution from ``channels[0]`` to ``channels[1]`` with output side ``side``, and its norm."""
    weights = channels[0] * channels[1] * kernel**2
    shape = (channels[1], side, side)
    conv = Layer(
        name=path.format("conv"),
        kind="conv",
        detail=f"{kernel}x{kernel}" + (f", stride {stride}" if stride > 1 else ""),
        shape=shape,
        params=weights,
        multiply_adds=weights * side**2,
    )
    norm = Layer(name=path.format("norm"), kind="norm", detail=after, shape=shape, params=2 * channels[1])
    return [conv, norm]


def _dropout(name: str, rate: float, shape: tuple[int, ...]) -> list[Layer]:
    return [Layer(name=name, kind="dropout", detail=f"p={rate:g}", shape=shape)] if rate else []
