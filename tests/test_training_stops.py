"""What stops a training: a loss that is not finite, too little memory."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_runs import (
    BATCH,
    STEPS,
    StopAt,
    only_run,
    tiny_config,
    tiny_recipe,
)

from fastresnet.engine import fit, machine
from fastresnet.engine.checkpoint import BEST, load_last, read_checkpoint
from fastresnet.engine.evaluate import evaluate
from fastresnet.engine.step import TrainStep
from fastresnet.errors import UserError
from fastresnet.report.curves import comparison_curves, run_curves
from fastresnet.report.records import read_run
from fastresnet.training import train


def poison(step: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the loss of step ``step`` (from 1) NaN."""
    forward = TrainStep.forward_eager

    def poisoned(self: TrainStep, *args: Any, **options: Any) -> Any:
        *losses, num_correct = forward(self, *args, **options)
        if self.state.step == step - 1:
            losses = [loss * math.nan for loss in losses]
        return *losses, num_correct

    monkeypatch.setattr(TrainStep, "forward_eager", poisoned)


def test_a_loss_that_is_nan_stops_and_keeps_the_last_good_checkpoint(
    data: Path, runs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    poison(STEPS + 3, monkeypatch)
    with pytest.raises(UserError) as caught:
        train(tiny_recipe(), tiny_config(data, save_every_s=1e-9), runs_dir=runs)
    run = only_run(runs)
    assert str(caught.value).startswith(
        f"the loss is not finite at step {STEPS + 3} (epoch 2); the last good"
    )
    assert str(run) in str(caught.value)
    state = load_last(run)[0]["state"]
    assert state["step"] == STEPS + 2
    for name, tensor in state["model"].items():
        assert torch.isfinite(tensor.float()).all(), name
    assert not (run / "result.json").exists()


def test_a_nan_between_looks_at_the_loss_is_found_before_a_save(
    data: Path, runs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped by a signal, a run whose loss is NaN does not overwrite its checkpoint."""
    poison(2, monkeypatch)
    with pytest.raises(UserError, match="the loss is not finite at step 2 "):
        train(tiny_recipe(), tiny_config(data), runs_dir=runs, listener=StopAt(4))
    assert load_last(only_run(runs))[0]["state"]["step"] == 0


def test_weights_that_overflow_at_the_very_last_step_are_not_kept(
    data: Path, runs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    step_optimizer = TrainStep._step_optimizer

    def overflow(self: TrainStep) -> None:
        step_optimizer(self)
        if self.state.step == 3 * STEPS - 1:
            next(self.state.model.parameters()).data.fill_(math.inf)

    monkeypatch.setattr(TrainStep, "_step_optimizer", overflow)
    with pytest.raises(UserError, match=f"the weights are not finite after step {3 * STEPS} "):
        train(tiny_recipe(), tiny_config(data), runs_dir=runs)
    run = only_run(runs)
    for content in (load_last(run)[0]["state"]["model"], read_checkpoint(run / BEST)["model"]):
        assert all(torch.isfinite(tensor.float()).all() for tensor in content.values())


def test_an_evaluation_that_overflows_is_recorded_as_none(
    data: Path, runs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A finite network may still be infinitely sure of something wrong; JSON has no word for infinity."""

    def overflowing(*args: Any, **kwargs: Any) -> Any:
        from dataclasses import replace

        return replace(evaluate(*args, **kwargs), loss=math.inf)

    monkeypatch.setattr(fit, "evaluate", overflowing)
    result = train(tiny_recipe(), tiny_config(data), runs_dir=runs)
    assert result.test_loss is None and result.epochs[0]["test_loss"] is None and 0 < result.test_accuracy < 1

    # Its curves were a traceback.
    record = read_run(result.run, runs)
    charts = {chart.name: chart for chart in (*run_curves(record), *comparison_curves([record, record]))}
    assert charts["loss"].numbers.columns == ("epoch", "train")
    assert "Losses that were not finite are left out." in charts["loss"].note
    assert charts["accuracy"].numbers.columns == ("epoch", "train", "test")


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"), "the GPU's memory"),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling"), "the GPU's memory"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried"), "the machine's memory"),
        (RuntimeError("could not create a primitive"), "the machine's memory"),
        (RuntimeError("can't start new thread"), "the machine's memory"),
        (RuntimeError("can't allocate lock"), "the machine's memory"),
        (MemoryError(), "the machine's memory"),
    ],
)
def test_too_little_memory_is_one_line(
    error: Exception, says: str, data: Path, runs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(self: TrainStep, *args: Any, **options: Any) -> Any:
        raise error

    monkeypatch.setattr(TrainStep, "forward_eager", fail)
    with pytest.raises(UserError, match=f"{says} is too small .* a smaller batch size than {BATCH}"):
        train(tiny_recipe(), tiny_config(data), runs_dir=runs)
    assert not runs.exists()


def test_other_errors_are_not_taken_for_a_lack_of_memory() -> None:
    with pytest.raises(RuntimeError, match="shapes"), machine.memory_errors(tiny_recipe()):
        raise RuntimeError("shapes differ")
