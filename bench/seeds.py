"""Which seeds a board's runs take, so that rows that are compared take turns round by round."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

from fastresnet.bench.asked import BLOCK, asked_seeds, block_of
from fastresnet.bench.board import Row, runs_of
from fastresnet.bench.comparison import rows_named

SEARCH_SEEDS = 1_000_000  # a search's own runs take seeds from here on: never a figure's


def figure_seeds(
    record: dict[str, Any], rows: Sequence[Row], runs: int, first: int = 0
) -> dict[Row, list[int]]:
    """Return the seeds of the figure runs of ``rows``, ``runs`` of each: ``first`` and on.

    Where the others are compared with one of them, a row that comes after that one has had its turns begins with the
    next block of seeds, which that one takes too; and where it is that one which comes late, the others do.
    """
    of_that_name = rows_named(record, record.get("against") or "")
    named = [row for row in rows if row in of_that_name]
    if not named:
        return {row: list(range(first, first + runs)) for row in rows}
    against = named[-1]  # which will be the one asked for last, as comparisons want it
    others = [row for row in rows if row != against]
    least = _begin(record, against, others)
    blocks = {row: {max(_begin(record, row, [against]), least)} for row in others}
    blocks[against] = set().union(*blocks.values()) or {least}
    turn = range(first, first + runs)
    return {row: [BLOCK * block + run for block in sorted(blocks[row]) for run in turn] for row in rows}


def _begin(record: dict[str, Any], row: Row, partners: Sequence[Row]) -> int:
    """Return a row's first block of seeds; of a row without any, the first in which no partner has run."""
    own = {block_of(run["seed"]) for run in runs_of(record, row)}
    own |= {block_of(seed) for seed in asked_seeds(record, row)}
    if own:
        return min(own)
    taken = {block_of(run["seed"]) for partner in partners for run in runs_of(record, partner)}
    return next(block for block in itertools.count() if block not in taken)
