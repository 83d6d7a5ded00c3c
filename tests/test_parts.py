"""Averaged weights, gradient clipping and evaluation: what a step and a test do, by formula."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_runs import STEPS, assert_same_bits, tiny_config, tiny_recipe, write_tiny
from torch import nn

from fastresnet.arch import get_arch
from fastresnet.assembly import build_step, choose_machine, open_data, open_loaders
from fastresnet.augment import Augment
from fastresnet.engine.evaluate import Scorer, evaluate
from fastresnet.engine.listener import Listener
from fastresnet.engine.state import EmaModel
from fastresnet.loaders.protocol import LoaderSpec
from fastresnet.loaders.registry import open_loader
from fastresnet.loaders.testing import example_split
from fastresnet.recipe_augment import Augment as AugmentPart
from fastresnet.recipe_parts import Ema
from fastresnet.resnet import build_model


@settings(max_examples=30)
@given(
    decay=st.floats(0.01, 0.999),
    every=st.integers(1, 4),
    ramp=st.booleans(),
    lookahead=st.booleans(),
    num_steps=st.integers(1, 30),
)
def test_the_average_is_the_formulas(
    decay: float, every: int, ramp: bool, lookahead: bool, num_steps: int
) -> None:
    """Parameters and BatchNorm statistics: kept * average + (1 - kept) * weights, at every ``every``-th step."""
    source = nn.BatchNorm1d(3)
    ema = EmaModel(source, Ema(decay=decay, every=every, ramp=ramp, lookahead=lookahead), num_steps)
    generator = torch.Generator().manual_seed(num_steps)
    wanted = {key: value.double() for key, value in source.state_dict().items()}
    updates = 0
    for step in range(num_steps):
        with torch.no_grad():
            for tensor in (source.weight, source.bias, source.running_mean, source.running_var):
                tensor.copy_(torch.rand(3, generator=generator))
        assert ema.is_due(step) == ((step + 1) % every == 0)
        if ema.is_due(step):
            now = {key: value.clone() for key, value in source.state_dict().items()}
            share = ema.share(ema.updates)
            ema.move(torch.tensor(share) if step % 2 else share)  # a captured step reads it on the device
            ema.updates += 1
            kept = decay**every
            if ramp:
                kept = min(kept, (1 + updates) / (10 + updates))
            updates += 1
            if lookahead:
                kept *= (updates / (num_steps // every)) ** 3
            wanted = {key: kept * value + (1 - kept) * now[key].double() for key, value in wanted.items()}
            assert_same_bits(source.state_dict(), ema.model.state_dict() if lookahead else now)
    assert ema.updates == updates
    for key, value in ema.model.state_dict().items():
        if key != "num_batches_tracked":
            torch.testing.assert_close(value.double(), wanted[key], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("block", ["", "-bottleneck"])
def test_clipping_bounds_the_norm_of_the_gradient(block: str, tmp_path: Path) -> None:
    """A step of plain SGD with lr 1 moves the weights by the gradient, so by its norm, or by the bound."""
    data = write_tiny(tmp_path / "tiny.npz")

    def moved(bound: float | None) -> float:
        recipe = tiny_recipe(
            {
                "arch": f"n2-b1-c4{block}",
                "optimizer.name": "sgd",
                "optimizer.momentum": 0,
                "optimizer.lr": 1.0,
            }
            | {"optimizer.weight_decay": 0, "schedule": {"name": "constant"}, "ema": None}
            | {"clip_grad_norm": bound}
        )
        chosen = choose_machine(tiny_config(data, amp="off"))
        opened = open_data(recipe, chosen.config, Listener())
        step = build_step(recipe, chosen, opened, STEPS)
        loaders = open_loaders(recipe, chosen.config, opened, torch.device("cpu"))
        step.augment.begin_epoch(0, 0, opened.splits["train"].members, "cpu")
        before = [parameter.detach().clone() for parameter in step.state.model.parameters()]
        step(next(iter(loaders.train)))
        loaders.close()
        after = step.state.model.parameters()
        return math.sqrt(sum((a - b).square().sum().item() for a, b in zip(after, before, strict=True)))

    norm = moved(None)
    assert moved(norm / 3) == pytest.approx(norm / 3, rel=1e-4)
    assert moved(3 * norm) == pytest.approx(norm, rel=1e-4)


def test_an_image_is_classified_whatever_its_neighbours() -> None:
    """The statistics of a batch decide nothing when a network is tested, though it is left as it was: training."""
    torch.manual_seed(0)
    model = build_model(get_arch("n2-b1-c16")).train()
    augment = Augment(AugmentPart(), (0.5,) * 3, (0.25,) * 3, 12)

    def logits(every: int, batch_size: int) -> dict[int, torch.Tensor]:
        found: dict[int, torch.Tensor] = {}
        with example_split(every=every) as split:
            loader = open_loader(
                "numba", split, LoaderSpec(batch_size=batch_size, seed=0, shuffle=False), "cpu"
            )

            def keep(out: torch.Tensor, labels: torch.Tensor, indices: torch.Tensor) -> None:
                found.update(zip(indices.tolist(), out.clone(), strict=True))

            evaluate(Scorer(model, augment, torch.float32), loader, on_logits=keep)
            loader.close()
        return found

    together, apart = logits(1, 53), logits(3, 2)
    assert model.training and len(apart) == 18
    for index, found in apart.items():
        torch.testing.assert_close(found, together[index], rtol=1e-4, atol=1e-5)
    model.train()
    images = torch.rand(4, 3, 12, 12)
    assert not torch.allclose(model(images)[:1], model(images[:2])[:1], atol=1e-3)  # in train mode they would
