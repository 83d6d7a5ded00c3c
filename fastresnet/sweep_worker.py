"""A worker of a sweep: takes cells, trains or resumes each one's run, and says what came of it."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from fastresnet.engine.fit import Interrupted
from fastresnet.engine.listener import Listener
from fastresnet.engine.machine import free_memory
from fastresnet.errors import UserError
from fastresnet.folder import CONFIG, RunInUse
from fastresnet.run import RunConfig, RunResult
from fastresnet.sweep_cells import Cell
from fastresnet.sweep_progress import SweepListener, status_of
from fastresnet.sweep_store import Claim, SweepStore
from fastresnet.training import MachineDiffers, resume, train

LOOK_EVERY_S = 2.0  # how often a worker without a cell looks again


class CellBroke(Exception):
    """A cell failed by a bug or a broken device and is recorded; what is left needs a fresh process.

    Its ``__cause__`` is what was raised.
    """


class _Hopeless(Exception):
    """A cell's accuracy is below the median of the others at the same epoch."""

    def __init__(self, epoch: int, split: str, accuracy: float) -> None:
        super().__init__(epoch, split, accuracy)
        self.epoch, self.split, self.accuracy = epoch, split, accuracy


def run_name(key: str, cell: Cell) -> str:
    """Return the name of a cell's run folder: whoever trains it finds what was begun."""
    return f"{cell.spec.slug}-{key}"


@dataclass(kw_only=True)
class Worker:
    """Trains cells of one study until every one has ended.

    Attributes:
        step: the study's step; empty unless the sweep is a sequence.
        store: the study.
        cells: those to train, by key.
        runs_dir: where their run folders lie.
        config: data, seed and machine.
        prune: stop cells that do worse than the median of the others at the same epoch.
        allow_different_machine: resume a run that another kind of machine began.
        listener: told how it goes on.
        changed: called after each end of a cell.
        told: notices that hold for every cell, which the listener has had already.
    """

    step: str
    store: SweepStore
    cells: Mapping[str, Cell]
    runs_dir: Path
    config: RunConfig
    prune: bool
    allow_different_machine: bool
    listener: SweepListener
    changed: Callable[[], Any]
    told: Collection[str] = ()
    _in_use: dict[str, float] = field(default_factory=dict)  # keys, and when to look at them again
    _refused: dict[str, str] = field(default_factory=dict)  # keys of runs begun on another machine, and why

    def work(self) -> None:
        """Take and train cells until every one of the study has ended, whoever trains it.

        Raises:
            UserError: what is left was begun on another machine, or the database cannot be used.
            CellBroke: a cell failed by something else than a mistake of the user's.
            Interrupted: a signal asked to stop; the cell waits for its next worker.
        """
        name = f"{platform.node()}:{os.getpid()}"
        while True:
            now = time.monotonic()
            in_use = {key for key, until in self._in_use.items() if until > now}
            claim = self.store.take(in_use | set(self._refused), name)
            if claim is not None:
                try:
                    put_back = self._try(claim)
                except CellBroke:
                    self._end(claim, None)
                    raise
                self._end(claim, put_back)
                continue
            records = self.store.records()
            unfinished = {key for key in self.cells if records[key].state in ("waiting", "running")}
            if not unfinished:
                return
            if all(records[key].state == "waiting" and key in self._refused for key in unfinished):
                first = self._refused[min(unfinished)]
                raise UserError(
                    f"cells left that were begun elsewhere: {len(unfinished)}; of the first, {first}"
                )
            self.listener.on_wait(status_of(self.step, self.cells, records))
            time.sleep(LOOK_EVERY_S)

    def _try(self, claim: Claim) -> str | None:
        """Train a claimed cell and end the claim; return why it was put back instead, if it was."""
        cell = self.cells[claim.key]
        run = run_name(claim.key, cell)
        attrs: dict[str, Any] = {"run": f"{self.runs_dir.name}/{run}"}
        begun = (self.runs_dir / run / CONFIG).is_file()
        status = status_of(self.step, self.cells, self.store.records())
        self.listener.on_cell_start(cell, status, resumed=begun)
        watched = cast(Listener, _Told(self.listener, self.told))
        if self.prune:
            watched = cast(Listener, _Pruning(watched, self.store, claim))
        broke = False
        try:
            with self.store.beating(claim):
                result = self._resume(run, watched) if begun else self._train(cell, run, watched)
        except RunInUse as error:
            # Its worker was thought dead and is not: it will have finished the run when this cell is taken again.
            self._in_use[claim.key] = time.monotonic() + self.store.grace_s
            return self._release(claim, str(error))
        except MachineDiffers as error:
            self._refused[claim.key] = str(error)
            return self._release(claim, str(error))
        except Interrupted:
            self._release(claim, "interrupted")
            raise
        except _Hopeless as stop:
            # Not as `accuracy`: that is of the last epoch on test, and this may be neither.
            at = {"epoch": stop.epoch, "split": stop.split, "accuracy": stop.accuracy}
            self.store.prune(claim, stop.accuracy, {**attrs, "pruned_at": at})
        except UserError as error:
            self.store.fail(claim, str(error), attrs)
        except Exception as error:
            # A bug of ours, or a broken device: the cell has failed, and this process is not to be trusted.
            broke = True
            self.store.fail(claim, f"{type(error).__name__}: {error}", attrs)
            raise CellBroke(f"{cell.label} failed") from error
        except BaseException:
            self._release(claim, "interrupted")
            raise
        else:
            attrs |= outcome(result)
            if not self.store.complete(claim, attrs["value"], attrs):
                self.listener.on_notice(
                    f"{cell.label} was taken for dead meanwhile; its next worker has the result"
                )
        finally:
            if not broke:  # a broken device would raise again, and this process ends
                free_memory()
        return None

    def _release(self, claim: Claim, reason: str) -> str:
        self.store.release(claim, reason)
        return reason

    def _train(self, cell: Cell, run: str, listener: Listener) -> RunResult:
        return train(cell.recipe, self.config, runs_dir=self.runs_dir, run_name=run, listener=listener)

    def _resume(self, run: str, listener: Listener) -> RunResult:
        return resume(
            str(self.runs_dir / run),
            data=self.config.data,
            save_every_s=self.config.save_every_s,
            allow_different_machine=self.allow_different_machine,
            listener=listener,
        )

    def _end(self, claim: Claim, put_back: str | None) -> None:
        self.changed()
        cell, records = self.cells[claim.key], self.store.records()
        if put_back is not None:
            self.listener.on_notice(f"{cell.label} is left for later: {put_back}")
            return
        status = status_of(self.step, self.cells, records, idle_workers=1)
        self.listener.on_cell_end(cell, records[claim.key], status)


def outcome(result: RunResult) -> dict[str, Any]:
    """Return what a study keeps of a run, as JSON types.

    ``accuracy`` is of the last epoch on test. ``value``, by which cells are compared, is that on the validation split
    where the recipe has one, so that nothing is chosen on test that need not be; ``chosen_on`` says which.
    """
    return {
        "accuracy": result.test_accuracy,
        "value": result.epochs[-1].get("val_accuracy", result.test_accuracy),
        "chosen_on": "val" if "val_accuracy" in result.epochs[-1] else "test",
        "seconds": result.clocks.total_s,
        "device": result.environment["device_name"],
    }


class _Told:
    """A listener that is not told again what it was told."""

    def __init__(self, listener: Listener, told: Collection[str]) -> None:
        self._listener = listener
        self._told = told

    def __getattr__(self, name: str) -> Any:
        return getattr(self._listener, name)

    def on_notice(self, text: str) -> None:
        if text not in self._told:
            self._listener.on_notice(text)


class _Pruning:
    """A listener that also reports each epoch to the study, and stops a hopeless cell."""

    def __init__(self, listener: Listener, store: SweepStore, claim: Claim) -> None:
        self._listener = listener
        self._store = store
        self._claim = claim

    def __getattr__(self, name: str) -> Any:
        return getattr(self._listener, name)

    def on_epoch(self, row: dict[str, Any]) -> None:
        self._listener.on_epoch(row)
        split = "val" if "val_accuracy" in row else "test"
        accuracy = row.get(f"{split}_accuracy")
        if accuracy is None:
            return  # this epoch was not evaluated
        try:
            hopeless = self._store.report(self._claim, row["epoch"], accuracy)
        except UserError as error:
            self._listener.on_notice(str(error))
            return
        if hopeless:
            raise _Hopeless(row["epoch"], split, accuracy)
