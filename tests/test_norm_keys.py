"""A recipe's [norm]: the share of a batch in the running statistics, and scales that do not learn, in every way."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from made_steps import Made
from optional_parts import need
from replayed_ops import RecordedOps
from tiny_runs import BATCH, SIZE, assert_same_bits, tiny_config, tiny_recipe, train_tiny, write_tiny
from torch import nn

import fastresnet
from fastresnet.engine.checkpoint import load_last
from fastresnet.engine.way import Way
from fastresnet.kernels.norm_act import BatchNormAct2d
from fastresnet.training import train

FROZEN = {"norm.train_scale": False, "init.zero_gamma": False}


def scales(model: nn.Module) -> dict[str, torch.Tensor]:
    """Return the weight of every norm by its name."""
    found = {n: m.weight.detach() for n, m in model.named_modules() if isinstance(m, BatchNormAct2d)}
    assert len(found) == 6
    return found


def one_step(data: Path, overrides: dict[str, Any]) -> tuple[Made, torch.Tensor]:
    """Return a step that was done once, and what the stem's convolution had put out for it."""
    made = Made(data, overrides, Way())
    seen: list[torch.Tensor] = []
    made.step.state.model.stem.conv.register_forward_hook(lambda _, __, out: seen.append(out.detach()))
    made.step(made.first_batch())
    return made, seen[0]


@pytest.mark.parametrize("momentum", [0.1, 0.6, 1.0])
def test_a_batch_moves_the_running_statistics_by_the_momentum(momentum: float, data: Path) -> None:
    made, out = one_step(data, {"norm.momentum": momentum})
    norm = made.step.state.model.stem.norm
    wanted = momentum * out.mean((0, 2, 3))
    torch.testing.assert_close(norm.running_mean, wanted, rtol=1e-4, atol=1e-6)
    wanted = (1 - momentum) + momentum * out.permute(1, 0, 2, 3).flatten(1).var(1)
    torch.testing.assert_close(norm.running_var, wanted, rtol=1e-4, atol=1e-6)
    moved = {module.momentum for module in made.step.state.model.modules() if hasattr(module, "momentum")}
    assert moved == {momentum}


WAYS: dict[str, tuple[dict[str, Any], Way]] = {
    "muon with lookahead": (
        {"optimizer.name": "muon", "optimizer.lookahead": {"k": 2}, "optimizer.decay": "all"},
        Way(),
    ),
    "replayed, decoupled decay": ({"optimizer.decoupled": True, "optimizer.decay": "all"}, Way(graphs=True)),
    "compiled whole": ({"ema.every": 1}, Way(compile="whole")),
    "triton": ({"arch": "n2-b1-c4-f3,1", "optimizer.bn_bias_lr_scale": 8.0}, Way(kernels="triton")),
}


@pytest.mark.parametrize("name", WAYS)
def test_frozen_scales_neither_learn_nor_decay(name: str, tmp_path: Path, quick_compiler: None) -> None:
    overrides, way = WAYS[name]
    if way.kernels == "triton":
        need("triton")
    made = Made(write_tiny(tmp_path / "t.npz", 3 * BATCH, 20), FROZEN | overrides, way, capture=RecordedOps())
    state = made.step.state
    held = {id(p) for group in state.optimizer.param_groups for p in group["params"]}
    own = {id(module.weight) for module in state.model.modules() if isinstance(module, BatchNormAct2d)}
    assert not held & own and len(held | own) == len(list(state.model.parameters()))
    biases = {n: p.detach().clone() for n, p in state.model.named_parameters() if n.endswith("norm.bias")}
    made.learn(1)
    for model in (state.model, state.eval_model):
        assert all(torch.equal(scale, torch.ones_like(scale)) for scale in scales(model).values())
    assert biases and not any(
        torch.equal(p, biases[n]) for n, p in state.model.named_parameters() if n in biases
    )


def test_frozen_scales_learn_the_same_in_every_way(tmp_path: Path, quick_compiler: None) -> None:
    """The kernels' backward gives scales, and the frozen stem's output, gradients that nobody takes."""
    need("triton")
    data = write_tiny(tmp_path / "t.npz", 2 * BATCH, 20)
    ways = (Way(), Way(kernels="triton"), Way(kernels="triton", compile="on"))
    plain, *others = (Made(data, FROZEN | {"init.whiten": {}}, way).learn(1) for way in ways)
    for found in others:
        assert found == pytest.approx(plain, rel=1e-4)


def test_a_run_from_anothers_weights_keeps_the_scales_it_finds(data: Path, runs: Path) -> None:
    parent = train_tiny(data, runs, {"epochs": 1})
    result = train(
        tiny_recipe(FROZEN | {"epochs": 1, "ema": None}),
        tiny_config(data),
        runs_dir=runs,
        init_from=str(parent),
    )
    child = load_last(Path(result.path))[0]["state"]["model"]
    learned = load_last(parent)[0]["state"]["ema"]["model"]
    names = [name for name in learned if "norm" in name and name.endswith(".weight")]
    assert names and any(not torch.equal(learned[name], torch.ones_like(learned[name])) for name in names)
    assert_same_bits({name: child[name] for name in names}, {name: learned[name] for name in names})
    images = np.zeros((2, SIZE, SIZE, 3), np.uint8)
    assert len(fastresnet.load(result.path).predict(images)) == 2
