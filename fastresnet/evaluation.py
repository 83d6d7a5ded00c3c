"""Evaluating a run's weights, on its own data set or another."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import BaseModel
from torch.nn import functional

from fastresnet.assembly import splits_of
from fastresnet.augment import build_augment
from fastresnet.engine import machine
from fastresnet.engine.evaluate import EVAL_BATCH, Scorer, evaluate
from fastresnet.errors import UserError
from fastresnet.folder import RunFolder, find_run
from fastresnet.inference import load_weights, split_reference
from fastresnet.loaders.dataset import Dataset, open_dataset
from fastresnet.loaders.protocol import LoaderSpec, Split
from fastresnet.loaders.registry import default_backend, open_loader
from fastresnet.loaders.sources import Progress
from fastresnet.recipe import Recipe
from fastresnet.recipe_parts import Tta
from fastresnet.resnet import build_model
from fastresnet.run import RunConfig


class Evaluation(BaseModel):
    """Accuracy in [0, 1] and mean cross-entropy of a run's weights over every sample of a split.

    Attributes:
        run, weights: which run, and its ``last`` or ``best`` weights.
        dataset, split: what it was evaluated on; ``is_builtin`` marks drawn images.
        num_samples: how many images.
        accuracy, loss: without TTA.
        tta: what it was evaluated with too: ``none`` where that was not asked for.
        accuracy_tta: with that; None without.
    """

    run: str
    weights: str
    dataset: str
    is_builtin: bool
    split: str
    num_samples: int
    accuracy: float
    loss: float
    tta: Tta
    accuracy_tta: float | None


@dataclass(frozen=True, kw_only=True)
class Outcomes:
    """What a run's weights say of every sample of a split; the arrays are in the split's order.

    Attributes:
        evaluation: of all of them.
        dataset, split: where the images are.
        indices, labels: int64 [n].
        predictions: int64 [n], the likeliest class.
        losses: float32 [n], cross-entropy.
        probabilities: float32 [n, num_classes].
    """

    evaluation: Evaluation
    dataset: Dataset
    split: Split
    indices: NDArray[np.int64]
    labels: NDArray[np.int64]
    predictions: NDArray[np.int64]
    losses: NDArray[np.float32]
    probabilities: NDArray[np.float32]


def evaluate_run(
    reference: str,
    *,
    runs_dir: Path | str = "runs",
    data: str | None = None,
    split: str = "test",
    tta: bool = False,
    device: str = "auto",
    progress: Progress | None = None,
) -> Evaluation:
    """Evaluate a run (path, name, id or ``last``; ``:best`` for its best weights) with the precision it was trained in.

    Args:
        tta: evaluate with TTA too: the recipe's, ``flip`` where that has none.

    Raises:
        UserError: no such run, data set or split; weights, classes or image size that do not fit.
    """
    return _evaluate(reference, Path(runs_dir), data, split, tta, device, progress, None)[0]


def evaluate_samples(
    reference: str,
    *,
    runs_dir: Path | str = "runs",
    data: str | None = None,
    split: str = "test",
    device: str = "auto",
    progress: Progress | None = None,
) -> Outcomes:
    """Evaluate as :func:`evaluate_run` does, and return what the network says of each sample."""
    seen: list[tuple[torch.Tensor, ...]] = []

    def keep(logits: torch.Tensor, labels: torch.Tensor, indices: torch.Tensor) -> None:
        losses = functional.cross_entropy(logits, labels, reduction="none")
        seen.append((indices.clone(), labels.clone(), logits.argmax(1), losses, logits.softmax(1)))

    runs_dir = Path(runs_dir)
    evaluation, dataset, samples = _evaluate(reference, runs_dir, data, split, False, device, progress, keep)
    indices, labels, predictions, losses, probabilities = (
        torch.cat(part).cpu().numpy() for part in zip(*seen, strict=True)
    )
    return Outcomes(
        evaluation=evaluation,
        dataset=dataset,
        split=samples,
        indices=indices,
        labels=labels,
        predictions=predictions,
        losses=losses,
        probabilities=probabilities,
    )


def _evaluate(
    reference: str,
    runs_dir: Path,
    data: str | None,
    split: str,
    tta: bool,
    device: str,
    progress: Progress | None,
    on_logits: Callable[[torch.Tensor, torch.Tensor, torch.Tensor], None] | None,
) -> tuple[Evaluation, Dataset, Split]:
    content = RunFolder(find_run(split_reference(reference)[0], runs_dir)).read_config()
    recipe, config = Recipe.from_json_dict(content["recipe"]), RunConfig.parse(**content["config"])
    weights = load_weights(reference, runs_dir)
    chosen = machine.resolve_device(device)
    amp = config.amp if chosen.type == torch.device(config.device).type else "auto"
    amp_dtype = machine.AMP_DTYPES[machine.resolve_amp(amp, chosen)]
    trained = content["dataset"]
    dataset = open_dataset(data or config.data, image_size=config.image_size, progress=progress)
    if dataset.image_size != trained["image_size"]:
        dataset = open_dataset(data or config.data, image_size=trained["image_size"], progress=progress)
    if list(dataset.class_names) != trained["class_names"]:
        raise UserError(
            f"{dataset.name} has the classes {', '.join(dataset.class_names)}, and the run was trained on "
            f"{', '.join(trained['class_names'])}; give --data with the same classes"
        )
    if data is None and dataset.digest != trained["digest"]:
        raise UserError(
            f"{config.data or 'CIFAR-10'} has changed since the run was trained on it; name what to evaluate "
            "on with --data"
        )
    splits = {"test": dataset.test}
    if split != "test":  # other data may be too small for this run's other splits
        splits = splits_of(dataset, recipe, config)
    if split not in splits:
        raise UserError(f"this run has no {split!r} split; it has {', '.join(splits)}")
    model = build_model(recipe.arch_spec(), dataset.num_classes, dataset.image_size)
    model.load_state_dict(weights.for_model(model))
    model = model.to(chosen, memory_format=torch.channels_last)  # type: ignore[call-overload]
    augment = build_augment(recipe, trained["mean"], trained["std"], dataset.image_size).to(chosen)
    spec = LoaderSpec(batch_size=EVAL_BATCH, shuffle=False)
    averaged = recipe.with_tta().tta if tta else "none"
    loader = open_loader(default_backend([splits[split]], chosen), splits[split], spec, chosen)
    try:
        found = evaluate(Scorer(model, augment, amp_dtype), loader, tta=averaged, on_logits=on_logits)
    finally:
        loader.close()
    evaluation = Evaluation(
        run=weights.run,
        weights=weights.which,
        dataset=dataset.name,
        is_builtin=dataset.is_builtin,
        split=split,
        num_samples=found.num_samples,
        accuracy=found.accuracy,
        loss=found.loss,
        tta=averaged,
        accuracy_tta=found.accuracy_tta,
    )
    return evaluation, dataset, splits[split]
