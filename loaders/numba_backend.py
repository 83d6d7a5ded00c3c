"""The ``numba`` backend: gather, crop and flip from the memory map into recycled buffers, on threads."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import torch

from fastresnet.errors import UserError
from fastresnet.loaders.epoch import Epoch, EpochCursor, loader_failed
from fastresnet.loaders.gather import gather
from fastresnet.loaders.protocol import Batch, Loader, LoaderSpec, Split
from fastresnet.loaders.registry import register

SLAB_BYTES = 2 << 20  # a slab of several batches spreads a thread hand-over (tens of microseconds) over them
SLABS_IN_FLIGHT = 2  # filled or being filled, beside the one the consumer holds


class Slab:
    """A recycled buffer of a few whole batches: on the CPU itself, for a GPU pinned, with its twin there.

    Attributes:
        host: uint8 [n, H, W, 3]; pinned when the device is a GPU.
        images: uint8 [n, 3, H, W], channels-last, on the device: what batches are views of.
    """

    def __init__(self, num_images: int, height: int, width: int, device: torch.device) -> None:
        shape = (num_images, height, width, 3)
        self.on_gpu = device.type == "cuda"
        host = torch.empty(shape, dtype=torch.uint8, pin_memory=self.on_gpu)
        self._host = host
        self.host = host.numpy()
        self._device_images = torch.empty(shape, dtype=torch.uint8, device=device) if self.on_gpu else host
        self.images = self._device_images.permute(0, 3, 1, 2)
        if self.on_gpu:
            self.copied = torch.cuda.Event()
            self.consumed = torch.cuda.Event()

    def before_fill(self) -> None:
        """Wait, on the filling thread, until the pinned half has been read by its last copy."""
        if self.on_gpu:
            self.copied.synchronize()

    def send(self, num_images: int, stream: torch.cuda.Stream | None) -> None:
        """Queue the copy to the GPU, behind the consumer's last use of the slab."""
        if stream is None:
            return
        with torch.cuda.stream(stream):
            stream.wait_event(self.consumed)
            self._device_images[:num_images].copy_(self._host[:num_images], non_blocking=True)
            self.copied.record(stream)

    def take(self) -> None:
        """Make the consumer's stream wait for the copy; the host does not."""
        if self.on_gpu:
            torch.cuda.current_stream(self.images.device).wait_event(self.copied)

    def give_back(self) -> None:
        """Mark the consumer's work queued so far as the slab's last use."""
        if self.on_gpu:
            self.consumed.record(torch.cuda.current_stream(self.images.device))


class NumbaLoader(EpochCursor):
    """See the module."""

    def __init__(self, split: Split, spec: LoaderSpec, device: torch.device, num_threads: int) -> None:
        super().__init__(split, spec)
        self._device = device
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        _, height, width, _ = split.images.shape
        rank_batch = spec.batch_size // spec.world_size
        per_slab = max(1, min(SLAB_BYTES // (rank_batch * height * width * 3), len(self)))
        self._steps_per_slab = per_slab
        self._slabs = [
            Slab(per_slab * rank_batch, height, width, device) for _ in range(SLABS_IN_FLIGHT + num_threads)
        ]
        self._threads: ThreadPoolExecutor | None = ThreadPoolExecutor(num_threads, "fastresnet-gather")
        self._iterations = 0
        self._ahead_slabs: deque[tuple[Slab, range, Future[None]]] = deque()

    def _fill(self, slab: Slab, epoch: Epoch, steps: range) -> None:
        plan = epoch.plan
        rows = slice(epoch.rows(steps[0]).start, epoch.rows(steps[-1]).stop)
        num_images = rows.stop - rows.start
        slab.before_fill()
        gather(
            self.split.images, plan.indices[rows], plan.crop_y[rows], plan.crop_x[rows], plan.flips[rows],
            slab.host[:num_images], padding=self.spec.padding, padding_mode=self.spec.padding_mode,
        )  # fmt: skip
        slab.send(num_images, self._stream)

    def __iter__(self) -> Iterator[Batch]:
        """Yield the epoch's batches from the start step on; this ends an iteration still open."""
        epoch = self.begin()
        self._iterations += 1
        self._wait_for_fills()
        return self._iterate(epoch, self._iterations)

    def _iterate(self, epoch: Epoch, iteration: int) -> Iterator[Batch]:
        labels = torch.from_numpy(epoch.labels).to(self._device)
        indices = torch.from_numpy(epoch.plan.indices).to(self._device)
        starts = range(0, len(epoch.steps), self._steps_per_slab)
        todo = (epoch.steps[start : start + self._steps_per_slab] for start in starts)
        free = list(self._slabs)
        try:
            while True:
                if self._threads is None or iteration != self._iterations:
                    raise UserError("the loader was closed or begun anew while this iteration was open")
                while free and (steps := next(todo, None)) is not None:
                    slab = free.pop()
                    filling = self._threads.submit(self._fill, slab, epoch, steps)
                    self._ahead_slabs.append((slab, steps, filling))
                if not self._ahead_slabs:
                    return
                slab, steps, filling = self._ahead_slabs.popleft()
                try:
                    filling.result()
                except Exception as error:
                    raise loader_failed("numba", error) from error
                slab.take()
                first = epoch.rows(steps[0]).start
                for step in steps:
                    rows = epoch.rows(step)
                    images = slab.images[rows.start - first : rows.stop - first]
                    yield Batch(images, labels[rows], indices[rows])
                slab.give_back()
                free.append(slab)
        finally:
            if iteration == self._iterations:
                self._wait_for_fills()

    def _wait_for_fills(self) -> None:
        """Let no thread write to a slab any more; what the consumer has queued is every slab's last use."""
        while self._ahead_slabs:
            filling = self._ahead_slabs.pop()[2]
            if not filling.cancel():
                filling.exception()
        for slab in self._slabs:
            slab.give_back()

    def close(self) -> None:
        """Free the threads and buffers; calling it again does nothing."""
        threads, self._threads = self._threads, None
        if threads is not None:
            threads.shutdown(wait=True, cancel_futures=True)
            if self._stream is not None:
                self._stream.synchronize()  # no copy may be under way into memory that is given back
        self._iterations += 1
        self._ahead_slabs.clear()
        self._slabs = []
        super().close()


@register("numba")
def open_numba(split: Split, spec: LoaderSpec, device: torch.device, *, workers: int) -> Loader:
    """Open the ``numba`` backend with ``workers`` gathering threads (0: one)."""
    return NumbaLoader(split, spec, device, max(1, workers))
