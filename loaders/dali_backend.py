"""The ``dali`` backend: NVIDIA DALI crops and flips by our offsets, over the pack or straight from JPEG and PNG.

On a GPU it decodes there (``mixed``); pipelines for a CPU need no driver. Which samples, which crops and which flips
are fed to the pipeline a batch at a time, so nothing in it draws.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from fastresnet.errors import UserError
from fastresnet.loaders.epoch import Epoch, EpochCursor, loader_failed
from fastresnet.loaders.gather import gather
from fastresnet.loaders.protocol import Batch, Loader, LoaderSpec, Split
from fastresnet.loaders.registry import register

PREFETCH = 2  # batches scheduled ahead of the one in use; more only takes memory
DEFAULT_THREADS = 4  # decoding keeps that many busy; crops and flips of raw images do not


def _library() -> SimpleNamespace:
    try:
        from nvidia.dali import Pipeline, fn, types
    except ImportError as error:
        raise UserError(
            f"the dali loader needs NVIDIA DALI, which cannot be imported ({error}); `fastresnet doctor` says "
            "what to install, or use --loader numba"
        ) from error
    return SimpleNamespace(Pipeline=Pipeline, fn=fn, types=types)


def _reflected(fn: Any, images: Any, padding: int, side: int) -> Any:
    """Pad by mirrored strips, which DALI has no operator for."""
    for axis in (0, 1):
        low = fn.slice(images, start=[1], shape=[padding], axes=(axis,))
        high = fn.slice(images, start=[side - 1 - padding], shape=[padding], axes=(axis,))
        turned = {"horizontal": axis, "vertical": 1 - axis}
        images = fn.cat(fn.flip(low, **turned), images, fn.flip(high, **turned), axis=axis)
    return images


class DaliLoader(EpochCursor):
    """See the module."""

    def __init__(self, split: Split, spec: LoaderSpec, device: torch.device, threads: int) -> None:
        library = _library()
        super().__init__(split, spec)
        self._device = device
        self._side = split.images.shape[1]
        self._rank_batch = spec.batch_size // spec.world_size
        self._raw = np.empty((self._rank_batch, *split.images.shape[1:]), np.uint8)
        self._iterations = 0
        self._scheduled: deque[int] = deque()
        try:
            self._pipeline: Any = self._build(library, threads)
            self._warm_up()
        except Exception as error:
            self.close()
            raise _failed(error) from error

    def _build(self, library: SimpleNamespace, threads: int) -> Any:
        fn, types, spec, side = library.fn, library.types, self.spec, self._side
        on_gpu = self._device.type == "cuda"
        pipeline = library.Pipeline(
            batch_size=self._rank_batch,
            num_threads=threads,
            device_id=(self._device.index or 0) if on_gpu else None,
            prefetch_queue_depth=PREFETCH,
        )
        with pipeline:
            if self.split.encoded is None:
                images = fn.external_source(name="images", layout="HWC", dtype=types.UINT8, ndim=3)
                images = images.gpu() if on_gpu else images
            else:
                files = fn.external_source(name="images", dtype=types.UINT8, ndim=1)
                images = fn.decoders.image(files, device="mixed" if on_gpu else "cpu", output_type=types.RGB)
                if not self.split.encoded.all_of_size:
                    images = fn.resize(images, size=side, mode="not_smaller", interp_type=types.INTERP_CUBIC)
                    images = fn.crop(images, crop=(side, side))
            if spec.padding:
                start = fn.external_source(name="start", dtype=types.INT32, ndim=1)
                shape, axes = [side, side], (0, 1)
                if spec.padding_mode == "reflect":
                    padded = _reflected(fn, images, spec.padding, side)
                    images = fn.slice(padded, start=start, shape=shape, axes=axes)
                else:
                    start = start - spec.padding
                    images = fn.slice(
                        images, start=start, shape=shape, axes=axes, out_of_bounds_policy="pad", fill_values=0
                    )
            if spec.flip != "none":
                flips = fn.external_source(name="flips", dtype=types.INT32, ndim=0)
                images = fn.flip(images, horizontal=flips)
            pipeline.set_outputs(images)
        pipeline.build()
        return pipeline

    def _warm_up(self) -> None:
        """Run one image through: DALI's first scheduling wants as many batches as it prefetches, an epoch may not."""
        first = self.split.members[:1]
        nothing = np.zeros(1, np.int64)
        for _ in range(PREFETCH):
            self._feed(first, nothing, nothing, nothing.astype(np.bool_))
        self._pipeline.schedule_run()
        for _ in range(PREFETCH):
            self._pipeline.share_outputs()
            self._pipeline.release_outputs()

    def _feed(
        self,
        indices: NDArray[np.int64],
        crop_y: NDArray[np.int64],
        crop_x: NDArray[np.int64],
        flips: NDArray[np.bool_],
    ) -> None:
        if self.split.encoded is not None:
            self._pipeline.feed_input(
                "images", [self.split.encoded.read(index) for index in indices.tolist()]
            )
        else:
            raw, nothing = self._raw[: len(indices)], np.zeros(len(indices), np.int64)
            whole = nothing.astype(np.bool_)
            gather(self.split.images, indices, nothing, nothing, whole, raw, padding=0, padding_mode="zero")
            self._pipeline.feed_input("images", raw)
        if self.spec.padding:
            self._pipeline.feed_input("start", np.stack([crop_y, crop_x], 1).astype(np.int32))
        if self.spec.flip != "none":
            self._pipeline.feed_input("flips", flips.astype(np.int32))

    def __iter__(self) -> Iterator[Batch]:
        """Yield the epoch's batches from the start step on; this ends an iteration still open."""
        epoch = self.begin()
        self._iterations += 1
        self._drain()
        return self._iterate(epoch, self._iterations)

    def _iterate(self, epoch: Epoch, iteration: int) -> Iterator[Batch]:
        labels = torch.from_numpy(epoch.labels).to(self._device)
        indices = torch.from_numpy(epoch.plan.indices).to(self._device)
        plan = epoch.plan
        # A rank's share of a last batch smaller than the ranks are many is empty: nothing DALI could be fed.
        todo = iter([step for step in epoch.steps if epoch.rows(step).start < epoch.rows(step).stop])
        try:
            for step in epoch.steps:
                if self._pipeline is None or iteration != self._iterations:
                    raise UserError("the loader was closed or begun anew while this iteration was open")
                rows = epoch.rows(step)
                if rows.start == rows.stop:
                    yield Batch(self._no_images(), labels[rows], indices[rows])
                    continue
                try:
                    while len(self._scheduled) < PREFETCH and (ahead := next(todo, None)) is not None:
                        share = epoch.rows(ahead)
                        self._feed(
                            plan.indices[share], plan.crop_y[share], plan.crop_x[share], plan.flips[share]
                        )
                        self._pipeline.schedule_run()
                        self._scheduled.append(ahead)
                    images = self._take()
                except Exception as error:
                    fed = (PREFETCH + 1) * self._rank_batch
                    self._name_bad_file(plan.indices[rows.start : rows.start + fed])
                    raise _failed(error) from error
                yield Batch(images, labels[rows], indices[rows])
                del images
                if iteration == self._iterations:
                    self._pipeline.release_outputs()
        finally:
            if iteration == self._iterations:
                self._drain()

    def _take(self) -> torch.Tensor:
        """Return the next scheduled batch, uint8 [B, 3, H, W] in DALI's own memory."""
        self._scheduled.popleft()
        if self._device.type == "cuda":
            (output,) = self._pipeline.share_outputs(cuda_stream=torch.cuda.current_stream(self._device))
        else:
            (output,) = self._pipeline.share_outputs()
        return torch.from_dlpack(output.as_tensor()).permute(0, 3, 1, 2)

    def _no_images(self) -> torch.Tensor:
        shape = (0, *self.split.images.shape[1:])
        return torch.empty(shape, dtype=torch.uint8, device=self._device).permute(0, 3, 1, 2)

    def _name_bad_file(self, indices: NDArray[np.int64]) -> None:
        """Raise a UserError naming the first file of ``indices`` that is no image, if DALI failed over one."""
        encoded = self.split.encoded
        if encoded is not None:
            for index in indices.tolist():
                encoded.decode(index)

    def _drain(self) -> None:
        while self._scheduled and self._pipeline is not None:
            self._scheduled.popleft()
            try:
                self._pipeline.share_outputs()
                self._pipeline.release_outputs()
            except Exception:
                self._scheduled.clear()  # the pipeline has failed, and said so already

    def close(self) -> None:
        """Free DALI's threads and memory; calling it again does nothing."""
        self._iterations += 1
        self._pipeline = None
        self._scheduled.clear()
        super().close()


def _failed(error: Exception) -> UserError:
    """Return DALI's error as one line: of its many, the one that says what happened."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    telling = [line for line in lines if "Critical error" not in line and "no longer valid" not in line]
    return loader_failed("dali", type(error)((telling or lines or ["no message"])[0]))


@register("dali")
def open_dali(split: Split, spec: LoaderSpec, device: torch.device, *, workers: int) -> Loader:
    """Open the ``dali`` backend with ``workers`` threads (0: one a core, four at most)."""
    return DaliLoader(split, spec, device, workers or min(DEFAULT_THREADS, os.cpu_count() or 1))
