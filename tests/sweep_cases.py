"""Sweeps of tiny networks for tests, and what is told and made of them."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from sweep_processes import options

from fastresnet.sweep import SweepRun
from fastresnet.sweep_cells import Cell
from fastresnet.sweep_progress import SweepListener
from fastresnet.sweep_spec import load_sweep
from fastresnet.sweep_store import Record

FILE = """\
name = "tiny"
title = "Tiny"
recipe = "r1-single"

[set]
batch_size = 10
N = 2
C = 4
B = 1
epochs = {epochs}

"""
GRID = "[grid]\nC = [2, 3, 4]\n"


class Notes(SweepListener):
    """Keeps what it was told."""

    def __init__(self) -> None:
        self.started: list[tuple[str, bool]] = []
        self.ended: list[tuple[str, Record]] = []
        self.notices: list[str] = []

    def on_cell_start(self, cell: Cell, status: Any, resumed: bool) -> None:
        self.started.append((cell.label, resumed))

    def on_cell_end(self, cell: Cell, record: Record, status: Any) -> None:
        self.ended.append((cell.label, record))

    def on_notice(self, text: str) -> None:
        self.notices.append(text)


def sweep_file(folder: Path, cells: str = GRID, epochs: int = 1) -> Path:
    path = folder / "tiny.toml"
    path.write_text(FILE.format(epochs=epochs) + cells)
    return path


def run(
    file: Path, data: Path, sweeps_dir: Path, notes: Notes | None = None, **changed: Any
) -> dict[str, Any]:
    return SweepRun(load_sweep(str(file)), options(data, sweeps_dir, **changed), notes).run()


def rows_of(table: dict[str, Any], *columns: str) -> list[tuple[Any, ...]]:
    return [tuple(row[column] for column in columns) for row in table["rows"]]


def history(run: Path) -> list[dict[str, Any]]:
    """Return a run's event rows, less their clocks."""
    rows = [json.loads(line) for line in (run / "events.jsonl").read_text().splitlines()]
    return [{key: value for key, value in row.items() if key != "clock"} for row in rows]


def fastresnet(*arguments: str | Path, cwd: Path) -> Any:
    command = [sys.executable, "-m", "fastresnet", *map(str, arguments)]
    return subprocess.Popen(command, cwd=cwd, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
