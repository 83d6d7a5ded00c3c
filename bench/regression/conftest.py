"""What the benchmarks share: the paired timing, a data set that is made, and the machine."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch

from fastresnet.assembly import Data, Machine, choose_machine, open_data
from fastresnet.bench.regression.calibration import calibration_loop
from fastresnet.engine.listener import Listener
from fastresnet.engine.machine import synchronise
from fastresnet.recipe import Recipe, load_recipe
from fastresnet.run import RunConfig

ROUNDS = 8
# Of the part's own time the calibration beside it takes this share, so that both see the same of a busy machine.
CALIBRATION_SHARE, MOST_LOOPS = 0.3, 30
NUM_TRAIN, NUM_TEST, SIZE, CLASSES = 2048, 512, 32, 10

Timed = Callable[[Callable[[], object]], None]


@pytest.fixture(scope="session")
def machine() -> Machine:
    """The machine that is measured: a GPU where there is one."""
    return choose_machine(RunConfig(compile="off"))


@pytest.fixture(scope="session")
def recipe() -> Recipe:
    """``fast``, whose parts are measured, at a batch that a CPU does in a moment."""
    return load_recipe("fast").with_overrides(
        {"arch": "resnet8", "batch_size": 128 if torch.cuda.is_available() else 8, "resize": []}
    )


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory, recipe: Recipe) -> Iterator[Data]:
    """Random images of CIFAR-10's shape, packed into a cache of the session's own."""
    folder = tmp_path_factory.mktemp("regression")
    drawn = np.random.default_rng(0)

    def images(count: int) -> np.ndarray[Any, Any]:
        return drawn.integers(0, 256, (count, SIZE, SIZE, 3), dtype=np.uint8)

    np.savez(
        folder / "random.npz",
        train_images=images(NUM_TRAIN),
        train_labels=np.arange(NUM_TRAIN) % CLASSES,
        test_images=images(NUM_TEST),
        test_labels=np.arange(NUM_TEST) % CLASSES,
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FASTRESNET_CACHE", str(folder / "cache"))
        yield open_data(recipe, RunConfig(data=str(folder / "random.npz")), Listener())


@pytest.fixture
def timed(benchmark: Any, machine: Machine) -> Timed:
    """Return what times a function of a few milliseconds or more, each round beside the calibration loop."""
    calibrate = calibration_loop(machine.device)

    def elapsed(work: Callable[[], object], times: int = 1) -> float:
        start = time.perf_counter()
        for _ in range(times):
            work()
        return (time.perf_counter() - start) / times

    def measure(function: Callable[[], object]) -> None:
        def run() -> None:
            function()
            synchronise(machine.device)

        run()
        calibrate()
        share = CALIBRATION_SHARE * elapsed(run) / elapsed(calibrate)
        loops = max(1, min(MOST_LOOPS, round(share)))
        seconds: list[float] = []
        benchmark.pedantic(
            run, setup=lambda: seconds.append(elapsed(calibrate, loops)), rounds=ROUNDS, iterations=1
        )
        if benchmark.stats is not None:  # else --benchmark-disable
            paired = zip(benchmark.stats.stats.data, seconds[-ROUNDS:], strict=True)
            benchmark.extra_info["ratios"] = [part / loop for part, loop in paired]
            benchmark.extra_info["device"] = machine.device_name

    return measure
