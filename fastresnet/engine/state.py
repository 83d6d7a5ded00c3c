"""Everything that changes while training, in one place: :class:`TrainState`."""

from __future__ import annotations

import copy
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from fastresnet.optim import Lookahead
from fastresnet.recipe_parts import Ema
from fastresnet.run import Clocks
from fastresnet.schedule import Schedule


class EmaModel:
    """An exponential moving average of a model's parameters and floating-point buffers.

    Attributes:
        model: a copy of the module that holds the average, ready to be evaluated.
        updates: how many updates it has seen.
    """

    def __init__(self, source: nn.Module, part: Ema) -> None:
        self.part = part
        self.model = copy.deepcopy(source).requires_grad_(False)
        self.updates = 0
        # The copy is made before compilation, so both lists hold the same tensors for the whole run.
        self._average = _float_tensors(self.model)
        self._source = _float_tensors(source)

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Take in the weights after ``step`` (from 0), if it is one of every ``part.every``."""
        if (step + 1) % self.part.every == 0:
            torch._foreach_lerp_(self._average, self._source, 1 - self.part.keep(self.updates))
            self.updates += 1

    def state_dict(self) -> dict[str, Any]:
        return {"model": self.model.state_dict(), "updates": self.updates}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.model.load_state_dict(state["model"])
        self.updates = state["updates"]


def _float_tensors(module: nn.Module) -> list[torch.Tensor]:
    return [t for t in (*module.parameters(), *module.buffers()) if t.is_floating_point()]


@dataclass(kw_only=True)
class TrainState:
    """The only mutable state of a run.

    Attributes:
        model, optimizer, schedule: what is trained, and how far each has come.
        ema: the averaged model, None without.
        scaler: the loss scale, None unless fp16.
        sums: float64 [3] on the device: loss, correct and samples of the running epoch.
        first_bad_step: int64 scalar on the device: the first step whose loss was not finite, -1 while none.
        epoch: epochs finished, evaluation included.
        epoch_step: steps done in the running epoch.
        step: steps done in all.
        best: epoch, accuracy and split of the best evaluation so far; empty before the first.
        final: the last evaluation on test, once there is one.
        clocks: seconds so far, over all segments.
        segment: how often the run has been resumed.
    """

    model: nn.Module
    optimizer: torch.optim.Optimizer | Lookahead
    schedule: Schedule
    ema: EmaModel | None
    scaler: torch.amp.GradScaler | None
    sums: torch.Tensor
    first_bad_step: torch.Tensor
    epoch: int = 0
    epoch_step: int = 0
    step: int = 0
    best: dict[str, Any] = field(default_factory=dict)
    final: dict[str, Any] | None = None
    clocks: Clocks = field(default_factory=Clocks)
    segment: int = 0

    @property
    def eval_model(self) -> nn.Module:
        """The model that is evaluated: the average where there is one."""
        return self.ema.model if self.ema else self.model

    def state_dict(self) -> dict[str, Any]:
        """Return the state as nested dicts of tensors and JSON types; the tensors are the live ones."""
        return {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(),
            "ema": self.ema.state_dict() if self.ema else None,
            "scaler": self.scaler.state_dict() if self.scaler else None,
            "sums": self.sums,
            "epoch": self.epoch,
            "epoch_step": self.epoch_step,
            "step": self.step,
            "best": self.best,
            "final": self.final,
            "clocks": self.clocks.model_dump(),
            "segment": self.segment,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up the state of :meth:`state_dict`; tensors are copied."""
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.schedule.load_state_dict(state["schedule"])
        if self.ema:
            self.ema.load_state_dict(state["ema"])
        if self.scaler and state["scaler"]:  # another machine's precision may have needed none
            self.scaler.load_state_dict(state["scaler"])
        self.sums.copy_(state["sums"])
        self.first_bad_step.fill_(-1)
        self.epoch, self.epoch_step, self.step = state["epoch"], state["epoch_step"], state["step"]
        self.best = dict(state["best"])
        self.final = state["final"]
        self.clocks = Clocks(**state["clocks"])
        self.segment = state["segment"]
