"""Training: what a resumed run learns, what is reported, and what stops it."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_runs import (
    BATCH,
    STEPS,
    TINY_TEST,
    TINY_TRAIN,
    Killed,
    StopAt,
    assert_same_bits,
    assert_same_science,
    only_run,
    science,
    tiny_config,
    tiny_recipe,
    train_tiny,
    write_tiny,
)

import fastresnet
from fastresnet.assembly import build_step, choose_machine, open_data, open_loaders
from fastresnet.atomic import read_sealed_json, write_sealed_json
from fastresnet.engine import fit, machine
from fastresnet.engine.checkpoint import BEST, LAST, load_last, read_checkpoint
from fastresnet.engine.evaluate import evaluate
from fastresnet.engine.fit import Interrupted
from fastresnet.engine.listener import Listener
from fastresnet.engine.state import TrainState
from fastresnet.engine.step import TrainStep, Way
from fastresnet.engine.warmup import Search, WarmUp, random_batches, warm_up
from fastresnet.errors import UserError
from fastresnet.inference import load_weights
from fastresnet.kernels.dispatch import Choice
from fastresnet.loaders.dataset import hold_out, open_dataset
from fastresnet.optim import Lookahead
from fastresnet.resnet import build_model
from fastresnet.training import MachineDiffers, resume, train


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return write_tiny(tmp_path / "tiny.npz")


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    return tmp_path / "runs"


def stop(data: Path, runs: Path, listener: StopAt, overrides: Any = None, **options: Any) -> Path:
    """Start a run that ``listener`` ends early, and return its folder."""
    with pytest.raises((Interrupted, Killed)):
        train(tiny_recipe(overrides), tiny_config(data, **options), runs_dir=runs, listener=listener)
    return only_run(runs)


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
        {"optimizer.name": "muon", "optimizer.lr": 0.05, "optimizer.decay": "filters"}
        | {"augment.ops": [{"name": "rotation", "degrees": 20}, {"name": "cutout", "size": 2}]},
        {},
    ),
    "adagrad, plateau on loss": (
        {"optimizer.name": "adagrad", "schedule.name": "plateau", "schedule.metric": "loss"}
        | {"schedule.patience": 0, "schedule.threshold": 0.5, "schedule.gamma": 0.5},
        {"eval_every": 3, "amp": "off"},
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


def test_data_that_moved_is_taken_from_its_new_place_for_good(data: Path, runs: Path, tmp_path: Path) -> None:
    run = stop(data, runs, StopAt(2))
    moved = data.rename(tmp_path / "moved.npz")
    with pytest.raises(UserError, match=r"no such data: .*tiny.npz.*say where to with --data"):
        resume(run.name, runs_dir=runs)
    other = write_tiny(tmp_path / "other.npz", first=5)
    with pytest.raises(UserError, match="the data has changed since this run began: it was tiny"):
        resume(run.name, runs_dir=runs, data=str(other))
    assert read_sealed_json(run / "config.json")["config"]["data"] == str(data)
    with pytest.raises(Interrupted):
        resume(run.name, runs_dir=runs, data=str(moved), save_every_s=5, listener=StopAt(2))
    result = resume(run.name, runs_dir=runs)
    assert result.config.data == str(moved) and result.config.save_every_s == 5


def test_a_changed_recipe_file_is_named_and_not_taken(data: Path, runs: Path, tmp_path: Path) -> None:
    file = tmp_path / "mine.toml"
    text = fastresnet_recipe_text()
    file.write_text(text)
    with pytest.raises(Interrupted):
        train(str(file), tiny_config(data), runs_dir=runs, listener=StopAt(2), epochs=2, batch_size=BATCH)
    run = only_run(runs)
    recorded = read_sealed_json(run / "config.json")["recipe_file"]
    assert recorded["path"] == str(file) and len(recorded["sha256"]) == 64

    def notices() -> list[str]:
        listener = StopAt(1)
        with pytest.raises(Interrupted):
            resume(run.name, runs_dir=runs, listener=listener)
        return listener.notices

    assert notices() == []
    file.write_text(text.replace("lr = 0.05", "lr = 0.5"))
    with_recorded = "; going on with the recipe as the run began with it"
    assert notices() == [f"{file} has changed since the run began{with_recorded}"]
    file.unlink()
    assert notices() == [f"cannot read {file}: No such file or directory{with_recorded}"]
    assert resume(run.name, runs_dir=runs).recipe["optimizer"]["lr"] == 0.05


def fastresnet_recipe_text() -> str:
    return (
        'name = "mine"\narch = "n2-b1-c4"\nepochs = 1\nbatch_size = 16\n[optimizer]\nname = "sgd"\nlr = 0.05\n'
        + ('[schedule]\nname = "constant"\n')
    )


def test_another_machine_is_one_line_and_needs_leave(
    data: Path, runs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = stop(data, runs, StopAt(STEPS + 1))
    content = read_sealed_json(run / "config.json")
    content["environment"]["torch"] = "1.0"
    write_sealed_json(run / "config.json", content)
    with pytest.raises(MachineDiffers, match=r"torch was '1.0' and is .*--allow-different-machine"):
        resume(run.name, runs_dir=runs)
    # A GPU that is not here: the choices that were made for it are made again.
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    content["config"] |= {"device": "cuda:0", "amp": "fp16", "loader": "resident"}
    content["environment"]["device_name"] = "NVIDIA H200"
    write_sealed_json(run / "config.json", content)
    with pytest.raises(MachineDiffers, match=r"started on NVIDIA H200 \(cuda:0\), which is not here"):
        resume(run.name, runs_dir=runs)
    result = resume(run.name, runs_dir=runs, allow_different_machine=True)
    assert result.config.device == "cpu" and result.config.amp in ("bf16", "off")
    assert result.config.loader == "numba" and len(result.epochs) == 3


def test_a_checkpoint_of_another_run_or_network_is_refused(data: Path, tmp_path: Path) -> None:
    run = stop(data, tmp_path / "a", StopAt(2))
    other = stop(data, tmp_path / "b", StopAt(2), {"arch": "n2-b1-c6"})
    (run / LAST).write_bytes((other / LAST).read_bytes())
    with pytest.raises(UserError, match=f"is of another run, {other.name}; put this run's own back"):
        resume(str(run))
    with pytest.raises(UserError, match=r"are of another network \(n2-b1-c6\): .* choose the same arch"):
        train(tiny_recipe(), tiny_config(data), runs_dir=tmp_path / "c", init_from=str(other))
    assert not (tmp_path / "c").exists()


# Starting from another run's weights


def first_step_state(
    data: Path, runs: Path, overrides: dict[str, Any] | None = None, init_from: str | None = None
) -> dict[str, Any]:
    """Return the state a run begins with."""
    with pytest.raises(Killed):
        train(
            tiny_recipe(overrides),
            tiny_config(data),
            runs_dir=runs,
            init_from=init_from,
            listener=StopAt(1, None),
        )
    (run,) = [path for path in runs.iterdir() if not (path / "result.json").exists()]
    return load_last(run)[0]["state"] | {"parent": read_sealed_json(run / "config.json")["parent"]}


@pytest.mark.parametrize("which", ["last", "best"])
def test_a_run_starts_from_the_weights_that_were_evaluated(which: str, data: Path, runs: Path) -> None:
    run = train_tiny(data, runs, {"optimizer.lr": 0.5})
    checkpoint = load_last(run)[0] if which == "last" else read_checkpoint(run / BEST)
    weights = checkpoint["state"]["ema"]["model"] if which == "last" else checkpoint["model"]
    reference = f"{run.name}:{which}" if which == "best" else run.name
    overrides = {"optimizer.lookahead": {"k": 2}}
    state = first_step_state(data, runs, overrides, reference)
    assert_same_bits(state["model"], weights)
    assert_same_bits(state["ema"]["model"], weights)
    # Lookahead goes back to its slow weights, which must not be the drawn ones.
    fresh = build_model(tiny_recipe().arch_spec(), 3, 8)
    for (name, _), slow in zip(fresh.named_parameters(), slow_by_order(state), strict=True):
        assert torch.equal(slow, weights[name]), name
    assert state["parent"] == {"run": run.name, "weights": which, "sha256": checkpoint["sha256"]}
    assert state["step"] == 0 and state["best"] == {}


def slow_by_order(state: dict[str, Any]) -> list[torch.Tensor]:
    """Return Lookahead's slow weights in the order of the model's parameters."""
    model = build_model(tiny_recipe().arch_spec(), 3, 8)
    recipe = tiny_recipe({"optimizer.lookahead": {"k": 2}})
    from fastresnet.optim import build_optimizer

    optimizer = build_optimizer(model, recipe.optimizer)
    held = [p for group in optimizer.param_groups for p in group["params"]]
    places = {id(p): place for place, p in enumerate(held)}
    return [state["optimizer"]["slow"][places[id(p)]] for p in model.parameters()]


def test_weights_that_are_not_there_are_said_before_anything_slow(data: Path, runs: Path) -> None:
    run = stop(data, runs, StopAt(1))
    for reference, expected in (
        (f"{run.name}:best", "has no best checkpoint yet"),
        (f"{run.name}:bets", "after the colon stands 'bets'; it must be last or best"),
        ("nothing", "no run 'nothing'"),
    ):
        with pytest.raises(UserError, match=expected):
            train(tiny_recipe(), tiny_config(Path("/no/data")), runs_dir=runs, init_from=reference)


# What stops a run


def poison(step: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the loss of step ``step`` (from 1) NaN."""
    forward = TrainStep.forward_eager

    def poisoned(self: TrainStep, *args: Any) -> Any:
        loss, num_correct = forward(self, *args)
        return (loss * math.nan if self.state.step == step - 1 else loss), num_correct

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


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"), "the GPU's memory"),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling"), "the GPU's memory"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried"), "the machine's memory"),
        (MemoryError(), "the machine's memory"),
    ],
)
def test_too_little_memory_is_one_line(
    error: Exception, says: str, data: Path, runs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(self: TrainStep, *args: Any) -> Any:
        raise error

    monkeypatch.setattr(TrainStep, "forward_eager", fail)
    with pytest.raises(UserError, match=f"{says} is too small .* a smaller --batch-size than {BATCH}"):
        train(tiny_recipe(), tiny_config(data), runs_dir=runs)
    assert not runs.exists()


def test_other_errors_are_not_taken_for_a_lack_of_memory() -> None:
    with pytest.raises(RuntimeError, match="shapes"), machine.memory_errors(tiny_recipe()):
        raise RuntimeError("shapes differ")


# What is reported


@pytest.mark.parametrize("amp", ["off", "bf16"])
def test_the_reported_accuracy_is_that_of_every_sample(amp: str, data: Path, runs: Path) -> None:
    """Against a plain loop over the file's own arrays, in one batch and in eval mode."""
    run = train_tiny(data, runs, {"tta": "flip"}, amp=amp)
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
        logits, mirrored = model(inputs).float(), model(inputs.flip(3)).float()
    right = (logits.argmax(1) == labels).sum().item()
    tta = ((logits.softmax(1) + mirrored.softmax(1)).argmax(1) == labels).sum().item()
    loss = torch.nn.functional.cross_entropy(logits, labels).item()
    # bf16 rounds each logit to 3 digits, differently with another batch size.
    slack = 0 if amp == "off" else 2
    assert 0.5 < result["test_accuracy"] < 0.95
    assert abs(result["test_accuracy"] * TINY_TEST - right) <= slack + 1e-6
    assert abs(result["test_accuracy_tta"] * TINY_TEST - tta) <= slack + 1e-6
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


def test_the_plateau_listens_to_every_epoch(data: Path, runs: Path) -> None:
    overrides = {"schedule.name": "plateau", "schedule.patience": 0, "schedule.threshold": 10.0, "epochs": 4}
    run = train_tiny(data, runs, overrides, eval_every=4)
    rates = [row["lr"] for row in json.loads((run / "result.json").read_text())["epochs"]]
    # Nothing betters the first epoch elevenfold, so each later one reduces.
    assert rates == pytest.approx([0.05, 0.05, 0.005, 0.0005])


def test_the_target_is_timed_at_its_first_crossing(data: Path, runs: Path) -> None:
    result = train(
        tiny_recipe({"optimizer.lr": 0.2, "epochs": 4}), tiny_config(data, target=0.4, val=20), runs_dir=runs
    )
    crossed = next(row for row in result.epochs if row["val_accuracy"] >= 0.4)
    reached = result.clocks.time_to_target_s
    assert reached is not None
    following = result.epochs[crossed["epoch"] :]
    # Its own evaluation is on the clock, those before it are not.
    assert crossed["clock"]["train_s"] < reached
    assert reached < crossed["clock"]["train_s"] + result.clocks.between_s + result.clocks.eval_s
    assert not following or reached != following[0]["clock"]["train_s"]
    never = train(tiny_recipe(), tiny_config(data, target=1.0), runs_dir=runs)
    assert never.clocks.time_to_target_s is None


def test_every_clock_runs(data: Path, runs: Path) -> None:
    clocks = train(tiny_recipe(), tiny_config(data), runs_dir=runs).clocks
    for name in ("data_s", "build_s", "compile_s", "train_s", "between_s", "eval_s"):
        assert getattr(clocks, name) > 0, name
    assert clocks.move_s == 0  # numba reads the pack where it lies
    kept = train(tiny_recipe(), tiny_config(data, loader="resident"), runs_dir=runs).clocks
    assert 0 < kept.move_s <= kept.build_s


def test_a_listener_hears_it_all(data: Path, runs: Path) -> None:
    class Recorder(Listener):
        def __init__(self) -> None:
            self.heard: list[str] = []

        def on_start(self, info: Any) -> None:
            assert info.num_params == 1359 + 32 and info.steps_left == 2 * STEPS and info.epoch_s > 0
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


# The warm-up


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
    assert found.step_s > 0 and found.way == Way()
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
        config=fastresnet.RunConfig(**config),
        num_steps=num_steps,
        compiler_missing=missing,
        choose_kernels=lambda compiled, worth: Choice(
            kernels="inductor" if compiled else "eager", reason="said so", times_s={}
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
    assert found.way == Way() and found.reasons["kernels"] == "said so"
    assert found.reasons["compile"] == "compiled failed: RuntimeError: the compiler crashed"
    assert_same_bits(flat_copy(step.state), before)
    real_steps(step, data, 1)
    found = warmed_up(step, batches, num_steps=10**9, missing="no compiler")
    assert (found.way, found.reasons["compile"]) == (Way(), "no compiler")
    with pytest.raises(UserError, match="--compile on is not possible here: no compiler; use auto or off"):
        warmed_up(step, batches, num_steps=1, missing="no compiler", compile="on")


# The loss scale of fp16


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


def test_science_tells_runs_apart(data: Path, tmp_path: Path) -> None:
    """The comparison that these tests rest on sees a different seed, and a different order of steps."""
    one, other = (train_tiny(data, tmp_path / str(seed), seed=seed) for seed in (0, 1))
    with pytest.raises(AssertionError):
        assert_same_bits(science(one), science(other))
