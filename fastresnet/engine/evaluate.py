"""Evaluation, exact over samples, in eval mode."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import nn
from torch.nn import functional

from fastresnet.augment import Augment
from fastresnet.engine.distributed import ALONE, Ranks
from fastresnet.engine.graphs import Capture, Replays
from fastresnet.engine.machine import autocast
from fastresnet.loaders.protocol import Loader
from fastresnet.recipe_parts import Tta

EVAL_BATCH = 256  # fixed, so that an evaluation's last bits do not hang on the recipe's batch size
NO_LABEL = -100  # of images that fill a batch up; cross_entropy's own word for a sample that does not count


@dataclass(frozen=True, kw_only=True)
class EvalResult:
    """Accuracy in [0, 1] and mean cross-entropy over every sample.

    Attributes:
        loss, accuracy: of the images as they are.
        accuracy_tta: with TTA, as ``Recipe.tta`` has it; None when not asked for.
        num_samples: how many images.
    """

    loss: float
    accuracy: float
    accuracy_tta: float | None
    num_samples: int


class Scores(NamedTuple):
    """What a batch scores.

    Fields:
        sums: float64 [3]: cross-entropy, right answers, right answers with TTA (as without, if not asked for).
        logits: float32 [B, num_classes].
    """

    sums: torch.Tensor
    logits: torch.Tensor


class Scorer:
    """Scores batches by a model that stays the same module.

    Compiled or captured it takes batches of EVAL_BATCH images: the last one is filled up with images that count for
    nothing, so that every batch has the same shape. What it returns is then overwritten by the next call.

    Args:
        model: what is evaluated; its weights may change in place.
        augment: normalises.
        amp_dtype: dtype of activations; float32 is without autocast.
    """

    def __init__(self, model: nn.Module, augment: Augment, amp_dtype: torch.dtype) -> None:
        self.model = model
        self.augment = augment
        self.amp_dtype = amp_dtype
        self.fills_up = False
        self._forward: Callable[..., torch.Tensor] = self.forward_eager
        self._score_or_replay: Callable[..., Scores] = self._score

    def compile(self, backend: str = "inductor") -> None:
        """Compile the forward pass from now on."""
        self._forward = torch.compile(self.forward_eager, dynamic=False, backend=backend)
        self.fills_up = True

    def use_graphs(self, capture: Capture) -> None:
        """Capture each kind of call, and replay it from then on."""
        self._score_or_replay = Replays(self._score, capture)
        self.fills_up = True

    # Not inference_mode: its tensors are of another kind than a loader's, and what is compiled is compiled for each.
    @torch.no_grad()
    def __call__(self, images: torch.Tensor, labels: torch.Tensor, *, tta: Tta) -> Scores:
        """Score a batch: uint8 [B, 3, H, W] channels-last, int64 [B], B at most EVAL_BATCH.

        The caller has put the model into eval mode.
        """
        num = len(labels)
        if self.fills_up and num < EVAL_BATCH:
            missing = EVAL_BATCH - num
            filler = images[:1].expand(missing, -1, -1, -1)
            images = torch.cat((images, filler)).contiguous(memory_format=torch.channels_last)
            labels = torch.cat((labels, labels.new_full((missing,), NO_LABEL)))
        found = self._score_or_replay(images, labels, tta=tta)
        return Scores(found.sums, found.logits[:num])

    def _score(self, images: torch.Tensor, labels: torch.Tensor, *, tta: Tta) -> Scores:
        logits = self._forward(self.model, images)
        probabilities = logits.softmax(1)
        for view, weight in _other_views(images, tta):
            view = view.contiguous(memory_format=torch.channels_last)
            probabilities = probabilities + weight * self._forward(self.model, view).softmax(1)
        loss = functional.cross_entropy(logits, labels, reduction="sum", ignore_index=NO_LABEL)
        sums = (loss, (logits.argmax(1) == labels).sum(), (probabilities.argmax(1) == labels).sum())
        return Scores(torch.stack([part.double() for part in sums]), logits)

    def forward_eager(self, model: nn.Module, images: torch.Tensor) -> torch.Tensor:
        """Return the float32 logits [B, num_classes] of uint8 images [B, 3, H, W]."""
        inputs = self.augment(images, None, self.amp_dtype, train=False)
        with autocast(images.device.type, self.amp_dtype):
            return model(inputs).float()


def _other_views(images: torch.Tensor, tta: Tta) -> Iterator[tuple[torch.Tensor, float]]:
    """Yield what TTA looks at beside the images, each with its weight where the images' own is 1."""
    if tta == "none":
        return
    yield images.flip(3), 1.0
    if tta == "flip-shift":
        for shifted in _shifted_by_a_pixel(images):
            yield shifted, 0.5
            yield shifted.flip(3), 0.5


def _shifted_by_a_pixel(images: torch.Tensor) -> Iterator[torch.Tensor]:
    """Yield the images moved down right, and up left; what moves in is the edge reflected, as in a crop's padding."""
    down = torch.cat((images[:, :, 1:2], images[:, :, :-1]), 2)
    yield torch.cat((down[:, :, :, 1:2], down[:, :, :, :-1]), 3)
    up = torch.cat((images[:, :, 1:], images[:, :, -2:-1]), 2)
    yield torch.cat((up[:, :, :, 1:], up[:, :, :, -2:-1]), 3)


def evaluate(
    scorer: Scorer,
    loader: Loader,
    *,
    tta: Tta = "none",
    ranks: Ranks = ALONE,
    between_batches: Callable[[], None] = lambda: None,
    on_logits: Callable[[torch.Tensor, torch.Tensor, torch.Tensor], None] | None = None,
) -> EvalResult:
    """Evaluate the scorer's model on all of ``loader``'s samples; it is left in training mode if it was.

    Args:
        ranks: each has its share of the samples from its ``loader``; the result is of all of them.
        between_batches: called after each batch; what it raises ends the evaluation.
        on_logits: given each batch's float32 logits [B, num_classes], labels and indices, all of which may be
            overwritten afterwards.
    """
    training = scorer.model.training
    scorer.model.eval()
    totals = torch.zeros(0)
    try:
        loader.set_epoch(0)
        for images, labels, indices in loader:
            if not len(totals):
                totals = torch.zeros(4, dtype=torch.float64, device=labels.device)
            if len(labels):  # else the other ranks have all of the last batch
                scores = scorer(images, labels, tta=tta)
                totals[:3] += scores.sums
                totals[3] += len(labels)
                if on_logits is not None:
                    on_logits(scores.logits, labels, indices)
            between_batches()
    finally:
        scorer.model.train(training)
    assert len(totals), "a split holds at least one sample"
    ranks.add(totals)
    loss, correct, correct_tta, num_samples = totals.tolist()
    return EvalResult(
        loss=loss / num_samples,
        accuracy=correct / num_samples,
        accuracy_tta=None if tta == "none" else correct_tta / num_samples,
        num_samples=int(num_samples),
    )
