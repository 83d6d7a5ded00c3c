"""Loaders, augmentation, kernels, training steps, evaluation and checkpoints, each timed alone."""

from __future__ import annotations

import dataclasses
import importlib.util
import itertools
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from fastresnet.assembly import Data, Machine, build_step, train_loader_spec
from fastresnet.augment import build_augment
from fastresnet.bench.contestants import FINAL_ARCHS
from fastresnet.bench.kernels import Case, Subject
from fastresnet.bench.regression.conftest import NUM_TRAIN, Timed
from fastresnet.catalogue import CATALOGUE
from fastresnet.engine.checkpoint import write_checkpoint
from fastresnet.engine.evaluate import EVAL_BATCH, evaluate
from fastresnet.engine.rehearsal import random_batches
from fastresnet.engine.step import TrainStep
from fastresnet.engine.way import Way
from fastresnet.kernels.conv import convs_obstacle
from fastresnet.kernels.dispatch import kernels_obstacle
from fastresnet.kernels.team import team_obstacle
from fastresnet.loaders.protocol import Batch, LoaderSpec
from fastresnet.loaders.registry import open_loader
from fastresnet.recipe import Recipe, load_recipe
from fastresnet.run import RunConfig
from fastresnet.training_warmup import warm_up_step

OURS = "fastresnet8"
NINE = tuple(entry.name for entry in CATALOGUE if entry.table == "r0-table1")


def random_batch(data: Data, recipe: Recipe, device: torch.device) -> Batch:
    members = torch.from_numpy(data.splits["train"].members)
    return random_batches(
        [recipe.batch_size], data.dataset.image_size, data.dataset.num_classes, members, device
    )[0]


def made_step(data: Data, recipe: Recipe, machine: Machine) -> TrainStep:
    step = build_step(recipe, machine, data, NUM_TRAIN // recipe.batch_size)
    step.augment.begin_epoch(0, 0, data.splits["train"].members, machine.device)
    return step


def one_step(data: Data, recipe: Recipe, machine: Machine, way: Way) -> Callable[[], None]:
    """Return what does the first step of a run over and over, in a way."""
    step = made_step(data, recipe, machine)
    step.take(way)
    return repeated(step, random_batch(data, recipe, machine.device))


def repeated(step: TrainStep, batch: Batch) -> Callable[[], None]:

    def one() -> None:
        step(batch, averaging=True)
        step.state.step = step.state.epoch_step = 0  # the schedule knows no step after the run's last

    return one


@pytest.mark.parametrize("backend", ["torch", "numba", "resident", "ffcv", "dali"])
def test_loader(backend: str, data: Data, recipe: Recipe, machine: Machine, timed: Timed) -> None:
    """An epoch of 2,048 images, cropped and flipped."""
    library = {"ffcv": "ffcv", "dali": "nvidia"}.get(backend)
    if library is not None and importlib.util.find_spec(library) is None:
        pytest.skip(f"{backend} is not installed")
    spec = train_loader_spec(recipe.with_overrides({"batch_size": 128}), RunConfig())
    loader = open_loader(backend, data.splits["train"], spec, machine.device)
    epochs = itertools.count()

    def epoch() -> None:
        loader.set_epoch(next(epochs))  # as in a training, which plans the next one meanwhile
        for _ in loader:
            pass

    try:
        timed(epoch)
    finally:
        loader.close()


@pytest.mark.parametrize("name", ["fast", "r1-joint", "r2-improved-resnet", "r3-resnet18-c42"])
def test_augment(name: str, data: Data, machine: Machine, timed: Timed) -> None:
    """A recipe's transforms on the device, over 256 images."""
    recipe = load_recipe(name).with_overrides({"batch_size": 256})
    dataset = data.dataset
    augment = build_augment(recipe, dataset.mean, dataset.std, dataset.image_size).to(machine.device)
    augment.begin_epoch(0, 0, data.splits["train"].members, machine.device)
    batch = random_batch(data, recipe, machine.device)
    timed(lambda: augment(batch.images, batch.indices, machine.amp_dtype, train=True))


@pytest.mark.parametrize("activation", ["relu", "gelu"])
@pytest.mark.parametrize("added", ["none", "plain", "norm"])
def test_kernel(added: str, activation: str, machine: Machine, timed: Timed) -> None:
    """A fused norm, forward and backward, at resnet24's largest map: Triton's, or on a CPU LLVM's."""
    kernels, batch_size = ("llvm", 32) if machine.device.type == "cpu" else ("triton", 512)
    obstacle = kernels_obstacle(kernels, machine.device)
    if obstacle is not None:
        pytest.skip(obstacle)
    case = Case(
        batch_size=batch_size, channels=64, side=32, added=added, activation=activation, dtype=machine.amp_dtype  # type: ignore[arg-type]
    )  # fmt: skip
    timed(Subject(case, kernels, machine.device).both)


@pytest.mark.parametrize("arch", ["resnet8", *NINE, *FINAL_ARCHS, OURS])
def test_step(arch: str, data: Data, recipe: Recipe, machine: Machine, timed: Timed) -> None:
    """A training step on one batch that stays on the device: augment, forward, backward, update, EMA."""
    timed(one_step(data, recipe.with_overrides({"arch": arch}), machine, Way()))


@pytest.mark.parametrize("arch", ["resnet8", "resnet24", OURS])
def test_graph_step(arch: str, data: Data, recipe: Recipe, machine: Machine, timed: Timed) -> None:
    """The same as a GPU's trainings do it: compiled, with Triton's norms, one replay of a CUDA graph."""
    if machine.device.type != "cuda":
        pytest.skip("CUDA graphs are for GPUs")
    obstacle = kernels_obstacle("triton", machine.device)
    if obstacle is not None:
        pytest.skip(obstacle)
    its = recipe.with_overrides({"arch": arch})
    asked = {"compile": "on", "kernels": "triton", "graphs": "on"}
    as_trained = dataclasses.replace(machine, config=machine.config.model_copy(update=asked))
    step = made_step(data, its, as_trained)
    warm_up_step(step, its, as_trained, data)
    timed(repeated(step, random_batch(data, its, machine.device)))


@pytest.mark.parametrize("convs", ["winograd", "amx"])
@pytest.mark.parametrize("arch", ["resnet8", "resnet24", OURS])
def test_generated_step(
    arch: str, convs: str, data: Data, recipe: Recipe, machine: Machine, timed: Timed
) -> None:
    """The same with the convolutions, norms and max pools that are generated for a CPU."""
    if machine.device.type != "cpu":
        pytest.skip("they are for CPUs")
    obstacle = team_obstacle() or convs_obstacle(convs, "cpu", machine.config.amp)
    if obstacle is not None:
        pytest.skip(obstacle)
    way = Way(kernels="llvm", convs=convs)
    timed(one_step(data, recipe.with_overrides({"arch": arch}), machine, way))


def test_evaluate(data: Data, recipe: Recipe, machine: Machine, timed: Timed) -> None:
    """512 images by resnet8, with flip TTA."""
    step = made_step(data, recipe, machine)
    spec = LoaderSpec(batch_size=EVAL_BATCH, shuffle=False)
    loader = open_loader("resident", data.splits["test"], spec, machine.device)
    try:
        timed(lambda: evaluate(step.scorer, loader, tta="flip"))
    finally:
        loader.close()


def test_save(data: Data, recipe: Recipe, machine: Machine, tmp_path: Path, timed: Timed) -> None:
    """A checkpoint of resnet8's whole state, on the disk for good."""
    step = made_step(data, recipe, machine)
    content = {"run": "regression", "events": {}, "state": step.state.state_dict()}
    timed(lambda: write_checkpoint(tmp_path / "last.safetensors", content))
