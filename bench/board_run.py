"""One training of a board, by this process: what it gave, timed, with nothing left on disk."""

from __future__ import annotations

import datetime
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from fastresnet.assembly import Data, build_step, choose_machine, split_data
from fastresnet.bench.energy import EnergyMeter
from fastresnet.engine.listener import Listener, RunInfo
from fastresnet.engine.machine import free_memory, memory_errors
from fastresnet.engine.warmup import WarmUp
from fastresnet.errors import UserError
from fastresnet.recipe import Recipe
from fastresnet.run import RunConfig, RunResult
from fastresnet.training import train
from fastresnet.training_warmup import warm_up_step

T = TypeVar("T")
TELL_EVERY_S = 20.0


def train_once(
    recipe: Recipe,
    config: RunConfig,
    runs_dir: Path,
    label: str,
    tell: Callable[[str], None],
    meter: EnergyMeter | None = None,
) -> dict[str, Any]:
    """Train and return what a board keeps of it, as JSON types; the run's folder is gone afterwards.

    Args:
        runs_dir: of this process alone.
        label: the row, in what ``tell`` is told now and then.
        meter: None where others train beside it, so that no energy is this run's.

    Raises:
        UserError: the training cannot be done.
        Interrupted: a signal asked to stop.
    """
    listener = _Watch(label, meter, tell)
    start, started = time.perf_counter(), datetime.datetime.now(datetime.UTC)
    try:
        result = _then_free(lambda: train(recipe, config, runs_dir=runs_dir, listener=listener))
    finally:
        shutil.rmtree(runs_dir, ignore_errors=True)
    after = None if meter is None else meter.read()
    used = None if after is None or listener.joules is None else after - listener.joules
    return outcome(result) | {
        "started": started.isoformat(timespec="seconds"),
        "energy_j": used,
        "process_s": time.perf_counter() - start,
    }


def _then_free(action: Callable[[], T]) -> T:
    """Return what ``action`` returns, its memory free again, by which the next run's loader is chosen.

    A failure holds what its frames held, such as a network too large. So it is over before, and told anew.
    """
    try:
        found = action()
    except UserError as error:
        reason = str(error)
    else:
        free_memory()
        return found
    free_memory()
    raise UserError(reason)


def outcome(result: RunResult) -> dict[str, Any]:
    """Return what the board keeps of a training, as JSON types."""
    clocks, tta = result.clocks, result.test_accuracy_tta
    crossing = clocks.time_to_target_s
    before_s = clocks.move_s + clocks.init_s
    machine = ("loader", "amp", "compile", "kernels", "convs", "graphs", "threads")
    return {
        "accuracy": result.test_accuracy if tta is None else tta,
        "accuracy_without_tta": result.test_accuracy,
        "seconds": before_s + clocks.train_s + clocks.eval_s,
        "cpu_s": clocks.cpu_s,
        "crossing_s": None if crossing is None else clocks.move_s + crossing,
        "clocks": clocks.model_dump(),
        "machine": {name: getattr(result.config, name) for name in machine},
        "recompiled": sum(row["clock"]["recompiled"] for row in result.epochs),
        "curve": [
            [before_s + row["clock"]["train_s"], row["test_accuracy"]]
            for row in result.epochs
            if "test_accuracy" in row
        ],
    }


class _Watch(Listener):
    """Reads the counter of energy when a run starts, and says now and then how far it is."""

    def __init__(self, label: str, meter: EnergyMeter | None, tell: Callable[[str], None]) -> None:
        self.label = label
        self.meter = meter
        self.tell = tell
        self.joules: float | None = None
        self._told_at = time.monotonic()

    def on_start(self, info: RunInfo) -> None:
        self.joules = None if self.meter is None else self.meter.read()
        self._epochs = info.recipe.epochs

    def on_epoch(self, row: dict[str, Any]) -> None:
        now = time.monotonic()
        if now - self._told_at > TELL_EVERY_S:
            self._told_at = now
            reached = f"  test {row['test_accuracy']:.4f}" if "test_accuracy" in row else ""
            self.tell(f"  {self.label}: epoch {row['epoch']}/{self._epochs}{reached}")


def measure_run_s(recipe: Recipe, config: RunConfig, data: Data) -> float:
    """Return about how many seconds a training takes, by some steps on random labels, evaluations included.

    Nothing is compiled for it, but convolutions are compared, which on a CPU a step consists of.

    Raises:
        UserError: a training of it would be refused.
    """
    data = split_data(data.dataset, recipe, config)  # which may have been split for another recipe
    plain = config.model_copy(update={"compile": "off", "kernels": "eager", "graphs": "off"})
    chosen = choose_machine(plain)
    train_split, test = data.splits["train"], data.splits["test"]
    num_train = len(train_split.members)
    steps = max(1, num_train // recipe.batch_size)

    def warm_up() -> WarmUp:
        with memory_errors(recipe):
            return warm_up_step(build_step(recipe, chosen, data, steps), recipe, chosen, data)

    found = _then_free(warm_up)
    sizes = recipe.image_sizes(data.dataset.image_size)
    # an evaluation is a third of a training step's work an image, at full size
    evaluating = len(test.members) / (3 * num_train * config.eval_every)
    return steps * sum(found.step_s[size] + evaluating * found.step_s[sizes[-1]] for size in sizes)
