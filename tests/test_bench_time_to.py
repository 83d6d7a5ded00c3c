"""``fastresnet bench time-to``: the board, killed and gone on with, mixed with nothing, on networks of a second."""

from __future__ import annotations

import json
import math
import os
import re
import signal
import subprocess
import sys
import time
import types
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
import torch
from matplotlib.figure import Figure
from tiny_runs import write_tiny
from typer.testing import CliRunner, Result

from fastresnet.arch import get_arch
from fastresnet.bench import board_estimate, board_run, time_to_accuracy
from fastresnet.bench.board import (
    Row,
    check_target,
    resolve_target,
    runs_of,
    standings,
    summarise,
    verdict_of,
)
from fastresnet.bench.board_page import draw, figure_of, to_markdown
from fastresnet.bench.comparison import compare, find_row, welch
from fastresnet.bench.contestants import default_names
from fastresnet.bench.energy import EnergyMeter
from fastresnet.bench.peers import Peer
from fastresnet.bench.record import publishable
from fastresnet.catalogue import BUDGET
from fastresnet.cli.bench_time_to import contestants
from fastresnet.cli.main import app
from fastresnet.engine.machine import UNFOUND
from fastresnet.errors import UserError
from fastresnet.recipe import Recipe
from fastresnet.run import RunConfig, RunResult
from fastresnet.training import train

FAR = 300.0
TINY = (
    *("--archs", "n2-b1-c4", "--set", "batch_size=16", "--set", "optimizer.lr=0.05", "--target", "0.5"),
    *("--device", "cpu", "--threads", "1", "--compile", "off"),
)


@pytest.fixture(autouse=True)
def one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return write_tiny(tmp_path / "tiny.npz")


def bench(*arguments: str | Path) -> Result:
    return CliRunner().invoke(app, ["bench", "time-to", *map(str, arguments)])


def read(path: Path) -> dict[str, Any]:
    record = json.loads(path.read_text())
    assert isinstance(record, dict)
    return record


def refusal(result: Result) -> str:
    assert isinstance(result.exception, UserError), result.output
    return str(result.exception)


def test_a_board_of_ours_and_a_peer(data: Path, tmp_path: Path) -> None:
    out = tmp_path / "board.json"
    line = (
        '{"accuracy": 0.6{seed}, "seconds": 1.5, "cpu_s": 2.5, "clock": "all of it", "commit": "abc", '
        '"changes": "nothing.", "tta": "flip"}'
    )
    peer = f"other=echo noise; echo '{line}'"
    own = (*TINY, "--data", data, "--out", out, "--peer", peer, "--epochs", "1,2")
    first = bench(*own, "--runs", "1")
    assert first.exit_code == 0, first.output
    assert "one run: proves nothing" in first.output and "over ten minutes" not in first.output
    before = read(out)["runs"]
    done = bench(*own, "--runs", "2")
    assert done.exit_code == 0, done.output
    record = read(out)
    assert record["runs"][:3] == before  # what was run stays, in the order it was run in
    assert [(run["row"]["epochs"], run["seed"]) for run in record["runs"]] == [
        *((1, 0), (2, 0), (None, 0)),
        *((1, 1), (2, 1), (None, 1)),
    ]
    for run in record["runs"]:
        assert 0 <= run["accuracy"] <= 1 and run["process_s"] > 0 and run["cpu_s"] > 0
        assert datetime.fromisoformat(run["started"]).utcoffset() is not None
        if run["row"]["recipe"] is None:
            continue
        clocks = run["clocks"]
        assert run["seconds"] == clocks["move_s"] + clocks["init_s"] + clocks["train_s"] + clocks["eval_s"]
        assert [accuracy for _, accuracy in run["curve"]][-1] == run["accuracy"]
        assert len(run["curve"]) == run["row"]["epochs"] and run["machine"]["loader"] == "numba"
        crossed = any(accuracy >= 0.5 for _, accuracy in run["curve"])
        assert (run["crossing_s"] is not None) == crossed
    page = out.with_suffix(".md").read_text()
    assert page in done.stdout and bench("--show", out).stdout == page
    assert "| other (its own clock), flip TTA |" in page and "| 2.5 |" in page and "abc" in page
    assert "Its clock: all of it." in page
    assert "Changed to run here: nothing. As called:" in page and "No energy was read: only a GPU" in page
    assert out.with_suffix(".png").read_bytes().startswith(b"\x89PNG")

    # Another target, data set, schedule of evaluations or machine would be another board.
    assert "target was 0.5 and is 0.6" in refusal(bench(*own, "--target", "0.6"))
    assert "eval_every was 1 and is 2" in refusal(bench(*own, "--eval-every", "2"))
    other = write_tiny(tmp_path / "other.npz", first=7)
    assert "dataset was tiny and is other" in refusal(bench(*own, "--data", other))
    out.write_text(json.dumps(record | {"environment": record["environment"] | {"torch": "2.0"}}))
    assert "torch was '2.0'" in refusal(bench(*own))


def test_a_rows_first_run_finds_the_way_and_the_others_take_it(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two rows, of which each has a way of its own."""
    asked, out = [], tmp_path / "board.json"

    def trained(recipe: Recipe, config: RunConfig, **options: Any) -> RunResult:
        asked.append((recipe.epochs, config.seed, config.convs, config.alike))
        result = train(recipe, config, **options)
        found = {"convs": "winograd" if recipe.epochs == 1 else "direct"}
        return result.model_copy(update={"config": result.config.model_copy(update=found)})

    monkeypatch.setattr(board_run, "train", trained)
    arguments = (*TINY, "--data", data, "--out", out, "--epochs", "1,2", "--archs", "n2-b1-c16")
    assert bench(*arguments, "--runs", "2").exit_code == 0
    assert asked == [(1, 0, "auto", 2), (2, 0, "auto", 2), (1, 1, "winograd", 1), (2, 1, "direct", 1)]
    assert bench(*arguments, "--runs", "3").exit_code == 0
    assert asked[4:] == [(1, 2, "winograd", 1), (2, 2, "direct", 1)]


def test_of_runs_at_once_a_rows_others_wait_for_its_first(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Trainers are replaced by ones that answer when there is nothing more to begin."""
    asked: list[tuple[int, int, str]] = []

    class Told:
        def begin(self, recipe: Recipe, config: RunConfig, label: str) -> None:
            asked.append((recipe.epochs, config.seed, config.convs))
            self.found = {
                "accuracy": 0.6,
                "seconds": 1.0,
                "crossing_s": None,
                "process_s": 1.0,
                "curve": [],
            } | {
                "clocks": {},
                "machine": UNFOUND | {"convs": "winograd" if recipe.epochs == 1 else "direct"},
            }

    @contextmanager
    def crew(most: int, runs_dir: Path) -> Iterator[Any]:
        yield Told  # always one more

    def answers(busy: list[Told]) -> Iterator[Any]:
        asked.append((0, 0, "answered"))
        yield from [(trainer, "done", trainer.found) for trainer in busy]

    monkeypatch.setattr(time_to_accuracy, "crew", crew)
    monkeypatch.setattr(time_to_accuracy, "answers", answers)
    monkeypatch.setattr(
        time_to_accuracy,
        "settle",
        lambda record, recipe, *_: record.setdefault("at_once", []).append(
            {"arch": recipe.arch, "asked": 2, "at_once": 2, "ratio": 0.5, "failed": None}
            | {"alone_images_per_s": [1.0], "together_images_per_s": [2.0]}
        ),
    )
    out = tmp_path / "board.json"
    done = bench(*TINY, "--data", data, "--out", out, "--epochs", "1,2", "--runs", "3", "--parallel", "2")
    assert done.exit_code == 0, done.output
    assert asked == [
        *((1, 0, "auto"), (2, 0, "auto"), (0, 0, "answered")),
        *((1, 1, "winograd"), (2, 1, "direct"), (1, 2, "winograd"), (2, 2, "direct"), (0, 0, "answered")),
    ]


@pytest.mark.usefixtures("hears_hangups")
def test_killed_it_goes_on_with_the_run_it_was_at(data: Path, tmp_path: Path) -> None:
    out = tmp_path / "board.json"
    command = [sys.executable, "-m", "fastresnet", "bench", "time-to", *TINY, "--data", str(data), "--runs"]
    arguments = ["--epochs", "8", "--out", str(out)]
    process = subprocess.Popen(
        [*command, "500", *arguments], stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    try:
        end = time.monotonic() + FAR
        while not out.exists():
            assert process.poll() is None and time.monotonic() < end
            time.sleep(0.01)
        time.sleep(0.1)
        os.killpg(process.pid, signal.SIGKILL)
    finally:
        process.kill()
        process.communicate()
    before = read(out)["runs"]
    done = bench(*TINY, "--data", data, "--runs", str(len(before) + 1), *arguments)
    assert done.exit_code == 0, done.output
    record = read(out)
    assert record["runs"][:-1] == before and [run["seed"] for run in record["runs"]] == [
        *range(len(before) + 1)
    ]

    # Stopped by a signal it says so, and keeps the same.
    process = subprocess.Popen(
        [*command, "500", *arguments], stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    assert process.stderr is not None
    try:
        said = next(line for line in process.stderr if "run " in line or "error" in line)
        process.send_signal(signal.SIGHUP)
        _, rest = process.communicate(timeout=FAR)
    finally:
        process.kill()
    assert process.returncode == 129 and "Traceback" not in rest, said + rest
    assert f"stopped; the board is kept in {out}, and the same command goes on with it" in rest
    assert read(out)["runs"][: len(before) + 1] == record["runs"]
    left = bench(*TINY, "--data", data, "--runs", "1", *arguments)
    assert left.exit_code == 0, left.output


def test_a_search_is_run_again_on_fresh_seeds(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Trainings are replaced by their arithmetic: from 5 epochs on the target is reached."""
    trained: list[tuple[int, int]] = []

    def outcome(result: Any) -> dict[str, Any]:
        epochs, seed = result
        trained.append((epochs, seed))
        reached = {"accuracy": 0.95 if epochs >= 5 else 0.4, "seconds": 0.1 * epochs, "crossing_s": None}
        return {**reached, "clocks": {}, "curve": [], "machine": UNFOUND}

    monkeypatch.setattr(board_run, "train", lambda recipe, config, **_: (recipe.epochs, config.seed))
    monkeypatch.setattr(board_run, "outcome", outcome)
    out = tmp_path / "board.json"
    own = (*TINY, "--data", data, "--out", out, "--search", "--epochs", "12", "--runs", "3")
    stopped = bench(*own, "--minutes", "0")
    assert stopped.exit_code == 0 and trained == []
    assert (
        "Runs are still missing of: n2-b1-c4, fast with batch_size=16, optimizer.lr=0.05, 12 epochs."
        in stopped.output
    )
    done = bench(*own)
    assert done.exit_code == 0, done.output
    searched = [epochs for epochs, seed in trained if seed >= time_to_accuracy.SEARCH_SEEDS]
    assert searched == [12, 12, 6, 6, 3, 3, 4, 4, 5, 5]
    assert trained[len(searched) :] == [(5, 0), (5, 1), (5, 2)]
    record = read(out)
    (line,) = standings(record)
    assert line.row.epochs == 5 and line.runs == 3 and line.searched and line.verdict == "reaches"
    page = to_markdown(record)
    assert record["not_measured"] == [] and "| 5 † |" in page and "chosen by search" in page
    tried = re.findall(r"(\d+) epochs: (0\.\d+) \((\d) runs\)", page)
    assert tried == [(e, "0.9500" if int(e) >= 5 else "0.4000", "2") for e in ("3", "4", "5", "6", "12")]
    assert bench(*own).exit_code == 0 and len(trained) == len(searched) + 3  # complete: nothing to do

    # Had fresh seeds not borne it out, a longer one would be looked for, and its figure run.
    for run in record["runs"]:
        run["accuracy"] -= 0.5 * (run["role"] == "figure")
    out.write_text(json.dumps(record))
    assert bench(*own).exit_code == 0
    assert trained[len(searched) + 3 :] == [(6, 0), (6, 1), (6, 2)]
    best, refuted = standings(read(out))
    assert (best.row.epochs, best.verdict) == (6, "reaches")
    assert (refuted.row.epochs, refuted.verdict, refuted.searched) == (5, "below", True)


def record_of(runs: list[dict[str, Any]], rows: list[Row], **changes: Any) -> dict[str, Any]:
    where = {"device_name": "some GPU", "torch": "2", "threads": 1, "cuda": "13.0", "cores": 1}
    settings = {"target": 0.94, "dataset": "CIFAR-10", "eval_every": 2}
    record = {"environment": where, "settings": settings, "command": "x", "energy": "of the whole GPU"}
    return record | {"rows": [vars(row) for row in rows], "runs": runs, "not_measured": []} | changes


def run_of(row: Row, seed: int, accuracy: float, seconds: float, **changes: Any) -> dict[str, Any]:
    plain = {
        "role": "figure",
        "crossing_s": None,
        "energy_j": None,
        "date": "2026-01-01",
        "curve": [],
        "git": "aaa",
        "started": "2026-01-01T00:00:00+00:00",
        "process_s": seconds,
    }
    return {"row": vars(row), "seed": seed, "accuracy": accuracy, "seconds": seconds} | plain | changes


def row(name: str, **changes: Any) -> Row:
    plain: dict[str, Any] = {"recipe": "fast", "science": name, "num_params": 5, "epochs": 8, "tta": "none"}
    return Row(name=name, **plain | changes)


def test_standings() -> None:
    sure, quick, marked, below, lone, none = map(row, ("sure", "quick", "marked", "below", "lone", "none"))
    runs = [
        *(run_of(sure, i, a, 9 + i, crossing_s=8.0, energy_j=500.0) for i, a in enumerate((0.9424, 0.9426))),
        *(run_of(quick, i, 0.9401, 5, date=f"2026-01-0{i + 1}") for i in range(3)),
        *(run_of(marked, i, a, 4) for i, a in enumerate((0.90, 0.99))),
        *(run_of(below, i, 0.93, 3) for i in range(2)),
        run_of(lone, 0, 0.99, 1),
        run_of(lone, 1_000_000, 0.5, 1, role="search"),
    ]
    record = record_of(runs, [none, below, marked, quick, sure, lone], found=[vars(lone)])
    lines = standings(record)
    assert [(line.row.name, line.verdict) for line in lines] == [
        *(("quick", "reaches"), ("sure", "reaches"), ("marked", "mean only")),
        *(("lone", "one run"), ("below", "below"), ("none", "unmeasured")),
    ]
    assert [line.searched for line in lines] == [False, False, False, True, False, False]
    tried = record_of(runs, [lone])  # by a search that found another
    assert not summarise(tried, lone).searched
    ends = [each for each in figure_of(record).axes[0].lines if each.get_marker() not in ("None", None)]
    drawn = [float(each.get_ydata()[0]) for each in ends if len(each.get_ydata())]
    assert sorted(drawn) == sorted(run["accuracy"] for run in runs)  # every run, a search's tries among them
    hollow = [each for each in ends if each.get_fillstyle() == "none" and len(each.get_ydata())]
    assert [float(each.get_ydata()[0]) for each in hollow] == [0.5]
    assert lines[1].seconds == 9.5 and lines[3].runs == 1  # what a search tried is not counted
    assert summarise(record, sure).crossed == 2 and summarise(record, sure).energy_j == 500
    assert summarise(record, quick).dates == ("2026-01-01", "2026-01-02", "2026-01-03")
    page = to_markdown(record)
    assert "only its mean: not shown to reach it" in page and "| unmeasured |" in page
    assert "after every 2 epochs" in page and "| 2026-01-01 to 2026-01-03 |" in page and "| 500 |" in page
    assert draw(record).startswith(b"\x89PNG") and draw(record_of([], [none])).startswith(b"\x89PNG")


def test_two_runs_close_above_the_target_reach_it_only_if_the_bound_does() -> None:
    assert verdict_of([0.942, 0.943], 0.94) == "mean only"  # the bound is 0.9425 - 6.314 * 0.0005
    assert verdict_of([0.9424, 0.9426], 0.94) == "reaches"
    assert verdict_of([0.93, 0.93], 0.94) == "below" and verdict_of([], 0.94) == "unmeasured"


def test_the_target_is_asked_for_where_there_is_none() -> None:
    assert resolve_target(None, "CIFAR-10") == 0.94 and resolve_target(0.5, "shapes") == 0.5
    with pytest.raises(UserError, match=r"reach on CIFAR-10-J75 with --target; the usual one is 0\.906$"):
        resolve_target(None, "CIFAR-10-J75")
    with pytest.raises(UserError, match="reach on shapes with --target; it has no usual one"):
        resolve_target(None, "shapes")
    with pytest.raises(UserError, match="--target is 94; it must be"):
        check_target(94)


def test_a_whole_board_is_the_reports_archs_and_ours() -> None:
    names = default_names()
    assert (len(names), names[0], names[-1]) == (13, "resnet10-1", "fastest")
    for name in names[:12]:
        assert get_arch(name).num_params() < BUDGET


@pytest.mark.parametrize(
    ("command", "complaint"),
    [
        ("exit 3", "exited with 3: it said nothing"),
        ("echo oh no >&2; exit 1", "exited with 1: oh no"),
        ("echo 94", "must print, last, one JSON line"),
        ('echo \'{"accuracy": 94, "seconds": 1, "clock": "x"}\'', "accuracy (0 to 1)"),
        ('echo \'{"accuracy": 0.94, "seconds": true, "clock": "x"}\'', "must print, last"),
        ("true", "it printed ''"),
        (f"echo '{'[' * 100_000}'", "must print, last"),
        ('echo \'{"accuracy": 0.94, "seconds": 1e400, "clock": "x"}\'', "must print, last"),
        ('echo \'{"accuracy": 0.94, "seconds": 1, "clock": " "}\'', "must print, last"),
        ('echo \'{"accuracy": 0.94, "seconds": 1, "clock": "x", "cpu_s": "2"}\'', "must print, last"),
    ],
)
def test_a_peer_that_does_not_answer_is_named(command: str, complaint: str) -> None:
    with pytest.raises(UserError) as refused:
        Peer.parse(f"other={command}").run(0)
    assert str(refused.value).startswith("--peer other ") and complaint in str(refused.value)


def test_a_peer_is_not_waited_for_longer_than_it_runs() -> None:
    """What it leaves running has its output open still, and is ended with it."""
    line = '{"accuracy": 0.9, "seconds": 1, "clock": "x"}'
    run = Peer.parse(f"other=sleep 100000 & echo '{line}'").run(0)
    assert run["accuracy"] == 0.9


def test_a_peer_that_takes_too_long_is_ended() -> None:
    begun = time.monotonic()
    with pytest.raises(UserError, match=r"was ended after 0\.005 minutes, which is --peer-minutes"):
        Peer.parse("other=sleep 100000", 0.005).run(0)
    assert time.monotonic() - begun < FAR


def test_what_fails_is_left_out_and_the_others_go_on(data: Path, tmp_path: Path) -> None:
    out = tmp_path / "board.json"
    line = '{"accuracy": 0.6, "seconds": 1.5, "clock": "all"}'
    peers = (
        "--peer",
        f"good=echo '{line}'",
        "--peer",
        f"bad=echo no luck >&2; test {{seed}} = 0 || exit 4; echo '{line}'",
    )
    own = ("--archs", "n2-b1-c4", "--target", "0.5", "--data", data, "--out", out, *peers, "--runs", "3")
    machine = ("--device", "cpu", "--threads", "1", "--compile", "off")
    done = bench(*own, *machine, "--epochs", "1", "--set", "batch_size=16", "--set", "optimizer.lr=1e30")
    told, lost = refusal(done), "fast with batch_size=16, optimizer.lr=1e30, 1 epochs"
    assert told.startswith(f"not all could be measured: n2-b1-c4, {lost}, run 1: the loss is not finite")
    assert f"bad, run 2: --peer bad exited with 4: no luck; {out} keeps the rest" in told
    record = read(out)
    assert [(run["row"]["name"], run["seed"]) for run in record["runs"]] == [
        *(("good", 0), ("bad", 0), ("good", 1), ("good", 2))
    ]
    assert set(record["failed"]) == {f"n2-b1-c4, {lost}", "bad"} and record["not_measured"] == []
    assert "Failed when last tried: bad, run 2: --peer bad exited with 4: no luck." in done.output


def test_a_damaged_record_is_refused_in_one_line(data: Path, tmp_path: Path) -> None:
    out = tmp_path / "board.json"
    own = (*TINY, "--data", data, "--out", out, "--minutes", "0")
    assert bench(*own).exit_code == 0
    record = read(out)
    damages: list[dict[str, Any]] = [
        {"settings": []},
        {"environment": None},
        {"rows": [{"name": "a"}]},
        {"runs": 3},
    ]
    for wrong in damages:
        out.write_text(json.dumps(record | wrong))
        assert str(out) in refusal(bench(*own)), wrong
    assert "is damaged, or of an earlier form" in refusal(bench(*own))


def test_a_row_is_compared_round_by_round() -> None:
    ours, theirs, later = row("ours"), row("theirs", recipe=None, epochs=None), row("later")
    runs = [
        run_of(ours, 0, 0.94, 8, cpu_s=16.0),
        run_of(theirs, 0, 0.93, 4, cpu_s=4.0, clock="x"),
        run_of(theirs, 1, 0.92, 12, cpu_s=12.0, clock="x"),  # the other way round
        run_of(ours, 1, 0.95, 6, cpu_s=12.0),
        run_of(ours, 2, 0.96, 3, cpu_s=6.0),
        run_of(theirs, 3, 0.925, 9, cpu_s=9.0, clock="x"),
        run_of(theirs, 4, 0.925, 9, cpu_s=9.0, clock="x"),
        run_of(ours, 4, 0.95, 6, cpu_s=12.0, started="2026-01-01T00:01:20+00:00"),  # a pause between
        *(run_of(later, seed, 0.9, 1) for seed in range(3)),  # on another day: no turns were taken
    ]
    record = record_of(runs, [ours, theirs, later], against="theirs")
    assert find_row(record, "theirs") == theirs == find_row(record, theirs.label)
    found, apart = compare(record, theirs)
    assert found.row == ours and found.rounds == 2 and found.seconds is not None and found.cpu_s is not None
    assert found.seconds.mean == pytest.approx(1.0) and found.cpu_s.mean == pytest.approx(2.0)
    # ln 2 and -ln 2: the interval is their standard error, ln 2, times t of one degree of freedom.
    assert found.seconds.high == pytest.approx(math.exp(math.log(2) * 12.7062), rel=1e-4)
    assert found.difference == pytest.approx(0.025) and found.difference_half is not None
    assert (apart.row, apart.rounds, apart.seconds, apart.cpu_s) == (later, 0, None, None)
    page = to_markdown(record)
    assert "| later, fast, 8 epochs |  | they did not take turns |  | " in page
    assert "Against theirs, of which a ratio below 1 is faster:" in page
    assert "| ours, fast, 8 epochs | 2 | 1.000 (" in page and "| +2.50 ± " in page
    del runs[0]["cpu_s"]
    assert compare(record, theirs)[0].cpu_s is None and "(of 3 runs)" in to_markdown(record)
    packed = [run | {"row": vars(row("ours", at_once=2))} for run in runs if run["row"]["name"] == "ours"]
    beside = record_of([*packed, *runs[1:3]], [row("ours", at_once=2), theirs])
    assert compare(beside, theirs)[0].rounds == 0  # whose seconds are no latency
    twice = record_of(runs, [ours, row("ours", epochs=9)])
    assert find_row(twice, "ours") == row("ours", epochs=9) and find_row(twice, ours.label) == ours
    assert "Nothing is compared with other yet." in to_markdown(record | {"against": "other"})


def test_what_is_compared_is_named_on_the_command_line(data: Path, tmp_path: Path) -> None:
    out = tmp_path / "board.json"
    line = '{"accuracy": 0.6, "seconds": 1.5, "cpu_s": 1.25, "clock": "all"}'
    own = (
        *TINY,
        "--data",
        data,
        "--out",
        out,
        "--peer",
        f"other=echo '{line}'",
        "--epochs",
        "1",
        "--runs",
        "2",
    )
    told = refusal(bench(*own, "--against", "othr"))
    assert told.startswith(
        "--against is 'othr', no row of this board; did you mean 'other'? (it has n2-b1-c4,"
    )
    for _ in range(2):  # the second time the rows are in the record
        done = bench(*own, "--against", "other")
        assert done.exit_code == 0 and "Against other, of which a ratio below 1 is faster:" in done.output
    assert re.search(r"1 epochs \| 2 \| [\d.]+ \([\d.]+ to [\d.]+\) \| [\d.]+ \([\d.]+ to", done.output)
    assert "Against" not in bench("--show", out, "--against", "").output
    assert "Against n2-b1-c4, fast" in bench("--show", out, "--against", "n2-b1-c4").output
    assert "--against is 'x', no row of this board" in refusal(bench("--show", out, "--against", "x"))


def test_what_is_published_of_a_command_leads_nowhere() -> None:
    command = "cd /home/u/air && DATA=/home/u/d python run.py --seed {seed} --url=https://u:p@x.y/z > /tmp/log; ls a/b"
    assert publishable(command) == "cd air && DATA=d python run.py --seed {seed} --url=URL > log; ls a/b"
    assert publishable("a / b, 3/4, ./x/y and ~/z/w") == "a / b, 3/4, ./x/y and w"


def test_welchs_interval_is_that_of_a_worked_example() -> None:
    first, second = [27.5, 21.0, 19.0, 23.6, 17.0, 17.9], [27.1, 22.0, 20.8, 23.4, 23.4, 23.5]
    # Variances 15.968 and 4.239 of six values: standard error 1.8352, 7.64 degrees of freedom; t of 7 at 0.975: 2.3646.
    assert welch(first, second) == pytest.approx(1.8352 * 2.3646, rel=1e-4)
    assert welch([1.0], second) is None and welch([1.0, 1.0], [2.0, 2.0]) == 0


def test_mistakes_on_the_command_line_are_found_before_anything_runs() -> None:
    assert "unknown architecture 'resnet25'" in refusal(bench("--archs", "resnet25"))
    assert "--epochs is 'ten'" in refusal(bench("--epochs", "ten", "--archs", "resnet8"))
    both = refusal(bench("--epochs", "3", "--set", "epochs=4", "--archs", "resnet8"))
    assert both == "--epochs and --set epochs both set epochs; give one of them"
    assert "name it in --archs" in refusal(bench("--set", "arch=resnet8"))
    assert "write --peer 'NAME=COMMAND'" in refusal(bench("--peer", "sleep 1", "--archs", "resnet8"))
    assert "--epochs is '²'" in refusal(bench("--epochs", "²", "--archs", "resnet8"))
    assert "--archs names no network" in refusal(bench("--archs", ","))
    assert "--search needs at least 2" in refusal(bench("--search", "--runs", "1", "--archs", "resnet8"))
    assert "--target is 1.2" in refusal(bench("--target", "1.2", "--archs", "resnet8"))
    assert "--search takes one number" in refusal(bench("--search", "--epochs", "12,6", "--archs", "resnet8"))
    twice = ("--peer", "a=true", "--peer", "a=false")
    assert "a is on the board twice" in refusal(bench("--archs", "resnet8", *twice))


def test_a_row_tells_what_was_changed(data: Path, tmp_path: Path) -> None:
    """Two boards' worth of one recipe; the same change typed in another way is the same row."""
    out = tmp_path / "board.json"
    own = (
        "--archs",
        "n2-b1-c4",
        "--target",
        "0.5",
        "--data",
        data,
        "--out",
        out,
        "--epochs",
        "1",
        "--runs",
        "1",
    )
    own = (*own, "--device", "cpu", "--threads", "1", "--compile", "off", "--set", "batch_size=16")
    for lr in ("0.05", "0.1", "0.10"):
        assert bench(*own, "--set", f"optimizer.lr={lr}").exit_code == 0
    labels = [Row(**each).label for each in read(out)["rows"]]
    assert labels == [
        f"n2-b1-c4, fast with batch_size=16, optimizer.lr={lr}, 1 epochs" for lr in ("0.05", "0.1")
    ]
    assert "| n2-b1-c4 (fast with batch_size=16, optimizer.lr=0.1) |" in out.with_suffix(".md").read_text()


def test_a_length_that_is_named_twice_is_one_row() -> None:
    made = contestants("resnet8,resnet8", "fast", "4,4,2", {}, [])
    assert [each.recipe and each.recipe.epochs for each in made] == [4, 2]


def test_a_board_tells_the_commits_of_its_runs() -> None:
    def page(*commits: str) -> str:
        runs = [run_of(row("a"), seed, 0.9, 1, git=commit) for seed, commit in enumerate(commits)]
        return to_markdown(record_of(runs, [row("a")]))

    assert "Its runs are of" not in page("aaa", "aaa")
    assert "Its runs are of the commit: aaa with changes." in page("aaa-dirty")
    assert "Its runs are of several commits: aaa, bbb with changes, ccc." in page(
        "aaa", "bbb-dirty", "ccc", "aaa"
    )


def test_every_run_is_in_the_picture(monkeypatch: pytest.MonkeyPatch) -> None:
    limits = []

    def savefig(figure: Figure, *_: Any, **__: Any) -> None:
        limits.append(figure.axes[0].get_ylim())

    monkeypatch.setattr(Figure, "savefig", savefig)
    for accuracies in ([0.7, 0.935], [0.2, 0.3], [0.999, 1.0]):
        draw(
            record_of([run_of(row("a"), seed, value, 1) for seed, value in enumerate(accuracies)], [row("a")])
        )
        low, high = limits[-1]
        assert low < min(accuracies) and max(accuracies) <= high


def test_runs_of_a_row_come_by_seed() -> None:
    this = row("this")
    record = record_of(
        [run_of(this, 2, 0.1, 1), run_of(this, 0, 0.2, 1), run_of(row("that"), 1, 0.3, 1)], [this]
    )
    assert [run["seed"] for run in runs_of(record, this)] == [0, 2]


def test_a_long_board_says_so_before_it_starts(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(board_estimate, "measure_run_s", lambda recipe, config, data: 400.0)
    monkeypatch.setattr(time_to_accuracy.Board, "fill", lambda *_: None)
    own = (*TINY, "--data", data, "--out", tmp_path / "board.json", "--peer", "other=true")
    long = bench(*own, "--runs", "2")
    assert long.exit_code == 0
    assert "this will take about 13 min 20 s (2 runs, beside 1 row of unknown time)" in long.output
    short = bench(*own, "--runs", "1").output  # but who knows of the other row
    assert "this will take about 6 min 40 s (1 runs, beside 1 row of unknown time)" in short
    assert "will take" not in bench(*own[:-2], "--runs", "1").output
    searched = bench(*own, "--search", "--epochs", "8", "--runs", "4")  # 4 / 2 + 4 bits of epochs
    assert "about 40 min 00 s (6 runs" in searched.output


def test_energy_is_the_difference_of_the_counter(monkeypatch: pytest.MonkeyPatch) -> None:
    """Against a stand-in for NVML that has the card use 250 J between two readings."""
    readings = iter([1_000_000, 1_250_000, 1_500_000])
    nvml = types.ModuleType("pynvml")
    nvml.nvmlInit = lambda: None  # type: ignore[attr-defined]
    nvml.nvmlDeviceGetHandleByUUID = lambda uuid: uuid  # type: ignore[attr-defined]
    nvml.nvmlDeviceGetTotalEnergyConsumption = lambda handle: next(readings)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "pynvml", nvml)
    card = types.SimpleNamespace(uuid="1-2")
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: card)
    meter = EnergyMeter(torch.device("cuda", 0))
    before, after = meter.read(), meter.read()
    assert meter.obstacle is None and before is not None and after is not None and after - before == 250
    monkeypatch.setitem(sys.modules, "pynvml", None)
    without = EnergyMeter(torch.device("cuda", 0))
    assert without.obstacle == "nvidia-ml-py is not installed" and without.read() is None
    assert EnergyMeter(torch.device("cpu")).read() is None
