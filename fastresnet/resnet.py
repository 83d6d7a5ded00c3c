"""Build the PyTorch module of an :class:`~fastresnet.arch.ArchSpec`.

Blocks as in He et al., "Deep Residual Learning for Image Recognition" (CVPR 2016): activation after the
residual add, projection shortcuts where stride or width changes; the bottleneck's stride is on its middle
convolution. Plain blocks are a convolution, BN and activation. Module paths are those of ``spec.layers()``.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

from fastresnet.arch import NUM_CONVS, ArchSpec
from fastresnet.errors import UserError
from fastresnet.kernels.block_time import BlockShape
from fastresnet.kernels.conv import Conv3x3
from fastresnet.kernels.fusion import Activation
from fastresnet.kernels.max_pool import MaxPool2x2
from fastresnet.kernels.norm_act import BatchNormAct2d

ONEDNN_SAFE_WIDTH = 8  # channels


class SubsampledConv2d(nn.Conv2d):
    """A strided 1x1 convolution of few channels, which on the CPU picks its pixels before it multiplies.

    The same sums. oneDNN's own weight gradient for AVX2 (``jit_avx2_1x1_convolution_bwd_weights``, torch 2.13.0)
    writes outside its buffers for channels-last inputs narrower than :data:`ONEDNN_SAFE_WIDTH`: the process
    crashes or never ends.
    """

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if x.device.type != "cpu" or torch.compiler.is_exporting():
            return super().forward(x)
        rows, columns = self.stride
        return F.conv2d(x[:, :, ::rows, ::columns], self.weight)


class ConvNorm(nn.Module):
    """Convolution without bias, BN, activation: the stem and the projection shortcuts."""

    def __init__(
        self, inputs: int, outputs: int, kernel: int, stride: int, activation: Activation, kernels: str
    ) -> None:
        super().__init__()
        self.conv = _conv(inputs, outputs, kernel, stride)
        self.norm = BatchNormAct2d(outputs, activation, kernels=kernels)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.norm(self.conv(x))


class PooledConvNorm(nn.Module):
    """Convolution without bias, 2x2 max pool (rounding up), BN, activation: what halves a map before its blocks."""

    def __init__(self, inputs: int, outputs: int, kernel: int, activation: Activation, kernels: str) -> None:
        super().__init__()
        self.conv = _conv(inputs, outputs, kernel)
        self.pool = MaxPool2x2(kernels)
        self.norm = BatchNormAct2d(outputs, activation, kernels=kernels)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.norm(self.pool(self.conv(x)))


class _Block(nn.Module):
    """What blocks with a shortcut share: it, and the dropout before the last convolution."""

    def __init__(self, spec: ArchSpec, stage: int, inputs: int, stride: int, kernels: str) -> None:
        super().__init__()
        width = spec.channels[stage]
        outputs = width * spec.expansion
        self._add_convs(spec, inputs, width, spec.kernels[stage], stride, kernels)
        self.dropout = _dropout(spec.dropout.block)
        self.shortcut: nn.Module = nn.Identity()
        if stride > 1 or inputs != outputs:
            kernel = spec.shortcut_kernels[stage]
            self.shortcut = ConvNorm(inputs, outputs, kernel, stride, "identity", kernels)

    def _add_convs(
        self, spec: ArchSpec, inputs: int, width: int, kernel: int, stride: int, kernels: str
    ) -> None:
        raise NotImplementedError

    @property
    def last_norm(self) -> BatchNormAct2d:
        """The norm whose output the shortcut is added to."""
        raise NotImplementedError

    def _join(self, y: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        """Return the block's output: ``y`` normed, plus the shortcut of its input ``x``, activated."""
        if isinstance(self.shortcut, ConvNorm):  # both norms, the add and the activation can be one kernel
            return self.last_norm(y, residual=self.shortcut.conv(x), residual_norm=self.shortcut.norm)
        return self.last_norm(y, residual=self.shortcut(x))


class BasicBlock(_Block):
    """Two FxF convolutions; the second norm takes the shortcut."""

    def _add_convs(
        self, spec: ArchSpec, inputs: int, width: int, kernel: int, stride: int, kernels: str
    ) -> None:
        self.conv1 = _conv(inputs, width, kernel, stride)
        self.norm1 = BatchNormAct2d(width, spec.activation, kernels=kernels)
        self.conv2 = _conv(width, width, kernel)
        self.norm2 = BatchNormAct2d(width, spec.activation, kernels=kernels)

    @property
    def last_norm(self) -> BatchNormAct2d:
        return self.norm2

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.dropout(self.norm1(self.conv1(x)))
        return self._join(self.conv2(y), x)


class BottleneckBlock(_Block):
    """1x1, FxF and 1x1 convolutions, the last to four times the width."""

    def _add_convs(
        self, spec: ArchSpec, inputs: int, width: int, kernel: int, stride: int, kernels: str
    ) -> None:
        outputs = width * spec.expansion
        self.conv1 = _conv(inputs, width, 1)
        self.norm1 = BatchNormAct2d(width, spec.activation, kernels=kernels)
        self.conv2 = _conv(width, width, kernel, stride)
        self.norm2 = BatchNormAct2d(width, spec.activation, kernels=kernels)
        self.conv3 = _conv(width, outputs, 1)
        self.norm3 = BatchNormAct2d(outputs, spec.activation, kernels=kernels)

    @property
    def last_norm(self) -> BatchNormAct2d:
        return self.norm3

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.norm1(self.conv1(x))
        y = self.dropout(self.norm2(self.conv2(y)))
        return self._join(self.conv3(y), x)


class PlainBlock(nn.Module):
    """One FxF convolution, without a shortcut."""

    def __init__(self, spec: ArchSpec, stage: int, inputs: int, stride: int, kernels: str) -> None:
        super().__init__()
        width = spec.channels[stage]
        self.dropout = _dropout(spec.dropout.block)
        self.conv1 = _conv(inputs, width, spec.kernels[stage], stride)
        self.norm1 = BatchNormAct2d(width, spec.activation, kernels=kernels)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.norm1(self.conv1(self.dropout(x)))


BLOCKS: dict[str, type[_Block | PlainBlock]] = {
    "basic": BasicBlock,
    "bottleneck": BottleneckBlock,
    "plain": PlainBlock,
}


class Stage(nn.Module):
    """What halves the map where blocks do not, the blocks of one stage, then its dropout."""

    def __init__(self, spec: ArchSpec, stage: int, inputs: int, kernels: str) -> None:
        super().__init__()
        kind = BLOCKS[spec.block]
        outputs, stride = spec.outputs[stage], 2 if stage else 1
        self.down: nn.Module = nn.Identity()
        if stage and spec.down == "maxpool":
            kernel = spec.kernels[stage]
            self.down = PooledConvNorm(inputs, outputs, kernel, spec.activation, kernels)
            inputs, stride = outputs, 1
        self.blocks = nn.ModuleList(
            kind(spec, stage, outputs if j else inputs, 1 if j else stride, kernels)
            for j in range(spec.blocks[stage])
        )
        self.dropout = _dropout(spec.dropout.stage)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.down(x)
        for block in self.blocks:
            x = block(x)
        return self.dropout(x)


class WholeMax(nn.Module):
    """A map's greatest value, [B, C, H, W] to [B, C, 1, 1]; unlike torch's adaptive pool deterministic on a GPU too."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.amax((2, 3), keepdim=True)


class ResNet(nn.Module):
    """A spec's network. Input: float [B, 3, H, W], normalised; output: logits [B, num_classes].

    Attributes:
        spec, num_classes, image_size: what it was built from; H = W = image_size.
    """

    def __init__(self, spec: ArchSpec, num_classes: int, image_size: int, kernels: str) -> None:
        super().__init__()
        self.spec = spec
        self.num_classes = num_classes
        self.image_size = image_size
        self.stem = ConvNorm(3, spec.stem_width, spec.stem, 1, spec.activation, kernels)
        self.stages = nn.ModuleList(
            Stage(spec, i, spec.outputs[i - 1] if i else spec.stem_width, kernels)
            for i in range(spec.num_stages)
        )
        last = spec.map_sizes(image_size)[-1]
        pooled = spec.pooled_size(image_size)
        # the whole map as a mean: one reduction that compilers fuse, and the same numbers
        window = last if spec.pool is None else spec.pool
        if spec.head_pool == "max":
            self.pool: nn.Module = WholeMax() if window == last else nn.MaxPool2d(window)
        else:
            self.pool = nn.AdaptiveAvgPool2d(1) if window == last else nn.AvgPool2d(window)
        self.dropout = _dropout(spec.dropout.head)
        self.head = nn.Linear(spec.outputs[-1] * pooled**2, num_classes)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        x = self.stem(images)
        for stage in self.stages:
            x = stage(x)
        return self.head(self.dropout(self.pool(x).flatten(1)))


def build_model(
    spec: ArchSpec,
    num_classes: int = 10,
    image_size: int = 32,
    *,
    zero_gamma: bool = False,
    dirac: bool = False,
    head_scale: float = 1.0,
    train_stem: bool = True,
    norm_momentum: float = 0.1,
    train_scale: bool = True,
    kernels: str = "eager",
) -> ResNet:
    """Return the float32 module of ``spec`` with torch's default initialisation, which the caller seeds.

    Args:
        spec: the architecture.
        num_classes: length of the logits.
        image_size: side of the square images, in pixels; with a fixed P it decides the head's size.
        zero_gamma: start the last norm's weight of every block at zero, so that blocks begin as their
            shortcuts (Goyal et al., "Accurate, Large Minibatch SGD", 2017); plain blocks have none.
        dirac: start the first filters of every spatial convolution inside stages, but for those of shortcuts, as
            identities: of as many channels as it has of both inputs and outputs.
        head_scale: multiplies the linear layer's first weights and biases.
        train_stem: whether the stem's filters require a gradient.
        norm_momentum: share of each batch in every norm's running statistics.
        train_scale: whether the norms' weights require a gradient.
        kernels: implementation of :class:`BatchNormAct2d`; with ``llvm`` max pools are in generated code too.

    Raises:
        UserError: the spec does not take this image size, fewer than 2 classes, unknown kernels, or ``zero_gamma``
            of plain blocks.
    """
    spec.layers(num_classes, image_size)
    if zero_gamma and not spec.has_shortcuts:
        raise UserError(
            "plain blocks have no shortcuts, so with zero_gamma nothing would pass them; leave it out"
        )
    model = ResNet(spec, num_classes, image_size, kernels)
    for module in model.modules():
        if isinstance(module, BatchNormAct2d):
            module.momentum = norm_momentum
            module.weight.requires_grad_(train_scale)
        if isinstance(module, _Block) and zero_gamma:
            nn.init.zeros_(module.last_norm.weight)
        if isinstance(module, _Block | PlainBlock | PooledConvNorm) and dirac:
            _pass_on(module)
    with torch.no_grad():
        for p in model.head.parameters():
            p.mul_(head_scale)
    model.stem.conv.weight.requires_grad_(train_stem)
    return model


def _pass_on(part: nn.Module) -> None:
    """Let the spatial convolutions of a block, or of what is before blocks, begin by passing channels on."""
    for conv in part.children():
        if isinstance(conv, nn.Conv2d) and conv.kernel_size != (1, 1):
            nn.init.dirac_(conv.weight.detach()[: conv.in_channels])


def set_kernels(model: nn.Module, kernels: str) -> None:
    """Change the implementation of every norm and max pool of ``model``, one of ``norm_act.KERNELS``."""
    for module in model.modules():
        if isinstance(module, BatchNormAct2d | MaxPool2x2):
            module.kernels = kernels


def block_shapes(spec: ArchSpec, batch_size: int, image_size: int) -> list[BlockShape]:
    """Return the blocks of ``spec`` by stage, where it has some, as their kernels are measured."""
    shapes = []
    for stage, (width, side) in enumerate(zip(spec.channels, spec.map_sizes(image_size), strict=True)):
        if not spec.blocks[stage]:
            continue
        kernel = spec.kernels[stage]
        bottleneck = spec.block == "bottleneck"
        shapes.append(
            BlockShape(
                batch_size=batch_size,
                channels=width * spec.expansion,
                side=side,
                repeats=spec.blocks[stage],
                widths=(width,) * (NUM_CONVS[spec.block] - 1),
                sizes=(1, kernel, 1) if bottleneck else (kernel,) * NUM_CONVS[spec.block],
                joins=spec.has_shortcuts,
            )
        )
    return shapes


def _conv(inputs: int, outputs: int, kernel: int, stride: int = 1) -> nn.Conv2d:
    if (kernel, stride) == (3, 1):
        return Conv3x3(inputs, outputs)
    kind = SubsampledConv2d if kernel == 1 and stride > 1 and inputs < ONEDNN_SAFE_WIDTH else nn.Conv2d
    return kind(inputs, outputs, kernel, stride=stride, padding=kernel // 2, bias=False)


def _dropout(rate: float) -> nn.Module:
    return nn.Dropout(rate) if rate else nn.Identity()
