"""Boards for tests: the command, and records made of runs that never were."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from typer.testing import CliRunner, Result

from fastresnet.bench.board import ENERGY, WAY, Row
from fastresnet.cli.main import app
from fastresnet.errors import UserError

TINY = (
    *("--archs", "n2-b1-c4", "--set", "batch_size=16", "--set", "optimizer.lr=0.05", "--target", "0.5"),
    *("--device", "cpu", "--threads", "1", "--compile", "off"),
)
STEPPED = dict(zip(WAY, ("off", "llvm", "winograd", "off", "numba"), strict=True))  # a run's steps


def bench(*arguments: str | Path) -> Result:
    return CliRunner().invoke(app, ["bench", "time-to", *map(str, arguments)])


def read(path: Path) -> dict[str, Any]:
    record = json.loads(path.read_text())
    assert isinstance(record, dict)
    return record


def refusal(result: Result) -> str:
    assert isinstance(result.exception, UserError), result.output
    return str(result.exception)


def record_of(runs: list[dict[str, Any]], rows: list[Row], **changes: Any) -> dict[str, Any]:
    where = {"device_name": "some GPU", "torch": "2", "threads": 1, "cuda": "13.0", "cores": 1}
    settings = {"target": 0.94, "dataset": "CIFAR-10", "eval_every": 2}
    record = {"environment": where, "settings": settings, "command": "x", "energy": ENERGY}
    return record | {"rows": [vars(row) for row in rows], "runs": runs, "not_measured": []} | changes


def run_of(row: Row, seed: int, accuracy: float, seconds: float, **changes: Any) -> dict[str, Any]:
    plain = {
        "role": "figure",
        "crossing_s": None,
        "energy_j": None,
        "date": "2026-01-01",
        "curve": [],
        "git": "aaa",
        "started": "2026-01-01T00:00:00+00:00",
        "process_s": seconds,
        "machine": STEPPED,
    }
    return {"row": vars(row), "seed": seed, "accuracy": accuracy, "seconds": seconds} | plain | changes


def row(name: str, **changes: Any) -> Row:
    plain: dict[str, Any] = {"recipe": "fast", "science": name, "num_params": 5, "epochs": 8, "tta": "none"}
    return Row(name=name, **plain | changes)
