"""The rows of the loaders' table: what each is, and how one is measured in the process it has to itself."""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import itertools
import resource
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import psutil
import torch
from torch.utils.data import DataLoader

from fastresnet.assembly import Data
from fastresnet.bench.student import StudentImages
from fastresnet.loaders.protocol import Batch, Loader, LoaderSpec, Split
from fastresnet.loaders.registry import open_loader
from fastresnet.words import counted

WORKERS = (0, 2, 4, 8, 12, 16, 20)  # the reports' own
BATCH_SIZE = 128
EPOCHS = 5
WEIGHED_S = 2.0  # how long a row's memory is watched
COPIED_BYTES = 160 << 20  # about CIFAR-10's training images
QUICK_ROW_S = 1.5  # of timed loading
QUICK_WARM_BATCHES = 4
QUICK_BATCHES = 20  # whose bits are compared
CHECKED_EPOCH = 1

_LIBRARIES = {"ffcv": "ffcv.loader", "dali": "nvidia.dali.fn"}

Weigh = Callable[[bool], None]


@dataclass(frozen=True, kw_only=True)
class Row:
    """One way of loading.

    Attributes:
        kind: ``transforms`` is a DataLoader with torchvision's transforms, ``pack`` the torch backend over the
            pack, ``backend`` any other of ours over the pack, ``files`` one that decodes image files.
        backend: its name; empty for ``transforms``.
        workers: processes of a DataLoader; 0 for what a backend chooses.
    """

    kind: str
    backend: str
    workers: int = 0

    @property
    def name(self) -> str:
        """What the tables call it."""
        if self.kind == "transforms":
            return f"DataLoader, torchvision transforms, {counted(self.workers, 'worker')}"
        if self.kind == "pack":
            return f"torch (DataLoader over the pack), {counted(self.workers, 'worker')}"
        return f"{self.backend}, from image files" if self.kind == "files" else self.backend


@dataclass(frozen=True, kw_only=True)
class Plan:
    """How much to measure.

    Attributes:
        workers: of the DataLoader rows.
        repeats: how often each row is measured.
        batch_size: images a step.
        quick: stop each row after a moment; no five epochs, no memory.
        device: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.
        arch: also measure the share of this arch's training steps that is spent waiting; None does not.
        steps: training steps a row for that.
    """

    workers: tuple[int, ...] = WORKERS
    repeats: int = 3
    batch_size: int = BATCH_SIZE
    quick: bool = False
    device: str = "auto"
    arch: str | None = None
    steps: int = 8


def all_rows(workers: tuple[int, ...], *, has_files: bool) -> list[Row]:
    """Return every row of the table."""
    rows = [Row(kind="transforms", backend="", workers=count) for count in workers]
    rows += [Row(kind="pack", backend="torch", workers=count) for count in workers]
    rows += [Row(kind="backend", backend=name) for name in ("numba", "resident", "ffcv", "dali")]
    return rows + ([Row(kind="files", backend="dali")] if has_files else [])


class Images:
    """Any row's loader, one epoch of images at a time."""

    def __init__(self, row: Row, data: Data, files: Split | None, plan: Plan, device: torch.device) -> None:
        self._loader: Loader | None = None
        self._torch_loader: DataLoader[Any] | None = None
        self._device = device
        if row.kind == "transforms":
            self._torch_loader = DataLoader(
                StudentImages(data), plan.batch_size, shuffle=True, num_workers=row.workers
            )
        else:
            split = files if row.kind == "files" else data.splits["train"]
            assert split is not None
            self._loader = open_loader(
                row.backend, split, loader_spec(plan.batch_size), device, workers=row.workers
            )

    def epoch(self, number: int) -> Iterator[int]:
        """Load one epoch, and yield the number of images in each batch."""
        if self._loader is None:
            assert self._torch_loader is not None
            for images, _ in self._torch_loader:
                yield len(images.to(self._device))
            return
        self._loader.set_epoch(number)
        for batch in self._loader:
            yield len(batch.labels)

    def batches(self) -> Iterator[Batch | None]:
        """Load epoch after epoch; None for a batch that is not in our terms."""
        for number in itertools.count():
            if self._loader is None:
                yield from (None for _ in self.epoch(number))
            else:
                self._loader.set_epoch(number)
                yield from self._loader

    def digest(self, epoch: int, most_batches: int | None) -> str | None:
        """Return a hash of an epoch's batches; None for a row that draws for itself."""
        return None if self._loader is None else digest_of(self._loader, epoch, most_batches)

    def close(self) -> None:
        """Free what the loader holds."""
        if self._loader is not None:
            self._loader.close()


def loader_spec(batch_size: int) -> LoaderSpec:
    """Return the crop and flip that the torchvision transforms draw, in the order contract's terms."""
    return LoaderSpec(batch_size=batch_size, padding=4, padding_mode="zero", flip="random")


def digest_of(loader: Loader, epoch: int, most_batches: int | None) -> str:
    """Return sha256 over the first ``most_batches`` batches of an epoch: images, labels, indices."""
    digest = hashlib.sha256()
    loader.set_epoch(epoch)
    for step, (images, labels, indices) in enumerate(loader):
        if most_batches is not None and step == most_batches:
            break
        for part in (images.permute(0, 2, 3, 1), labels, indices):
            digest.update(part.cpu().contiguous().numpy().data)
    return digest.hexdigest()


def _cpu_seconds() -> float:
    """Return the processor time of this process, its ended children and its live ones."""
    ended = resource.getrusage(resource.RUSAGE_CHILDREN)
    live = 0.0
    for process in psutil.Process().children(recursive=True):
        times = process.cpu_times()
        live += times.user + times.system
    return time.process_time() + ended.ru_utime + ended.ru_stime + live


def _synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def measure_row(
    row: Row, data: Data, files: Split | None, plan: Plan, device_wanted: str, weigh: Weigh
) -> dict[str, Any]:
    """Measure one row in this process, which is to be its own."""
    warnings.filterwarnings("ignore", message="This DataLoader will create")
    device = torch.device(device_wanted)
    if row.backend in _LIBRARIES:
        with contextlib.suppress(ImportError):  # opening the loader will say so
            importlib.import_module(_LIBRARIES[row.backend])
    _synchronise(device)
    start = time.perf_counter()
    images = Images(row, data, files, plan, device)
    timed = _time_quick if plan.quick else _time_epochs
    result = timed(images, start, device)
    if not plan.quick:
        weigh(True)
        end = time.perf_counter() + WEIGHED_S
        for _ in images.epoch(EPOCHS):
            if time.perf_counter() > end:
                break
        weigh(False)
    result["digest"] = images.digest(CHECKED_EPOCH, QUICK_BATCHES if plan.quick else None)
    images.close()
    return result


def _time_epochs(images: Images, start: float, device: torch.device) -> dict[str, Any]:
    rates, first_batches, cpu_before, counted = [], [], 0.0, 0
    for epoch in range(EPOCHS):
        begun = start if epoch == 0 else time.perf_counter()
        if epoch == 1:
            cpu_before = _cpu_seconds()
        count = 0
        for size in images.epoch(epoch):
            if not count:
                _synchronise(device)
                first_batches.append(time.perf_counter() - begun)
            count += size
        _synchronise(device)
        if epoch:
            rates.append(count / (time.perf_counter() - begun))
            counted += count
    return {
        "five_epochs_s": time.perf_counter() - start,
        "cold_start_s": first_batches[0],
        "first_batches_s": first_batches,
        "images_per_s": rates,
        "cpu_s_per_1000": 1000 * (_cpu_seconds() - cpu_before) / counted,
    }


def _time_quick(images: Images, start: float, device: torch.device) -> dict[str, Any]:
    sizes = itertools.chain.from_iterable(images.epoch(epoch) for epoch in itertools.count())
    next(sizes)
    _synchronise(device)
    cold_start = time.perf_counter() - start
    for _ in range(QUICK_WARM_BATCHES):
        next(sizes)
    _synchronise(device)
    count, begun = 0, time.perf_counter()
    for size in sizes:
        count += size
        if time.perf_counter() - begun > QUICK_ROW_S:
            break
    _synchronise(device)
    rate = count / (time.perf_counter() - begun)
    return {"cold_start_s": cold_start, "images_per_s": [rate]}


def measure_copy(weigh: Weigh) -> float:
    """Return bytes a second of one thread copying more than caches hold, the best of three."""
    source, target = np.ones(COPIED_BYTES, np.uint8), np.empty(COPIED_BYTES, np.uint8)
    best = float("inf")
    for _ in range(4):  # the first also touches the pages
        start = time.perf_counter()
        np.copyto(target, source)
        best = min(best, time.perf_counter() - start)
    return COPIED_BYTES / best
