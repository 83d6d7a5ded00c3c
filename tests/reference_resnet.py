"""A textbook residual network in plain torch, written apart from fastresnet and sharing no code with it.

Blocks after He et al. (2016), in the usual module order: conv, bn, conv, bn, [conv, bn,] shortcut. It takes
plain numbers, so that a wrong reading of an ArchSpec shows as a difference.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

ACTIVATIONS = {"relu": F.relu, "leaky_relu": F.leaky_relu, "gelu": F.gelu, "silu": F.silu}


class ReferenceBlock(nn.Module):
    """``shapes``: (inputs, outputs, kernel, stride) of each convolution; dropout before the last one.

    ``skip`` is the kernel of the shortcut's convolution, None for a block without a shortcut.
    """

    def __init__(
        self, shapes: list[tuple[int, int, int, int]], skip: int | None, activation: str, dropout: float
    ) -> None:
        super().__init__()
        body: list[nn.Module] = []
        for inputs, outputs, kernel, stride in shapes:
            body.append(nn.Conv2d(inputs, outputs, kernel, stride, (kernel - 1) // 2, bias=False))
            body.append(nn.BatchNorm2d(outputs))
        self.body = nn.ModuleList(body)
        stride = max(shape[3] for shape in shapes)
        first, last = shapes[0][0], shapes[-1][1]
        self.projection = None
        self.joins = skip is not None
        if skip is not None and (stride != 1 or first != last):
            conv = nn.Conv2d(first, last, skip, stride, (skip - 1) // 2, bias=False)
            self.projection = nn.Sequential(conv, nn.BatchNorm2d(last))
        self.activation = ACTIVATIONS[activation]
        self.dropout = dropout

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = x
        pairs = list(zip(self.body[0::2], self.body[1::2], strict=True))
        for i, (conv, bn) in enumerate(pairs):
            if i == len(pairs) - 1:
                y = F.dropout(y, self.dropout, self.training)
            y = bn(conv(y))
            if i < len(pairs) - 1:
                y = self.activation(y)
        if self.joins:
            y = y + (x if self.projection is None else self.projection(x))
        return self.activation(y)


class ReferenceDown(nn.Module):
    """conv, 2x2 max pool whose last window may be half outside, bn, activation."""

    def __init__(self, inputs: int, outputs: int, kernel: int, activation: str) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, kernel, 1, (kernel - 1) // 2, bias=False)
        self.bn = nn.BatchNorm2d(outputs)
        self.activation = ACTIVATIONS[activation]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.conv(x)
        odd = x.shape[-1] % 2
        x = F.pad(x, (0, odd, 0, odd), value=float("-inf")).unfold(2, 2, 2).unfold(3, 2, 2).amax((4, 5))
        return self.activation(self.bn(x))


class ReferenceResNet(nn.Module):
    """``blocks``, ``channels``, ``kernels``, ``skips`` per stage; ``pool`` is the window's side in pixels."""

    def __init__(
        self,
        blocks: list[int],
        channels: list[int],
        kernels: list[int],
        skips: list[int],
        pool: int,
        features: int,
        *,
        stem: tuple[int, int],
        bottleneck: bool = False,
        plain: bool = False,
        activation: str = "relu",
        dropout: tuple[float, float, float] = (0.0, 0.0, 0.0),
        maxpool: bool = False,
        head_max: bool = False,
        classes: int = 10,
    ) -> None:
        super().__init__()
        kernel, width = stem
        self.conv = nn.Conv2d(3, width, kernel, 1, (kernel - 1) // 2, bias=False)
        self.bn = nn.BatchNorm2d(width)
        self.activation = ACTIVATIONS[activation]
        self.head_dropout, block_dropout, self.stage_dropout = dropout
        self.layers = nn.ModuleList()
        for i, (count, c, k, skip) in enumerate(zip(blocks, channels, kernels, skips, strict=True)):
            stage = nn.Sequential()
            if maxpool and i > 0:
                stage.append(ReferenceDown(width, c * (4 if bottleneck else 1), k, activation))
                width = c * (4 if bottleneck else 1)
            for j in range(count):
                stride = 2 if i > 0 and j == 0 and not maxpool else 1
                if bottleneck:
                    shapes = [(width, c, 1, 1), (c, c, k, stride), (c, 4 * c, 1, 1)]
                else:
                    shapes = [(width, c, k, stride), (c, c, k, 1)][: 1 if plain else 2]
                width = shapes[-1][1]
                stage.append(ReferenceBlock(shapes, None if plain else skip, activation, block_dropout))
            self.layers.append(stage)
        self.pool, self.head_max = pool, head_max
        self.fc = nn.Linear(features, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.activation(self.bn(self.conv(x)))
        for stage in self.layers:
            x = F.dropout(stage(x), self.stage_dropout, self.training)
        x = (F.max_pool2d if self.head_max else F.avg_pool2d)(x, self.pool, stride=self.pool).flatten(1)
        return self.fc(F.dropout(x, self.head_dropout, self.training))


def copy_by_order(source: nn.Module, target: nn.Module) -> None:
    """Load ``source``'s state into ``target`` by position; the shapes must agree one by one."""
    ours, theirs = source.state_dict(), target.state_dict()
    assert [value.shape for value in ours.values()] == [value.shape for value in theirs.values()]
    target.load_state_dict(dict(zip(theirs, ours.values(), strict=True)))
