"""What the network gets to see of some training images: before and after augmentation, by the run's own draws."""

from __future__ import annotations

import dataclasses
import itertools
from dataclasses import dataclass

import numpy as np
import torch
from markupsafe import Markup

from fastresnet.assembly import splits_of, train_loader_spec
from fastresnet.augment import build_augment
from fastresnet.augment_ops import shrink
from fastresnet.loaders.dataset import Dataset
from fastresnet.loaders.registry import open_loader
from fastresnet.mix import Mix
from fastresnet.report.images import Pixels, data_uri, grid_png
from fastresnet.report.records import RunRecord
from fastresnet.words import counted

NUM_IMAGES = 8
NUM_EPOCHS = 6


@dataclass(frozen=True, kw_only=True)
class AugmentedRow:
    """A training image.

    Attributes:
        class_name, index: what and which it is.
        before: as it is in the data set.
        after: as the network sees it in the first epochs.
    """

    class_name: str
    index: int
    before: Markup
    after: tuple[Markup, ...]


@dataclass(frozen=True, kw_only=True)
class AugmentationGrid:
    """The augmentation section.

    Attributes:
        steps: what is done, in order, in words.
        epochs: headings of the columns after the first.
        rows: the images.
        png: the grid.
        note: what the grid leaves out or adds; may be empty.
    """

    steps: tuple[str, ...]
    epochs: tuple[str, ...]
    rows: tuple[AugmentedRow, ...]
    png: bytes
    note: str


def augmentation_grid(record: RunRecord, dataset: Dataset) -> AugmentationGrid:
    """Return training images of a run as they are, and as its first epochs show them to the network.

    Crop, flip and every drawn parameter are the run's own, being functions of (seed, epoch, sample). Mixup and
    cutmix take their partners from the batch, which here is these images.
    """
    recipe, config = record.recipe, record.config
    train = splits_of(dataset, recipe, config)["train"]
    # Spread over the split, whose order may be by class.
    places = np.linspace(0, len(train.members) - 1, min(NUM_IMAGES, len(train.members))).round().astype(int)
    members = train.members[np.unique(places)]
    spec = dataclasses.replace(
        train_loader_spec(recipe, config), batch_size=len(members), shuffle=False, drop_last=False
    )
    augment = build_augment(recipe, dataset.mean, dataset.std, dataset.image_size)
    mix = Mix(recipe.mix, seed=config.seed, batch_size=recipe.batch_size) if recipe.mix else None
    sizes = recipe.image_sizes(dataset.image_size)
    loader = open_loader("numba", dataclasses.replace(train, members=members), spec, "cpu")
    epochs: list[list[Pixels]] = []
    headings = []
    try:
        for epoch in range(min(NUM_EPOCHS, recipe.epochs)):
            augment.begin_epoch(config.seed, epoch, members, "cpu")
            loader.set_epoch(epoch)
            (batch,) = loader
            seen = augment(batch.images, batch.indices, torch.float32, train=True)
            heading = f"epoch {epoch + 1}"
            if mix is not None:
                seen, targets = mix.apply(seen, batch.labels, epoch, 0)
                heading += f", {float(targets.lam):.0%} own"
            size = sizes[epoch]
            if size != dataset.image_size:
                seen = shrink(seen, size)
                heading += f", {size}x{size}"
            pixels = (augment.normalise.inverse(seen) * 255).round().clamp(0, 255)
            epochs.append(list(pixels.to(torch.uint8).permute(0, 2, 3, 1).numpy()))
            headings.append(heading)
    finally:
        loader.close()
    rows = [
        AugmentedRow(
            class_name=dataset.class_names[train.labels[index]],
            index=int(index),
            before=data_uri(train.images[index]),
            after=tuple(data_uri(images[row]) for images in epochs),
        )
        for row, index in enumerate(members)
    ]
    images = [
        pixels
        for row, index in enumerate(members)
        for pixels in (train.images[index], *(e[row] for e in epochs))
    ]
    below = [heading.replace(", ", "\n") for heading in headings]
    texts = [text for row in rows for text in (row.class_name, *below)]
    return AugmentationGrid(
        steps=tuple(_steps(record)),
        epochs=tuple(headings),
        rows=tuple(rows),
        png=grid_png(
            f"Training images of {record.on}, before and after augmentation", images, texts, 1 + len(epochs)
        ),
        note=f"{recipe.mix.name.capitalize()} mixes these images with one another here."
        if recipe.mix
        else "",
    )


def _steps(record: RunRecord) -> list[str]:
    """Return the recipe's augmentations in words, in order."""
    part, recipe = record.recipe.augment, record.recipe
    steps = []
    if part.crop:
        steps.append(f"random crop after {part.crop.padding} pixels of {part.crop.mode} padding")
    if part.flip != "none":
        when = "with probability one half" if part.flip == "random" else "every other epoch"
        steps.append(f"flip left to right {when}")
    for op in part.ops:
        values = ", ".join(f"{key} {_text(value)}" for key, value in op.model_dump(exclude={"name"}).items())
        steps.append(f"{op.name.replace('-', ' ')}{f' ({values})' if values else ''}")
    if recipe.mix:
        steps.append(f"{recipe.mix.name} with Beta({recipe.mix.alpha:g}, {recipe.mix.alpha:g})")
    for size, epochs in itertools.groupby(recipe.image_sizes(record.dataset["image_size"])):
        if size != record.dataset["image_size"]:
            steps.append(f"resize to {size}x{size} for {counted(len(list(epochs)), 'epoch')}")
    return steps


def _text(value: object) -> str:
    if isinstance(value, tuple | list):
        return f"[{', '.join(map(_text, value))}]"
    return f"{value:g}" if isinstance(value, int | float) and not isinstance(value, bool) else str(value)
