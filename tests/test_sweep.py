"""Sweeps that train: tables, steps, failures and what the command shows, on tiny networks."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from family import refused, typed
from made_data import write_npz
from sweep_processes import completed, config, options, trials

from fastresnet.atomic import read_sealed_json, write_sealed_json
from fastresnet.errors import UserError
from fastresnet.loaders import registry
from fastresnet.loaders.dataset import Dataset, open_dataset

pytest.importorskip("optuna")

from sweep_cases import FILE, GRID, Notes, fastresnet, rows_of, run, sweep_file

from fastresnet.cli import sweep as command
from fastresnet.cli.sweep_progress import SweepProgress
from fastresnet.sweep import SweepRun
from fastresnet.sweep_filter import CellFilter
from fastresnet.sweep_progress import status_of
from fastresnet.sweep_spec import load_sweep
from fastresnet.sweep_store import Record
from fastresnet.sweep_table import caption, find_table, markdown
from fastresnet.sweep_worker import CellBroke


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


def test_commands_at_once_are_all_told(tmp_path: Path, data: Path) -> None:
    """The one that ended last left out what had been typed since it began."""
    file = sweep_file(tmp_path)
    first, second = (
        SweepRun(
            load_sweep(str(file)), options(data, tmp_path, filters=(CellFilter.parse(cells),), command=cells)
        )
        for cells in ("C=2", "C=3")
    )
    first.prepare()
    assert second.run()["commands"] == ["C=2", "C=3"]
    assert first.run()["commands"] == ["C=2", "C=3"]


def test_cells_left_out_can_be_trained_later(tmp_path: Path, data: Path) -> None:
    file = sweep_file(tmp_path)
    filters = (CellFilter.parse("C=3"),)
    table = run(file, data, tmp_path, filters=filters)
    assert rows_of(table, "arch", "state") == [("n2-b1-c3", "done")] and table["left_out"] == 2
    assert "2 more cells were not asked for" in markdown(table)
    table = run(file, data, tmp_path, filters=(CellFilter.parse("C=2,3"),))
    assert rows_of(table, "arch") == [("n2-b1-c2",), ("n2-b1-c3",)] and table["left_out"] == 1
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


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"val": 999}, "cannot hold out 999 of 30 train images"),
        ({"limit_train": 31}, "cannot use 31 of 30 images"),
        ({"device": "cuda:99"}, "cuda:99"),
        ({"amp": "fp16"}, "--amp fp16 needs a GPU"),
    ],
)
def test_options_that_no_cell_can_have_are_refused_at_once(
    tmp_path: Path, data: Path, changed: dict[str, Any], message: str
) -> None:
    wrong = config(data).model_copy(update=changed)
    with pytest.raises(UserError, match=message):
        SweepRun(load_sweep(str(sweep_file(tmp_path))), replace(options(data, tmp_path), config=wrong))
    assert not (tmp_path / "tiny").exists()


def test_a_loader_that_is_not_there_is_refused_at_once(
    tmp_path: Path, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing(*_: Any, **__: Any) -> Any:
        raise UserError("the ffcv loader needs ffcv")

    monkeypatch.setattr(registry, "_registered", {"ffcv": missing})
    wrong = config(data).model_copy(update={"loader": "ffcv"})
    with pytest.raises(UserError, match="needs ffcv"):
        SweepRun(load_sweep(str(sweep_file(tmp_path))), replace(options(data, tmp_path), config=wrong))
    assert not (tmp_path / "tiny").exists()


@pytest.mark.parametrize("name", ["../x", "a/b", "/x", "", ".", "-x", "A b", "x\n"])
def test_a_name_that_leads_elsewhere_is_refused(tmp_path: Path, data: Path, name: str) -> None:
    file = sweep_file(tmp_path)
    there = sorted(tmp_path.rglob("*"))
    with pytest.raises(UserError, match=r"--name is .* it must be lower-case letters, digits and hyphens"):
        SweepRun(load_sweep(str(file)), options(data, tmp_path / "sweeps", name=name))
    assert sorted(tmp_path.rglob("*")) == there


def test_a_name_finds_a_sweep_in_its_folder_alone(tmp_path: Path) -> None:
    for folder in (tmp_path / "beside", tmp_path / "sweeps" / "mine"):
        folder.mkdir(parents=True)
        write_sealed_json(folder / "table.json", {"name": folder.name})
    sweeps = tmp_path / "sweeps"
    assert find_table("mine", sweeps)[0] == sweeps / "mine"
    assert find_table(str(tmp_path / "beside"), sweeps)[0] == tmp_path / "beside"
    with pytest.raises(UserError, match=r"no sweep '\.\./beside'"):
        find_table("../beside", sweeps)
    with pytest.raises(UserError, match=r"train it first: fastresnet sweep r1-c$"):
        find_table("r1-c", sweeps)
    refusal = refused("report", sweeps / "mine", "--sweeps-dir", sweeps)
    assert refusal.endswith("is a sweep and not a run; write `fastresnet report --sweep mine`")


def test_what_holds_for_every_cell_is_told_once(
    tmp_path: Path, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def noted(*given: Any, **options: Any) -> Dataset:
        return replace(open_dataset(*given, **options), notices=("the data is drawn",))

    monkeypatch.setattr("fastresnet.sweep.open_dataset", noted)
    monkeypatch.setattr("fastresnet.assembly.open_dataset", noted)
    notes = Notes()
    running = SweepRun(load_sweep(str(sweep_file(tmp_path))), options(data, tmp_path), notes)
    running.prepare()
    table = running.run()
    assert rows_of(table, "state", "chosen_on") == [("done", "test")] * 3
    assert notes.notices == ["the data is drawn"]
    assert "Its best cell is chosen on the test set itself, so it flatters." in caption(table)


def test_cells_chosen_on_a_validation_split_are_not_said_to_flatter(tmp_path: Path, data: Path) -> None:
    held_out = config(data).model_copy(update={"val": 10})
    file = sweep_file(tmp_path, "[grid]\nC = [2, 3]\n")
    table = SweepRun(load_sweep(str(file)), replace(options(data, tmp_path), config=held_out)).run()
    assert rows_of(table, "state", "chosen_on") == [("done", "val")] * 2 and "flatters" not in caption(table)


def test_cells_that_the_options_fit_are_trained(tmp_path: Path, data: Path) -> None:
    cells = "[grid]\nC = [2]\nval = [999, 5]\n".replace("val", '"val.num"')
    table = run(sweep_file(tmp_path, cells), data, tmp_path)
    assert rows_of(table, "state") == [("failed",), ("done",)]


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
    best = max(table["rows"][3:], key=lambda row: row["accuracy"])
    marked = [row for row in table["rows"] if row["note"] == "the best of its step"]
    assert marked == [table["rows"][1], best] and markdown(table).count("the best of its step") == 2
    assert "The best of each step is chosen on the test set itself, so it flatters." in markdown(table)
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


def test_hopeless_cells_are_stopped_early(
    tmp_path: Path, data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cells = '[grid]\nC = [4]\n"optimizer.lr" = [0.003, 0.01, 0.03, 0.06, 1e-9]\n'
    file = sweep_file(tmp_path, cells, epochs=5)
    held_out = config(data).model_copy(update={"val": 10})
    given = replace(options(data, tmp_path, prune=True), config=held_out)
    first = Notes()
    table = SweepRun(load_sweep(str(file)), given, first).run()
    assert rows_of(table, "state") == [("done",)] * 4 + [("pruned",)]
    # What it was stopped at is of the validation split, so it stands in the remark and is compared with nothing.
    at = table["rows"][4]["pruned_at"]
    assert at["split"] == "val" and 2 <= at["epoch"] <= 5 and 0 <= at["accuracy"] <= 1
    assert table["rows"][4]["accuracy"] is None and rows_of(table, "pruned_at")[:4] == [(None,)] * 4
    words = f"pruned at validation accuracy {at['accuracy']:.4f} after epoch {at['epoch']}"
    assert f"|  | {words} |" in markdown(table)
    assert not (tmp_path / "tiny" / table["rows"][4]["run"] / "result.json").exists()
    again = Notes()
    assert SweepRun(load_sweep(str(file)), given, again).run() == table and again.started == []
    cell = load_sweep(str(file)).cells()[4]
    SweepProgress(several=True).on_cell_end(cell, first.ended[-1][1], status_of("", {}, {}))
    assert f"stopped{words.removeprefix('pruned')}, below the median" in capsys.readouterr().out


def test_a_bug_fails_its_cell_and_ends_the_worker(tmp_path: Path, data: Path) -> None:
    class Broken(Notes):
        def on_epoch(self, row: dict[str, Any]) -> None:
            raise ZeroDivisionError("a bug")

    file = sweep_file(tmp_path, "[grid]\nC = [2, 3]\n")
    with pytest.raises(CellBroke, match="C=2 failed") as caught:
        run(file, data, tmp_path, Broken())
    assert isinstance(caught.value.__cause__, ZeroDivisionError)
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


def test_the_command_lists_and_shows_without_training(tmp_path: Path) -> None:
    shown, _ = fastresnet("sweep", cwd=tmp_path).communicate()
    assert "r1-joint" in shown and "28 cells" in shown
    process = fastresnet("sweep", "r1-c", "--dry-run", "--cells", "C=2..4", "--epochs", "3", cwd=tmp_path)
    shown, _ = process.communicate()
    assert process.returncode == 0 and "44,622" in shown and "0.5843" in shown and "176,402" not in shown
    assert list(tmp_path.iterdir()) == []


def test_the_command_explains_what_is_wrong(tmp_path: Path, data: Path) -> None:
    path = sweep_file(tmp_path, "[grid]\nC = [0]\n")
    process = fastresnet("sweep", path, "--data", data, cwd=tmp_path)
    shown, _ = process.communicate()
    assert process.returncode == 2
    assert shown == f"fastresnet: error: {path}:13: C is 0: it must be a whole number from 1 or 'widest'\n"
    assert not (tmp_path / "sweeps").exists()


BREAKING = """\
import sys
from fastresnet.cli.main import main
from fastresnet.sweep_worker import Worker

def broken(*_):
    raise RuntimeError("the device is lost")

Worker._train = broken
main()
"""


def test_the_command_goes_on_in_a_fresh_process_after_a_bug(tmp_path: Path, data: Path) -> None:
    sweep_file(tmp_path)
    script = tmp_path / "breaking.py"  # in this process every cell would fail
    script.write_text(BREAKING)
    words = [
        "sweep",
        "tiny.toml",
        "--data",
        str(data),
        "--compile",
        "off",
        "--device",
        "cpu",
        "--retry-failed",
    ]
    ended = subprocess.run([sys.executable, script, *words], cwd=tmp_path, capture_output=True, text=True)
    table = read_sealed_json(tmp_path / "sweeps" / "tiny" / "table.json")
    assert rows_of(table, "state") == [("failed",), ("done",), ("done",)], ended.stderr
    assert table["rows"][0]["error"] == "RuntimeError: the device is lost"
    assert ended.returncode == 1 and "1 cell failed; --retry-failed tries again" in ended.stdout
    assert "C=2: failed: RuntimeError: the device is lost; 1 of 3 cells done" in ended.stdout
    assert "Traceback" in ended.stderr and len(table["commands"]) == 1
    states = [state for _, state in trials(tmp_path / "sweeps" / "tiny" / "study.db")]
    assert states == ["FAIL", "COMPLETE", "COMPLETE"]  # each was tried once


def test_a_lost_device_leaves_the_cells_waiting(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    def lost(*_: Any, **__: Any) -> Any:
        raise RuntimeError("CUDA error: unspecified launch failure")

    command._check_device(options(data, data.parent))
    monkeypatch.setattr(torch, "ones", lost)
    with pytest.raises(
        UserError, match=r"cpu computes nothing any more \(CUDA error: .*the same command goes on"
    ):
        command._check_device(options(data, data.parent))


def test_a_list_is_counted_for_the_data(data: Path, tmp_path: Path) -> None:
    assert "no such data: nosuch" in refused("sweep", "r1-c", "--list", "--data", "nosuch")
    num_classes = len(open_dataset(str(data)).class_names)
    file = sweep_file(tmp_path, "[grid]\nC = [4]\n")
    (cell,) = replace(load_sweep(str(file)), num_classes=num_classes, image_size=8).cells()
    ours = f"{cell.params:,}"
    assert ours in typed("sweep", file, "--list", "--data", data)
    assert num_classes != 10 and ours not in typed("sweep", file, "--list")


def test_a_list_of_a_sequence_says_what_stands_in() -> None:
    shown = typed("sweep", "r3-sequential", "--list")
    (batch,) = [line for line in shown.splitlines() if line.startswith("batch") and " 64 " in line]
    assert "0.001" in batch and "as if their best printed cell came out best" in shown


@pytest.mark.parametrize("also", [["--list"], ["--epochs", "3"], ["--cells", "C=2"]])
def test_a_file_is_printed_as_it_is(also: list[str]) -> None:
    assert "--toml prints the sweep's file as it is" in refused("sweep", "r1-c", "--toml", *also)


def test_the_help_says_from_when_cells_are_stopped() -> None:
    shown = " ".join(typed("sweep", "--help").replace("│", " ").split())
    assert "once 4 cells are done, and from its epoch 2 on, so never one of 1 epoch" in shown
