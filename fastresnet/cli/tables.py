"""Where commands print their tables: no column of one is ever cut, however narrow the terminal."""

from __future__ import annotations

from typing import NoReturn

from rich.console import Console
from rich.table import Table

_UNBOUNDED = 10_000  # columns; what reads a pipe or a file wraps as it likes


class TableConsole(Console):
    """Wraps text for a terminal alone, and gives a table the width that it needs."""

    def __init__(self) -> None:
        super().__init__(highlight=False)
        if not self.is_terminal:
            self.width = _UNBOUNDED

    def print_table(self, table: Table) -> None:
        """Print a table whose ``no_wrap`` columns are whole; a narrower terminal wraps its lines."""
        own = self.width
        self.width = _UNBOUNDED
        for column in table.columns:
            if column.no_wrap:
                cells = (column.header, *column.cells, column.footer)
                widest = max(self.measure(cell).maximum for cell in cells)
                column.min_width = max(widest, column.min_width or 0)
        self.width = max(own, self.measure(table).minimum)
        self.print(table)
        self.width = own

    def on_broken_pipe(self) -> NoReturn:
        """Leave it to :func:`fastresnet.cli.main.main`; rich would exit with 1."""
        raise BrokenPipeError
