"""The ways in which a step can be done, and what stands against one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from fastresnet.engine.state import TrainState
from fastresnet.optim import Lookahead

if TYPE_CHECKING:
    from fastresnet.engine.step import TrainStep
    from fastresnet.run import RunConfig


@dataclass(frozen=True, kw_only=True)
class Way:
    """How a step is done.

    Attributes:
        compile: ``off``; ``on``, the forward and backward passes; ``whole``, the update of weights and average too.
        kernels: what the norms take, one of ``norm_act.KERNELS``.
        convs: what the 3x3 convolutions take, one of ``conv.CONVS``.
        graphs: each step is one replay of a CUDA graph.
    """

    compile: str = "off"
    kernels: str = "eager"
    convs: str = "direct"
    graphs: bool = False

    @classmethod
    def asked(cls, config: RunConfig) -> Way:
        """Return how a config has steps done, with ``auto`` as plain as can be."""
        return cls(
            compile=config.compile if config.compile != "auto" else "off",
            kernels=config.kernels if config.kernels != "auto" else "eager",
            convs=config.convs if config.convs != "auto" else "direct",
            graphs=config.graphs == "on",
        )


def graph_obstacle(step: TrainStep) -> str | None:
    """Return why ``step`` cannot be a CUDA graph, or None where it can."""
    if step.device_type != "cuda" and step.capture is None:
        return "CUDA graphs are for GPUs"
    if step.exchange is not None:
        return "several ranks launch their steps"
    return _host_obstacle(step.state)


def whole_obstacle(step: TrainStep) -> str | None:
    """Return why the update of ``step`` cannot be compiled, or None where it can."""
    return _host_obstacle(step.state)


def _host_obstacle(state: TrainState) -> str | None:
    """Return what in the update is decided on the host at every step."""
    if state.scaler is not None:
        return "fp16's loss scale is kept on the host"
    if isinstance(state.optimizer, Lookahead):
        return "the optimizer's Lookahead counts its steps on the host"
    if isinstance(state.optimizer, torch.optim.Adagrad):
        return "torch's Adagrad counts its steps on the host"
    return None
