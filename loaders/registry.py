"""The loader backends by name."""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable, Iterable
from typing import Protocol

import torch

from fastresnet.errors import UserError, did_you_mean
from fastresnet.loaders.protocol import Loader, LoaderSpec, Split

SPARE_FACTOR = 4  # a resident pack may take a quarter of the free device memory; the rest is the training's


class OpenBackend(Protocol):
    """What a backend registers: a function that makes its loader."""

    def __call__(self, split: Split, spec: LoaderSpec, device: torch.device, *, workers: int) -> Loader: ...


_OWN = ("torch", "numba", "resident", "ffcv", "dali")
_registered: dict[str, OpenBackend] = {}


def register(name: str) -> Callable[[OpenBackend], OpenBackend]:
    """Return a decorator that makes a loader-opening function the backend ``name``."""

    def keep(open_backend: OpenBackend) -> OpenBackend:
        _registered[name] = open_backend
        return open_backend

    return keep


def backend_names() -> tuple[str, ...]:
    """Return every backend's name: ours, installed or not, then the registered ones."""
    return (*_OWN, *(name for name in _registered if name not in _OWN))


def open_loader(
    backend: str, split: Split, spec: LoaderSpec, device: torch.device | str, *, workers: int = 0
) -> Loader:
    """Open ``split`` with ``backend``: batches as ``spec`` says, on ``device``.

    Args:
        workers: processes (``torch``) or threads that load ahead; 0 lets the backend choose. The bits do
            not depend on it.

    Raises:
        UserError: unknown backend, one whose library is missing, or a spec that does not fit the images.
    """
    if backend not in backend_names():
        raise UserError(
            f"unknown loader {backend!r}; the loaders are {', '.join(backend_names())}"
            f"{did_you_mean(backend, backend_names())}"
        )
    if workers < 0:
        raise UserError(f"workers is {workers}; it must be 0 or more")
    side = min(split.images.shape[1:3])
    if spec.padding_mode == "reflect" and spec.padding >= side:
        raise UserError(
            f"reflect padding of {spec.padding} pixels needs images larger than that, these have {side}; "
            f"use at most {side - 1}, or zero padding"
        )
    if not len(split.members):
        raise UserError("the split holds no samples; choose a smaller hold-out or a larger data set")
    if split.encoded is not None and backend in _OWN and backend != "dali":
        raise UserError(
            f"the {backend} loader reads packed images and these are not packed; use the dali loader"
        )
    if backend not in _registered:
        importlib.import_module(f"fastresnet.loaders.{backend}_backend")
    return _registered[backend](split, spec, torch.device(device), workers=workers)


def default_backend(splits: Iterable[Split], device: torch.device | str) -> str:
    """Return ``resident`` on a GPU whose free memory is several times what ``splits`` hold, else ``numba``.

    On a CPU the pack is already in the page cache, where ``numba`` reads it without a second copy.
    """
    device = torch.device(device)
    if device.type != "cuda":
        return "numba"
    free, _ = torch.cuda.mem_get_info(device)
    wanted = sum(len(split.members) * math.prod(split.images.shape[1:]) for split in splits)
    return "resident" if wanted * SPARE_FACTOR <= free else "numba"
