"""One row of a board against another, by the runs that took turns: ratios of time, differences of accuracy."""

from __future__ import annotations

import datetime
import itertools
import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from fastresnet.bench.board import FIGURE, Row, host_of, labels_of, row_of, runs_of
from fastresnet.bench.intervals import LEVEL, t_quantile, two_sided


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
        rounds: in which both ran on one host, with no other run of either between.
        seconds: its clock over the other's, by the rounds; None where there is none.
        cpu_s: likewise of CPU seconds; None where not all of those runs tell them.
        difference, difference_half: of the mean accuracies of all runs, and the half-width of its two-sided 95%
            interval by Welch's t; None where one of the rows has fewer than two runs.
    """

    row: Row
    rounds: int
    seconds: Ratio | None
    cpu_s: Ratio | None
    difference: float
    difference_half: float | None


def rows_named(record: dict[str, Any], name: str) -> list[Row]:
    """Return the rows of that label or, where there is none, of that name."""
    labels = labels_of(Row(**row) for row in record["rows"])
    for name_of in (labels.__getitem__, lambda row: row.label, lambda row: row.name):
        if named := [row for row in labels if name_of(row) == name]:
            return named
    return []


def find_row(record: dict[str, Any], name: str) -> Row | None:
    """Return, of the rows of that label or name, the one with runs that was asked for last, else the last one.

    None where there is none.
    """
    asked = [Row(**each["row"]) for each in record.get("asked", ())]
    named = sorted(rows_named(record, name), key=lambda row: asked.index(row) if row in asked else -1)
    return next(reversed([row for row in named if runs_of(record, row)] or named), None)


def compare(record: dict[str, Any], against: Row) -> list[Comparison]:
    """Return the comparisons with ``against`` of all other rows that have runs, in the record's order."""
    theirs = [run["accuracy"] for run in runs_of(record, against)]
    found = []
    for row in dict.fromkeys(Row(**row) for row in record["rows"]):
        ours = [run["accuracy"] for run in runs_of(record, row)]
        if row == against or not ours or not theirs:
            continue
        pairs = _rounds(record, row, against)
        tell_cpu = bool(pairs) and all(run.get("cpu_s") for pair in pairs for run in pair)
        found.append(
            Comparison(
                row=row,
                rounds=len(pairs),
                seconds=ratio_of([(run["seconds"], other["seconds"]) for run, other in pairs])
                if pairs
                else None,
                cpu_s=ratio_of([(run["cpu_s"], other["cpu_s"]) for run, other in pairs])
                if tell_cpu
                else None,
                difference=statistics.fmean(ours) - statistics.fmean(theirs),
                difference_half=welch(ours, theirs),
            )
        )
    return found


def _rounds(record: dict[str, Any], row: Row, against: Row) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    """Return the pairs of runs of one seed and host that followed each other, each done with nothing beside it."""
    if row.at_once > 1 or against.at_once > 1:
        return []
    runs = record["runs"]
    places = [
        place for place, run in enumerate(runs) if run["role"] == FIGURE and row_of(run) in (row, against)
    ]
    pairs = []
    for place, next_place in itertools.pairwise(places):
        one, other = runs[place], runs[next_place]
        busy_s = sum(run["process_s"] for run in runs[place:next_place])
        of_a_round = one["seed"] == other["seed"] and host_of(record, one) == host_of(record, other)
        if row_of(one) != row_of(other) and of_a_round and _follow(one, other, busy_s):
            pairs.append((one, other) if row_of(one) == row else (other, one))
    return pairs


def _follow(one: dict[str, Any], other: dict[str, Any], busy_s: float) -> bool:
    """Whether the other run began after the one, idle between no longer than the one took, or a minute.

    ``busy_s`` are the seconds of the one and of all that was run between the two.
    """
    began, then = (datetime.datetime.fromisoformat(run["started"]) for run in (one, other))
    later_s = (then - began).total_seconds()
    return 0 <= later_s <= busy_s + max(60.0, one["process_s"])


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
