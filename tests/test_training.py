"""Training: what is reported of it."""

from __future__ import annotations

import json
import math
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from tiny_runs import (
    BATCH,
    STEPS,
    TINY_TEST,
    TINY_TRAIN,
    Heard,
    tiny_config,
    tiny_recipe,
    train_tiny,
)

import fastresnet
from fastresnet.atomic import read_sealed_json
from fastresnet.engine import fit
from fastresnet.engine.checkpoint import BEST, read_checkpoint
from fastresnet.engine.evaluate import EvalResult, evaluate
from fastresnet.engine.listener import Listener
from fastresnet.errors import UserError
from fastresnet.inference import load_weights
from fastresnet.loaders.dataset import hold_out, open_dataset
from fastresnet.report.facts import results_table
from fastresnet.report.records import read_run
from fastresnet.resnet import build_model
from fastresnet.run import Clocks
from fastresnet.training import train


@pytest.mark.parametrize(("amp", "tta"), [("off", "flip"), ("bf16", "flip"), ("off", "flip-shift")])
def test_the_reported_accuracy_is_that_of_every_sample(amp: str, tta: str, data: Path, runs: Path) -> None:
    """Against a plain loop over the file's own arrays, in one batch and in eval mode."""
    run = train_tiny(data, runs, {"tta": tta}, amp=amp)
    result = json.loads((run / "result.json").read_text())
    arrays = np.load(data)
    labels = torch.from_numpy(arrays["test_labels"])
    train_pixels = arrays["train_images"].reshape(-1, 3) / 255
    images = torch.from_numpy(arrays["test_images"]).permute(0, 3, 1, 2).float() / 255
    mean, std = (
        torch.from_numpy(v).float().view(1, 3, 1, 1) for v in (train_pixels.mean(0), train_pixels.std(0))
    )
    inputs = ((images - mean) / std).to(memory_format=torch.channels_last)
    model = build_model(tiny_recipe().arch_spec(), 3, 8)
    model.load_state_dict(load_weights(str(run), runs).tensors)
    model.eval()
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=amp == "bf16"):
        logits = model(inputs).float()
        padded = torch.nn.functional.pad(inputs, (1, 1, 1, 1), "reflect")
        views = [(2.0, inputs)]
        if tta == "flip-shift":
            views += [(1.0, padded[:, :, at : at + 8, at : at + 8]) for at in (0, 2)]
        averaged = torch.zeros_like(logits)
        for weight, view in views:
            averaged += weight * (model(view).float().softmax(1) + model(view.flip(3)).float().softmax(1))
    right = (logits.argmax(1) == labels).sum().item()
    right_averaged = (averaged.argmax(1) == labels).sum().item()
    loss = torch.nn.functional.cross_entropy(logits, labels).item()
    # bf16 rounds each logit to 3 digits, differently with another batch size.
    slack = 0 if amp == "off" else 2
    assert 0.5 < result["test_accuracy"] < 0.95
    assert abs(result["test_accuracy"] * TINY_TEST - right) <= slack + 1e-6
    assert abs(result["test_accuracy_tta"] * TINY_TEST - right_averaged) <= slack + 1e-6
    assert result["test_loss"] == pytest.approx(loss, rel=1e-5 if amp == "off" else 1e-2)
    assert result["epochs"][-1]["test_accuracy"] == result["test_accuracy"]


def test_the_training_accuracy_is_of_the_epochs_own_samples(data: Path, runs: Path) -> None:
    run = train_tiny(data, runs, {"drop_last": False, "ema": None, "optimizer.lr": 1e-9, "epochs": 1})
    (row,) = json.loads((run / "result.json").read_text())["epochs"]
    assert row["step"] == math.ceil(TINY_TRAIN / BATCH)
    assert (row["train_accuracy"] * TINY_TRAIN) == pytest.approx(round(row["train_accuracy"] * TINY_TRAIN))


def test_best_is_chosen_on_val_where_there_is_one(data: Path, runs: Path) -> None:
    overrides = {"optimizer.lr": 0.3, "epochs": 4}
    val_run, test_run = (train_tiny(data, runs / f"{n}", overrides, val=n) for n in (30, 0))
    for run, chosen_on in ((val_run, "val"), (test_run, "test")):
        result = json.loads((run / "result.json").read_text())
        accuracies = [row[f"{chosen_on}_accuracy"] for row in result["epochs"]]
        best = result["best"]
        assert best["chosen_on"] == chosen_on and best["accuracy"] == max(accuracies)
        assert best["epoch"] == accuracies.index(max(accuracies)) + 1  # of equals, the first
        assert best["test_accuracy"] == result["epochs"][best["epoch"] - 1]["test_accuracy"]
        checkpoint = read_checkpoint(run / BEST)
        assert checkpoint["best"] == best
    # And what was held out was never trained on.
    dataset = open_dataset(str(data))
    train_split, val_split = hold_out(dataset.train, 30, 0)
    assert not set(train_split.members) & set(val_split.members)
    recorded = read_sealed_json(val_run / "config.json")["dataset"]
    assert (recorded["num_train"], recorded["num_val"], recorded["num_test"]) == (70, 30, TINY_TEST)


def test_a_channel_that_never_changes_is_trained_on(tmp_path: Path, runs: Path) -> None:
    """Its deviation is 0, by which nothing may be divided; what was trained is read again."""
    colours = np.random.default_rng(0).integers(0, 256, (40, 8, 8, 3)).astype(np.uint8)
    colours[..., 2] = 7
    labels = np.arange(40) % 3
    arrays = {
        f"{split}_{kind}": value
        for split in ("train", "test")
        for kind, value in (("images", colours), ("labels", labels))
    }
    np.savez(tmp_path / "flat.npz", **arrays)
    run = train_tiny(tmp_path / "flat.npz", runs, {"epochs": 1})
    assert read_sealed_json(run / "config.json")["dataset"]["std"][2] == 0
    assert len(fastresnet.load(run).predict(colours[:2])) == 2


def test_the_plateau_listens_to_every_epoch(data: Path, runs: Path) -> None:
    overrides = {"schedule.name": "plateau", "schedule.patience": 0, "schedule.threshold": 10.0, "epochs": 4}
    run = train_tiny(data, runs, overrides, eval_every=4)
    rates = [row["lr"] for row in json.loads((run / "result.json").read_text())["epochs"]]
    # Nothing betters the first epoch elevenfold, so each later one reduces.
    assert rates == pytest.approx([0.05, 0.05, 0.005, 0.0005])


@pytest.mark.parametrize("val", [0, 20])
def test_a_plateau_of_the_test_set_says_that_it_flatters(val: int, data: Path, runs: Path) -> None:
    """Nothing said so, while the best epoch chosen on the test set was marked."""
    heard = Heard()
    recipe = tiny_recipe({"schedule.name": "plateau", "epochs": 1})
    result = train(recipe, tiny_config(data, val=val), runs_dir=runs, listener=heard)
    told = [
        text for text in heard.notices if "the lr is reduced by the test set itself, which flatters" in text
    ]
    assert len(told) == (0 if val else 1)
    shown = results_table(read_run(result.run, runs))
    assert any("it flatters" in str(row[-1]) for row in shown.rows if row[0] == "test") == (not val)


@pytest.mark.parametrize("crossed", [1, 2, 3])
def test_the_target_is_timed_at_its_first_crossing(
    crossed: int, data: Path, runs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its own evaluation is on the clock, without TTA; those before it, and TTA's other views, are not.

    Only evaluations take time here: 10 s each, 60 s with TTA; all else a microsecond.
    """
    now, epochs_seen = [0.0], [0]

    def costly(scorer: Any, loader: Any, *, tta: str, **rest: Any) -> EvalResult:
        found = evaluate(scorer, loader, tta=tta, **rest)  # type: ignore[arg-type]
        now[0] += 10.0 if tta == "none" else 60.0
        epochs_seen[0] = min(3, epochs_seen[0] + 1)
        return replace(found, accuracy=0.9 if epochs_seen[0] >= crossed else 0.1)

    def read_clock() -> float:
        now[0] += 1e-6
        return now[0]

    clock = {name: getattr(time, name) for name in ("process_time", "monotonic", "time")}
    monkeypatch.setattr(fit, "time", SimpleNamespace(perf_counter=read_clock, **clock))
    monkeypatch.setattr(fit, "evaluate", costly)
    recipe = tiny_recipe({"epochs": 3, "tta": "flip-shift"})
    clocks = train(recipe, tiny_config(data, target=0.5), runs_dir=runs).clocks
    assert clocks.time_to_target_s == pytest.approx(clocks.init_s + 10.0, abs=0.1)
    # the last evaluation is done once more without TTA
    assert [clocks.train_s, clocks.between_s, clocks.eval_s] == pytest.approx([0.0, 30.0, 60.0], abs=0.1)


def test_a_target_that_is_never_reached_is_not_timed(data: Path, runs: Path) -> None:
    never = train(tiny_recipe(), tiny_config(data, target=1.0), runs_dir=runs)
    assert never.clocks.time_to_target_s is None


def test_cpu_seconds_are_counted_while_a_clock_that_counts_runs() -> None:
    clocks = Clocks()
    for name in ("build_s", "compile_s", "init_s", "train_s", "between_s", "train_s", "eval_s"):
        clocks.charge(name, 1.0, 2.0)
    assert (clocks.train_s, clocks.between_s, clocks.cpu_s) == (2.0, 1.0, 8.0)


def test_every_clock_runs(data: Path, runs: Path) -> None:
    clocks = train(tiny_recipe(), tiny_config(data), runs_dir=runs).clocks
    for name in ("data_s", "build_s", "compile_s", "train_s", "between_s", "eval_s", "cpu_s"):
        assert getattr(clocks, name) > 0, name
    assert clocks.move_s == 0  # numba reads the pack where it lies
    kept = train(tiny_recipe(), tiny_config(data, loader="resident"), runs_dir=runs).clocks
    assert 0 < kept.move_s <= kept.build_s


def test_a_listener_hears_it_all(data: Path, runs: Path) -> None:
    class Recorder(Listener):
        def __init__(self) -> None:
            self.heard: list[str] = []

        def on_start(self, info: Any) -> None:
            assert info.num_params == 1359 + 32 and info.steps_left == 2 * STEPS and info.left_s() > 0
            self.heard.append("start")

        def on_step(self, epoch: int, epoch_step: int, steps_per_epoch: int, images_per_s: float) -> None:
            assert steps_per_epoch == STEPS and images_per_s > 0
            self.heard.append(f"{epoch}.{epoch_step}")

        def on_epoch(self, row: dict[str, Any]) -> None:
            self.heard.append("epoch")

    recorder = Recorder()
    train(tiny_recipe({"epochs": 2}), tiny_config(data), runs_dir=runs, listener=recorder)
    epochs = [[*(f"{epoch}.{step + 1}" for step in range(STEPS)), "epoch"] for epoch in (0, 1)]
    assert recorder.heard == ["start", *epochs[0], *epochs[1]]


def test_one_call_from_python(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Though ``fastresnet.training`` has been imported, ``fastresnet.train`` is the function."""
    monkeypatch.chdir(tmp_path)
    config = fastresnet.RunConfig(data=str(data), threads=1)
    result = fastresnet.train(arch="n2-b1-c4", epochs=1, batch_size=16, config=config)
    assert isinstance(result, fastresnet.RunResult)
    assert Path(result.path) == Path("runs") / result.run and Path(result.path).is_dir()
    assert fastresnet.resume("last").test_accuracy == result.test_accuracy
    with pytest.raises(UserError, match="unknown key 'archh'; did you mean 'arch'"):
        fastresnet.train(archh="n2-b1-c4")
