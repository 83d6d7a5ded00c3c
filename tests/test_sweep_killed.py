"""Sweeps whose workers are killed, stopped or elsewhere: each cell's own run goes on, to the same end."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from made_data import write_npz
from sweep_processes import completed, silence, start, trials, work

from fastresnet.atomic import read_sealed_json, write_sealed_json
from fastresnet.errors import UserError

pytest.importorskip("optuna")

from sweep_cases import Notes, fastresnet, history, rows_of, run, sweep_file

from fastresnet.folder import RunFolder


@pytest.fixture(scope="module", autouse=True)
def one_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(autouse=True)
def cache(one_cache: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Keep one cache for all of these tests, so that the data is packed once."""
    monkeypatch.setenv("FASTRESNET_CACHE", str(one_cache))
    return one_cache


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_npz(tmp_path_factory.mktemp("data") / "arrays.npz")


def wait_for_progress(runs: Path, is_alive: Any) -> None:
    """Return when a run folder has some epochs done and others to do; fail when whoever trains it ends before."""
    while True:
        alive = is_alive()
        for folder in runs.glob("[!.]*"):
            with contextlib.suppress(OSError):
                if (folder / "events.jsonl").stat().st_size and not (folder / "result.json").exists():
                    return
        assert alive, "it ended, and no run was seen on its way"
        time.sleep(0.01)


@pytest.fixture
def killed(tmp_path: Path, data: Path) -> Iterator[tuple[Path, Path]]:
    """A sweep of which two workers were killed twice, each time with a run on its way; and one never disturbed."""
    file = sweep_file(tmp_path, epochs=15)
    straight, broken = tmp_path / "straight", tmp_path / "broken"
    undisturbed = start(work, file, data, straight)
    for _ in range(2):
        workers = [start(work, file, data, broken) for _ in range(2)]
        wait_for_progress(broken / "tiny" / "runs", workers[0].is_alive)
        for worker in workers:
            os.kill(worker.pid, signal.SIGKILL)
            worker.join()
        silence(broken / "tiny" / "study.db")
    undisturbed.join(120)
    assert undisturbed.exitcode == 0
    yield straight / "tiny", broken / "tiny"


def test_killed_workers_cells_are_resumed_to_the_same_end(tmp_path: Path, data: Path, killed: Any) -> None:
    straight, broken = killed
    workers = [start(work, tmp_path / "tiny.toml", data, tmp_path / "broken") for _ in range(2)]
    for worker in workers:
        worker.join(120)
        assert worker.exitcode == 0
    one, two = (read_sealed_json(folder / "table.json") for folder in (straight, broken))
    assert rows_of(one, "cell", "accuracy", "run") == rows_of(two, "cell", "accuracy", "run")
    assert len(set(completed(broken / "study.db"))) == len(completed(broken / "study.db")) == 3
    assert "FAIL" in {state for _, state in trials(broken / "study.db")}
    segments = set()
    for row in two["rows"]:
        assert history(broken / row["run"]) == history(straight / row["run"])
        last = (broken / row["run"] / "events.jsonl").read_text().splitlines()[-1]
        segments.add(json.loads(last)["clock"]["segment"])
    assert max(segments) > 0, "no run was resumed"


@pytest.mark.usefixtures("hears_hangups")
def test_a_signal_saves_and_puts_the_cell_back(tmp_path: Path, data: Path) -> None:
    file = sweep_file(tmp_path, "[grid]\nC = [2]\n", epochs=60)
    worker = start(work, file, data, tmp_path)
    wait_for_progress(tmp_path / "tiny" / "runs", worker.is_alive)
    os.kill(worker.pid, signal.SIGHUP)
    worker.join(60)
    assert worker.exitcode == 128 + signal.SIGHUP
    assert [state for _, state in trials(tmp_path / "tiny" / "study.db")] == ["FAIL", "WAITING"]
    notes = Notes()
    run(file, data, tmp_path, notes)  # at once: it need not fall silent first
    assert notes.started == [("C=2", True)] and notes.ended[0][1].state == "done"


class Stop(BaseException):
    """Ends a training."""


class Stopping(Notes):
    """Ends a training after an epoch, as a signal does outside the loop."""

    def on_epoch(self, row: dict[str, Any]) -> None:
        raise Stop


@pytest.fixture
def begun(tmp_path: Path, data: Path) -> tuple[Path, Path]:
    """A sweep of one cell, which was put back after an epoch: its file, and the cell's run."""
    file = sweep_file(tmp_path, "[grid]\nC = [2]\n", epochs=3)
    with pytest.raises(Stop):
        run(file, data, tmp_path, Stopping())
    assert [state for _, state in trials(tmp_path / "tiny" / "study.db")] == ["FAIL", "WAITING"]
    (folder,) = (tmp_path / "tiny" / "runs").glob("[!.]*")
    return file, folder


def test_a_run_of_another_machine_is_left_to_it(begun: tuple[Path, Path], data: Path, tmp_path: Path) -> None:
    file, folder = begun
    content = read_sealed_json(folder / "config.json")
    content["environment"]["cpu"] = "another processor"
    write_sealed_json(folder / "config.json", content)
    with pytest.raises(UserError, match=r"cells left that were begun elsewhere: 1; .*another processor"):
        run(file, data, tmp_path)
    assert trials(tmp_path / "tiny" / "study.db")[-1][1] == "WAITING"
    table = run(file, data, tmp_path, allow_different_machine=True)
    assert rows_of(table, "state") == [("done",)]


def test_a_run_that_another_process_has_is_left_until_it_is_free(
    begun: tuple[Path, Path], data: Path, tmp_path: Path
) -> None:
    file, folder = begun
    holder = RunFolder(folder)
    holder.lock()

    class Freeing(Notes):
        def on_wait(self, status: Any) -> None:
            holder.close()

    notes = Freeing()
    table = run(file, data, tmp_path, notes)
    assert [resumed for _, resumed in notes.started] == [True, True]
    assert "is in use by another process" in notes.notices[0]
    assert rows_of(table, "state") == [("done",)]


def test_the_command_with_several_workers_is_killed_and_goes_on(tmp_path: Path, data: Path) -> None:
    sweep_file(tmp_path, epochs=60)
    words = ("sweep", "tiny.toml", "--data", data, "--workers", "2", "--compile", "off", "--device", "cpu")
    process = fastresnet(*words, cwd=tmp_path)
    folder = tmp_path / "sweeps" / "tiny"
    wait_for_progress(folder / "runs", lambda: process.poll() is None)
    process.kill()
    process.communicate()  # until its workers, which hold the pipe, have ended too

    # They noticed, saved and put their cells back; of none it has to be waited for until it counts as dead.
    assert "RUNNING" not in {state for _, state in trials(folder / "study.db")}
    process = fastresnet(*words, cwd=tmp_path)
    shown, _ = process.communicate()
    assert process.returncode == 0, shown
    assert "resuming C=" in shown and "best C=" in shown
    table = read_sealed_json(folder / "table.json")
    assert rows_of(table, "state") == [("done",)] * 3
    assert len(set(completed(folder / "study.db"))) == len(completed(folder / "study.db")) == 3
    for row in table["rows"]:
        assert f"{row['accuracy']:.4f}" in shown
