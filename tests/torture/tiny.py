"""The runs that faults are put upon: a tiny network on tiny images, a second long, and what each must have learned."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import cast

from made_data import write_images
from tiny_runs import assert_same_science, write_tiny

from torture.case import Place, expect_success
from torture.child import Done, Fault, Running, call, start

EPOCHS = 10
NETWORK = ("--arch", "n2-b1-c4", "--batch-size", "16", "--set", "optimizer.lr=0.05")
MACHINE = ("--threads", "1", "--device", "cpu", "--compile", "off", "--loader", "numba")
OFTEN = ("--save-every", "0.02")


def data_of(place: Place) -> Path:
    """Return an .npz of 100 train and 300 test images of 8x8."""
    return cast(Path, place.once("data", lambda folder: write_tiny(folder / "tiny.npz")))


def images_of(place: Place) -> Path:
    """Return a folder of 24 train and 12 test JPEGs of 16x16."""
    return cast(Path, place.once("images", lambda folder: write_images(folder / "photos", size=16)))


def cache_of(place: Place) -> dict[str, str]:
    """Return the environment in which the cache is one that all cases share."""
    return {"FASTRESNET_CACHE": str(place.root / "cache")}


def train_words(data: Path | str, *more: str) -> tuple[str, ...]:
    """Return the command of a tiny run."""
    return ("train", *NETWORK, "--epochs", str(EPOCHS), *MACHINE, *OFTEN, "--data", str(data), *more)


def whole_run(
    place: Place, name: str = "npz", make_data: Callable[[Place], Path] = data_of, *more: str
) -> Path:
    """Return the folder of a run that nothing happened to."""

    def make(folder: Path) -> Path:
        done = call(*train_words(make_data(place), *more), cwd=folder / "here", env=cache_of(place))
        expect_success(done)
        return only_run(folder / "here")

    return cast(Path, place.once(f"whole {name}", make))


def only_run(folder: Path) -> Path:
    """Return the one run of a folder in which commands ran; nothing may lie beside it."""
    found = sorted((folder / "runs").iterdir())
    assert len(found) == 1 and not found[0].name.startswith("."), (
        f"runs/ holds {[path.name for path in found]}"
    )
    return found[0]


def begun(folder: Path) -> bool:
    """Return whether there is a run in ``folder``, on its way or done."""
    return any((folder / "runs").glob("[!.]*/config.json"))


def await_that(condition: Callable[[], bool], running: Running, limit_s: float = 600) -> bool:
    """Return whether ``condition`` came true before the process ended."""
    end = time.monotonic() + limit_s
    while time.monotonic() < end:
        if condition():
            return True
        if not running.is_alive:
            return condition()
        time.sleep(0.002)
    running.kill()
    raise AssertionError(f"nothing happened in {limit_s:.0f} s")


def rows_written(folder: Path) -> int:
    """Return the number of event rows of the run in ``folder``."""
    for path in (folder / "runs").glob("[!.]*/events.jsonl"):
        try:
            return path.read_bytes().count(b"\n")
        except OSError:
            return 0
    return 0


def started_run(
    place: Place,
    folder: Path,
    *more: str,
    data: Path | None = None,
    fault: Fault | None = None,
    rows: int = 0,
) -> Running:
    """Start a run in ``folder`` and return when it has made its folder and ``rows`` event rows."""
    words = train_words(data or data_of(place), *more)
    running = start(*words, cwd=folder, env=cache_of(place), fault=fault)
    if not await_that(lambda: begun(folder) and rows_written(folder) >= rows, running):
        done = running.wait()
        raise AssertionError(f"it ended too soon, with {done.code}: {(done.out + done.err)[-800:]}")
    return running


def stopped_run(place: Place, folder: Path, random: Random, data: Path | None = None, *more: str) -> Path:
    """Return a run that was killed on its way, with an epoch or more behind it and no result."""
    for attempt in range(10):
        here = folder / f"stopped-{attempt}"
        running = started_run(place, here, *more, data=data, rows=random.randint(1, EPOCHS // 2))
        running.kill()
        running.wait()
        run = only_run(here)
        if not (run / "result.json").exists():
            return run
        shutil.rmtree(here)
    raise AssertionError("each run ended before it could be killed")


def finish(place: Place, run: Path, *more: str, env: dict[str, str] | None = None) -> Done:
    """Resume a run to its end."""
    words = ("train", "--resume", run.name, *more)
    return call(*words, cwd=run.parent.parent, env=env or cache_of(place))


def expect_same(run: Path, whole: Path) -> None:
    """Make sure that a finished run has learned the same bits as ``whole`` and left nothing behind."""
    assert_same_science(run, whole)
    left = [path.name for path in run.rglob(".*")]
    assert not left, f"left behind: {left}"
