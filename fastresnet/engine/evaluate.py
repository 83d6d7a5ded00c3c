"""Evaluation, exact over samples, in eval mode."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional

from fastresnet.augment import Augment
from fastresnet.loaders.protocol import Loader

EVAL_BATCH = 256  # fixed, so that an evaluation's last bits do not hang on the recipe's batch size


@dataclass(frozen=True, kw_only=True)
class EvalResult:
    """Accuracy in [0, 1] and mean cross-entropy over every sample.

    Attributes:
        loss, accuracy: of the images as they are.
        accuracy_tta: of the mean of the probabilities of each image and its mirror; None when not asked for.
        num_samples: how many images.
    """

    loss: float
    accuracy: float
    accuracy_tta: float | None
    num_samples: int


@torch.inference_mode()
def evaluate(
    model: nn.Module,
    loader: Loader,
    augment: Augment,
    amp_dtype: torch.dtype,
    *,
    tta: bool = False,
    between_batches: Callable[[], None] = lambda: None,
    on_logits: Callable[[torch.Tensor, torch.Tensor, torch.Tensor], None] | None = None,
) -> EvalResult:
    """Evaluate ``model`` on all of ``loader``'s samples; the model is left in training mode if it was.

    Args:
        between_batches: called after each batch; what it raises ends the evaluation.
        on_logits: given each batch's float32 logits [B, num_classes], labels and indices, which a loader may
            overwrite afterwards.
    """
    training = model.training
    model.eval()
    sums: torch.Tensor | None = None
    num_samples = 0
    try:
        loader.set_epoch(0)
        for images, labels, indices in loader:
            device_type = images.device.type
            inputs = augment(images, indices, amp_dtype, train=False)
            with torch.autocast(device_type, amp_dtype, enabled=amp_dtype != torch.float32):
                logits = model(inputs)
                mirrored = model(inputs.flip(3)) if tta else logits
            logits, mirrored = logits.float(), mirrored.float()
            both = logits.softmax(1) + mirrored.softmax(1)
            batch = torch.stack(
                (
                    functional.cross_entropy(logits, labels, reduction="sum").double(),
                    (logits.argmax(1) == labels).sum().double(),
                    (both.argmax(1) == labels).sum().double(),
                )
            )
            sums = batch if sums is None else sums + batch
            num_samples += len(labels)
            if on_logits is not None:
                on_logits(logits, labels, indices)
            between_batches()
    finally:
        model.train(training)
    assert sums is not None, "a split holds at least one sample"
    loss, correct, correct_tta = (sums / num_samples).tolist()
    return EvalResult(
        loss=loss, accuracy=correct, accuracy_tta=correct_tta if tta else None, num_samples=num_samples
    )
