"""What ``bench time-to`` refuses in one line before anything runs: damaged records, options that do not fit."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from board_records import TINY, bench, read, refusal, run_of

from fastresnet.bench.board import row_of

pytestmark = pytest.mark.usefixtures("one_thread")


def begun(data: Path, folder: Path) -> tuple[tuple[str | Path, ...], Path, dict[str, Any]]:
    """Return the command of a board without runs, its record's file, and what that holds."""
    out = folder / "board.json"
    own = (*TINY, "--data", data, "--out", out, "--minutes", "0")
    assert bench(*own).exit_code == 0
    return own, out, read(out)


def test_a_damaged_record_is_refused_in_one_line(data: Path, tmp_path: Path) -> None:
    own, out, record = begun(data, tmp_path)
    run = run_of(row_of({"row": record["rows"][0]}), 0, 0.5, 1.0)
    damages: list[dict[str, Any]] = [
        {"settings": []},
        {"environment": None},
        {"rows": [{"name": "a"}]},
        {"runs": 3},
        {"runs": [run | {"curve": "abc"}]},
        {"runs": [run | {"role": "x"}]},
        {"runs": [run | {"accuracy": 94.0}]},
        {"runs": [run | {"seconds": -1.0}]},
        {"runs": [run | {"started": "today"}]},
        {"asked": [{"row": record["rows"][0], "seeds": "abc"}]},
        {"asked": [{"row": {"name": "a"}, "seeds": []}]},
    ]
    for wrong in damages:
        out.write_text(json.dumps(record | wrong))
        assert str(out) in refusal(bench(*own)), wrong
        assert str(out) in refusal(bench("--show", out)), wrong
    assert "is damaged, or of an earlier form" in refusal(bench(*own))


def test_a_run_whose_steps_are_not_known_is_shown_and_not_gone_on_with(data: Path, tmp_path: Path) -> None:
    """Its row's others would do theirs as it did."""
    own, out, record = begun(data, tmp_path)
    run = run_of(row_of({"row": record["rows"][0]}), 0, 0.5, 1.0)
    run["machine"] = {key: value for key, value in run["machine"].items() if key != "convs"}
    out.write_text(json.dumps(record | {"runs": [run]}))
    assert "the figure run of seed 0 of n2-b1-c4, " in refusal(bench(*own))
    assert "does not say its convs; choose another --out" in refusal(bench(*own))
    shown = bench("--show", out)
    assert shown.exit_code == 0, shown.output


def test_a_seed_counts_once(data: Path, tmp_path: Path) -> None:
    """Records of two days, put together by hand, had a run twice, which made the interval narrower."""
    own, out, record = begun(data, tmp_path)
    run = run_of(row_of({"row": record["rows"][0]}), 3, 0.5, 1.0)
    for runs, twice in (([run], False), ([run, run | {"role": "search"}], False), ([run, run], True)):
        out.write_text(json.dumps(record | {"runs": runs}))
        for arguments in (own, ("--show", out)):
            done = bench(*arguments)
            assert (done.exit_code != 0) == twice, done.output
            if twice:
                assert "has the figure run of seed 3 of n2-b1-c4, fast" in refusal(done)
                assert "more than once; take the others out" in refusal(done)


def test_what_is_of_a_measurement_has_no_place_beside_a_record_that_is_shown(
    data: Path, tmp_path: Path
) -> None:
    """It was left unused without a word, as if the record were of the target that was typed."""
    _, out, _ = begun(data, tmp_path)
    told = "is of a measurement, and --show measures nothing; leave one of them out"
    for unused in ("--target", "0.9"), ("--search",), ("--data", data), ("--runs", "10"):
        assert refusal(bench("--show", out, *unused)) == f"{unused[0]} {told}"
    assert bench("--show", out, "--against", "", "--plot", tmp_path / "a.png").exit_code == 0


def test_what_a_killed_board_left_half_written_goes(data: Path, tmp_path: Path) -> None:
    out = tmp_path / "board [1].json"
    left = [tmp_path / f".board [1]{suffix}.123.tmp" for suffix in (".json", ".md", ".png")]
    others = [tmp_path / ".board 1.json.123.tmp", tmp_path / ".board [1].json.notes"]
    for path in left + others:
        path.touch()
    assert bench(*TINY, "--data", data, "--out", out, "--minutes", "0").exit_code == 0
    assert not any(path.exists() for path in left) and all(path.exists() for path in others)


def test_mistakes_on_the_command_line_are_found_before_anything_runs() -> None:
    assert "unknown architecture 'resnet25'" in refusal(bench("--archs", "resnet25"))
    unknown = refusal(bench("--target", "0.9", "--archs", "fastes"))
    assert unknown.endswith("; did you mean the recipe 'fastest'?")
    nearer = refusal(bench("--target", "0.9", "--archs", "resnet2"))
    assert "did you mean 'resnet12'?" in nearer and nearer.count("did you mean") == 1
    assert "`fastresnet archs` lists" in refusal(bench("--target", "0.9", "--archs", "xqz"))
    assert "--epochs is '1,x'" in refusal(bench("--epochs", "1,x", "--archs", "resnet8"))
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


def test_what_a_row_cannot_be_is_found_whichever_comes_first(data: Path, tmp_path: Path) -> None:
    own = ("--data", data, "--target", "0.5", "--out", tmp_path / "board.json", "--device", "cpu")
    told = refusal(bench(*own, "--archs", "fastest,n2-b1-c4", "--set", "batch_size=1000"))
    first = refusal(bench(*own, "--archs", "n2-b1-c4,fastest", "--set", "batch_size=1000"))
    assert "batch size 1000 exceeds the" in told and "batch size 1000 exceeds the" in first
    assert not (tmp_path / "board.json").exists()


def test_fresh_seeds_are_of_one_turn() -> None:
    """Seeds from 1,000 on are those of a row's next turns."""
    assert "together they may be 1,000 at most" in refusal(
        bench(*TINY, "--first-seed", "995", "--runs", "10")
    )
