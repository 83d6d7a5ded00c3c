"""Clocks that jump: the wall clock, by days and years, back and forth; nothing that is learned may depend on it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from random import Random

import fastresnet
from torture.case import Case, NotHere, Place, Run, cases_of, expect_success
from torture.child import Done, Fault, call, start
from torture.kills import SWEEP, expect_same_sweep, straight_sweep, sweep_words
from torture.tiny import (
    cache_of,
    data_of,
    expect_same,
    finish,
    only_run,
    started_run,
    whole_run,
)


def cases(place: Place, short: bool) -> Iterator[Case]:
    """Yield runs and sweeps under clocks that jump."""
    kinds: dict[str, tuple[int, Run]] = {
        "jumps in a run and its resumption": (3, _jumping),
        "is another year when a run is resumed": (2, _years),
        "jumps in one worker of a sweep": (2, _sweep),
    }
    if short:
        kinds = {what: kind for what, kind in kinds.items() if kind[1] is _jumping}
    yield from cases_of(place, kinds, fault="clock ", name="clock", times=1 if short else None)


def _jumping(place: Place, random: Random, folder: Path) -> str:
    running = started_run(
        place, folder / "here", rows=random.randint(1, 4), fault=Fault(clock=random.randrange(10**6))
    )
    running.kill()
    running.wait()
    run = only_run(folder / "here")
    words = ("train", "--resume", "last")
    fault = Fault(clock=random.randrange(10**6))
    expect_success(call(*words, cwd=folder / "here", env=cache_of(place), fault=fault))
    expect_same(run, whole_run(place))
    return "the same bits"


def _faked(place: Place, when: str, folder: Path, *words: str) -> Done:
    """Run a command with libfaketime's clock, which the database and the file system do not see through."""
    program = shutil.which("faketime")
    if program is None:
        raise NotHere("faketime is not installed")
    source = {"PYTHONPATH": str(Path(fastresnet.__file__).parents[1])}  # the package that the other cases run
    env = (
        os.environ
        | cache_of(place)
        | source
        | {"FAKETIME_DONT_FAKE_MONOTONIC": "1", "DONT_FAKE_MONOTONIC": "1"}
    )
    folder.mkdir(exist_ok=True)
    command = [program, "-f", when, sys.executable, "-m", "fastresnet", *words]
    done = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, timeout=300)
    return Done(done.returncode, done.stdout, done.stderr)


def _years(place: Place, random: Random, folder: Path) -> str:
    """A run that began years from now, or long ago, is resumed."""
    here = folder / "here"
    running = started_run(place, here, rows=random.randint(1, 4))
    running.kill()
    running.wait()
    run = only_run(here)
    when = random.choice(["@2001-02-03 04:05:06", "@2049-12-31 23:59:59", "-400d", "+400d x50"])
    expect_success(_faked(place, when, here, "train", "--resume", "last"))
    expect_same(run, whole_run(place))
    # And a new one beside it is the last one, by its own clock or not.
    expect_success(finish(place, run))
    return "the same bits"


def _sweep(place: Place, random: Random, folder: Path) -> str:
    straight = straight_sweep(place)
    file = folder / "tiny.toml"
    file.write_text(SWEEP)
    words = sweep_words(file, data_of(place), folder / "sweeps")
    fault = Fault(clock=random.randrange(10**6))
    first = start(*words, cwd=folder / "first", env=cache_of(place), fault=fault)
    second = start(*words, cwd=folder / "second", env=cache_of(place))
    for worker in (first, second):
        expect_success(worker.wait())
    expect_same_sweep(folder / "sweeps" / "tiny", straight)
    return "each cell done once, with the same bits"
