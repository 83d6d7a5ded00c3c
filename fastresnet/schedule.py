"""Learning-rate curves: a recipe's schedule as a factor on the base lr, a function of the step."""

from __future__ import annotations

import math
from typing import Any

from fastresnet import recipe_schedule as parts


class Schedule:
    """The lr factor of each step of a run.

    Attributes:
        metric: what :meth:`observe` wants each epoch, ``accuracy`` or ``loss``; None when it wants nothing.
    """

    metric: str | None = None

    def __init__(self, part: Any, epochs: int, steps_per_epoch: int) -> None:
        self.part = part
        self.steps_per_epoch = steps_per_epoch
        self.num_steps = epochs * steps_per_epoch
        self.warmup_steps = round(getattr(part, "warmup", 0.0) * self.num_steps)

    def factor(self, step: int) -> float:
        """Return the factor on the base lr at ``step``, counted from 0 over the whole run."""
        if step < self.warmup_steps:
            start = self.part.warmup_start
            return float(start + (1 - start) * (step + 1) / (self.warmup_steps + 1))
        return self._after_warmup(step - self.warmup_steps)

    def _after_warmup(self, step: int) -> float:
        part = self.part
        if isinstance(part, parts.Constant):
            return 1.0
        epoch = step // self.steps_per_epoch
        if isinstance(part, parts.Step):
            return float(part.gamma ** (max(0, epoch - part.after) // part.period))
        if isinstance(part, parts.Exponential):
            time = epoch // part.period if part.staircase else step / self.steps_per_epoch / part.period
            return float(part.gamma**time)
        if isinstance(part, parts.Linear):
            left = 1 - step / (self.num_steps - self.warmup_steps)
            return float(part.end + (1 - part.end) * left)
        if isinstance(part, parts.OneCycle):
            return _one_cycle(part, step, self.num_steps)
        time = float(epoch) if part.per == "epoch" else step / self.steps_per_epoch
        if isinstance(part, parts.CosineRestarts):
            return _cosine(_restarted(part, time), part.min_factor)
        assert isinstance(part, parts.Cosine), part
        t_max = part.t_max or (self.num_steps - self.warmup_steps) / self.steps_per_epoch
        return _cosine(time / t_max, part.min_factor)

    def observe(self, epoch: int, val_metric: float) -> None:
        """Tell the schedule what an epoch's evaluation gave; only plateau listens."""

    def state_dict(self) -> dict[str, Any]:
        """Return what :meth:`observe` has gathered, in JSON types."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up the state of :meth:`state_dict`."""


class PlateauSchedule(Schedule):
    """Reduces when the metric has stopped bettering: torch's ReduceLROnPlateau, relative threshold."""

    def __init__(self, part: parts.Plateau, epochs: int, steps_per_epoch: int) -> None:
        super().__init__(part, epochs, steps_per_epoch)
        self.metric = part.metric
        self.reduced = 1.0
        self.best: float | None = None
        self.num_bad = 0
        self.cooling = 0

    def _after_warmup(self, step: int) -> float:
        return self.reduced

    def observe(self, epoch: int, val_metric: float) -> None:
        """Take the metric of ``epoch``; accuracies are better higher, losses lower. NaN never betters."""
        part = self.part
        if self.best is None:
            better = not math.isnan(val_metric)
        elif part.metric == "accuracy":
            better = val_metric > self.best * (1 + part.threshold)
        else:
            better = val_metric < self.best * (1 - part.threshold)
        if better:
            self.best = val_metric
        self.num_bad = 0 if better else self.num_bad + 1
        if self.cooling:
            self.cooling -= 1
            self.num_bad = 0
        if self.num_bad > part.patience:
            self.reduced = max(self.reduced * part.gamma, part.min_factor)
            self.cooling = part.cooldown
            self.num_bad = 0

    def state_dict(self) -> dict[str, Any]:
        """Return the factor reached and the counts of epochs, in JSON types."""
        return {
            "reduced": self.reduced,
            "best": self.best,
            "num_bad": self.num_bad,
            "cooling": self.cooling,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up the state of :meth:`state_dict`."""
        self.reduced, self.best = state["reduced"], state["best"]
        self.num_bad, self.cooling = state["num_bad"], state["cooling"]


def build_schedule(part: parts.Schedule, epochs: int, steps_per_epoch: int) -> Schedule:
    """Return the schedule of a run of ``epochs`` epochs of ``steps_per_epoch`` steps."""
    if isinstance(part, parts.Plateau):
        return PlateauSchedule(part, epochs, steps_per_epoch)
    return Schedule(part, epochs, steps_per_epoch)


def _cosine(phase: float, low: float) -> float:
    """Return the cosine from 1 at phase 0 to ``low`` at phase 1, periodic in 2."""
    return low + (1 - low) * (1 + math.cos(math.pi * phase)) / 2


def _restarted(part: parts.CosineRestarts, time: float) -> float:
    """Return the phase in [0, 1) since the last restart, ``time`` epochs from the start."""
    if part.t_mult == 1:
        return time / part.t_0 % 1
    # Restart n begins at t_0 * (t_mult ** n - 1) / (t_mult - 1).
    start, length = 0.0, float(part.t_0)
    while time >= start + length:
        start, length = start + length, length * part.t_mult
    return (time - start) / length


def _one_cycle(part: parts.OneCycle, step: int, num_steps: int) -> float:
    """Return torch's OneCycleLR over ``num_steps`` steps, its peak at step ``peak * num_steps - 1``."""
    top, last = part.peak * num_steps - 1, num_steps - 1
    if step <= top:
        low, phase = part.start, 1 - step / top if top > 0 else 0.0
    else:
        low, phase = part.end, (step - top) / (last - top) if last > top else 1.0
    return _cosine(phase, low) if part.anneal == "cosine" else 1 + (low - 1) * phase
