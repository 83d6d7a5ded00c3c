"""What the commands share that train runs into a record: data, packed first; the filling, and its end by a signal."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from fastresnet.cli.typed import named_as_typed
from fastresnet.errors import UserError

if TYPE_CHECKING:
    from fastresnet.assembly import Data
    from fastresnet.bench.record import ToMarkdown
    from fastresnet.bench.time_to_accuracy import Board
    from fastresnet.recipe import Recipe
    from fastresnet.run import RunConfig

LONG_BOARD_S = 600.0
FILLED = {"rows", "runs", "asked", "sought", "failed", "at_once"}  # of a record, while it is filled


def board_config(**typed: Any) -> RunConfig:
    """Return the config of a record's runs; a mistake in it is named by the option that was typed."""
    from fastresnet.cli.train import check_loader
    from fastresnet.run import RunConfig

    with named_as_typed(typed):
        # no checkpoint by time: a run that is interrupted is done again
        config = RunConfig.parse(save_every_s=1e9, **typed)
    check_loader(config.loader)
    return config


def open_board_data(recipe: Recipe, config: RunConfig) -> Data:
    """Return what ``config`` names, opened and where need be packed, told on stderr."""
    from fastresnet.assembly import open_data
    from fastresnet.cli.progress import shown_progress
    from fastresnet.engine.listener import Listener

    class Packing(Listener):
        def on_data(self, doing: str, done: int, total: int) -> None:
            show(doing, done, total)

        def on_notice(self, text: str) -> None:
            typer.echo(f"note: {text}", err=True)

    with shown_progress() as show:
        return open_data(recipe, config, Packing())


def open_board_record(
    path: Path,
    kind: str,
    to_markdown: ToMarkdown,
    own: dict[str, Any],
    data: Data,
    config: RunConfig,
    seeds: range,
    **content: Any,
) -> dict[str, Any]:
    """Return the record at ``path``, to be added to, or a new one without runs.

    Args:
        to_markdown: makes its page.
        own: the settings of this kind of record; those of the data and the machine follow them.
        seeds: of each row's runs.
        content: what a new one has beside rows and runs.

    Raises:
        UserError: there is one that is damaged, or of another kind, machine or setting, or of seeds that begin
            elsewhere; the machine is not what ``config`` asks for.
    """
    from fastresnet.assembly import choose_machine
    from fastresnet.bench.asked import first_seed
    from fastresnet.bench.board_form import check_board, check_ways
    from fastresnet.bench.continued import earlier_record, go_on
    from fastresnet.bench.record import make_record

    chosen = choose_machine(config)
    shared = ("eval_every", "loader", "amp", "compile", "kernels", "convs", "graphs")
    named = {"dataset": data.dataset.name, "digest": data.dataset.digest}
    settings = own | named | {name: getattr(config, name) for name in shared}
    nothing: dict[str, list[Any]] = {"rows": [], "runs": [], "not_measured": []}
    device, threads = chosen.device_name, chosen.config.threads
    record = make_record(kind, device, threads, settings=settings, **content, **nothing)
    earlier = earlier_record(path, kind, to_markdown)
    if earlier is None:
        return record
    check_board(path, earlier)
    check_ways(path, earlier)
    first = first_seed(earlier)
    if first not in (None, seeds.start):
        raise UserError(
            f"--first-seed is {seeds.start}, and the runs in {path} have seeds from {first} on: what confirms a "
            f"schedule is no part of what chose it; give --first-seed {first} or another --out"
        )
    # it grows over days of work on the source; each run names its commit
    return go_on(earlier, record, same_source=False)


def seeds_asked(first: int, runs: int) -> range:
    """Return the seeds of ``--first-seed`` and ``--runs``.

    Raises:
        UserError: fresh ones would reach those of a row's next turns.
    """
    from fastresnet.bench.asked import BLOCK

    if first and first + runs > BLOCK:
        raise UserError(f"--first-seed is {first} and --runs {runs}; together they may be {BLOCK:,} at most")
    return range(first, first + runs)


def suffix_of(seeds: range) -> str:
    """Return what the name of a record of fresh seeds ends in: what confirms is no part of what chose."""
    return f"-from-seed-{seeds.start}" if seeds.start else ""


def fill_board(board: Board, path: Path, started: float, minutes: float | None, what: str) -> None:
    """Do the runs that are missing and write the record at ``path``, whatever ends them.

    Args:
        started: on the monotonic clock; ``minutes`` after it nothing is begun.
        what: the record in a word.

    Raises:
        UserError: another process fills it, or did since it was read.
        typer.Exit: a signal asked to stop.
    """
    from fastresnet.bench.board_folder import own_runs_dir
    from fastresnet.bench.record import load_record
    from fastresnet.engine.fit import Interrupted
    from fastresnet.signals import Stopped

    stopped: int | None = None
    with own_runs_dir(path) as runs_dir:
        there = load_record(path) if path.exists() else {}
        if any(there[key] != board.record.get(key) for key in FILLED & there.keys()):
            raise UserError(f"another process has just added to {path}; give the command again")
        try:
            _fill(board, runs_dir, started, minutes)
        except (Interrupted, Stopped) as stop:  # between steps of a training, or elsewhere
            stopped = stop.signum
        finally:
            board.keep()
    if stopped is not None:
        typer.echo(f"stopped; the {what} is kept in {path}, and the same command goes on with it", err=True)
        raise typer.Exit(128 + stopped)


def complain_of_failures(board: Board, path: Path) -> None:
    """Raise UserError where rows failed, once what was measured is shown."""
    if board.failed:
        reasons = "; ".join(f"{label}, {reason}" for label, reason in board.failed.items())
        raise UserError(f"not all could be measured: {reasons}; {path} keeps the rest")


def _fill(board: Board, runs_dir: Path, started: float, minutes: float | None) -> None:
    from fastresnet.bench.board_estimate import estimate_s, num_looking
    from fastresnet.bench.board_fill import fill
    from fastresnet.run import duration
    from fastresnet.words import counted

    def out_of_time() -> bool:
        return minutes is not None and time.monotonic() - started > 60 * minutes

    board.settle(out_of_time)
    if not board.is_settled:
        board.tell("the minutes were over before any training; the same command goes on")
        return
    board.enter()
    if not board.jobs():
        return
    # of a board that is given so long and no longer, nothing of that goes into measuring how long it would take
    seconds, num_runs, unknown = estimate_s(board, measured=minutes is None)
    looking = num_looking(board)
    if seconds > LONG_BOARD_S or unknown or looking:
        beside = f", beside {counted(unknown, 'row')} of unknown time" if unknown else ""
        known = f"this will take about {duration(seconds)} ({counted(num_runs, 'run')}{beside})"
        told = known if num_runs else f"how long this will take is not known yet ({counted(unknown, 'row')})"
        told += f"; compiling comes on top, once for each of {counted(looking, 'row')}" if looking else ""
        board.tell(f"{told}; it may be stopped at any moment, and the same command goes on")
    fill(board, runs_dir, out_of_time)
