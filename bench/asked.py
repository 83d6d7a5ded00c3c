"""What a board was asked for, by this command and by earlier ones, and what of it is missing."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from fastresnet.bench.board import Row, row_of, runs_of


def enter(record: dict[str, Any], row: Row) -> None:
    """Have the record hold ``row``, in place of one of the same words that was corrected before it had any run."""
    if row in (Row(**each) for each in record["rows"]):
        return
    measured = {row_of(run) for run in record["runs"]}

    def stays(each: dict[str, Any]) -> bool:
        return Row(**each).label != row.label or Row(**each) in measured

    record["rows"] = [*filter(stays, record["rows"]), asdict(row)]
    record["asked"] = [each for each in record.get("asked", ()) if stays(each["row"])]


def ask(record: dict[str, Any], row: Row, runs: int) -> None:
    """Have the record say how many runs of a row were asked for last, which a later command for others keeps."""
    asked = record.setdefault("asked", [])
    for each in asked:
        if Row(**each["row"]) == row:
            each["runs"] = runs
            return
    asked.append({"row": asdict(row), "runs": runs})


def missing(record: dict[str, Any]) -> list[str]:
    """Return the labels of the rows that have fewer runs than were asked for, those that failed left out."""
    asked = ((Row(**each["row"]), each["runs"]) for each in record.get("asked", ()))
    return [
        row.label
        for row, runs in asked
        if len(runs_of(record, row)) < runs and row.label not in record.get("failed", {})
    ]
