"""Which promises of sameness hold on this machine, found out by training and comparing: a minute's work."""

from __future__ import annotations

import dataclasses
import hashlib
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fastresnet.assembly import train_loader_spec
from fastresnet.engine import machine
from fastresnet.engine.checkpoint import load_last
from fastresnet.engine.compiler import compiler_missing
from fastresnet.engine.listener import Listener
from fastresnet.errors import UserError
from fastresnet.kernels.conv import own_convs
from fastresnet.kernels.team import team_obstacle
from fastresnet.loaders.dataset import Dataset, open_dataset
from fastresnet.loaders.protocol import Loader
from fastresnet.loaders.registry import backend_names, open_loader
from fastresnet.recipe import Recipe, load_recipe
from fastresnet.run import RunConfig
from fastresnet.training import resume, train

ARCH, EPOCHS, BATCH, IMAGE_SIZE = "n2-b1-c8", 3, 50, 16
NUM_TRAIN, NUM_TEST, NUM_CLASSES = 320, 100, 4  # the last batch of an epoch is incomplete
STOP_AFTER = 10  # steps: in the middle of the second epoch
REFERENCE = "numba"


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What came of one comparison.

    Attributes:
        what: what was compared.
        promised: that the bits are the same is promised here.
        held: ``exact`` (the same bits), ``within`` (not the same bits), ``failed``, or ``not run``.
        found: the difference, or why it was not run, in words.
    """

    what: str
    promised: bool
    held: str
    found: str

    @property
    def is_broken(self) -> bool:
        """A promise does not hold."""
        return self.held == "failed" or (self.promised and self.held == "within")


class _Stop(Exception):
    """Ends a training as a kill does: nothing more is saved."""


class _StopAfter(Listener):
    def __init__(self, steps: int) -> None:
        self._left = steps

    def on_step(self, epoch: int, epoch_step: int, steps_per_epoch: int, images_per_s: float) -> None:
        self._left -= 1
        if not self._left:
            raise _Stop


def examine_determinism(
    device: str = "auto", progress: Callable[[str], None] | None = None
) -> Iterator[Verdict]:
    """Yield a verdict a comparison, each as soon as it is known, from runs in a folder that is removed again.

    Args:
        device: auto, cpu, cuda or cuda:N.
        progress: told what is being compared.

    Raises:
        UserError: there is no such device, or no room for the runs.
    """
    chosen = machine.resolve_device(device)
    say = progress or (lambda text: None)
    with _own_folder() as folder:
        data = _write_data(folder / "images.npz")
        runs = _Runs(
            folder, RunConfig(data=str(data), device=str(chosen), loader=REFERENCE, save_every_s=1e6)
        )
        on_gpu = chosen.type == "cuda"
        if on_gpu:
            say("one seed, trained twice, --deterministic")
            yield runs.same("same seed twice, --deterministic", True, deterministic=True)
        say("one seed, trained twice")
        yield runs.same("same seed twice", not on_gpu)
        say("a run that is stopped and resumed")
        yield runs.resumed("resumed against straight", not on_gpu)
        if on_gpu:
            yield runs.resumed("resumed against straight, --deterministic", True, deterministic=True)
        elif team_obstacle() is None:
            say("the same, with code generated for this processor")
            convs = own_convs("cpu", machine.resolve_amp("auto", chosen))
            yield runs.resumed("resumed against straight, generated code", True, kernels="llvm", convs=convs)
        dataset = open_dataset(str(data))
        for backend in backend_names():
            if backend != REFERENCE:
                say(f"the batches of the {backend} loader")
                yield _compare_loaders(dataset, runs.recipe, runs.config, backend, chosen)
        say("compiled against eager")
        yield runs.compiled("compiled against eager", chosen)
        if not on_gpu:
            say("one thread against two")
            yield runs.threads("2 threads against 1")


@contextmanager
def _own_folder() -> Iterator[Path]:
    """Yield a temporary folder, which is the cache meanwhile, and torch's unless that has a place of its own."""
    # torch and Triton note where they began to keep what they compile.
    names = ("FASTRESNET_CACHE", "TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR")
    before = {name: os.environ.get(name) for name in names}
    with tempfile.TemporaryDirectory(prefix="fastresnet-") as name:
        os.environ["FASTRESNET_CACHE"] = str(Path(name) / "cache")
        try:
            yield Path(name)
        finally:
            for name, value in before.items():
                if value is None:
                    os.environ.pop(name, None)
                else:
                    os.environ[name] = value


def _write_data(path: Path) -> Path:
    """Write an .npz of noise with a class's colour in it."""
    drawn = np.random.default_rng(0)
    arrays: dict[str, Any] = {}
    for split, count in (("train", NUM_TRAIN), ("test", NUM_TEST)):
        labels = np.arange(count) % NUM_CLASSES
        noise = drawn.integers(0, 200, (count, IMAGE_SIZE, IMAGE_SIZE, 3))
        arrays[f"{split}_images"] = (noise + 50 * (labels[:, None, None, None] % 3 == np.arange(3))).astype(
            np.uint8
        )
        arrays[f"{split}_labels"] = labels
    np.savez(path, **arrays)
    return path


class _Runs:
    """Trainings to compare, each done once."""

    def __init__(self, folder: Path, config: RunConfig) -> None:
        recipe = load_recipe("fast")
        self.recipe = recipe.with_overrides(
            {"arch": ARCH, "epochs": EPOCHS, "batch_size": BATCH, "drop_last": False, "optimizer.lr": 0.05}
        )
        # What a clock would choose is fixed; --deterministic chooses by rule.
        self.config = config.model_copy(
            update={"compile": "off", "kernels": "eager", "convs": "direct", "graphs": "off"}
        )
        self._folder = folder
        self._states: dict[str, dict[str, torch.Tensor]] = {}

    def _config(self, deterministic: bool = False, **changes: Any) -> RunConfig:
        by_rule = (
            {"compile": "auto", "kernels": "auto", "convs": "auto", "graphs": "auto"} if deterministic else {}
        )
        return self.config.model_copy(update={**by_rule, "deterministic": deterministic, **changes})

    def _trained(self, name: str, **changes: Any) -> dict[str, torch.Tensor]:
        if name not in self._states:
            run = self._folder / name / "run"
            config = self._config(**changes)
            train(self.recipe, config, runs_dir=run.parent, run_name=run.name)
            self._states[name] = _tensors(load_last(run)[0]["state"])
        return self._states[name]

    def _straight(self, deterministic: bool, **way: str) -> dict[str, torch.Tensor]:
        name = "-".join(("straight", str(deterministic), *way.values()))
        return self._trained(name, deterministic=deterministic, **way)

    def same(self, what: str, promised: bool, deterministic: bool = False) -> Verdict:
        """Train with one seed a second time."""
        again = self._trained(f"again-{deterministic}", deterministic=deterministic)
        return _verdict(what, promised, self._straight(deterministic), again)

    def resumed(self, what: str, promised: bool, deterministic: bool = False, **way: str) -> Verdict:
        """Stop a run in the middle of an epoch, as a kill does, and resume it; ``way``: how steps are done."""
        run = self._folder / "-".join(("resumed", str(deterministic), *way.values())) / "run"
        config = self._config(deterministic=deterministic, save_every_s=1e-6, **way)
        try:
            train(
                self.recipe, config, runs_dir=run.parent, run_name=run.name, listener=_StopAfter(STOP_AFTER)
            )
        except _Stop:
            resume(str(run))
        straight = self._straight(deterministic, **way)
        return _verdict(what, promised, straight, _tensors(load_last(run)[0]["state"]))

    def compiled(self, what: str, device: torch.device) -> Verdict:
        """Train with every step compiled."""
        missing = compiler_missing(device)
        if missing:
            return Verdict(what=what, promised=False, held="not run", found=missing)
        return _verdict(what, False, self._straight(False), self._trained("compiled", compile="on"))

    def threads(self, what: str) -> Verdict:
        """Train on one thread and on two."""
        one, two = (self._trained(f"threads-{number}", threads=number) for number in (1, 2))
        return _verdict(what, False, one, two)


def _tensors(value: Any, path: str = "") -> dict[str, torch.Tensor]:
    """Return the tensors of a state by their path, and its numbers as tensors; not its clocks."""
    items: Any = ()
    if isinstance(value, dict):
        items = [(key, entry) for key, entry in value.items() if key not in ("clocks", "segment")]
    elif isinstance(value, list | tuple):
        items = enumerate(value)
    elif isinstance(value, torch.Tensor):
        return {path: value}
    elif isinstance(value, bool | int | float):
        return {path: torch.tensor(value, dtype=torch.float64)}
    return {name: found for key, entry in items for name, found in _tensors(entry, f"{path}/{key}").items()}


def _verdict(
    what: str, promised: bool, one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]
) -> Verdict:
    """Compare two states: weights, averages, optimizer and counters."""
    if one.keys() != other.keys():
        return Verdict(what=what, promised=promised, held="failed", found="the states hold different things")
    if all(torch.equal(tensor, other[name]) for name, tensor in one.items()):
        return Verdict(what=what, promised=promised, held="exact", found=f"{len(one)} tensors, the same bits")
    weights = [name for name in one if name.startswith("/model/") and one[name].is_floating_point()]
    largest = max(float(one[name].abs().max()) for name in weights)
    difference = max(float((one[name] - other[name]).abs().max()) for name in weights)
    found = f"weights differ by {difference:.1g} at most, {difference / largest:.1g} of the largest"
    return Verdict(what=what, promised=promised, held="within", found=found)


def _compare_loaders(
    dataset: Dataset, recipe: Recipe, config: RunConfig, backend: str, device: torch.device
) -> Verdict:
    """Compare two epochs of batches with the reference's: whole, and from the middle with another number of workers."""
    what = f"{backend} loader against {REFERENCE}"
    try:
        one, other = (_batches(dataset, recipe, config, name, device) for name in (REFERENCE, backend))
    except UserError as error:
        return Verdict(what=what, promised=False, held="not run", found=str(error))
    if one == other:
        found = f"{len(one)} batches of images, labels and indices, the same bits"
        return Verdict(what=what, promised=True, held="exact", found=found)
    first = next(number for number, (left, right) in enumerate(zip(one, other, strict=True)) if left != right)
    return Verdict(what=what, promised=True, held="failed", found=f"batch {first} differs")


def _batches(
    dataset: Dataset, recipe: Recipe, config: RunConfig, backend: str, device: torch.device
) -> list[str]:
    """Return a hash for each batch."""
    spec = dataclasses.replace(train_loader_spec(recipe, config), seed=1)
    found: list[str] = []
    for workers, epoch, start in ((1, 0, 0), (2, 1, 3)):
        loader: Loader = open_loader(backend, dataset.train, spec, device, workers=workers)
        try:
            loader.set_epoch(epoch, start)
            for batch in loader:
                digest = hashlib.sha256()
                for tensor in (batch.images.permute(0, 2, 3, 1), batch.labels, batch.indices):
                    digest.update(tensor.contiguous().cpu().numpy().tobytes())
                found.append(digest.hexdigest())
        finally:
            loader.close()
    return found
