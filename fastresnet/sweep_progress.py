"""How far a sweep is: cells done, the best so far, and when it will be done; and who is told."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from fastresnet.engine.listener import Listener
from fastresnet.sweep_cells import Cell

if TYPE_CHECKING:
    from fastresnet.sweep_store import Record


@dataclass(frozen=True, kw_only=True)
class Status:
    """Where a step of a sweep stands.

    Attributes:
        step: its name; empty unless the sweep is a sequence.
        total: cells to train; ``ended`` of them have ended, ``failed`` and ``pruned`` among these.
        running: cells that a worker has.
        best: the label and accuracy of the best cell that is done.
        left_s: estimated seconds until all are, at the number of workers there is; None before two are done.
    """

    step: str
    total: int
    ended: int
    failed: int
    pruned: int
    running: int
    best: tuple[str, float] | None
    left_s: float | None


class SweepListener(Listener):
    """Told how a sweep goes on, and, as a :class:`Listener`, how each of its trainings does."""

    def on_cell_start(self, cell: Cell, status: Status, resumed: bool) -> None:
        """A cell was taken; ``resumed`` where its run had begun already."""

    def on_cell_end(self, cell: Cell, record: Record, status: Status) -> None:
        """A cell that this process trained has ended."""

    def on_wait(self, status: Status) -> None:
        """Every cell is taken; this worker stays to take over from one that dies."""


def best_cell(cells: Mapping[str, Cell], records: Mapping[str, Record]) -> str | None:
    """Return the key of the best cell that is done, of equals the first; None where none is.

    What counts is the accuracy of the last epoch on the validation split, or on test where there is none.
    """
    done = [key for key in cells if key in records and records[key].state == "done"]
    return max(done, key=lambda key: records[key].attrs["value"], default=None)


def status_of(
    step: str, cells: Mapping[str, Cell], records: Mapping[str, Record], idle_workers: int = 0
) -> Status:
    """Return where a step stands.

    Args:
        step: its name.
        cells: those to train, by key.
        records: how each stands.
        idle_workers: of those that take cells, how many have none at this moment.
    """
    states = {key: records[key].state for key in cells if key in records}

    def keys(*wanted: str) -> list[str]:
        return [key for key, state in states.items() if state in wanted]

    best = best_cell(cells, records)
    finished = [(_work(cells[key]), float(records[key].attrs["seconds"])) for key in keys("done")]
    left_s = None
    if len(finished) > 1:
        waiting = [_estimate(finished, _work(cells[key])) for key in keys("waiting")]
        # Of the running ones half, as it is not known how far they are.
        running = [_estimate(finished, _work(cells[key])) / 2 for key in keys("running")]
        num_workers = max(1, len(running) + (idle_workers if waiting else 0))
        left_s = max((sum(waiting) + sum(running)) / num_workers, *waiting, *running, 0.0)
    return Status(
        step=step,
        total=len(cells),
        ended=len(keys("done", "pruned", "failed")),
        failed=len(keys("failed")),
        pruned=len(keys("pruned")),
        running=len(keys("running")),
        best=None if best is None else (cells[best].label, records[best].attrs["accuracy"]),
        left_s=left_s,
    )


def _work(cell: Cell) -> float:
    return float(cell.multiply_adds) * cell.recipe.epochs


def _estimate(finished: list[tuple[float, float]], work: float) -> float:
    """Return the seconds a cell will take: the line through (work, seconds), which has what every run costs."""
    mean_work = sum(done for done, _ in finished) / len(finished)
    mean_s = sum(seconds for _, seconds in finished) / len(finished)
    spread = sum((done - mean_work) ** 2 for done, _ in finished)
    slope = sum((done - mean_work) * (s - mean_s) for done, s in finished) / spread if spread else 0.0
    return max(mean_s + max(slope, 0.0) * (work - mean_work), min(s for _, s in finished))
