"""The time-to-accuracy board: its record, and what its runs say by both protocols.

- *Fixed budget*: a schedule counts when the one-sided 95% lower bound of its mean final accuracy is at or above the
  target. Its time is the mean over runs. A schedule that a search chose is run again on fresh seeds, and only those
  runs are its figure.
- *First crossing*: the clock when an evaluation first reaches the target. It is chosen on the test set, which
  flatters, and depends on how often is evaluated; evaluations before the crossing are not on the clock.

On the clock (``seconds``): moving the data to the device, initialisation that depends on the data, every draw and
training step, and the final evaluation with the TTA that the row names. Off it: imports, packing, building, compiling,
the warm-up on random labels after which the state is restored, evaluations between epochs and checkpoints. A peer's
clock is its own, and is said. A training that had others beside it on the device has the same clock, and says how many
trainings get done, not how soon one does: its row is another than that of trainings alone.
"""

from __future__ import annotations

import hashlib
import statistics
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from fastresnet.bench.intervals import lower_bound, two_sided
from fastresnet.bench.schedule_search import judge
from fastresnet.engine.machine import UNFOUND
from fastresnet.errors import UserError
from fastresnet.words import counted

FIGURE, SEARCH = "figure", "search"
ENERGY = "of the whole GPU, from the first step to the end of the run; of a peer, what its own line says"
WAY = (*UNFOUND, "loader")  # of a run's machine: how it does its steps, as its row's other runs then do
# Accuracy worth naming, by data set; CIFAR-10-J75's is where a recipe that reaches 94% on CIFAR-10 ends.
USUAL_TARGETS = {"CIFAR-10": 0.94, "CIFAR-10-J75": 0.906}


def check_target(wanted: float) -> None:
    """Raise UserError unless the target is in (0, 1]."""
    if not 0 < wanted <= 1:
        raise UserError(f"--target is {wanted:g}; it must be an accuracy above 0 and up to 1, as in 0.94")


def resolve_target(wanted: float | None, dataset: str) -> float:
    """Return the target: on CIFAR-10 it is 0.94 unless given, elsewhere it must be given.

    Raises:
        UserError: it is not, and the usual one is named.
    """
    if wanted is not None:
        return wanted
    if dataset == "CIFAR-10":
        return USUAL_TARGETS[dataset]
    usual = USUAL_TARGETS.get(dataset)
    hint = "it has no usual one" if usual is None else f"the usual one is {usual:g}"
    raise UserError(f"give the accuracy to reach on {dataset} with --target; {hint}")


@dataclass(frozen=True, kw_only=True)
class Row:
    """What runs of one kind share: a line of the board.

    Attributes:
        name: an arch, a recipe that brings its own, or a peer.
        recipe: the recipe's name; None for a peer.
        science: what tells one recipe from another of the same name: a digest of it, arch and epochs included; a peer's
            command without folders of absolute paths.
        num_params: None for a peer.
        epochs: None for a peer.
        tta: what the final accuracy averages over.
        at_once: most trainings that ran beside each other, itself included.
        changes: keys of the recipe that were changed, as typed; ``science`` tells them from others already.
        arch: of a recipe that brings its own, which ``science`` tells too.
    """

    name: str
    recipe: str | None
    science: str
    num_params: int | None
    epochs: int | None
    tta: str
    at_once: int = 1
    changes: str = field(default="", compare=False)
    arch: str = field(default="", compare=False)

    @property
    def label(self) -> str:
        """The row in words."""
        words = [self.name]
        if self.arch:
            words = [f"{self.name} ({self.arch}){self.changed}"]
        elif self.recipe is not None:
            words.append(f"{self.recipe}{self.changed}")
        if self.epochs is not None:
            words.append(counted(self.epochs, "epoch"))
        if self.tta != "none":
            words.append(f"{self.tta} TTA")
        if self.at_once > 1:
            words.append(f"{self.at_once} at once")
        return ", ".join(words)

    @property
    def changed(self) -> str:
        """What follows the recipe's name: its changes, where there are some."""
        return f" with {self.changes}" if self.changes else ""


def labels_of(rows: Iterable[Row]) -> dict[Row, str]:
    """Return each row's label; of those that share one, as after a change to a recipe, with a digest of its own."""
    different = list(dict.fromkeys(rows))
    times = Counter(row.label for row in different)
    return {
        row: row.label if times[row.label] == 1 else f"{row.label}, form {_digest(row.science)}"
        for row in different
    }


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:6]


@dataclass(frozen=True, kw_only=True)
class Summary:
    """What a row's figure runs say.

    Attributes:
        row: which.
        runs: how many.
        accuracy, accuracy_sd, accuracy_low: mean, standard deviation, and one-sided 95% lower bound of the mean; None
            where there are too few runs.
        verdict: ``reaches`` where the lower bound is at the target, ``mean only`` where only the mean is, ``below``,
            ``one run``, or ``unmeasured``.
        seconds, seconds_half: mean of the fixed budget's clock, and the half-width of its 95% interval.
        crossed: how many runs crossed the target at an evaluation; None for a peer, which says nothing of it.
        crossing_s, crossing_half: likewise of the first crossing, over the runs that crossed.
        cpu_s: mean CPU seconds of the runs that tell them, None where none does; ``cpu_runs`` are how many.
        energy_j: mean joules of the runs that they were read of, None where of none; ``energy_runs`` are how many.
        searched: whether a search found this number of epochs.
        dates: of the runs, each once.
        commits: likewise.
        failed: why the row was left before its last run; None where it was not.
    """

    row: Row
    runs: int
    accuracy: float | None
    accuracy_sd: float | None
    accuracy_low: float | None
    verdict: str
    seconds: float | None
    seconds_half: float | None
    crossed: int | None
    crossing_s: float | None
    crossing_half: float | None
    cpu_s: float | None
    cpu_runs: int
    energy_j: float | None
    energy_runs: int
    searched: bool
    dates: tuple[str, ...]
    commits: tuple[str, ...]
    failed: str | None


def row_of(run: dict[str, Any]) -> Row:
    """Return the row that a run of a record belongs to."""
    return Row(**run["row"])


def peer_tta(record: dict[str, Any], row: Row) -> str:
    """Return what a peer's accuracy averages over, as its last run says; ``none`` where it says nothing."""
    runs = runs_of(record, row) if row.recipe is None else []
    return str(runs[-1].get("tta", "none")) if runs else "none"


def host_of(record: dict[str, Any], run: dict[str, Any]) -> tuple[str, int]:
    """Return what a run was done with beside a GPU: the processor, and how many of its threads its command had."""
    where = record["environment"]
    return str(run.get("cpu", where.get("cpu"))), int(run.get("threads", where["threads"]))


def runs_of(record: dict[str, Any], row: Row, role: str = FIGURE) -> list[dict[str, Any]]:
    """Return a row's runs in that role, by seed."""
    found = [run for run in record["runs"] if run["role"] == role and row_of(run) == row]
    return sorted(found, key=lambda run: run["seed"])


def verdict_of(accuracies: Sequence[float], target: float) -> str:
    """Return what the final accuracies of a schedule say of a target, as on the board."""
    if not accuracies:
        return "unmeasured"
    if len(accuracies) == 1:
        return "one run"
    if judge(accuracies, target) == "reaches":
        return "reaches"
    return "mean only" if statistics.fmean(accuracies) >= target else "below"


def summarise(record: dict[str, Any], row: Row) -> Summary:
    """Return what the figure runs of ``row`` say."""
    runs = runs_of(record, row)
    accuracies = [run["accuracy"] for run in runs]
    seconds = [run["seconds"] for run in runs]
    crossings = [run["crossing_s"] for run in runs if run["crossing_s"] is not None]
    cpu = [run["cpu_s"] for run in runs if run.get("cpu_s") is not None]
    energies = [run["energy_j"] for run in runs if run["energy_j"] is not None]
    return Summary(
        row=row,
        runs=len(runs),
        accuracy=_mean(accuracies),
        accuracy_sd=statistics.stdev(accuracies) if len(runs) > 1 else None,
        accuracy_low=lower_bound(accuracies),
        verdict=verdict_of(accuracies, record["settings"]["target"]),
        seconds=_mean(seconds),
        seconds_half=two_sided(seconds),
        crossed=None if row.recipe is None else len(crossings),
        crossing_s=_mean(crossings),
        crossing_half=two_sided(crossings),
        cpu_s=_mean(cpu),
        cpu_runs=len(cpu),
        energy_j=_mean(energies),
        energy_runs=len(energies),
        searched=row in [Row(**each) for each in record.get("found", ())],
        dates=tuple(sorted({run["date"] for run in runs})),
        commits=tuple(dict.fromkeys(str(run["git"]) for run in runs)),
        failed=record.get("failed", {}).get(row.label),
    )


def sought_rows(record: dict[str, Any]) -> list[Row]:
    """Return the rows whose number of epochs is still searched for, without one."""
    return [Row(**each["row"]) for each in record.get("sought", {}).values()]


def standings(record: dict[str, Any]) -> list[Summary]:
    """Return every row that was asked for: those that reach the target by their time, then the others by accuracy.

    Among those that reach it, the ones whose trainings ran at once come after all that were timed alone. What is still
    searched for is a row without epochs.
    """
    rows = [*(Row(**row) for row in record["rows"]), *sought_rows(record)]
    order = ("reaches", "mean only", "one run", "below", "unmeasured")
    found = [summarise(record, row) for row in dict.fromkeys(rows)]
    return sorted(
        found,
        key=lambda line: (
            order.index(line.verdict),
            line.verdict == "reaches" and line.row.at_once > 1,
            (line.seconds or 0.0) if line.verdict == "reaches" else -(line.accuracy or 0.0),
        ),
    )


def tries(record: dict[str, Any]) -> dict[Row, list[dict[str, Any]]]:
    """Return the runs by which searches chose, by row, the rows by name and epochs; no figure counts them."""
    rows = {row_of(run) for run in record["runs"] if run["role"] == SEARCH}
    return {
        row: runs_of(record, row, SEARCH)
        for row in sorted(rows, key=lambda row: (row.name, row.epochs or 0, row.science))
    }


def _mean(values: Sequence[float]) -> float | None:
    return statistics.fmean(values) if values else None
