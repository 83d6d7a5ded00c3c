"""The shortest schedule that reaches a target: bisection over epochs, runs added only where undecided."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Literal, NamedTuple

from fastresnet.bench.intervals import lower_bound, upper_bound

Verdict = Literal["reaches", "misses", "undecided"]


class Try(NamedTuple):
    """Train once more with this many epochs."""

    epochs: int


class Found(NamedTuple):
    """The shortest schedule of those tried that reaches the target; None where even the longest does not."""

    epochs: int | None


def judge(accuracies: Sequence[float], target: float) -> Verdict:
    """Return what runs of one schedule say: both bounds are one-sided, at 95%."""
    below, above = lower_bound(accuracies), upper_bound(accuracies)
    if below is None or above is None:
        return "undecided"
    if below >= target:
        return "reaches"
    return "misses" if above < target else "undecided"


def next_try(
    results: Mapping[int, Sequence[float]],
    target: float,
    *,
    longest: int,
    most_runs: int,
    refuted: Collection[int] = (),
) -> Try | Found:
    """Return what to do after ``results``, which hold the accuracies of each number of epochs tried so far.

    The longest schedule is tried first. One that stays undecided after ``most_runs`` runs counts as one that misses,
    and so do those in ``refuted``, which the search had found and runs on fresh seeds did not bear out. What is
    returned follows from ``results`` alone, so a search may be stopped and gone on with at any moment.
    """
    misses, reaches = 0, None
    epochs = longest
    while epochs > misses:
        accuracies = results.get(epochs, ())
        verdict = "misses" if epochs in refuted else judge(accuracies, target)
        if verdict == "undecided" and len(accuracies) < most_runs:
            return Try(epochs)
        if verdict == "reaches":
            reaches = epochs
        elif epochs == longest:
            return Found(None)
        else:
            misses = epochs
        assert reaches is not None
        if reaches - misses <= 1:
            break
        epochs = (misses + reaches) // 2
    return Found(reaches)
