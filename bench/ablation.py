"""An ablation: changes to a recipe, judged one at a time by paired runs.

The base and every factor are trained with the same seeds; a factor's figure is the mean of the differences to the base,
seed by seed, with its two-sided 95% interval by Student's t. Accuracies are those of the last epoch without TTA; every
run is tested with it too, which costs no training.
"""

from __future__ import annotations

import hashlib
import json
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import Field, field_validator

from fastresnet.assembly import Data
from fastresnet.bench.board import Row, runs_of
from fastresnet.bench.contestants import Contestant
from fastresnet.bench.intervals import LEVEL, two_sided
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
            of one commit that did their steps in the same way alone.
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
    found, cost = [], cost_of(record)
    for (arch, at_once), rows in by_table.items():
        rows.sort(key=lambda entry: (entry[1]["name"] != BASE, entry[0]))
        bases = {
            row.science: {run["seed"]: run for run in runs_of(record, row)}
            for _, each, row in rows
            if each["name"] == BASE
        }
        lines = [
            _line(each, runs_of(record, row), bases.get(each["base"], {}), cost) for _, each, row in rows
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
    told: dict[str, Any], runs: list[dict[str, Any]], base: dict[int, dict[str, Any]], cost: str
) -> Line:
    runs = [run for run in runs if run["seed"] in base]
    accuracies = [run["accuracy_without_tta"] for run in runs]
    pairs = [] if told["name"] == BASE else [(run, base[run["seed"]]) for run in runs]
    differences = [run["accuracy_without_tta"] - other["accuracy_without_tta"] for run, other in pairs]
    alike = [(run, other) for run, other in pairs if run["git"] == other["git"]]
    timed = [(run, other) for run, other in alike if run["machine"] == other["machine"]]
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
    """Return the options of ``way`` that are not the base's."""
    return " ".join(f"--{key} {value}" for key, value in way.items() if base.get(key) != value)


def _cost_s(run: dict[str, Any], cost: str) -> float:
    """Return CPU seconds; or what is on the clock but the final evaluation, which, with and without TTA, is our own."""
    return float(run["cpu_s"]) if cost == "cpu_s" else float(run["seconds"]) - float(run["clocks"]["eval_s"])


def expected_by_chance(judged: int) -> float:
    """Return how many of that many factors without any effect would be called one that helps or hurts."""
    return judged * (1 - LEVEL)
