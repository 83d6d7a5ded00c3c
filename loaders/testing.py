"""The contract suite: what every loader backend must pass, ours and a user's own.

With pytest::

    from fastresnet.loaders.testing import CONTRACT

    @pytest.mark.parametrize("check", CONTRACT, ids=lambda check: check.__name__)
    def test_mine(check):
        check(open_mine)

or in one go, ``check_backend(open_mine)``. The expected bits come from :func:`reference_epoch`, a plain
Python and NumPy reading of the order contract that shares no code with the draws, the plan or the kernels.
"""

from __future__ import annotations

import gc
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import psutil
import torch
from numpy.typing import NDArray

from fastresnet.errors import UserError
from fastresnet.loaders.protocol import Batch, Loader, LoaderSpec, Split
from fastresnet.loaders.registry import OpenBackend

Arrays = tuple[NDArray[np.uint8], NDArray[np.int64], NDArray[np.int64]]

_CPU = torch.device("cpu")
_MASK = (1 << 64) - 1
_GOLDEN = 0x9E3779B97F4A7C15
_ORDER, _CROP_Y, _CROP_X, _FLIP = 1, 2, 3, 4  # the purposes' numbers
_LEAK_BYTES = 12 << 20  # allocators keep some slack; a leaked epoch of the set below shows as far more


def _mix(z: int) -> int:
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 & _MASK
    z = (z ^ (z >> 27)) * 0x94D049BB133111EB & _MASK
    return z ^ (z >> 31)


def _draw(seed: int, purpose: int, epoch: int, index: int) -> int:
    key = _mix(seed + _GOLDEN & _MASK)
    key = _mix(key + _GOLDEN * (purpose + 1) & _MASK)
    key = _mix(key + _GOLDEN * (epoch + 1) & _MASK)
    return _mix(key + _GOLDEN * (index + 1) & _MASK) >> 1


def _sample(split: Split, spec: LoaderSpec, epoch: int, index: int) -> NDArray[np.uint8]:
    image = np.asarray(split.images[index])
    height, width, _ = image.shape
    if spec.padding:
        sides = ((spec.padding, spec.padding), (spec.padding, spec.padding), (0, 0))
        image = np.pad(image, sides, mode="reflect" if spec.padding_mode == "reflect" else "constant")
        top = _draw(spec.seed, _CROP_Y, epoch, index) % (2 * spec.padding + 1)
        left = _draw(spec.seed, _CROP_X, epoch, index) % (2 * spec.padding + 1)
        image = image[top : top + height, left : left + width]
    flipped = {
        "none": lambda: False,
        "random": lambda: _draw(spec.seed, _FLIP, epoch, index) % 2 == 1,
        "alternating": lambda: (_draw(spec.seed, _FLIP, 0, index) + epoch) % 2 == 1,
    }[spec.flip]()
    return image[:, ::-1] if flipped else image


def reference_epoch(split: Split, spec: LoaderSpec, epoch: int) -> list[Arrays]:
    """Return the epoch's batches of ``spec.rank``: (uint8 [B, H, W, 3], labels [B], indices [B]) each."""
    order = [int(index) for index in split.members]
    if spec.shuffle:
        order.sort(key=lambda index: _draw(spec.seed, _ORDER, epoch, index))
    batches = []
    for start in range(0, len(order), spec.batch_size):
        whole = order[start : start + spec.batch_size]
        if len(whole) < spec.batch_size and spec.drop_last:
            break
        shares = [len(part) for part in np.array_split(np.arange(len(whole)), spec.world_size)]
        mine = whole[sum(shares[: spec.rank]) : sum(shares[: spec.rank + 1])]
        images = [_sample(split, spec, epoch, index) for index in mine]
        empty = np.zeros((0, *split.images.shape[1:]), np.uint8)
        batches.append((np.stack(images) if images else empty, split.labels[mine], np.array(mine, np.int64)))
    return batches


@contextmanager
def example_split(
    num_images: int = 53, side: int = 12, *, every: int = 1, missing: int = 0
) -> Iterator[Split]:
    """Yield a split of noise in a memory-mapped temporary file.

    Args:
        every: the members are each ``every``-th image.
        missing: members past the last image, for which a loader must fail.
    """
    random = np.random.default_rng(num_images)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "images.bin"
        random.integers(0, 256, (num_images, side, side, 3), dtype=np.uint8).tofile(path)
        images = np.asarray(np.memmap(path, np.uint8, "r", shape=(num_images, side, side, 3)))
        members = np.arange(0, num_images + missing, every, dtype=np.int64)
        yield Split(images=images, labels=random.integers(0, 10, num_images + missing), members=members)


def as_arrays(batch: Batch) -> Arrays:
    """Check ``batch``'s shapes, dtypes and memory format; return copies, the images as uint8 [B, H, W, 3]."""
    images, labels, indices = batch
    assert images.dtype == torch.uint8 and images.ndim == 4 and images.shape[1] == 3, (
        f"images are {images.dtype} {tuple(images.shape)}, expected uint8 [B, 3, H, W]"
    )
    assert images.permute(0, 2, 3, 1).is_contiguous(), "images are not channels-last in memory"
    for name, column in (("labels", labels), ("indices", indices)):
        assert column.dtype == torch.int64 and column.shape == (len(images),), (
            f"{name} are {column.dtype} {tuple(column.shape)}, expected int64 [{len(images)}]"
        )
    pixels = images.permute(0, 2, 3, 1).cpu().numpy().copy()
    return pixels, labels.cpu().numpy().copy(), indices.cpu().numpy().copy()


def _same(got: Arrays, expected: Arrays, where: str) -> None:
    for field, name in enumerate(("images", "labels", "indices")):
        assert np.array_equal(got[field], expected[field]), (
            f"{name} differ from the order contract's, {where}"
        )


def _expect_epochs(
    loader: Loader, split: Split, spec: LoaderSpec, epochs: tuple[int, ...] = (0, 3), start_step: int = 0
) -> None:
    for epoch in epochs:
        expected = reference_epoch(split, spec, epoch)
        assert len(loader) == len(expected), (
            f"len(loader) is {len(loader)}, an epoch has {len(expected)} steps"
        )
        loader.set_epoch(epoch, start_step)
        steps = list(range(start_step, len(expected)))
        for step, batch in zip(steps, loader, strict=True):
            if step == start_step:
                time.sleep(0.02)  # let whatever loads ahead run: it must not touch the batch we hold
            _same(as_arrays(batch), expected[step], f"epoch {epoch}, step {step}, {spec}")


@contextmanager
def _opened(
    open_backend: OpenBackend, split: Split, spec: LoaderSpec, device: torch.device, workers: int = 0
) -> Iterator[Loader]:
    loader = open_backend(split, spec, device, workers=workers)
    try:
        yield loader
    finally:
        loader.close()


def check_protocol(open_backend: OpenBackend, device: torch.device = _CPU) -> None:
    """It is a Loader with the right lengths, its batches are on the device, and an epoch can be repeated."""
    with example_split() as split:
        for drop_last, samples, steps in ((False, 53, 7), (True, 48, 6)):
            spec = LoaderSpec(batch_size=8, drop_last=drop_last)
            with _opened(open_backend, split, spec, device) as loader:
                assert isinstance(loader, Loader), "it lacks a part of fastresnet.loaders.protocol.Loader"
                assert (loader.num_samples, len(loader)) == (samples, steps)
                first = [as_arrays(batch) for batch in loader]
                for got, again in zip(first, loader, strict=True):
                    assert all(part.device.type == device.type for part in again), "a batch is elsewhere"
                    _same(as_arrays(again), got, "the same epoch iterated twice")


def check_bits(open_backend: OpenBackend, device: torch.device = _CPU) -> None:
    """Order, crops and flips are the contract's: each padding, flip and last batch; a split with holes."""
    plain = LoaderSpec(batch_size=8, seed=5)
    with example_split() as split:
        for spec in (
            plain,
            replace(plain, shuffle=False, drop_last=True),
            replace(plain, padding=2, padding_mode="zero", flip="random"),
            replace(plain, padding=3, padding_mode="reflect", flip="alternating", drop_last=True),
            replace(plain, padding=11, padding_mode="reflect", flip="random", seed=2**40),
            replace(plain, padding=14, padding_mode="zero", flip="alternating"),
            replace(plain, batch_size=64, flip="random"),
        ):
            with _opened(open_backend, split, spec, device) as loader:
                _expect_epochs(loader, split, spec, (0, 3, 2))
    with example_split(every=3) as split:
        spec = replace(plain, padding=4, flip="random")
        with _opened(open_backend, split, spec, device) as loader:
            _expect_epochs(loader, split, spec)


def check_workers(open_backend: OpenBackend, device: torch.device = _CPU) -> None:
    """The bits do not depend on how many workers or threads load."""
    spec = LoaderSpec(batch_size=4, padding=2, flip="random")
    with example_split() as split:
        for workers in (0, 1, 2, 3):
            with _opened(open_backend, split, spec, device, workers) as loader:
                _expect_epochs(loader, split, spec)


def check_start_step(open_backend: OpenBackend, device: torch.device = _CPU) -> None:
    """An epoch can start at any step, after another was abandoned at any other."""
    spec = LoaderSpec(batch_size=8, padding=2, padding_mode="zero", flip="alternating")
    with example_split() as split, _opened(open_backend, split, spec, device, workers=1) as loader:
        for start_step in (0, 1, 6, 7):
            _expect_epochs(loader, split, spec, (2, 5), start_step)
        for taken in (1, 3):
            loader.set_epoch(4)
            for _, _ in zip(range(taken), loader, strict=False):
                pass
            _expect_epochs(loader, split, spec, (4, 5), start_step=taken)
        try:
            loader.set_epoch(0, 8)
        except UserError:
            return
        raise AssertionError("a start step past the epoch's end was taken")


def check_ranks(open_backend: OpenBackend, device: torch.device = _CPU) -> None:
    """Ranks' slices, one after another, are the global batch, for every number of ranks that divides it."""
    for drop_last, world_sizes in ((False, (2, 8)), (True, (4,))):
        whole = LoaderSpec(batch_size=8, padding=1, flip="random", drop_last=drop_last)
        with example_split(51) as split:
            expected = reference_epoch(split, whole, 1)
            for world_size in world_sizes:
                parts: list[list[Arrays]] = []
                for rank in range(world_size):
                    spec = replace(whole, rank=rank, world_size=world_size)
                    with _opened(open_backend, split, spec, device) as loader:
                        _expect_epochs(loader, split, spec, (1,))
                        parts.append([as_arrays(batch) for batch in loader])
                for step, batch in enumerate(expected):
                    joined = tuple(
                        np.concatenate([part[step][field] for part in parts]) for field in range(3)
                    )
                    _same(joined, batch, f"step {step} joined over {world_size} ranks")  # type: ignore[arg-type]


def _holdings() -> tuple[int, int, int]:
    gc.collect()
    process = psutil.Process()
    return process.num_threads(), len(process.children(recursive=True)), process.num_fds()


def _grown(before: tuple[int, int, int], after: tuple[int, int, int]) -> list[str]:
    names = ("threads", "processes", "handles")
    return [name for name, a, b in zip(names, before, after, strict=True) if b > a]


def check_close(open_backend: OpenBackend, device: torch.device = _CPU) -> None:
    """``close``, in mid-epoch too, frees threads, processes and file handles; using the loader then fails."""
    spec = LoaderSpec(batch_size=8, padding=1)
    with example_split() as split:
        held: list[tuple[int, int, int]] = []
        for cycle in range(4):
            loader = open_backend(split, spec, device, workers=2)
            for step, _ in enumerate(loader):
                if cycle % 2 and step == 1:
                    break
            loader.close()
            loader.close()
            deadline = time.monotonic() + 5  # seconds; a thread that was told to end may take a moment
            while cycle > 1 and _grown(held[1], _holdings()) and time.monotonic() < deadline:
                time.sleep(0.05)
            held.append(_holdings())
        # The first two cycles may start pools that a library keeps for the life of the process.
        grown = _grown(held[1], held[3])
        assert not grown, f"loaders leave {grown} behind: {held[1]}, then {held[3]}"
        try:
            next(iter(loader))
        except UserError:
            return
        raise AssertionError("a closed loader still yields")


def check_failure(open_backend: OpenBackend, device: torch.device = _CPU) -> None:
    """A sample that cannot be read ends in a UserError of one line, whichever worker meets it."""
    spec = LoaderSpec(batch_size=8, shuffle=False)
    for workers in (0, 2):
        with example_split(missing=3) as split:
            try:
                with _opened(open_backend, split, spec, device, workers) as loader:
                    for _ in loader:
                        pass
            except UserError as error:
                assert str(error).strip() and "\n" not in str(error), f"not one line: {error}"
            else:
                raise AssertionError("members past the last image went unnoticed")


def check_memory(open_backend: OpenBackend, device: torch.device = _CPU, num_epochs: int = 200) -> None:
    """Memory stays flat over ``num_epochs`` epochs of a small set."""
    spec = LoaderSpec(batch_size=64, padding=4, flip="random")
    with example_split(192, 32) as split, _opened(open_backend, split, spec, device, workers=1) as loader:
        process = psutil.Process()
        settled = 0
        for epoch in range(num_epochs):
            loader.set_epoch(epoch)
            for _ in loader:
                pass
            if epoch == num_epochs // 4:
                settled = process.memory_info().rss
        growth = process.memory_info().rss - settled
        assert growth < _LEAK_BYTES, f"memory grew by {growth >> 20} MiB over {num_epochs * 3 // 4} epochs"


CONTRACT: tuple[Callable[..., None], ...] = (
    check_protocol,
    check_bits,
    check_workers,
    check_start_step,
    check_ranks,
    check_close,
    check_failure,
    check_memory,
)


def check_backend(open_backend: OpenBackend, device: torch.device | str = "cpu") -> None:
    """Run the whole suite on a backend.

    Args:
        open_backend: what was given to :func:`fastresnet.loaders.registry.register`, or
            ``functools.partial(open_loader, name)``.
        device: where its batches are to be.

    Raises:
        AssertionError: saying which part of the contract fails, and where.
    """
    for check in CONTRACT:
        check(open_backend, torch.device(device))
