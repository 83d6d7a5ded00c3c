"""How a sweep shows itself: a line when a cell begins and ends, the table, and the cells before anything is trained."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import typer

from fastresnet.cli.output import Output
from fastresnet.cli.train_progress import TrainProgress
from fastresnet.engine.listener import RunInfo
from fastresnet.run import duration
from fastresnet.sweep_cells import Cell
from fastresnet.sweep_progress import Status, SweepListener
from fastresnet.sweep_table import caption, pruned_at, texts
from fastresnet.words import counted

if TYPE_CHECKING:
    from fastresnet.sweep_spec import Sweep
    from fastresnet.sweep_store import Record


class SweepProgress(TrainProgress, SweepListener):
    """Prints a sweep's progress: of each training its beginning and end, and on a terminal its steps."""

    def __init__(self, several: bool) -> None:
        """Take whether several processes print to this terminal, so that none overwrites a line of another."""
        super().__init__()
        self.cell: Cell | None = None
        self.waited = False
        if several:
            self.output = _LinesOnly()

    def on_cell_start(self, cell: Cell, status: Status, resumed: bool) -> None:
        self.cell, self.waited = cell, False
        verb = "resuming" if resumed else "training"
        step = f"{status.step}: " if status.step else ""
        self._print(f"{step}{verb} {cell.label} ({cell.params:,} parameters), {where_it_stands(status)}")

    def on_start(self, info: RunInfo) -> None:
        self.info = info
        left_s = info.left_s(*(info.resumed_at or ()))
        self.output.show(f"{info.recipe.arch}: about {duration(left_s)} of training")

    def on_epoch(self, row: dict[str, Any]) -> None:
        pass

    def on_cell_end(self, cell: Cell, record: Record, status: Status) -> None:
        attrs = record.attrs
        if record.state == "failed":
            came_of_it = f"failed: {attrs['error']}"
        elif record.state == "pruned":
            came_of_it = (
                f"stopped{pruned_at(attrs.get('pruned_at'))}, below the median of the others at that epoch"
            )
        elif record.state == "done":
            came_of_it = f"{attrs['accuracy']:.4f}"
            if cell.printed_accuracy is not None:
                came_of_it += f" (printed {cell.printed_accuracy:.4f})"
            came_of_it += f" in {duration(attrs['seconds'])}"
        else:
            came_of_it = record.state
        self._print(f"{cell.label}: {came_of_it}; {where_it_stands(status)}")

    def on_wait(self, status: Status) -> None:
        if not self.waited:
            self.waited = True
            left = status.total - status.ended
            self._print(f"waiting for {left} more, which other workers have")


class _LinesOnly(Output):
    """Prints, and shows no line to be overwritten."""

    def __init__(self) -> None:
        super().__init__()
        self.live, self._due = False, math.inf


def where_it_stands(status: Status) -> str:
    """Return the cells done, the best so far and the time left, in words."""
    parts = [f"{status.ended} of {counted(status.total, 'cell')} done"]
    parts += [
        f"{count} {word}" for word, count in (("failed", status.failed), ("pruned", status.pruned)) if count
    ]
    if status.best is not None:
        parts.append(f"best {status.best[0]} at {status.best[1]:.4f}")
    if status.left_s is not None and status.ended < status.total:
        parts.append(f"about {duration(status.left_s)} left")
    return ", ".join(parts)


def show_table(content: Mapping[str, Any]) -> None:
    """Print a sweep's table beside the printed figures."""
    typer.echo(f"\n{content['title'] or content['name']}\n{caption(content)}\n")
    _print_table(*texts(content), num_left=len(content["columns"]))


def show_cells(sweep: Sweep, listed: list[tuple[str, list[Cell]]]) -> None:
    """Print what a sweep would train."""
    settings: list[dict[str, Any]] = [
        ({"step": step} if step else {}) | cell.settings for step, cells in listed for cell in cells
    ]
    columns = list(dict.fromkeys(key for row in settings for key in row))
    rows = []
    for row, cell in zip(settings, (cell for _, cells in listed for cell in cells), strict=True):
        printed = "" if cell.printed_accuracy is None else f"{cell.printed_accuracy:.4f}"
        budget = f"over the budget of {sweep.spec.budget:,}: not trained" if cell.over_budget else ""
        rows.append(
            [
                *(str(row.get(column, "")) for column in columns),
                f"{cell.params:,}",
                f"{cell.multiply_adds:,}",
                str(cell.recipe.epochs),
                printed,
                "; ".join(filter(None, (budget, cell.note))),
            ]
        )
    num_printed = sum(cell.printed_accuracy is not None for _, cells in listed for cell in cells)
    typer.echo(
        f"{sweep.spec.title or sweep.spec.name}: {counted(len(rows), 'cell')}, {num_printed} of them printed\n"
    )
    _print_table(
        [*columns, "parameters", "multiply-adds", "epochs", "printed", ""], rows, num_left=len(columns)
    )
    if sweep.spec.budget is not None:
        typer.echo(f"\nThe budget is {sweep.spec.budget:,} parameters.")
    if len(sweep.steps) > 1:
        typer.echo(
            "\nIn a later step, what the steps before it choose is shown as if their best printed cell came out best, "
            "or their first where none is printed."
        )


def _print_table(headings: list[str], rows: list[list[str]], num_left: int) -> None:
    """Print the columns that have something in them: numbers to the right, the last one folded."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table
    from rich.text import Text

    from fastresnet.cli.tables import TableConsole

    table = Table(box=SIMPLE_HEAD, show_edge=False, padding=(0, 1, 0, 0))
    used = [number for number in range(len(headings)) if any(row[number] for row in rows)]
    for number in used:
        last = number == len(headings) - 1
        side: Any = "left" if number < num_left or last else "right"
        table.add_column(headings[number], justify=side, no_wrap=not last, overflow="fold")
    for row in rows:
        table.add_row(*(Text(row[number]) for number in used))
    TableConsole().print_table(table)
