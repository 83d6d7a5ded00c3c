"""Training throughput: the loop a student would write against ours, in turn, each in its own process."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastresnet.assembly import Data, Loaders, Machine, build_step, choose_machine, open_data, open_loaders
from fastresnet.bench.record import make_record
from fastresnet.bench.student import NUM_WORKERS, StudentProcess, time_steps
from fastresnet.engine.listener import Listener
from fastresnet.loaders.protocol import Batch, Loader
from fastresnet.recipe import Recipe, load_recipe
from fastresnet.run import RunConfig

WARM_STEPS = 2

Progress = Callable[[str], None]


def our_loop(recipe: Recipe, chosen: Machine, data: Data, loaders: Loaders) -> Iterator[int]:
    """Train without end as ``fastresnet train`` does, and yield the images of each step."""
    step = build_step(recipe, chosen, data, len(loaders.train))
    if chosen.config.compile == "on":
        step.compile()
    for batch in _epochs(loaders.train):
        step(batch)
        yield len(batch.labels)


def _epochs(loader: Loader) -> Iterator[Batch]:
    epoch = 0
    while True:
        loader.set_epoch(epoch)
        yield from loader
        epoch += 1


@dataclass(frozen=True, kw_only=True)
class Plan:
    """How much to measure.

    Attributes:
        arch, batch_size: of both loops.
        rounds: in each, every loop is timed once, one after the other.
        steps: timed steps of a loop in a round.
    """

    arch: str
    batch_size: int
    rounds: int
    steps: int


def measure(plan: Plan, config: RunConfig, progress: Progress) -> dict[str, Any]:
    """Time the loops and return a record; a round's ratio compares neighbours in time, so that drift cancels."""
    recipe = load_recipe("fast").with_overrides({"arch": plan.arch, "batch_size": plan.batch_size})
    chosen = choose_machine(config)
    data = open_data(recipe, chosen.config, Listener())
    loaders = open_loaders(recipe, chosen.config, data, chosen.device)
    ours = our_loop(recipe, chosen, data, loaders)
    student = StudentProcess(data, recipe.arch_spec(), plan.batch_size, chosen.device)
    timed: dict[str, Callable[[int], float]] = {
        "student": student.time,
        "fastresnet": lambda steps: time_steps(ours, steps, chosen.device),
    }
    speeds: dict[str, list[float]] = {name: [] for name in timed}
    try:
        for time_loop in timed.values():
            time_loop(WARM_STEPS)
        for done in range(plan.rounds):
            for name, time_loop in timed.items():
                speeds[name].append(time_loop(plan.steps))
            ratio = speeds["fastresnet"][-1] / speeds["student"][-1]
            progress(f"round {done + 1}/{plan.rounds}: {ratio:.2f} times")
    finally:
        student.close()
        loaders.close()
    ratios = [ours / theirs for ours, theirs in zip(speeds["fastresnet"], speeds["student"], strict=True)]
    return make_record(
        "throughput",
        chosen.device_name,
        chosen.config.threads,
        dataset=data.dataset.name,
        arch=plan.arch,
        batch_size=plan.batch_size,
        steps_per_round=plan.steps,
        rows={
            "student": {
                "what": f"DataLoader with {NUM_WORKERS} workers and torchvision transforms, eager, float32, NCHW",
                "images_per_s": speeds["student"],
                "median": statistics.median(speeds["student"]),
            },
            "fastresnet": {
                "what": f"loader {loaders.backend}, amp {chosen.config.amp}, compile "
                f"{chosen.config.compile}, channels-last",
                "images_per_s": speeds["fastresnet"],
                "median": statistics.median(speeds["fastresnet"]),
            },
        },
        ratios=ratios,
        median_ratio=statistics.median(ratios),
    )


def describe(record: dict[str, Any]) -> str:
    """Return a record as lines."""
    rows = record["rows"]
    lines = [
        f"{record['arch']}, batch {record['batch_size']}, {record['dataset']}, {record['environment']['device_name']}, "
        f"{len(record['ratios'])} rounds of {record['steps_per_round']} steps, interleaved"
    ]
    for name, row in rows.items():
        low, high = min(row["images_per_s"]), max(row["images_per_s"])
        lines.append(f"{name:<11}{row['median']:8.1f} img/s (median; {low:.1f} to {high:.1f})  {row['what']}")
    low, high = min(record["ratios"]), max(record["ratios"])
    lines.append(
        f"{'ratio':<11}{record['median_ratio']:8.2f} times (median of rounds; {low:.2f} to {high:.2f})"
    )
    return "\n".join(lines)


def default_record_path(kind: str) -> Path:
    """Return where a record of this kind is written unless told otherwise."""
    return Path("bench-results") / f"{kind}-{time.strftime('%Y%m%d-%H%M%S')}.json"
