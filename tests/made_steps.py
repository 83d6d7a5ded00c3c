"""Steps of tiny runs as they are built, to be done in one way or another, and the recipes whose steps differ."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from tiny_runs import tiny_config, tiny_recipe

from fastresnet.assembly import build_step, choose_machine, open_data, open_loaders
from fastresnet.engine.evaluate import evaluate
from fastresnet.engine.graphs import Capture
from fastresnet.engine.listener import Listener
from fastresnet.engine.way import Way
from fastresnet.loaders.protocol import Batch


class Made:
    """A step with what it was made of; on a CPU its optimizer is fused where torch can, as on a GPU.

    Without a ``capture`` graphs are CUDA's.
    """

    def __init__(
        self, data: Path, overrides: Any, way: Way, *, capture: Capture | None = None, device: str = "cpu"
    ) -> None:
        self.recipe = tiny_recipe({"drop_last": False, "tta": "flip"} | overrides)
        self.chosen = choose_machine(tiny_config(data, amp="off", val=10, device=device))
        self.data = open_data(self.recipe, self.chosen.config, Listener())
        self.loaders = open_loaders(self.recipe, self.chosen.config, self.data, torch.device(device))
        self.step = build_step(self.recipe, self.chosen, self.data, len(self.loaders.train))
        for group in getattr(self.step.state.optimizer, "inner", self.step.state.optimizer).param_groups:
            if self.recipe.optimizer.name in ("sgd", "sgdn", "adam", "adamw"):
                group |= {"fused": True, "foreach": False}
        self.step.capture = capture
        self.step.take(way)

    def first_batch(self) -> Batch:
        """Return the first batch of the first epoch, and close the loaders."""
        self.step.augment.begin_epoch(0, 0, self.data.splits["train"].members, self.step.state.sums.device)
        batch = next(iter(self.loaders.train))
        self.loaders.close()
        return batch

    def learn(self, num_epochs: int = 2) -> list[float]:
        """Train and evaluate as a run does, and return what was reported."""
        state, found = self.step.state, []
        for epoch in range(num_epochs):
            self.step.augment.begin_epoch(0, epoch, self.data.splits["train"].members, state.sums.device)
            self.loaders.train.set_epoch(epoch)
            for batch in self.loaders.train:
                self.step(batch)
            found += (state.sums / state.sums[2]).tolist()
            for loader in self.loaders.evals.values():
                result = evaluate(self.step.scorer, loader, tta="flip")
                assert result.accuracy_tta is not None
                found += [result.loss, result.accuracy, result.accuracy_tta]
            state.sums.zero_()
            state.epoch, state.epoch_step = epoch + 1, 0
        self.loaders.close()
        return found

    def tensors(self) -> dict[str, torch.Tensor]:
        """Return what a step changes, by name."""
        state = self.step.state
        model = state.model.state_dict() | {f"ema.{n}": t for n, t in state.eval_model.state_dict().items()}
        kept = {
            f"{place}.{name}": value
            for place, entries in enumerate(state.optimizer.state.values())
            for name, value in entries.items()
        }
        return model | kept | {"sums": state.sums, "bad": state.first_bad_step}


RECIPES: dict[str, dict[str, Any]] = {
    "sgdn with an average": {"ema.every": 2},
    "adamw, clipped, no average": {"optimizer.name": "adamw", "optimizer.lr": 0.01, "clip_grad_norm": 0.5}
    | {"ema": None},
    "muon, mixup, dropout": {"optimizer.name": "muon", "mix": {"name": "mixup", "block": 2}}
    | {"ema.every": 3, "dropout": {"head": 0.2, "block": 0.1}},
    "low-loss filtering, mixup, dropout": {"loss.keep": 0.3, "mix": {"name": "mixup", "block": 2}}
    | {"ema": None, "dropout": {"head": 0.2, "block": 0.1}},
    "decoupled decay, cutmix, augmentations": {"optimizer.decoupled": True, "optimizer.decay": "all"}
    | {
        "ema.every": 1,
        "ema.lookahead": True,
        "mix": {"name": "cutmix", "block": 2},
        "augment.ops": [{"name": "rotation", "degrees": 9}],
    },
    "small images first": {"ema": None, "resize": [{"size": 4, "until": 0.3}]},
}
