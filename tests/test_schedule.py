"""Learning-rate factors against torch's own schedulers, and against what the reports' logs show."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.optim import lr_scheduler

from fastresnet.recipe import load_recipe
from fastresnet.schedule import Schedule, build_schedule

FAST = load_recipe("fast")


def schedule(epochs: int, steps_per_epoch: int, **keys: Any) -> Schedule:
    part = FAST.with_overrides({"schedule": keys}).schedule
    return build_schedule(part, epochs, steps_per_epoch)


def by_torch(make: Callable[[torch.optim.Optimizer], Any], times: int) -> list[float]:
    """Return the lr that torch's scheduler gives to an optimizer of lr 1, before each of ``times`` steps."""
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    scheduler = make(optimizer)
    factors = []
    for _ in range(times):
        factors.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return factors


def per_epoch(made: Schedule, epochs: int) -> list[float]:
    """Return the factor of each epoch, having checked that all its steps share it."""
    spe = made.steps_per_epoch
    for epoch in range(epochs):
        assert len({made.factor(epoch * spe + i) for i in range(spe)}) == 1
    return [made.factor(epoch * spe) for epoch in range(epochs)]


@pytest.mark.parametrize(
    ("keys", "make"),
    [
        ({"name": "step", "period": 100}, lambda o: lr_scheduler.StepLR(o, 100, 0.1)),
        ({"name": "exponential", "gamma": 0.9}, lambda o: lr_scheduler.ExponentialLR(o, 0.9)),
        ({"name": "exponential", "gamma": 0.9, "period": 5}, lambda o: lr_scheduler.StepLR(o, 5, 0.9)),
        ({"name": "constant"}, lambda o: lr_scheduler.ConstantLR(o, 1.0)),
        (
            {"name": "cosine", "t_max": 200, "per": "epoch", "min_factor": 0.01},
            lambda o: lr_scheduler.CosineAnnealingLR(o, 200, eta_min=0.01),
        ),
        (
            {"name": "cosine", "t_max": 400, "per": "epoch"},  # more than the run's epochs
            lambda o: lr_scheduler.CosineAnnealingLR(o, 400),
        ),
        (
            {"name": "cosine-restarts", "t_0": 30, "per": "epoch"},
            lambda o: lr_scheduler.CosineAnnealingWarmRestarts(o, 30),
        ),
        (
            {"name": "cosine-restarts", "t_0": 10, "t_mult": 2, "min_factor": 0.1, "per": "epoch"},
            lambda o: lr_scheduler.CosineAnnealingWarmRestarts(o, 10, 2, eta_min=0.1),
        ),
    ],
    ids=lambda value: str(value) if isinstance(value, dict) else "",
)
def test_epoch_schedules_equal_torchs(keys: dict[str, Any], make: Callable[..., Any]) -> None:
    ours = per_epoch(schedule(330, 3, **keys), 330)
    assert ours == pytest.approx(by_torch(make, 330), rel=1e-6, abs=1e-9)


@pytest.mark.parametrize("anneal", ["cosine", "linear"])
@pytest.mark.parametrize("peak", [0.25, 0.5])
def test_one_cycle_equals_torchs(anneal: str, peak: float) -> None:
    made = schedule(10, 12, name="one-cycle", peak=peak, start=0.04, end=4e-6, anneal=anneal)
    theirs = by_torch(
        lambda o: lr_scheduler.OneCycleLR(
            o,
            1.0,
            120,
            pct_start=peak,
            anneal_strategy="cos" if anneal == "cosine" else "linear",
            div_factor=25,
            final_div_factor=1e4,
            cycle_momentum=False,
        ),
        119,  # one more call of its step() would be refused
    )
    assert [made.factor(step) for step in range(119)] == pytest.approx(theirs, rel=1e-6, abs=1e-9)
    assert made.factor(119) == pytest.approx(4e-6)


def test_linear_equals_torchs_and_ends_above_zero() -> None:
    made = schedule(5, 8, name="linear")
    theirs = by_torch(lambda o: lr_scheduler.LinearLR(o, 1.0, 0.0, total_iters=40), 40)
    ours = [made.factor(step) for step in range(40)]
    assert ours == pytest.approx(theirs, rel=1e-6)
    assert ours[-1] == pytest.approx(1 / 40)  # the last step still learns; the one after would not


def test_step_cosine_changes_every_step_as_torch_stepped_per_batch() -> None:
    made = schedule(6, 7, name="cosine", per="step")
    theirs = by_torch(lambda o: lr_scheduler.CosineAnnealingLR(o, 42), 42)
    assert [made.factor(step) for step in range(42)] == pytest.approx(theirs, rel=1e-6, abs=1e-9)


def test_r0s_step_schedule_as_its_logs_ran() -> None:
    made = build_schedule(load_recipe("r0-resnet24-as-run").schedule, 200, 352)
    lrs = {epoch: 0.1 * made.factor((epoch - 1) * 352) for epoch in (1, 50, 101, 102, 103, 115)}
    assert lrs[1] == lrs[50] == lrs[101] == pytest.approx(0.1)
    assert lrs[102] == pytest.approx(0.01)
    assert lrs[103] == pytest.approx(0.001)
    assert lrs[115] < 1e-14  # frozen


def test_r1_decays_by_nine_tenths_every_five_epochs() -> None:
    factors = per_epoch(build_schedule(load_recipe("r1-joint").schedule, 50, 782), 50)
    assert factors == pytest.approx([0.9 ** (epoch // 5) for epoch in range(50)])


@pytest.mark.parametrize(("metric", "mode"), [("accuracy", "max"), ("loss", "min")], ids=["accuracy", "loss"])
@given(
    values=st.lists(st.floats(0.0, 1.0), min_size=1, max_size=40),
    patience=st.integers(0, 4),
    cooldown=st.integers(0, 3),
)
def test_plateau_equals_torchs(
    metric: str, mode: Any, values: list[float], patience: int, cooldown: int
) -> None:
    made = schedule(
        40,
        2,
        name="plateau",
        metric=metric,
        gamma=0.3,
        patience=patience,
        cooldown=cooldown,
        threshold=0.01,
        min_factor=0.05,
    )
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    theirs = lr_scheduler.ReduceLROnPlateau(
        optimizer, mode, 0.3, patience, threshold=0.01, cooldown=cooldown, min_lr=0.05
    )
    assert made.metric == metric
    for epoch, value in enumerate(values):
        assert made.factor(2 * epoch) == pytest.approx(optimizer.param_groups[0]["lr"], rel=1e-6)
        made.observe(epoch, value)
        theirs.step(value)


def test_plateau_resumes_from_json() -> None:
    keys = {"name": "plateau", "gamma": 0.5, "patience": 1}
    whole, first, second = (schedule(12, 2, **keys) for _ in range(3))
    values = [0.1, 0.3, 0.3, 0.2, 0.1, 0.4, 0.4, 0.4, 0.4, 0.4]
    for epoch, value in enumerate(values):
        whole.observe(epoch, value)
        (first if epoch < 4 else second).observe(epoch, value)
        if epoch == 3:
            second.load_state_dict(json.loads(json.dumps(first.state_dict())))
    assert second.factor(20) == whole.factor(20) == pytest.approx(0.125)
    assert second.state_dict() == whole.state_dict()


def test_nan_counts_as_an_epoch_without_betterment() -> None:
    made = schedule(9, 1, name="plateau", metric="loss", patience=1)
    for epoch in range(2):
        made.observe(epoch, math.nan)
    assert made.factor(2) == pytest.approx(0.1)


@pytest.mark.parametrize("name", ["constant", "step", "exponential", "cosine", "cosine-restarts", "linear"])
def test_warm_up_rises_in_steps_and_then_the_schedule_begins(name: str) -> None:
    keys: dict[str, Any] = {"name": name}
    keys |= {"step": {"period": 3}, "exponential": {"gamma": 0.5}, "cosine-restarts": {"t_0": 4}}.get(
        name, {}
    )
    warmed = schedule(20, 5, warmup=0.2, warmup_start=0.1, **keys)
    rise = [warmed.factor(step) for step in range(20)]
    assert rise == pytest.approx([0.1 + 0.9 * (i + 1) / 21 for i in range(20)])
    shifted = schedule(16, 5, **keys)  # linear and cosine end where the run does
    assert [warmed.factor(20 + i) for i in range(80)] == pytest.approx([shifted.factor(i) for i in range(80)])


@given(epochs=st.integers(1, 400), steps=st.integers(1, 500), where=st.floats(0, 1, exclude_max=True))
def test_fast_is_the_same_shape_for_any_length(epochs: int, steps: int, where: float) -> None:
    made = build_schedule(FAST.schedule, epochs, steps)
    step = int(where * epochs * steps)
    assert 0 < made.factor(step) <= 1
    peak = max(made.factor(i) for i in range(made.warmup_steps, min(made.warmup_steps + 2, epochs * steps)))
    assert peak == 1


@given(
    keys=st.sampled_from(
        [
            {"name": "step", "period": 3, "after": 7},
            {"name": "cosine", "min_factor": 0.2, "t_max": 13},
            {"name": "cosine-restarts", "t_0": 3, "t_mult": 3},
            {"name": "one-cycle", "peak": 0.01},
            {"name": "one-cycle", "peak": 0.99, "anneal": "linear"},
            {"name": "exponential", "gamma": 0.97, "staircase": False},
            {"name": "linear", "end": 0.3, "warmup": 0.99},
        ]
    ),
    epochs=st.integers(1, 60),
    steps=st.integers(1, 20),
)
def test_factors_lie_between_nothing_and_one(keys: dict[str, Any], epochs: int, steps: int) -> None:
    made = schedule(epochs, steps, **keys)
    assert all(0 <= made.factor(step) <= 1 + 1e-12 for step in range(epochs * steps))
