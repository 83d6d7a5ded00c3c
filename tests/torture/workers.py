"""A process that loads is killed, under each loader that has processes."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from random import Random

import psutil

from torture.case import Case, NotHere, Place, expect_one_line, expect_success
from torture.tiny import expect_same, finish, only_run, started_run, whole_run

LOADERS = ("torch", "numba", "resident", "ffcv", "dali")


def cases(place: Place, short: bool) -> Iterator[Case]:
    """Yield each loader; the one that has processes more often."""
    for loader in LOADERS:
        for index in range(1 if short or loader != "torch" else 5):

            def kill(random: Random, folder: Path, loader: str = loader) -> str:
                return _killed(place, random, folder, loader)

            if short and loader in ("ffcv", "dali"):
                continue
            yield Case(fault=f"a loading process killed: {loader}", name=f"worker {loader} {index}", run=kill)


def _killed(place: Place, random: Random, folder: Path, loader: str) -> str:
    if loader in ("ffcv", "dali") and find_spec({"dali": "nvidia"}.get(loader, loader)) is None:
        raise NotHere(f"{loader} is not installed")
    here = folder / "here"
    whole = whole_run(place)
    running = started_run(place, here, "--loader", loader, "--workers", "2", rows=1)
    time.sleep(random.uniform(0, 0.3))
    try:
        loading = psutil.Process(running.pid).children(recursive=True)
    except psutil.NoSuchProcess:
        loading = []
    if loader != "torch":
        expect_success(running.wait())
        assert not loading, f"it has processes after all: {loading}"
        expect_same(only_run(here), whole)
        return "it loads with threads: there is no process to kill"
    if loading:
        with contextlib.suppress(ProcessLookupError):
            os.kill(random.choice(loading).pid, signal.SIGKILL)
    done = running.wait()
    run = only_run(here)
    said = "it had ended"
    if done.code != 0:
        said = expect_one_line(done, "a process of the torch loader was killed", "--resume")
        expect_success(finish(place, run))
    expect_same(run, whole)
    return said
