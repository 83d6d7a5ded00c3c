"""One row of a board against another, by the runs that took turns: ratios of time, differences of accuracy."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from fastresnet.bench.board import Row, runs_of
from fastresnet.bench.intervals import LEVEL, t_quantile, two_sided
from fastresnet.errors import UserError, did_you_mean


@dataclass(frozen=True, kw_only=True)
class Ratio:
    """A geometric mean of ratios and its two-sided 95% interval; ``low`` and ``high`` are None of a single pair."""

    mean: float
    low: float | None
    high: float | None


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """What a row's runs say beside another's.

    Attributes:
        row: which.
        pairs: rounds in which both ran.
        seconds: its clock over the other's, by the pairs.
        cpu_s: likewise of CPU seconds; None where not all the pairs' runs tell them.
        difference, difference_half: of the mean accuracies of all runs, and the half-width of its two-sided 95%
            interval by Welch's t; None where one of the rows has fewer than two runs.
    """

    row: Row
    pairs: int
    seconds: Ratio
    cpu_s: Ratio | None
    difference: float
    difference_half: float | None


def find_row(record: dict[str, Any], name: str) -> Row:
    """Return the row of that name or label.

    Raises:
        UserError: there is none, or several of that name.
    """
    rows = list(dict.fromkeys(Row(**row) for row in record["rows"]))
    found = [row for row in rows if row.label == name] or [row for row in rows if row.name == name]
    if len(found) == 1:
        return found[0]
    labels = [row.label for row in rows]
    if found:
        raise UserError(
            f"several rows are called {name}; give one of {'; '.join(row.label for row in found)}"
        )
    near = did_you_mean(name, [*labels, *(row.name for row in rows)])
    raise UserError(f"the board has no row {name!r}{near} (it has {'; '.join(labels)})")


def compare(record: dict[str, Any], against: Row) -> list[Comparison]:
    """Return the comparisons with ``against`` of the rows that share a round with it, in the record's order."""
    others = {run["seed"]: run for run in runs_of(record, against)}
    found = []
    for row in dict.fromkeys(Row(**row) for row in record["rows"]):
        runs = runs_of(record, row)
        pairs = [(run, others[run["seed"]]) for run in runs if run["seed"] in others]
        if row == against or not pairs:
            continue
        ours, theirs = ([run["accuracy"] for run in each] for each in (runs, others.values()))
        found.append(
            Comparison(
                row=row,
                pairs=len(pairs),
                seconds=ratio_of([(run["seconds"], other["seconds"]) for run, other in pairs]),
                cpu_s=ratio_of([(run["cpu_s"], other["cpu_s"]) for run, other in pairs])
                if all("cpu_s" in run for pair in pairs for run in pair)
                else None,
                difference=statistics.fmean(ours) - statistics.fmean(theirs),
                difference_half=welch(ours, theirs),
            )
        )
    return found


def ratio_of(pairs: Sequence[tuple[float, float]]) -> Ratio:
    """Return the geometric mean of first over second, with its interval by Student's t of the logarithms."""
    logs = [math.log(one / other) for one, other in pairs]
    mean, half = statistics.fmean(logs), two_sided(logs)
    if half is None:
        return Ratio(mean=math.exp(mean), low=None, high=None)
    return Ratio(mean=math.exp(mean), low=math.exp(mean - half), high=math.exp(mean + half))


def welch(first: Sequence[float], second: Sequence[float], level: float = LEVEL) -> float | None:
    """Return the half-width of the interval of a difference of means (Welch 1947); None of fewer than two values.

    The degrees of freedom are rounded down, which is on the safe side.
    """
    if min(len(first), len(second)) < 2:
        return None
    parts = [statistics.variance(values) / len(values) for values in (first, second)]
    total = sum(parts)
    if not total:
        return 0.0
    freedom = total**2 / sum(
        part**2 / (len(values) - 1) for part, values in zip(parts, (first, second), strict=True)
    )
    return t_quantile((1 + level) / 2, max(1, math.floor(freedom))) * math.sqrt(total)
