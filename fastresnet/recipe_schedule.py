"""The learning-rate schedules of a recipe: factors on the base lr.

Time is counted in epochs from the end of the warm-up.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from fastresnet.recipe_parts import Fraction, NonNegative, Part


class WarmedPart(Part):
    """A schedule with an optional warm-up.

    Attributes:
        warmup: fraction of the run's steps in which the factor rises linearly from ``warmup_start`` to 1.
        warmup_start: the factor of the first step.
    """

    warmup: float = Field(default=0.0, ge=0, lt=1)
    warmup_start: Fraction = 0.0


class Constant(WarmedPart):
    name: Literal["constant"]


class Step(WarmedPart):
    """Multiply by ``gamma`` every ``period`` epochs, counted from epoch ``after`` (torch's StepLR with 0)."""

    name: Literal["step"]
    gamma: float = Field(default=0.1, gt=0, le=1)
    period: int = Field(ge=1)
    after: int = Field(default=0, ge=0)


class Exponential(WarmedPart):
    """``gamma`` to the power of epochs / ``period``: in stairs of ``period`` epochs, else at every step."""

    name: Literal["exponential"]
    gamma: float = Field(gt=0, le=1)
    period: int = Field(default=1, ge=1)
    staircase: bool = True


class Plateau(WarmedPart):
    """Multiply by ``gamma`` after more than ``patience`` epochs without a better ``metric``.

    torch's ReduceLROnPlateau; its threshold is relative.
    """

    name: Literal["plateau"]
    metric: Literal["accuracy", "loss"] = "accuracy"
    gamma: float = Field(default=0.1, gt=0, lt=1)
    patience: int = Field(default=10, ge=0)
    threshold: NonNegative = 1e-4
    cooldown: int = Field(default=0, ge=0)
    min_factor: Fraction = 0.0


class Cosine(WarmedPart):
    """Half a cosine from 1 to ``min_factor`` in ``t_max`` epochs, then back up (torch's CosineAnnealingLR).

    Attributes:
        t_max: epochs; None is the run's epochs less the warm-up.
        per: the factor changes every ``epoch`` or every ``step``.
    """

    name: Literal["cosine"]
    t_max: int | None = Field(default=None, ge=1)
    min_factor: Fraction = 0.0
    per: Literal["epoch", "step"] = "step"


class CosineRestarts(WarmedPart):
    """SGDR: half cosines from 1 to ``min_factor``, over ``t_0`` epochs, then ``t_mult`` times as long.

    torch's CosineAnnealingWarmRestarts.
    """

    name: Literal["cosine-restarts"]
    t_0: int = Field(ge=1)
    t_mult: int = Field(default=1, ge=1)
    min_factor: Fraction = 0.0
    per: Literal["epoch", "step"] = "step"


class OneCycle(Part):
    """Up from ``start`` to 1 in fraction ``peak`` of the steps, then down to ``end`` (torch's OneCycleLR).

    ``anneal = "linear"`` is the triangular schedule.
    """

    name: Literal["one-cycle"]
    peak: float = Field(default=0.3, gt=0, lt=1)
    start: Fraction = 0.04
    end: Fraction = 4e-6
    anneal: Literal["cosine", "linear"] = "cosine"


class Linear(WarmedPart):
    """Straight from 1 at the end of the warm-up to ``end`` at the end of the run, changing every step."""

    name: Literal["linear"]
    end: Fraction = 0.0


Schedule = Annotated[
    Constant | Step | Exponential | Plateau | Cosine | CosineRestarts | OneCycle | Linear,
    Field(discriminator="name"),
]
