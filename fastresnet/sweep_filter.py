"""Some of a sweep's cells, as ``--cells C=2..64`` names them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from fastresnet.errors import UserError, did_you_mean
from fastresnet.sweep_cells import Cell, Value


@dataclass(frozen=True)
class CellFilter:
    """A range of numbers, both ends included, or some values, of one key."""

    key: str
    low_high: tuple[float, float] | None
    values: tuple[str, ...]

    @classmethod
    def parse(cls, text: str) -> CellFilter:
        """Return what ``C=2..64`` or ``optimizer.name=adam,sgd`` names.

        Raises:
            UserError: it is not of that form.
        """
        key, _, values = (part.strip() for part in text.partition("="))
        if not key or not values:
            raise UserError(f"--cells {text!r} is not KEY=VALUES; write C=2..64 or C=2,4,8")
        ends = re.fullmatch(r"(.+?)\.\.(.+)", values)
        if ends is None:
            return cls(key, None, tuple(value.strip() for value in values.split(",")))
        try:
            low, high = (float(end) for end in ends.groups())
        except ValueError:
            raise UserError(f"--cells {text!r}: a range is LOW..HIGH, two numbers, as in C=2..64") from None
        return cls(key, (low, high), ())

    def admits(self, value: Value | None) -> bool:
        """Return whether a cell with this value is named."""
        is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
        if self.low_high is not None:
            return is_number and self.low_high[0] <= float(value) <= self.low_high[1]  # type: ignore[arg-type]
        if not is_number:
            return str(value).lower() in {text.lower() for text in self.values}
        return any(_number(text) == value for text in self.values)


def select_steps(
    steps: list[tuple[str, list[Cell]]], filters: Sequence[CellFilter]
) -> list[tuple[str, list[Cell]]]:
    """Return each step's name and the cells that the filters name.

    Raises:
        UserError: as :func:`select`, or there are filters and several steps.
    """
    if filters and len(steps) > 1:
        raise UserError("--cells is for sweeps of one step; in a sequence a step needs all of the one before")
    return [(step, select(cells, filters)) for step, cells in steps]


def select(cells: list[Cell], filters: Sequence[CellFilter]) -> list[Cell]:
    """Return the cells that every filter names.

    Raises:
        UserError: no cell has such a key, or none has such values.
    """
    keys = list(dict.fromkeys(key for cell in cells for key in cell.settings))
    for wanted in filters:
        if wanted.key not in keys:
            near = did_you_mean(wanted.key, keys)
            raise UserError(f"--cells: no cell has {wanted.key!r}{near} (allowed: {', '.join(keys)})")
    found = [cell for cell in cells if all(some.admits(cell.settings.get(some.key)) for some in filters)]
    if not found:
        there = "; ".join(
            f"{some.key} is {', '.join(dict.fromkeys(str(cell.settings.get(some.key)) for cell in cells))}"
            for some in filters
        )
        raise UserError(f"--cells names no cell; in this sweep {there}")
    return found


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None
