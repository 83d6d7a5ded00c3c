"""What torch.compile needs of a machine: a C++ compiler and Python's headers for a CPU, Triton for a GPU."""

from __future__ import annotations

import importlib.util
import os
import shutil
import sys
import sysconfig
import threading
from contextlib import suppress
from pathlib import Path

import torch

# torch.compile goes on without compiling after so many graphs of one function, 8 unless told. A run's forward pass
# has one for each size of its images, whole and last batch of an epoch, and kernels that are tried.
MOST_GRAPHS = 64


def prepare_to_compile() -> None:
    """Let a function be compiled for as many kinds of input as a run may have, and nothing be left by a kill."""
    import torch._dynamo  # slow, and only for runs that compile

    with suppress(ImportError):
        from tqdm import tqdm  # whose bar torch makes while it compiles, shown or not

        # Its own lock is over processes too: of one that is killed Python then complains.
        tqdm.set_lock(threading.RLock())
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, MOST_GRAPHS)


def cxx_compiler() -> str | None:
    """Return the path of the C++ compiler that torch.compile will take: ``$CXX``, else g++, else clang++."""
    return shutil.which(os.environ.get("CXX", "g++")) or shutil.which("clang++")


def python_headers() -> Path:
    """Return where Python.h must lie, which what torch.compile writes for a CPU includes."""
    return Path(sysconfig.get_paths()["include"], "Python.h")


def compiler_missing(device: torch.device) -> str | None:
    """Return why torch.compile cannot work here, None when it can."""
    if device.type == "cuda":
        return None if importlib.util.find_spec("triton") else "triton is not installed"
    if cxx_compiler() is None:
        return "no C++ compiler was found"
    return None if python_headers().exists() else f"Python's headers are missing: no {python_headers()}"


def num_compiled() -> int:
    """Return how many graphs torch.compile has compiled in this process."""
    # Slow to import, and not there where nothing is compiled.
    dynamo = sys.modules.get("torch._dynamo.utils")
    return int(dynamo.counters["stats"]["unique_graphs"]) if dynamo else 0
