"""Optimizers of a recipe: torch's own, Muon, and Lookahead around any of them."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from fastresnet import recipe_parts as parts
from fastresnet.muon import Muon


def build_optimizer(
    model: nn.Module, part: parts.Optimizer, *, loss_scale: bool = False, bf16_products: bool = False
) -> torch.optim.Optimizer | Lookahead:
    """Return the optimizer of ``model``'s parameters, on the device where they are now.

    Each parameter group holds ``base_lr``, which :func:`set_lr` multiplies. Decay is coupled (in
    ``weight_decay``) or decoupled (in ``decoupled_decay``, applied before each step). All that it will ever hold
    is there at once, so that a compiled or captured step finds it where it stays.

    Args:
        loss_scale: steps are made under one, and may be left out.
        bf16_products: Muon's matrix products may be in bfloat16, since the network's are.
    """
    groups = _groups(model, part)
    on_gpu = all(p.is_cuda for group in groups for p in group["params"])
    decoupled = getattr(part, "decoupled", False)
    # A fused step under a loss scale may skip itself on the device; decoupled decay would not know.
    fast: dict[str, Any] = {"fused": True} if on_gpu and not (decoupled and loss_scale) else {"foreach": True}
    adam = fast | {"capturable": on_gpu}  # its count of steps is on the device
    optimizer: torch.optim.Optimizer
    if isinstance(part, parts.Adadelta):
        optimizer = torch.optim.Adadelta(
            groups, lr=part.lr, rho=part.rho, eps=part.eps, foreach=True, capturable=on_gpu
        )
    elif isinstance(part, parts.Adagrad):
        optimizer = torch.optim.Adagrad(
            groups,
            lr=part.lr,
            lr_decay=part.lr_decay,
            initial_accumulator_value=part.initial_accumulator_value,
            eps=part.eps,
            foreach=True,
        )
    elif isinstance(part, parts.Adam):
        optimizer = torch.optim.Adam(groups, lr=part.lr, betas=part.betas, eps=part.eps, **adam)
    elif isinstance(part, parts.AdamW):
        optimizer = torch.optim.AdamW(groups, lr=part.lr, betas=part.betas, eps=part.eps, **adam)
    elif isinstance(part, parts.Sgd):
        nesterov = part.name == "sgdn"
        optimizer = torch.optim.SGD(groups, lr=part.lr, momentum=part.momentum, nesterov=nesterov, **fast)
    else:
        optimizer = Muon(groups, bf16_products=bf16_products)
    if decoupled and part.weight_decay:
        optimizer.register_step_pre_hook(_decay)
    # torch warns of capturable steps that are launched; here the warm-up decides, and both are meant.
    optimizer._warned_capturable_if_run_uncaptured = True
    _fill_state(optimizer)
    return Lookahead(optimizer, part.lookahead) if part.lookahead else optimizer


def set_lr(optimizer: torch.optim.Optimizer | Lookahead, factor: float) -> None:
    """Set every group's lr to ``factor`` times its ``base_lr``."""
    for group in optimizer.param_groups:
        group["lr"] = group["base_lr"] * factor


@torch.no_grad()
def _fill_state(optimizer: torch.optim.Optimizer) -> None:
    """Make the state that torch's optimizers make at their first step, as it is before that step."""
    weights = [p for group in optimizer.param_groups for p in group["params"]]
    kept = [p.clone() for p in weights]
    there = {p: {name: _copied(value) for name, value in optimizer.state[p].items()} for p in weights}
    for p in weights:
        p.grad = torch.zeros_like(p)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    torch._foreach_copy_(weights, kept)
    for p in weights:
        for name, value in optimizer.state[p].items():
            if isinstance(value, torch.Tensor):
                value.copy_(there[p].get(name, torch.zeros_like(value)))


def _copied(value: Any) -> Any:
    return value.clone() if isinstance(value, torch.Tensor) else value


def optimizer_state(optimizer: torch.optim.Optimizer | Lookahead) -> dict[str, Any]:
    """Return the optimizer's state dict; its tensors are the live ones, each lr a float."""
    content = optimizer.state_dict()
    inner = content["inner"] if isinstance(optimizer, Lookahead) else content
    for group in inner["param_groups"]:
        group["lr"] = float(group["lr"])
    return content


def loaded_part(saved: Any) -> Any:
    """Return of :func:`optimizer_state` what :func:`load_optimizer_state` takes up; of anything else, what it is."""
    if not isinstance(saved, dict):
        return saved
    if "inner" in saved:
        return saved | {"inner": loaded_part(saved["inner"])}
    groups = saved.get("param_groups")
    if isinstance(groups, list | tuple):
        groups = [{"lr": group.get("lr")} if isinstance(group, dict) else group for group in groups]
    return saved | {"param_groups": groups}


@torch.no_grad()
def load_optimizer_state(optimizer: torch.optim.Optimizer | Lookahead, saved: dict[str, Any]) -> None:
    """Take up what :func:`optimizer_state` returned, in place: what is compiled or captured holds the tensors.

    An lr that is a tensor is left as it is: its owner sets it at every step.
    """
    if isinstance(optimizer, Lookahead):
        load_optimizer_state(optimizer.inner, saved["inner"])
        torch._foreach_copy_(optimizer.slow, saved["slow"])
        optimizer.num_steps = saved["num_steps"]
        return
    weights = [p for group in optimizer.param_groups for p in group["params"]]
    for place, entries in saved["state"].items():
        own = optimizer.state[weights[place]]
        for name, value in entries.items():
            if isinstance(value, torch.Tensor):
                own[name].copy_(value)
    for group, given in zip(optimizer.param_groups, saved["param_groups"], strict=True):
        if not isinstance(group["lr"], torch.Tensor):
            group["lr"] = given["lr"]


def _groups(model: nn.Module, part: parts.Optimizer) -> list[dict[str, Any]]:
    """Return one group for each distinct treatment of parameters, in the order of first use."""
    bn_biases = {
        id(module.bias) for module in model.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)
    }
    head = {id(p) for module in model.modules() if isinstance(module, nn.Linear) for p in module.parameters()}
    decoupled = getattr(part, "decoupled", False)
    muon = part if isinstance(part, parts.Muon) else None
    groups: dict[tuple[float, float, bool], dict[str, Any]] = {}
    for p in model.parameters():
        if not p.requires_grad:
            continue
        orthogonal = muon is not None and p.ndim == 4
        scale = part.bn_bias_lr_scale if id(p) in bn_biases else part.head_lr_scale if id(p) in head else 1.0
        lr = (part.lr if muon is None or orthogonal else muon.other_lr) * scale
        # lr x decay is what pulls a weight to zero: a faster lr is not to decay it faster.
        decay = part.weight_decay / scale if part.decay == "all" or p.ndim > 1 else 0.0
        group = groups.setdefault((lr, decay, orthogonal), {"params": []})
        group["params"].append(p)
        group |= {"lr": lr, "base_lr": lr, "weight_decay": 0.0 if decoupled else decay}
        if decoupled:
            group["decoupled_decay"] = decay
        if muon is not None:
            group |= {
                "orthogonal": orthogonal,
                "momentum": muon.momentum if orthogonal else muon.other_momentum,
                "ns_steps": muon.ns_steps,
                "normalise_filters": muon.normalise_filters,
            }
    return list(groups.values())


@torch.no_grad()
def _decay(optimizer: torch.optim.Optimizer, *_: Any) -> None:
    """Shrink each group's weights by lr x decoupled_decay (Loshchilov and Hutter 2019)."""
    for group in optimizer.param_groups:
        if group["decoupled_decay"]:
            weights = [p for p in group["params"] if p.grad is not None]
            torch._foreach_mul_(weights, 1 - group["lr"] * group["decoupled_decay"])


class Lookahead:
    """An optimizer whose weights go back every ``k`` steps to slow weights, which move by ``alpha`` to them.

    Zhang et al. 2019, "Lookahead Optimizer: k steps forward, 1 step back". The slow weights start as the
    weights at construction, or as those in a loaded state.
    """

    def __init__(self, inner: torch.optim.Optimizer, part: parts.Lookahead) -> None:
        self.inner = inner
        self.part = part
        self.num_steps = 0
        self.slow = [p.detach().clone() for p in self._weights()]

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        """The inner optimizer's groups."""
        return self.inner.param_groups

    def _weights(self) -> list[torch.Tensor]:
        return [p for group in self.inner.param_groups for p in group["params"]]

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Clear the gradients."""
        self.inner.zero_grad(set_to_none)

    @torch.no_grad()
    def step(self) -> None:
        """Step the inner optimizer; every ``k``-th time, move the slow weights and go back to them."""
        self.inner.step()
        self.num_steps += 1
        if self.num_steps % self.part.k == 0:
            weights = self._weights()
            torch._foreach_lerp_(self.slow, weights, self.part.alpha)
            torch._foreach_copy_(weights, self.slow)

    def state_dict(self) -> dict[str, Any]:
        """Return the inner state, the slow weights in the order of the groups, and the count of steps."""
        return {"inner": self.inner.state_dict(), "slow": list(self.slow), "num_steps": self.num_steps}
