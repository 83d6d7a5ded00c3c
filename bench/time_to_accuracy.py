"""Trainings against the clock until the board is full; :mod:`fastresnet.bench.board` says what is on the clock.

Every run is trained in this process, one after another, the rows taking turns, so that a machine that drifts slows all
alike. The record is written after each run: a board that was killed goes on with the run it was at, from its start,
since a training that was interrupted cannot be timed.
"""

from __future__ import annotations

import datetime
import fcntl
import hashlib
import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from fastresnet.assembly import Data, build_step, choose_machine
from fastresnet.atomic import explain_os_error
from fastresnet.bench.board import FIGURE, SEARCH, Row, row_of, runs_of
from fastresnet.bench.energy import EnergyMeter
from fastresnet.bench.peers import Peer
from fastresnet.bench.schedule_search import Found, Try, next_try
from fastresnet.catalogue import CATALOGUE
from fastresnet.engine.listener import Listener, RunInfo
from fastresnet.errors import UserError
from fastresnet.recipe import Recipe, recipe_names
from fastresnet.run import RunConfig, RunResult, git_sha
from fastresnet.sweep_cells import science_of
from fastresnet.training import train
from fastresnet.training_warmup import warm_up_step

SEARCH_SEEDS = 1_000_000  # a search's runs take seeds from here on, the figures' from 0: never the same
TELL_EVERY_S = 20.0
FINAL_ARCHS = ("n3-b2-c85-p8", "improved-resnet", "resnet18-c42")  # of R1, R2 and R3
FASTEST = "fastest"  # a recipe that brings its own arch, once there is one


@dataclass(frozen=True, kw_only=True)
class Contestant:
    """What is run: a recipe with its arch and epochs, or a peer.

    Attributes:
        name: on the board.
        recipe: None for a peer.
        peer: None for a training of ours.
    """

    name: str
    recipe: Recipe | None = None
    peer: Peer | None = None

    def with_epochs(self, epochs: int) -> Contestant:
        """Return the same with another number of epochs."""
        assert self.recipe is not None
        return replace(self, recipe=self.recipe.with_overrides({"epochs": epochs}))

    def row(self, data: Data) -> Row:
        """Return its line of the board."""
        if self.recipe is None:
            assert self.peer is not None
            return Row(
                name=self.name,
                recipe=None,
                science=self.peer.command,
                num_params=None,
                epochs=None,
                tta="none",
            )
        text = json.dumps(science_of(self.recipe), sort_keys=True)
        sizes = data.dataset.num_classes, data.dataset.image_size
        return Row(
            name=self.name,
            recipe=self.recipe.name,
            science=hashlib.sha256(text.encode()).hexdigest()[:16],
            num_params=self.recipe.arch_spec().num_params(*sizes),
            epochs=self.recipe.epochs,
            tta=self.recipe.tta,
        )


def default_names() -> list[str]:
    """Return the archs of a whole board: R0's table, the final ones of R1, R2 and R3, and our fastest recipe's."""
    table = [entry.name for entry in CATALOGUE if entry.table == "r0-table1"]
    ours = [name for name in recipe_names() if name == FASTEST]
    return [*table, *FINAL_ARCHS, *ours]


@dataclass(frozen=True, kw_only=True)
class Job:
    """One run to do: of what, as what, with which seed."""

    contestant: Contestant
    row: Row
    role: str
    seed: int


@dataclass(kw_only=True)
class Board:
    """A board that is being filled.

    Attributes:
        contestants: the rows asked for, in order.
        runs: figure runs of each row.
        search: find the shortest schedule of at most each recipe's epochs first.
        config: data, target, evaluation interval and machine of every run; its seed is replaced.
        data: what it names, opened.
        record: what is on the board; grows.
        save: given the record after each run.
        tell: told lines.
    """

    contestants: Sequence[Contestant]
    runs: int
    search: bool
    config: RunConfig
    data: Data
    record: dict[str, Any]
    save: Callable[[dict[str, Any]], None]
    tell: Callable[[str], None]

    def jobs(self) -> list[Job]:
        """Return the next run of each row that has one; rows that a search has yet to choose are not in the record."""
        found = [job for contestant in self.contestants if (job := self._next(contestant)) is not None]
        return sorted(found, key=lambda job: job.seed % SEARCH_SEEDS)  # stable: rows in order

    def _next(self, contestant: Contestant) -> Job | None:
        if self.search and contestant.recipe is not None:
            decision = self._decide(contestant)
            if isinstance(decision, Try):
                tried = contestant.with_epochs(decision.epochs)
                row = tried.row(self.data)
                seed = SEARCH_SEEDS + len(runs_of(self.record, row, SEARCH))
                return Job(contestant=tried, row=row, role=SEARCH, seed=seed)
            # Where not even the longest reaches the target, its figure says how far it is from it.
            contestant = contestant.with_epochs(decision.epochs or contestant.recipe.epochs)
        row = contestant.row(self.data)
        if asdict(row) not in self.record["rows"]:
            self.record["rows"].append(asdict(row))
        done = {run["seed"] for run in runs_of(self.record, row)}
        left = [seed for seed in range(self.runs) if seed not in done]
        return Job(contestant=contestant, row=row, role=FIGURE, seed=left[0]) if left else None

    def _decide(self, contestant: Contestant) -> Try | Found:
        assert contestant.recipe is not None
        results: dict[int, list[float]] = {}
        for run in self.record["runs"]:
            row = row_of(run)
            if run["role"] != SEARCH or row.name != contestant.name or row.epochs is None:
                continue
            if row == contestant.with_epochs(row.epochs).row(self.data):
                results.setdefault(row.epochs, []).append(run["accuracy"])
        target = self.record["settings"]["target"]
        return next_try(results, target, longest=contestant.recipe.epochs, most_runs=self.runs)

    def fill(self, runs_dir: Path, out_of_time: Callable[[], bool] = lambda: False) -> None:
        """Run what is missing, each row in turn, until nothing is or the time is up.

        Raises:
            UserError: a peer failed, or a training cannot be done; what was run before is kept.
            Interrupted: a signal asked to stop; the run that was under way will be done again.
        """
        meter = EnergyMeter(choose_machine(self.config).device)
        self.record["energy"] = (
            meter.obstacle or "of the whole GPU, from the first step to the end of the run"
        )
        while (jobs := self.jobs()) and not out_of_time():
            for job in jobs:
                if out_of_time():
                    break
                run = self._run(job, runs_dir, meter)
                self.record["runs"].append(run)
                self.save(self.record)
                self.tell(_told(run, job))
        self.record["not_measured"] = [job.row.label for job in self.jobs()]

    def _run(self, job: Job, runs_dir: Path, meter: EnergyMeter) -> dict[str, Any]:
        entry: dict[str, Any] = {
            "row": asdict(job.row),
            "role": job.role,
            "seed": job.seed,
            "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d"),
            "git": git_sha(),
            "crossing_s": None,
            "energy_j": None,
        }
        if job.contestant.peer is not None:
            return entry | job.contestant.peer.run(job.seed)
        assert job.contestant.recipe is not None
        listener = _Watch(job.row.label, meter, self.tell)
        start = time.perf_counter()
        config = self.config.model_copy(update={"seed": job.seed})
        try:
            result = train(job.contestant.recipe, config, runs_dir=runs_dir, listener=listener)
        finally:
            shutil.rmtree(runs_dir, ignore_errors=True)
            torch.compiler.reset()  # the next network's graphs count against the same limit
        after = meter.read()
        if after is not None and listener.joules is not None:
            entry["energy_j"] = after - listener.joules
        return entry | outcome(result) | {"process_s": time.perf_counter() - start}


def outcome(result: RunResult) -> dict[str, Any]:
    """Return what the board keeps of a training, as JSON types."""
    clocks, tta = result.clocks, result.test_accuracy_tta
    crossing = clocks.time_to_target_s
    before_s = clocks.move_s + clocks.init_s
    return {
        "accuracy": result.test_accuracy if tta is None else tta,
        "seconds": before_s + clocks.train_s + clocks.eval_s,
        "crossing_s": None if crossing is None else clocks.move_s + crossing,
        "clocks": clocks.model_dump(),
        "machine": {
            name: getattr(result.config, name)
            for name in ("loader", "amp", "compile", "kernels", "convs", "graphs")
        },
        "curve": [
            [before_s + row["clock"]["train_s"], row["test_accuracy"]]
            for row in result.epochs
            if "test_accuracy" in row
        ],
    }


class _Watch(Listener):
    """Reads the energy counter when a run starts, and says now and then how far it is."""

    def __init__(self, label: str, meter: EnergyMeter, tell: Callable[[str], None]) -> None:
        self.label = label
        self.meter = meter
        self.tell = tell
        self.joules: float | None = None
        self._told_at = time.monotonic()

    def on_start(self, info: RunInfo) -> None:
        self.joules = self.meter.read()
        self._epochs = info.recipe.epochs

    def on_epoch(self, row: dict[str, Any]) -> None:
        now = time.monotonic()
        if now - self._told_at > TELL_EVERY_S:
            self._told_at = now
            reached = f"  test {row['test_accuracy']:.4f}" if "test_accuracy" in row else ""
            self.tell(f"  {self.label}: epoch {row['epoch']}/{self._epochs}{reached}")


def _told(run: dict[str, Any], job: Job) -> str:
    crossing = "" if run["crossing_s"] is None else f", first crossing at {run['crossing_s']:.2f} s"
    kind = "search" if job.role == SEARCH else "run"
    number = job.seed % SEARCH_SEEDS + 1
    return f"{job.row.label}, {kind} {number}: {run['accuracy']:.4f} in {run['seconds']:.2f} s{crossing}"


def estimate_s(board: Board) -> tuple[float, int, int]:
    """Return about how many seconds the board still takes, of how many runs, and how many rows are not in it.

    A row whose like has been run takes what that took; another of ours is measured by a few steps on random labels.
    Peers that have not been run are left out. A search is taken to need two runs a bisection.
    """
    total_s, num_runs, unknown = 0.0, 0, 0
    for contestant in board.contestants:
        row = contestant.row(board.data)
        left: float = board.runs - len(runs_of(board.record, row))
        run_s = _known_s(board.record, row)
        if contestant.recipe is not None and board.search:
            # a bisection halves the epochs, and what is found is about half the longest
            left = max(0, left) / 2 + 2 * contestant.recipe.epochs.bit_length() / 2
        if left <= 0:
            continue
        if run_s is None and contestant.recipe is not None:
            run_s = measure_run_s(contestant.recipe, board.config, board.data)
        if run_s is None:
            unknown += 1
            continue
        total_s += left * run_s
        num_runs += round(left)
    return total_s, num_runs, unknown


def _known_s(record: dict[str, Any], row: Row) -> float | None:
    """Return the mean wall-clock seconds of a row's runs, None where there are none."""
    runs = runs_of(record, row)
    return sum(run["process_s"] for run in runs) / len(runs) if runs else None


def measure_run_s(recipe: Recipe, config: RunConfig, data: Data) -> float:
    """Return about how many seconds a training takes, by a few steps on random labels, evaluations included."""
    plain = config.model_copy(update={"compile": "off", "kernels": "eager", "graphs": "off"})
    chosen = choose_machine(plain)
    train_split, test = data.splits["train"], data.splits["test"]
    num_train = len(train_split.members)
    steps = max(1, num_train // recipe.batch_size)
    found = warm_up_step(build_step(recipe, chosen, data, steps), recipe, chosen, data)
    sizes = recipe.image_sizes(data.dataset.image_size)
    # an evaluation is a third of a training step's work an image, at full size
    evaluating = len(test.members) / (3 * num_train * config.eval_every)
    return steps * sum(found.step_s[size] + evaluating * found.step_s[sizes[-1]] for size in sizes)


@contextmanager
def own_runs_dir(out: Path) -> Iterator[Path]:
    """Yield a folder for the runs of the board at ``out``, which no other process fills meanwhile.

    It lies among the temporary files, is found again after a kill, and is gone afterwards.

    Raises:
        UserError: another process fills this board.
    """
    digest = hashlib.sha256(str(out.absolute()).encode()).hexdigest()[:16]
    folder = Path(tempfile.gettempdir()) / f"fastresnet-board-{os.getuid()}-{digest}"
    try:
        folder.mkdir(exist_ok=True)
        lock = open(folder / "lock", "w")  # noqa: SIM115 - held while the board is filled
    except OSError as error:
        raise explain_os_error(error, f"cannot use {folder}") from error
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(
                f"another process fills the board {out}; wait for it, or choose another --out"
            ) from None
        try:
            shutil.rmtree(folder / "runs", ignore_errors=True)  # of a process that was killed
            yield folder / "runs"
        finally:
            shutil.rmtree(folder, ignore_errors=True)
