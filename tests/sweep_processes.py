"""Workers of a sweep in processes of their own, which start in milliseconds and can be killed."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sqlite3
import time
from pathlib import Path
from typing import Any

from fastresnet.run import RunConfig

# Processes are forked from one that has imported all of this and computed nothing.
_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(
    ["sweep_processes", "fastresnet.sweep", "optuna.storages", "sqlalchemy.dialects.sqlite"]
)
SETTINGS: dict[str, Any] = {
    "dataset": "d1",
    "recipe": "r1",
    "epochs": None,
    "seed": 0,
    "val": None,
    "limit_train": None,
    "prune": False,
    "heartbeat_s": 1,
}


def start(target: Any, *args: Any) -> Any:
    """Start a process that calls ``target``, which lies in this file."""
    process = _CONTEXT.Process(target=target, args=args)
    process.start()
    return process


def config(data: Path) -> RunConfig:
    """Return a machine that gives the same bits in every process."""
    return RunConfig(
        data=str(data), device="cpu", threads=1, compile="off", loader="numba", save_every_s=0.05
    )


def options(data: Path, sweeps_dir: Path, **changed: Any) -> Any:
    """Return the options of a sweep in ``sweeps_dir``."""
    from fastresnet.sweep import SweepOptions

    return SweepOptions(sweeps_dir=sweeps_dir, config=config(data), heartbeat_s=1, **changed)


def work(sweep_file: Path, data: Path, sweeps_dir: Path) -> None:
    """Work on a sweep until it is done, saying nothing."""
    from fastresnet.engine.fit import Interrupted
    from fastresnet.sweep import SweepRun
    from fastresnet.sweep_spec import load_sweep

    signal.signal(
        signal.SIGHUP, signal.SIG_DFL
    )  # the server that forked it may have been started under `nohup`
    try:
        SweepRun(load_sweep(str(sweep_file)), options(data, sweeps_dir)).run()
    except Interrupted as stop:
        os._exit(128 + stop.signum)


def open_store(file: Path, keys: list[str], **changed: Any) -> Any:
    """Open a study in the SQLite file, with cells that need no training."""
    from fastresnet.sweep_database import Database
    from fastresnet.sweep_store import SweepStore

    cells = {key: {"settings": {"C": number}} for number, key in enumerate(keys)}
    return SweepStore(Database(f"sqlite:///{file}"), "study", SETTINGS | changed, cells, keys)


def drain(file: Path, keys: list[str], cell_s: float = 0.0) -> int:
    """Enqueue, take and complete until every cell has ended; return how many were completed here."""
    store = open_store(file, keys)
    store.enqueue()
    completed = 0
    while True:
        claim = store.take(set(), f"worker {os.getpid()}")
        if claim is not None:
            time.sleep(cell_s)
            completed += store.complete(claim, 0.5, {"accuracy": 0.5, "value": 0.5, "seconds": 1.0})
        elif all(record.state == "done" for record in store.records().values()):
            return completed
        else:
            time.sleep(0.02)


def silence(file: Path) -> None:
    """Make every worker's last sign of life an old one, as if their hosts had been gone for long.

    Before the first worker has made the database's tables there is none.
    """
    with sqlite3.connect(file, timeout=60) as database:
        if database.execute("SELECT 1 FROM sqlite_master WHERE name = 'trial_heartbeats'").fetchone():
            database.execute("UPDATE trial_heartbeats SET heartbeat = '2020-01-01 00:00:00'")
    database.close()


def trials(file: Path) -> list[tuple[str, str]]:
    """Return the cell and the state of each trial, in order, as the database itself has them."""
    with sqlite3.connect(file, timeout=60) as database:
        found = database.execute(
            "SELECT json_extract(value_json, '$'), state FROM trials JOIN trial_user_attributes USING (trial_id) "
            "WHERE key = 'cell' ORDER BY trial_id"
        ).fetchall()
    database.close()
    return found


def completed(file: Path) -> list[str]:
    """Return the cells of the trials that are complete, sorted: each once, if all is well."""
    return sorted(cell for cell, state in trials(file) if state == "COMPLETE")
