"""What a device can do at most, measured: the speed of a large copy and of a large matrix product; and a step's floor.

The floor of a training step counts what no implementation can leave out: the convolutions' and the head's arithmetic
at the measured matrix rate, and what batch norms must move, each in two passes over device memory, at the measured
copy rate. Everything else (optimizer, augmentation, residual adds, launches) is free in it.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import torch

from fastresnet.arch import ArchSpec
from fastresnet.kernels.timing import time_interleaved

COPY_BYTES = {"cuda": 2**30, "cpu": 2**27}  # far beyond any cache
MATRIX_SIDE = {"cuda": 8192, "cpu": 1536}
# Tensors of an activation's size that a norm reads or writes in two passes: x for the statistics, x again and y; then
# dy and x for the sums, both again and dx.
NORM_TENSORS = 3 + 5


@dataclass(frozen=True, kw_only=True)
class Ceilings:
    """A device's measured rates.

    Attributes:
        copy_bytes_per_s: of a large copy, bytes read and written.
        matrix_flops_per_s: of a large product of random square matrices; a multiply-add is two.
        dtype: of those matrices, such as ``bfloat16``.
    """

    copy_bytes_per_s: float
    matrix_flops_per_s: float
    dtype: str

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def copy_speed(device: torch.device) -> float:
    """Return the bytes a second that a large copy on ``device`` moves, read and written counted."""
    source = torch.randint(0, 256, (COPY_BYTES[device.type],), dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    times = time_interleaved({"copy": [lambda: target.copy_(source)]}, device, rounds=5, calls=4)
    return 2 * source.nbytes / times["copy"].p50_s


def matrix_speed(device: torch.device, dtype: torch.dtype) -> float:
    """Return the floating-point operations a second of a large matrix product on ``device``; random operands."""
    side = MATRIX_SIDE[device.type]
    left, right = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    out = torch.empty_like(left)
    times = time_interleaved({"product": [lambda: torch.mm(left, right, out=out)]}, device, rounds=5, calls=4)
    return 2 * side**3 / times["product"].p50_s


def measure_ceilings(device: torch.device, dtype: torch.dtype) -> Ceilings:
    """Measure both rates; seconds on a CPU, less on a GPU."""
    return Ceilings(
        copy_bytes_per_s=copy_speed(device),
        matrix_flops_per_s=matrix_speed(device, dtype),
        dtype=str(dtype).removeprefix("torch."),
    )


def step_flops(spec: ArchSpec, num_classes: int, image_size: int) -> int:
    """Return the floating-point operations of a training step, an image.

    Forward, and the gradients of weights and of inputs, at two operations a multiply-add each; the first convolution
    has no gradient of its input.
    """
    layers = spec.layers(num_classes, image_size)
    first = next(layer for layer in layers if layer.kind == "conv")
    return 6 * sum(layer.multiply_adds for layer in layers) - 2 * first.multiply_adds


def norm_bytes(spec: ArchSpec, num_classes: int, image_size: int, dtype: torch.dtype) -> int:
    """Return the bytes that the norms of a training step must move, an image."""
    elements = 0
    for layer in spec.layers(num_classes, image_size):
        if layer.kind == "norm":
            channels, height, width = layer.shape
            elements += channels * height * width
    return NORM_TENSORS * dtype.itemsize * elements


def step_floor(
    spec: ArchSpec, num_classes: int, image_size: int, dtype: torch.dtype, ceilings: Ceilings
) -> dict[str, float]:
    """Return a training step's floor: seconds an image of ``arithmetic_s`` and ``norms_s``, and ``images_per_s``."""
    arithmetic_s = step_flops(spec, num_classes, image_size) / ceilings.matrix_flops_per_s
    norms_s = norm_bytes(spec, num_classes, image_size, dtype) / ceilings.copy_bytes_per_s
    return {
        "arithmetic_s": arithmetic_s,
        "norms_s": norms_s,
        "images_per_s": 1 / (arithmetic_s + norms_s),
    }
