"""The ``torch`` backend: a DataLoader over the pack, its workers told each batch's samples and draws."""

from __future__ import annotations

import os
import signal
import sys
import threading
import weakref
from collections.abc import Iterator, Sized
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader, Dataset, Sampler

from fastresnet.errors import UserError
from fastresnet.loaders.epoch import Epoch, EpochCursor, loader_failed
from fastresnet.loaders.gather import gather
from fastresnet.loaders.mapped import mapped_file
from fastresnet.loaders.protocol import Batch, Loader, LoaderSpec, Split
from fastresnet.loaders.registry import register
from fastresnet.signals import SIGNALS


class PackDataset(Dataset[torch.Tensor]):
    """Batches of a pack, asked for by a table of rows (sample index, crop y, crop x, flip)."""

    def __init__(self, images: NDArray[np.uint8], spec: LoaderSpec) -> None:
        self.images = images
        self.spec = spec

    def __getitem__(self, table: NDArray[np.int64]) -> torch.Tensor:
        """Return uint8 [B, H, W, 3] for ``table``, int64 [4, B]."""
        out = torch.empty((table.shape[1], *self.images.shape[1:]), dtype=torch.uint8)
        gather(
            self.images, table[0], table[1], table[2], table[3].astype(np.bool_), out.numpy(),
            padding=self.spec.padding, padding_mode=self.spec.padding_mode,
        )  # fmt: skip
        return out

    def __getstate__(self) -> dict[str, Any]:
        """Send a spawned worker the memory map's place, not its bytes."""
        state = self.__dict__.copy()
        mapped = mapped_file(self.images)
        if mapped is not None:
            state["images"] = (*mapped, self.images.shape)
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Map the pack again."""
        if isinstance(state["images"], tuple):
            path, offset, shape = state["images"]
            state["images"] = np.memmap(path, np.uint8, "r", offset, shape)
        self.__dict__.update(state)


class TableSampler(Sampler[Any], Sized):
    """Yields each step's table; workers learn the epoch from it and from nothing else."""

    def __init__(self) -> None:
        self.epoch: Epoch | None = None

    def __iter__(self) -> Iterator[NDArray[np.int64]]:
        """Yield int64 [4, B] per step."""
        assert self.epoch is not None
        plan = self.epoch.plan
        for step in self.epoch.steps:
            rows = self.epoch.rows(step)
            yield np.stack([plan.indices[rows], plan.crop_y[rows], plan.crop_x[rows], plan.flips[rows]])

    def __len__(self) -> int:
        """Steps left in the epoch."""
        return len(self.epoch.steps) if self.epoch is not None else 0


def _leave_all_to_parent(worker: int) -> None:
    """Ignore what a terminal, `timeout` or a batch system sends to every process, and say nothing.

    The parent may want to save; it gets a worker's error, or finds it dead, and says so in one line. A worker whose
    fork server was killed would print more, when torch ends it.
    """
    for signum in SIGNALS:
        signal.signal(signum, signal.SIG_IGN)
    sys.stderr = open(os.devnull, "w")  # noqa: SIM115 - as long as the process lives


@contextmanager
def _keep_child_signals() -> Iterator[None]:
    """Take back the handler of SIGCHLD that torch sets when it starts workers.

    It raises when one dies, wherever the program then is: in the midst of a checkpoint, or of the handling of another
    error. Without it the next batch that is asked for raises, within 5 s.
    """
    before = signal.getsignal(signal.SIGCHLD)
    try:
        yield
    finally:
        if before is not None and threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGCHLD, before)


class TorchLoader(EpochCursor):
    """See the module."""

    def __init__(self, split: Split, spec: LoaderSpec, device: torch.device, workers: int) -> None:
        super().__init__(split, spec)
        self._device = device
        self._sampler = TableSampler()
        self._data_loader: DataLoader[torch.Tensor] | None = DataLoader(
            PackDataset(split.images, spec),
            sampler=self._sampler,
            batch_size=None,
            num_workers=workers,
            persistent_workers=workers > 0,
            pin_memory=device.type == "cuda",
            worker_init_fn=_leave_all_to_parent,
        )
        # Python ends forgotten workers by SIGTERM, which these ignore.
        self._at_exit = weakref.finalize(self, _stop_workers, self._data_loader)

    def __iter__(self) -> Iterator[Batch]:
        """Yield the epoch's batches from the start step on."""
        epoch = self.begin()
        self._sampler.epoch = epoch
        assert self._data_loader is not None
        with self._failures(), _keep_child_signals():
            tables = iter(self._data_loader)
        return self._iterate(epoch, tables)

    def _iterate(self, epoch: Epoch, tables: Iterator[torch.Tensor]) -> Iterator[Batch]:
        labels = torch.from_numpy(epoch.labels).to(self._device)
        indices = torch.from_numpy(epoch.plan.indices).to(self._device)
        for step in epoch.steps:
            with self._failures():
                images = next(tables)
            rows = epoch.rows(step)
            images = images.to(self._device, non_blocking=True).permute(0, 3, 1, 2)
            yield Batch(images, labels[rows], indices[rows])

    @contextmanager
    def _failures(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            if all(worker.is_alive() for worker in _workers(self._data_loader)):
                raise loader_failed("torch", error) from error
            raise UserError(
                "a process of the torch loader was killed, by a lack of memory perhaps; go on with --resume, or train "
                "with fewer --workers or another --loader"
            ) from error

    def close(self) -> None:
        """Stop the worker processes; calling it again does nothing."""
        self._data_loader = None
        self._at_exit()
        super().close()


def _workers(data_loader: DataLoader[torch.Tensor] | None) -> list[Any]:
    """Return the worker processes that were started and not yet stopped."""
    return getattr(getattr(data_loader, "_iterator", None), "_workers", [])


def _stop_workers(data_loader: DataLoader[torch.Tensor]) -> None:
    workers = _workers(data_loader)
    if not workers:
        return
    iterator: Any = data_loader._iterator
    if any(not worker.is_alive() for worker in workers):
        # Who was killed may have held the lock of the event by which torch tells the others to end.
        iterator._workers_done_event = threading.Event()
        for worker in workers:
            worker.kill()
    iterator._shutdown_workers()
    for worker in workers:  # torch ends those that hang by SIGTERM, which these ignore
        worker.kill()
        worker.join()


@register("torch")
def open_torch(split: Split, spec: LoaderSpec, device: torch.device, *, workers: int) -> Loader:
    """Open the ``torch`` backend with ``workers`` processes (0: in this process)."""
    return TorchLoader(split, spec, device, workers)
