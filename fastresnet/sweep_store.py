"""A sweep's study: one Optuna trial for each time a cell is tried, shared by any number of workers.

What workers must not do at once (enqueue, take, finish) is done under the database's lock, and leaves the study in
a state from which the next one goes on whenever this process dies:

- A cell is enqueued when it has no trial that waits, runs or has ended for good. That one rule enqueues each cell
  once at the beginning, and again when its worker was lost, whoever notices and whenever.
- A trial gets its first heartbeat before it is marked as running, so that none runs without one.
- A trial ends in one transaction. A worker that was thought dead finds its trial ended and drops its result: the
  cell's next worker finds the finished run and takes the result from there.
"""

from __future__ import annotations

import threading
import warnings
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from fastresnet.errors import UserError
from fastresnet.sweep_database import Database

if TYPE_CHECKING:
    from optuna.trial import FrozenTrial

State = Literal["waiting", "running", "done", "pruned", "failed"]
OUTCOME = "outcome"  # a trial's attribute: what its worker said when it ended it
GRACE = 4  # heartbeats that a worker may miss before it counts as dead
# Pruning: from this many finished cells on, and not before a cell has had this many epochs.
PRUNE_FROM_CELLS, PRUNE_FROM_EPOCHS = 4, 2
# How messages call what must stay the same from one start of a sweep to the next.
OPTIONS = {
    "dataset": "the hash of the data set (--data)",
    "recipe": "the hash of the base recipe",
    "epochs": "--epochs",
    "seed": "--seed",
    "val": "--val",
    "limit_train": "--limit-train",
    "prune": "--prune",
    "heartbeat_s": "--heartbeat",
}


@dataclass(frozen=True, kw_only=True)
class Claim:
    """A cell that this process has taken, and its trial's id in the database."""

    key: str
    trial_id: int


@dataclass(frozen=True, kw_only=True)
class Record:
    """How a cell stands.

    Attributes:
        state: ``failed`` is for good, unless failed cells are tried again.
        attrs: what its worker said at the end, such as ``accuracy``, ``run`` and ``error``.
    """

    state: State
    attrs: dict[str, Any] = field(default_factory=dict)


class SweepStore:
    """One study of a database, open in this process.

    Args:
        database: where.
        name: of the study.
        settings: what every start of the sweep must share, by the keys of ``OPTIONS``.
        cells: JSON attributes of each cell's trials, by the cell's key; those not wanted now are only looked at.
        wanted: keys of the cells to train.

    Attributes:
        begun_anew: the study had other settings, with which nothing was trained.

    Raises:
        UserError: with other settings cells were trained, or are being trained; the database cannot be used.
    """

    def __init__(
        self,
        database: Database,
        name: str,
        settings: Mapping[str, Any],
        cells: Mapping[str, dict[str, Any]],
        wanted: Collection[str],
    ) -> None:
        import optuna

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self.name = name
        self._database = database
        self._cells = dict(cells)
        self._wanted = set(wanted)
        self.heartbeat_s: int = settings["heartbeat_s"]
        self.grace_s = GRACE * self.heartbeat_s
        pruner = optuna.pruners.MedianPruner(PRUNE_FROM_CELLS, PRUNE_FROM_EPOCHS)
        with self._alone():
            self._storage = database.open(self.heartbeat_s, self.grace_s)
            self._study = optuna.create_study(
                storage=self._storage,
                study_name=name,
                direction="maximize",
                load_if_exists=True,
                pruner=pruner if settings["prune"] else optuna.pruners.NopPruner(),
            )
            self._settings = dict(settings)
            changed = self._changed()
            self.begun_anew = changed is not None and not self._is_under_way()
            if changed is not None and not self.begun_anew:
                raise UserError(changed)
            self._study.set_user_attr("settings", self._settings)

    def _changed(self) -> str | None:
        """Return which setting is not the study's own, in words; None where all are, or the study has none yet."""
        recorded = self._study.user_attrs.get("settings", self._settings)
        for key, words in OPTIONS.items():
            was, now = recorded.get(key), self._settings[key]
            if was != now:
                begun = f"without {words}" if was is None else f"with {_shown(was)}"
                return (
                    f"{words} is {_shown(now)}, and the sweep {self.name!r} was begun {begun}; give the same, or "
                    "begin another with --name"
                )
        return None

    def _is_under_way(self) -> bool:
        """Return whether a cell has a result, or a worker that lives."""
        from optuna.trial import TrialState

        self._end_lost()
        counting = (TrialState.COMPLETE, TrialState.PRUNED, TrialState.RUNNING)
        return any(trial.state in counting for own in self._trials().values() for trial in own)

    def _end_lost(self) -> None:
        """End the trials of workers that fell silent."""
        import optuna

        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            optuna.storages.fail_stale_trials(self._study)

    @contextmanager
    def _alone(self) -> Iterator[None]:
        with self._database.errors(), self._database.lock(self.name):
            yield

    def _trials(self) -> dict[str, list[FrozenTrial]]:
        """Return the trials of each cell, oldest first."""
        trials: dict[str, list[FrozenTrial]] = {}
        for trial in self._study.get_trials(deepcopy=False):
            trials.setdefault(trial.user_attrs.get("cell", ""), []).append(trial)
        return trials

    def enqueue(self, retry_failed: bool = False) -> None:
        """Give each wanted cell a trial that waits, unless it has one that waits, runs or has ended for good.

        Args:
            retry_failed: cells that failed are tried again.
        """
        with self._alone():
            self._enqueue(retry_failed)

    def _enqueue(self, retry_failed: bool = False) -> None:
        from optuna.trial import TrialState, create_trial

        trials = self._trials()
        for key, attrs in self._cells.items():
            own = trials.get(key, [])
            if key not in self._wanted or any(trial.state != TrialState.FAIL for trial in own):
                continue
            if own and "error" in _outcome(own[-1]) and not retry_failed:
                continue
            self._study.add_trial(
                create_trial(
                    state=TrialState.WAITING,
                    user_attrs={**attrs, "cell": key},
                    system_attrs={"fixed_params": attrs["settings"]},
                    intermediate_values=own[-1].intermediate_values if own else None,
                )
            )

    def take(self, without: set[str], worker: str) -> Claim | None:
        """Take a wanted cell that waits, having put back those of dead workers; None where there is none.

        Args:
            without: keys of cells not to take.
            worker: who takes it, for the record.

        Raises:
            UserError: the study was begun anew with other settings; the database cannot be used.
        """
        from optuna.trial import TrialState

        with self._alone():
            if (changed := self._changed()) is not None:
                raise UserError(changed)
            self._end_lost()
            self._enqueue()
            trials = {key: own for key, own in self._trials().items() if key in self._wanted - without}
            # A cell that lost its workers comes last, in case it is the one that kills them.
            for key, own in sorted(trials.items(), key=lambda item: _times_lost(item[1])):
                if own[-1].state != TrialState.WAITING:
                    continue
                study_id = self._storage.get_study_id_from_name(self.name)
                trial_id = self._storage.get_trial_id_from_study_id_trial_number(study_id, own[-1].number)
                self._storage.record_heartbeat(trial_id)
                self._storage.set_trial_state_values(trial_id, TrialState.RUNNING)
                self._storage.set_trial_user_attr(trial_id, "worker", worker)
                return Claim(key=key, trial_id=trial_id)
        return None

    @contextmanager
    def beating(self, claim: Claim) -> Iterator[None]:
        """Say all the while, from a thread, that the claim's worker is alive."""
        stop = threading.Event()

        def beat() -> None:
            while not stop.wait(self.heartbeat_s):
                # A database that is away for a moment must not stop the training; silence for long is noticed.
                with suppress(Exception):
                    self._storage.record_heartbeat(claim.trial_id)

        thread = threading.Thread(target=beat, name="heartbeat", daemon=True)
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join()

    def complete(self, claim: Claim, value: float, attrs: Mapping[str, Any]) -> bool:
        """End a claim with the cell's result; False where it had been taken for dead."""
        from optuna.trial import TrialState

        return self._end(claim, TrialState.COMPLETE, value, attrs)

    def prune(self, claim: Claim, value: float, attrs: Mapping[str, Any]) -> bool:
        """End a claim of a hopeless cell."""
        from optuna.trial import TrialState

        return self._end(claim, TrialState.PRUNED, value, attrs)

    def fail(self, claim: Claim, error: str, attrs: Mapping[str, Any]) -> bool:
        """End a claim with what was wrong; the cell is not tried again by itself."""
        from optuna.trial import TrialState

        return self._end(claim, TrialState.FAIL, None, {**attrs, "error": error})

    def release(self, claim: Claim, reason: str) -> bool:
        """End a claim without a result; the cell waits for its next worker."""
        from optuna.trial import TrialState

        return self._end(claim, TrialState.FAIL, None, {"released": reason})

    def _end(self, claim: Claim, state: Any, value: float | None, attrs: Mapping[str, Any]) -> bool:
        from optuna.exceptions import UpdateFinishedTrialError

        with self._alone():
            try:
                self._storage.set_trial_user_attr(claim.trial_id, OUTCOME, dict(attrs))
                values = None if value is None else [value]
                ended = self._storage.set_trial_state_values(claim.trial_id, state, values)
            except UpdateFinishedTrialError:
                ended = False
            self._enqueue()
            return ended

    def report(self, claim: Claim, epoch: int, value: float) -> bool:
        """Record an epoch's accuracy; return whether the cell is hopeless: below the median of the others."""
        from optuna.exceptions import UpdateFinishedTrialError

        with self._database.errors():
            with suppress(UpdateFinishedTrialError):
                self._storage.set_trial_intermediate_value(claim.trial_id, epoch, value)
            return bool(self._study.pruner.prune(self._study, self._storage.get_trial(claim.trial_id)))

    def records(self) -> dict[str, Record]:
        """Return how each cell stands, in the order they were given; one never wanted is left out."""
        from optuna.trial import TrialState

        ended: dict[TrialState, State] = {TrialState.COMPLETE: "done", TrialState.PRUNED: "pruned"}
        with self._database.errors():
            trials = self._trials()
        records = {}
        for key in self._cells:
            own = trials.get(key, [])
            if not own and key not in self._wanted:
                continue
            final = [trial for state in ended for trial in own if trial.state == state]
            state: State = "waiting"
            if final:
                state = ended[final[0].state]
            elif own and own[-1].state == TrialState.RUNNING:
                state = "running"
            elif own and "error" in _outcome(own[-1]):
                state = "failed"
            counting = (final or own[-1:])[:1]
            records[key] = Record(state=state, attrs=_outcome(counting[0]) if counting else {})
        return records


def _times_lost(own: list[FrozenTrial]) -> int:
    """Return how often a cell's worker fell silent."""
    return sum(trial.state.is_finished() and not _outcome(trial) for trial in own)


def _outcome(trial: FrozenTrial) -> dict[str, Any]:
    """Return what the worker of a trial said when it ended it; empty where it was lost."""
    return dict(trial.user_attrs.get(OUTCOME, {}))


def _shown(value: Any) -> str:
    words = {"None": "not given", "True": "on", "False": "off"}
    return words.get(repr(value), repr(value))
