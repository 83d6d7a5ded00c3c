"""An ablation: changes to a recipe, judged one at a time by paired runs.

The base and every factor are trained with the same seeds; a factor's figure is the mean of the differences to the base,
seed by seed, with its two-sided 95% interval by Student's t. Accuracies are those of the last epoch without TTA; every
run is tested with it too, which costs no training.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from fastresnet.bench.board import Row, host_of, runs_of
from fastresnet.bench.factors import BASE
from fastresnet.bench.intervals import LEVEL, two_sided


@dataclass(frozen=True, kw_only=True)
class Line:
    """What the runs of the base say, or those of a factor whose seeds the base has too.

    Attributes:
        name, group, set, why: of the factor.
        runs: how many.
        accuracy, accuracy_half: mean without TTA, and the half-width of its interval; None of too few runs.
        accuracy_tta: mean with TTA.
        difference, difference_half: mean difference of accuracy to the base, and the half-width of its interval.
        of_two_commits: how many differences are between runs of two commits.
        time_ratios: what trainings cost over what the base's did, by :func:`cost_of`, in order of size; of pairs
            of one commit and host that did their steps in the same way alone.
        ways: how others of one commit did their steps than the base, as options with values.
        verdict: ``helps``, ``hurts``, ``undecided``, ``one pair`` or ``unmeasured``; empty for the base.
    """

    name: str
    group: str
    set: dict[str, Any]
    why: str
    runs: int
    accuracy: float | None
    accuracy_half: float | None
    accuracy_tta: float | None
    difference: float | None
    difference_half: float | None
    of_two_commits: int
    time_ratios: list[float]
    ways: list[str]
    verdict: str


@dataclass(frozen=True, kw_only=True)
class Table:
    """The lines of one arch, the base first; ``at_once`` as in :class:`Row`."""

    arch: str
    at_once: int
    lines: list[Line]

    @property
    def judged(self) -> int:
        """How many factors have an interval."""
        return sum(line.difference_half is not None for line in self.lines)


def verdict_of(differences: Sequence[float]) -> str:
    """Return what differences of accuracy to the base say: the two-sided 95% interval of their mean decides."""
    half = two_sided(differences)
    if half is None:
        return "one pair" if differences else "unmeasured"
    mean = statistics.fmean(differences)
    if mean - half > 0:
        return "helps"
    return "hurts" if mean + half < 0 else "undecided"


def tables(record: dict[str, Any]) -> list[Table]:
    """Return the record's tables: one an arch, and where some ran at once, one of these and one of those alone."""
    told = {
        (f"{each['arch']}, {each['name']}", each["science"]): (place, each)
        for place, each in enumerate(record["factors"])
    }
    by_table: dict[tuple[str, int], list[tuple[int, dict[str, Any], Row]]] = {}
    for row in dict.fromkeys(Row(**row) for row in record["rows"]):
        place, each = told[row.name, row.science]
        by_table.setdefault((each["arch"], row.at_once), []).append((place, each, row))
    found = []
    for (arch, at_once), rows in by_table.items():
        rows.sort(key=lambda entry: (entry[1]["name"] != BASE, entry[0]))
        bases = {
            row.science: {run["seed"]: run for run in runs_of(record, row)}
            for _, each, row in rows
            if each["name"] == BASE
        }
        lines = [
            _line(each, runs_of(record, row), bases.get(each["base"], {}), record) for _, each, row in rows
        ]
        found.append(Table(arch=arch, at_once=at_once, lines=lines))
    return found


def cost_of(record: dict[str, Any]) -> str:
    """Return by what a record's trainings are compared: ``cpu_s`` where a CPU did them, else ``train_s``.

    CPU seconds are those of all threads, the final evaluation's included. What runs beside changes them little, and
    what a process is stopped for not at all. They are not known of early records' runs.
    """
    where = record["environment"]
    by_cpu = where["device_name"] == where.get("cpu") and all(run.get("cpu_s") for run in record["runs"])
    return "cpu_s" if by_cpu else "train_s"


def _line(
    told: dict[str, Any], runs: list[dict[str, Any]], base: dict[int, dict[str, Any]], record: dict[str, Any]
) -> Line:
    cost = cost_of(record)
    runs = [run for run in runs if run["seed"] in base]
    accuracies = [run["accuracy_without_tta"] for run in runs]
    pairs = [] if told["name"] == BASE else [(run, base[run["seed"]]) for run in runs]
    differences = [run["accuracy_without_tta"] - other["accuracy_without_tta"] for run, other in pairs]
    alike = [(run, other) for run, other in pairs if run["git"] == other["git"]]
    timed = [
        (run, other)
        for run, other in alike
        if run["machine"] == other["machine"] and host_of(record, run) == host_of(record, other)
    ]
    return Line(
        **{key: told[key] for key in ("name", "group", "set", "why")},
        runs=len(runs),
        accuracy=statistics.fmean(accuracies) if runs else None,
        accuracy_half=two_sided(accuracies),
        accuracy_tta=statistics.fmean(run["accuracy"] for run in runs) if runs else None,
        difference=statistics.fmean(differences) if pairs else None,
        difference_half=two_sided(differences),
        of_two_commits=len(pairs) - len(alike),
        time_ratios=sorted(_cost_s(run, cost) / _cost_s(other, cost) for run, other in timed),
        ways=sorted({_apart(run["machine"], other["machine"]) for run, other in alike} - {""}),
        verdict="" if told["name"] == BASE else verdict_of(differences),
    )


def _apart(way: dict[str, Any], base: dict[str, Any]) -> str:
    """Return the options of ``way`` that are not the base's, but for what its host has."""
    apart = {key: value for key, value in way.items() if base.get(key) != value and key != "threads"}
    return " ".join(f"--{key} {value}" for key, value in apart.items())


def _cost_s(run: dict[str, Any], cost: str) -> float:
    """Return CPU seconds; or what is on the clock but the final evaluation, which, with and without TTA, is our own."""
    return float(run["cpu_s"]) if cost == "cpu_s" else float(run["seconds"]) - float(run["clocks"]["eval_s"])


def expected_by_chance(judged: int) -> float:
    """Return how many of that many factors without any effect would be called one that helps or hurts."""
    return judged * (1 - LEVEL)
