"""What a training tells whoever watches it."""

from __future__ import annotations

from collections import Counter
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
        image_sizes: the side in pixels of the training images in each epoch.
        step_s: estimated seconds of a step, measured in the warm-up, by that side; those of epochs done may lack.
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
    image_sizes: tuple[int, ...]
    step_s: dict[int, float]
    resumed_at: tuple[int, int] | None
    world_size: int = 1

    def left_s(self, epoch: int = 0, epoch_step: int = 0) -> float:
        """Return the estimated seconds of the training that is left after ``epoch_step`` steps of ``epoch``."""
        sizes = self.image_sizes[epoch:]
        if not sizes:
            return 0.0
        steps = {size: count * self.steps_per_epoch for size, count in Counter(sizes).items()}
        steps[sizes[0]] -= epoch_step
        return sum(count * self.step_s[size] for size, count in steps.items())

    @property
    def full_epoch_s(self) -> float:
        """Estimated seconds of an epoch's training at the data set's size."""
        return self.steps_per_epoch * self.step_s[self.image_sizes[-1]]

    @property
    def evaluations_s(self) -> float:
        """Estimated seconds of an epoch's evaluations, on average: a third of a full-size step's work an image."""
        data = self.dataset
        num_images = data["num_test"] + data.get("num_val", 0)
        share = num_images / (3 * data["num_train"] * self.config.eval_every)
        return self.full_epoch_s * share


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
