"""The torture's own bookkeeping; what it does to runs is in ``make torture``, of which CI does a short one."""

from __future__ import annotations

import multiprocessing.connection
from collections.abc import Iterator
from pathlib import Path
from random import Random

import pytest
import torture.__main__
from torture.__main__ import FAMILIES, main, plain, show, table
from torture.case import Case, NotHere, Outcome, Place, attempt
from torture.child import Done, start


def case(run: object, name: str = "x") -> Case:
    return Case(fault="fault", name=name, run=run)  # type: ignore[arg-type]


def test_a_case_draws_the_same_from_a_seed_and_its_name(tmp_path: Path) -> None:
    def drawn(name: str, seed: int) -> str:
        return attempt(case(lambda random, folder: str(random.random()), name), Place(tmp_path), seed).saw

    assert drawn("a", 1) == drawn("a", 1)
    assert len({drawn("a", 1), drawn("b", 1), drawn("a", 2)}) == 3


def test_nobody_else_reads_how_a_process_ended(tmp_path: Path) -> None:
    """A start in another thread did, now and then: what had exited with 2 was then said to have exited with 255."""
    processes = [start("archs", "nosuch", cwd=tmp_path) for _ in range(3)]
    for running in processes:
        multiprocessing.connection.wait([running.process.sentinel])
    multiprocessing.process._cleanup()  # type: ignore[attr-defined]
    assert all(running.process._popen.returncode is None for running in processes)
    assert [running.wait().code for running in processes] == [2, 2, 2]


def test_what_comes_of_a_case(tmp_path: Path) -> None:
    def wrong(random: Random, folder: Path) -> str:
        (folder / "kept").touch()
        raise AssertionError("the bits\ndiffer")

    def absent(random: Random, folder: Path) -> str:
        raise NotHere("no such disk")

    def broken(random: Random, folder: Path) -> str:
        raise KeyError("x")

    outcomes = [attempt(case(run, "a b/c"), Place(tmp_path), 1) for run in (wrong, absent, broken)]
    assert [outcome.state for outcome in outcomes] == ["failed", "not here", "failed"]
    assert outcomes[0].saw.startswith("the bits differ [") and len(list(tmp_path.glob("*/kept"))) == 1
    assert "KeyError" in outcomes[2].saw and "test_torture.py" in outcomes[2].saw
    (row,) = table(outcomes)
    assert (row["times"], row["survived"], row["not_here"]) == (2, 0, 1)
    assert "fault" in show([row])


def test_no_case_is_begun_when_the_time_is_over(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def cases(place: Place, short: bool) -> Iterator[Case]:
        yield case(lambda random, folder: pytest.fail("it was begun"))

    monkeypatch.setattr(torture.__main__, "FAMILIES", {"x": cases})
    monkeypatch.setattr(torture.__main__, "LIMIT_S", -1.0)
    assert main(["--seed", "1"]) == 0
    said = capsys.readouterr().out.splitlines()
    assert (
        said[-1]
        == "0 faults in 0.0 min with seed 1: 0 survived, 0 failed; no time for 1, which --only would run"
    )


def test_names_are_unique_and_the_short_torture_is_part_of_the_whole(tmp_path: Path) -> None:
    whole, short = (
        [case.name for make in FAMILIES.values() for case in make(Place(tmp_path), brief)]
        for brief in (False, True)
    )
    assert len(set(whole)) == len(whole) and set(short) <= set(whole) and len(short) * 2 < len(whole)
    assert sum(name.startswith("kill ") for name in whole) == 50
    assert not list(tmp_path.iterdir()), "nothing is made before a case runs"


def test_lines_of_different_cases_are_told_as_one() -> None:
    one = "cannot write /tmp/torture-x/a-1/disk/runs/20260101-000000-n2-b1-c4-fast-abcdef/next.safetensors: full"
    other = (
        "cannot write /tmp/torture-y/b/disk/runs/20260102-111111-n2-b1-c4-fast-012345/next.safetensors: full"
    )
    assert plain(one) == plain(other) == "cannot write RUN/next.safetensors: full"
    assert plain("in use by another process (pid 12)") == "in use by another process (pid N)"


def test_one_line_is_one_line() -> None:
    line = "fastresnet: error: no"
    assert Done(2, "", f"packing: 1 of 2\n{line}\n").is_one_line
    for code, err in (
        (1, line),
        (2, ""),
        (2, f"Traceback (most recent call last):\n{line}"),
        (2, f"{line}\n{line}"),
    ):
        assert not Done(code, "", err).is_one_line
    assert Outcome(case=case(None), state="survived", saw="").state == "survived"
