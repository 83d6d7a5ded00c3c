"""What a training tells whoever watches it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from fastresnet.arch import ArchSpec
from fastresnet.recipe import Recipe
from fastresnet.run import RunConfig


@dataclass(frozen=True, kw_only=True)
class RunInfo:
    """What is known of a run before its first step.

    Attributes:
        path: the run folder.
        recipe, spec, config: what is trained; the config is resolved.
        dataset: name, class count, image size and sample counts of what it is trained and evaluated on.
        device_name: the GPU's or the processor's.
        world_size: how many ranks train together.
        num_params, multiply_adds: of the network, for one image.
        reasons: why ``compile``, ``kernels``, ``convs`` and ``graphs`` are what they are, by option.
        steps_per_epoch, steps_left: of the run.
        epoch_s: estimated seconds of an epoch's training, measured over warm-up steps.
        resumed_at: (epoch, step in it) where a resumed run goes on, both from 0; None for a new run.
    """

    path: str
    recipe: Recipe
    spec: ArchSpec
    config: RunConfig
    dataset: dict[str, Any]
    device_name: str
    num_params: int
    multiply_adds: int
    reasons: dict[str, str]
    steps_per_epoch: int
    steps_left: int
    epoch_s: float
    resumed_at: tuple[int, int] | None
    world_size: int = 1


class Listener:
    """Does nothing; a subclass overrides what it wants to hear. No call waits for the device."""

    def on_data(self, doing: str, done: int, total: int) -> None:
        """The data set is being read or packed: ``done`` of ``total``."""

    def on_phase(self, text: str) -> None:
        """A phase that takes a while begins."""

    def on_start(self, info: RunInfo) -> None:
        """Everything is ready, and the first step follows."""

    def on_step(self, epoch: int, epoch_step: int, steps_per_epoch: int, images_per_s: float) -> None:
        """A step was queued: ``epoch_step`` of ``epoch`` (from 0) are done."""

    def on_epoch(self, row: dict[str, Any]) -> None:
        """An epoch's row was written."""

    def on_notice(self, text: str) -> None:
        """Something the user should know, in one line."""
