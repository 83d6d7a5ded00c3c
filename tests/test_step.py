"""A step and the warm-up before the first: what they leave behind, and what they never do."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_runs import (
    BATCH,
    STEPS,
    TINY_TRAIN,
    assert_same_bits,
    tiny_config,
    tiny_recipe,
)

import fastresnet
from fastresnet.assembly import build_step, choose_machine, open_data, open_loaders
from fastresnet.engine.listener import Listener
from fastresnet.engine.rehearsal import random_batches
from fastresnet.engine.state import TrainState
from fastresnet.engine.step import TrainStep
from fastresnet.engine.warmup import Search, WarmUp, warm_up
from fastresnet.engine.way import Way
from fastresnet.errors import UserError
from fastresnet.kernels.dispatch import Choice
from fastresnet.optim import Lookahead


def build(data: Path, overrides: Any) -> TrainStep:
    recipe, chosen = tiny_recipe(overrides), choose_machine(tiny_config(data, amp="off"))
    opened = open_data(recipe, chosen.config, Listener())
    step = build_step(recipe, chosen, opened, STEPS)
    step.augment.begin_epoch(0, 0, opened.splits["train"].members, "cpu")
    return step


def real_steps(step: TrainStep, data: Path, count: int) -> None:
    """Do ``count`` steps on the run's own batches."""
    recipe, config = tiny_recipe(), tiny_config(data)
    loaders = open_loaders(recipe, config, open_data(recipe, config, Listener()), torch.device("cpu"))
    for _, batch in zip(range(count), loaders.train, strict=False):
        step(batch)
    loaders.close()


@pytest.mark.parametrize("compile", ["off", "auto"])
@pytest.mark.parametrize(
    "overrides",
    [
        {"dropout": {"head": 0.3}},
        {"optimizer.name": "adam", "optimizer.lookahead": {"k": 2}},
        {"optimizer.name": "muon", "schedule.warmup": 0.9, "mix": {"name": "mixup", "block": 8}},
    ],
    ids=["sgdn", "adam with lookahead", "muon"],
)
def test_the_warm_up_leaves_no_trace(
    compile: str, overrides: Any, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    warmed, fresh = build(data, overrides), build(data, overrides)
    before = flat_copy(warmed.state)
    batches = random_batches([BATCH, 4], 8, 3, torch.arange(TINY_TRAIN), torch.device("cpu"))
    factor, asked = warmed.state.schedule.factor, set()
    monkeypatch.setattr(warmed.state.schedule, "factor", lambda step: (asked.add(step), factor(step))[1])
    found = warmed_up(warmed, batches, compile=compile, num_steps=3)
    assert found.step_s[8] > 0 and found.way == Way()
    assert asked == {0}  # a later one might lie beyond the run's end
    assert_same_bits(flat_copy(warmed.state), before)
    assert warmed.state.first_bad_step == -1
    for step in (warmed, fresh):
        real_steps(step, data, 3)
    assert_same_bits(flat_copy(warmed.state), flat_copy(fresh.state))


def warmed_up(
    step: TrainStep, batches: list[Any], *, num_steps: int, missing: str | None = None, **config: Any
) -> WarmUp:
    search = Search(
        step=step,
        batches=batches,
        sizes=[],
        config=fastresnet.RunConfig(**config),
        num_steps=num_steps,
        compiler_missing=missing,
        convs_obstacles={"winograd": "not here"},
        norms_obstacle="not here",
        choose_kernels=lambda *, compiled, **_: Choice(
            kernels="inductor" if compiled else "eager", reason="said so"
        ),
    )
    return warm_up(search, batches[0], [False])


def flat_copy(state: TrainState) -> dict[str, Any]:
    import copy

    return copy.deepcopy(state.state_dict())


def test_compiling_that_fails_is_done_without_and_said(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    step = build(data, {})
    before = flat_copy(step.state)
    batches = random_batches([BATCH], 8, 3, torch.arange(TINY_TRAIN), torch.device("cpu"))

    def fail(*args: Any) -> Any:
        raise RuntimeError("the compiler crashed\nin many lines")

    monkeypatch.setattr(step, "backend", fail)
    found = warmed_up(step, batches, num_steps=10**9)
    assert found.way == Way() and found.reasons["kernels"] == "not here"
    assert found.reasons["compile"] == "compiled failed: RuntimeError: the compiler crashed"
    assert_same_bits(flat_copy(step.state), before)
    real_steps(step, data, 1)
    found = warmed_up(step, batches, num_steps=10**9, missing="no compiler")
    assert (found.way, found.reasons["compile"]) == (Way(), "no compiler")
    with pytest.raises(UserError, match="--compile on is not possible here: no compiler; use auto or off"):
        warmed_up(step, batches, num_steps=1, missing="no compiler", compile="on")


@pytest.mark.parametrize("name", ["sgdn", "adam", "muon"])
@pytest.mark.parametrize("lookahead", [None, {"k": 2}])
def test_a_step_whose_gradients_overflow_is_left_out(
    name: str, lookahead: dict[str, int] | None, data: Path
) -> None:
    """And the scale is halved; with a scale that fits, the step is the one without a scale."""
    overrides = {"optimizer.name": name, "optimizer.lookahead": lookahead, "clip_grad_norm": 1.0, "ema": None}
    scaled = build(data, overrides)
    scaled.state.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**9)
    overflowing = next(scaled.state.model.parameters()).register_hook(lambda gradient: gradient * math.inf)
    before = flat_copy(scaled.state)
    real_steps(scaled, data, 1)
    overflowing.remove()
    after = flat_copy(scaled.state)
    assert scaled.state.scaler.get_scale() == 2.0**8
    parameters = [name for name, _ in scaled.state.model.named_parameters()]
    for parameter in parameters:
        assert torch.isfinite(after["model"][parameter]).all()
        assert torch.equal(before["model"][parameter], after["model"][parameter])
    if lookahead:
        assert isinstance(scaled.state.optimizer, Lookahead) and scaled.state.optimizer.num_steps == 0

    scaled, plain = build(data, overrides), build(data, overrides)
    scaled.state.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**8)
    for step in (scaled, plain):
        real_steps(step, data, 4)
    for one, other in zip(scaled.state.model.parameters(), plain.state.model.parameters(), strict=True):
        torch.testing.assert_close(one, other)
    # The scale is part of the state.
    other = build(data, overrides)
    other.state.scaler = torch.amp.GradScaler("cpu")
    other.state.load_state_dict(scaled.state.state_dict())
    assert other.state.scaler.get_scale() == 2.0**8
    assert_same_bits(flat_copy(other.state), flat_copy(scaled.state))


def test_nothing_in_a_step_reads_a_value_back(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a GPU that would wait for the device; the scale's own look at overflow is torch's."""
    step = build(
        data, {"dropout": {"head": 0.1}, "mix": {"name": "cutmix", "block": 8}, "clip_grad_norm": 1.0}
    )
    real_steps(step, data, 1)  # makes the optimizer's state

    def forbid(name: str) -> Callable[..., Any]:
        def read_back(*args: Any, **kwargs: Any) -> Any:
            raise AssertionError(f"a step called Tensor.{name}")

        return read_back

    recipe, config = tiny_recipe(), tiny_config(data)
    loaders = open_loaders(recipe, config, open_data(recipe, config, Listener()), torch.device("cpu"))
    batch = next(iter(loaders.train))
    for name in ("item", "tolist", "__bool__", "__int__", "__float__", "cpu", "numpy", "nonzero"):
        monkeypatch.setattr(torch.Tensor, name, forbid(name))
    step(batch)
    monkeypatch.undo()
    loaders.close()
