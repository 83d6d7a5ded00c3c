"""A board's rows: what each is told by, and which runs of it are missing."""

from __future__ import annotations

import types
from pathlib import Path
from typing import Any

import pytest
from board_records import TINY, bench, read, record_of, refusal, row, run_of
from hypothesis import given
from hypothesis import strategies as st

from fastresnet.arch import get_arch
from fastresnet.assembly import open_data
from fastresnet.bench import board_run
from fastresnet.bench.asked import ask, asked_seeds, changed
from fastresnet.bench.board import Row
from fastresnet.bench.board_page import to_markdown
from fastresnet.cli.bench_time_to import contestants
from fastresnet.engine.listener import Listener
from fastresnet.errors import UserError
from fastresnet.recipe import Recipe, load_recipe
from fastresnet.run import RunConfig

pytestmark = pytest.mark.usefixtures("one_thread")


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
        f"n2-b1-c4, fast with batch_size=16, optimizer.lr={lr}, 1 epoch" for lr in ("0.05", "0.1")
    ]
    assert "| n2-b1-c4 (fast with batch_size=16, optimizer.lr=0.1) |" in out.with_suffix(".md").read_text()


def test_a_row_of_ours_is_told_by_its_network_and_the_reports_by_their_names(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What a name of ours stands for may change; the reports' networks are what they printed."""
    images: Any = types.SimpleNamespace(dataset=types.SimpleNamespace(num_classes=10, image_size=32))

    def sciences() -> list[str]:
        names = ("fastresnet8", "resnet8")
        return [contestants(name, "fast", "4", {}, [])[0].row(images).science for name in names]

    ours, theirs = sciences()
    monkeypatch.setattr(Recipe, "arch_spec", lambda recipe: get_arch("resnet10-1"))
    changed, same = sciences()
    assert changed != ours and same == theirs


def test_what_an_earlier_command_left_is_still_missing(data: Path, tmp_path: Path) -> None:
    out = tmp_path / "board.json"
    own = (*TINY[2:], "--data", data, "--out", out, "--epochs", "1")
    assert bench(*own, "--archs", "n2-b1-c4", "--runs", "2", "--minutes", "0").exit_code == 0
    other = bench(*own, "--archs", "n2-b1-c8", "--runs", "1")
    assert other.exit_code == 0, other.output
    (missing,) = read(out)["not_measured"]
    assert missing.startswith("n2-b1-c4, fast") and f"still missing of: {missing}" in other.output
    fewer = bench(*own, "--archs", "n2-b1-c4", "--runs", "1")  # which is now all that is asked of it
    assert fewer.exit_code == 0 and read(out)["not_measured"] == []


def test_a_peer_without_a_run_that_was_corrected_is_no_row_any_more(data: Path, tmp_path: Path) -> None:
    out = tmp_path / "board.json"
    own = (*TINY, "--data", data, "--out", out, "--epochs", "1", "--runs", "1", "--peer")
    assert bench(*own, "other=exit 3").exit_code
    done = bench(*own, """other=echo '{"accuracy": 0.6, "seconds": 1.5, "clock": "all"}'""")
    record = read(out)
    assert done.exit_code == 0 and record["not_measured"] == [] and record["failed"] == {}
    assert [each["name"] for each in record["rows"]] == ["n2-b1-c4", "other"]
    # One that has run stays, beside its successor.
    assert bench(*own, "other=exit 4").exit_code
    assert [each["name"] for each in read(out)["rows"]] == ["n2-b1-c4", "other", "other"]


def test_what_the_data_is_too_small_for_is_not_measured(data: Path) -> None:
    """The data was opened for another recipe, of smaller batches."""
    recipe = load_recipe("fast").with_overrides({"arch": "n2-b1-c4", "batch_size": 16})
    config = RunConfig(data=str(data), device="cpu", threads=1)
    opened = open_data(recipe, config, Listener())
    with pytest.raises(UserError, match="batch size 1000 exceeds the"):
        board_run.measure_run_s(recipe.with_overrides({"batch_size": 1000}), config, opened)


def test_a_length_that_is_named_twice_is_one_row() -> None:
    made = contestants("resnet8,resnet8", "fast", "4,4,2", {}, [])
    assert [each.recipe and each.recipe.epochs for each in made] == [4, 2]


def test_a_search_that_an_earlier_command_left_is_still_missing(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "board.json"
    own = (*TINY[2:], "--data", data, "--out", out)
    assert bench(*own, *TINY[:2], "--search", "--epochs", "4", "--runs", "2", "--minutes", "0").exit_code == 0
    other = bench(*own, "--archs", "n2-b1-c8", "--runs", "1", "--epochs", "1", "--against", "n2-b1-c4")
    assert other.exit_code == 0, other.output
    assert "Nothing is compared with n2-b1-c4 yet." in other.output
    (missing,) = read(out)["not_measured"]
    assert missing.startswith("n2-b1-c4, fast") and missing.endswith(", 4 epochs")
    (line,) = (line for line in to_markdown(read(out)).splitlines() if line.startswith("| n2-b1-c4 (fast"))
    assert [cell.strip() for cell in line.split("|")][3:8] == ["", "", "", "", "unmeasured"]
    shorter = bench(*own, *TINY[:2], "--search", "--epochs", "3", "--runs", "2", "--minutes", "0")
    assert shorter.exit_code == 0, shorter.output
    (missing,) = read(out)["not_measured"]  # what was asked for last
    assert missing.endswith(", 3 epochs")
    plain = bench(*own, *TINY[:2], "--epochs", "2", "--runs", "2", "--minutes", "0")  # not searched any more
    assert plain.exit_code == 0 and read(out)["sought"] == {}


def test_a_label_tells_what_a_change_changes() -> None:
    """`--set activation=none` leaves ReLU in `fast`, and a network of its own GELU."""
    changes = {"activation": "none", "tta": "none", "resize": "[]"}
    ours, plain = contestants("fastest,resnet8", "fast", None, changes, [])
    assert (ours.changes, plain.changes) == ("resize=[]", "activation=none")


def test_a_change_that_one_row_cannot_have_is_refused_by_its_name(data: Path, tmp_path: Path) -> None:
    """It read as if no recipe had the key."""
    own = ("--data", data, "--target", "0.5", "--out", tmp_path / "a.json", "--archs", "resnet8,fastest")
    wrong = refusal(bench(*own, "--set", "optimizer.other_lr=0.4"))
    assert wrong.startswith("fastest, by the recipe fastest: unknown key 'optimizer.other_lr'")
    wrong = refusal(bench(*own, "--set", "batch_size=16"))
    assert wrong.startswith("fastest, by the recipe fastest: resize.0.size is 24; it must be below")


@pytest.mark.parametrize(
    ("steps", "told"),
    [
        ([(3, 3)], None),
        ([(3, 3), (5, 5)], (3, [3])),
        ([(10, 3), (3, 3)], (10, [3])),  # until the bound was passed: as bad as runs that are added
        ([(10, 3), (3, 3), (10, 10)], None),  # stopped, and done to the end after all
        ([(10, 0), (3, 3)], None),  # nothing had been seen
        ([(10, 10), (3, 10)], None),  # all of those that were planned count
        ([(2, 2), (3, 3), (4, 4)], (2, [2, 3])),
        ([(2, 2), (4, 3), (3, 3)], (2, [2, 3])),
    ],
)
def test_a_number_of_runs_that_was_changed_when_some_were_seen_is_told(
    steps: list[tuple[int, int]], told: tuple[int, list[int]] | None
) -> None:
    """Each step asks for so many runs, and so many have been done when the next command comes."""
    one = row("a")
    record = record_of([], [one])
    for wanted, done in steps:
        for _ in range(2):  # each run that is kept asks again
            ask(record, one, range(wanted))
        record["runs"] = [run_of(one, seed, 0.9, 1.0) for seed in range(done)]
        ask(record, one, range(wanted))
    assert changed(record).get(one) == told and asked_seeds(record, one) == [*range(steps[-1][0])]


def test_a_row_may_have_turns_of_several_times() -> None:
    """Seeds from 1,000 on are turns beside a row that came late, planned by themselves."""
    one = row("a")
    record = record_of([run_of(one, seed, 0.9, 1.0) for seed in range(3)], [one])
    ask(record, one, range(3))
    ask(record, one, [*range(3), *range(1000, 1003)])
    assert not changed(record)
    record["runs"].append(run_of(one, 1000, 0.9, 1.0))
    ask(record, one, [*range(3), 1000, 1001])
    assert changed(record) == {one: (6, [4])}


@given(st.lists(st.tuples(st.integers(1, 6), st.integers(0, 6)), min_size=1, max_size=5))
def test_no_change_is_told_exactly_where_what_was_planned_is_what_counts(
    steps: list[tuple[int, int]],
) -> None:
    one = row("a")
    record = record_of([], [one])
    planned: set[int] = set()
    for wanted, more in steps:
        seen = {run["seed"] for run in record["runs"]}
        planned = planned if seen else set(range(wanted))
        ask(record, one, range(wanted))
        waiting = [seed for seed in range(wanted) if seed not in seen][:more]
        record["runs"] += [run_of(one, seed, 0.9, 1.0) for seed in waiting]
    will_be = {run["seed"] for run in record["runs"]} | set(range(steps[-1][0]))
    assert (one in changed(record)) == (will_be != planned)
