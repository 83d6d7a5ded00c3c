"""Runs of a second or less: a small data set, a small network, and what a test asks of the run's folder."""

from __future__ import annotations

import json
import signal
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from made_data import CLASSES, picture

from fastresnet.engine.checkpoint import BEST, load_last, read_checkpoint
from fastresnet.engine.fit import Interrupted
from fastresnet.engine.listener import Listener, RunInfo
from fastresnet.recipe import Recipe, load_recipe
from fastresnet.run import RunConfig
from fastresnet.training import train

ARCH = "n2-b1-c4"
BATCH = 16
STEPS = 6  # an epoch of TINY_TRAIN images, none held out, incomplete batches dropped
TINY_TRAIN, TINY_TEST = 100, 300  # evaluated in two batches, the second incomplete
SIZE = 8  # pixels


def write_tiny(out: Path, num_train: int = TINY_TRAIN, num_test: int = TINY_TEST, first: int = 0) -> Path:
    """Write an .npz of images of three classes in which one image in four has another's label; return it."""
    arrays: dict[str, np.ndarray] = {"class_names": np.array(CLASSES)}
    for split, count in (("train", num_train), ("test", num_test)):
        shown = np.arange(count) % 3
        start = first + (100_000 if split == "test" else 0)
        images = [picture(int(label), start + i, SIZE) for i, label in enumerate(shown)]
        arrays[f"{split}_images"] = np.stack(images)
        arrays[f"{split}_labels"] = np.where(np.arange(count) % 4 == 0, (shown + 1) % 3, shown)
    np.savez(out, **arrays)
    return out


def tiny_recipe(overrides: Mapping[str, Any] | None = None) -> Recipe:
    """Return ``fast`` for three epochs of a tiny network, with dotted keys changed."""
    own = {"arch": ARCH, "epochs": 3, "batch_size": BATCH, "optimizer.lr": 0.05}
    return load_recipe("fast").with_overrides(own | dict(overrides or {}))


def tiny_config(data: Path, **options: Any) -> RunConfig:
    """Return a config for ``data`` on one CPU thread that saves only when it must."""
    own: dict[str, Any] = {"data": str(data), "device": "cpu", "threads": 1, "save_every_s": 1e6}
    return RunConfig.parse(**own | options)


class Heard(Listener):
    """Keeps what a run is said to be as it starts, and what is said of it."""

    def __init__(self) -> None:
        self.info: RunInfo | None = None
        self.notices: list[str] = []

    def on_start(self, info: RunInfo) -> None:
        self.info = info

    def on_notice(self, text: str) -> None:
        self.notices.append(text)


class Killed(Exception):
    """Stands for a kill between two steps: nothing is saved."""


class StopAt(Heard):
    """Ends a run after step ``step`` (from 1): by a signal, or as a kill does where that is None."""

    def __init__(self, step: int, signum: int | None = signal.SIGTERM) -> None:
        super().__init__()
        self.step = step
        self.signum = signum
        self._seen = 0

    def on_step(self, epoch: int, epoch_step: int, steps_per_epoch: int, images_per_s: float) -> None:
        self._seen += 1
        if self._seen == self.step:
            if self.signum is None:
                raise Killed
            signal.raise_signal(self.signum)


def only_run(runs_dir: Path) -> Path:
    """Return the one run in ``runs_dir``; nothing else may lie there."""
    (run,) = runs_dir.iterdir()
    return run


def train_tiny(
    data: Path, runs_dir: Path, overrides: Mapping[str, Any] | None = None, **options: Any
) -> Path:
    """Train without interruption and return the run's folder."""
    result = train(tiny_recipe(overrides), tiny_config(data, **options), runs_dir=runs_dir)
    return runs_dir / result.run


def stop(
    data: Path, runs: Path, listener: StopAt, overrides: Mapping[str, Any] | None = None, **options: Any
) -> Path:
    """Start a run that ``listener`` ends early, and return its folder."""
    with pytest.raises((Interrupted, Killed)):
        train(tiny_recipe(overrides), tiny_config(data, **options), runs_dir=runs, listener=listener)
    return only_run(runs)


def flat(value: Any, path: str = "") -> dict[str, Any]:
    """Return the leaves of nested dicts, lists and tuples by their path."""
    if isinstance(value, dict):
        items = list(value.items())
    elif isinstance(value, list | tuple):
        items = list(enumerate(value))
    else:
        return {path: value}
    return {leaf: found for key, entry in items for leaf, found in flat(entry, f"{path}/{key}").items()}


def assert_same_bits(one: Any, other: Any) -> None:
    """Assert that two nested states hold the same keys, values and tensors, bit for bit and stride for stride."""
    left, right = flat(one), flat(other)
    assert left.keys() == right.keys()
    for path, value in left.items():
        if isinstance(value, torch.Tensor):
            assert value.dtype == right[path].dtype and value.stride() == right[path].stride(), path
            raw = [t.contiguous().view(-1).view(torch.uint8) for t in (value, right[path])]
            assert torch.equal(*raw), path
        else:
            assert type(value) is type(right[path]) and value == right[path], path


def science(run: Path) -> dict[str, Any]:
    """Return all that a resumed run must share with an uninterrupted one: its last and best states, its rows."""
    last, passed_over = load_last(run)
    assert not passed_over
    state = {key: value for key, value in last["state"].items() if key not in ("clocks", "segment")}
    rows = [json.loads(line) for line in (run / "events.jsonl").read_text().splitlines()]
    for row in rows:
        del row["clock"]
    best = {key: value for key, value in read_checkpoint(run / BEST).items() if key != "sha256"}
    result = json.loads((run / "result.json").read_text())
    accuracies = {key: result[key] for key in result if key.startswith("test_") or key == "best"}
    return {"state": state, "rows": rows, "best": best, "accuracies": accuracies}


def assert_same_science(resumed: Path, uninterrupted: Path) -> None:
    """Assert that two finished runs learned the same, bit for bit."""
    assert_same_bits(science(resumed), science(uninterrupted))
