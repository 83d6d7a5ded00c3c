"""The ``resident`` backend: the images live on the device; a batch is one fused gather-crop-flip there."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

import numpy as np
import torch

from fastresnet.loaders.epoch import Epoch, EpochCursor, loader_failed
from fastresnet.loaders.gather import gather
from fastresnet.loaders.protocol import Batch, Loader, LoaderSpec, Split
from fastresnet.loaders.registry import register

GatherInto = Callable[[torch.Tensor, torch.Tensor, torch.Tensor, int, bool], None]


def gather_tensor(
    out: torch.Tensor, images: torch.Tensor, table: torch.Tensor, padding: int, reflect: bool
) -> None:
    """Do what ``gather.gather`` does with index arithmetic, on any device.

    Args:
        out: uint8 [B, H, W, 3], overwritten.
        images: uint8 [N, H, W, 3] on the same device.
        table: int64 [4, B]: place in ``images``, crop y, crop x, flip (0 or 1).
    """
    _, height, width, _ = images.shape
    places, crop_y, crop_x, flips = (column[:, None] for column in table.unbind())
    y = torch.arange(height, device=out.device)[None, :] + crop_y - padding
    x = torch.arange(width, device=out.device)[None, :]
    x = torch.where(flips != 0, width - 1 - x, x) + crop_x - padding
    if reflect:
        y, x = ((last - (last - place.abs()).abs()) for place, last in ((y, height - 1), (x, width - 1)))
        out.copy_(images[places[:, :, None], y[:, :, None], x[:, None, :]])
        return
    inside = ((y >= 0) & (y < height))[:, :, None] & ((x >= 0) & (x < width))[:, None, :]
    y, x = y.clamp(0, height - 1), x.clamp(0, width - 1)
    out.copy_(images[places[:, :, None], y[:, :, None], x[:, None, :]] * inside[..., None])


class ResidentLoader(EpochCursor):
    """See the module. ``kernel`` fills a batch on the device; the CPU has one of its own.

    Attributes:
        move_s: seconds it took to read the images and move them to the device.
    """

    def __init__(
        self, split: Split, spec: LoaderSpec, device: torch.device, kernel: GatherInto | None
    ) -> None:
        super().__init__(split, spec)
        self._device = device
        self._kernel = kernel
        whole = len(split.members) == len(split.images)
        shape = (spec.batch_size // spec.world_size, *split.images.shape[1:])
        try:
            start = time.perf_counter()
            own = np.array(split.images if whole else split.images[split.members])
            self._images = torch.from_numpy(own).to(device)  # from memory that is not pinned, so it waits
            self.move_s = time.perf_counter() - start
            self._out = torch.empty(shape, dtype=torch.uint8, device=device)
            if kernel is not None:  # compiled now rather than at the first batch
                nothing = torch.zeros((4, shape[0]), dtype=torch.int64, device=device)
                kernel(self._out, self._images, nothing, spec.padding, spec.padding_mode == "reflect")
        except (IndexError, MemoryError, torch.OutOfMemoryError) as error:
            self.close()
            raise loader_failed("resident", error) from error

    def __iter__(self) -> Iterator[Batch]:
        """Yield the epoch's batches from the start step on."""
        return self._iterate(self.begin())

    def _iterate(self, epoch: Epoch) -> Iterator[Batch]:
        plan, reflect = epoch.plan, self.spec.padding_mode == "reflect"
        places = np.searchsorted(self.split.members, plan.indices)
        labels = torch.from_numpy(epoch.labels).to(self._device)
        indices = torch.from_numpy(plan.indices).to(self._device)
        images, out = self._images, self._out
        if self._kernel is not None:
            table = np.stack([places, plan.crop_y, plan.crop_x, plan.flips])
            on_device = torch.from_numpy(table).to(self._device)
        for step in epoch.steps:
            rows = epoch.rows(step)
            batch = out[: rows.stop - rows.start]
            if self._kernel is not None:
                self._kernel(batch, images, on_device[:, rows], self.spec.padding, reflect)
            else:
                gather(
                    images.numpy(), places[rows], plan.crop_y[rows], plan.crop_x[rows], plan.flips[rows],
                    batch.numpy(), padding=self.spec.padding, padding_mode=self.spec.padding_mode,
                )  # fmt: skip
            yield Batch(batch.permute(0, 3, 1, 2), labels[rows], indices[rows])

    def close(self) -> None:
        """Free the images; calling it again does nothing."""
        self._images = self._out = torch.empty(0)
        super().close()


def _device_kernel(device: torch.device) -> GatherInto | None:
    if device.type == "cpu":
        return None
    try:
        from fastresnet.loaders.gather_triton import gather_triton
    except ImportError:  # no triton: the same bits from a handful of torch's own kernels
        return gather_tensor
    return gather_triton


@register("resident")
def open_resident(split: Split, spec: LoaderSpec, device: torch.device, *, workers: int) -> Loader:
    """Open the ``resident`` backend; it has no workers, and takes any number of them for none."""
    return ResidentLoader(split, spec, device, _device_kernel(device))
