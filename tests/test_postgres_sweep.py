"""A sweep over a real PostgreSQL server: four workers, as on four hosts, of which one is killed."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from made_data import write_npz
from optional_parts import need
from postgres_server import postgres_server
from train_processes import FAR

from fastresnet.atomic import read_sealed_json
from fastresnet.sweep_database import Database

CELLS = (2, 3, 4, 5, 6, 7)


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    need("postgresql")
    with postgres_server() as found:
        yield found


def trials(url: str) -> list[tuple[str, str, str]]:
    """Return the cell, the worker and the state of each trial."""
    import sqlalchemy

    engine = sqlalchemy.create_engine(Database(url).url)
    query = (
        "SELECT cell.value_json, worker.value_json, trials.state::text FROM trials "
        "JOIN trial_user_attributes cell ON cell.trial_id = trials.trial_id AND cell.key = 'cell' "
        "LEFT JOIN trial_user_attributes worker ON worker.trial_id = trials.trial_id AND worker.key = 'worker'"
    )
    with engine.connect() as connection:
        found = [
            tuple(str(part).strip('"') for part in row) for row in connection.execute(sqlalchemy.text(query))
        ]
    engine.dispose()
    return [(cell, worker, state) for cell, worker, state in found]


def running_worker(url: str, pids: set[int]) -> int:
    """Return the process of a worker that is in the middle of a cell."""
    from sqlalchemy.exc import SQLAlchemyError

    end = time.monotonic() + FAR
    while time.monotonic() < end:
        with contextlib.suppress(SQLAlchemyError):  # there are no tables yet
            for _, worker, state in trials(url):
                if state == "RUNNING" and ":" in worker:  # which it says as soon as it has taken the cell
                    pid = int(worker.rsplit(":", 1)[1])
                    assert pid in pids
                    return pid
        time.sleep(0.05)
    pytest.fail("no worker was seen in the middle of a cell")


def test_four_workers_over_postgresql_one_killed(url: str, tmp_path: Path) -> None:
    """The three that are left end each cell once, the killed one's too; a fifth finds nothing to do."""
    from sweep_cases import fastresnet, sweep_file

    file = sweep_file(tmp_path, f"[grid]\nC = {list(CELLS)}\n", epochs=8)
    machine = [
        "--device",
        "cpu",
        "--threads",
        "1",
        "--compile",
        "off",
        "--loader",
        "numba",
        "--heartbeat",
        "1",
    ]
    data = write_npz(tmp_path / "arrays.npz")
    words = ("sweep", file, "--data", data, "--storage", url, "--sweeps-dir", tmp_path / "sweeps", *machine)
    workers = [fastresnet(*words, cwd=tmp_path) for _ in range(4)]
    try:
        killed = running_worker(url, {worker.pid for worker in workers})
        os.kill(killed, signal.SIGKILL)
        for worker in workers:
            shown, _ = worker.communicate(timeout=300)
            assert worker.returncode == (-signal.SIGKILL if worker.pid == killed else 0), shown
    finally:
        for worker in workers:
            worker.kill()
    states = Counter((cell, state) for cell, _, state in trials(url))
    assert sorted(number for (_, state), number in states.items() if state == "COMPLETE") == [1] * len(CELLS)
    assert [number for (_, state), number in states.items() if state == "FAIL"] == [1]
    assert {state for _, state in states} == {"COMPLETE", "FAIL"}
    folder = tmp_path / "sweeps" / "tiny"
    rows = read_sealed_json(folder / "table.json")["rows"]
    assert [row["state"] for row in rows] == ["done"] * len(CELLS)
    for row in rows:
        assert row["accuracy"] == read_sealed_json(folder / row["run"] / "result.json")["test_accuracy"]
