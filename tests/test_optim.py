"""Optimizers: groups and decay, against torch's own classes; Lookahead and Muon against plain versions."""

from __future__ import annotations

import copy
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_runs import tiny_config, tiny_recipe
from torch import nn

from fastresnet import muon
from fastresnet.assembly import build_step, choose_machine, open_data
from fastresnet.engine.listener import Listener
from fastresnet.muon import orthogonalise
from fastresnet.optim import (
    Lookahead,
    build_optimizer,
    load_optimizer_state,
    optimizer_state,
    set_lr,
)
from fastresnet.recipe import load_recipe
from fastresnet.recipe_parts import Optimizer

FAST = load_recipe("fast")
NAMES = ("adadelta", "adagrad", "adam", "adamw", "sgd", "sgdn", "muon")


def part(**keys: Any) -> Optimizer:
    return FAST.with_overrides({"optimizer": {"lr": 0.05, **keys}}).optimizer


def small_model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, bias=False),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 8, 3, bias=False),
        nn.BatchNorm2d(8),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(8, 5),
    )


def train(
    model: nn.Module, optimizer: Any, steps: range, factor: Callable[[int], float] | None = None
) -> None:
    """Take steps whose gradients depend on the step's number and the weights alone."""
    for step in steps:
        if factor:
            set_lr(optimizer, factor(step))
        images = torch.randn(6, 3, 8, 8, generator=torch.Generator().manual_seed(step))
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(images), torch.arange(6) % 5).backward()
        optimizer.step()


def live_tensors(optimizer: Any) -> list[torch.Tensor]:
    """Return all tensors that an optimizer keeps from step to step."""
    inner = optimizer.inner if isinstance(optimizer, Lookahead) else optimizer
    kept = [t for entries in inner.state.values() for t in entries.values()]
    return kept + (optimizer.slow if isinstance(optimizer, Lookahead) else [])


def weights(model: nn.Module) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in model.parameters()])


TORCHS: dict[str, Callable[[Any], torch.optim.Optimizer]] = {
    "adadelta": lambda p: torch.optim.Adadelta(p, lr=0.05, rho=0.9, eps=1e-6, weight_decay=0.01),
    "adagrad": lambda p: torch.optim.Adagrad(p, lr=0.05, weight_decay=0.01),
    "adam": lambda p: torch.optim.Adam(p, lr=0.05, weight_decay=0.01),
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.05, weight_decay=0.01),
    "sgd": lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9, weight_decay=0.01),
    "sgdn": lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9, nesterov=True, weight_decay=0.01),
}


@pytest.mark.parametrize("name", TORCHS)
def test_decay_on_all_is_torchs_own_optimizer(name: str) -> None:
    ours, theirs = small_model(), small_model()
    train(ours, build_optimizer(ours, part(name=name, weight_decay=0.01)), range(12))
    train(theirs, TORCHS[name](theirs.parameters()), range(12))
    torch.testing.assert_close(weights(ours), weights(theirs), rtol=1e-6, atol=1e-7)
    assert not torch.equal(weights(ours), weights(small_model()))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("lookahead", [None, {"k": 3, "alpha": 0.5}], ids=["alone", "lookahead"])
def test_saved_in_the_middle_it_goes_on_bit_for_bit(name: str, lookahead: Any) -> None:
    chosen = part(name=name, weight_decay=0.01, decay="filters", lookahead=lookahead, bn_bias_lr_scale=4)

    def factor(step: int) -> float:
        return 1 - step / 20

    whole, first = small_model(), small_model()
    train(whole, build_optimizer(whole, chosen), range(11), factor)
    optimizer = build_optimizer(first, chosen)
    train(first, optimizer, range(7), factor)  # in the middle of Lookahead's three steps
    file = io.BytesIO()
    torch.save([first.state_dict(), optimizer_state(optimizer)], file)
    file.seek(0)
    model_state, saved = torch.load(file, weights_only=True)
    resumed = nn.Sequential(*copy.deepcopy(list(small_model())))
    resumed.load_state_dict(model_state)
    optimizer = build_optimizer(resumed, chosen)
    places = [t.data_ptr() for t in live_tensors(optimizer)]
    load_optimizer_state(optimizer, saved)
    assert places == [t.data_ptr() for t in live_tensors(optimizer)], "a captured step holds them"
    train(resumed, optimizer, range(7, 11), factor)
    assert torch.equal(weights(resumed), weights(whole))


@pytest.mark.parametrize("name", NAMES)
def test_all_its_state_is_there_before_the_first_step(name: str) -> None:
    """And is what torch's own begins with: zeros, but for what the recipe asks."""
    model = small_model()
    before = weights(model)
    initial = {"initial_accumulator_value": 0.25} if name == "adagrad" else {}
    optimizer = build_optimizer(model, part(name=name, weight_decay=0.01, **initial))
    assert torch.equal(weights(model), before) and all(p.grad is None for p in model.parameters())
    kept = live_tensors(optimizer)
    assert len(kept) >= len(list(model.parameters()))
    wanted = {0.0, 0.25} if name == "adagrad" else {0.0}
    assert {float(value) for t in kept for value in t.unique()} == wanted
    places = [t.data_ptr() for t in kept]
    train(model, optimizer, range(2))
    assert places == [t.data_ptr() for t in live_tensors(optimizer)]


@pytest.mark.parametrize("name", NAMES)
def test_set_lr_multiplies_each_groups_own_base(name: str) -> None:
    optimizer = build_optimizer(small_model(), part(name=name, bn_bias_lr_scale=64))
    bases = [group["base_lr"] for group in optimizer.param_groups]
    set_lr(optimizer, 0.5)
    set_lr(optimizer, 0.25)
    assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([b / 4 for b in bases])
    assert max(bases) == pytest.approx(64 * (0.1 if name == "muon" else 0.05))


def test_filters_alone_decay_when_asked() -> None:
    model = small_model()
    optimizer = build_optimizer(model, part(name="sgdn", weight_decay=0.01, decay="filters"))
    decayed = {id(p) for group in optimizer.param_groups if group["weight_decay"] for p in group["params"]}
    assert decayed == {id(model[i].weight) for i in (0, 3, 7)}
    assert sum(len(group["params"]) for group in optimizer.param_groups) == len(list(model.parameters()))


def test_faster_bn_biases_do_not_decay_faster() -> None:
    model = small_model()
    optimizer = build_optimizer(model, part(name="sgd", weight_decay=0.01, bn_bias_lr_scale=64))
    by_param = {id(p): group for group in optimizer.param_groups for p in group["params"]}
    for i in (1, 4):
        assert by_param[id(model[i].bias)]["lr"] == pytest.approx(64 * 0.05)
        assert by_param[id(model[i].weight)]["lr"] == 0.05
    assert by_param[id(model[7].bias)]["lr"] == 0.05
    assert all(g["lr"] * g["weight_decay"] == pytest.approx(0.0005) for g in optimizer.param_groups)


def test_the_heads_own_lr_does_not_decay_it_otherwise() -> None:
    model = small_model()
    optimizer = build_optimizer(
        model, part(name="sgd", weight_decay=0.01, decay="filters", head_lr_scale=0.1)
    )
    by_param = {id(p): group for group in optimizer.param_groups for p in group["params"]}
    for p in model.parameters():
        is_head = p is model[7].weight or p is model[7].bias
        assert by_param[id(p)]["lr"] == pytest.approx(0.005 if is_head else 0.05)
    decays = [by_param[id(model[i].weight)] for i in (0, 3, 7)]
    assert all(g["lr"] * g["weight_decay"] == pytest.approx(0.0005) for g in decays)


def test_decoupled_decay_shrinks_weights_outside_the_momentum() -> None:
    ours, plain = small_model(), small_model()
    train(ours, build_optimizer(ours, part(name="sgdn", weight_decay=0.1, decoupled=True)), range(5))
    optimizer = torch.optim.SGD(plain.parameters(), lr=0.05, momentum=0.9, nesterov=True)
    step = optimizer.step

    def shrink_then_step() -> None:
        with torch.no_grad():
            for p in plain.parameters():
                p.mul_(1 - 0.05 * 0.1)
        step()

    optimizer.step = shrink_then_step  # type: ignore[method-assign]
    train(plain, optimizer, range(5))
    torch.testing.assert_close(weights(ours), weights(plain), rtol=1e-6, atol=1e-7)


def test_decoupled_decay_alone_is_adamws() -> None:
    hooked, adamw = small_model(), small_model()
    optimizer = build_optimizer(hooked, part(name="adagrad", weight_decay=0.1, decoupled=True))
    reference = build_optimizer(adamw, part(name="adamw", weight_decay=0.1))
    for chosen, model in ((optimizer, hooked), (reference, adamw)):
        for p in model.parameters():
            p.grad = torch.zeros_like(p)  # then decay is all there is
        chosen.step()
    torch.testing.assert_close(weights(hooked), weights(small_model()) * (1 - 0.05 * 0.1))
    torch.testing.assert_close(weights(hooked), weights(adamw))


def test_lookahead_is_zhangs_algorithm() -> None:
    ours, plain = small_model(), small_model()
    optimizer = build_optimizer(ours, part(name="sgd", lookahead={"k": 5, "alpha": 0.5}))
    assert isinstance(optimizer, Lookahead)
    inner = torch.optim.SGD(plain.parameters(), lr=0.05, momentum=0.9)
    slow = [p.detach().clone() for p in plain.parameters()]
    for step in range(12):
        train(ours, optimizer, range(step, step + 1))
        train(plain, inner, range(step, step + 1))
        if (step + 1) % 5 == 0:
            with torch.no_grad():
                for s, p in zip(slow, plain.parameters(), strict=True):
                    s += 0.5 * (p - s)
                    p.copy_(s)
        torch.testing.assert_close(weights(ours), weights(plain), rtol=1e-5, atol=1e-6)


def test_a_step_that_the_loss_scale_skips_does_not_count_for_lookahead() -> None:
    model = small_model()
    optimizer = build_optimizer(model, part(name="sgd", lookahead={"k": 2, "alpha": 0.5}))
    assert isinstance(optimizer, Lookahead)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0)
    before = weights(model)
    for p in model.parameters():
        p.grad = torch.full_like(p, torch.inf)
    scaler.scale(torch.zeros(()))
    scaler.step(optimizer)
    scaler.update()
    assert optimizer.num_steps == 0
    assert torch.equal(weights(model), before)
    for p in model.parameters():
        p.grad = torch.ones_like(p)
    scaler.scale(torch.zeros(()))
    scaler.step(optimizer)
    assert optimizer.num_steps == 1
    torch.testing.assert_close(weights(model), before - 0.05)


@pytest.mark.parametrize(("products", "most"), [(torch.float32, 1e-3), (torch.bfloat16, 0.1)], ids=str)
@pytest.mark.parametrize("shape", [(8, 27), (27, 8), (16, 16)], ids=str)
def test_orthogonalise_keeps_directions_and_levels_singular_values(
    shape: tuple[int, int], products: torch.dtype, most: float
) -> None:
    matrices = torch.randn(4, *shape, generator=torch.Generator().manual_seed(1))
    u, _, v = torch.linalg.svd(matrices, full_matrices=False)
    made = orthogonalise(matrices, 8, products)
    assert made.dtype == torch.float32
    in_their_basis = u.mT @ made @ v.mT
    values = torch.diagonal(in_their_basis, dim1=1, dim2=2)
    assert values.min() > 0.6
    assert values.max() < 1.3
    rest = in_their_basis - torch.diag_embed(values)
    assert rest.abs().max() < most


@pytest.mark.parametrize(("amp", "products"), [("bf16", torch.bfloat16), ("off", torch.float32)])
def test_products_are_in_bf16_where_the_network_is(
    amp: str, products: torch.dtype, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[torch.dtype] = []

    def orthogonalised(matrices: torch.Tensor, num_steps: int, products: torch.dtype) -> torch.Tensor:
        asked.append(products)
        return orthogonalise(matrices, num_steps)

    monkeypatch.setattr(muon, "orthogonalise", orthogonalised)
    recipe, config = tiny_recipe({"optimizer.name": "muon", "optimizer.lr": 0.02}), tiny_config(data, amp=amp)
    step = build_step(recipe, choose_machine(config), open_data(recipe, config, Listener()), 4)
    for parameter in step.state.model.parameters():
        parameter.grad = torch.ones_like(parameter)
    step.state.optimizer.step()
    assert set(asked) == {products}


def test_filters_of_one_shape_are_orthogonalised_apart() -> None:
    matrices = torch.randn(5, 6, 20, generator=torch.Generator().manual_seed(2))
    alone = torch.cat([orthogonalise(m[None], 3) for m in matrices])
    torch.testing.assert_close(orthogonalise(matrices, 3), alone)


def test_muon_updates_filters_as_published_and_the_rest_as_sgdn() -> None:
    """Against Jordan's optimizer, written out for one filter, and torch's SGD for the others."""
    chosen = part(name="muon", lr=0.1, momentum=0.6, ns_steps=3, normalise_filters=True, weight_decay=0.0)
    ours, plain = small_model(), small_model()
    optimizer = build_optimizer(ours, chosen)
    others = [p for p in plain.parameters() if p.ndim != 4]
    filters = [p for p in plain.parameters() if p.ndim == 4]
    sgdn = torch.optim.SGD(others, lr=0.1, momentum=0.85, nesterov=True)
    momenta = [torch.zeros_like(p) for p in filters]
    for step in range(4):
        train(ours, optimizer, range(step, step + 1))
        plain.zero_grad()
        images = torch.randn(6, 3, 8, 8, generator=torch.Generator().manual_seed(step))
        nn.functional.cross_entropy(plain(images), torch.arange(6) % 5).backward()
        sgdn.step()
        with torch.no_grad():
            for p, momentum in zip(filters, momenta, strict=True):
                assert p.grad is not None
                momentum.mul_(0.6).add_(p.grad)
                x = (p.grad + 0.6 * momentum).reshape(len(p), -1)
                x = x / (x.norm() + 1e-7)
                tall = x.shape[0] > x.shape[1]
                x = x.T if tall else x
                for _ in range(3):
                    a = x @ x.T
                    x = 3.4445 * x + (-4.7750 * a + 2.0315 * a @ a) @ x
                p.mul_(len(p) ** 0.5 / p.norm())
                p.add_((x.T if tall else x).reshape(p.shape), alpha=-0.1)
        torch.testing.assert_close(weights(ours), weights(plain), rtol=2e-4, atol=2e-5)


def test_parameters_without_gradients_are_left_alone() -> None:
    for name in NAMES:
        model = small_model()
        before = weights(model)
        optimizer = build_optimizer(model, part(name=name, weight_decay=0.1))
        optimizer.zero_grad()
        optimizer.step()
        assert torch.equal(weights(model), before), name


def test_frozen_parameters_are_not_in_any_group() -> None:
    model = small_model()
    model[0].weight.requires_grad_(False)
    optimizer = build_optimizer(model, part(name="sgd"))
    assert id(model[0].weight) not in {id(p) for g in optimizer.param_groups for p in g["params"]}
