"""A sweep's study: each cell ends with one complete trial, wherever its workers die."""

from __future__ import annotations

import os
import random
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from sweep_processes import completed, drain, open_store, silence, start, trials

from fastresnet.errors import UserError
from fastresnet.sweep_database import Database

pytest.importorskip("optuna")
KEYS = ["a", "b", "c"]
DONE = {"accuracy": 0.5, "value": 0.5, "seconds": 1.0}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "study.db"


def test_each_cell_is_enqueued_once_however_often_it_is_asked_for(file: Path) -> None:
    for _ in range(2):
        store = open_store(file, KEYS)
        store.enqueue()
        store.enqueue()
    assert trials(file) == [(key, "WAITING") for key in KEYS]
    open_store(file, [*KEYS, "d"]).enqueue()
    assert trials(file)[-1] == ("d", "WAITING") and len(trials(file)) == 4


def test_a_cell_that_is_not_wanted_is_looked_at_and_left_alone(file: Path) -> None:
    drain(file, ["a"])
    from sweep_processes import SETTINGS

    from fastresnet.sweep_store import SweepStore

    cells = {key: {"settings": {}} for key in KEYS}
    store = SweepStore(Database(f"sqlite:///{file}"), "study", SETTINGS, cells, ["c"])
    store.enqueue()
    assert {key: record.state for key, record in store.records().items()} == {"a": "done", "c": "waiting"}
    claim = store.take(set(), "me")
    assert claim is not None and claim.key == "c" and store.take(set(), "me") is None


def test_one_process_takes_a_cell(file: Path) -> None:
    one, two = open_store(file, KEYS), open_store(file, KEYS)
    one.enqueue()
    claims = [store.take(set(), "x") for store in (one, two, one, two)]
    assert [claim and claim.key for claim in claims] == ["a", "b", "c", None]
    assert {record.state for record in two.records().values()} == {"running"}


def test_a_cell_left_out_is_not_taken(file: Path) -> None:
    store = open_store(file, KEYS)
    store.enqueue()
    claim = store.take({"a"}, "x")
    assert claim is not None and claim.key == "b"


def test_a_released_cell_goes_on_first_and_a_lost_one_last(file: Path) -> None:
    store = open_store(file, KEYS)
    store.enqueue()
    assert store.release(store.take(set(), "x"), "interrupted")
    claim = store.take(set(), "x")
    assert claim.key == "a"
    silence(file)
    assert [store.take(set(), "y").key for _ in KEYS] == ["b", "c", "a"]


def test_a_failed_cell_is_tried_again_only_when_asked(file: Path) -> None:
    store = open_store(file, ["a"])
    store.enqueue()
    store.fail(store.take(set(), "x"), "the loss is not finite", {"run": "runs/a"})
    store.enqueue()
    assert store.take(set(), "x") is None
    record = store.records()["a"]
    assert (record.state, record.attrs["error"]) == ("failed", "the loss is not finite")
    store.enqueue(retry_failed=True)
    assert store.records()["a"].state == "waiting"
    store.take(set(), "x")
    silence(file)  # a second try that is lost is not a failure
    again = store.take(set(), "x")
    assert store.complete(again, 0.5, DONE) and store.records()["a"].state == "done"
    store.enqueue(retry_failed=True)
    assert [state for _, state in trials(file)] == ["FAIL", "FAIL", "COMPLETE"]


def test_a_worker_thought_dead_drops_its_result(file: Path) -> None:
    store, other = open_store(file, ["a"]), open_store(file, ["a"])
    store.enqueue()
    slow = store.take(set(), "slow")
    silence(file)
    next_one = other.take(set(), "next")
    assert next_one is not None and next_one.trial_id != slow.trial_id
    assert not store.complete(slow, 0.1, {**DONE, "value": 0.1})
    assert other.complete(next_one, 0.5, DONE)
    assert not store.complete(slow, 0.1, DONE) and not store.fail(slow, "no", {})
    assert completed(file) == ["a"] and store.records()["a"].attrs["value"] == 0.5


def test_a_beating_worker_is_not_taken_for_dead(file: Path) -> None:
    store = open_store(file, ["a"])
    store.enqueue()
    claim = store.take(set(), "x")
    silence(file)
    with store.beating(claim):
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline:
            with sqlite3.connect(file) as database:
                ((beat,),) = database.execute("SELECT heartbeat FROM trial_heartbeats").fetchall()
            database.close()
            if not beat.startswith("2020"):
                break
            time.sleep(0.05)
        assert store.take(set(), "y") is None
    assert store.complete(claim, 0.5, DONE)


class Dead(BaseException):
    """This process has been killed: nothing that it still tries reaches the database."""


@pytest.fixture
def fuse(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, float]]:
    """A count of writes to the database that this process has left to live."""
    from optuna.storages import RDBStorage

    left = {"writes": float("inf")}

    def dying(write: Any) -> Any:
        def instead(*args: Any, **kwargs: Any) -> Any:
            if left["writes"] <= 0:
                raise Dead
            left["writes"] -= 1
            return write(*args, **kwargs)

        return instead

    writes = ("create_new_study", "set_study_user_attr", "_create_new_trial", "set_trial_state_values")
    for name in (*writes, "set_trial_user_attr", "record_heartbeat"):
        monkeypatch.setattr(RDBStorage, name, dying(getattr(RDBStorage, name)))
    yield left


def test_death_before_any_write_to_the_database_loses_no_cell(tmp_path: Path, fuse: dict[str, float]) -> None:
    """A worker dies before its n-th write, the next one, which finds what it left, after some more."""
    keys = ["a", "b"]
    for count in range(10):  # the first cell is complete by then, and the second is like it
        file = tmp_path / f"{count}.db"
        for writes in (count, count // 2 + 1):
            fuse["writes"] = writes
            with pytest.raises(Dead):
                drain(file, keys)
            silence(file)
        fuse["writes"] = float("inf")
        drain(file, keys)
        assert completed(file) == keys, f"the first worker died before write {count}"
        assert {state for _, state in trials(file)} <= {"COMPLETE", "FAIL"}


def test_processes_that_start_at_once_share_the_cells(file: Path) -> None:
    keys = [f"cell{number:02d}" for number in range(12)]
    processes = [start(drain, file, keys, 0.01) for _ in range(4)]
    for process in processes:
        process.join(60)
        assert process.exitcode == 0
    assert sorted(trials(file)) == [(key, "COMPLETE") for key in keys]


def test_killed_processes_and_ones_taken_for_dead_lose_and_double_no_cell(file: Path) -> None:
    keys = [f"cell{number:02d}" for number in range(24)]
    dice = random.Random(1)
    running = [start(drain, file, keys, 0.03) for _ in range(3)]
    for _ in range(8):
        time.sleep(dice.uniform(0.05, 0.3))
        victim = running.pop(dice.randrange(3))
        os.kill(victim.pid, signal.SIGKILL)
        victim.join(60)
        if file.exists() and file.stat().st_size and completed_or_none(file):
            silence(file)  # which takes the living for dead too
        running.append(start(drain, file, keys, 0.03))
    for process in running:
        while process.is_alive():
            process.join(0.5)
            silence(file)
        assert process.exitcode == 0
    assert completed(file) == keys
    assert {state for _, state in trials(file)} <= {"COMPLETE", "FAIL"}


def completed_or_none(file: Path) -> list[str] | None:
    """Return the complete cells, or None where the tables are not made yet."""
    try:
        return completed(file)
    except sqlite3.OperationalError:
        return None


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"epochs": 5}, "--epochs is 5, and the sweep 'study' was begun without --epochs; give the same"),
        ({"seed": 7}, "--seed is 7, and the sweep 'study' was begun with 0"),
        ({"prune": True}, "--prune is on, and the sweep 'study' was begun with off"),
        ({"dataset": "d2"}, "the hash of the data set (--data) is 'd2'"),
        ({"recipe": "r2"}, "the hash of the base recipe is 'r2'"),
    ],
)
def test_other_options_on_a_study_are_refused(file: Path, changed: dict[str, Any], message: str) -> None:
    store = open_store(file, KEYS)
    store.enqueue()
    claim = store.take(set(), "x")
    for end in (lambda: True, lambda: store.complete(claim, 0.5, DONE)):  # being trained, then done
        assert end()
        with pytest.raises(UserError) as caught:
            open_store(file, KEYS, **changed)
        assert message in str(caught.value) and "--name" in str(caught.value)


@pytest.mark.parametrize("changed", [{"epochs": 5}, {"val": 10}, {"prune": True}])
def test_a_study_of_which_nothing_came_takes_other_options(file: Path, changed: dict[str, Any]) -> None:
    first = open_store(file, KEYS)
    first.enqueue()
    claim = first.take(set(), "x")
    assert not first.begun_anew and first.fail(claim, "cannot hold out 9 of 3", {})
    first.take(set(), "x")
    silence(file)  # its worker was lost
    second = open_store(file, KEYS, **changed)
    second.enqueue()
    assert second.begun_anew and not open_store(file, KEYS, **changed).begun_anew
    with pytest.raises(UserError, match="was begun"):
        first.take(set(), "x")
    assert second.take({claim.key}, "x") is not None


def test_hopeless_cells_are_told_by_the_median_of_the_others(file: Path) -> None:
    keys = [f"cell{number}" for number in range(6)]
    store = open_store(file, keys, prune=True)
    store.enqueue()
    for key, accuracy in zip(keys[:4], (0.5, 0.6, 0.7, 0.8), strict=True):
        claim = store.take(set(), "x")
        assert claim.key == key
        assert not any(store.report(claim, epoch, accuracy) for epoch in (1, 2, 3))
        assert store.complete(claim, accuracy, DONE)
    bad, good = store.take(set(), "x"), store.take(set(), "x")
    assert [store.report(bad, epoch, 0.1) for epoch in (1, 2, 3)] == [False, True, True]
    assert not any(store.report(good, epoch, 0.75) for epoch in (1, 2, 3))
    assert store.prune(bad, 0.1, {"accuracy": 0.1})
    assert store.records()[bad.key].state == "pruned"
    store.enqueue(retry_failed=True)
    assert store.take(set(), "x") is None
    silence(file)
    resumed = store.take(set(), "x")
    assert resumed.key == good.key
    assert store._storage.get_trial(resumed.trial_id).intermediate_values == {1: 0.75, 2: 0.75, 3: 0.75}


def test_a_damaged_database_is_one_line(file: Path) -> None:
    open_store(file, KEYS).enqueue()
    file.write_bytes(b"torn" * 5000)
    with pytest.raises(UserError, match=r"database .* cannot be used: file is not a database") as caught:
        open_store(file, KEYS)
    assert "\n" not in str(caught.value)


def test_a_database_that_goes_away_is_one_line(file: Path) -> None:
    store = open_store(file, KEYS)
    with sqlite3.connect(file) as database:
        database.execute("DROP TABLE trials")
    database.close()
    with pytest.raises(UserError, match=r"cannot be used: no such table: trials; the same command goes on"):
        store.enqueue()


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("study.db", "is no database URL"),
        ("sqlite://", "names no file"),
        ("sqlite:///:memory:", "names no file"),
        ("mssql+pyodbc://me:secret@host/x", "a mssql database is not supported"),
        ("mysql+nothing://me:secret@host/x", "its driver cannot be loaded"),
    ],
)
def test_a_wrong_url_is_explained(url: str, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        Database(url)
    assert "secret" not in str(caught.value) or url == "study.db"


def test_a_postgresql_url_takes_the_driver_of_the_extra() -> None:
    pytest.importorskip("psycopg")
    database = Database("postgresql://me:secret@db.example/sweeps")
    assert database.url == "postgresql+psycopg://me:secret@db.example/sweeps"
    assert "secret" not in database.shown and database.kind == "postgresql"


def test_an_unreachable_server_is_one_line_without_its_password() -> None:
    pytest.importorskip("psycopg")
    database = Database("postgresql://me:secret@127.0.0.1:1/sweeps")
    with pytest.raises(UserError, match="cannot be used: ") as caught, database.errors(), database.lock("x"):
        pass
    assert "secret" not in str(caught.value) and "\n" not in str(caught.value)


def test_the_lock_excludes_other_processes_and_is_left_by_the_dead(file: Path) -> None:
    database = Database(f"sqlite:///{file}")
    program = (
        "import sys\nfrom fastresnet.sweep_database import Database\n"
        f"with Database('sqlite:///{file}').lock('x'):\n    print('in', flush=True)\n    sys.stdin.read()\n"
    )
    holder = subprocess.Popen(
        [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert holder.stdout is not None and holder.stdout.readline() == "in\n"
    import fcntl

    with open(f"{file}.lock") as handle, pytest.raises(BlockingIOError):
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    holder.kill()
    holder.wait()
    with database.lock("x"):
        pass
