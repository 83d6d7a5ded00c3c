"""The loss, and mixing: what each step mixes, on any number of ranks."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fastresnet.errors import UserError
from fastresnet.losses import Targets, build_loss
from fastresnet.mix import Mix, beta
from fastresnet.recipe_parts import Loss
from fastresnet.recipe_parts import Mix as MixPart

MIXUP, CUTMIX = MixPart(name="mixup", block=8), MixPart(name="cutmix", block=8)
WHOLE = MixPart(name="mixup", block=0)


def batch(n: int, dtype: torch.dtype = torch.float32) -> tuple[torch.Tensor, torch.Tensor]:
    images = torch.rand(n, 3, 16, 16, generator=torch.Generator().manual_seed(n))
    return images.to(dtype).contiguous(memory_format=torch.channels_last), torch.arange(n)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_loss_is_cross_entropy_in_float32(smoothing: float) -> None:
    logits = torch.randn(7, 10, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(7)
    loss = build_loss(Loss(label_smoothing=smoothing))
    log_probs = logits.double().log_softmax(1)
    wanted = (1 - smoothing) * torch.eye(10)[labels] + smoothing / 10
    assert loss(logits, labels).item() == pytest.approx(-(wanted * log_probs).sum(1).mean().item(), rel=1e-6)
    half = logits.bfloat16()
    assert loss(half, labels).dtype == torch.float32
    assert loss(half, labels) == loss(half.float(), labels)


def test_mixed_loss_weighs_both_labels() -> None:
    logits = torch.randn(4, 10, generator=torch.Generator().manual_seed(1))
    a, b = torch.tensor([0, 1, 2, 3]), torch.tensor([3, 3, 1, 0])
    loss = build_loss(Loss())
    mixed = loss(logits, Targets(a, b, torch.tensor(0.3)))
    assert mixed.item() == pytest.approx(0.3 * loss(logits, a).item() + 0.7 * loss(logits, b).item())
    assert loss(logits, Targets(a, a, torch.tensor(0.3))).item() == pytest.approx(loss(logits, a).item())


@pytest.mark.parametrize("part", [MIXUP, CUTMIX], ids=["mixup", "cutmix"])
@given(seed=st.integers(0, 2**63 - 1), epoch=st.integers(0, 10**6), step=st.integers(0, 10**6))
def test_ranks_mix_as_one_process_does(part: MixPart, seed: int, epoch: int, step: int) -> None:
    images, labels = batch(32)
    whole = Mix(part, seed=seed, batch_size=32)
    wanted, targets = whole.apply(images, labels, epoch, step)
    for world_size in (2, 4):
        local = 32 // world_size
        for rank in range(world_size):
            mix = Mix(part, seed=seed, batch_size=32, drop_last=True, rank=rank, world_size=world_size)
            mine = slice(rank * local, (rank + 1) * local)
            got, got_targets = mix.apply(images[mine], labels[mine], epoch, step)
            assert torch.equal(got, wanted[mine])
            assert torch.equal(got_targets.labels_b, targets.labels_b[mine])
            assert got_targets.lam == targets.lam


@pytest.mark.parametrize("n", [32, 27, 3, 1])
def test_partners_are_a_permutation_of_each_block(n: int) -> None:
    mix = Mix(MIXUP, seed=5, batch_size=32)
    seen = [mix.draw(2, step, n, 16, 16).partners for step in range(20)]
    for partners in seen:
        for start in range(0, n, 8):
            block = partners[start : start + 8]
            assert sorted(block) == list(range(start, min(start + 8, n)))
    if n > 3:
        assert len({tuple(partners) for partners in seen}) == 20


def test_a_draw_depends_on_seed_epoch_and_step_alone() -> None:
    draws = {
        (seed, epoch, step): Mix(CUTMIX, seed=seed, batch_size=32).draw(epoch, step, 32, 16, 16)
        for seed in range(3)
        for epoch in range(3)
        for step in range(3)
    }
    again = Mix(CUTMIX, seed=1, batch_size=32)
    for step in (2, 0, 1):
        drawn, wanted = again.draw(2, step, 32, 16, 16), draws[1, 2, step]
        assert drawn.lam == wanted.lam
        assert drawn.box == wanted.box
        assert np.array_equal(drawn.partners, wanted.partners)
    assert len({tuple(drawn.partners) for drawn in draws.values()}) == 27
    assert len({beta(1.0, 0, i) for i in range(27)}) == 27


def test_mixup_is_zhangs_formula_in_the_images_dtype_and_format() -> None:
    for dtype in (torch.float32, torch.bfloat16):
        images, labels = batch(16, dtype)
        mix = Mix(MIXUP, seed=9, batch_size=16)
        drawn = mix.draw(1, 4, 16, 16, 16)
        mixed, targets = mix.apply(images, labels, 1, 4)
        wanted = drawn.lam * images.double() + (1 - drawn.lam) * images.double()[drawn.partners]
        tolerance = 1e-6 if dtype == torch.float32 else 2**-8  # half a step of bfloat16 below 1
        assert (mixed.double() - wanted).abs().max() <= tolerance
        assert mixed.dtype == dtype
        assert mixed.is_contiguous(memory_format=torch.channels_last)
        assert torch.equal(targets.labels_a, labels)
        assert torch.equal(targets.labels_b, labels[torch.from_numpy(drawn.partners)])
        assert targets.lam.item() == pytest.approx(drawn.lam)


def test_cutmix_takes_one_box_and_weighs_labels_by_what_is_left() -> None:
    images, labels = batch(16)
    mix = Mix(CUTMIX, seed=3, batch_size=16)
    areas = set()
    for step in range(30):
        drawn = mix.draw(0, step, 16, 16, 16)
        mixed, targets = mix.apply(images, labels, 0, step)
        y0, y1, x0, x1 = drawn.box
        wanted = images.clone()
        wanted[:, :, y0:y1, x0:x1] = images[drawn.partners][:, :, y0:y1, x0:x1]
        assert torch.equal(mixed, wanted)
        assert mixed.is_contiguous(memory_format=torch.channels_last)
        assert 0 <= y0 <= y1 <= 16
        assert 0 <= x0 <= x1 <= 16
        assert targets.lam.item() == pytest.approx(1 - (y1 - y0) * (x1 - x0) / 256)
        areas.add((y1 - y0) * (x1 - x0))
    assert len(areas) > 10
    assert torch.equal(images, batch(16)[0])  # the loader's batch is not written to


def cdf_half(x: np.ndarray) -> np.ndarray:
    """The arcsine law: Beta(1/2, 1/2)."""
    return 2 / np.pi * np.arcsin(np.sqrt(x))


@pytest.mark.parametrize(
    ("alpha", "cdf"),
    [(0.5, cdf_half), (1.0, lambda x: x), (2.0, lambda x: x * x * (3 - 2 * x))],
    ids=["0.5", "1", "2"],
)
def test_lambda_is_drawn_from_beta(alpha: float, cdf: object) -> None:
    n = 3000
    drawn = np.sort([beta(alpha, 77, i) for i in range(n)])
    assert callable(cdf)
    gap = np.abs(cdf(drawn) - (np.arange(n) + 0.5) / n).max()
    assert gap < 1.95 / np.sqrt(n)  # Kolmogorov's bound at one in a thousand


def test_a_small_alpha_gives_nearly_whole_images() -> None:
    drawn = np.array([beta(0.01, 3, i) for i in range(300)])
    assert np.isfinite(drawn).all()
    assert ((drawn < 0.01) | (drawn > 0.99)).mean() > 0.9
    assert 0.4 < drawn.mean() < 0.6


def test_blocks_that_would_lie_in_two_processes_are_refused() -> None:
    with pytest.raises(UserError, match=r"mix.block is 8, and each of 8 processes holds 4 samples"):
        Mix(MIXUP, seed=0, batch_size=32, drop_last=True, rank=0, world_size=8)
    with pytest.raises(UserError, match="needs drop_last = true"):
        Mix(MIXUP, seed=0, batch_size=32, rank=0, world_size=2)
    with pytest.raises(UserError, match=r"mix.block is 0, the whole batch, and each of 2 processes holds 16"):
        Mix(WHOLE, seed=0, batch_size=32, drop_last=True, rank=0, world_size=2)


def test_partners_of_the_whole_batch_are_a_permutation_of_it() -> None:
    """As R0 mixed; an incomplete last batch too."""
    mix = Mix(WHOLE, seed=0, batch_size=128)
    for step, num_images in enumerate((128, 128, 72)):
        partners = mix.draw(3, step, num_images, 32, 32).partners
        assert sorted(partners) == list(range(num_images))
        assert (np.abs(partners - np.arange(num_images)) >= 32).any()  # farther than any block of 32
