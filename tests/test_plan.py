"""The epoch plan keeps the order contract's promises."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastresnet.errors import UserError
from fastresnet.loaders.plan import num_steps, plan_epoch
from fastresnet.loaders.protocol import LoaderSpec, Split


def split_of(num_images: int, every: int = 1) -> Split:
    images = np.zeros((num_images, 2, 2, 3), np.uint8)
    return Split(images=images, labels=np.arange(num_images), members=np.arange(0, num_images, every))


SPLITS = st.builds(split_of, st.integers(1, 200), st.integers(1, 3))
SPECS = st.builds(
    LoaderSpec,
    batch_size=st.sampled_from((1, 6, 12, 48)),
    seed=st.integers(0, 2**40),
    shuffle=st.booleans(),
    drop_last=st.booleans(),
    padding=st.integers(0, 5),
    flip=st.sampled_from(("none", "random", "alternating")),
)
EPOCHS = st.integers(0, 300)


@given(SPLITS, SPECS, EPOCHS)
def test_every_member_once(split: Split, spec: LoaderSpec, epoch: int) -> None:
    plan = plan_epoch(split, spec, epoch)
    used = plan.indices.tolist()
    assert len(set(used)) == len(used)
    assert set(used) <= set(split.members.tolist())
    left_out = len(split.members) - len(used)
    assert left_out == (len(split.members) % spec.batch_size if spec.drop_last else 0)
    assert len(plan.bounds) - 1 == num_steps(len(split.members), spec)
    if not spec.shuffle:
        assert used == split.members[: len(used)].tolist()


@given(SPLITS, SPECS, EPOCHS)
def test_crops_and_flips_are_in_range(split: Split, spec: LoaderSpec, epoch: int) -> None:
    plan = plan_epoch(split, spec, epoch)
    for crop in (plan.crop_y, plan.crop_x):
        assert len(crop) == len(plan.indices)
        assert np.all((crop >= 0) & (crop <= 2 * spec.padding))
    assert plan.flips.dtype == np.bool_
    assert spec.flip != "none" or not plan.flips.any()


@given(SPLITS, SPECS, EPOCHS, st.sampled_from((2, 3, 6)))
def test_ranks_slices_make_the_batch(split: Split, spec: LoaderSpec, epoch: int, world_size: int) -> None:
    spec = replace(spec, batch_size=spec.batch_size * world_size)
    whole = plan_epoch(split, spec, epoch)
    plans = [
        plan_epoch(split, replace(spec, rank=rank, world_size=world_size), epoch)
        for rank in range(world_size)
    ]
    for field in ("indices", "crop_y", "crop_x", "flips"):
        for step in range(len(whole.bounds) - 1):
            parts = [getattr(plan, field)[plan.bounds[step] : plan.bounds[step + 1]] for plan in plans]
            expected = getattr(whole, field)[whole.bounds[step] : whole.bounds[step + 1]]
            assert np.array_equal(np.concatenate(parts), expected)
            sizes = [len(part) for part in parts]
            assert max(sizes) - min(sizes) <= 1


def test_alternating_flips_each_sample_every_other_epoch() -> None:
    split, spec = split_of(100), LoaderSpec(batch_size=10, flip="alternating")
    flips = []
    for epoch in range(3):
        plan = plan_epoch(split, spec, epoch)
        flips.append(plan.flips[np.argsort(plan.indices)])
    assert np.array_equal(flips[0], ~flips[1])
    assert np.array_equal(flips[0], flips[2])
    assert 0 < flips[0].sum() < 100


def test_a_samples_crop_does_not_depend_on_its_company() -> None:
    spec = LoaderSpec(batch_size=8, padding=4, flip="random")
    whole = plan_epoch(split_of(99), spec, 3)
    third = plan_epoch(split_of(99, every=3), spec, 3)
    by_index = {index: row for row, index in enumerate(whole.indices.tolist())}
    rows = [by_index[index] for index in third.indices.tolist()]
    for field in ("crop_y", "crop_x", "flips"):
        assert np.array_equal(getattr(third, field), getattr(whole, field)[rows])


def test_epochs_and_seeds_differ() -> None:
    split, spec = split_of(50), LoaderSpec(batch_size=8)
    orders = {
        tuple(plan_epoch(split, replace(spec, seed=seed), epoch).indices.tolist())
        for seed in range(3)
        for epoch in range(3)
    }
    assert len(orders) == 9


@pytest.mark.parametrize(("batch_size", "world_size"), [(0, 1), (10, 4)])
def test_impossible_batches_are_refused(batch_size: int, world_size: int) -> None:
    with pytest.raises(UserError, match="batch size"):
        LoaderSpec(batch_size=batch_size, world_size=world_size)
