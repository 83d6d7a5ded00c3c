"""Seconds of a step, by the way in which it is done, measured on random batches."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch

from fastresnet.atomic import explain_os_error
from fastresnet.engine.machine import synchronise
from fastresnet.engine.step import TrainStep
from fastresnet.engine.way import Way
from fastresnet.errors import UserError
from fastresnet.loaders.protocol import Batch

NUM_WARM = 2  # steps until caches, allocators and primitive tables are filled
NUM_TIMED = 3
# Rounds in which ways are compared, and about how long that may take; 2 rounds at least.
NUM_COMPARED, COMPARED_S = 5, 10.0
SLOW_STEP_S = 2.0  # from here on one timed step says enough


@dataclass(kw_only=True)
class StepTimes:
    """Times steps, which are taken back: schedules and draws know of none.

    Attributes:
        step: the run's step.
        batches: random ones: first the batch that is timed, then any other shape the run will meet.
        seconds: of a step on whole images, measured so far.
    """

    step: TrainStep
    batches: list[Batch]
    seconds: dict[Way, float] = field(default_factory=dict)

    def of(self, way: Way) -> float:
        """Return the median seconds of a step in ``way`` on whole images, measured once.

        Raises:
            UserError: as :meth:`measure_taken`.
        """
        if way not in self.seconds:
            self.seconds[way] = self.measure_taken(way)
        return self.seconds[way]

    def compare(self, first: Way, others: Sequence[Way]) -> dict[Way, tuple[float, float]]:
        """Return by way the median seconds of a step and the median of its ratio to ``first``, all measured before.

        They are timed in turn, so that what else the machine does slows all alike.
        """
        seconds: dict[Way, list[float]] = {way: [] for way in (first, *others)}
        rounds = int(COMPARED_S / sum(self.seconds[way] for way in seconds))
        for _ in range(min(max(rounds, 2), NUM_COMPARED)):
            for way, times in seconds.items():
                self.step.take(way)
                times.append(self._timed(self.batches[0]))
        return {
            way: (
                statistics.median(times),
                statistics.median(s / f for s, f in zip(times, seconds[first], strict=True)),
            )
            for way, times in seconds.items()
        }

    def measure_taken(self, way: Way, size: int | None = None) -> float:
        """Return the median seconds of a step in a way that there is nothing to take in place of.

        Raises:
            UserError: such a step fails for another reason than too little memory.
        """
        special = {
            "--compile": (way.compile, "off", way.compile != "off"),
            "--kernels": (way.kernels, "eager", way.kernels not in ("eager", "inductor")),
            "--convs": (way.convs, "direct", way.convs != "direct"),
            "--graphs": ("on", "off", way.graphs),
        }
        taken = " ".join(f"{option} {value}" for option, (value, _, used) in special.items() if used)
        instead = " ".join(f"{option} {plain}" for option, (_, plain, used) in special.items() if used)
        try:
            return self.measure(way, size)
        except (UserError, MemoryError, torch.OutOfMemoryError):
            raise
        except Exception as error:
            if not taken:
                raise
            cause = getattr(error, "inner_exception", error)
            if isinstance(cause, OSError):  # of files that compiled code is kept in
                raise explain_os_error(cause, f"a step with {taken} failed") from error
            raise UserError(f"a step with {taken} failed: {cause_of(error)}; train with {instead}") from error

    def measure(self, way: Way, size: int | None = None) -> float:
        """Return the median seconds of a step in ``way``, images resized to ``size``, after warming every shape."""
        self.step.take(way)
        batch, *others = self.batches
        ema = self.step.state.ema
        for other in others:
            self._timed(other, size=size)
        if ema is not None and ema.part.every > 1 and way != Way(kernels=way.kernels, convs=way.convs):
            # Steps that move the average and steps that do not are compiled and captured apart.
            for shape in self.batches:
                for averaging in (False, True):
                    self._timed(shape, averaging, size)
        seconds = [self._timed(batch, size=size) for _ in range(NUM_WARM)]
        num_timed = 1 if seconds[-1] > SLOW_STEP_S else NUM_TIMED
        return statistics.median(self._timed(batch, size=size) for _ in range(num_timed))

    def _timed(self, batch: Batch, averaging: bool | None = None, size: int | None = None) -> float:
        state = self.step.state
        at = state.step, state.epoch_step
        synchronise(batch.images.device)
        start = time.perf_counter()
        self.step(batch, averaging=averaging, image_size=size or batch.images.shape[-1])
        synchronise(batch.images.device)
        seconds = self.step.ranks.highest(time.perf_counter() - start)  # so that all ranks decide alike
        state.step, state.epoch_step = at  # schedules and draws know no step after the run's last
        return seconds


def cause_of(error: Exception) -> str:
    """Return what failed, in a line: a compiler's own failure where torch.compile has wrapped it."""
    cause = getattr(error, "inner_exception", error)
    return f"{type(cause).__name__}: {(str(cause).splitlines() or [''])[0]}"
