"""How long a board still takes, told before it is filled."""

from __future__ import annotations

from typing import Any

from fastresnet.bench.asked import left
from fastresnet.bench.at_once import found_in
from fastresnet.bench.board import FIGURE, SEARCH, Row, row_of, runs_of
from fastresnet.bench.board_run import measure_run_s
from fastresnet.bench.schedule_search import Try
from fastresnet.bench.time_to_accuracy import Board
from fastresnet.engine.machine import UNFOUND
from fastresnet.engine.warmup import ALIKE_ON_GPU
from fastresnet.errors import UserError


def estimate_s(board: Board, *, measured: bool = True) -> tuple[float, int, int]:
    """Return about how many seconds the board still takes, of how many runs, and how many rows are not in it.

    A row whose like has been run takes what that took; an arch of ours that has not is ``measured`` by a few steps on
    random labels, which is told, or left out. Peers that have not been run are left out. A search is taken to need two
    runs a bisection and to find about half the longest schedule; what is done again where it is refuted is not
    foreseen.
    """
    total_s, num_runs, unknown = 0.0, 0, 0
    epoch_s: dict[str, float] = {}
    for contestant in board.contestants:
        decided = board.decide(contestant)
        if isinstance(decided, Try):
            chosen, share = contestant, 0.5
            assert contestant.recipe is not None
            tried = [run for run in board.record["runs"] if run["role"] == SEARCH]
            num_tried = sum(row_of(run).name == contestant.name for run in tried)
            num_left = max(1, 2 * contestant.recipe.epochs.bit_length() - num_tried) + board.runs
        else:
            chosen, share = decided, 1.0
            num_left = len(left(board.record, board.row(chosen)))
        if not num_left:
            continue
        row, recipe = board.row(chosen), chosen.recipe
        run_s = _known_s(board.record, row)
        if run_s is None and recipe is not None and measured:
            if recipe.arch not in epoch_s:
                board.tell(f"{recipe.arch}: measuring how long a run takes")
                try:
                    run_s = measure_run_s(recipe, board.config, board.data)
                except UserError:  # which its run will say too, and stop its row
                    unknown += 1
                    continue
                epoch_s[recipe.arch] = run_s / recipe.epochs
            run_s = epoch_s[recipe.arch] * recipe.epochs
            if row.at_once > 1:
                found = found_in(board.record, recipe.arch, board.parallel)
                assert found is not None
                run_s *= found["ratio"]
        if run_s is None:
            unknown += 1
            continue
        total_s += num_left * run_s * share
        num_runs += num_left
    return total_s, num_runs, unknown


def num_looking(board: Board) -> int:
    """Return for how many rows every way of doing the steps is still to be compiled and compared."""
    looks = any(getattr(board.config, key) == "auto" for key in UNFOUND)
    if board.alike(FIGURE) != ALIKE_ON_GPU or not looks:
        return 0
    num = 0
    for contestant in board.contestants:
        decided = board.decide(contestant)
        if isinstance(decided, Try):
            num += 1
        elif decided.recipe is not None:
            row = board.row(decided)
            num += bool(left(board.record, row)) and not runs_of(board.record, row)
    return num


def _known_s(record: dict[str, Any], row: Row) -> float | None:
    """Return what a run of a row adds to the board's wall clock: the mean in seconds, None where none was run."""
    runs = runs_of(record, row)
    return sum(run["process_s"] for run in runs) / len(runs) / row.at_once if runs else None
