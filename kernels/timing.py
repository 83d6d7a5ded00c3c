"""How long something takes on a device: device events on a GPU, several input sets in turn, quantiles.

Shared by dispatch, which chooses by it, and by the benchmarks, which print it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from time import perf_counter
from typing import Any, NamedTuple

import torch

Run = Callable[[], Any]


class Quantiles(NamedTuple):
    """Seconds a call takes: 20%, half and 80% of the calls took no longer."""

    p20_s: float
    p50_s: float
    p80_s: float


def quantiles(seconds: Sequence[float]) -> Quantiles:
    """Return the quantiles of ``seconds``, interpolated."""
    values = torch.tensor(seconds, dtype=torch.float64)
    return Quantiles(*torch.quantile(values, torch.tensor([0.2, 0.5, 0.8], dtype=torch.float64)).tolist())


def sets_beyond_cache(bytes_each: int, device: torch.device) -> int:
    """Return how many sets of inputs to take in turn so that none is in the GPU's L2 cache when it comes round."""
    if device.type != "cuda":
        return 1
    cache = torch.cuda.get_device_properties(device).L2_cache_size
    return max(2, min(64, 1 + 3 * cache // max(bytes_each, 1)))


def captured(prepare: Callable[[], Run], device: torch.device) -> Run:
    """Return ``prepare()`` as the replay of a CUDA graph, so that launches cost next to nothing; on a CPU, itself.

    Preparing, some warming calls and the capture share one side stream: autograd runs a backward pass on the stream
    that its forward pass ran on, and a capture must stay on its own.
    """
    if device.type != "cuda":
        return prepare()
    stream = torch.cuda.Stream(device)
    stream.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.stream(stream):
        run = prepare()
        for _ in range(3):
            run()
    stream.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream):
        run()
    torch.cuda.current_stream(device).wait_stream(stream)
    return graph.replay


def time_interleaved(
    candidates: Mapping[str, Sequence[Run]], device: torch.device, *, rounds: int, calls: int
) -> dict[str, Quantiles]:
    """Return each candidate's quantiles over ``rounds * calls`` calls.

    Every candidate gets ``calls`` calls a round, so that a clock that drifts or a busy machine slows all alike. A
    candidate is a sequence of equivalent runs, one for each set of inputs, which are called in turn.
    """
    seconds: dict[str, list[float]] = {name: [] for name in candidates}
    for runs in candidates.values():
        for run in runs:
            run()
    for round_ in range(rounds):
        for name, runs in candidates.items():
            order = [runs[(round_ * calls + call) % len(runs)] for call in range(calls)]
            seconds[name] += _time_on_gpu(order, device) if device.type == "cuda" else _time_on_cpu(order)
    return {name: quantiles(values) for name, values in seconds.items()}


def _time_on_cpu(runs: Sequence[Run]) -> list[float]:
    seconds = []
    for run in runs:
        start = perf_counter()
        run()
        seconds.append(perf_counter() - start)
    return seconds


def _time_on_gpu(runs: Sequence[Run], device: torch.device) -> list[float]:
    # nothing waits between calls: the device is never idle for want of a launch that could have been queued
    marks = [torch.cuda.Event(enable_timing=True) for _ in range(len(runs) + 1)]
    runs[-1]()  # not the one that is timed next, whose inputs would be in the cache
    marks[0].record(torch.cuda.current_stream(device))
    for run, mark in zip(runs, marks[1:], strict=True):
        run()
        mark.record(torch.cuda.current_stream(device))
    torch.cuda.synchronize(device)
    return [before.elapsed_time(after) / 1e3 for before, after in pairwise(marks)]
