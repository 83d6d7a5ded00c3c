"""On what a figure was measured: the machine, the versions and the source, as records hold them."""

from __future__ import annotations

import contextlib
import hashlib
import os
import platform
import subprocess
import sys
from collections.abc import Collection, Iterator
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

from fastresnet import __version__

# What must match for a resumed run to give the same bits (contract 3).
MACHINE_KEYS = (
    "cpu",
    "instructions",
    "llvmlite",
    "python",
    "fastresnet",
    "torch",
    "numpy",
    "device_name",
    "cuda",
    "threads",
    "world_size",
)
HOST_KEYS = ("cpu", "instructions", "threads")  # of them, what is not the GPU's where one trains


@cache
def cpu_model() -> str:
    """Return the processor's name as the system gives it."""
    return _cpuinfo("model name") or platform.processor() or platform.machine()


@cache
def cpu_instructions() -> str:
    """Return the processor's vector instructions, by which code is chosen and generated: its name does not tell."""
    vectors = ("avx", "fma", "f16c", "amx", "asimd", "sve", "sme", "bf16")
    return " ".join(sorted(flag for flag in cpu_flags() if flag.startswith(vectors))) or platform.machine()


def cpu_flags() -> set[str]:
    """Return the instruction sets that Linux lists for this CPU; empty elsewhere."""
    return set(_cpuinfo("flags", "Features").split())


def _cpuinfo(*names: str) -> str:
    """Return what Linux says of the first processor under one of ``names``, "" where it says nothing."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return ""
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith(names)), "")


def _version(package: str) -> str | None:
    """Return an installed package's version."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


@cache
def source_version() -> str:
    """Return the commit of the source tree this package runs from, ``-dirty`` if altered.

    Where git tells none (a wheel, a copy of the tree), ``source-`` and 12 digits of a hash of the package's files.
    """
    folder = Path(__file__).resolve().parent
    if (folder.parent / ".git").exists():
        command = ["git", "-C", str(folder), "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"]
        with contextlib.suppress(OSError, subprocess.SubprocessError):
            done = subprocess.run(command, capture_output=True, text=True, timeout=10)
            if done.returncode == 0 and done.stdout.strip():
                return done.stdout.strip()
    digest = hashlib.sha256()
    for path in sorted(_sources(folder)):
        with contextlib.suppress(OSError):  # a link that leads nowhere is no source
            digest.update(f"{path.relative_to(folder)}\n".encode() + path.read_bytes())
    return f"source-{digest.hexdigest()[:12]}"


def _sources(folder: Path) -> Iterator[Path]:
    # kernels, loaders and bench are links in a source tree, and folders in a wheel
    for root, _, names in os.walk(folder, followlinks=True):
        yield from (Path(root, name) for name in names if name.endswith((".py", ".toml", ".j2", ".css")))


def environment(device_name: str, threads: int, world_size: int = 1) -> dict[str, Any]:
    """Return the versions and machine that a run's figures hold for; threads are those of each process."""
    import numpy
    import torch

    return {
        "fastresnet": __version__,
        "git": source_version(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": numpy.__version__,
        "llvmlite": _version("llvmlite"),
        "cuda": torch.version.cuda if torch.cuda.is_available() else None,
        "device_name": device_name,
        "cpu": cpu_model(),
        "instructions": cpu_instructions(),
        "cores": len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count(),
        "threads": threads,
        "world_size": world_size,
        "system": platform.platform(),
    }


def machine_difference(
    recorded: dict[str, Any], here: dict[str, Any], but: Collection[str] = ()
) -> str | None:
    """Return the first difference that may change a resumed run's bits, ``but`` these, in words; None without one."""
    unrecorded = {key: here.get(key) for key in ("instructions", "llvmlite")}  # by earlier versions
    recorded = {"world_size": 1, **unrecorded, **recorded}
    for key in MACHINE_KEYS:
        if key not in but and recorded.get(key) != here.get(key):
            name = "the number of ranks" if key == "world_size" else key
            return f"{name} was {recorded.get(key)!r} and is {here.get(key)!r}"
    return None
