"""What a run is trained on: every automatic choice of device, precision and threads, made once."""

from __future__ import annotations

import ctypes
import gc
import os
import re
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch

from fastresnet.engine.distributed import ALONE, Ranks
from fastresnet.environment import cpu_flags, cpu_model
from fastresnet.errors import UserError
from fastresnet.recipe import Recipe
from fastresnet.run import RunConfig
from fastresnet.words import counted

AMP_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "off": torch.float32}
# A config's choices as they are before they are made, for a run that goes on elsewhere: the warm-up's, and all.
UNFOUND: dict[str, Any] = dict.fromkeys(("compile", "kernels", "convs", "graphs"), "auto")
UNRESOLVED: dict[str, Any] = {**UNFOUND, **dict.fromkeys(("device", "loader", "amp"), "auto"), "threads": 0}


def resolve_device(wanted: str, ranks: Ranks = ALONE) -> torch.device:
    """Return the device that ``wanted`` names; ``auto`` takes a GPU where there is one.

    Of several ranks on a host each takes the GPU of its number there.

    Raises:
        UserError: no such kind of device, or a GPU that is not there.
    """
    if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", wanted):
        raise UserError(f"device is {wanted!r}; it must be auto, cpu, cuda or cuda:N")
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if wanted == "auto":
        wanted = "cuda" if count else "cpu"
    device = torch.device(wanted)
    if device.type == "cuda":
        if not count:
            raise UserError(f"device {wanted!r} was asked for, and torch sees no CUDA GPU; use --device cpu")
        if not ranks.is_alone:
            local = ranks.launch.local_world_size
            if device.index:
                raise UserError(f"each of {local} ranks takes a GPU of its own; leave --device {wanted} out")
            if local > count:
                raise UserError(
                    f"there are {local} ranks on this host and {counted(count, 'GPU')}; start {count}, or give "
                    "--device cpu"
                )
            return torch.device("cuda", ranks.launch.local_rank)
        device = torch.device("cuda", device.index or 0)
        if device.index is not None and device.index >= count:
            last = f" to cuda:{count - 1}" if count > 1 else ""
            raise UserError(f"there is no {device}: torch sees {counted(count, 'GPU')}, cuda:0{last}")
    return device


def has_device(name: str) -> bool:
    """Return whether :func:`resolve_device` takes ``name`` here."""
    try:
        resolve_device(name)
    except UserError:
        return False
    return True


def device_name(device: torch.device) -> str:
    """Return the GPU's or the processor's name."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else cpu_model()


def has_fast_bf16(device: torch.device) -> bool:
    """Return whether the hardware multiplies bfloat16, rather than emulating it."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    return bool({"avx512_bf16", "amx_bf16", "bf16"} & cpu_flags())


def resolve_amp(wanted: str, device: torch.device) -> str:
    """Return ``bf16`` where the hardware has it, else ``fp16`` on a GPU and ``off`` on a CPU.

    Raises:
        UserError: fp16 on a CPU, which would need a loss scale for nothing.
    """
    if wanted == "fp16" and device.type == "cpu":
        raise UserError("--amp fp16 needs a GPU; on a CPU use bf16 or off")
    if wanted != "auto":
        return wanted
    if has_fast_bf16(device):
        return "bf16"
    return "fp16" if device.type == "cuda" else "off"


def resolve_threads(wanted: int, ranks: Ranks = ALONE) -> int:
    """Return the number of CPU threads: those asked for, else this rank's part of the cores it may use."""
    return wanted or max(1, len(os.sched_getaffinity(0)) // ranks.launch.local_world_size)


def keep_freed_memory() -> None:
    """Have glibc keep what it is given back, rather than return each large tensor's pages to the system.

    Otherwise every activation on a CPU is fresh pages, which the kernel clears one by one. Elsewhere than on glibc
    nothing is done.
    """
    mmap_max, trim_threshold = -4, -1  # of mallopt(3)
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError):
        return
    mallopt(mmap_max, 0)
    mallopt(trim_threshold, -1)


def prepare(config: RunConfig, device: torch.device) -> None:
    """Set the process up as a resolved config says: threads, memory and determinism."""
    torch.set_num_threads(config.threads)
    if device.type == "cpu":
        keep_freed_memory()
    if config.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    # Only where it changes something, since it imports torch's compiler. Of torch's modes, 2 is an error and 0 nothing.
    if torch.get_deterministic_debug_mode() != (2 if config.deterministic else 0):
        torch.use_deterministic_algorithms(config.deterministic)
    # Else every empty tensor is written once more.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    if device.type == "cuda":
        torch.cuda.set_device(device)
        torch.backends.cudnn.benchmark = not config.deterministic


def autocast(device_type: str, dtype: torch.dtype) -> AbstractContextManager[Any]:
    """Return the context in which activations have ``dtype``; none at all for float32.

    It is entered inside what is compiled, which keeps torch from caching the tracing of a step in mixed precision (its
    generated code is cached all the same); entered outside, torch 2.11 would take bf16's entry for fp16's.
    """
    return nullcontext() if dtype == torch.float32 else torch.autocast(device_type, dtype)


@contextmanager
def memory_errors(recipe: Recipe) -> Iterator[None]:
    """Turn a lack of memory while training ``recipe`` into one line."""
    advice = f"give a smaller batch size than {recipe.batch_size}, or a narrower arch than {recipe.arch}"
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        # A library out of memory says so only in words; torch's own OutOfMemoryError has them too.
        text = str(error).lower()
        # oneDNN's words and Python's, where a limit on what may be mapped is met.
        words = ("can't allocate", "could not create a primitive", "can't start new thread")
        if isinstance(error, MemoryError) or any(word in text for word in words):
            raise UserError(f"the machine's memory is too small for this training; {advice}") from error
        if "out of memory" in text or "alloc_failed" in text:
            raise UserError(f"the GPU's memory is too small for this training; {advice}") from error
        raise


def synchronise(device: torch.device) -> None:
    """Wait for a GPU's queued work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def free_memory() -> None:
    """Leave others the GPU's memory, and the next network room for compiled code: a process keeps only so much."""
    if "torch._dynamo" in sys.modules:
        torch.compiler.reset()
    if torch.cuda.is_initialized():
        gc.collect()
        torch.cuda.empty_cache()
