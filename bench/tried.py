"""What a record's runs say of the schedules that a search for a row's shortest has tried."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from fastresnet.bench.asked import block_of
from fastresnet.bench.board import SEARCH, Row, row_of, runs_of
from fastresnet.bench.schedule_search import judge


def tried_lengths(
    record: dict[str, Any], name: str, row_for: Callable[[int], Row], runs: int
) -> tuple[dict[int, list[float]], set[int]]:
    """Return the accuracies of the search's own runs by epochs, and the epochs that fresh seeds have refuted.

    Args:
        name: of the rows.
        row_for: the row of that many epochs; runs of other forms of it are not counted.
        runs: fresh seeds that decide.
    """
    results: dict[int, list[float]] = {}
    refuted = set()
    for run in record["runs"]:
        row = row_of(run)
        if run["role"] != SEARCH or row.name != name or row.epochs is None or row != row_for(row.epochs):
            continue
        results.setdefault(row.epochs, []).append(run["accuracy"])
        figure = runs_of(record, row)
        # Later turns beside other rows are not what it was found by.
        first = [each["accuracy"] for each in figure if block_of(each["seed"]) == block_of(figure[0]["seed"])]
        if len(first) >= runs and judge(first, record["settings"]["target"]) != "reaches":
            refuted.add(row.epochs)
    return results, refuted
