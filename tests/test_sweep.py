"""Sweeps that train: tables, steps, failures, and cells whose workers are killed, on tiny networks."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from made_data import write_npz
from sweep_processes import completed, config, options, silence, start, trials, work

from fastresnet.atomic import read_sealed_json, write_sealed_json
from fastresnet.errors import UserError

pytest.importorskip("optuna")

from fastresnet.cli import sweep as command
from fastresnet.folder import RunFolder
from fastresnet.sweep import SweepRun
from fastresnet.sweep_cells import Cell
from fastresnet.sweep_filter import CellFilter
from fastresnet.sweep_progress import SweepListener, status_of
from fastresnet.sweep_spec import load_sweep
from fastresnet.sweep_store import Record
from fastresnet.sweep_table import markdown

FILE = """\
name = "tiny"
title = "Tiny"
recipe = "r1-single"

[set]
batch_size = 10
N = 2
B = 1
epochs = {epochs}

"""
GRID = "[grid]\nC = [2, 3, 4]\n"


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


class Notes(SweepListener):
    """Keeps what it was told."""

    def __init__(self) -> None:
        self.started: list[tuple[str, bool]] = []
        self.ended: list[tuple[str, Record]] = []
        self.notices: list[str] = []

    def on_cell_start(self, cell: Cell, status: Any, resumed: bool) -> None:
        self.started.append((cell.label, resumed))

    def on_cell_end(self, cell: Cell, record: Record, status: Any) -> None:
        self.ended.append((cell.label, record))

    def on_notice(self, text: str) -> None:
        self.notices.append(text)


def sweep_file(folder: Path, cells: str = GRID, epochs: int = 1) -> Path:
    path = folder / "tiny.toml"
    path.write_text(FILE.format(epochs=epochs) + cells)
    return path


def run(
    file: Path, data: Path, sweeps_dir: Path, notes: Notes | None = None, **changed: Any
) -> dict[str, Any]:
    return SweepRun(load_sweep(str(file)), options(data, sweeps_dir, **changed), notes).run()


def rows_of(table: dict[str, Any], *columns: str) -> list[tuple[Any, ...]]:
    return [tuple(row[column] for column in columns) for row in table["rows"]]


def history(run: Path) -> list[dict[str, Any]]:
    """Return a run's event rows, less their clocks."""
    rows = [json.loads(line) for line in (run / "events.jsonl").read_text().splitlines()]
    return [{key: value for key, value in row.items() if key != "clock"} for row in rows]


def test_a_sweep_trains_each_cell_once_and_makes_a_table(tmp_path: Path, data: Path) -> None:
    cells = 'printed_table = "r1-c"\nbudget = 1000\n[grid]\nC = [2, 3, 4]\n'
    file = tmp_path / "tiny.toml"
    file.write_text(cells.split("[grid]")[0] + FILE.format(epochs=1) + "[grid]" + cells.split("[grid]")[1])
    notes = Notes()
    table = run(file, data, tmp_path / "sweeps", notes)
    folder = tmp_path / "sweeps" / "tiny"
    assert table["columns"] == ["C"] and (table["name"], table["title"]) == ("tiny", "Tiny")
    assert rows_of(table, "arch", "state") == [
        ("n2-b1-c2", "done"),
        ("n2-b1-c3", "done"),
        ("n2-b1-c4", "over budget"),
    ]
    assert [label for label, _ in notes.ended] == ["C=2", "C=3"]
    for row in table["rows"][:2]:
        result = read_sealed_json(folder / row["run"] / "result.json")
        assert row["accuracy"] == result["test_accuracy"] and row["params"] == result["num_params"]
        assert result["config"]["data"] == str(data) and len(result["epochs"]) == row["epochs"] == 1
    assert read_sealed_json(folder / "table.json") == table
    text = (folder / "table.md").read_text()
    assert text == markdown(table) and "over budget" in text and "| C | parameters |" in text
    again = Notes()
    assert run(file, data, tmp_path / "sweeps", again) == table
    assert again.started == []
    assert [state for _, state in trials(folder / "study.db")] == ["COMPLETE"] * 2


def test_cells_left_out_can_be_trained_later(tmp_path: Path, data: Path) -> None:
    file = sweep_file(tmp_path)
    filters = (CellFilter.parse("C=3"),)
    table = run(file, data, tmp_path, filters=filters)
    assert rows_of(table, "state") == [("not asked for",), ("done",), ("not asked for",)]
    table = run(file, data, tmp_path, filters=(CellFilter.parse("C=2,3"),))
    assert rows_of(table, "state") == [("done",), ("done",), ("not asked for",)]
    assert len(completed(tmp_path / "tiny" / "study.db")) == 2


def test_nothing_is_made_when_every_cell_breaks_the_budget(tmp_path: Path, data: Path) -> None:
    file = tmp_path / "tiny.toml"
    file.write_text("budget = 100\n" + FILE.format(epochs=1) + GRID)
    with pytest.raises(UserError, match=r"tiny\.toml:1: budget is 100 parameters, and every cell breaks it"):
        run(file, data, tmp_path / "sweeps")
    assert not (tmp_path / "sweeps").exists()


def test_other_science_on_a_begun_sweep_is_refused(tmp_path: Path, data: Path) -> None:
    file = sweep_file(tmp_path, "[grid]\nC = [2]\n")
    run(file, data, tmp_path)
    with pytest.raises(
        UserError, match="--seed is 3, and the sweep 'tiny' was begun with 0; give the same, or"
    ):
        SweepRun(
            load_sweep(str(file)),
            replace(options(data, tmp_path), config=config(data).model_copy(update={"seed": 3})),
        ).run()
    other = write_npz(tmp_path / "other.npz", class_names=np.array(["x", "y", "z"]))
    with pytest.raises(UserError, match="the hash of the data set"):
        run(file, other, tmp_path)
    table = run(file, other, tmp_path, name="another")
    assert table["name"] == "another" and (tmp_path / "another" / "table.json").exists()


def test_a_failed_cell_is_recorded_and_the_rest_goes_on(tmp_path: Path, data: Path) -> None:
    cells = '[grid]\nC = [2]\n"optimizer.lr" = [1e30, 0.001]\n'
    notes = Notes()
    table = run(sweep_file(tmp_path, cells), data, tmp_path, notes)
    assert rows_of(table, "state") == [("failed",), ("done",)]
    assert "not finite" in table["rows"][0]["error"] and table["rows"][0]["accuracy"] is None
    assert "failed; the " in markdown(table) or "failed;" in markdown(table)
    again = Notes()
    run(sweep_file(tmp_path, cells), data, tmp_path, again)
    assert again.started == []
    run(sweep_file(tmp_path, cells), data, tmp_path, again, retry_failed=True)
    assert [label for label, _ in again.started] == ["C=2 optimizer.lr=1e+30"]
    assert [state for _, state in trials(tmp_path / "tiny" / "study.db")] == ["FAIL", "COMPLETE", "FAIL"]


def test_a_sequence_goes_on_from_the_best_of_each_step(tmp_path: Path, data: Path) -> None:
    cells = """
[[sequence]]
name = "lr"
grid = { "optimizer.lr" = [1e-9, 0.01, 1e30] }
[[sequence]]
name = "width"
grid = { C = [2, 3] }
"""
    file = sweep_file(tmp_path, cells, epochs=6)
    table = run(file, data, tmp_path)
    assert table["columns"] == ["step", "optimizer.lr", "C"]
    by_lr = {row["cell"]["optimizer.lr"]: row["accuracy"] for row in table["rows"][:3]}
    assert by_lr[1e30] is None and by_lr[0.01] > by_lr[1e-9]
    assert [row["cell"] for row in table["rows"][3:]] == [
        {"step": "width", "optimizer.lr": 0.01, "C": 2},
        {"step": "width", "optimizer.lr": 0.01, "C": 3},
    ]
    result = read_sealed_json(tmp_path / "tiny" / table["rows"][4]["run"] / "result.json")
    assert result["recipe"]["optimizer"]["lr"] == 0.01 and result["recipe"]["arch"] == "n2-b1-c3"
    assert run(file, data, tmp_path) == table


def test_a_step_of_which_nothing_came_ends_the_sequence(tmp_path: Path, data: Path) -> None:
    cells = """
[[sequence]]
name = "lr"
grid = { "optimizer.lr" = [1e30] }
[[sequence]]
name = "width"
grid = { C = [2, 3] }
"""
    with pytest.raises(UserError, match="no cell of step 'lr' came out"):
        run(sweep_file(tmp_path, cells), data, tmp_path)
    assert rows_of(read_sealed_json(tmp_path / "tiny" / "table.json"), "state") == [("failed",)]


def test_hopeless_cells_are_stopped_early(tmp_path: Path, data: Path) -> None:
    cells = '[grid]\nC = [4]\n"optimizer.lr" = [0.003, 0.01, 0.03, 0.06, 1e-9]\n'
    file = sweep_file(tmp_path, cells, epochs=5)
    table = run(file, data, tmp_path, prune=True)
    assert rows_of(table, "state") == [("done",)] * 4 + [("pruned",)]
    assert not (tmp_path / "tiny" / table["rows"][4]["run"] / "result.json").exists()
    again = Notes()
    assert run(file, data, tmp_path, again, prune=True) == table and again.started == []


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


def test_a_signal_saves_and_puts_the_cell_back(tmp_path: Path, data: Path) -> None:
    file = sweep_file(tmp_path, "[grid]\nC = [2]\n", epochs=60)
    worker = start(work, file, data, tmp_path)
    wait_for_progress(tmp_path / "tiny" / "runs", worker.is_alive)
    os.kill(worker.pid, signal.SIGTERM)
    worker.join(60)
    assert worker.exitcode == 128 + signal.SIGTERM
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


def test_a_bug_fails_its_cell_and_ends_the_worker(tmp_path: Path, data: Path) -> None:
    class Broken(Notes):
        def on_epoch(self, row: dict[str, Any]) -> None:
            raise ZeroDivisionError("a bug")

    file = sweep_file(tmp_path, "[grid]\nC = [2, 3]\n")
    with pytest.raises(ZeroDivisionError):
        run(file, data, tmp_path, Broken())
    table = run(file, data, tmp_path)
    assert rows_of(table, "state", "error") == [("failed", "ZeroDivisionError: a bug"), ("done", None)]


def test_a_lost_database_is_made_again_from_the_runs(tmp_path: Path, data: Path) -> None:
    file = sweep_file(tmp_path)
    table = run(file, data, tmp_path)
    (tmp_path / "tiny" / "study.db").unlink()
    notes = Notes()
    assert rows_of(run(file, data, tmp_path, notes), "accuracy") == rows_of(table, "accuracy")
    assert [resumed for _, resumed in notes.started] == [True] * 3
    assert all("is complete" in text for text in notes.notices)


def test_status_tells_what_is_done_and_left() -> None:
    cells = {str(cell.settings["C"]): cell for _, some in load_sweep("r1-c").all_cells() for cell in some[:6]}

    def done(accuracy: float, seconds: float) -> Record:
        return Record(state="done", attrs={"accuracy": accuracy, "value": accuracy, "seconds": seconds})

    waiting = Record(state="waiting")
    records = {"2": done(0.4, 10.0), "4": waiting, "8": waiting, "16": waiting}
    status = status_of("", cells, records)
    assert (status.total, status.ended, status.best, status.left_s) == (6, 1, ("C=2", 0.4), None)
    records |= {"4": done(0.6, 20.0), "8": Record(state="failed"), "16": Record(state="running")}
    records |= {"32": waiting, "64": Record(state="pruned")}
    status = status_of("", cells, records)
    assert (status.ended, status.failed, status.pruned, status.running) == (4, 1, 1, 1)
    assert status.best == ("C=4", 0.6)
    # Through (0.60M, 10 s) and (2.27M, 20 s): 215 s for C=16, of which half is left, and 848 s for C=32.
    assert status.left_s == pytest.approx(215.3 / 2 + 842.5, rel=0.02)
    assert status_of("", cells, records, idle_workers=1).left_s == pytest.approx(842.5, rel=0.02)
    tie = {"2": done(0.5, 1.0), "4": done(0.5, 2.0), "8": done(0.1, 2.0)}
    assert status_of("", cells, tie).best == ("C=2", 0.5)


def test_workers_share_the_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert [env["CUDA_VISIBLE_DEVICES"] for env in command._environments(3, "auto")] == ["0", "1", "0"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,6")
    assert [env["CUDA_VISIBLE_DEVICES"] for env in command._environments(2, "cuda")] == ["4", "6"]
    assert command._environments(2, "cpu") == [{}, {}] == command._environments(2, "cuda:1")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    assert command._environments(2, "auto") == [{}, {}]


# The command itself


def fastresnet(*arguments: str | Path, cwd: Path) -> Any:
    command = [sys.executable, "-m", "fastresnet", *map(str, arguments)]
    return subprocess.Popen(command, cwd=cwd, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def test_the_command_lists_and_shows_without_training(tmp_path: Path) -> None:
    shown, _ = fastresnet("sweep", cwd=tmp_path).communicate()
    assert "r1-joint" in shown and "28 cells" in shown
    process = fastresnet("sweep", "r1-c", "--dry-run", "--cells", "C=2..4", "--epochs", "3", cwd=tmp_path)
    shown, _ = process.communicate()
    assert process.returncode == 0 and "44,622" in shown and "0.5843" in shown and "176,402" not in shown
    assert list(tmp_path.iterdir()) == []


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


def test_the_command_explains_what_is_wrong(tmp_path: Path, data: Path) -> None:
    path = sweep_file(tmp_path, "[grid]\nC = [0]\n")
    process = fastresnet("sweep", path, "--data", data, cwd=tmp_path)
    shown, _ = process.communicate()
    assert process.returncode == 2
    assert shown == f"fastresnet: error: {path}:12: C is 0: it must be a whole number from 1 or 'widest'\n"
    assert not (tmp_path / "sweeps").exists()
