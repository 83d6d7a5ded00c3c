"""A run: on what machine and data a recipe is trained (:class:`RunConfig`), where it lives, what came of it."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field
from pydantic_core import PydanticCustomError

from fastresnet.errors import UserError
from fastresnet.recipe import Recipe
from fastresnet.recorded import (
    Best,
    DatasetInfo,
    Environment,
    EpochRow,
    FilePath,
    Parent,
    RecipeFile,
    Recorded,
    RunName,
    Share,
    holds,
)
from fastresnet.toml_model import validated

Amp = Literal["auto", "bf16", "fp16", "off"]
Compile = Literal["auto", "on", "whole", "off"]
# Three more launch configurations of the kernels, which `auto` may find to be faster.
Kernels = Literal["auto", "triton", "triton-1", "triton-2", "triton-3", "llvm", "inductor", "eager"]
Graphs = Literal["auto", "on", "off"]
Convs = Literal["auto", "direct", "winograd", "amx"]


def _device(name: str) -> str:
    if re.fullmatch(r"auto|cpu|cuda(:[0-9]+)?", name) is None:
        raise PydanticCustomError("device", "must be auto, cpu, cuda or cuda:N")
    return name


class RunConfig(BaseModel):
    """The machine and data of a run; the science is the recipe's.

    Attributes:
        data: what ``--data`` was given; None is CIFAR-10.
        image_size: side in pixels that images are resized to when packed; None keeps square images as they are.
        seed: seed of every draw (order contract).
        val: samples of the training set held out for validation, drawn by (seed); 0 for none, None for what the
            recipe says.
        limit_train: use only this many training samples, drawn by (seed).
        target: accuracy in (0, 1] whose first crossing is timed; None times nothing.
        device, loader, amp, compile, kernels, convs, graphs, threads: ``auto`` (0 threads) until resolved; a run that
            has started holds what was chosen, and a resumed run reuses it.
        alike: trainings that will do their steps as this one finds, itself included: what the finding may take is
            weighed against the length of all of them (in ``fastresnet bench``; a great number has all be measured).
        sync_bn: over several ranks, normalise by the statistics of the whole batch, as one process does;
            otherwise each rank by those of its share. A process by itself does the same either way.
        workers: processes (``torch``) or threads (``numba``, ``ffcv``, ``dali``) that load; 0 chooses.
        deterministic: no clock chooses how steps are done, and CUDA operations whose result depends on timing are
            refused: the same bits on every run.
        save_every_s: seconds between checkpoints.
        eval_every: epochs between evaluations; the last epoch is always evaluated.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    data: FilePath | None = None
    image_size: int | None = Field(default=None, ge=4, le=512)
    seed: int = Field(default=0, ge=0, lt=2**63)
    val: int | None = Field(default=None, ge=0)
    limit_train: int | None = Field(default=None, ge=1)
    target: float | None = Field(default=None, gt=0, le=1)
    device: Annotated[str, AfterValidator(_device)] = "auto"
    loader: str = "auto"
    workers: int = Field(default=0, ge=0, le=1024)
    amp: Amp = "auto"
    compile: Compile = "auto"
    kernels: Kernels = "auto"
    convs: Convs = "auto"
    graphs: Graphs = "auto"
    threads: int = Field(default=0, ge=0, le=4096)
    alike: int = Field(default=1, ge=1)
    deterministic: bool = False
    sync_bn: bool = True
    save_every_s: float = Field(default=60.0, gt=0, allow_inf_nan=False)
    eval_every: int = Field(default=1, ge=1)

    @classmethod
    def parse(cls, **values: Any) -> RunConfig:
        """Return a config, or raise a :class:`RefusedValue` naming the key and what is allowed."""
        return validated(cls, values)


def duration(seconds: float) -> str:
    """Return seconds in words: 12.3 s, 4 min 05 s, 2 h 10 min."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"


class Clocks(BaseModel):
    """Seconds by what was on the clock, summed over resumed segments.

    Attributes:
        data_s: opening and, the first time, packing the data set.
        build_s: making the model, the optimizer and the loaders.
        move_s: the part of ``build_s`` in which the data set was moved to the device, where the loader keeps it there.
        compile_s: compiling and the warm-up on random labels, after which the state is restored.
        init_s: initialisation that depends on the data (``init.whiten``).
        train_s: training: moving data to the device, every draw and every step.
        between_s: evaluations between epochs and checkpoints: not counted in ``train_s``.
        eval_s: the final evaluation, with the TTA that is claimed.
        time_to_target_s: ``init_s`` and ``train_s`` when an evaluation first reached the target, plus that evaluation.
        cpu_s: CPU seconds of all threads of this process (rank 0's, without a DataLoader's workers) during
            ``init_s``, ``train_s`` and ``eval_s``.
    """

    model_config = ConfigDict(allow_inf_nan=False)

    data_s: float = 0.0
    build_s: float = 0.0
    move_s: float = 0.0
    compile_s: float = 0.0
    init_s: float = 0.0
    train_s: float = 0.0
    between_s: float = 0.0
    eval_s: float = 0.0
    time_to_target_s: float | None = None
    cpu_s: float = 0.0

    @property
    def total_s(self) -> float:
        """All seconds, counted or not: ``move_s`` and ``time_to_target_s`` are parts of others."""
        counted_s = self.init_s + self.train_s + self.eval_s
        return self.data_s + self.build_s + self.compile_s + self.between_s + counted_s

    def charge(self, name: str, seconds: float, cpu_s: float) -> None:
        """Add seconds to the clock called ``name``, and their CPU seconds where it is one that counts."""
        setattr(self, name, getattr(self, name) + seconds)
        if name in {"init_s", "train_s", "eval_s"}:
            self.cpu_s += cpu_s


class RunResult(BaseModel):
    """What came of a run; ``result.json`` in its folder.

    Attributes:
        run: the run folder's name.
        path: where the folder lies.
        recipe, config, environment, dataset: everything needed to do the run again.
        num_params, multiply_adds: of the network, for one image.
        epochs: one row per epoch, as in ``events.jsonl``.
        clocks: seconds by what was on the clock.
        test_accuracy, test_loss: over every test sample, in eval mode, without TTA; the loss is None if not
            finite.
        test_accuracy_tta: the same with the recipe's TTA, None where the recipe asks for none.
        best: epoch, accuracy and the split it was chosen on.
        parent: the run and weights that ``--init-from`` started from.
    """

    run: str
    path: str
    recipe: Annotated[dict[str, Any], holds(Recipe)]
    config: RunConfig
    environment: Annotated[dict[str, Any], holds(Environment)]
    dataset: Annotated[dict[str, Any], holds(DatasetInfo)]
    num_params: int
    multiply_adds: int
    epochs: list[Annotated[dict[str, Any], holds(EpochRow)]]
    clocks: Clocks
    test_accuracy: Share
    test_loss: float | None
    test_accuracy_tta: Share | None
    best: Annotated[dict[str, Any], holds(Best)]
    parent: Annotated[dict[str, Any], holds(Parent)] | None = None


class RunContent(Recorded):
    """``config.json`` in a run's folder: everything needed to go on with it. The parts are told at RunResult."""

    run: RunName
    recipe: Recipe
    recipe_file: RecipeFile | None
    config: RunConfig
    environment: Environment
    dataset: DatasetInfo
    parent: Parent | None


def file_record(path: Path) -> dict[str, str]:
    """Return where a file that the user wrote lies, and its sha256, for a run's config."""
    try:
        return {"path": str(path.resolve()), "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error


def file_change(record: dict[str, str]) -> str | None:
    """Return what has become of :func:`file_record`'s file since, in words; None if it is as it was."""
    path = Path(record["path"])
    if path.exists() and not path.is_file():  # a pipe or a device, to which a stranger's record may point
        return f"{path} is no file"
    try:
        now = file_record(path)
    except UserError as error:
        return str(error)
    return None if now["sha256"] == record["sha256"] else f"{record['path']} has changed since the run began"
