"""Everything that changes while training, in one place: :class:`TrainState`."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from fastresnet.optim import Lookahead, load_optimizer_state, loaded_part, optimizer_state
from fastresnet.recipe_parts import Ema
from fastresnet.run import Clocks
from fastresnet.schedule import Schedule
from fastresnet.toml_model import shown_value
from fastresnet.words import counted


class EmaModel:
    """An exponential moving average of a model's parameters and floating-point buffers.

    Args:
        source: the model.
        part: how it is averaged.
        num_steps: of the whole run.

    Attributes:
        model: a copy of the module that holds the average, ready to be evaluated.
        updates: how many updates it has seen.
    """

    def __init__(self, source: nn.Module, part: Ema, num_steps: int) -> None:
        self.part = part
        self._num_updates = max(1, num_steps // part.every)  # a warm-up averages, however short the run
        self.model = copy.deepcopy(source).requires_grad_(False)
        self.updates = 0
        # The copy is made before compilation, so both lists hold the same tensors for the whole run.
        self._average = _float_tensors(self.model)
        self._source = _float_tensors(source)

    def is_due(self, step: int) -> bool:
        """Return whether the weights after ``step`` (from 0) are taken in: it is one of every ``part.every``."""
        return (step + 1) % self.part.every == 0

    def share(self, update: int) -> float:
        """Return the share of the new weights in update number ``update`` (from 0)."""
        return 1 - self.part.keep(update, self._num_updates)

    @torch.no_grad()
    def move(self, share: float | torch.Tensor) -> None:
        """Move the average to the weights by ``share`` of the way; with ``lookahead`` the weights follow.

        The caller counts the update.
        The share may be a scalar tensor, for a step that is compiled or captured with it.
        """
        if isinstance(share, torch.Tensor):
            difference = torch._foreach_sub(self._source, self._average)
            torch._foreach_mul_(difference, share)
            torch._foreach_add_(self._average, difference)
        else:
            torch._foreach_lerp_(self._average, self._source, share)
        if self.part.lookahead:
            torch._foreach_copy_(self._source, self._average)

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
        loads: how often :meth:`load_state_dict` has changed it in this process.
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
    loads: int = 0

    @property
    def lr(self) -> float:
        """The first group's learning rate at the last step, or at the first before any."""
        base = self.optimizer.param_groups[0]["base_lr"]
        return float(base * self.schedule.factor(max(self.step - 1, 0)))

    @property
    def eval_model(self) -> nn.Module:
        """The model that is evaluated: the average where there is one."""
        return self.ema.model if self.ema else self.model

    def state_dict(self) -> dict[str, Any]:
        """Return the state as nested dicts of tensors and JSON types; the tensors are the live ones."""
        return {
            "model": self.model.state_dict(),
            "optimizer": optimizer_state(self.optimizer),
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

    def misfit(self, state: dict[str, Any]) -> str | None:
        """Return where ``state``, with :meth:`state_dict`'s own keys, is not of such a run, in words; None if nowhere.

        The shapes, dtypes and names of what is held here are looked at, and whether the counts agree.
        """
        own = self.state_dict()
        for name in ("model", "ema", "schedule", "sums"):
            if found := _misfit(own[name], state[name], name):
                return found
        if own["scaler"] and state["scaler"] and (found := _misfit(own["scaler"], state["scaler"], "scaler")):
            return found
        if found := _misfit(loaded_part(own["optimizer"]), loaded_part(state["optimizer"]), "optimizer"):
            return found
        epoch, epoch_step, step = state["epoch"], state["epoch_step"], state["step"]
        steps_per_epoch, num_steps = self.schedule.steps_per_epoch, self.schedule.num_steps
        if step != epoch * steps_per_epoch + epoch_step or epoch_step > steps_per_epoch or step > num_steps:
            return f"step {step} is not step {epoch_step} of epoch {epoch}, of {counted(steps_per_epoch, 'step')} each"
        if epoch * steps_per_epoch == num_steps and state["final"] is None:
            return "the last epoch is done, and final is None"
        sums = state["sums"].tolist()
        if not all(map(math.isfinite, sums)) or (sums[2] > 0) != (epoch_step > 0):
            return f"sums are {sums} after {counted(epoch_step, 'step')} of the epoch"
        return None

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up the state of :meth:`state_dict`; tensors are copied into those that are held already."""
        self.model.load_state_dict(state["model"])
        load_optimizer_state(self.optimizer, state["optimizer"])
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
        self.loads += 1

    @contextmanager
    def preserved(self) -> Iterator[None]:
        """Put the state back at the end to what it was, every tensor in its place."""
        saved, bad = copy.deepcopy(self.state_dict()), self.first_bad_step.clone()
        clocks = self.clocks
        try:
            yield
        finally:
            self.load_state_dict(saved)
            self.first_bad_step.copy_(bad)
            self.clocks = clocks


def _misfit(own: Any, given: Any, path: str) -> str | None:
    """Return where ``given`` is not built as ``own`` is, in words; None if nowhere. Numbers may be any finite ones."""
    if isinstance(own, torch.Tensor):
        if not isinstance(given, torch.Tensor):
            return f"{path} is no tensor"
        found, wanted = ((tuple(t.shape), str(t.dtype).removeprefix("torch.")) for t in (given, own))
        return None if found == wanted else f"{path} is {found[1]} {found[0]} and not {wanted[1]} {wanted[0]}"
    if isinstance(own, dict | list | tuple):
        if not isinstance(given, dict if isinstance(own, dict) else list | tuple):
            return f"{path} is {shown_value(given)}"
        ours, theirs = (
            value if isinstance(value, dict) else dict(enumerate(value)) for value in (own, given)
        )
        if ours.keys() != theirs.keys():
            names = ours.keys() ^ theirs.keys()
            odd = min(names, key=str)
            return f"{path} {'has no' if odd in ours else 'has a'} {shown_value(odd)}"
        return next(filter(None, (_misfit(ours[key], theirs[key], f"{path}.{key}") for key in ours)), None)
    kind = int if isinstance(own, int) else int | float
    number = (
        isinstance(given, kind) and not isinstance(given, bool) and abs(given) < 2**53
    )  # which NaN is not
    return None if number or (given is None and own is None) else f"{path} is {shown_value(given)}"
