"""The parts of a recipe: optimizer, mixing, averaging, and what its source printed.

Each part is a frozen pydantic model that refuses unknown keys. A part with several forms is told by its
``name``.
"""

from __future__ import annotations

import math
import re
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, field_validator, model_validator
from pydantic_core import PydanticCustomError

from fastresnet.errors import Conflict


def matching(pattern: str, words: str) -> AfterValidator:
    """Return what lets only texts through that match all of ``pattern``, which messages call ``words``."""

    def check(text: str) -> str:
        if re.fullmatch(pattern, text) is None:
            raise PydanticCustomError("matching", "must be {words}", {"words": words})
        return text

    return AfterValidator(check)


NAME = "[a-z0-9][a-z0-9-]*"
Name = Annotated[str, matching(NAME, "lower case letters, digits and hyphens")]
Fraction = Annotated[float, Field(ge=0, le=1)]
Probability = Annotated[float, Field(ge=0, le=1)]
NonNegative = Annotated[float, Field(ge=0)]
Positive = Annotated[float, Field(gt=0)]
Triple = tuple[float, float, float]
# the last is GELU where the arch has ReLU, and the arch's own where it has another
Activation = Literal["relu", "leaky_relu", "gelu", "silu", "gelu-for-relu"]
Tta = Literal["none", "flip", "flip-shift"]


class Part(BaseModel):
    """A frozen piece of a recipe; unknown keys, NaN and infinities are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


# Optimizers


class Lookahead(Part):
    """Lookahead (Zhang et al. 2019): every ``k`` steps, slow weights move by ``alpha`` to the fast ones."""

    k: int = Field(default=5, ge=1)
    alpha: float = Field(default=0.5, gt=0, le=1)


class OptimizerPart(Part):
    """What every optimizer has.

    Attributes:
        lr: the base learning rate; the schedule multiplies it.
        weight_decay: per unit of lr.
        decay: which parameters decay: ``all``, or ``filters`` (convolution and linear weights only).
        bn_bias_lr_scale: multiplies the lr of BatchNorm biases; their lr x weight_decay stays as it was.
        head_lr_scale: likewise of the last linear layer.
        lookahead: None for none.
    """

    lr: float = Field(gt=0)
    weight_decay: NonNegative = 0.0
    decay: Literal["all", "filters"] = "all"
    bn_bias_lr_scale: Positive = 1.0
    head_lr_scale: Positive = 1.0
    lookahead: Lookahead | None = None


class DecayedPart(OptimizerPart):
    """Decay is coupled (added to the gradient) unless ``decoupled`` (w -= lr * weight_decay * w)."""

    decoupled: bool = False


class Adadelta(DecayedPart):
    name: Literal["adadelta"]
    rho: float = Field(default=0.9, ge=0, lt=1)
    eps: Positive = 1e-6


class Adagrad(DecayedPart):
    name: Literal["adagrad"]
    lr_decay: NonNegative = 0.0
    initial_accumulator_value: NonNegative = 0.0
    eps: Positive = 1e-10


Beta = Annotated[float, Field(ge=0, lt=1)]


class Adam(OptimizerPart):
    """Adam with coupled decay; decoupled is ``adamw``."""

    name: Literal["adam"]
    betas: tuple[Beta, Beta] = (0.9, 0.999)
    eps: Positive = 1e-8


class AdamW(OptimizerPart):
    name: Literal["adamw"]
    betas: tuple[Beta, Beta] = (0.9, 0.999)
    eps: Positive = 1e-8


class Sgd(DecayedPart):
    """SGD, ``sgdn`` with Nesterov's momentum."""

    name: Literal["sgd", "sgdn"]
    momentum: float = Field(default=0.9, ge=0, lt=1)

    @model_validator(mode="after")
    def _nesterov_needs_momentum(self) -> Sgd:
        if self.name == "sgdn" and self.momentum == 0:
            raise Conflict(
                "momentum is 0, and Nesterov's (sgdn) needs one above 0; for none use name = 'sgd'",
                "momentum",
            )
        return self


class Muon(DecayedPart):
    """Muon (Jordan 2024) for convolution filters, SGD with Nesterov's momentum for all else.

    Attributes:
        lr: of the filters, whose update is orthogonal.
        momentum: of the filters.
        ns_steps: Newton-Schulz iterations.
        normalise_filters: keep each filter tensor's norm at sqrt(output channels), as airbench does.
        other_lr, other_momentum: of all other parameters.
    """

    name: Literal["muon"]
    momentum: float = Field(default=0.6, ge=0, lt=1)
    ns_steps: int = Field(default=3, ge=1, le=10)
    normalise_filters: bool = False
    other_lr: float = Field(default=0.1, gt=0)
    other_momentum: float = Field(default=0.85, gt=0, lt=1)


Optimizer = Annotated[Adadelta | Adagrad | Adam | AdamW | Sgd | Muon, Field(discriminator="name")]


# Mixing, loss, averaging, initialisation


class Mix(Part):
    """Mixup or cutmix of each batch with a permutation of itself.

    Attributes:
        name: ``mixup`` (Zhang et al. 2018) or ``cutmix`` (Yun et al. 2019).
        alpha: one lambda a batch from Beta(alpha, alpha).
        block: partners come from the same ``block`` consecutive samples of the global batch, so that ranks
            which hold whole blocks need not exchange images. It divides the batch size; 0 is the whole batch.
    """

    name: Literal["mixup", "cutmix"]
    alpha: float = Field(default=1.0, gt=0, le=100)
    block: int = Field(default=32, ge=0)

    @field_validator("block")
    @classmethod
    def _has_partners(cls, block: int) -> int:
        if block == 1:
            raise PydanticCustomError("block", "must be at least 2, or 0 for the whole batch")
        return block


class Loss(Part):
    """Mean cross-entropy.

    Attributes:
        label_smoothing: share of each label that is spread over all classes.
        keep: share of each batch that is trained on, the images with the highest loss (low-loss filtering, Jordan
            2024, airbench96). A forward pass over the whole batch finds them, in training mode: what it sees enters
            BatchNorm's running statistics as well, a second time for images that are kept. Loss and accuracy of
            training are recorded of that pass, of whole batches.
    """

    label_smoothing: float = Field(default=0.0, ge=0, lt=1)
    keep: float = Field(default=1.0, gt=0, le=1)


class Ema(Part):
    """An exponential moving average of weights and BatchNorm statistics, which is what is evaluated.

    Attributes:
        decay: kept per step.
        every: steps between updates; an update keeps ``decay ** every``.
        ramp: keep no more than (1 + n) / (10 + n) at update n, so that a short run forgets its first weights.
        lookahead: the weights go on from the average, of which update n of N keeps ((n + 1) / N) ** 3 of what it
            else would: airbench's Lookahead (Jordan 2024). Zhang's own is the optimizer's; one recipe has not both.
    """

    decay: float = Field(gt=0, lt=1)
    every: int = Field(default=1, ge=1)
    ramp: bool = True
    lookahead: bool = False

    def keep(self, update: int, num_updates: int) -> float:
        """Return the share of the average that update number ``update`` (from 0) of ``num_updates`` keeps."""
        kept = self.decay**self.every
        if self.ramp:
            kept = min(kept, (1 + update) / (10 + update))
        done = min(1.0, (update + 1) / num_updates)  # a warm-up averages more often than the run does
        return kept * done**3 if self.lookahead else kept


class Whiten(Part):
    """Whitening patterns as the stem's first filters (Page 2019, "How to train your ResNet"; Jordan 2024, airbench).

    The filters are the principal directions of the training images' patches, those of most variance first, each
    scaled to unit variance; then their negatives, as many as the stem is wide. Filters left over keep what was drawn.
    A run that starts from another's weights keeps those.

    Attributes:
        num: training images whose patches are looked at, drawn by the run's seed; all where there are fewer.
        eps: added to a direction's variance before it is divided by.
        frozen: the stem's filters do not learn, those left over included.
    """

    num: int = Field(default=5000, ge=1)
    eps: Positive = 5e-4
    frozen: bool = True


class Init(Part):
    """How weights start; torch's own way where nothing is said.

    Attributes:
        zero_gamma: the last BatchNorm of each residual branch starts at 0, else at 1; not for plain blocks.
        dirac: the first min(in, out) filters of each spatial convolution inside stages start as identities (as in
            airbench); not those of stem and shortcuts.
        head_scale: multiplies the last linear layer's first weights and biases. With ``optimizer.head_lr_scale`` its
            square it has the effect of logits multiplied by it (as in airbench, by 1/9).
        whiten: None leaves the stem as it is drawn.
    """

    zero_gamma: bool = False
    dirac: bool = False
    head_scale: Positive = 1.0
    whiten: Whiten | None = None


class Norm(Part):
    """The network's BatchNorms.

    Attributes:
        momentum: share of each batch in the running statistics, by which images are evaluated.
        train_scale: whether scales learn; else they stay as they start (as in Jordan's airbench, 2024), and biases
            alone learn.
    """

    momentum: float = Field(default=0.1, gt=0, le=1)
    train_scale: bool = True


class Normalise(Part):
    """Per channel mean and standard deviation of images in [0, 1]."""

    mean: Triple
    std: tuple[Positive, Positive, Positive]


class Dropout(Part):
    """Dropout probabilities: before the head, inside blocks, after stages."""

    head: float = Field(default=0.0, ge=0, lt=1)
    block: float = Field(default=0.0, ge=0, lt=1)
    stage: float = Field(default=0.0, ge=0, lt=1)


class Val(Part):
    """A validation split: ``num`` training samples held out, drawn by ``seed``."""

    num: int = Field(ge=1)
    seed: int = Field(default=0, ge=0, lt=2**63)


class OpenChoice(Part):
    """Something the source leaves open: ``what``, the value ``chosen``, and ``why``."""

    what: str
    chosen: str
    why: str


class Reported(Part):
    """What the source printed.

    Attributes:
        source: which report, and where in it.
        printed: what it printed about the training, in words.
        accuracy: the printed accuracy in [0, 1].
        accuracy_of: what that accuracy is of, in words.
        train_accuracy: the printed training accuracy in [0, 1].
        params: the printed number of parameters.
        erratum: what is wrong in what was printed.
        began_from: the recipe of the run whose best weights the source began with, as ``--init-from`` does; None
            for new weights.
    """

    source: str
    printed: str = ""
    accuracy: Fraction | None = None
    accuracy_of: str = ""
    train_accuracy: Fraction | None = None
    params: int | None = Field(default=None, ge=1)
    erratum: str | None = None
    began_from: Name | None = None


def ordered(low_high: tuple[float, float], key: str) -> None:
    """Raise Conflict unless the range ascends."""
    low, high = low_high
    if not low <= high or not math.isfinite(high):
        raise Conflict(f"{key} is [{low}, {high}]; the first must not exceed the second", key)
