"""Student's t, the verdict on a schedule, and the search for the shortest one."""

from __future__ import annotations

import math
import random
import statistics

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastresnet.bench.intervals import lower_bound, t_cdf, t_quantile, two_sided, upper_bound
from fastresnet.bench.schedule_search import Found, Try, judge, next_try

accuracies = st.lists(st.floats(0, 1), min_size=2, max_size=12)


@pytest.mark.parametrize(
    ("level", "freedom", "printed"),
    [
        # Fisher and Yates' table
        *((0.95, n, t) for n, t in ((1, 6.314), (2, 2.920), (3, 2.353), (4, 2.132), (9, 1.833), (29, 1.699))),
        *((0.975, n, t) for n, t in ((1, 12.706), (2, 4.303), (9, 2.262), (120, 1.980))),
        (0.995, 5, 4.032),
    ],
)
def test_quantiles_are_the_printed_ones(level: float, freedom: int, printed: float) -> None:
    assert t_quantile(level, freedom) == pytest.approx(printed, abs=6e-4)


@given(st.integers(1, 60), st.floats(-20, 20))
def test_the_distribution_is_what_its_density_adds_up_to(freedom: int, t: float) -> None:
    """Against Simpson's rule on the density, which shares nothing with the series."""
    assert t_cdf(t, freedom) + t_cdf(-t, freedom) == pytest.approx(1, abs=1e-12)
    constant = math.exp(math.lgamma((freedom + 1) / 2) - math.lgamma(freedom / 2)) / math.sqrt(
        freedom * math.pi
    )

    def density(x: float) -> float:
        return constant * (1 + x * x / freedom) ** (-(freedom + 1) / 2)

    count = 400
    points = [
        density(t * i / count) * (1 if i in (0, count) else 4 if i % 2 else 2) for i in range(count + 1)
    ]
    assert t_cdf(t, freedom) == pytest.approx(0.5 + t / count / 3 * sum(points), abs=1e-5)


@given(accuracies, st.floats(0.01, 10))
def test_bounds_lie_about_the_mean_and_scale(values: list[float], scale: float) -> None:
    low, high, half = lower_bound(values), upper_bound(values), two_sided(values)
    assert low is not None and high is not None and half is not None
    mean = statistics.fmean(values)
    assert low <= mean <= high and mean - low == pytest.approx(high - mean, abs=1e-9)
    assert half >= (high - low) / 2 - 1e-12  # two-sided 95% is wider than one-sided
    scaled = lower_bound([scale * value for value in values])
    assert scaled == pytest.approx(scale * low, rel=1e-9, abs=1e-9)


def test_one_value_bounds_nothing() -> None:
    assert lower_bound([0.9]) is upper_bound([0.9]) is two_sided([0.9]) is None
    assert judge([0.99], 0.9) == judge([], 0.9) == "undecided"


def test_the_bound_holds_as_often_as_it_says() -> None:
    drawn = random.Random(0)
    trials = 4000
    below = 0
    for _ in range(trials):
        low = lower_bound([drawn.gauss(0.94, 0.0015) for _ in range(5)])
        assert low is not None
        below += low <= 0.94
    assert below / trials == pytest.approx(0.95, abs=0.015)


@given(accuracies, st.floats(0, 1))
def test_a_verdict_is_what_the_bounds_say(values: list[float], target: float) -> None:
    low, high = lower_bound(values), upper_bound(values)
    assert low is not None and high is not None
    assert (judge(values, target) == "reaches") == (low >= target)
    assert (judge(values, target) == "misses") == (high < target and low < target)


@given(st.integers(1, 300), st.integers(1, 301), st.integers(2, 6))
def test_without_noise_the_search_finds_the_shortest(longest: int, shortest: int, most_runs: int) -> None:
    results: dict[int, list[float]] = {}
    while isinstance(step := next_try(results, 0.94, longest=longest, most_runs=most_runs), Try):
        assert 1 <= step.epochs <= longest
        results.setdefault(step.epochs, []).append(0.95 if step.epochs >= shortest else 0.9)
    assert step == Found(shortest if shortest <= longest else None)
    assert {len(runs) for runs in results.values()} == {2}  # two runs that agree decide
    assert len(results) <= math.ceil(math.log2(longest)) + 1


@given(st.integers(1, 60), st.sets(st.integers(1, 60), max_size=6))
def test_what_fresh_seeds_refute_is_stepped_over(longest: int, refuted: set[int]) -> None:
    """Every schedule seems to reach the target: what is found is none of those that did not."""
    results: dict[int, list[float]] = {}
    found: set[int] = set()
    while True:
        step = next_try(results, 0.94, longest=longest, most_runs=2, refuted=refuted & found)
        if isinstance(step, Try):
            results.setdefault(step.epochs, []).append(0.95)
        elif step.epochs is None or step.epochs not in refuted:
            break
        else:
            assert step.epochs not in found  # it is not found again
            found.add(step.epochs)
    assert step.epochs is not None or longest in found
    if step.epochs is not None:
        assert all(shorter in refuted for shorter in range(1, step.epochs))


@settings(max_examples=30)
@given(st.integers(0, 2**32), st.integers(2, 64), st.integers(2, 8), st.floats(0.90, 0.96))
def test_with_noise_the_search_ends_and_can_be_gone_on_with(
    seed: int, longest: int, most_runs: int, plateau: float
) -> None:
    drawn = random.Random(seed)
    results: dict[int, list[float]] = {}
    while isinstance(step := next_try(results, 0.94, longest=longest, most_runs=most_runs), Try):
        copied = {epochs: list(runs) for epochs, runs in results.items()}
        assert next_try(copied, 0.94, longest=longest, most_runs=most_runs) == step
        assert judge(results.get(step.epochs, []), 0.94) == "undecided"
        mean = plateau - 0.1 / step.epochs
        results.setdefault(step.epochs, []).append(drawn.gauss(mean, 0.0015))
        assert len(results[step.epochs]) <= most_runs
    if step.epochs is not None:
        assert judge(results[step.epochs], 0.94) == "reaches"
        assert step.epochs == 1 or judge(results[step.epochs - 1], 0.94) != "reaches"
    else:
        assert judge(results[longest], 0.94) != "reaches"
