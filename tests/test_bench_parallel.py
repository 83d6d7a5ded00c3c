"""``--parallel``: trainings at once in processes of their own, their death and their parent's, and their own rows."""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny_runs import ARCH
from train_processes import FAR, spawned, started
from typed_commands import Command

from fastresnet.bench import at_once
from fastresnet.bench.at_once import decided, found_in, in_words, shared
from fastresnet.bench.board import ENERGY, Row, standings
from fastresnet.bench.board_page import to_markdown
from fastresnet.bench.board_plot import draw
from fastresnet.bench.trainers import Trainer
from fastresnet.engine.warmup import KEEP_RATIO
from fastresnet.recipe import Recipe
from fastresnet.run import RunConfig
from fastresnet.signals import Stopped

TINY = (
    *("bench", "time-to", "--archs", ARCH, "--set", "batch_size=16", "--set", "optimizer.lr=0.05"),
    *("--epochs", "1", "--target", "0.5", "--device", "cpu", "--threads", "1", "--compile", "off"),
)
CHANGED = "fast with batch_size=16, optimizer.lr=0.05"
# More runs than can be done before what is waited for; if that never comes, the command ends of itself.
ENDLESS = ("--runs", "100000", "--minutes", "5", "--parallel", "2")
FOUND = {"arch": ARCH, "asked": 2, "failed": None, "alone_images_per_s": [10.0], "ratio": 0.5}
FASTER = {**FOUND, "at_once": 2, "together_images_per_s": [20.0]}


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setattr(at_once, "ROUND_S", 0.01)


def read(path: Path) -> dict[str, Any]:
    record = json.loads(path.read_text())
    assert isinstance(record, dict)
    return record


def settled(fastresnet: Command, own: tuple[str, ...], out: Path, found: dict[str, Any]) -> None:
    """Leave a board with one run, alone, that says of its arch what was ``found``."""
    code, _, told = fastresnet(*own, "--runs", "1")
    assert code == 0, told
    out.write_text(json.dumps(read(out) | {"at_once": [found]}))


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "board.json"


@pytest.fixture
def own(data: Path, out: Path) -> tuple[str, ...]:
    return (*TINY, "--data", str(data), "--out", str(out))


def test_it_is_measured_and_what_runs_at_once_has_a_row_of_its_own(
    fastresnet: Command, own: tuple[str, ...], out: Path
) -> None:
    code, page, told = fastresnet(*own, "--runs", "1", "--parallel", "2")
    assert code == 0, told
    (found,) = read(out)["at_once"]
    assert len(found["alone_images_per_s"]) == len(found["together_images_per_s"]) == at_once.ROUNDS
    assert found["asked"] == 2 and found["at_once"] == (2 if found["ratio"] < KEEP_RATIO else 1)
    assert f"{ARCH}: measuring whether 2 trainings at once" in told
    assert in_words(found) in told and f"{in_words(found)}." in page

    # Whatever it was here: where at once is faster, the runs are done so, and where it is not, alone.
    record = read(out)
    out.write_text(json.dumps(record | {"at_once": [FASTER], "rows": [], "runs": []}))
    peer = ("--peer", 'other=echo \'{"accuracy": 0.6, "seconds": 1, "clock": "x"}\'')
    code, page, told = fastresnet(*own, *peer, "--runs", "3", "--parallel", "2")
    assert code == 0, told
    assert "measuring whether" not in told  # once measured, it stays so
    runs = read(out)["runs"]
    # at once first, in whatever order they end, then the peer, beside nothing
    assert [
        (run["row"]["at_once"], run["seed"]) for run in sorted(runs[:3], key=lambda run: run["seed"])
    ] == [
        *((2, 0), (2, 1), (2, 2)),
    ]
    assert [(run["row"]["recipe"], run["row"]["at_once"]) for run in runs[3:]] == [(None, 1)] * 3
    for run in runs[:3]:
        clocks = run["clocks"]
        assert run["seconds"] == clocks["move_s"] + clocks["init_s"] + clocks["train_s"] + clocks["eval_s"]
        assert run["energy_j"] is None and run["machine"]["threads"] == 1
    assert f"| {ARCH} ({CHANGED}), throughput, 2 at once |" in page
    assert "Rows of up to 2 at once are throughput, not latency" in page and "so up to 2 at once." in page

    slower = {**FASTER, "at_once": 1, "together_images_per_s": [10.0], "ratio": 1.0}
    out.write_text(json.dumps(read(out) | {"at_once": [slower]}))
    code, page, told = fastresnet(*own, *peer, "--runs", "3", "--parallel", "2")
    assert code == 0, told
    record = read(out)
    assert [run["row"]["at_once"] for run in record["runs"][6:]] == [1, 1, 1]
    assert "10 img/s by one training, 10 by 2 at once, which is not faster a run, so one at a time." in page
    ours = [line for line in standings(record) if line.row.recipe is not None]
    assert sorted((line.row.at_once, line.runs) for line in ours) == [(1, 3), (2, 3)]  # never averaged
    # the same weights come of a seed, whether others train beside it or not
    accuracies: dict[int, dict[int, float]] = {1: {}, 2: {}}
    for run in record["runs"]:
        if run["row"]["recipe"] is not None:
            accuracies[run["row"]["at_once"]][run["seed"]] = run["accuracy"]
    assert accuracies[1] == accuracies[2]


def test_what_is_measured_of_an_arch_is_kept_and_none_is_begun_after_the_minutes(
    fastresnet: Command, own: tuple[str, ...], out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whether trainings are run at once was measured of all archs before anything was written."""
    code, _, told = fastresnet(*own, "--parallel", "2", "--minutes", "0")
    assert code == 0, told
    assert "measuring whether" not in told and read(out)["not_measured"] == [ARCH]

    other, measured = "n2-b1-c8", []

    def measure(recipe: Recipe, *_: Any) -> dict[str, Any]:
        measured.append(recipe.arch)
        if recipe.arch == other:
            raise Stopped(signal.SIGTERM)
        return {key: value for key, value in FASTER.items() if key != "arch"}

    monkeypatch.setattr(at_once, "measure", measure)
    code, _, told = fastresnet(*own, "--archs", f"{ARCH},{other}", "--parallel", "2")
    assert code == 128 + signal.SIGTERM and "the board is kept in" in told
    assert measured == [ARCH, other] and [each["arch"] for each in read(out)["at_once"]] == [ARCH]
    assert [label.partition(",")[0] for label in read(out)["not_measured"]] == [ARCH, other]


def test_of_an_archs_recipes_the_first_is_measured_and_what_is_complete_is_not_missing(
    fastresnet: Command, own: tuple[str, ...], out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first is an ablation's base, which goes for its factors."""
    measured = []

    def measure(recipe: Recipe, *_: Any) -> dict[str, Any]:
        measured.append((recipe.arch, recipe.epochs))
        if recipe.arch != ARCH:
            raise Stopped(signal.SIGTERM)
        return {key: value for key, value in FASTER.items() if key != "arch"} | {"at_once": 1}

    monkeypatch.setattr(at_once, "measure", measure)
    code, _, told = fastresnet(*own, "--epochs", "1,2", "--runs", "1", "--parallel", "2")
    assert code == 0, told
    both = ("--archs", f"{ARCH},n2-b1-c8", "--epochs", "1,2", "--runs", "1", "--parallel", "2")
    code, _, told = fastresnet(*own, *both)
    assert code == 128 + signal.SIGTERM, told
    assert measured == [(ARCH, 1), ("n2-b1-c8", 1)]
    assert read(out)["not_measured"] == ["n2-b1-c8"]


@contextmanager
def meanwhile(act: Any, out: Path, num_runs: int) -> Iterator[None]:
    """Once the record has more than ``num_runs`` runs, do ``act`` in a thread."""

    def wait() -> None:
        end = time.monotonic() + FAR
        while time.monotonic() < end:
            if len(read(out)["runs"]) > num_runs:
                act()
                return
            time.sleep(0.02)

    thread = threading.Thread(target=wait)
    thread.start()
    yield
    thread.join()


def test_a_training_that_dies_and_a_signal_keep_what_was_run(
    fastresnet: Command, own: tuple[str, ...], out: Path
) -> None:
    settled(fastresnet, own, out, FASTER)
    with meanwhile(lambda: spawned(os.getpid())[0].kill(), out, 1):
        code, _, told = fastresnet(*own, *ENDLESS)
    assert code == 2, told
    line = told.strip().splitlines()[-1]
    assert f"error: not all could be measured: {ARCH}, {CHANGED}, 1 epoch, 2 at once, run " in line
    assert "its process was ended by SIGKILL; the same command does this run again" in line
    assert (
        line.endswith(f"{out} keeps the rest")
        and f"{ARCH}, {CHANGED}, 1 epoch, 2 at once" in read(out)["failed"]
    )
    assert spawned(os.getpid()) == []
    kept = read(out)["runs"]
    assert len(kept) > 1

    with meanwhile(lambda: os.kill(os.getpid(), signal.SIGTERM), out, len(kept)):
        code, _, told = fastresnet(*own, *ENDLESS)
    assert code == 128 + signal.SIGTERM, told
    assert f"stopped; the board is kept in {out}, and the same command goes on with it" in told
    assert spawned(os.getpid()) == []
    later = read(out)["runs"]
    assert later[: len(kept)] == kept and len(later) > len(kept)
    at_once = [run["seed"] for run in later if run["row"]["at_once"] == 2]
    assert len(set(at_once)) == len(at_once)  # none was done twice


def test_trainings_end_with_a_parent_that_is_killed(
    fastresnet: Command, own: tuple[str, ...], out: Path, tmp_path: Path
) -> None:
    settled(fastresnet, own, out, FASTER)
    command = (sys.executable, "-m", "fastresnet")
    with started(tmp_path / "elsewhere", *own, *ENDLESS, command=command) as process:
        with meanwhile(lambda: None, out, 3):  # the second begins when the first has found the row's way
            pass
        assert process.poll() is None
        processes = spawned(process.pid)
        assert len(processes) == 2
        process.kill()
        gone, alive = psutil.wait_procs(processes, timeout=FAR)
        assert len(gone) == 2 and not alive
    runs = read(out)["runs"]
    assert len(runs) > 1
    code, _, told = fastresnet(*own, "--runs", "1", "--parallel", "2")
    assert code == 0, told
    assert read(out)["runs"][: len(runs)] == runs


def test_only_a_way_that_is_to_be_found_is_waited_for(
    fastresnet: Command, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs_before: list[int] = []
    begin = Trainer.begin

    def told(self: Trainer, recipe: Recipe, config: RunConfig, label: str) -> None:
        runs_before.append(len(read(out)["runs"]))
        begin(self, recipe, config, label)

    monkeypatch.setattr(Trainer, "begin", told)
    given_way = ("--kernels", "eager", "--convs", "direct", "--graphs", "off")  # TINY compiles nothing
    for way, expected in ((), [0, 1]), (given_way, [0, 0]):
        out = tmp_path / f"{len(way)}.json"
        own = (*TINY, "--data", str(data), "--out", str(out), *way)
        settled(fastresnet, own, out, FASTER)
        out.write_text(json.dumps(read(out) | {"rows": [], "asked": [], "runs": []}))
        runs_before.clear()
        code, _, printed = fastresnet(*own, "--runs", "2", "--parallel", "2")
        assert code == 0, printed
        assert runs_before == expected


@given(
    st.lists(st.tuples(st.floats(1, 1e6), st.floats(1, 1e6)), min_size=1, max_size=5),
    st.integers(2, 8),
)
def test_at_once_is_taken_where_it_is_faster_a_run(speeds: list[tuple[float, float]], asked: int) -> None:
    alone, together = ([pair[side] for pair in speeds] for side in (0, 1))
    found = decided(alone, together, asked)
    assert json.loads(json.dumps(found)) == found
    if all(one >= all_ for one, all_ in speeds):
        assert found["at_once"] == 1
    if all(2 * one < all_ for one, all_ in speeds):
        assert found["at_once"] == asked
    assert "one at a time" in in_words(found | {"arch": "x"}) or found["at_once"] == asked


def test_what_cannot_be_had_at_once_says_why() -> None:
    found = {**FASTER, "at_once": 1, "failed": "the GPU's memory is too small"}
    told = f"{ARCH}: 2 at once cannot be had (the GPU's memory is too small), so one at a time"
    assert in_words(found) == told
    assert found_in({"at_once": [found]}, ARCH, 2) == found
    assert found_in({"at_once": [found]}, ARCH, 3) is None and found_in({}, ARCH, 2) is None


def test_threads_are_shared() -> None:
    assert [shared(RunConfig(threads=threads), 3).threads for threads in (1, 2, 3, 8)] == [1, 1, 1, 2]


def test_rows_at_once_come_after_those_that_were_timed_alone() -> None:
    alone = Row(name="a", recipe="fast", science="a", num_params=5, epochs=8, tta="none")
    beside = Row(**vars(alone) | {"at_once": 4})
    plain = {"role": "figure", "crossing_s": None, "git": "aaa", "date": "2026-01-01", "curve": [[1.0, 0.9]]}
    runs = [
        {**plain, "row": vars(row), "seed": seed, "accuracy": 0.95, "seconds": seconds, "energy_j": energy}
        for row, seconds, energy in ((beside, 4.0, None), (alone, 9.0, 500.0))
        for seed in (0, 1)
    ]
    record = {
        "environment": {"device_name": "some GPU", "torch": "2", "threads": 1, "cuda": "13.0"},
        "settings": {"target": 0.94, "dataset": "CIFAR-10", "eval_every": 1},
        **{"command": "x", "energy": ENERGY, "rows": [vars(beside), vars(alone)], "runs": runs},
        **{"not_measured": [], "at_once": [{**FASTER, "asked": 4, "at_once": 4}]},
    }
    assert [(line.row, line.verdict) for line in standings(record)] == [
        (alone, "reaches"),
        (beside, "reaches"),
    ]
    page = to_markdown(record)
    assert "none is attributed to trainings that ran at once" in page
    assert "| a (fast), throughput, 4 at once |" in page and draw(record).startswith(b"\x89PNG")
