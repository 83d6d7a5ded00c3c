"""What a sweep trains: :class:`SweepSpec`, read from TOML, and from it the cells of each step."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import (
    BeforeValidator,
    Field,
    ValidationError,
    ValidatorFunctionWrapHandler,
    WrapValidator,
    field_validator,
    model_validator,
)
from pydantic_core import PydanticCustomError

from fastresnet.catalogue import TABLES
from fastresnet.errors import Conflict, did_you_mean
from fastresnet.recipe import Recipe, load_recipe
from fastresnet.recipe_parts import NAME, Fraction, Name, Part
from fastresnet.sweep_cells import Cell, CellMaker, KeyMistake, Settings, Value
from fastresnet.toml_model import KeyPath, at_line, packaged_names, read_model, read_text, source_name

MAX_CELLS = 10_000  # each is looked at before any is trained


def _simple(value: Any, check: ValidatorFunctionWrapHandler) -> Value:
    try:
        return check(value)
    except ValidationError:  # else each kind of value complains for itself
        raise PydanticCustomError("simple", "must be a number, text, true or false") from None


def _no_tables(settings: Any) -> Any:
    """Refuse ``optimizer.lr = 1``, which TOML reads as a table: dotted keys of recipes are texts."""
    for key, value in settings.items() if isinstance(settings, dict) else ():
        if isinstance(value, dict):
            dotted = f"{key}.{next(iter(value), 'key')}"
            raise Conflict(f'{key} is a table; write "{dotted}" with the quotes, as one key', key)
    return settings


Simple = Annotated[Value, WrapValidator(_simple)]
Set = Annotated[dict[str, Simple], BeforeValidator(_no_tables)]
Grid = Annotated[dict[str, tuple[Simple, ...]], BeforeValidator(_no_tables)]


class CellEntry(Part):
    """One cell, and what its source printed of it.

    Attributes:
        set: what it changes: keys as in a grid.
        printed_accuracy: in [0, 1].
        printed_params: number of parameters.
        note: what a reader of the table should know.
    """

    set: Set
    printed_accuracy: Fraction | None = None
    printed_params: int | None = Field(default=None, ge=1)
    note: str = ""


class CellsPart(Part):
    """Cells, as the product of a ``grid``'s values or one by one.

    Attributes:
        grid: values by key: a letter of the arch space (N, B, C, F, K, P; ``stem`` for its kernel), ``recipe``
            for another base, or a recipe's dotted key.
        cells: the cells one by one.
    """

    grid: Grid = Field(default_factory=dict)
    cells: tuple[CellEntry, ...] = ()

    @field_validator("grid")
    @classmethod
    def _values(cls, grid: dict[str, tuple[Value, ...]]) -> dict[str, tuple[Value, ...]]:
        for key, values in grid.items():
            if not values:
                raise Conflict(f"{key} has no values; give at least one", key)
        number = math.prod(map(len, grid.values()))
        if number > MAX_CELLS:
            raise ValueError(f"its values make {number:,} cells; a sweep may have {MAX_CELLS:,}")
        return grid

    def entries(self) -> Iterator[tuple[CellEntry, dict[str, KeyPath]]]:
        """Yield each cell, and where in this part each of its keys stands."""
        for number, entry in enumerate(self.cells):
            yield entry, {key: ("cells", number, "set", key) for key in entry.set}
        if self.grid:
            axes = [[(key, i, value) for i, value in enumerate(values)] for key, values in self.grid.items()]
            for point in itertools.product(*axes):
                entry = CellEntry(set={key: value for key, _, value in point})
                yield entry, {key: ("grid", key, i) for key, i, _ in point}


class Step(CellsPart):
    """One study of a sequence, which starts from the best of the one before."""

    name: Name

    @model_validator(mode="after")
    def _one_form(self) -> Step:
        if bool(self.grid) == bool(self.cells):
            raise Conflict("give either a grid or cells", *(["cells"] if self.cells else []))
        return self


class SweepSpec(CellsPart):
    """A sweep: a base recipe, and the cells that differ from it.

    Attributes:
        name: lower case with hyphens; a packaged sweep's file name.
        title: one line.
        recipe: the base, by name, or by path from the sweep's own file.
        set: changed in the base for every cell.
        budget: most parameters a cell may have; those with more are not trained.
        printed_table: the table of the catalogue (``fastresnet archs``) that printed the cells' figures.
        sequence: several studies in a row, in place of one grid or list of cells.
    """

    name: Name
    title: str = ""
    recipe: str
    set: Set = Field(default_factory=dict)
    budget: int | None = Field(default=None, ge=1)
    printed_table: str | None = None
    sequence: tuple[Step, ...] = ()

    @field_validator("printed_table")
    @classmethod
    def _known_table(cls, table: str | None) -> str | None:
        if table is not None and table not in TABLES:
            raise ValueError(
                f"no table {table!r}{did_you_mean(table, TABLES)} (allowed: {', '.join(TABLES)})"
            )
        return table

    @model_validator(mode="after")
    def _one_form(self) -> SweepSpec:
        given = [part for part in ("grid", "cells", "sequence") if getattr(self, part)]
        if len(given) != 1:
            raise Conflict("give one of a grid, cells and a sequence, to say what is trained", *given[1:2])
        names = [step.name for step in self.sequence]
        for place, name in enumerate(names):
            if name in names[:place]:
                raise Conflict(f"two steps of the sequence have the name {name!r}", "sequence", place, "name")
        return self


@dataclass(frozen=True, kw_only=True)
class Sweep:
    """A spec, where it was read, so that a mistake is said with its line, and what its cells are counted for.

    Attributes:
        spec: what was read.
        where, text: the file's name and contents.
        folder: of the user's file; None for a packaged sweep.
        epochs: of every cell; None for the recipe's.
        num_classes, image_size: of the data.
    """

    spec: SweepSpec
    where: str
    text: str
    folder: Path | None
    epochs: int | None = None
    num_classes: int = 10
    image_size: int = 32

    @property
    def steps(self) -> tuple[str, ...]:
        """The names of its studies: one without a name, unless it is a sequence."""
        return tuple(step.name for step in self.spec.sequence) or ("",)

    @property
    def num_cells(self) -> int:
        """Trainings in all."""
        return sum(len(list(part.entries())) for part in self.spec.sequence or (self.spec,))

    def base(self) -> Recipe:
        """Return the recipe that cells differ from, as read."""
        return self._load(self.spec.recipe)

    def cells(self, step: str = "", chosen: Settings | None = None) -> list[Cell]:
        """Return the cells of a step, some of which may break the budget.

        Args:
            step: its name.
            chosen: what the earlier steps chose, set in every cell.

        Raises:
            UserError: a key or value that is not allowed, with the file's line; two cells that are the same;
                every cell breaks the budget.
        """
        spec = self.spec
        number = self.steps.index(step)
        part: CellsPart = spec.sequence[number] if spec.sequence else spec
        within: KeyPath = ("sequence", number) if spec.sequence else ()
        maker = CellMaker(
            load=self._load,
            recipe=spec.recipe,
            common=spec.set,
            budget=spec.budget,
            printed_table=spec.printed_table,
            epochs=self.epochs,
            num_classes=self.num_classes,
            image_size=self.image_size,
        )
        cells: list[Cell] = []
        for entry, paths in part.entries():
            lines: dict[str, KeyPath] = {"recipe": ("recipe",)} | {key: ("set", key) for key in spec.set}
            lines |= {key: (*within, *path) for key, path in paths.items()}
            settings = {**(chosen or {}), **entry.set}
            try:
                cell = maker.make(settings, entry.printed_accuracy, entry.printed_params, entry.note)
                if any(cell.settings == other.settings for other in cells):
                    raise KeyMistake(next(iter(entry.set), ""), f"the cell {cell.label} is listed twice")
            except KeyMistake as mistake:
                path = lines.get(mistake.key, within)
                if str(mistake).startswith("unknown key") and isinstance(path[-1], int):
                    path = path[:-1]  # the key's own line, not its value's
                raise at_line(self.where, self.text, path, str(mistake)) from None
            cells.append(cell)
        if cells and all(cell.over_budget for cell in cells):
            least = min(cells, key=lambda cell: cell.params)
            raise at_line(
                self.where,
                self.text,
                ("budget",),
                f"budget is {spec.budget:,} parameters, and every cell breaks it: the smallest, {least.label}, "
                f"has {least.params:,}; raise the budget or choose smaller networks",
            )
        return cells

    def all_cells(self) -> list[tuple[str, list[Cell]]]:
        """Return each step's name and cells, as if the best printed cell of each step came out best.

        Where a step has no printed accuracy, its first cell stands in.

        Raises:
            UserError: as :meth:`cells`.
        """
        listed: list[tuple[str, list[Cell]]] = []
        chosen: Settings = {}
        for step in self.steps:
            cells = self.cells(step, chosen)
            allowed = [cell for cell in cells if not cell.over_budget]
            chosen = max(allowed, key=lambda cell: cell.printed_accuracy or 0.0).settings
            listed.append((step, cells))
        return listed

    def _load(self, name: str) -> Recipe:
        is_path = self.folder is not None and name.endswith(".toml")
        return load_recipe(str(self.folder / name) if is_path and self.folder else name)


def sweep_names() -> tuple[str, ...]:
    """Return the names of the packaged sweeps, sorted."""
    return packaged_names("sweep")


def is_name(text: str) -> bool:
    """Return whether a sweep may be called so: its folder's name, which leads nowhere else."""
    return re.fullmatch(NAME, text) is not None


def load_sweep(name_or_path: str) -> Sweep:
    """Return a packaged sweep by name, or the one in a TOML file.

    Raises:
        UserError: not found, not TOML, or a key or value that is not allowed, with the file's line. The values
            of its cells are checked by :meth:`Sweep.cells`.
    """
    return Sweep(
        spec=read_model("sweep", SweepSpec, name_or_path),
        where=source_name("sweep", name_or_path),
        text=read_text("sweep", name_or_path),
        folder=None if name_or_path in sweep_names() else Path(name_or_path).parent,
    )
