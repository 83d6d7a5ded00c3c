"""How much of a training step is spent waiting for data, by loader."""

from __future__ import annotations

import itertools
import time
import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch

from fastresnet.assembly import Data, build_step, choose_machine
from fastresnet.bench.loader_rows import Images, Plan, Row, Weigh
from fastresnet.loaders.protocol import Batch, Split
from fastresnet.recipe import load_recipe
from fastresnet.run import RunConfig

WARM_STEPS = 3


def worth_waiting_for(results: dict[Row, dict[str, Any]]) -> list[Row]:
    """Return the backends that work, and of each kind of DataLoader the quickest worker count."""
    speeds = {
        row: float(np.median(np.concatenate([run["images_per_s"] for run in result["runs"]])))
        for row, result in results.items()
        if result["runs"] and result["error"] is None
    }
    chosen = [row for row in speeds if row.kind in ("backend", "files")]
    for kind in ("pack", "transforms"):
        candidates = [row for row in speeds if row.kind == kind]
        if candidates:
            chosen.insert(0, max(candidates, key=speeds.__getitem__))
    return chosen


def measure_wait(
    row: Row, data: Data, files: Split | None, plan: Plan, device_wanted: str, weigh: Weigh
) -> dict[str, float]:
    """Train a few steps on ``row``'s batches and return the step's seconds and the share spent waiting.

    On a CPU the share is the time to get the batch over the time of the whole step. A GPU's queue hides that, so there
    it is what the steps take beyond the same steps on one batch that stays on the device.
    """
    warnings.filterwarnings("ignore", message="This DataLoader will create")
    assert plan.arch is not None
    recipe = load_recipe("fast").with_overrides(
        {"arch": plan.arch, "batch_size": plan.batch_size, "resize": []}
    )
    chosen = choose_machine(RunConfig.parse(device=device_wanted))
    step = build_step(recipe, chosen, data, len(data.splits["train"].members) // plan.batch_size)
    fixed = _fixed_batch(data, plan, chosen.device)
    images = Images(row, data, files, plan, chosen.device)
    batches = (batch or fixed for batch in images.batches())
    for _ in range(WARM_STEPS):
        step(next(batches))
    loaded_s, waited_s = _time(step, batches, plan.steps, chosen.device)
    if chosen.device.type == "cuda":
        fixed_s, _ = _time(step, itertools.repeat(fixed), plan.steps, chosen.device)
        waited_s = max(0.0, loaded_s - fixed_s)
    images.close()
    return {"step_s": loaded_s / plan.steps, "share": waited_s / loaded_s}


def _fixed_batch(data: Data, plan: Plan, device: torch.device) -> Batch:
    """Return the first images of the data set: what a row without batches of ours trains on as it loads its own."""
    split = data.splits["train"]
    indices = torch.from_numpy(split.members[: plan.batch_size])
    images = torch.from_numpy(np.array(split.images[: plan.batch_size])).permute(0, 3, 1, 2)
    return Batch(images.to(device), torch.from_numpy(split.labels)[indices].to(device), indices.to(device))


def _time(step: Any, batches: Iterator[Batch], count: int, device: torch.device) -> tuple[float, float]:
    """Return the seconds of ``count`` steps, and how many of them the host waited for a batch."""
    waited = 0.0
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    start = time.perf_counter()
    for _ in range(count):
        asked = time.perf_counter()
        batch = next(batches)
        waited += time.perf_counter() - asked
        step(batch)
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - start, waited
