"""The cells of a sweep: a base recipe with a few keys set, counted, and set beside what was printed."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from fastresnet.arch import ArchSpec
from fastresnet.catalogue import CATALOGUE, CatalogueEntry
from fastresnet.errors import UserError, did_you_mean
from fastresnet.recipe import Recipe
from fastresnet.widest import widest_like

Value = bool | int | float | str
Settings = dict[str, Value]

# The arch space's letters as keys, in the order they are applied; the other keys are `recipe` and the recipe's own.
LETTERS = ("B", "N", "C", "F", "K", "P", "stem")
WIDEST, GLOBAL = "widest", "global"  # values of C and P that are not numbers

# What is no key of a cell, but an option of the whole sweep.
OF_THE_RUN = ("data", "image_size", "seed", "limit_train", "device", "loader", "amp", "compile", "threads")


class KeyMistake(UserError):
    """What is wrong with a key of a sweep; it gets its line where the file is known."""

    def __init__(self, key: str, message: str) -> None:
        super().__init__(message)
        self.key = key


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One training of a sweep.

    Attributes:
        settings: what tells it from the others, in columns; a later step's hold what the earlier ones chose.
        recipe: what is trained.
        spec: its network.
        params, multiply_adds: of the network, for one image of the data.
        over_budget: it has more parameters than the sweep allows, and is not trained.
        own_epochs: what the recipe states, where the sweep was asked for others.
        printed_accuracy, printed_params: as printed.
        note: what a reader of the table should know.
    """

    settings: Settings
    recipe: Recipe
    spec: ArchSpec
    params: int
    multiply_adds: int
    over_budget: bool
    own_epochs: int
    printed_accuracy: float | None
    printed_params: int | None
    note: str

    @property
    def label(self) -> str:
        """``C=8``, as lines call it."""
        return " ".join(f"{key}={value}" for key, value in self.settings.items())

    def key(self, conditions: Mapping[str, Any]) -> str:
        """Return 12 hex digits that stand for all that decides what is learned.

        Args:
            conditions: the data and seed, as JSON types.
        """
        learned = learned_of(self.recipe, self.spec)
        canonical = json.dumps([learned, dict(conditions)], sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(canonical.encode()).hexdigest()[:12]


def science_of(recipe: Recipe) -> dict[str, Any]:
    """Return a recipe as JSON types, less what is said about it, and less what is as it is by default.

    A key that recipes are given later so leaves what was recorded before where it was.
    """
    words = {"name", "description", "reported", "open_choices"}
    return recipe.model_dump(mode="json", exclude=words, exclude_defaults=True)


def learned_of(recipe: Recipe, spec: ArchSpec) -> dict[str, Any]:
    """Return :func:`science_of` a recipe with its network ``spec`` as a slug, in place of how it was named."""
    return science_of(recipe) | {"arch": spec.slug, "activation": None, "dropout": None}


@dataclass(frozen=True, kw_only=True)
class CellMaker:
    """Makes the cells of one sweep.

    Attributes:
        load: returns the recipe of a name or path.
        recipe: the base's.
        common: set in every cell.
        budget: most parameters; None for no limit.
        printed_table: the catalogue's table that printed the cells.
        epochs: in place of the recipe's; None leaves them.
        num_classes, image_size: of the data, for the counts.
    """

    load: Callable[[str], Recipe]
    recipe: str
    common: Settings
    budget: int | None
    printed_table: str | None
    epochs: int | None
    num_classes: int
    image_size: int

    def make(self, settings: Settings, accuracy: float | None, params: int | None, note: str) -> Cell:
        """Return the cell that sets ``settings``; the rest is as its own entry prints it, where it does.

        Raises:
            KeyMistake: a key or value that is not allowed.
        """
        merged = {**self.common, **settings}
        for key in merged:
            _check_key(key)
        if self.epochs is not None and "epochs" in merged:
            raise KeyMistake("epochs", "epochs is set by the sweep itself; leave --epochs out")
        base = self._base(str(merged.pop("recipe", self.recipe)))
        letters = {key: merged.pop(key) for key in LETTERS if key in merged}
        widest = letters.get("C") == WIDEST
        try:
            recipe = base.with_overrides(merged)
            spec = recipe.arch_spec()
        except UserError as error:
            raise KeyMistake(mentioned(str(error), merged), str(error)) from None
        for key, value in letters.items():
            if key == "C" and widest:
                continue  # what fits depends on all the others
            try:
                spec = self._with_letter(spec, key, value)
            except UserError as error:
                raise KeyMistake(key, f"{key} is {value!r}: {error}") from None
        try:
            spec.validate_for(self.image_size)
            if widest:
                spec = self._widest(spec)
            if letters:
                # The recipe's own activation and dropout are in the slug by now; setting them again changes nothing.
                recipe = recipe.with_overrides({"arch": spec.slug})
            count = spec.num_params(self.num_classes, self.image_size)
            multiply_adds = spec.num_multiply_adds(self.num_classes, self.image_size)
            recipe.image_sizes(self.image_size)
        except KeyMistake:
            raise
        except UserError as error:
            given = {**settings, **self.common}
            resizing = [key for key in given if key.startswith("resize") and str(error).startswith("resize")]
            blamed = next((key for key in (*resizing, "P", "N", "arch") if key in given), "recipe")
            raise KeyMistake(blamed, str(error)) from None
        row = self._printed_row(spec, widest)
        if accuracy is None and row is not None:
            accuracy, params, note = row.printed_accuracy, row.printed_params, note or _note(row, spec)
        elif accuracy is None and "recipe" in settings and base.reported and recipe == base:
            accuracy, params = base.reported.accuracy, base.reported.params
        elif accuracy is None and "recipe" in settings and not note:
            note = _printed_for_another(base, recipe)
        own_epochs = recipe.epochs
        if self.epochs is not None:
            recipe = _with_epochs(recipe, self.epochs)
        return Cell(
            settings={**settings, "C": spec.channels[0]} if settings.get("C") == WIDEST else settings,
            recipe=recipe,
            spec=spec,
            params=count,
            multiply_adds=multiply_adds,
            over_budget=self.budget is not None and count > self.budget,
            own_epochs=own_epochs,
            printed_accuracy=accuracy,
            printed_params=params,
            note=note,
        )

    def _base(self, name: str) -> Recipe:
        try:
            return self.load(name)
        except UserError as error:
            raise KeyMistake("recipe", str(error)) from None

    def _widest(self, spec: ArchSpec) -> ArchSpec:
        """Return ``spec`` with the widest C, doubling a stage, that the budget allows."""
        try:
            if self.budget is None:
                raise UserError("the widest that fits needs a budget; give the sweep one")
            return widest_like(spec, self.budget, num_classes=self.num_classes, image_size=self.image_size)
        except UserError as error:
            raise KeyMistake("C", f"C is {WIDEST!r}: {error}") from None

    def _with_letter(self, spec: ArchSpec, letter: str, value: Value) -> ArchSpec:
        """Return ``spec`` with a letter of the arch space set, for all stages."""
        if letter == "P" and value == GLOBAL:
            return spec.replace(pool=None)
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            words = {"C": f" or {WIDEST!r}", "P": f" or {GLOBAL!r}"}.get(letter, "")
            raise UserError(f"it must be a whole number from 1{words}")
        if letter == "N":
            if len(set(spec.blocks)) != 1:
                raise UserError(
                    "the base's stages differ in blocks; set arch to a network whose stages are alike"
                )
            doubled = tuple(spec.channels[0] << i for i in range(value))
            return spec.replace(blocks=spec.blocks[:1] * value, channels=doubled)
        every = (value,) * spec.num_stages
        changes: dict[str, dict[str, Any]] = {
            "B": {"blocks": every},
            "C": {"channels": tuple(value << i for i in range(spec.num_stages))},
            "F": {"kernels": every},
            "K": {"shortcut_kernels": every},
            "P": {"pool": value},
            "stem": {"stem": value},
        }
        return spec.replace(**changes[letter])

    def _printed_row(self, spec: ArchSpec, widest: bool) -> CatalogueEntry | None:
        """Return the printed row of a network; one that differs in C alone counts where C is the widest."""
        rows = [entry for entry in CATALOGUE if entry.table == self.printed_table]
        found = [entry for entry in rows if entry.spec == spec]
        if not found and widest:
            alike = [entry for entry in rows if entry.spec.blocks == spec.blocks]
            found = [entry for entry in alike if entry.spec.replace(channels=spec.channels) == spec]
        return found[0] if found else None


def _printed_for_another(base: Recipe, recipe: Recipe) -> str:
    """Return what was printed of a recipe that differs from ``base`` in its network alone; empty for nothing."""
    if base.reported is None or base.reported.accuracy is None or recipe.arch == base.arch:
        return ""
    alike = science_of(recipe) | {"arch": base.arch} == science_of(base)
    return f"printed for {base.arch}: {base.reported.accuracy:.4f}" if alike else ""


def _with_epochs(recipe: Recipe, epochs: int) -> Recipe:
    try:
        return recipe.with_overrides({"epochs": epochs})
    except UserError as error:
        raise KeyMistake("epochs", str(error)) from None


def _check_key(key: str) -> None:
    known = [*LETTERS, "recipe", *Recipe.model_fields]
    if key in OF_THE_RUN:
        raise KeyMistake(key, f"unknown key {key!r}: --{key.replace('_', '-')} sets it, for every cell alike")
    if key.split(".")[0] not in known:
        raise KeyMistake(
            key,
            f"unknown key {key!r}{did_you_mean(key, known)} (allowed: {', '.join(LETTERS)}, recipe, and a recipe's "
            "keys, as in optimizer.lr)",
        )


def mentioned(message: str, settings: Mapping[str, Any]) -> str:
    """Return the key of ``settings`` that a message is about."""
    found = [key for key in settings if key in message]
    found = found or [key for key in settings if str(settings[key]) in message]
    return max(found, key=len) if found else next(iter(settings), "recipe")


def _note(row: CatalogueEntry, spec: ArchSpec) -> str:
    """Return what is to be said of a printed row beside a cell of ours."""
    width = f"printed for C={row.spec.channels[0]}" if row.spec != spec else ""
    return "; ".join(filter(None, (width, row.erratum)))
