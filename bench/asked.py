"""What a board was asked for, by this command and by earlier ones, and what of it is missing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from fastresnet.bench.board import Row, row_of, runs_of

BLOCK = 1_000  # seeds apart are the turns of rows that came one after another


def enter(record: dict[str, Any], row: Row) -> None:
    """Have the record hold ``row``, in place of one of the same words that was corrected before it had any run."""
    if row in (Row(**each) for each in record["rows"]):
        return
    measured = {row_of(run) for run in record["runs"]}

    def stays(each: dict[str, Any]) -> bool:
        return Row(**each).label != row.label or Row(**each) in measured

    record["rows"] = [*filter(stays, record["rows"]), asdict(row)]
    record["asked"] = [each for each in record.get("asked", ()) if stays(each["row"])]


def ask(record: dict[str, Any], row: Row, seeds: Sequence[int]) -> None:
    """Have the record say which runs of a row were asked for last, which a later command for others keeps.

    Where they are more of the same turns than had been asked for, and some were seen by then, it says after how many.
    """
    found = record.get("asked", ())
    nothing: dict[str, Any] = {"seeds": []}
    earlier = next((each for each in found if Row(**each["row"]) == row), nothing)
    seen = {run["seed"] for run in runs_of(record, row)}
    turns, known = {block_of(seed) for seed in earlier["seeds"]}, {*earlier["seeds"], *seen}
    more = [seed for seed in seeds if seed not in known and block_of(seed) in turns]
    added_after = [*earlier.get("added_after", []), *([len(seen)] if seen and more else [])]
    now = {"row": asdict(row), "seeds": list(seeds)} | ({"added_after": added_after} if added_after else {})
    record["asked"] = [*(each for each in found if Row(**each["row"]) != row), now]


def added(record: dict[str, Any]) -> dict[Row, list[int]]:
    """Return the rows that were given more runs once some had been seen, and after how many, each time."""
    told = {Row(**each["row"]): each.get("added_after", []) for each in record.get("asked", ())}
    return {row: after for row, after in told.items() if after}


def asked_seeds(record: dict[str, Any], row: Row) -> list[int]:
    """Return the seeds that were asked for of a row; none of one that never was."""
    return next((each["seeds"] for each in record.get("asked", ()) if Row(**each["row"]) == row), [])


def left(record: dict[str, Any], row: Row) -> list[int]:
    """Return the seeds that were asked for of a row and have not been run."""
    done = {run["seed"] for run in runs_of(record, row)}
    return [seed for seed in asked_seeds(record, row) if seed not in done]


def missing(record: dict[str, Any]) -> list[str]:
    """Return the labels of the rows that lack runs, or are being searched for; those that failed are left out."""
    found = [*record.get("sought", {}).values()]
    rows = (Row(**each["row"]) for each in record.get("asked", ()))
    found += [row.label for row in rows if left(record, row)]
    return [label for label in dict.fromkeys(found) if label not in record.get("failed", {})]


def block_of(seed: int) -> int:
    """Return which turns a figure run of that seed was of."""
    return seed // BLOCK
