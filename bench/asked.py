"""What a board was asked for, by this command and by earlier ones, and what of it is missing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from fastresnet.bench.board import FIGURE, Row, row_of, runs_of

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

    Of each turns it holds those that were planned: asked for before any of them was seen. Where others are asked for
    once some have been seen, more or fewer, it says after how many, until those are asked for that were planned.
    """
    found = record.get("asked", ())
    earlier: dict[str, Any] = next((each for each in found if Row(**each["row"]) == row), {"seeds": []})
    seen = {run["seed"] for run in runs_of(record, row)}
    turns = {block_of(seed) for seed in seen}
    settled = [seed for seed in earlier.get("planned", earlier["seeds"]) if block_of(seed) in turns]
    begun = {block_of(seed) for seed in settled}
    planned = sorted({*settled, *(seed for seed in (*seeds, *seen) if block_of(seed) not in begun)})
    will_be = seen.union(seeds)
    changed_after = earlier.get("changed_after", []) if will_be != set(planned) else []
    if will_be not in (set(planned), seen.union(earlier["seeds"])):
        changed_after = [*changed_after, len(seen)]
    now = {"row": asdict(row), "seeds": list(seeds), "planned": planned}
    now |= {"changed_after": changed_after} if changed_after else {}
    record["asked"] = [*(each for each in found if Row(**each["row"]) != row), now]


def changed(record: dict[str, Any]) -> dict[Row, tuple[int, list[int]]]:
    """Return the rows whose number of runs was changed once some had been seen: how many were planned, and after
    how many seen it was changed, each time."""
    told = {Row(**each["row"]): each for each in record.get("asked", ()) if each.get("changed_after")}
    return {row: (len(each["planned"]), each["changed_after"]) for row, each in told.items()}


def asked_seeds(record: dict[str, Any], row: Row) -> list[int]:
    """Return the seeds that were asked for of a row; none of one that never was."""
    return next((each["seeds"] for each in record.get("asked", ()) if Row(**each["row"]) == row), [])


def first_seed(record: dict[str, Any]) -> int | None:
    """Return the seed that each turn's runs begin with, done or asked for; None of a record without figure runs."""
    ran = [run for run in record["runs"] if run["role"] == FIGURE]
    seeds = [run["seed"] for run in ran]
    seeds += [seed for row in {row_of(run) for run in ran} for seed in asked_seeds(record, row)]
    return min((seed % BLOCK for seed in seeds), default=None)


def left(record: dict[str, Any], row: Row) -> list[int]:
    """Return the seeds that were asked for of a row and have not been run."""
    done = {run["seed"] for run in runs_of(record, row)}
    return [seed for seed in asked_seeds(record, row) if seed not in done]


def missing(record: dict[str, Any]) -> list[str]:
    """Return the labels of the rows that lack runs, or are being searched for; those that failed are left out."""
    found = [each["trying"] for each in record.get("sought", {}).values()]
    rows = (Row(**each["row"]) for each in record.get("asked", ()))
    found += [row.label for row in rows if left(record, row)]
    return [label for label in dict.fromkeys(found) if label not in record.get("failed", {})]


def block_of(seed: int) -> int:
    """Return which turns a figure run of that seed was of."""
    return seed // BLOCK
