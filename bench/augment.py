"""What the reports' augmentations cost beside a training step of resnet24.

    python -m fastresnet.bench.augment --out FILE.json

On the clock: one call of the recipe's augmentation on a batch that is on the device, and its share of the epoch's
parameter table (drawn on the host and sent). The step is that of a run of the recipe ``fast``, done in the way its
warm-up finds; rounds of both are interleaved, so that a busy machine slows them alike. Off the clock: building,
compiling and the first two calls of each. The share is the median augmentation over the median step.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import torch

from fastresnet.assembly import open_data
from fastresnet.augment import Augment
from fastresnet.bench.ladder import our_loop
from fastresnet.engine.listener import Listener
from fastresnet.engine.machine import AMP_DTYPES, device_name, resolve_amp, synchronise
from fastresnet.environment import environment
from fastresnet.recipe import load_recipe
from fastresnet.run import RunConfig

RECIPES = ("fast", "r0-transform2", "r1-final-text", "r2-improved-resnet", "r3-resnet18-c42")
NUM_SAMPLES = 50_000  # an epoch's, which the table is drawn for


def median_ms(seconds: list[float]) -> float:
    """Return the median in milliseconds."""
    return round(1e3 * float(np.median(seconds)), 4)


def measure(
    config: RunConfig, batch_size: int = 128, rounds: int = 15, calls: int = 1, compiled: bool = False
) -> dict[str, Any]:
    """Return the record: the machine, the settings, the step's milliseconds and a row for each recipe.

    Args:
        config: data, machine and way of the steps, as a run has them.
        rounds: of everything, in turn; each times ``calls`` calls between two waits for the device.
        compiled: compile the augmentations.
    """
    recipe = load_recipe("fast").with_overrides({"arch": "resnet24", "epochs": 300, "batch_size": batch_size})
    data = open_data(recipe, config, Listener())
    loop = our_loop(data, recipe, config)
    device = loop.device
    amp = resolve_amp(config.amp, device)
    amp_dtype = AMP_DTYPES[amp]
    torch.manual_seed(0)
    image_size = data.dataset.image_size
    images = torch.randint(0, 256, (batch_size, 3, image_size, image_size), dtype=torch.uint8, device=device)
    images = images.contiguous(memory_format=torch.channels_last)
    indices = torch.randperm(NUM_SAMPLES)[:batch_size].to(device)
    members = np.arange(NUM_SAMPLES)

    def timed(function: Callable[[], object]) -> float:
        synchronise(device)
        start = perf_counter()
        for _ in range(calls):
            function()
        synchronise(device)
        return (perf_counter() - start) / calls

    work: dict[str, Callable[[], object]] = {"step": partial(next, loop.steps_alone)}
    tables: dict[str, Callable[[], object]] = {}
    for name in RECIPES:
        augment = Augment(load_recipe(name).augment, (0.49, 0.48, 0.45), (0.25, 0.24, 0.26), image_size).to(
            device
        )
        tables[name] = partial(augment.begin_epoch, 0, 1, members, device)
        tables[name]()
        call = torch.compile(augment, fullgraph=True, dynamic=False) if compiled else augment
        work[name] = partial(call, images, indices, amp_dtype, train=True)
    seconds: dict[str, list[float]] = {name: [] for name in work}
    table_seconds: dict[str, list[float]] = {name: [] for name in tables}
    for round_ in range(-2, rounds):
        for times, functions in ((seconds, work), (table_seconds, tables)):
            for name, function in functions.items():
                taken = timed(function)
                if round_ >= 0:
                    times[name].append(taken)
    step_ms = median_ms(seconds["step"])
    steps_per_epoch = NUM_SAMPLES // batch_size
    rows = []
    for name in RECIPES:
        batch_ms, table_ms = median_ms(seconds[name]), median_ms(table_seconds[name])
        per_step = batch_ms + table_ms / steps_per_epoch
        rows.append(
            {
                "recipe": name,
                "ops": [op.name for op in load_recipe(name).augment.ops],
                "batch_ms": batch_ms,
                "table_ms_per_epoch": table_ms,
                "ms_per_step": round(per_step, 4),
                "share_of_step": round(per_step / step_ms, 5),
                "batch_ms_all": [round(1e3 * s, 4) for s in seconds[name]],
            }
        )
    return {
        "what": "augmentation beside a training step of resnet24",
        "environment": environment(device_name(device), torch.get_num_threads()),
        "batch_size": batch_size,
        "amp": amp,
        "step": loop.what,
        "reasons": loop.reasons,
        "compiled": compiled,
        "rounds": rounds,
        "calls": calls,
        "step_ms": step_ms,
        "step_ms_all": [round(1e3 * s, 4) for s in seconds["step"]],
        "rows": rows,
    }


def main() -> None:
    """Measure, print a table and write the record."""
    parser = argparse.ArgumentParser(
        prog="python -m fastresnet.bench.augment", description=__doc__.splitlines()[0]
    )
    parser.add_argument("--out", type=Path, help="write the record here, as JSON")
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=15, help="of everything, interleaved")
    parser.add_argument("--calls", type=int, default=1, help="timed together in each round; some 20 on a GPU")
    parser.add_argument("--data", default="shapes", help="whose images the steps learn")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--threads", type=int, default=0, help="of the CPU; 0 is all cores")
    parser.add_argument("--compile", action="store_true", help="compile the augmentations")
    chosen = parser.parse_args()
    config = RunConfig(data=chosen.data, device=chosen.device, threads=chosen.threads)
    record = measure(config, chosen.batch_size, chosen.rounds, chosen.calls, chosen.compile)
    print(f"resnet24 step, batch {record['batch_size']}, {record['step']}: {record['step_ms']:.1f} ms")
    print(f"{'recipe':<20} {'batch ms':>9} {'table ms/epoch':>15} {'share of step':>14}")
    for row in record["rows"]:
        print(
            f"{row['recipe']:<20} {row['batch_ms']:>9.2f} {row['table_ms_per_epoch']:>15.1f} "
            f"{row['share_of_step']:>13.2%}"
        )
    if chosen.out is not None:
        chosen.out.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
