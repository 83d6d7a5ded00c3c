"""Peers on a board, and rows beside each other round by round."""

from __future__ import annotations

import json
import math
import re
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from board_records import STEPPED, TINY, bench, read, record_of, refusal, row, run_of

from fastresnet.bench import board_run
from fastresnet.bench.board import ENERGY
from fastresnet.bench.board_page import to_markdown
from fastresnet.bench.comparison import compare, find_row, welch
from fastresnet.bench.peers import Peer
from fastresnet.bench.record import publishable
from fastresnet.errors import UserError

FAR = 300.0


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize(
    ("command", "complaint"),
    [
        ("exit 3", "exited with 3: it said nothing"),
        ("echo oh no >&2; exit 1", "exited with 1: oh no"),
        ("echo no data here; exit 1", "exited with 1: no data here"),
        ("echo 94", "must print, last, one JSON line"),
        ('echo \'{"accuracy": 94, "seconds": 1, "clock": "x"}\'', "accuracy (0 to 1)"),
        ('echo \'{"accuracy": 0.94, "seconds": true, "clock": "x"}\'', "must print, last"),
        ("true", "it printed ''"),
        (f"echo '{'[' * 100_000}'", "must print, last"),
        ('echo \'{"accuracy": 0.94, "seconds": 1e400, "clock": "x"}\'', "must print, last"),
        ('echo \'{"accuracy": 0.94, "seconds": 1, "clock": " "}\'', "must print, last"),
        ('echo \'{"accuracy": 0.94, "seconds": 1, "clock": "x", "cpu_s": "2"}\'', "must print, last"),
        ('echo \'{"accuracy": 0.94, "seconds": 1, "clock": "x", "energy_j": 0}\'', "must print, last"),
        # half a character, which no file in UTF-8 holds
        ('printf \'%s\' \'{"accuracy": 0.9, "seconds": 1, "clock": "\\ud800"}\'', "must print, last"),
        ('printf \'%s\' \'{"accuracy": 0.9, "seconds": 1, "clock": "x", "tta": "\\udfff"}\'', "must print"),
    ],
)
def test_a_peer_that_does_not_answer_is_named(command: str, complaint: str) -> None:
    with pytest.raises(UserError) as refused:
        Peer.parse(f"other={command}").run(0)
    assert str(refused.value).startswith("--peer other ") and complaint in str(refused.value)


def test_a_peers_energy_is_its_own_line_s() -> None:
    """Read from the card it would be its whole process's, beside ours of the training alone."""
    line = '{"accuracy": 0.94, "seconds": 1, "clock": "x", "energy_j": 500}'
    run = Peer.parse(f"other=echo '{line}'").run(0)
    assert run["energy_j"] == 500
    other = row("other", recipe=None)
    record = record_of([run_of(other, 0, 0.94, 1) | run], [other], energy="NVML: no such card")
    page = to_markdown(record)
    assert "| 500 |" in page
    assert "Energy: what peers' own lines say; of ours none was read, NVML: no such card." in page
    ours = run_of(row("ours"), 0, 0.94, 1, energy_j=300.0)
    both = record_of([ours, run_of(other, 0, 0.94, 1) | run], [row("ours"), other], energy=ENERGY)
    assert f"Energy: {ENERGY}." in to_markdown(both)


def test_a_peers_name_stands_in_a_table() -> None:
    for name in ("a|b", "a\nb"):
        with pytest.raises(UserError, match=r"--peer has the name .*; take one without \| and line ends"):
            Peer.parse(f"{name}=true")


def run_apart(text: str, minutes: float | None = None) -> str:
    """Return what a peer's run is, done by another process, which is not waited for long."""
    code = (
        "from fastresnet.bench.peers import Peer\n"
        "from fastresnet.errors import UserError\n"
        f"try: print(Peer.parse({text!r}, {minutes}).run(0)['accuracy'])\n"
        "except UserError as error: print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=FAR)
    return done.stdout + done.stderr


def test_a_peer_is_not_waited_for_longer_than_it_runs() -> None:
    """What it leaves running has its output open still, and is ended with it."""
    line = '{"accuracy": 0.9, "seconds": 1, "clock": "x"}'
    assert run_apart(f"other=sleep 100000 & echo '{line}'") == "0.9\n"


def test_a_peer_that_takes_too_long_is_ended() -> None:
    told = run_apart("other=sleep 100000", 0.005)
    assert "was ended after 0.005 minutes, which is --peer-minutes" in told


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
    assert "| later, fast, 8 epochs |  | no rounds in turn |  | " in page
    assert "Against theirs, of which a ratio below 1 is faster:" in page
    assert "| ours, fast, 8 epochs | 2 | 1.000 (" in page and "| +2.50 ± " in page
    del runs[0]["cpu_s"]
    assert compare(record, theirs)[0].cpu_s is None and "(of 3 runs)" in to_markdown(record)
    packed = [run | {"row": vars(row("ours", at_once=2))} for run in runs if run["row"]["name"] == "ours"]
    beside = record_of([*packed, *runs[1:3]], [row("ours", at_once=2), theirs])
    assert compare(beside, theirs)[0].rounds == 0  # whose seconds are no latency
    twice = record_of(runs, [ours, row("ours", epochs=9)])
    assert find_row(twice, "ours") == ours
    twice["runs"] = [*runs, run_of(row("ours", epochs=9), 0, 0.9, 1)]
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
    assert re.search(r"1 epoch \| 2 \| [\d.]+ \([\d.]+ to [\d.]+\) \| [\d.]+ \([\d.]+ to", done.output)
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


def test_what_a_peer_says_in_words_stands_in_one_paragraph() -> None:
    line = '{"accuracy": 0.9, "seconds": 1, "clock": "all\\n\\nof  it", "changes": "| none"}'
    run = Peer.parse(f"other=printf '%s' '{line}'").run(0)
    assert (run["clock"], run["changes"]) == ("all of it", "| none")


def test_a_peer_that_became_another_is_another_row(data: Path, tmp_path: Path) -> None:
    script, out = tmp_path / "run.sh", tmp_path / "board.json"
    own = (*TINY, "--data", data, "--out", out, "--epochs", "1", "--peer", f"other=sh {script}")

    def answers(commit: str) -> None:
        line = f'{{"accuracy": 0.6, "seconds": 1.5, "clock": "all", "commit": "{commit}"}}'
        script.write_text(f"echo '{line}'")

    answers("aaa")
    assert bench(*own, "--runs", "1").exit_code == 0
    answers("bbb")
    told = refusal(bench(*own, "--runs", "2"))
    assert (
        "other, run 2: its commit is 'bbb' and was 'aaa' in its earlier runs; give --peer another name"
        in told
    )
    assert [run.get("commit") for run in read(out)["runs"]] == [None, "aaa", None]
    named = (*own[:-1], f"newer=sh {script}", "--runs", "2")
    assert bench(*named).exit_code == 0


def test_a_peer_waits_for_a_search_and_then_takes_turns(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Trainings are replaced by their arithmetic: from 2 epochs on the target is reached."""

    def outcome(result: tuple[int, int]) -> dict[str, object]:
        epochs, seed = result
        reached = (0.95 if epochs >= 2 else 0.4) + 0.001 * (seed % 2)
        return {"accuracy": reached, "seconds": 1.0, "crossing_s": None, "clocks": {}, "curve": []} | {
            "machine": STEPPED
        }

    monkeypatch.setattr(board_run, "train", lambda recipe, config, **_: (recipe.epochs, config.seed))
    monkeypatch.setattr(board_run, "outcome", outcome)
    out = tmp_path / "board.json"
    peer = 'other=echo \'{"accuracy": 0.6, "seconds": 1.5, "clock": "all"}\''
    own = (*TINY, "--data", data, "--out", out, "--peer", peer, "--against", "other")
    done = bench(*own, "--search", "--epochs", "4", "--runs", "3")
    assert done.exit_code == 0, done.output
    record = read(out)
    order = [(run["role"], run["row"]["epochs"]) for run in record["runs"]]
    assert order[:-6] == [("search", epochs) for epochs in (4, 4, 2, 2, 1, 1)]
    # every other time in reverse, so that a drift favours neither
    there = [("figure", 2), ("figure", None)]
    assert order[-6:] == [*there, *there[::-1], *there]
    other = find_row(record, "other")
    assert other is not None
    (found,) = compare(record, other)
    assert found.rounds == 3

    # Had fresh seeds not borne that out, the next found would have as many rounds of its own.
    for run in record["runs"]:
        run["accuracy"] -= 0.5 * (run["role"] == "figure" and run["row"]["epochs"] == 2)
    out.write_text(json.dumps(record))
    done = bench(*own, "--search", "--epochs", "4", "--runs", "3")
    assert done.exit_code == 0, done.output
    record = read(out)
    later = [(run["row"]["epochs"], run["seed"]) for run in record["runs"][len(order) :]]
    fresh = [(3, 1000), (None, 1000), (None, 1001), (3, 1001), (3, 1002), (None, 1002)]
    assert later == [(3, 1_000_000), (3, 1_000_001), *fresh]
    assert bench(*own, "--search", "--epochs", "4", "--runs", "3").exit_code == 0
    assert len(read(out)["runs"]) == len(record["runs"])  # complete
    refuted, found = compare(record, other)
    assert [(each.row.epochs, each.rounds) for each in (refuted, found)] == [(2, 3), (3, 3)]
    assert record["not_measured"] == []


@pytest.fixture
def untrained(monkeypatch: pytest.MonkeyPatch) -> None:
    """Trainings end at once, all alike."""
    monkeypatch.setattr(board_run, "train", lambda recipe, config, **_: None)
    ended = {
        "accuracy": 0.9,
        "seconds": 1.0,
        "crossing_s": None,
        "clocks": {},
        "curve": [],
        "machine": STEPPED,
    }
    monkeypatch.setattr(board_run, "outcome", lambda result: dict(ended))


@pytest.mark.usefixtures("untrained")
def test_a_row_that_comes_later_takes_turns_with_the_one_it_is_compared_with(
    data: Path, tmp_path: Path
) -> None:
    out = tmp_path / "board.json"
    peer = 'other=echo \'{"accuracy": 0.6, "seconds": 1.5, "clock": "all"}\''
    own = (*TINY[2:], "--data", data, "--out", out, "--peer", peer, "--against", "other", "--epochs")

    def rounds() -> list[tuple[str, int | None, int]]:
        record = read(out)
        other = find_row(record, "other")
        assert other is not None and record["not_measured"] == []
        return [(each.row.name, each.row.epochs, each.rounds) for each in compare(record, other)]

    def seeds(name: str) -> list[int]:
        return sorted(run["seed"] for run in read(out)["runs"] if run["row"]["name"] == name)

    assert bench(*own, "1", "--archs", "n2-b1-c4", "--runs", "2").exit_code == 0
    # a later row, and more runs than the first had
    assert bench(*own, "1,2", "--archs", "n2-b1-c8", "--runs", "3").exit_code == 0
    assert rounds() == [("n2-b1-c4", 1, 2), ("n2-b1-c8", 1, 3), ("n2-b1-c8", 2, 3)]
    assert seeds("other") == [0, 1, 1000, 1001, 1002]
    assert bench(*own, "1", "--archs", "n2-b1-c4", "--runs", "4").exit_code == 0
    assert rounds()[0] == ("n2-b1-c4", 1, 4) and seeds("other")[:4] == [0, 1, 2, 3]
    # what others are compared with comes late itself
    late = [each if each != peer else peer.replace("other=", "late=") for each in own]
    late[late.index("other")] = "late"
    assert bench(*late, "1", "--archs", "n2-b1-c4", "--runs", "2").exit_code == 0
    assert seeds("late") == [1000, 1001] and seeds("n2-b1-c4") == [0, 1, 2, 3, 1000, 1001]


@pytest.mark.usefixtures("untrained")
def test_a_row_that_lags_catches_up_before_others_go_on(data: Path, tmp_path: Path) -> None:
    out = tmp_path / "board.json"
    own = (*TINY[2:], "--data", data, "--out", out, "--epochs", "1", "--archs")
    assert bench(*own, "n2-b1-c4", "--runs", "2").exit_code == 0
    assert bench(*own, "n2-b1-c4,n2-b1-c8", "--runs", "3").exit_code == 0
    order = [(run["row"]["name"][-1], run["seed"]) for run in read(out)["runs"]]
    assert order == [("4", 0), ("4", 1), ("8", 0), ("8", 1), ("4", 2), ("8", 2)]


def test_a_peer_ends_with_a_board_that_is_killed(tmp_path: Path) -> None:
    """And what it has started with it, so that the next board does not run beside them."""
    pids = tmp_path / "pids"
    command = f"sleep 100000 & echo $! >{pids}; echo $$ >>{pids}; wait"
    board = subprocess.Popen(
        [
            sys.executable,
            "-c",
            f"from fastresnet.bench.peers import Peer; Peer.parse({'x=' + command!r}).run(0)",
        ]
    )
    try:
        started = time.monotonic()
        while not (pids.exists() and len(pids.read_text().split()) == 2):
            assert board.poll() is None and time.monotonic() - started < FAR
            time.sleep(0.05)
    finally:
        board.kill()
        board.wait()
    running = [int(text) for text in pids.read_text().split()]
    while any(map(psutil.pid_exists, running)):
        assert time.monotonic() - started < FAR
        time.sleep(0.05)


def test_two_rows_take_turns_though_others_ran_between() -> None:
    ours, theirs, between = row("ours"), row("theirs", recipe=None, epochs=None), row("between")
    runs = [
        run_of(ours, 0, 0.9, 20, started="2026-01-01T00:00:00+00:00"),
        run_of(between, 0, 0.9, 300, started="2026-01-01T00:00:25+00:00"),
        run_of(theirs, 0, 0.9, 10, started="2026-01-01T00:05:30+00:00"),
    ]
    rows = [ours, between, theirs]
    rounds = {each.row.name: each.rounds for each in compare(record_of(runs, rows), theirs)}
    assert rounds == {"ours": 1, "between": 1}
    elsewhere = [*runs[:2], {**runs[2], "cpu": "another processor beside the GPU"}]
    rounds = {each.row.name: each.rounds for each in compare(record_of(elsewhere, rows), theirs)}
    assert rounds == {"ours": 0, "between": 0}
    later = [*runs[:2], {**runs[2], "started": "2026-01-01T00:09:00+00:00"}]
    rounds = {each.row.name: each.rounds for each in compare(record_of(later, rows), theirs)}
    assert rounds == {"ours": 0, "between": 1}


def test_a_peer_that_ends_alike_every_time_is_told(data: Path, tmp_path: Path) -> None:
    """A command without its seed is one measurement repeated: its interval was of no width, and its verdict sure."""
    line = '{"accuracy": 0.95, "seconds": 1.5, "clock": "all"}'
    own = (*TINY, "--epochs", "1", "--data", data, "--out", tmp_path / "board.json", "--runs", "2")
    done = bench(
        *own, "--peer", f"same=echo '{line}'", "--peer", f"other=echo '{line.replace('5,', '{seed},', 1)}'"
    )
    assert done.exit_code == 0, done.output
    assert "note: --peer same has no {seed}: its runs should differ by themselves" in done.output
    assert "--peer other has no" not in done.output
    assert "All runs of same ended with one accuracy. Unless each drew otherwise" in done.stdout
