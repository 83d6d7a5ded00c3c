"""``fastresnet bench time-to``: the board, killed and gone on with, mixed with nothing, on networks of a second."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from board_records import STEPPED, TINY, bench, read, refusal
from tiny_runs import write_tiny

from fastresnet.arch import get_arch
from fastresnet.bench import board_estimate, board_fill, board_run, time_to_accuracy
from fastresnet.bench.board import check_target, resolve_target, standings
from fastresnet.bench.board_page import to_markdown
from fastresnet.bench.contestants import default_names
from fastresnet.bench.seeds import SEARCH_SEEDS
from fastresnet.catalogue import BUDGET
from fastresnet.engine.warmup import ALIKE_ON_GPU
from fastresnet.errors import UserError
from fastresnet.recipe import Recipe
from fastresnet.run import RunConfig, RunResult
from fastresnet.training import train

FAR = 300.0
SETTLED = ("--kernels", "eager", "--convs", "direct", "--graphs", "off")  # beside --compile off
BOARD = Path("bench-results") / "time-to-tiny-0.5-from-seed-7.json"


pytestmark = pytest.mark.usefixtures("one_thread")


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
    assert "one run: proves nothing" in first.output and "ended: one failed" not in first.output
    assert "fixed beforehand. Seconds" in first.output and "was changed once" not in first.output
    before = read(out)["runs"]
    done = bench(*own, "--runs", "2")
    assert done.exit_code == 0, done.output
    assert "fixed beforehand, but for those told below. Seconds" in done.output
    assert "optimizer.lr=0.05, 1 epoch (1 planned, changed after 1); n2-b1-c4, fast" in done.output
    record = read(out)
    assert record["runs"][:3] == before  # what was run stays, in the order it was run in
    assert [(run["row"]["epochs"], run["seed"]) for run in record["runs"]] == [
        *((1, 0), (2, 0), (None, 0)),
        *((None, 1), (2, 1), (1, 1)),  # every other time in reverse
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


def test_fresh_seeds_are_a_board_of_their_own(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    peer = 'other=echo \'{"accuracy": 0.5, "seconds": 1.5, "clock": "all of seed {seed}"}\''
    own = (*TINY, "--data", data, "--epochs", "1", "--runs", "2", "--peer", peer, "--peer-minutes", "1")
    done = bench(*own, "--first-seed", "7")
    assert done.exit_code == 1 and "its clock is 'all of seed 8' and was 'all of seed 7'" in done.output
    record = read(BOARD)
    assert [run["seed"] for run in record["runs"] if run["row"]["recipe"] == "fast"] == [7, 8]
    assert next(run["clock"] for run in record["runs"] if run["row"]["recipe"] is None) == "all of seed 7"
    # In the record of those that chose they would be averaged with them; nor do others come into theirs.
    chose = tmp_path / "bench-results" / "chose.json"
    ours = (*own[: own.index("--peer")], "--out", chose)
    for arguments, asked, there in ((ours, 0, 0), (ours, 7, 0), ((*ours[:-1], BOARD), 0, 7)):
        done = bench(*arguments, "--first-seed", str(asked))
        if asked == there:
            assert done.exit_code == 0, done.output
        else:
            said = f"--first-seed is {asked}, and the runs in {arguments[-1]} have seeds from {there} on"
            assert said in refusal(done) and f"give --first-seed {there} or another --out" in refusal(done)


@pytest.mark.parametrize(("device", "alike"), [("cpu", 2), ("cuda", ALIKE_ON_GPU)])
def test_a_rows_first_run_finds_the_way_and_the_others_take_it(
    device: str, alike: int, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two rows, of which each has a way of its own; on a GPU it is looked for however short they are."""
    chosen = SimpleNamespace(device=torch.device(device))
    monkeypatch.setattr(time_to_accuracy, "choose_machine", lambda config: chosen)
    asked, loaders, out = [], [], tmp_path / "board.json"

    def trained(recipe: Recipe, config: RunConfig, **options: Any) -> RunResult:
        asked.append((recipe.epochs, config.seed, config.convs, config.alike))
        loaders.append(config.loader)
        result = train(recipe, config, **options)
        found = {"convs": "winograd" if recipe.epochs == 1 else "direct"}
        found |= {"loader": "torch"} if len(loaders) == 1 else {}
        return result.model_copy(update={"config": result.config.model_copy(update=found)})

    monkeypatch.setattr(board_run, "train", trained)
    arguments = (*TINY, "--data", data, "--out", out, "--epochs", "1,2", "--archs", "n2-b1-c16")
    assert bench(*arguments, "--runs", "2").exit_code == 0
    assert asked == [(1, 0, "auto", alike), (2, 0, "auto", alike), (2, 1, "direct", 1), (1, 1, "winograd", 1)]
    assert bench(*arguments, "--runs", "3").exit_code == 0
    assert asked[4:] == [(1, 2, "winograd", 1), (2, 2, "direct", 1)]
    # What memory is free decides the loader, and may be other memory in a later run of the row.
    assert loaders == ["auto", "auto", "numba", "torch", "torch", "numba"]


@pytest.mark.parametrize(
    ("device", "given", "waits"), [("cpu", (), True), ("cpu", SETTLED, False), ("cuda", SETTLED, True)]
)
def test_of_runs_at_once_a_rows_others_wait_for_its_first(
    device: str,
    given: tuple[str, ...],
    waits: bool,
    data: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Trainers are replaced by ones that answer when there is nothing more to begin.

    Where the way is given, a GPU's first run still chooses the loader, by the memory that is free.
    """
    monkeypatch.setattr(board_fill, "resolve_machine", lambda config: (config, torch.device(device)))
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
                "machine": STEPPED | {"convs": "winograd" if recipe.epochs == 1 else "direct"},
            }

    @contextmanager
    def crew(most: int, runs_dir: Path) -> Iterator[Any]:
        yield Told  # always one more

    def answers(busy: list[Told]) -> Iterator[Any]:
        asked.append((0, 0, "answered"))
        yield from [(trainer, "done", trainer.found) for trainer in busy]

    monkeypatch.setattr(board_fill, "crew", crew)
    monkeypatch.setattr(board_fill, "answers", answers)
    monkeypatch.setattr(
        time_to_accuracy,
        "settle",
        lambda recipe, *_: (
            {"arch": recipe.arch, "asked": 2, "at_once": 2, "ratio": 0.5, "failed": None}
            | {"alone_images_per_s": [1.0], "together_images_per_s": [2.0]}
        ),
    )
    out = tmp_path / "board.json"
    own = (*TINY, *given, "--data", data, "--out", out, "--epochs", "1,2", "--runs", "3", "--parallel", "2")
    done = bench(*own)
    assert done.exit_code == 0, done.output
    first = "direct" if given else "auto"
    firsts = [(1, 0, first), (2, 0, first)]
    if waits:
        others = [(2, 1, "direct"), (1, 1, "winograd"), (1, 2, "winograd"), (2, 2, "direct")]
        assert asked == [*firsts, (0, 0, "answered"), *others, (0, 0, "answered")]
    else:
        assert sorted(asked[:-1]) == [(epochs, seed, first) for epochs in (1, 2) for seed in range(3)]
        assert asked[-1] == (0, 0, "answered")


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
        return {**reached, "clocks": {}, "curve": [], "machine": STEPPED}

    alike: dict[tuple[int, int], int] = {}

    def train(recipe: Recipe, config: RunConfig, **options: Any) -> tuple[int, int]:
        alike[recipe.epochs, config.seed] = config.alike
        return recipe.epochs, config.seed

    monkeypatch.setattr(board_run, "train", train)
    monkeypatch.setattr(board_run, "outcome", outcome)
    chosen = SimpleNamespace(device=torch.device("cuda"))
    monkeypatch.setattr(time_to_accuracy, "choose_machine", lambda config: chosen)
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
    searched = [epochs for epochs, seed in trained if seed >= SEARCH_SEEDS]
    assert searched == [12, 12, 6, 6, 3, 3, 4, 4, 5, 5]
    assert trained[len(searched) :] == [(5, 0), (5, 1), (5, 2)]
    # On a GPU every way of doing the steps is measured for the figure, not for what is tried on the way to it.
    assert [alike[each] for each in trained[len(searched) :]] == [ALIKE_ON_GPU, 1, 1]
    assert {alike[epochs, seed] for epochs, seed in trained[: len(searched)]} == {3, 1}
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
    told, lost = refusal(done), "fast with batch_size=16, optimizer.lr=1e30, 1 epoch"
    assert told.startswith(f"not all could be measured: n2-b1-c4, {lost}, run 1: the loss is not finite")
    assert f"bad, run 2: --peer bad exited with 4: no luck; {out} keeps the rest" in told
    record = read(out)
    assert [(run["row"]["name"], run["seed"]) for run in record["runs"]] == [
        *(("good", 0), ("bad", 0), ("good", 1), ("good", 2))
    ]
    assert set(record["failed"]) == {f"n2-b1-c4, {lost}", "bad"} and record["not_measured"] == []
    assert "Failed when last tried: bad, run 2: --peer bad exited with 4: no luck." in done.output


def test_a_long_board_says_so_before_it_starts(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(board_estimate, "measure_run_s", lambda recipe, config, data: 400.0)
    monkeypatch.setattr(board_fill, "fill", lambda *_: None)
    own = (*TINY, "--data", data, "--out", tmp_path / "board.json", "--peer", "other=true")
    long = bench(*own, "--runs", "2")
    assert long.exit_code == 0
    assert "this will take about 13 min 20 s (2 runs, beside 1 row of unknown time)" in long.output
    short = bench(*own, "--runs", "1").output  # but who knows of the other row
    assert "this will take about 6 min 40 s (1 run, beside 1 row of unknown time)" in short
    assert "will take" not in bench(*own[:-2], "--runs", "1").output
    searched = bench(*own, "--search", "--epochs", "8", "--runs", "4")  # of 4 bits
    assert "about 40 min 00 s (12 runs" in searched.output  # 8 to search with and 4, of half the length
    # On a GPU each row's first run compiles every way of its steps, which no step that is measured tells.
    chosen = SimpleNamespace(device=torch.device("cuda"))
    monkeypatch.setattr(time_to_accuracy, "choose_machine", lambda config: chosen)
    compiled = bench(*own[:-2], "--runs", "1").output
    assert "6 min 40 s (1 run); compiling comes on top, once for each of 1 row; it may be" in compiled
    assert "will take" not in bench(*own[:-2], "--runs", "1", *SETTLED).output


def test_a_row_that_lacks_memory_stops_no_board_before_it_starts(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What measures how long it takes was not told from a fault of ours."""

    held: list[weakref.ref[Any]] = []

    def lacking(*_: Any, **__: Any) -> Any:
        network = torch.nn.Linear(1, 1)
        held.append(weakref.ref(network))
        reason = "[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory"
        try:
            raise RuntimeError(reason)
        except RuntimeError as error:
            if len(held) > 1:
                raise UserError(reason) from error  # as a training does
            raise

    freed = []
    monkeypatch.setattr(board_run, "warm_up_step", lacking)
    monkeypatch.setattr(board_run, "train", lacking)
    monkeypatch.setattr(board_run, "free_memory", lambda: freed.append([each() for each in held]))
    done = bench(*TINY, "--data", data, "--out", tmp_path / "board.json", "--runs", "1")
    assert "how long this will take is not known yet (1 row)" in done.output
    assert "not all could be measured" in refusal(done) and "can't allocate memory" in refusal(done)
    # What they held would have been missing to the next run's loader.
    assert freed == [[None], [None, None]]


def test_a_board_that_is_given_minutes_spends_none_on_how_long_it_takes(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each start measured every arch before its first run, so that a start of a few minutes never came to one."""

    def measured(*_: Any) -> float:
        raise AssertionError("it was measured")

    monkeypatch.setattr(board_estimate, "measure_run_s", measured)
    own = (*TINY, "--data", data, "--out", tmp_path / "board.json", "--epochs", "1", "--runs", "1")
    done = bench(*own, "--minutes", "60")
    assert done.exit_code == 0, done.output
    assert "how long this will take is not known yet (1 row); it may be stopped at any" in done.output
    assert len(read(tmp_path / "board.json")["runs"]) == 1
    known = bench(*own[:-1], "2", "--minutes", "60")  # by the first
    assert known.exit_code == 0 and "this will take" not in known.output
