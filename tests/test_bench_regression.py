"""The regression gate: what is slower is named, what only looked so is not, on any machine."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fastresnet.bench.regression import gate
from fastresnet.bench.regression.__main__ import main
from fastresnet.bench.regression.gate import (
    Line,
    Measured,
    Part,
    compare,
    culprits,
    read_ratios,
    read_skipped,
    run_benchmarks,
)
from fastresnet.errors import UserError
from fastresnet.kernels.team import team_obstacle

ratios = st.dictionaries(st.sampled_from("abcdef"), st.floats(0.01, 100))


@given(ratios, ratios, st.floats(1, 10))
def test_what_is_slower_is_named_and_nothing_else(
    then: dict[str, float], now: dict[str, float], slower: float
) -> None:
    lines = compare({name: Part(ratio, 1.0) for name, ratio in then.items()}, Measured(now, {}))
    assert {line.name for line in lines} == then.keys() | now.keys() and len(lines) == len({*then, *now})
    named = {line.name for line in culprits(lines, slower)}
    assert named == {name for name in then.keys() & now.keys() if now[name] / then[name] > slower}
    times = [line.times for line in lines if line.times is not None]
    assert times == sorted(times, reverse=True)


@pytest.fixture
def baseline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A baseline of three parts, of two passes that differ."""
    passes = iter([{"step": 3.0, "save": 1.0, "gone": 3.0}, {"step": 3.2, "save": 1.0, "gone": 3.0}])
    monkeypatch.setattr(gate, "run_benchmarks", lambda selected: Measured(next(passes), {}))
    path = tmp_path / "base.json"
    assert main(["save", "--baseline", str(path), "--passes", "2"]) == 0
    parts = json.loads(path.read_text())["parts"]
    assert parts["step"] == {"passes": [3.0, 3.2]}
    return path


def test_a_slower_part_fails_and_is_named(
    baseline: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked: list[list[str]] = []
    gone = {"gone": 3.0}
    skipped: dict[str, str] = {}

    def measured(selected: list[str] = [], extra: object = ()) -> dict[str, float]:  # noqa: B006
        asked.append(selected)
        every = {"step": 6.0, "save": 1.1 if len(asked) > 1 else 2.0, "fresh": 1.0} | gone
        return {name: ratio for name, ratio in every.items() if not selected or name in selected}

    monkeypatch.setattr(
        gate, "run_benchmarks", lambda selected=(), extra=(): Measured(measured(list(selected)), skipped)
    )
    assert main(["check", "--baseline", str(baseline)]) == 1
    assert asked == [[], ["save", "step"], ["step"]]  # measured again before it is called slower
    said = capsys.readouterr().out
    step, save = (
        next(line for line in said.splitlines() if line.startswith(name)) for name in ("step", "save")
    )
    assert step.split() == ["step", "3.000", "6.000", "2.00", "1.30", "SLOWER"] and "SLOWER" not in save
    assert said.splitlines()[-1] == "slower than the limit: step"
    assert "new" in said and "not measured" not in said and "another machine" not in said

    gone.clear()
    assert main(["check", "--baseline", str(baseline), "--slower", "2.5"]) == 1
    assert capsys.readouterr().out.splitlines()[-2:] == [
        "in the baseline, and not measured: gone",
        "nothing else is over its limit",
    ]
    assert main(["check", "--baseline", str(baseline), "--slower", "2.5", "--only", "step or save"]) == 0
    assert "gone" not in capsys.readouterr().out
    skipped["gone"] = "this CPU has no AMX"  # which the machine of the baseline had, being the same
    for only in ([], ["--only", "step or gone"]):
        assert main(["check", "--baseline", str(baseline), "--slower", "2.5", *only]) == 1
        assert "not measured: this CPU has no AMX" in capsys.readouterr().out
    content = json.loads(baseline.read_text())
    del content["environment"]["instructions"]  # of an earlier version, which did not tell
    baseline.write_text(json.dumps(content))
    assert main(["check", "--baseline", str(baseline), "--slower", "2.5"]) == 0
    assert "instructions None then" in capsys.readouterr().out
    content["environment"]["instructions"] = "amx_bf16"  # of a CPU of the same name
    baseline.write_text(json.dumps(content))
    assert main(["check", "--baseline", str(baseline), "--slower", "2.5"]) == 0
    said = capsys.readouterr().out
    assert (
        "another machine or versions, so only large changes say something: instructions amx_bf16 then" in said
    )
    assert "not measured: this CPU has no AMX" in said and said.endswith("nothing is over its limit\n")
    skipped.clear()  # it is gone here too
    assert main(["check", "--baseline", str(baseline), "--slower", "2.5"]) == 1


def test_a_part_may_differ_by_as_much_as_the_baselines_own_passes(
    baseline: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    content = json.loads(baseline.read_text())
    content["parts"]["step"]["passes"] = [6.0, 9.9, 3.0]  # the slowest of three was disturbed
    baseline.write_text(json.dumps(content))
    now = {"step": 5.9, "save": 1.0, "gone": 3.0}
    monkeypatch.setattr(gate, "run_benchmarks", lambda selected=(), extra=(): Measured(dict(now), {}))
    assert main(["check", "--baseline", str(baseline)]) == 0
    assert "1.97      2.00" in capsys.readouterr().out
    now["step"] = 6.1
    assert main(["check", "--baseline", str(baseline)]) == 1


def test_a_baselines_parts_whose_passes_differ_are_measured_again_and_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked: list[list[str]] = []
    ratios = {"calm": iter([1.0, 1.2]), "once": iter([1.0, 2.2, 1.1]), "wild": iter([3.0, 1.0, 1.5, 9.0])}

    def measured(selected: list[str]) -> Measured:
        asked.append(list(selected))
        return Measured({name: next(ratios[name]) for name in selected or ratios}, {})

    monkeypatch.setattr(gate, "run_benchmarks", measured)
    path = tmp_path / "base.json"
    assert main(["save", "--baseline", str(path)]) == 0
    assert asked == [[], [], ["once", "wild"], ["wild"]]
    assert capsys.readouterr().out.splitlines()[1:] == [
        "wild: its quickest passes differ 1.50 times, and it may take as much longer"
    ]
    parts = {name: Part.of(part["passes"]) for name, part in json.loads(path.read_text())["parts"].items()}
    assert parts == {"calm": Part(1.0, 1.2), "once": Part(1.0, 1.1), "wild": Part(1.0, 1.5)}


def test_a_baseline_of_some_parts_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It took the place of the whole one, and let every other part pass."""
    path = tmp_path / "base.json"
    assert main(["save", "--baseline", str(path), "--only", "step"]) == 2
    assert "--only is for check" in capsys.readouterr().err and not path.exists()


def test_without_a_baseline_it_says_how_to_make_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["check", "--baseline", str(tmp_path / "none.json")]) == 2
    assert "make one with `make bench-save`" in capsys.readouterr().err
    (tmp_path / "other.json").write_text("{}")
    assert main(["check", "--baseline", str(tmp_path / "other.json")]) == 2


@pytest.mark.parametrize(
    ("content", "options", "complaint"),
    [
        ({"kind": "regression"}, [], "is no baseline of `make bench-save`; make one"),
        ({"kind": "regression", "environment": {}, "parts": {"a": 1}}, [], "is no baseline"),
        (
            {"kind": "regression", "environment": {"git": "a"}, "parts": {"a": {"passes": [1]}}},
            [],
            "is no baseline",
        ),
        (
            {
                **{"kind": "regression", "date": "2026-01-01", "parts": {"a": {"passes": [0]}}},
                **{"environment": {"git": "a", "device_name": "b"}},
            },
            [],
            "is no baseline",
        ),
        ({"kind": "loaders"}, [], "is no baseline"),
        ({}, ["--slower", "nan"], "--slower is nan; it must be above 1"),
        ({}, ["--slower", "1"], "--slower is 1; it must be above 1"),
        ({}, ["--passes", "0"], "--passes is 0; it must be at least 1"),
    ],
)
def test_what_cannot_be_a_gate_is_one_line(
    content: dict[str, Any],
    options: list[str],
    complaint: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    path = tmp_path / "base.json"
    path.write_text(json.dumps(content))
    assert main(["check", "--baseline", str(path), *options]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert complaint in line


@pytest.mark.parametrize("what", ["save", "check"])
def test_ctrl_c_ends_it_without_a_traceback(
    what: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def stopped(*_: Any) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr(f"fastresnet.bench.regression.__main__.{what}", stopped)
    assert main([what]) == 130 and capsys.readouterr().err == "stopped\n"


def test_a_selection_of_nothing_is_refused() -> None:
    with pytest.raises(UserError, match="no part was measured"):
        run_benchmarks(extra=["-k", "nothing_of_this_name"])


def test_what_failed_is_told() -> None:
    with pytest.raises(UserError, match=r"did not run to their end: .*error: .*--no-such-option"):
        run_benchmarks(extra=["--no-such-option"])


def test_a_part_of_each_kind_is_really_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    """pytest-benchmark in a process of its own, and the ratios read from what it writes."""
    pytest.importorskip("pytest_benchmark")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    parts = ["test_loader[numba]", "test_augment[fast]", "test_step[resnet8]", "test_evaluate", "test_save"]
    if team_obstacle() is None:
        parts += ["test_kernel[norm-gelu]", "test_generated_step[fastresnet8-winograd]"]
    of_a_gpu = [] if torch.cuda.is_available() else ["test_graph_step[resnet8]"]
    found = run_benchmarks([*parts, *of_a_gpu])
    assert set(found.ratios) == set(parts) and all(ratio > 0 for ratio in found.ratios.values())
    assert found.skipped == dict.fromkeys(of_a_gpu, "CUDA graphs are for GPUs")


def test_the_ratio_is_the_median_of_the_rounds_own() -> None:
    entry = {"name": "x", "extra_info": {"ratios": [1.0, 9.0, 2.0]}}
    assert read_ratios({"benchmarks": [entry]}) == {"x": 2.0}
    assert Line("x", 2.0, 1.0, None, "").times is None


def test_what_was_skipped_is_read_with_its_reason() -> None:
    skipped = '<testcase name="a[b]"><skipped message="no AMX"/></testcase><testcase name="c"/>'
    assert read_skipped(f"<testsuites><testsuite>{skipped}</testsuite></testsuites>") == {"a[b]": "no AMX"}
