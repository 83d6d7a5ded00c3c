"""Sweeps: the trainings of a :class:`Sweep`, by any number of workers, each cell once.

Every worker runs the same code, wherever it is: it opens the study, takes a cell that waits, trains it in a run
folder whose name follows from the cell, and goes on until no cell is left. A cell whose worker died is taken by
another, which finds the run folder and resumes it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fastresnet.assembly import check_loader, resolve_machine, split_data
from fastresnet.atomic import explain_os_error, read_sealed_json
from fastresnet.errors import UserError
from fastresnet.loaders.dataset import Dataset, open_dataset
from fastresnet.run import RunConfig
from fastresnet.sweep_cells import Cell, Settings, science_of
from fastresnet.sweep_database import Database, require_optuna
from fastresnet.sweep_filter import CellFilter, select, select_steps
from fastresnet.sweep_progress import SweepListener, best_cell
from fastresnet.sweep_spec import Sweep, is_name
from fastresnet.sweep_store import SweepStore
from fastresnet.sweep_table import TABLE_JSON, row, table, write_table
from fastresnet.sweep_worker import Worker, run_name

RUNS, DATABASE = "runs", "study.db"


@dataclass(frozen=True, kw_only=True)
class SweepOptions:
    """How a sweep is run.

    Attributes:
        name: of its folder and study; None for the spec's.
        sweeps_dir: where its folder lies; for several hosts on a file system that they share.
        storage: URL of a database; None for an SQLite file in the folder, for the processes of one host.
        config: data, seed and machine of every cell.
        filters: which cells; empty for all.
        prune: give up cells that do worse than the median of the others at the same epoch.
        retry_failed: try cells again that failed.
        heartbeat_s: seconds between signs of life; a worker silent for four of them counts as dead.
        allow_different_machine: resume a run that another kind of machine began.
        command: what was typed to train it, for its table; None for nothing.
    """

    name: str | None = None
    sweeps_dir: Path = Path("sweeps")
    storage: str | None = None
    config: RunConfig = field(default_factory=RunConfig)
    filters: tuple[CellFilter, ...] = ()
    prune: bool = False
    retry_failed: bool = False
    heartbeat_s: int = 15
    allow_different_machine: bool = False
    command: str | None = None


class SweepRun:
    """A sweep in this process.

    Args:
        sweep: what to train.
        options: how.
        listener: told how it goes on.

    Raises:
        UserError: Optuna is missing, the data cannot be opened, a cell is not allowed, every cell breaks the
            budget, a filter names none, the options let no cell be trained on this data and machine, or the folder
            or the database cannot be used.
    """

    def __init__(self, sweep: Sweep, options: SweepOptions, listener: SweepListener | None = None) -> None:
        require_optuna()
        self.options = options
        self.listener = listener or SweepListener()
        if options.name is not None and not is_name(options.name):
            raise UserError(
                f"--name is {options.name!r}; it must be lower-case letters, digits and hyphens, with no hyphen first"
            )
        self.name = options.name or sweep.spec.name
        self.folder = options.sweeps_dir / self.name
        self.database = Database(options.storage or f"sqlite:///{self.folder.absolute() / DATABASE}")
        select_steps(sweep.all_cells(), options.filters)  # before the data is opened, which may take a while
        config = options.config
        dataset = open_dataset(config.data, image_size=config.image_size, progress=self.listener.on_data)
        self.sweep = dataclasses.replace(
            sweep, num_classes=dataset.num_classes, image_size=dataset.image_size
        )
        steps = select_steps(self.sweep.all_cells(), options.filters)
        allowed = [cell for _, cells in steps for cell in cells if not cell.over_budget]
        _check_options(config, dataset, allowed)
        self._notices = dataset.notices
        self._described = {"dataset_name": dataset.name, "dataset_is_builtin": dataset.is_builtin}
        self.conditions: dict[str, Any] = {
            "dataset": dataset.digest,
            "seed": config.seed,
            "val": config.val,
            "limit_train": config.limit_train,
        }
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise explain_os_error(error, f"cannot make the sweep's folder {self.folder}") from error
        self._rows: dict[str, list[dict[str, Any]]] = {}  # by step
        self._begun_anew = False  # so that the table there is of other settings

    def prepare(self) -> None:
        """Enqueue the first step's cells, so that what is wrong shows before any worker starts; tell of the data.

        Raises:
            UserError: the sweep was begun with other options, or its database cannot be used.
        """
        self._open(self.sweep.steps[0], {})
        for notice in self._notices:
            self.listener.on_notice(notice)

    def run(self) -> dict[str, Any]:
        """Train until every cell has ended, and return the table, which is also in the sweep's folder.

        Raises:
            UserError: as :meth:`prepare`; all that is left was begun on another machine; no cell of a step came
                out, so that the next has nothing to start from.
            CellBroke: a cell failed by a bug or a broken device; a fresh process can go on with the others.
            Interrupted: a signal asked to stop; the cell that was being trained waits for its next worker.
        """
        chosen: Settings = {}
        content: dict[str, Any] = {}
        for step in self.sweep.steps:
            worker, note = self._open(step, chosen)
            worker.work()
            content = note()
            best = best_cell(worker.cells, worker.store.records())
            if best is not None:
                chosen = worker.cells[best].settings
            elif step != self.sweep.steps[-1]:
                raise UserError(
                    f"no cell of step {step!r} came out, so there is no best to go on from; try them again with "
                    "--retry-failed, or change the sweep"
                )
        return content

    def _open(self, step: str, chosen: Settings) -> tuple[Worker, Callable[[], dict[str, Any]]]:
        """Enqueue a step's cells; return a worker for them, and what writes the table as it stands."""
        retry_failed = self.options.retry_failed and step not in self._rows
        every = [(cell.key(self.conditions), cell) for cell in self.sweep.cells(step, chosen)]
        allowed = {key: cell for key, cell in every if not cell.over_budget}
        selected = select(list(allowed.values()), self.options.filters)
        wanted = {key: cell for key, cell in allowed.items() if cell in selected}
        store = SweepStore(
            self.database,
            f"{self.name}/{step}" if step else self.name,
            self._settings(),
            {key: _attrs(key, cell) for key, cell in allowed.items()},
            wanted,
        )
        store.enqueue(retry_failed)

        self._begun_anew |= store.begun_anew

        def note() -> dict[str, Any]:
            records = store.records()
            shown = [(key, cell) for key, cell in every if cell.over_budget or key in records]
            going = any(record.state in ("waiting", "running") for record in records.values())
            best = best_cell(wanted, records) if step and not going else None
            self._rows[step] = [row(step, cell, records.get(key), key == best) for key, cell in shown]
            return self._write(left_out=len(every) - len(shown))

        worker = Worker(
            step=step,
            store=store,
            cells=wanted,
            runs_dir=self.folder / RUNS,
            config=self.options.config,
            prune=self.options.prune,
            allow_different_machine=self.options.allow_different_machine,
            listener=self.listener,
            changed=note,
            told=self._notices,
        )
        note()
        return worker, note

    def _settings(self) -> dict[str, Any]:
        """Return what every start of this sweep must share."""
        base = [science_of(self.sweep.base()), self.sweep.spec.set]
        digest = hashlib.sha256(json.dumps(base, sort_keys=True).encode()).hexdigest()
        return {
            **self.conditions,
            "dataset": self.conditions["dataset"][:12],
            "recipe": digest[:12],
            "epochs": self.sweep.epochs,
            "prune": self.options.prune,
            "heartbeat_s": self.options.heartbeat_s,
        }

    def _commands(self) -> list[str]:
        """Return what was typed for this sweep until now, here or in a process beside it, each command once."""
        before = []
        if not self._begun_anew:  # else what was typed before made nothing
            # There is none yet, or it is damaged: it is about to be written.
            with contextlib.suppress(UserError):
                before = read_sealed_json(self.folder / TABLE_JSON).get("commands", [])
        own = [self.options.command] if self.options.command else []
        return list(dict.fromkeys([*before, *own]))

    def _write(self, left_out: int) -> dict[str, Any]:
        """Write the table as far as it is known, and return it."""
        conditions = {**self.conditions, **self._described}
        rows = [entry for step in self.sweep.steps for entry in self._rows.get(step, [])]
        with self.database.errors(), self.database.lock(self.name):
            content = table(self.name, self.sweep.spec.title, rows, conditions, left_out, self._commands())
            write_table(self.folder, content)
            self._begun_anew = False
        return content


def _check_options(config: RunConfig, dataset: Dataset, cells: list[Cell]) -> None:
    """Raise the UserError that every cell would fail with; one that can be trained is enough."""
    _, device = resolve_machine(config)
    check_loader(config, dataset, device)
    mistake: UserError | None = None
    for cell in cells:
        try:
            split_data(dataset, cell.recipe, config)
            return
        except UserError as error:
            mistake = mistake or error
    if mistake is not None:
        raise mistake


def _attrs(key: str, cell: Cell) -> dict[str, Any]:
    return {"settings": cell.settings, "arch": cell.spec.slug, "run": f"{RUNS}/{run_name(key, cell)}"}
