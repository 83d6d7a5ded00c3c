"""From the loop a student would write to ours, one change at a time: the rows of the throughput table."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch

from fastresnet.assembly import Data, build_step, choose_machine, open_loaders, warm_up_step
from fastresnet.bench.loop_process import Loop, LoopProcess
from fastresnet.bench.student import NUM_WORKERS, Changes, student_loop
from fastresnet.engine.machine import AMP_DTYPES, resolve_amp
from fastresnet.engine.warmup import compiler_missing, random_batches, warm_loaders
from fastresnet.kernels.dispatch import triton_obstacle
from fastresnet.kernels.norm_act import TRITON_KERNELS
from fastresnet.loaders.protocol import Batch
from fastresnet.recipe import Recipe
from fastresnet.run import RunConfig

STUDENT, OURS = "student", "fastresnet"
# In this order; each changes one thing of the one before that can be had.
ROWS = (STUDENT, "channels-last", "amp", "compile", "kernels", "step", OURS)
CHANGE = {
    STUDENT: "the student's loop",
    "channels-last": "+ channels-last",
    "amp": "+ AMP",
    "compile": "+ compile",
    "kernels": "+ fused norms",
    "step": "+ our step",
    OURS: "+ our loader",
}


@dataclass(frozen=True, kw_only=True)
class Rung:
    """One row: how its process is started, or why it is left out.

    Attributes:
        name: one of ROWS.
        start: None where it is left out.
        left_out: the reason; None where it is not.
    """

    name: str
    start: Callable[[], LoopProcess] | None = None
    left_out: str | None = None


def ladder(
    recipe: Recipe, config: RunConfig, data: Data, device: torch.device, wanted: tuple[str, ...]
) -> list[Rung]:
    """Return the rows of one arch and batch size that were asked for, in order."""
    spec = recipe.arch_spec()
    amp = resolve_amp(config.amp, device)
    obstacles = {
        "amp": None if amp != "off" else _why_no_amp(config),
        "compile": _why_not_compiled(config, device),
        "kernels": triton_obstacle(device),
    }
    steps: dict[str, dict[str, Any]] = {
        "channels-last": {"channels_last": True},
        "amp": {"amp_dtype": AMP_DTYPES[amp]},
        "compile": {"compiled": True},
        "kernels": {"kernels": TRITON_KERNELS[0]},
    }
    changes: dict[str, Any] = {}
    rungs = []
    for name in (row for row in ROWS if row in wanted):
        reason = obstacles.get(name)
        if reason is None and name in steps:
            changes |= steps[name]
        arguments: tuple[Any, ...] = (data, spec, recipe.batch_size, str(device), Changes(**changes))
        make: Callable[..., Loop] = student_loop
        if name in ("step", OURS):
            make = our_loop
            own = {"loader": "torch", "workers": NUM_WORKERS} if name == "step" else {}
            arguments = (data, recipe, config.model_copy(update=own))
        rungs.append(
            Rung(name=name, left_out=reason)
            if reason
            else Rung(name=name, start=_starter(name, make, arguments))
        )
    return rungs


def _starter(name: str, make: Callable[..., Loop], arguments: tuple[Any, ...]) -> Callable[[], LoopProcess]:
    return lambda: LoopProcess(name, make, *arguments)


def _why_no_amp(config: RunConfig) -> str:
    return "--amp off" if config.amp == "off" else "this hardware has no bfloat16, which would be slower"


def _why_not_compiled(config: RunConfig, device: torch.device) -> str | None:
    if config.compile == "off":
        return "--compile off; compiling takes minutes on a CPU" if device.type == "cpu" else "--compile off"
    return compiler_missing(device)


def our_loop(data: Data, recipe: Recipe, config: RunConfig) -> Loop:
    """Return the loop of ``fastresnet train``, warmed up as that does, for a process of its own."""
    chosen = choose_machine(config)
    loaders = open_loaders(recipe, chosen.config, data, chosen.device)
    members = data.splits["train"].members
    step = build_step(recipe, chosen, data, len(loaders.train))
    warm_loaders((loaders.train,))
    dataset = data.dataset
    (batch,) = random_batches(
        [recipe.batch_size], dataset.image_size, dataset.num_classes, torch.from_numpy(members), chosen.device
    )
    found = warm_up_step(step, recipe, chosen, data)

    def batches() -> Iterator[Batch]:
        for epoch in itertools.count():
            step.augment.begin_epoch(config.seed, epoch, members, chosen.device)
            loaders.train.set_epoch(epoch)
            yield from loaders.train

    def steps(batches: Iterator[Batch]) -> Iterator[int]:
        last = recipe.epochs * len(loaders.train) - 1
        for batch in batches:
            # the schedule and the draws know no step after the run's last
            step.state.step = step.state.epoch_step = min(step.state.step, last)
            step(batch)
            yield len(batch.labels)

    told = ", ".join(f"{option} {value}" for option, value in found.options.items())
    workers = f" with {config.workers} workers" if config.workers else ""
    return Loop(
        steps=steps(batches()),
        steps_alone=steps(itertools.repeat(batch)),
        what=f"loader {loaders.backend}{workers}, amp {chosen.config.amp}, {told}, channels-last",
        device=chosen.device,
    )
