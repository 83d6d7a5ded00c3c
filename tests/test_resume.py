"""A run that goes on learns the same bits as one that was never stopped."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_runs import (
    STEPS,
    Killed,
    StopAt,
    assert_same_bits,
    assert_same_science,
    science,
    stop,
    train_tiny,
)

from fastresnet.atomic import read_sealed_json, write_sealed_json
from fastresnet.engine import fit
from fastresnet.engine.checkpoint import LAST, load_last
from fastresnet.engine.evaluate import evaluate
from fastresnet.engine.fit import Interrupted
from fastresnet.training import resume

# What the state may hold: momenta and averages, counts, slow weights, a schedule that listens, loaders' places.
RUNS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "fast": ({}, {}),
    "val, whole last batch": ({"drop_last": False}, {"val": 20, "eval_every": 2}),
    "adamw, dropout, torch loader": (
        {"optimizer.name": "adamw", "optimizer.lr": 0.01, "dropout": {"head": 0.2, "block": 0.1}},
        {"loader": "torch"},
    ),
    "adam with lookahead, cutmix, resident": (
        {"optimizer.name": "adam", "optimizer.lr": 0.01, "optimizer.lookahead": {"k": 4}}
        | {"mix": {"name": "cutmix", "block": 16}, "ema": None},
        {"loader": "resident"},
    ),
    "muon, augmentations": (
        {"optimizer.name": "muon", "optimizer.lr": 0.05}
        | {"optimizer.weight_decay": 5e-4, "optimizer.decay": "filters"}
        | {"augment.ops": [{"name": "rotation", "degrees": 20}, {"name": "cutout", "size": 2}]},
        {},
    ),
    "adagrad, plateau on loss": (
        {"optimizer.name": "adagrad", "schedule.name": "plateau", "schedule.metric": "loss"}
        | {"schedule.patience": 0, "schedule.threshold": 0.5, "schedule.gamma": 0.5},
        {"eval_every": 3, "amp": "off"},
    ),
    "muon with lookahead, frozen scales": (
        {"optimizer.name": "muon", "optimizer.lookahead": {"k": 4}, "init.zero_gamma": False}
        | {"norm.train_scale": False, "norm.momentum": 0.4},
        {},
    ),
    "averaged with lookahead": ({"ema.every": 2, "ema.lookahead": True}, {}),
    "low-loss filtering, cutmix": (
        {"loss.keep": 0.4, "mix": {"name": "cutmix", "block": 16}, "dropout": {"head": 0.2}},
        {},
    ),
    "adadelta, clipped, float32": ({"optimizer.name": "adadelta", "clip_grad_norm": 0.5}, {"amp": "off"}),
}


@pytest.mark.parametrize("name", RUNS)
def test_resumed_in_the_middle_of_an_epoch_a_run_learns_the_same_bits(
    name: str, data: Path, runs: Path, tmp_path: Path
) -> None:
    overrides, options = RUNS[name]
    whole = train_tiny(data, tmp_path / "whole", overrides, **options)
    run = stop(data, runs, StopAt(STEPS + 2), overrides, **options)
    state = load_last(run)[0]["state"]
    assert (state["epoch"], state["epoch_step"]) == (1, STEPS + 2 - len_epoch(whole))
    assert not (run / "result.json").exists()
    result = resume(run.name, runs_dir=runs)
    assert_same_science(run, whole)
    assert result.clocks.train_s > 0 and [row["clock"]["segment"] for row in result.epochs] == [0, 1, 1]


def test_stopped_at_the_last_step_a_run_is_evaluated_when_it_is_resumed(
    data: Path, runs: Path, tmp_path: Path
) -> None:
    whole = train_tiny(data, tmp_path / "whole", {"epochs": 1})
    run = stop(data, runs, StopAt(len_epoch(whole)), {"epochs": 1})
    state = load_last(run)[0]["state"]
    assert (state["epoch"], state["epoch_step"], state["final"]) == (0, len_epoch(whole), None)
    resume(run.name, runs_dir=runs)
    assert_same_science(run, whole)


def len_epoch(run: Path) -> int:
    """Return the steps of a run's first epoch."""
    return json.loads((run / "events.jsonl").read_text().splitlines()[0])["step"]


def test_killed_without_saving_a_run_goes_on_from_its_last_checkpoint(
    data: Path, runs: Path, tmp_path: Path
) -> None:
    """Again and again, and rows of the time after it are written once."""
    whole = train_tiny(data, tmp_path / "whole")
    run = stop(data, runs, StopAt(STEPS + 4, None))
    assert load_last(run)[0]["state"]["step"] == 0 and (run / "events.jsonl").read_text().count("\n") == 1
    with pytest.raises(Interrupted):
        resume("last", runs_dir=runs, listener=StopAt(3))
    assert (run / "events.jsonl").read_text() == ""
    with pytest.raises(Killed):
        resume("last", runs_dir=runs, save_every_s=1e-9, listener=StopAt(STEPS, None))
    # Of that segment's steps, all but the one it died after were saved.
    assert load_last(run)[0]["state"]["step"] == STEPS + 2
    resume("last", runs_dir=runs)
    assert_same_science(run, whole)
    assert load_last(run)[0]["state"]["segment"] == 3


def test_stopped_while_evaluating_a_run_evaluates_again(
    data: Path, runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = train_tiny(data, tmp_path / "whole", val=20)
    calls: list[str] = []

    def evaluate_and_stop(*args: Any, **kwargs: Any) -> Any:
        calls.append("")
        if len(calls) == 4:  # test, in the second epoch
            stopping = StopAt(1)
            stopping.on_step(0, 0, 0, 0.0)
        return evaluate(*args, **kwargs)

    monkeypatch.setattr(fit, "evaluate", evaluate_and_stop)
    run = stop(data, runs, StopAt(10**6), val=20)
    state = load_last(run)[0]["state"]
    assert (state["epoch"], state["epoch_step"]) == (1, len_epoch(whole))
    resume(run.name, runs_dir=runs)
    assert_same_science(run, whole)


def test_damage_to_the_last_checkpoint_is_told_and_costs_only_steps(
    data: Path, runs: Path, tmp_path: Path
) -> None:
    whole = train_tiny(data, tmp_path / "whole")
    run = stop(data, runs, StopAt(STEPS + 3), save_every_s=1e-9)
    raw = bytearray((run / LAST).read_bytes())
    raw[-3] ^= 8
    (run / LAST).write_bytes(raw)
    listener = StopAt(10**6)
    resume(run.name, runs_dir=runs, listener=listener)
    assert len(listener.notices) == 1
    assert "last.safetensors is torn or was altered" in listener.notices[0]
    assert "going on from the checkpoint before it" in listener.notices[0]
    assert_same_science(run, whole)


def test_a_finished_run_only_gives_its_result_again(data: Path, runs: Path) -> None:
    run = train_tiny(data, runs)
    before = {path.name: path.read_bytes() for path in run.iterdir()}
    listener = StopAt(1)
    result = resume(run.name, runs_dir=runs, listener=listener)
    assert result == type(result)(**json.loads((run / "result.json").read_text()))
    assert listener.notices == [f"run {run.name} is complete; this is its result"]
    # Killed just before the result was written, it takes no step either.
    (run / "result.json").unlink()
    again = resume(run.name, runs_dir=runs, listener=StopAt(1))
    assert again.test_accuracy == result.test_accuracy and again.epochs == result.epochs
    assert again.clocks.train_s == result.clocks.train_s
    after = {path.name: path.read_bytes() for path in run.iterdir()}
    assert before.keys() == after.keys()


def test_every_choice_is_made_once(data: Path, runs: Path) -> None:
    """A resumed run holds what the first segment chose, whatever would be chosen now."""
    run = stop(data, runs, StopAt(2), loader="auto", amp="auto", compile="auto", threads=1)
    content = read_sealed_json(run / "config.json")
    config = content["config"]
    assert config["loader"] == "numba" and config["device"] == "cpu" and config["compile"] == "off"
    assert config["amp"] in ("bf16", "off") and config["kernels"] == "eager"
    content.pop("sha256", None)
    config["loader"] = "resident"
    write_sealed_json(run / "config.json", content)
    result = resume(run.name, runs_dir=runs)
    assert result.config.model_dump() == config
    torch.set_num_threads(2)
    assert resume(run.name, runs_dir=runs).config.threads == 1


def test_science_tells_runs_apart(data: Path, tmp_path: Path) -> None:
    """The comparison that these tests rest on sees a different seed, and a different order of steps."""
    one, other = (train_tiny(data, tmp_path / str(seed), seed=seed) for seed in (0, 1))
    with pytest.raises(AssertionError):
        assert_same_bits(science(one), science(other))
