"""The warm-up of a run, put together from its recipe, config and data: which way its steps are done."""

from __future__ import annotations

from collections.abc import Callable

import torch

from fastresnet.assembly import Data, Machine
from fastresnet.engine.compiler import compiler_missing
from fastresnet.engine.evaluate import EVAL_BATCH
from fastresnet.engine.rehearsal import random_batches
from fastresnet.engine.step import TrainStep
from fastresnet.engine.warmup import ChooseKernels, Search, WarmUp, warm_up
from fastresnet.kernels.conv import CONVS, model_obstacle
from fastresnet.kernels.dispatch import Choice, choose_kernels
from fastresnet.kernels.llvm_norms import llvm_obstacle
from fastresnet.loaders.cache import cache_folder
from fastresnet.recipe import Recipe
from fastresnet.resnet import block_shapes


def warm_up_step(
    step: TrainStep,
    recipe: Recipe,
    chosen: Machine,
    data: Data,
    announce: Callable[[str], None] = lambda line: None,
) -> WarmUp:
    """Find the fastest way to do the run's steps that the config allows, take it, and have all compiled by then.

    The state stays as it was.

    Args:
        announce: told a line before a measurement that takes a minute.

    Raises:
        UserError: the config asks for a way that is not possible.
    """
    config, device, dataset, ranks = chosen.config, chosen.device, data.dataset, chosen.ranks
    state = step.state
    members = data.splits["train"].members
    rest = len(members) % recipe.batch_size
    sizes = [recipe.batch_size] if len(members) >= recipe.batch_size else []
    sizes += [rest] if rest and not recipe.drop_last else []
    if not ranks.is_alone:  # which do incomplete batches as they are
        sizes = [ranks.share(sizes[0])]
    step.augment.begin_epoch(config.seed, state.epoch, members, device)
    *batches, eval_batch = random_batches(
        [*sizes, EVAL_BATCH], dataset.image_size, dataset.num_classes, torch.from_numpy(members), device
    )
    search = Search(
        step=step,
        batches=batches,
        sizes=sorted(set(step.image_sizes[state.epoch :]) - {dataset.image_size}),
        config=config,
        num_steps=(recipe.epochs * state.schedule.steps_per_epoch - state.step) * config.alike,
        compiler_missing=next(filter(None, ranks.gather(compiler_missing(device))), None),
        convs_obstacles={
            convs: next(
                filter(None, ranks.gather(model_obstacle(state.model, convs, device.type, config.amp))), None
            )
            for convs in CONVS[1:]
        },
        norms_obstacle=next(filter(None, ranks.gather(llvm_obstacle(device.type))), None),
        choose_kernels=_kernel_chooser(recipe, chosen, dataset.image_size, announce),
    )
    return warm_up(search, eval_batch, list(dict.fromkeys(("none", recipe.tta))))


def _kernel_chooser(
    recipe: Recipe, chosen: Machine, image_size: int, announce: Callable[[str], None]
) -> ChooseKernels:
    """Return what chooses the norms' implementation."""
    spec = recipe.arch_spec()

    def choose(*, compiled: bool, launched: bool, worth_measuring: bool) -> Choice:
        return choose_kernels(
            chosen.config.kernels,
            block_shapes(spec, chosen.ranks.share(recipe.batch_size), image_size),
            activation=spec.activation,
            dtype=chosen.amp_dtype,
            device=chosen.device,
            compiled=compiled,
            launched=launched,
            synced=chosen.config.sync_bn and not chosen.ranks.is_alone,
            deterministic=chosen.config.deterministic,
            worth_measuring=worth_measuring,
            cache_folder=cache_folder(),
            announce=announce,
        )

    return choose
