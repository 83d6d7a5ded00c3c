"""Crop and flip, which the loaders do, against torchvision: image by image, exactly, and in distribution."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from fastresnet.loaders.plan import plan_epoch
from fastresnet.loaders.protocol import LoaderSpec, Split
from fastresnet.loaders.registry import open_loader
from fastresnet.torchvision_import import import_torchvision

import_torchvision()
from torchvision.transforms import v2  # noqa: E402
from torchvision.transforms.v2 import functional as tv  # noqa: E402

SIZE, NUM = 32, 64


@pytest.fixture(scope="module")
def split() -> Split:
    pixels = np.random.default_rng(0).integers(0, 256, (NUM, SIZE, SIZE, 3), dtype=np.uint8)
    return Split(images=pixels, labels=np.zeros(NUM, np.int64), members=np.arange(NUM))


@pytest.mark.parametrize(("mode", "theirs"), [("zero", "constant"), ("reflect", "reflect")])
def test_crop_and_flip_are_torchvisions(split: Split, mode: str, theirs: str) -> None:
    """The pixels of ``pad``, ``crop`` and ``horizontal_flip`` for the plan's parameters, exactly."""
    spec = LoaderSpec(batch_size=NUM, seed=5, padding=4, padding_mode=mode, flip="random")  # type: ignore[arg-type]
    plan = plan_epoch(split, spec, epoch=2)
    loader = open_loader("numba", split, spec, "cpu")
    loader.set_epoch(2)
    (batch,) = loader
    assert batch.indices.tolist() == plan.indices.tolist() and 0 < plan.flips.sum() < NUM
    for row, index in enumerate(plan.indices):
        image = torch.from_numpy(split.images[index]).permute(2, 0, 1)
        padded = tv.pad(image, [4] * 4, padding_mode=theirs)
        wanted = tv.crop(padded, int(plan.crop_y[row]), int(plan.crop_x[row]), SIZE, SIZE)
        assert torch.equal(batch.images[row], tv.horizontal_flip(wanted) if plan.flips[row] else wanted)
    loader.close()


def test_crop_and_flip_are_distributed_as_torchvisions() -> None:
    """Corners are uniform over the same places and independent; half of the images are flipped."""
    num = 20_000
    images = np.zeros((1, SIZE, SIZE, 3), np.uint8)
    members = np.arange(num)
    split = Split(images=np.broadcast_to(images, (num, SIZE, SIZE, 3)), labels=members, members=members)
    plan = plan_epoch(split, LoaderSpec(batch_size=128, seed=3, padding=4, flip="random"), epoch=1)
    torch.manual_seed(0)
    crop, image = v2.RandomCrop(SIZE, padding=4), torch.zeros(3, SIZE, SIZE)
    drawn = [crop.make_params([image]) for _ in range(2000)]
    for ours, key in ((plan.crop_y, "top"), (plan.crop_x, "left")):
        places, counts = np.unique(ours, return_counts=True)
        assert set(places) == {params[key] for params in drawn}
        assert ((counts - num / 9) ** 2 / (num / 9)).sum() < 26.1  # 8 degrees of freedom, one in a thousand
    assert abs(plan.flips.mean() - v2.RandomHorizontalFlip().p) < 4 * np.sqrt(0.25 / num)
    together = np.corrcoef(np.stack([plan.crop_y, plan.crop_x, plan.flips]))
    assert np.abs(together - np.eye(3)).max() < 5 / np.sqrt(num)
