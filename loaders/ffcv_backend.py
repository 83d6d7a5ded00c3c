"""The ``ffcv`` backend: FFCV reads a .beton in our order; its pipeline crops and flips with our kernel."""

from __future__ import annotations

import tempfile
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from functools import cache
from pathlib import Path
from queue import Empty
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from fastresnet.atomic import locked
from fastresnet.errors import UserError
from fastresnet.loaders.beton import holds, read_beton, write_beton
from fastresnet.loaders.cache import cache_folder, disk_errors
from fastresnet.loaders.epoch import Epoch, EpochCursor, loader_failed
from fastresnet.loaders.gather import gather
from fastresnet.loaders.mapped import mapped_file
from fastresnet.loaders.protocol import Batch, Loader, LoaderSpec, Split
from fastresnet.loaders.registry import register

BATCHES_AHEAD = 3
PACK_SUFFIX = "_images.u8"

# numba's fallback threading layer aborts the process when two threads are in parallel code at once.
_parallel_code = threading.Lock()


class Crops:
    """The crop and flip of every sample of one epoch, by sample index; what FFCV's pipeline reads them from."""

    def __init__(self, num_images: int, spec: LoaderSpec) -> None:
        self.padding, self.padding_mode = spec.padding, spec.padding_mode
        self.y, self.x = np.zeros(num_images, np.int64), np.zeros(num_images, np.int64)
        self.flips = np.zeros(num_images, np.bool_)

    def set(self, epoch: Epoch) -> None:
        """Take ``epoch``'s."""
        plan = epoch.plan
        self.y[plan.indices], self.x[plan.indices] = plan.crop_y, plan.crop_x
        self.flips[plan.indices] = plan.flips

    def apply(
        self, images: NDArray[np.uint8], out: NDArray[np.uint8], samples: NDArray[np.int64]
    ) -> NDArray[np.uint8]:
        """Crop and flip uint8 [B, H, W, 3] ``images`` of ``samples`` into the first B rows of ``out``."""
        out = out[: len(samples)]
        gather(
            images, np.arange(len(samples)), self.y[samples], self.x[samples], self.flips[samples], out,
            padding=self.padding, padding_mode=self.padding_mode,
        )  # fmt: skip
        return out


@cache
def _library() -> SimpleNamespace:
    """Import FFCV and return what is used of it, with two classes of ours that need it to be defined."""
    threads = torch.get_num_threads()
    try:
        import ffcv.loader
        from ffcv.fields.rgb_image import SimpleRGBImageDecoder
        from ffcv.loader.epoch_iterator import EpochIterator
        from ffcv.pipeline import compiler
        from ffcv.pipeline.allocation_query import AllocationQuery
        from ffcv.pipeline.operation import Operation
        from ffcv.transforms import ToDevice, ToTensor, ToTorchImage
    except ImportError as error:
        raise UserError(
            f"the ffcv loader needs ffcv, which cannot be imported ({error}); `fastresnet doctor` says what to "
            "install, or use --loader numba"
        ) from error
    # FFCV sets torch's thread count, when imported and to its number of workers; the training keeps its own.
    torch.set_num_threads(threads)
    compiler.ch = SimpleNamespace(set_num_threads=lambda count: None)

    class CropFlip(Operation):
        """Our crop and flip as a step of FFCV's pipeline, in Python so that it can see each epoch's crops."""

        def __init__(self, crops: Crops) -> None:
            super().__init__()
            self._crops = crops

        def generate_code(self) -> Any:
            def crop(images: Any, out: Any, samples: Any) -> Any:
                return self._crops.apply(images, out, samples.astype(np.int64))

            crop.with_indices = True  # type: ignore[attr-defined]
            return crop

        def declare_state_and_memory(self, previous_state: Any) -> Any:
            memory = AllocationQuery(previous_state.shape, previous_state.dtype)
            return replace(previous_state, jit_mode=False), memory

    class Reading(EpochIterator):
        """One epoch of FFCV's: its thread tells of an error instead of leaving the consumer to wait for ever."""

        error: BaseException | None = None

        def run(self) -> None:
            try:
                super().run()
            except BaseException as error:
                self.error = error
                self.output_queue.put(None)

        def run_pipeline(self, *arguments: Any) -> Any:
            if self.loader.num_workers == 1:
                return super().run_pipeline(*arguments)
            with _parallel_code:
                return super().run_pipeline(*arguments)

        def stop(self) -> None:
            """End the thread, whatever it is at."""
            self.iter_ixes = iter(())
            self.terminate_event.set()
            while self.is_alive():
                try:
                    self.output_queue.get(timeout=0.01)
                except Empty:
                    continue
            self.close()

    return SimpleNamespace(
        Loader=ffcv.loader.Loader,
        OrderOption=ffcv.loader.OrderOption,
        Decoder=SimpleRGBImageDecoder,
        CropFlip=CropFlip,
        Reading=Reading,
        ToDevice=ToDevice,
        ToTensor=ToTensor,
        ToTorchImage=ToTorchImage,
    )


def beton_of(split: Split, stack: ExitStack) -> Path:
    """Return a .beton of ``split``: the user's own, the pack's in the cache, or a temporary one of ``stack``'s."""
    if split.beton is not None and read_beton(split.beton).square_size == split.images.shape[1]:
        return split.beton
    mapped = mapped_file(split.images)
    packs = cache_folder() / "packs"
    if mapped is None or mapped[0].parent.parent != packs or not mapped[0].name.endswith(PACK_SUFFIX):
        path = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="fastresnet-"))) / "split.beton"
        write_beton(split, path)
        return path
    pack, name = mapped[0].parent.name, mapped[0].name.removesuffix(PACK_SUFFIX)
    path = cache_folder() / "betons" / f"{pack}-{name}.beton"
    with disk_errors("writing a .beton"), locked(path.with_suffix(".lock"), lambda: None):
        try:
            kept = path.exists() and holds(read_beton(path), split)
        except UserError:
            kept = False  # torn or altered: written again
        if not kept:
            write_beton(split, path)
    return path


class FfcvLoader(EpochCursor):
    """See the module."""

    def __init__(self, split: Split, spec: LoaderSpec, device: torch.device, threads: int) -> None:
        import numba

        library = _library()
        super().__init__(split, spec)
        self._stack = ExitStack()
        self._device = device
        self._reading: Any = None
        self._no_images = torch.empty((0, *split.images.shape[1:]), dtype=torch.uint8, device=device).permute(
            0, 3, 1, 2
        )
        self._library = library
        path = beton_of(split, self._stack)
        self._crops = Crops(len(split.images), spec)
        steps = [library.Decoder()]
        if spec.padding or spec.flip != "none":
            steps.append(library.CropFlip(self._crops))
        steps.append(library.ToTensor())
        if device.type == "cuda":
            steps.append(library.ToDevice(device, non_blocking=True))
        beton = read_beton(path)
        unread = dict.fromkeys(beton.other_fields)  # the labels are in memory
        self._num_samples_in_file = len(beton.labels)
        self._loader: Any = library.Loader(
            str(path),
            batch_size=spec.batch_size // spec.world_size,
            num_workers=min(threads, numba.config.NUMBA_NUM_THREADS),
            order=library.OrderOption.SEQUENTIAL,
            drop_last=False,
            batches_ahead=BATCHES_AHEAD,
            pipelines={**unread, beton.image_field: [*steps, library.ToTorchImage()]},
        )

    def __iter__(self) -> Iterator[Batch]:
        """Yield the epoch's batches from the start step on; this ends an iteration still open."""
        epoch = self.begin()
        self._stop()
        rest = epoch.plan.indices[epoch.plan.bounds[epoch.start_step] :]
        if len(rest) and rest.max() >= self._num_samples_in_file:  # FFCV would read past its end
            missing = IndexError(f"sample {rest.max()} of a .beton of {self._num_samples_in_file}")
            raise loader_failed("ffcv", missing) from missing
        self._crops.set(epoch)
        self._reading = self._library.Reading(self._loader, rest.astype(np.uint64)) if len(rest) else None
        return self._iterate(epoch, self._reading)

    def _iterate(self, epoch: Epoch, reading: Any) -> Iterator[Batch]:
        labels = torch.from_numpy(epoch.labels).to(self._device)
        indices = torch.from_numpy(epoch.plan.indices).to(self._device)
        try:
            for step in epoch.steps:
                if reading is not self._reading:
                    raise UserError("the loader was closed or begun anew while this iteration was open")
                rows = epoch.rows(step)
                if rows.start == rows.stop:  # a rank's share of a last batch smaller than the ranks are many
                    images: torch.Tensor | None = self._no_images
                else:
                    (images,) = next(reading, (None,))
                if images is None:
                    error = reading.error or RuntimeError("FFCV's thread ended early")
                    raise loader_failed("ffcv", error) from error
                yield Batch(images, labels[rows], indices[rows])
        finally:
            if reading is self._reading:
                self._stop()

    def _stop(self) -> None:
        reading, self._reading = self._reading, None
        if reading is not None:
            reading.stop()

    def close(self) -> None:
        """End FFCV's thread and free its memory; calling it again does nothing."""
        self._stop()
        self._loader = None
        self._stack.close()
        super().close()


@register("ffcv")
def open_ffcv(split: Split, spec: LoaderSpec, device: torch.device, *, workers: int) -> Loader:
    """Open the ``ffcv`` backend with ``workers`` reading threads, at most one a core (0: one, enough for raw)."""
    return FfcvLoader(split, spec, device, max(1, workers))
