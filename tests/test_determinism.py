"""``fastresnet doctor --determinism``: what its comparisons find, and what it says of them."""

from __future__ import annotations

import itertools
import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import typer
from typer.testing import CliRunner

from fastresnet import determinism
from fastresnet.assembly import choose_machine
from fastresnet.cli import doctor
from fastresnet.determinism import Verdict, _tensors, _verdict, examine_determinism
from fastresnet.kernels.team import team_obstacle
from fastresnet.run import RunConfig

STATE = {
    "model": {"w": torch.ones(3)},
    "sums": torch.zeros(2),
    "step": 4,
    "clocks": {"train_s": 1.0},
    "segment": 0,
}


def test_runs_of_one_seed_and_resumed_ones_are_the_same_here(cache: Path) -> None:
    """The first verdicts on a CPU: the promises that a run's record rests on."""
    before = torch.get_num_threads()
    first = list(itertools.islice(examine_determinism("cpu"), 3))
    torch.set_num_threads(before)
    assert [(verdict.promised, verdict.held) for verdict in first] == [(True, "exact")] * 3, first
    assert ("generated code" in first[2].what) == (team_obstacle() is None)
    assert os.environ["FASTRESNET_CACHE"] == str(cache) and not cache.exists()


@pytest.mark.parametrize("given", [None, "/a/place/of/its/own"])
def test_no_variable_is_left_pointing_into_the_removed_folder(
    given: str | None, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = ("TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR")
    for name in names:
        monkeypatch.delenv(name, raising=False)
        if given is not None:
            monkeypatch.setenv(name, given)
    with determinism._own_folder() as folder:
        choose_machine(RunConfig(device="cpu", threads=torch.get_num_threads()))
        assert os.environ[names[0]] == (given or str(folder / "cache" / "inductor"))
        os.environ[names[1]] = os.environ[names[0]] + "/triton"  # as Inductor does on a GPU
    assert [os.environ.get(name) for name in names] == [given, given]
    assert os.environ["FASTRESNET_CACHE"] == str(cache)


def test_states_differ_in_weights_but_not_in_clocks() -> None:
    same = _tensors(STATE | {"clocks": {"train_s": 2.0}, "segment": 1})
    assert _verdict("x", True, _tensors(STATE), same).held == "exact"
    moved = _tensors(STATE | {"model": {"w": torch.tensor([1.0, 1.0, 1.5])}})
    within = _verdict("x", True, _tensors(STATE), moved)
    assert (within.held, within.is_broken) == ("within", True)
    assert within.found == "weights differ by 0.5 at most, 0.5 of the largest"
    assert not _verdict("x", False, _tensors(STATE), moved).is_broken
    other = _tensors({**STATE, "ema": {"w": torch.ones(1)}})
    assert _verdict("x", False, _tensors(STATE), other).is_broken


@pytest.mark.parametrize(
    ("held", "code", "says"), [("exact", 0, "exact"), ("within", 1, "BROKEN"), ("not run", 0, "--")]
)
def test_a_broken_promise_is_an_exit_status(
    held: str, code: int, says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def verdicts(**_: object) -> Iterator[Verdict]:
        yield Verdict(what="same seed twice", promised=held != "not run", held=held, found="something")

    monkeypatch.setattr(determinism, "examine_determinism", verdicts)
    app = typer.Typer()
    app.command()(doctor.doctor)
    shown = CliRunner().invoke(app, ["--determinism"])
    assert shown.exit_code == code
    (line,) = (line for line in shown.stdout.splitlines() if "same seed twice" in line)
    assert line.startswith(says) and ("promised" in line) == (held != "not run")
    as_json = CliRunner().invoke(app, ["--determinism", "--json"])
    assert as_json.exit_code == code and json.loads(as_json.stdout)[0]["broken"] == bool(code)
