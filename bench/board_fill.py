"""Fills a board by trainings against the clock.

Every run is trained in this process, one after another; or, where that was asked for and is faster a run, several at
once, in rows of their own. How steps are done is measured in a row's first run, and its others do them so: a row is of
one kind, and measured once. The record is written after each run: a board that was killed goes on with the run it was
at, from its start, since a training that was interrupted cannot be timed.
"""

from __future__ import annotations

import datetime
import textwrap
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from fastresnet.assembly import resolve_machine
from fastresnet.bench.at_once import shared
from fastresnet.bench.board import ENERGY, WAY, row_of, runs_of
from fastresnet.bench.board_run import train_once
from fastresnet.bench.energy import EnergyMeter
from fastresnet.bench.time_to_accuracy import Board, Job
from fastresnet.bench.trainers import Trainer, answers, crew
from fastresnet.engine.machine import UNFOUND, resolve_threads
from fastresnet.environment import cpu_model, source_version
from fastresnet.errors import UserError
from fastresnet.run import RunConfig

SAME_OF_A_PEER = ("repository", "commit", "changes", "clock", "tta")  # in all runs of a row


def fill(board: Board, runs_dir: Path, out_of_time: Callable[[], bool] = lambda: False) -> None:
    """Run what is missing, each row in turn, until nothing is or the time is up; rows that are run at once first.

    Of what fails (a peer, or a training that cannot be done or diverges) no more is tried, and the others go on.

    Raises:
        Interrupted: a signal asked to stop; the run that was under way will be done again.
    """
    _, device = resolve_machine(board.config)
    meter = EnergyMeter(device)
    ours = (run for run in board.record["runs"] if row_of(run).recipe is not None)
    if not any(run["energy_j"] is not None for run in ours):
        board.record["energy"] = meter.obstacle or ENERGY
    while (jobs := board.jobs()) and not out_of_time():
        if any(job.row.at_once > 1 for job in jobs):
            _fill_at_once(board, device, runs_dir, out_of_time)
            continue
        for job in jobs:
            if out_of_time() or job.seed != jobs[0].seed:  # a row that lags catches up first
                break
            try:
                run = _run(board, job, runs_dir, meter)
            except UserError as error:
                board.fail(job, str(error))
            else:
                board.add(run, job)


def _begun(board: Board, job: Job) -> dict[str, Any]:
    """Return what is known of a run before it is done."""
    return {
        "row": asdict(job.row),
        "role": job.role,
        "seed": job.seed,
        "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d"),
        "git": source_version(),
        "cpu": cpu_model(),
        "threads": resolve_threads(board.config.threads),
        "crossing_s": None,
        "energy_j": None,
    }


def _run(board: Board, job: Job, runs_dir: Path, meter: EnergyMeter) -> dict[str, Any]:
    """Return one run, done with nothing beside it."""
    begun = _begun(board, job)
    if job.contestant.peer is not None:
        found = job.contestant.peer.run(job.seed)
        _check_same_peer(board, job, found)
        return begun | found
    assert job.contestant.recipe is not None
    config = _config(board, job, board.config)
    return begun | train_once(job.contestant.recipe, config, runs_dir, job.row.label, board.tell, meter)


def _check_same_peer(board: Board, job: Job, found: dict[str, Any]) -> None:
    """Raise UserError where the peer says that it is another than its row's earlier runs said."""
    for run in runs_of(board.record, job.row)[-1:]:
        for key in SAME_OF_A_PEER:
            if run.get(key) != found.get(key):
                then, now = (textwrap.shorten(str(each.get(key)), 60) for each in (run, found))
                raise UserError(
                    f"its {key} is {now!r} and was {then!r} in its earlier runs; give --peer another name, as "
                    "another row"
                )


def _config(board: Board, job: Job, config: RunConfig) -> RunConfig:
    """Return the config of a run: with its seed, and with what its row's first run has found and chosen.

    That first one looks for it on behalf of all its row's runs; of those by which a search found the row, another.
    """
    earlier = (
        {key: run["machine"][key] for key in WAY}
        for run in board.record["runs"]
        if (row_of(run), run["role"]) == (job.row, job.role)
    )
    found = next(earlier, None) or {"alike": board.alike(job.role)}
    return config.model_copy(update={"seed": job.seed, **found})


def _fill_at_once(
    board: Board, device: torch.device, runs_dir: Path, out_of_time: Callable[[], bool]
) -> None:
    """Do the runs of the rows that are run at once; as one ends, the next begins."""

    def waiting() -> list[Job]:
        if out_of_time():
            return []
        begun = [job for job, _ in under_way.values()]
        finding = set()  # rows whose first run finds the way of their others, which wait for it
        if chooses:
            found = {(row_of(run), run["role"]) for run in board.record["runs"]}
            finding = {(job.row, job.role) for job in begun} - found
        jobs = board.jobs(begun)
        return [job for job in jobs if job.row.at_once > 1 and (job.row, job.role) not in finding]

    config = shared(board.config, board.parallel)
    # On a GPU a loader is chosen by the memory that is free, on a CPU always alike.
    chooses = any(getattr(config, key) == "auto" for key in (WAY if device.type == "cuda" else UNFOUND))
    under_way: dict[Trainer, tuple[Job, dict[str, Any]]] = {}
    with crew(board.parallel, runs_dir) as free:
        while True:
            while (jobs := waiting()) and (trainer := free()) is not None:
                job = jobs[0]
                assert job.contestant.recipe is not None
                under_way[trainer] = job, _begun(board, job)
                its = _config(board, job, config)
                trainer.begin(job.contestant.recipe, its, f"{job.row.label}, {job.named}")
            if not under_way:
                return
            for trainer, kind, answer in answers(list(under_way)):
                if kind == "told":
                    board.tell(answer)
                    continue
                job, begun = under_way.pop(trainer)
                if kind == "failed":
                    board.fail(job, answer)
                else:
                    board.add(begun | answer, job)
