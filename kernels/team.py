"""Running code of :mod:`fastresnet.kernels.vector_code` on torch's own OpenMP threads.

A second pool of threads would wait for the cores on which the first one spins.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch

# Of every call: threads asked for; addresses of two counters from 0, by which threads tell themselves apart (THREAD)
# and share out the work (NEXT), so that all of it is done where the system gives fewer threads.
TEAM_WORDS = ("TEAM", "THREAD", "NEXT")
PIXEL_BYTES = {torch.float32: 4, torch.bfloat16: 2}


@cache
def team_obstacle() -> str | None:
    """Return why no such code can be had on this machine's CPU, or None where it can."""
    try:
        import llvmlite  # noqa: F401
    except ImportError:
        return "llvmlite is not installed"
    if _openmp() is None:
        return "this PyTorch's OpenMP runtime has not GNU's interface"
    return None


def channels_last(images: torch.Tensor) -> torch.Tensor:
    """Return [B, C, H, W] as the code reads it: a pixel's channels side by side."""
    return images.contiguous(memory_format=torch.channels_last)


def run_team(code: int, names: Sequence[str], values: dict[str, int]) -> None:
    """Have torch's threads, this one among them, run the code at an address.

    Args:
        code: a function of the address of a call's words, int64.
        names: of the words, TEAM_WORDS among them.
        values: of the others; those not named are 0.
    """
    counters = np.zeros(2, np.int64)
    team = torch.get_num_threads()  # the runtime ends the threads that a smaller team would leave over
    values = values | {"TEAM": team, "THREAD": counters.ctypes.data, "NEXT": counters.ctypes.data + 8}
    words = np.zeros(len(names), np.int64)
    for name, value in values.items():
        words[names.index(name)] = value
    runtime = _openmp()
    assert runtime is not None
    runtime.GOMP_parallel(
        ctypes.c_void_p(code), ctypes.c_void_p(words.ctypes.data), ctypes.c_uint(team), ctypes.c_uint(0)
    )


@cache
def _openmp() -> Any:
    """Return torch's library, through which its OpenMP runtime is found; None where that has not GNU's interface."""
    for path in sorted((Path(torch.__file__).parent / "lib").glob("libtorch_cpu.*")):
        library = ctypes.CDLL(str(path))
        if hasattr(library, "GOMP_parallel"):
            return library
    return None
