"""A trained network, from its run folder."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from fastresnet.engine.checkpoint import BEST, load_last, read_checkpoint
from fastresnet.errors import UserError
from fastresnet.folder import RunFolder, find_run


@dataclass(frozen=True, kw_only=True)
class Weights:
    """The weights a run is evaluated with: its average where it keeps one.

    Attributes:
        run: the run's name.
        which: ``last`` or ``best``.
        arch: its recipe's arch.
        tensors: the model's state dict.
        sha256: of the checkpoint that held them.
    """

    run: str
    which: str
    arch: str
    tensors: dict[str, torch.Tensor]
    sha256: str

    def for_model(self, model: nn.Module) -> dict[str, torch.Tensor]:
        """Return the tensors, having made sure that they fit ``model``.

        Raises:
            UserError: names or shapes differ.
        """
        wanted = {name: tuple(t.shape) for name, t in model.state_dict().items()}
        found = {name: tuple(t.shape) for name, t in self.tensors.items()}
        if wanted != found:
            differing = sorted(n for n in wanted.keys() | found.keys() if wanted.get(n) != found.get(n))
            raise UserError(
                f"the weights of run {self.run} are of another network ({self.arch}): {differing[0]} is "
                f"{found.get(differing[0], 'missing')} there and {wanted.get(differing[0], 'missing')} here; "
                "choose the same arch, classes and image size"
            )
        return self.tensors


def load_weights(reference: str, runs_dir: Path) -> Weights:
    """Return the weights of a run: a path, name, id or ``last``, then ``:best`` or ``:last`` (which is the default).

    Raises:
        UserError: no such run or weights, or damaged ones.
    """
    run, _, which = reference.partition(":")
    which = which or "last"
    if which not in ("last", "best"):
        raise UserError(f"{reference!r}: after the colon stands {which!r}; it must be last or best")
    folder = RunFolder(find_run(run, runs_dir))
    content = folder.read_config()
    if which == "best":
        if not (folder.path / BEST).exists():
            raise UserError(f"run {folder.name} has no best checkpoint yet: no epoch of it was evaluated")
        checkpoint = read_checkpoint(folder.path / BEST)
        tensors: dict[str, Any] = checkpoint["model"]
    else:
        checkpoint, _ = load_last(folder.path)
        state = checkpoint["state"]
        tensors = state["ema"]["model"] if state["ema"] else state["model"]
    return Weights(
        run=folder.name,
        which=which,
        arch=content["recipe"]["arch"],
        tensors=tensors,
        sha256=checkpoint["sha256"],
    )
