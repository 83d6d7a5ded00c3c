"""``fastresnet bench sweep``: a finished sweep as a record, and its table in a page."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from family import refused, typed
from made_data import write_npz

from fastresnet.atomic import read_sealed_json, write_sealed_json
from fastresnet.bench.record import typed_command
from fastresnet.sweep_spec import Sweep, load_sweep
from fastresnet.sweep_store import Record
from fastresnet.sweep_table import markdown, row, table

pytest.importorskip("optuna")

from sweep_cases import FILE, run

TABLE = "| C | parameters | accuracy | remark |\n| --- | --- | --- | --- |\n"
CELLS = "[grid]\nC = [2, 3, 4]\n"
MARKS = "<!-- bench sweep tiny: begin -->", "<!-- bench sweep tiny: end -->"


def test_from_a_finished_sweep_to_a_page(tmp_path: Path) -> None:
    file = tmp_path / "tiny.toml"
    file.write_text("budget = 1000\n" + FILE.format(epochs=2) + CELLS)
    data = write_npz(tmp_path / "arrays.npz")
    first, second = "fastresnet sweep tiny.toml", "fastresnet sweep tiny.toml --workers 2"
    for command in (first, second, first):
        made = run(file, data, tmp_path / "sweeps", command=command)
    assert made["commands"] == [first, second]
    out, page = tmp_path / "r.json", tmp_path / "page.md"
    page.write_text(f"before\n{MARKS[0]}\nold\n{MARKS[1]}\nafter\n")
    there = ("bench", "sweep", "tiny", "--sweeps-dir", tmp_path / "sweeps")
    shown = typed(*there, "--out", out, "--insert", page)
    record = json.loads(out.read_text())
    assert record["kind"] == "sweep" and record["commands"] == [first, second]
    assert record["dataset"]["num_train"] == 30 and record["dataset"]["name"] == "arrays"
    (machine,) = record["environments"]
    assert machine["threads"] == 1 and machine["torch"]
    assert [row["state"] for row in record["rows"]] == ["done", "done", "over budget"]
    for entry in record["rows"][:2]:
        result = read_sealed_json(tmp_path / "sweeps" / "tiny" / entry["run"] / "result.json")
        assert entry["accuracy"] == result["test_accuracy"] == entry["trained"][-1]["test_accuracy"]
        assert [epoch["epoch"] for epoch in entry["trained"]] == [1, 2] and entry["environment"] == 0
        assert entry["clocks"]["train_s"] > 0
    assert shown.startswith(TABLE) and "| over budget |" in shown
    for said in ("30 training and 12 test images", "1 of ", f"`{first}`, then `{second}`", record["date"]):
        assert said in shown
    assert page.read_text() == f"before\n{MARKS[0]}\n\n{shown}\n{MARKS[1]}\nafter\n"
    assert typed("bench", "sweep", "--show", out) == shown

    bare = tmp_path / "bare.md"
    bare.write_text("no marks")
    unwritten = tmp_path / "none" / "r.json"
    assert "has no place" in refused(*there, "--out", unwritten, "--insert", bare)
    assert f"cannot write {tmp_path}" in refused(*there, "--out", tmp_path) and not unwritten.parent.exists()

    path = tmp_path / "sweeps" / "tiny" / "table.json"
    content = read_sealed_json(path)
    content["rows"][0]["state"] = "waiting"
    write_sealed_json(path, content)
    assert "1 of 3 cells of tiny are waiting" in refused(*there)
    assert "give either a sweep" in refused("bench", "sweep")
    assert "is no record" in refused("bench", "sweep", "--show", page)


@pytest.mark.parametrize(
    "url",
    ["postgresql://u:secret@host/db", "postgresql+psycopg://u:secret@host/db", "sqlite:////home/secret/s.db"],
)
def test_a_command_on_record_has_no_password_and_no_path(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = [
        "sweep",
        "/home/secret/my.toml",
        "--storage",
        url,
        "--data=/home/secret/j75",
        "--data=../up/j75",
        "--insert=docs/own.md",
        f"--storage={url}",
        "--peer=it=/home/secret/env/bin/python run.py --seed {seed}",
        "--peer",
        "it=/home/secret/run.sh",
    ]
    monkeypatch.setattr("sys.argv", ["fastresnet", *arguments, "--cells", "C=2..4"])
    assert typed_command() == (
        "fastresnet sweep my.toml --storage URL --data=j75 --data=j75 --insert=docs/own.md --storage=URL "
        "'--peer=it=python run.py --seed {seed}' --peer it=run.sh --cells C=2..4"
    )


@pytest.mark.parametrize("older", [False, True])
def test_a_pruned_cell_has_no_accuracy_beside_the_printed_one(older: bool) -> None:
    cell = next(cell for cell in load_sweep("r0-optimizers").cells() if cell.printed_accuracy == 0.8265)
    at = {"epoch": 2, "split": "val", "accuracy": 0.31}
    entry = row("", cell, Record(state="pruned", attrs={"accuracy": 0.31} if older else {"pruned_at": at}))
    assert entry["accuracy"] is None
    if older:  # a table of an earlier version has it
        entry = {**entry, "accuracy": 0.31}
        del entry["pruned_at"]
    given = {"dataset_name": "x", "dataset_is_builtin": False, "seed": 0, "limit_train": None}
    *_, line = markdown(table("r0-optimizers", "", [entry], given)).splitlines()
    remark = "pruned" if older else "pruned at validation accuracy 0.3100 after epoch 2"
    assert line.endswith(f"| 0.8265 | {remark} |") and "-0.5165" not in line


def test_fewer_epochs_than_the_sweeps_own_are_said() -> None:
    def said(sweep: Sweep) -> str:
        rows = [row("", cell, None) for cell in sweep.cells()]
        given = {"dataset_name": "x", "dataset_is_builtin": False, "seed": 0, "limit_train": None}
        return markdown(table("r1-c", "", rows, given))

    sweep = load_sweep("r1-c")
    assert ", 10 epochs, seed 0." in said(sweep) and "8 cells have a printed accuracy.\n" in said(sweep)
    fewer = said(replace(sweep, epochs=3))
    assert "3 epochs in place of the sweep's 10" in fewer
    assert "8 cells have a printed accuracy, after 10 epochs." in fewer
