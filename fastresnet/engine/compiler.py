"""What torch.compile needs of a machine: a C++ compiler and Python's headers for a CPU, Triton for a GPU."""

from __future__ import annotations

import importlib.util
import os
import shutil
import sysconfig
from pathlib import Path

import torch


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
