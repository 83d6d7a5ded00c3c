"""Which implementation a run's norms take: on a GPU measured on whole blocks, once per machine and network.

An op of ours is a barrier to Inductor's fusion, so nothing less than a block inside a compiled graph tells which is
faster. The result is a constant of the run: it goes to its config, and into every :class:`BatchNormAct2d`.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from fastresnet import __version__
from fastresnet.atomic import locked, read_sealed_json, write_sealed_json
from fastresnet.errors import UserError, did_you_mean
from fastresnet.kernels.block_time import BlockShape, fastest_tuning, time_blocks
from fastresnet.kernels.fusion import Activation
from fastresnet.kernels.llvm_norms import llvm_obstacle
from fastresnet.kernels.norm_act import INTERPRETED, KERNELS, TRITON_KERNELS

CACHE_FILE = "kernels.json"


@dataclass(frozen=True, kw_only=True)
class Choice:
    """What the norms take, and why.

    Attributes:
        kernels: one of ``norm_act.KERNELS``.
        reason: a line for the user.
    """

    kernels: str
    reason: str


def triton_obstacle(device: torch.device) -> str | None:
    """Return why Triton cannot run on ``device``, or None where it can, be it interpreted."""
    if device.type != "cuda":
        if INTERPRETED and importlib.util.find_spec("triton") is not None:
            return None
        return f"Triton compiles for GPUs, and this is a {device.type}"
    if torch.cuda.get_device_capability(device) < (8, 0):
        return "Triton needs a GPU of compute capability 8.0 (Ampere) or newer"
    if importlib.util.find_spec("triton") is None:
        return "Triton is not installed"
    return None


def kernels_obstacle(kernels: str, device: torch.device) -> str | None:
    """Return why ``kernels``, one of ``norm_act.KERNELS``, cannot be had on ``device``, or None where they can."""
    if kernels in TRITON_KERNELS:
        return triton_obstacle(device)
    return llvm_obstacle(device.type) if kernels == "llvm" else None


def check_kernels(wanted: str, device: torch.device, compile: str) -> None:
    """Refuse kernels that cannot be had, before anything slow.

    Args:
        wanted: ``auto``, or one of ``norm_act.KERNELS``.
        device: the run's.
        compile: ``off`` where the step will not go through torch.compile.

    Raises:
        UserError: an unknown name, or one that cannot be had here.
    """
    if wanted != "auto":
        _as_asked(wanted, device, compile != "off")


def choose_kernels(
    wanted: str,
    blocks: Sequence[BlockShape],
    *,
    activation: Activation,
    dtype: torch.dtype,
    device: torch.device,
    compiled: bool,
    launched: bool,
    synced: bool,
    deterministic: bool,
    worth_measuring: bool = True,
    cache_folder: Path,
    announce: Callable[[str], None] = lambda line: None,
) -> Choice:
    """Return what ``--kernels wanted`` comes to; ``auto`` is the fastest of what this machine can run.

    Of an eager step on a CPU it is not asked for ``auto``: the warm-up measures whole steps.

    Args:
        wanted: ``auto``, or one of ``norm_act.KERNELS``.
        blocks: the network's blocks at the batch size of one process.
        activation: the network's.
        dtype: what the convolutions compute in.
        device: the run's.
        compiled: the step goes through torch.compile.
        launched: the step's operations are launched one by one, and not replayed from a CUDA graph.
        synced: the norms share their statistics with other ranks, which is timed nowhere: plain PyTorch.
        deterministic: then nothing is measured, since another day's measurement may differ: the kernels where they
            run, whose sums are always added in the same order.
        worth_measuring: the run is long enough; otherwise only an earlier measurement is used.
        cache_folder: where measurements are kept, in ``kernels.json``.
        announce: told once, before a measurement that takes a minute.

    Raises:
        UserError: an unknown name, or one that cannot be had here.
    """
    plain = "inductor" if compiled else "eager"
    if wanted != "auto":
        return _as_asked(wanted, device, compiled)
    obstacle = triton_obstacle(device)
    if obstacle is not None:
        by_compiler = compiled and device.type == "cpu"
        return Choice(kernels=plain, reason="torch.compile fuses the norms" if by_compiler else obstacle)
    if device.type != "cuda":
        return Choice(kernels=plain, reason="Triton's interpreter is for tests")
    if synced:
        return Choice(kernels=plain, reason="not measured for statistics that ranks share")
    if deterministic:
        return Choice(kernels="triton", reason="deterministic, so not measured")
    key = machine_key(blocks, activation, dtype, device, compiled=compiled, launched=launched)
    file = cache_folder / CACHE_FILE
    cached = _read(file).get(key)
    if cached is not None:
        return _choice(cached, plain, "measured earlier on this machine")
    if not worth_measuring:
        return Choice(kernels=plain, reason="the run is too short for measuring to pay")
    announce(
        "measuring which batch-norm kernels are fastest here: about a minute, once per machine and network"
    )
    try:
        triton = TRITON_KERNELS[fastest_tuning(blocks, activation, dtype, device)]
        times = time_blocks(
            [plain, triton], blocks, activation, dtype, device, compiled=compiled, launched=launched
        )
    except Exception as error:
        # a compiler's failure on some machine must not keep it from training
        first_line = (str(error).splitlines() or [""])[0]
        return Choice(kernels=plain, reason=f"measuring failed: {type(error).__name__}: {first_line}")
    cache_folder.mkdir(parents=True, exist_ok=True)
    with locked(file.with_suffix(".lock"), waiting=lambda: None):
        write_sealed_json(file, {**_read(file), key: times})
    return _choice(times, plain, f"measured on {torch.cuda.get_device_name(device)}")


def describe_choices(device: torch.device, cache_folder: Path) -> str:
    """Return what ``--kernels auto`` comes to on ``device``, in words."""
    if device.type == "cpu":
        obstacle = llvm_obstacle(device.type)
        return (
            f"plain PyTorch, compiled where that pays ({obstacle})"
            if obstacle
            else "measured by each run: PyTorch's against LLVM's"
        )
    obstacle = triton_obstacle(device)
    if obstacle is not None:
        return f"plain PyTorch, compiled where that pays ({obstacle})"
    here = f"{_machine_name(device)}; "
    kept = [times for key, times in _read(cache_folder / CACHE_FILE).items() if key.startswith(here)]
    if not kept:
        return "measured at the first run that is worth it, once for each network"
    counts = Counter(min(times, key=lambda name: times[name]) for times in kept)
    return "measured here: " + ", ".join(f"{name} for {n} of {len(kept)}" for name, n in counts.most_common())


def _machine_name(device: torch.device) -> str:
    """Return the GPU and the versions that a measurement holds for."""
    import triton

    name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    versions = {"torch": torch.__version__, "triton": triton.__version__, "fastresnet": __version__}
    return "; ".join([name, *(f"{library} {version}" for library, version in versions.items())])


def machine_key(
    blocks: Sequence[BlockShape],
    activation: str,
    dtype: torch.dtype,
    device: torch.device,
    *,
    compiled: bool,
    launched: bool,
) -> str:
    """Return what a measurement holds for: GPU, versions of torch, Triton and these kernels, and the blocks."""
    subject = [list(map(tuple, blocks)), activation, str(dtype), compiled, launched]
    digest = hashlib.sha256(json.dumps(subject).encode()).hexdigest()[:16]
    return f"{_machine_name(device)}; {digest}"


def _as_asked(wanted: str, device: torch.device, compiled: bool) -> Choice:
    if wanted not in KERNELS:
        allowed = ("auto", *KERNELS)
        near = did_you_mean(wanted, allowed)
        raise UserError(f"--kernels is {wanted!r}; it must be one of {', '.join(allowed)}{near}")
    obstacle = kernels_obstacle(wanted, device)
    if obstacle is not None:
        raise UserError(f"--kernels {wanted} cannot be had: {obstacle}; use --kernels auto")
    if wanted == "inductor" and not compiled:
        raise UserError(
            "--kernels inductor is what torch.compile makes; add --compile on, or use --kernels eager"
        )
    return Choice(kernels=wanted, reason="as asked")


def _choice(times: dict[str, float], plain: str, origin: str) -> Choice:
    # a tie goes to the plain module, which everything else knows how to handle
    best = min(times, key=lambda name: (times[name], name != plain))
    told = ", ".join(f"{name} {1e3 * seconds:.3f} ms" for name, seconds in sorted(times.items()))
    return Choice(kernels=best, reason=f"blocks take {told}; {origin}")


def _read(file: Path) -> dict[str, Any]:
    """Return the measurements kept; none where the file is missing or damaged, since they can be made again."""
    try:
        return read_sealed_json(file)
    except UserError:
        return {}
