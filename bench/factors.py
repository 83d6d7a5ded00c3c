"""The factors of an ablation: changes to a recipe from a TOML file, each tried on the same base, network by network."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import Field, field_validator

from fastresnet.assembly import Data
from fastresnet.bench.contestants import Contestant
from fastresnet.errors import RefusedValue, UserError, did_you_mean
from fastresnet.recipe import Recipe
from fastresnet.recipe_parts import Part, matching
from fastresnet.sweep_cells import learned_of, mentioned, science_of
from fastresnet.toml_model import at_line, read_model, read_text, source_name

BASE = "base"
# What the ablation itself decides, and where a factor of it would belong.
NOT_A_FACTOR = {"arch": "networks are named by --archs", "tta": "every run is tested with and without it"}


class Factor(Part):
    """One change to a recipe.

    Attributes:
        name: lower case with hyphens; dots as in numbers.
        group: what it is a change of, in words.
        set: dotted keys of the recipe, with values as ``--set`` takes them, or as a recipe's file has them.
        why: what speaks for trying it, in a line.
    """

    name: Annotated[str, matching("[a-z0-9][a-z0-9.-]*", "lower case letters, digits, hyphens and dots")]
    group: str
    set: dict[str, Any] = Field(min_length=1)
    why: str

    @field_validator("name")
    @classmethod
    def _not_the_base(cls, name: str) -> str:
        if name == BASE:
            raise ValueError(f"{BASE!r} is what factors are compared with; choose another name")
        return name


class FactorFile(Part):
    """A TOML file of ``[[factor]]`` tables."""

    factor: tuple[Factor, ...] = Field(min_length=1)


@dataclass(frozen=True, kw_only=True)
class Factors:
    """What a file lists, each tried on the base.

    Attributes:
        base: the recipe that they change.
        factors: in the file's order.
    """

    base: Recipe
    factors: tuple[Factor, ...]

    @classmethod
    def load(cls, name_or_path: str, base: Recipe, only: Sequence[str] = ()) -> Factors:
        """Return the factors of a packaged name or a file, all of them or ``only`` those named.

        Raises:
            UserError: not found, not TOML, or, in a factor that is returned, a key or value that the base does not
                allow, with the file's line; no factor of a name in ``only``; two of one name.
        """
        found = read_model("factor", FactorFile, name_or_path).factor
        where, text = source_name("factor", name_or_path), read_text("factor", name_or_path)
        names = [factor.name for factor in found]
        for number, factor in enumerate(found):
            if factor.name in names[:number]:
                raise at_line(where, text, ("factor", number, "name"), f"{factor.name} is listed twice")
            if only and factor.name not in only:
                continue
            try:
                for key in NOT_A_FACTOR.keys() & factor.set.keys():
                    raise RefusedValue(f"{key} is no factor: {NOT_A_FACTOR[key]}", key)
                _changed(base, factor)
            except UserError as error:
                key = mentioned(str(error), factor.set)
                message = f"{factor.name}: {error}"
                raise at_line(where, text, ("factor", number, "set", key), message) from None
        for name in only:
            if name not in names:
                raise UserError(
                    f"{where} lists no factor {name!r}{did_you_mean(name, names)} (it lists {', '.join(names)})"
                )
        return cls(base=base, factors=tuple(each for each in found if not only or each.name in only))

    def entries(self, archs: Sequence[str], data: Data) -> list[Entry]:
        """Return the base and every factor of each arch, in order.

        Raises:
            UserError: an unknown arch; a base that cannot be trained on ``data``.
        """
        found = []
        for arch in archs:
            base = self.base.with_overrides({"arch": arch})
            base.image_sizes(data.dataset.image_size)
            found.append(Entry(arch=arch, factor=None, base=base, recipe=base))
            found += [_entry(base, factor, data) for factor in self.factors]
        return found


@dataclass(frozen=True, kw_only=True)
class Entry:
    """The base, or a factor on it, with one network.

    Attributes:
        arch: the network.
        factor: None for the base.
        base: its recipe.
        recipe: the base's with the factor.
        obstacle: why it is not trained, as where the network has no place for the factor; empty where it is.
    """

    arch: str
    factor: Factor | None
    base: Recipe
    recipe: Recipe
    obstacle: str = ""

    @property
    def name(self) -> str:
        """Of its rows."""
        return f"{self.arch}, {self.factor.name if self.factor else BASE}"

    @property
    def contestant(self) -> Contestant:
        """What is trained."""
        return Contestant(name=self.name, recipe=self.recipe)

    def told(self, data: Data) -> dict[str, Any]:
        """Return what a record says of it beside its runs, told from others by ``science``; ``base`` is its base's."""
        factor = self.factor
        return {
            "science": self.contestant.row(data).science,
            "base": Contestant(name=self.name, recipe=self.base).row(data).science,
            "arch": self.arch,
            "name": factor.name if factor else BASE,
            "group": factor.group if factor else "",
            "set": factor.set if factor else {},
            "why": factor.why if factor else "",
        }


def _entry(base: Recipe, factor: Factor, data: Data) -> Entry:
    try:
        recipe = _changed(base, factor)
        recipe.image_sizes(data.dataset.image_size)
    except UserError as error:
        return Entry(arch=base.arch, factor=factor, base=base, recipe=base, obstacle=str(error))
    learned = [learned_of(each, each.arch_spec()) for each in (base, recipe)]
    same = "it changes nothing: the base has these values already" if learned[0] == learned[1] else ""
    return Entry(arch=base.arch, factor=factor, base=base, recipe=recipe, obstacle=same)


def write_told(record: dict[str, Any], entries: Sequence[Entry], data: Data) -> None:
    """Have the record say what is tried and what is left out, in place of what it said of those before."""
    told = [entry.told(data) for entry in entries if not entry.obstacle]
    keys = ("arch", "name", "science")
    new = {tuple(each[key] for key in keys) for each in told}
    earlier = [each for each in record["factors"] if tuple(each[key] for key in keys) not in new]
    record["factors"] = told + earlier
    names = {entry.name for entry in entries}
    kept = {name: why for name, why in record.get("left_out", {}).items() if name not in names}
    record["left_out"] = kept | {entry.name: entry.obstacle for entry in entries if entry.obstacle}


def _changed(base: Recipe, factor: Factor) -> Recipe:
    recipe = base.with_overrides(factor.set)
    recipe.arch_spec()
    return recipe


def base_digest(base: Recipe) -> str:
    """Return what tells one base from another, whatever its arch."""
    text = json.dumps(science_of(base) | {"arch": None}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]
