"""From the loop a student would write to ours, one change at a time: the rows of the throughput table."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from fastresnet.arch import ArchSpec
from fastresnet.assembly import Data, build_step, choose_machine, open_loaders
from fastresnet.bench.loop_process import Loop, LoopProcess
from fastresnet.bench.student import NUM_WORKERS, Changes, student_loop
from fastresnet.engine.compiler import compiler_missing
from fastresnet.engine.machine import AMP_DTYPES, resolve_amp
from fastresnet.engine.rehearsal import random_batches, warm_loaders
from fastresnet.engine.warmup import ALIKE_ON_GPU
from fastresnet.kernels.conv import model_obstacle, own_convs
from fastresnet.kernels.dispatch import kernels_obstacle
from fastresnet.kernels.norm_act import TRITON_KERNELS
from fastresnet.loaders.protocol import Batch
from fastresnet.recipe import Recipe
from fastresnet.resnet import ONEDNN_SAFE_WIDTH, build_model
from fastresnet.run import RunConfig
from fastresnet.training_warmup import warm_up_step

STUDENT, OURS = "student", "fastresnet"
# In this order; each changes one thing of the one before that can be had.
ROWS = (STUDENT, "channels-last", "amp", "compile", "kernels", "step", "convs", "graphs", OURS)
CHANGE = {
    STUDENT: "the student's loop",
    "channels-last": "+ channels-last",
    "amp": "+ AMP",
    "compile": "+ compile",
    "kernels": "+ fused norms",
    "step": "+ our step",
    "convs": "+ our convolutions",
    "graphs": "+ CUDA graphs",
    OURS: "+ our loader",
}
# Of our own, which do not build on the student's: what each is where a row before it was not asked for.
WHOLE = {
    "step": "our step, DataLoader",
    "convs": "our step and convolutions, DataLoader",
    "graphs": "our step, convolutions and CUDA graphs, DataLoader",
    OURS: "fastresnet train",
}

Options = Mapping[str, str]


@dataclass(frozen=True, kw_only=True)
class Rung:
    """One row: how its process is started, or why it is left out.

    Attributes:
        name: one of ROWS.
        start: given what our own row found to be fastest (``compile`` and ``kernels``); None where it is left out.
        left_out: the reason; None where it is not.
    """

    name: str
    start: Callable[[Options], LoopProcess] | None = None
    left_out: str | None = None


def ladder(
    recipe: Recipe, config: RunConfig, data: Data, device: torch.device, wanted: tuple[str, ...]
) -> list[Rung]:
    """Return the rows of one arch and batch size that were asked for, in order."""
    spec = recipe.arch_spec()
    amp = resolve_amp(config.amp, device)
    kernels = "llvm" if device.type == "cpu" else TRITON_KERNELS[0]
    convs = own_convs(device.type, amp)
    model = build_model(spec, image_size=data.dataset.image_size)
    obstacles = {
        "channels-last": _why_not_channels_last(spec, device),
        "amp": None if amp != "off" else _why_no_amp(config),
        "compile": _why_not_compiled(config, device),
        "kernels": kernels_obstacle(kernels, device),
        "convs": model_obstacle(model, convs, device.type, amp),
        "graphs": None if device.type == "cuda" else "CUDA graphs are for GPUs",
    }
    steps: dict[str, dict[str, Any]] = {
        "channels-last": {"channels_last": True},
        "amp": {"amp_dtype": AMP_DTYPES[amp]},
        "compile": {"compiled": True},
        "kernels": {"kernels": kernels},
    }
    own: dict[str, dict[str, Any]] = {
        "step": {"loader": "torch", "workers": NUM_WORKERS, "convs": "direct", "graphs": "off"},
        "convs": {"loader": "torch", "workers": NUM_WORKERS, "convs": convs, "graphs": "off"},
        "graphs": {"loader": "torch", "workers": NUM_WORKERS, "graphs": "on"},
        OURS: {"alike": ALIKE_ON_GPU} if device.type == "cuda" else {},
    }
    changes: dict[str, Any] = {}
    rungs = []
    for name in (row for row in ROWS if row in wanted):
        reason = obstacles.get(name)
        if reason is not None:
            rungs.append(Rung(name=name, left_out=reason))
            continue
        changes |= steps.get(name, {})
        if name in own:
            start = _starter(name, data, recipe, config.model_copy(update=own[name]))
        else:
            start = _student_starter(name, data, spec, recipe.batch_size, device, Changes(**changes))
        rungs.append(Rung(name=name, start=start))
    return rungs


def _starter(name: str, data: Data, recipe: Recipe, config: RunConfig) -> Callable[[Options], LoopProcess]:
    """Return what starts a row of ours; only OURS looks for what is fastest, while no other loop runs."""

    def start(found: Options) -> LoopProcess:
        taken = {key: found[key] for key in ("compile", "kernels") if key in found}
        return LoopProcess(name, our_loop, data, recipe, config.model_copy(update=taken))

    return start


def _student_starter(
    name: str, data: Data, spec: ArchSpec, batch_size: int, device: torch.device, changes: Changes
) -> Callable[[Options], LoopProcess]:
    """Return what starts a row of the student's, with ``changes``."""
    return lambda found: LoopProcess(name, student_loop, data, spec, batch_size, str(device), changes)


def _why_not_channels_last(spec: ArchSpec, device: torch.device) -> str | None:
    if device.type == "cpu" and min(spec.channels) < ONEDNN_SAFE_WIDTH:
        # see SubsampledConv2d, which the textbook network does without
        return (
            f"torch's own convolutions of fewer than {ONEDNN_SAFE_WIDTH} channels are not safe in it on a CPU"
        )
    return None


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
        options=found.options,
        reasons=found.reasons,
    )
