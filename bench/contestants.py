"""What a board compares: recipes with their arch and epochs, and peers."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, replace

from fastresnet.assembly import Data
from fastresnet.bench.board import Row
from fastresnet.bench.peers import Peer
from fastresnet.bench.record import publishable
from fastresnet.catalogue import CATALOGUE
from fastresnet.recipe import Recipe
from fastresnet.sweep_cells import learned_of, science_of

FINAL_ARCHS = ("n3-b2-c85-p8", "improved-resnet", "resnet18-c42")  # of R1, R2 and R3
FASTEST = "fastest"  # a recipe that brings its own arch


@dataclass(frozen=True, kw_only=True)
class Contestant:
    """What is run: a recipe with its arch and epochs, or a peer.

    Attributes:
        name: on the board.
        recipe: None for a peer.
        peer: None for a training of ours.
        changes: what was typed of changes to the recipe, for its label.
    """

    name: str
    recipe: Recipe | None = None
    peer: Peer | None = None
    changes: str = ""

    def with_epochs(self, epochs: int) -> Contestant:
        """Return the same with another number of epochs."""
        assert self.recipe is not None
        return replace(self, recipe=self.recipe.with_overrides({"epochs": epochs}))

    def row(self, data: Data, at_once: int = 1) -> Row:
        """Return its line of the board, of trainings alone or of up to ``at_once`` beside each other."""
        if self.recipe is None:
            assert self.peer is not None
            return Row(
                name=self.name,
                recipe=None,
                science=publishable(self.peer.command),
                num_params=None,
                epochs=None,
                tta="none",
            )
        spec = self.recipe.arch_spec()
        is_ours = any(entry.name == self.recipe.arch and entry.table == "ours" for entry in CATALOGUE)
        # a name of ours may stand for another network one day
        science = learned_of(self.recipe, spec) if is_ours else science_of(self.recipe)
        text = json.dumps(science, sort_keys=True)
        sizes = data.dataset.num_classes, data.dataset.image_size
        return Row(
            name=self.name,
            recipe=self.recipe.name,
            science=hashlib.sha256(text.encode()).hexdigest()[:16],
            num_params=spec.num_params(*sizes),
            epochs=self.recipe.epochs,
            tta=self.recipe.tta,
            at_once=at_once,
            changes=self.changes,
            arch=self.recipe.arch if self.name == self.recipe.name else "",
        )


def default_names() -> list[str]:
    """Return the archs of a whole board: R0's table, the final ones of R1, R2 and R3, and our fastest recipe's."""
    table = [entry.name for entry in CATALOGUE if entry.table == "r0-table1"]
    return [*table, *FINAL_ARCHS, FASTEST]
