"""What an ablation's runs say: pairs by seed, intervals, times of runs that are alike, and the page."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastresnet.bench.ablation import tables, verdict_of
from fastresnet.bench.ablation_page import to_markdown
from fastresnet.bench.factors import BASE


def record_of(runs: dict[str, dict[int, float]], at_once: dict[str, int] | None = None) -> dict[str, Any]:
    """Return a record of resnet8's runs: accuracy by seed, by row; training takes 10 s, of factors 11."""
    rows = {
        name: {
            **{"name": f"resnet8, {name}", "recipe": "fast", "science": name, "num_params": 5},
            **{"epochs": 4, "tta": "flip", "at_once": (at_once or {}).get(name, 1)},
        }
        for name in runs
    }
    factor = {"arch": "resnet8", "group": "g", "why": "w"}
    plain: dict[str, Any] = {"role": "figure", "git": "abc"}
    return {
        "environment": {"device_name": "some CPU", "torch": "2", "threads": 1, "cuda": None},
        "settings": {"recipe": "fast", "epochs": 4, "set": {}, "dataset": "CIFAR-10"},
        "command": "x",
        "factors": [
            {
                **factor,
                "name": name,
                "science": name,
                "base": BASE,
                "set": {} if name == BASE else {"ema": "none"},
            }
            for name in runs
        ],
        "rows": list(rows.values()),
        "runs": [
            {
                **plain,
                **{"row": rows[name], "seed": seed, "accuracy": value, "accuracy_without_tta": value},
                **{"clocks": {"eval_s": 2.0}, "seconds": 12.0 if name == BASE else 13.0},
                "machine": {"kernels": "llvm", "convs": "direct"},
            }
            for name, values in runs.items()
            for seed, value in values.items()
        ],
        "not_measured": [],
    }


def test_only_runs_of_one_host_are_timed() -> None:
    record = record_of({BASE: {0: 0.82, 1: 0.79}, "other": {0: 0.83, 1: 0.80}})
    assert tables(record)[0].lines[1].time_ratios == pytest.approx([1.1, 1.1])
    record["runs"][-1]["cpu"] = "another"
    record["runs"][-2]["machine"] = record["runs"][-2]["machine"] | {"threads": 4}
    line = tables(record)[0].lines[1]
    assert line.time_ratios == [] and line.ways == []
    assert "None, 1 thread (3 runs); another, 1 thread (1 run)." in to_markdown(record)


def test_a_factor_is_compared_where_the_base_has_the_seed() -> None:
    record = record_of(
        {
            "good": {0: 0.83, 1: 0.80, 2: 0.99},
            BASE: {0: 0.82, 1: 0.79},
            "none": {},
            "other": {0: 0.81, 1: 0.80},
            "bad": {0: 0.72, 1: 0.691},
            "lone": {1: 0.79},
        }
    )
    (table,) = tables(record)
    assert [(line.name, line.runs, line.verdict) for line in table.lines] == [
        *((BASE, 2, ""), ("good", 2, "helps"), ("none", 0, "unmeasured")),
        *(("other", 2, "undecided"), ("bad", 2, "hurts"), ("lone", 1, "one pair")),
    ]
    good = table.lines[1]
    assert good.difference == pytest.approx(0.01) and good.time_ratios == pytest.approx([1.1, 1.1])
    assert table.judged == 3
    page = to_markdown(record)
    assert (
        "| good | g | `ema` none | 2 | 0.8150 | +1.00 ± 0.00 | 0.8150 | +10.0% (+10.0% to +10.0%) | helps | w |"
        in page
    )
    # 12.706 * sd(0.82, 0.79) / sqrt(2)
    assert "| base | g |  | 2 | 0.8050 ± 0.1906 |  | 0.8050 |  |  | w |" in page


def test_a_factor_is_compared_with_the_base_of_its_own_form() -> None:
    """As where a network of ours was changed between two commands."""
    record = record_of({"good": {0: 0.83, 1: 0.80}, BASE: {0: 0.82, 1: 0.79}})
    then = record_of({"good": {0: 0.73, 1: 0.70}, BASE: {0: 0.71, 1: 0.68}})
    for each in (*then["factors"], *then["rows"]):  # whose dicts the runs share
        each["science"] += " then"
    for each in then["factors"]:
        each["base"] += " then"
    for part in ("factors", "rows", "runs"):
        record[part] += then[part]
    (table,) = tables(record)
    found = {round(line.difference, 3) for line in table.lines if line.difference is not None}
    assert found == {0.01, 0.02}


def test_on_a_cpu_trainings_are_compared_by_cpu_seconds() -> None:
    """What runs beside them, or stops them for a while, is none of their cost."""
    record = record_of({BASE: {0: 0.8}, "slow": {0: 0.8}})
    assert tables(record)[0].lines[1].time_ratios == pytest.approx([1.1])
    for run, cpu_s in zip(record["runs"], (20.0, 30.0), strict=True):
        run["cpu_s"] = cpu_s
    assert tables(record)[0].lines[1].time_ratios == pytest.approx([1.1])  # it was a GPU
    assert "on the clock before the final evaluation" in to_markdown(record)
    record["environment"]["cpu"] = record["environment"]["device_name"]
    assert tables(record)[0].lines[1].time_ratios == pytest.approx([1.5])
    assert "the median ratio to the base's of CPU seconds" in to_markdown(record)
    del record["runs"][0]["cpu_s"]  # of an early record
    assert tables(record)[0].lines[1].time_ratios == pytest.approx([1.1])


def test_times_are_compared_of_one_commit_and_one_way_alone() -> None:
    """An lr that costs nothing was said to save time, as its row had found quicker convolutions than the base."""
    record = record_of({BASE: {0: 0.8, 1: 0.8, 2: 0.8}, "f": {0: 0.82, 1: 0.82, 2: 0.83}})
    one, other, third = record["runs"][3:]
    other["machine"] = other["machine"] | {"convs": "amx"}
    third["git"], third["machine"] = "def", other["machine"]
    line = tables(record)[0].lines[1]
    assert (line.verdict, line.runs, line.of_two_commits) == ("helps", 3, 1)
    assert line.time_ratios == pytest.approx([1.1]) and line.ways == ["--convs amx"]
    page = to_markdown(record)
    assert "Of 3 pairs 1 are of two commits" in page and "not compared: f (--convs amx)." in page
    one["machine"] = other["machine"]
    assert tables(record)[0].lines[1].time_ratios == []
    for run in (other, third):
        run["git"], run["machine"] = one["git"], record["runs"][0]["machine"]
    one["machine"] = record["runs"][0]["machine"]
    page = to_markdown(record)
    assert "two commits" not in page and "another way" not in page


def test_runs_at_once_are_compared_with_runs_at_once_alone() -> None:
    record = record_of({BASE: {0: 0.8, 1: 0.8}, "packed": {0: 0.9, 1: 0.9}}, {"packed": 2})
    apart = tables(record)
    assert [(table.at_once, [line.verdict for line in table.lines]) for table in apart] == [
        *((1, [""]), (2, ["unmeasured"]))
    ]
    page = to_markdown(record)
    assert "up to 2 trainings at once:" in page and "throughput, not latency" in page


@given(
    st.lists(st.tuples(st.floats(0, 1), st.floats(-0.1, 0.1)), min_size=2, max_size=8),
    st.lists(st.floats(-1, 1), min_size=8, max_size=8),
)
def test_what_a_seed_does_to_both_changes_nothing(
    pairs: list[tuple[float, float]], luck: list[float]
) -> None:
    base = {seed: value for seed, (value, _) in enumerate(pairs)}
    factor = {seed: value + change for seed, (value, change) in enumerate(pairs)}
    shifted = [{seed: value + luck[seed] for seed, value in each.items()} for each in (base, factor)]
    plain, lucky = (
        tables(record_of({BASE: one, "f": other}))[0].lines[1] for one, other in ((base, factor), shifted)
    )
    assert plain.difference == pytest.approx(lucky.difference, abs=1e-12)
    assert plain.difference_half == pytest.approx(lucky.difference_half, abs=1e-7)


def test_the_interval_decides() -> None:
    assert verdict_of([0.01, 0.02, 0.03]) == "undecided"  # 0.02 - 4.303 * 0.01 / sqrt(3) is below 0
    assert verdict_of([0.015, 0.02, 0.025]) == "helps" and verdict_of([-0.015, -0.02, -0.025]) == "hurts"
    assert verdict_of([0.5]) == "one pair" and verdict_of([]) == "unmeasured"
