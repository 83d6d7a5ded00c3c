"""Warm-up on random labels: measures the step's speed, compiles it where that pays, and leaves no trace."""

from __future__ import annotations

import copy
import importlib.util
import os
import shutil
import statistics
import time
from collections.abc import Iterable
from dataclasses import dataclass

import torch

from fastresnet.draws import Purpose, below, stream
from fastresnet.engine.step import TrainStep
from fastresnet.errors import UserError
from fastresnet.loaders.protocol import Batch, Loader

NUM_WARM = 2  # steps until caches, allocators and primitive tables are filled
NUM_TIMED = 3
NUM_COMPARED = 5
SLOW_STEP_S = 2.0  # from here on one timed step says enough
# Compiling is tried when the eager run would last longer than this, and kept when it is faster by more than noise.
WORTH_COMPILING_S = {"cpu": 600.0, "cuda": 60.0}
KEEP_RATIO = 0.95


@dataclass(frozen=True, kw_only=True)
class WarmUp:
    """What the warm-up found.

    Attributes:
        step_s: median seconds of a step as the run will do it.
        compile: ``on`` or ``off``, as decided.
        reason: why, in a few words.
    """

    step_s: float
    compile: str
    reason: str


def warm_up(
    step: TrainStep, batches: list[Batch], *, compile: str, num_steps: int, compiler_missing: str | None
) -> WarmUp:
    """Run a few steps on ``batches`` and restore the state.

    Args:
        step: the run's step.
        batches: random ones: first the batch that is repeated, then any other shape the run will meet.
        compile: ``auto`` decides by measuring eager against compiled.
        num_steps: steps the run has left.
        compiler_missing: why nothing can be compiled here; None when it can.

    Raises:
        UserError: compiling was asked for and is not possible.
    """
    if compile == "on" and compiler_missing is not None:
        raise UserError(f"--compile on is not possible here: {compiler_missing}; use auto or off")
    saved = copy.deepcopy(step.state.state_dict())
    try:
        if compile == "auto":
            return _decide(step, batches, num_steps, compiler_missing)
        if compile == "on":
            step.compile()
        return WarmUp(step_s=_measure(step, batches), compile=compile, reason="as asked")
    finally:
        step.state.load_state_dict(saved)


def _decide(step: TrainStep, batches: list[Batch], num_steps: int, compiler_missing: str | None) -> WarmUp:
    eager_s = _measure(step, batches)
    if compiler_missing is not None:
        return WarmUp(step_s=eager_s, compile="off", reason=compiler_missing)
    if eager_s * num_steps < WORTH_COMPILING_S[step.device_type]:
        return WarmUp(step_s=eager_s, compile="off", reason="the run is too short for compiling to pay")
    step.compile()
    try:
        _measure(step, batches)
    except Exception as error:
        step.use_eager()
        reason = f"compiling failed: {type(error).__name__}"
        return WarmUp(step_s=eager_s, compile="off", reason=reason)
    compiled = step.forward
    eager_seconds, compiled_seconds = [], []
    for _ in range(NUM_COMPARED):
        # In turn, so that what else the machine does slows both alike.
        step.use_eager()
        eager_seconds.append(_timed(step, batches[0]))
        step.forward = compiled
        compiled_seconds.append(_timed(step, batches[0]))
    eager_s, compiled_s = statistics.median(eager_seconds), statistics.median(compiled_seconds)
    ratio = statistics.median(c / e for c, e in zip(compiled_seconds, eager_seconds, strict=True))
    reason = f"a step took {compiled_s * 1e3:.0f} ms compiled, {eager_s * 1e3:.0f} ms eager"
    if ratio < KEEP_RATIO:
        return WarmUp(step_s=compiled_s, compile="on", reason=reason)
    step.use_eager()
    return WarmUp(step_s=eager_s, compile="off", reason=reason)


def _measure(step: TrainStep, batches: list[Batch]) -> float:
    """Return the median seconds of a step, after warming every shape."""
    for batch in batches[1:]:
        _timed(step, batch)
    seconds = [_timed(step, batches[0]) for _ in range(NUM_WARM)]
    num_timed = 1 if seconds[-1] > SLOW_STEP_S else NUM_TIMED
    return statistics.median(_timed(step, batches[0]) for _ in range(num_timed))


def _timed(step: TrainStep, batch: Batch) -> float:
    state = step.state
    at = state.step, state.epoch_step
    synchronise(batch.images.device)
    start = time.perf_counter()
    step(batch)
    synchronise(batch.images.device)
    seconds = time.perf_counter() - start
    state.step, state.epoch_step = at  # schedules and draws know no step after the run's last
    return seconds


def warm_loaders(loaders: Iterable[Loader]) -> None:
    """Take the first and the last batch of each loader, for whatever it compiles or starts for their shapes."""
    for loader in loaders:
        for start in sorted({0, len(loader) - 1}):
            loader.set_epoch(0, start)
            for _ in loader:
                break


def synchronise(device: torch.device) -> None:
    """Wait for a GPU's queued work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def random_batches(
    sizes: list[int], image_size: int, num_classes: int, members: torch.Tensor, device: torch.device
) -> list[Batch]:
    """Return batches of grey noise with random labels, of the first members' indices."""
    batches = []
    for size in sizes:
        places = torch.arange(size)
        labels = below(stream(0, Purpose.WARMUP, 0), places.numpy(), num_classes)
        shape = (size, image_size, image_size, 3)
        pixels = below(stream(0, Purpose.WARMUP, 1), torch.arange(image_size**2 * 3).numpy(), 256)
        images = torch.from_numpy(pixels).to(torch.uint8).view(shape[1:]).expand(shape).contiguous()
        batches.append(
            Batch(
                images.to(device).permute(0, 3, 1, 2),
                torch.from_numpy(labels).to(device),
                members[places % len(members)].to(device),
            )
        )
    return batches


def compiler_missing(device: torch.device) -> str | None:
    """Return why torch.compile cannot work here, None when it can: Triton for a GPU, a C++ compiler for a CPU."""
    if device.type == "cuda":
        return None if importlib.util.find_spec("triton") else "triton is not installed"
    found = shutil.which(os.environ.get("CXX", "g++")) or shutil.which("clang++")
    return None if found else "no C++ compiler was found"
