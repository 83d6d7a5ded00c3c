"""Low-loss filtering: which images a step learns from, and what it learns of them, alone and over ranks."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from made_steps import Made
from optional_parts import need
from tiny_runs import BATCH, write_tiny
from torch import nn

from fastresnet.engine.way import Way
from fastresnet.losses import Filter, Targets, build_loss, taken
from fastresnet.recipe_parts import Loss
from fastresnet.resnet import set_kernels

PLAIN_SGD = {
    "optimizer.name": "sgd",
    "optimizer.momentum": 0,
    "optimizer.lr": 1.0,
    "optimizer.weight_decay": 0,
    "schedule": {"name": "constant"},
    "ema": None,
}


@given(st.floats(0.001, 0.999), st.integers(0, 10**5))
def test_the_number_kept_is_a_function_of_the_batchs_size(keep: float, num: int) -> None:
    kept = Filter(Loss(keep=keep)).num_kept(num)
    assert min(num, 2) <= kept <= num
    assert abs(kept - keep * num) <= 0.5 or kept == min(num, 2)


@given(st.integers(0, 2**31), st.integers(2, 40), st.floats(0.05, 0.95), st.booleans(), st.floats(0, 0.3))
def test_the_images_with_the_highest_loss_are_kept(
    seed: int, num: int, keep: float, mixes: bool, smoothing: float
) -> None:
    generator = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(num, 5, generator=generator)
    labels, others = torch.randint(5, (2, num), generator=generator)
    targets = Targets(labels, others, torch.tensor(0.3)) if mixes else labels
    part = Loss(label_smoothing=smoothing, keep=keep)
    chosen, loss = Filter(part), build_loss(part)
    places, mean = chosen(logits, targets)
    assert len(places) == len(set(places.tolist())) == chosen.num_kept(num)
    assert mean.item() == pytest.approx(loss(logits, targets).item(), rel=1e-5)
    each = [loss(logits[i : i + 1], taken(targets, torch.tensor([i]))).item() for i in range(num)]
    left = set(range(num)) - set(places.tolist())
    assert min(each[i] for i in places) >= max((each[i] for i in left), default=0.0) - 1e-5
    of_kept = loss(logits[places], taken(targets, places))
    assert of_kept.item() == pytest.approx(sum(each[i] for i in places) / len(places), rel=1e-4)


@pytest.mark.parametrize("kernels", ["eager", "triton"])
def test_a_step_learns_from_what_it_keeps_and_counts_all(kernels: str, data: Path) -> None:
    """By plain SGD the weights move by the gradient of the kept images, in a batch of their own."""
    if kernels == "triton":
        need("triton")
    made = Made(data, PLAIN_SGD | {"loss.keep": 0.4, "clip_grad_norm": None}, Way(kernels=kernels))
    state, step = made.step.state, made.step
    model = copy.deepcopy(state.model)
    set_kernels(model, "eager")
    batch = made.first_batch()
    inputs = step.augment(batch.images, batch.indices, torch.float32, train=True)
    labels, indices = batch.labels.clone(), batch.indices.clone()
    step(batch)
    assert len(indices) == BATCH
    logits = model(inputs).detach()
    losses = nn.functional.cross_entropy(logits, labels, label_smoothing=0.1, reduction="none")
    places = losses.argsort(descending=True)[:6]  # 0.4 of 16, rounded
    loss = nn.functional.cross_entropy(model(inputs[places]), labels[places], label_smoothing=0.1)
    model.zero_grad()
    loss.backward()
    with torch.no_grad():
        for weight in model.parameters():
            weight -= weight.grad  # type: ignore[arg-type]
    for name, tensor in model.state_dict().items():
        found = state.model.state_dict()[name]
        torch.testing.assert_close(found, tensor, rtol=1e-3, atol=1e-4, msg=lambda m, n=name: f"{n}: {m}")
    assert state.model.stem.norm.num_batches_tracked == 2
    right = (logits.argmax(1) == labels).sum().item()
    assert state.sums.tolist() == pytest.approx([losses.sum().item(), right, BATCH], rel=1e-5)


@pytest.mark.parametrize("compile", ["off", "on"])
def test_mixed_precision_leaves_no_weight_without_gradient(
    compile: str, data: Path, quick_compiler: None
) -> None:
    """The first pass casts weights without a gradient, and autocast keeps such casts."""
    made = Made(data, PLAIN_SGD | {"loss.keep": 0.5, "init.zero_gamma": False}, Way(compile=compile))
    step = made.step
    step.amp_dtype = torch.bfloat16
    before = {name: p.detach().clone() for name, p in step.state.model.named_parameters()}
    step(made.first_batch())
    same = [name for name, p in step.state.model.named_parameters() if torch.equal(p, before[name])]
    assert same == []


@pytest.mark.parametrize("compile", ["on", "whole"])
def test_a_compiled_step_keeps_what_an_eager_one_does(
    compile: str, tmp_path: Path, quick_compiler: None
) -> None:
    data = write_tiny(tmp_path / "t.npz", 3 * BATCH, 20)
    overrides: dict[str, Any] = {"loss.keep": 0.5, "ema": None, "mix": {"name": "cutmix", "block": 2}}
    plain, compiled = (Made(data, overrides, way).learn(1) for way in (Way(), Way(compile=compile)))
    assert compiled == pytest.approx(plain, rel=1e-4)
