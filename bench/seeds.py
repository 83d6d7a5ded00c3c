"""Which seeds a board's runs take, so that a figure is of fresh ones and rows that are compared meet round by round."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fastresnet.bench.board import Row
from fastresnet.bench.comparison import rows_named

FRESH_SEEDS = 1_000  # apart are those of the schedules that a search found one after another
SEARCH_SEEDS = 1_000_000  # a search's own runs take seeds from here on: never a figure's


def figure_seeds(record: dict[str, Any], rows: Sequence[Row], runs: int) -> dict[Row, list[int]]:
    """Return the seeds of the figure runs of ``rows``, ``runs`` of each.

    A schedule that a search found after another, which fresh seeds had refuted, takes the next ones. The row that the
    others are compared with has had its turns with the refuted one by then, and takes as many again.
    """
    place = {row: _place_found(record, row) for row in rows}
    named = [row for row in rows_named(record, record.get("against") or "") if row in place]
    against = named[-1] if named else None
    least = 0 if against is None else place[against]
    begins = {row: {max(place[row], least)} for row in rows}
    if against is not None:
        begins[against] = set().union(*begins.values())
    return {
        row: [FRESH_SEEDS * begin + run for begin in sorted(begins[row]) for run in range(runs)]
        for row in rows
    }


def _place_found(record: dict[str, Any], row: Row) -> int:
    """Return how many schedules were found for a row's name before its own."""
    found = [Row(**each) for each in record.get("found", ()) if each["name"] == row.name]
    return found.index(row) if row in found else 0
