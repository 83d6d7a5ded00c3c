"""SIGKILL: at any moment of a training, and at any line of what writes packs, runs, checkpoints, rows and pages."""

from __future__ import annotations

import json
import sqlite3
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random
from typing import cast

from PIL import Image

from torture.case import Case, NotHere, Place, expect_success
from torture.child import Fault, Running, call, start
from torture.tiny import (
    MACHINE,
    begun,
    cache_of,
    data_of,
    expect_same,
    finish,
    only_run,
    started_run,
    train_words,
    whole_run,
)

ATOMIC = ("write_atomic", "write_sealed_json", "sync_folder")
# What is written by which functions of ours.
INSIDE: dict[str, tuple[str, ...]] = {
    "packing": (
        *("_pack", "publishing", "locked", "write_pack", "_allocate", "_write_at", "_write_whole"),
        *("_hash_files", "_blocks", *ATOMIC),
    ),
    "making the run folder": ("create", "lock", "write_config", "_write_first_state", *ATOMIC),
    "writing a checkpoint": (
        "save",
        "save_state",
        "save_last",
        "write_checkpoint",
        "_note_best",
        "write_atomic",
    ),
    "writing an event row": ("append_event", "_finish_epoch"),
    "writing the result": ("write_result", "_fit", "events_mark"),
    "resuming": ("go_on", "restore_events", "load_last", "read_checkpoint", "lock", "_read_marked", *ATOMIC),
}
SHARE = {  # of 50 kills
    **{"a training": 16, "packing": 5, "making the run folder": 4, "writing a checkpoint": 8},
    **{
        "writing an event row": 5,
        "writing the result": 2,
        "resuming": 4,
        "writing a report": 3,
        "a sweep": 3,
    },
}
SHORT = {"a training": 2, "packing": 1, "writing a checkpoint": 2, "writing an event row": 1, "a sweep": 1}
SWEEP = """\
name = "tiny"
title = "Tiny"
recipe = "r1-single"

[set]
batch_size = 10
N = 2
B = 1
epochs = 12

[grid]
C = [2, 3]
"""


def cases(place: Place, short: bool) -> Iterator[Case]:
    """Yield 50 kills, or a few."""
    makers: dict[str, Callable[[Random, Path], str]] = {
        "a training": lambda random, folder: _training(place, random, folder),
        "writing a report": lambda random, folder: _report(place, random, folder),
        "a sweep": lambda random, folder: _sweep(place, random, folder),
    }
    for what, number in (SHORT if short else SHARE).items():

        def inside(random: Random, folder: Path, what: str = what) -> str:
            return _inside(place, random, folder, what)

        for index in range(number):
            yield Case(fault=f"killed in {what}", name=f"kill {what} {index}", run=makers.get(what, inside))


def _lasts(place: Place) -> float:
    """Return the seconds that a whole run takes from its first event row to its end."""
    clocks = json.loads((whole_run(place) / "result.json").read_text())["clocks"]
    return float(clocks["train_s"] + clocks["between_s"] + clocks["eval_s"])


def _training(place: Place, random: Random, folder: Path) -> str:
    """Kill a run, and often the resumed one again; then let it come to its end."""
    whole, lasts = whole_run(place), _lasts(place)
    here = folder / "here"
    for _ in range(20):
        running = started_run(place, here)
        time.sleep(random.uniform(0, 0.8 * lasts))
        running.kill()
        running.wait()
        run = only_run(here)
        if not (run / "result.json").exists():
            break
        here = folder / f"again-{random.randrange(10**6)}"
    kills = 1
    while random.random() < 0.5 and kills < 3:
        running = start("train", "--resume", "last", cwd=here, env=cache_of(place))
        time.sleep(random.uniform(0.1, 0.6) + random.uniform(0, 0.5 * lasts))
        running.kill()
        kills += running.wait().code != 0
    said = expect_success(finish(place, run))
    expect_same(only_run(here), whole)
    return f"resumed to the same bits: {said}" if "next" not in said else "resumed to the same bits"


def _inside(place: Place, random: Random, folder: Path, what: str) -> str:
    """Kill a run before a line, drawn by chance, of the functions that write something."""
    whole, functions = whole_run(place), INSIDE[what]
    here, env = folder / "here", cache_of(place)
    if what == "packing":
        env = {"FASTRESNET_CACHE": str(folder / "cache")}
    words = train_words(data_of(place))
    if what == "resuming":
        running = started_run(place, here, rows=random.randint(1, 4))
        running.kill()
        running.wait()
        words = ("train", "--resume", "last")
    lines = cast(int, place.once(f"lines of {what}", lambda scratch: _count(place, scratch, functions, what)))
    for _ in range(10):
        fault = Fault(inside=functions, die_at=random.randrange(lines))
        done = call(*words, cwd=here, env=env, fault=fault)
        if done.code == -9:
            break
        expect_success(done)  # fewer checkpoints were due this time
        if what == "resuming":
            expect_same(only_run(here), whole)
            return "it had ended before the line came"
        here = folder / f"again-{random.randrange(10**6)}"
    else:
        raise AssertionError(f"no line of {functions} was reached")
    if begun(here):
        expect_success(call("train", "--resume", "last", cwd=here, env=env))
    else:
        expect_success(call(*train_words(data_of(place)), cwd=here, env=env))
    expect_same(only_run(here), whole)
    if what == "packing":
        left = [path.name for path in (folder / "cache" / "packs").iterdir() if path.name.startswith(".")]
        assert not left, f"left in the cache: {left}"
    return "resumed to the same bits" if what != "packing" else "packed again, and the same bits"


def _count(place: Place, scratch: Path, functions: tuple[str, ...], what: str) -> int:
    """Return how many lines of ``functions`` an undisturbed run executes."""
    target, here = scratch / "lines", scratch / "here"
    env = {"FASTRESNET_CACHE": str(scratch / "cache")} if what == "packing" else cache_of(place)
    words = train_words(data_of(place))
    if what == "resuming":
        running = started_run(place, here, rows=2)
        running.kill()
        running.wait()
        words = ("train", "--resume", "last")
    fault = Fault(inside=functions, count_to=str(target))
    expect_success(call(*words, cwd=here, env=env, fault=fault))
    return int(target.read_text())


PAGES = ("write_report", "write_page", "_write", *ATOMIC)


def _report(place: Place, random: Random, folder: Path) -> str:
    """Kill a report while it is written; what lies there is whole, and the next one is as if nothing had been."""
    run, env = whole_run(place), cache_of(place)
    out = folder / "report"

    def count(scratch: Path) -> int:
        fault = Fault(inside=PAGES, count_to=str(scratch / "lines"))
        words = ("report", str(run), "--out", str(scratch / "report"))
        expect_success(call(*words, cwd=scratch / "here", env=env, fault=fault))
        return int((scratch / "lines").read_text())

    lines = cast(int, place.once("lines of a report", count))
    words = ("report", str(run), "--out", str(out))
    done = call(
        *words, cwd=folder / "here", env=env, fault=Fault(inside=PAGES, die_at=random.randrange(lines))
    )
    assert done.code == -9, f"exit {done.code}: {done.err[-500:]}"
    _whole_pages(out)
    said = expect_success(call(*words, cwd=folder / "here", env=env))
    _whole_pages(out)
    left = [path.name for path in out.glob(".*.tmp")]
    whole = {path.name for path in (place.root / "shared" / "lines of a report" / "report").iterdir()}
    assert {path.name for path in out.iterdir()} - set(left) == whole
    return f"written again: {said}" + (f" (a torn {left[0]} lies beside)" if left else "")


def _whole_pages(out: Path) -> None:
    for path in out.glob("[!.]*"):
        if path.suffix == ".png":
            with Image.open(path) as image:
                image.load()
        else:
            assert path.read_text().rstrip().endswith("</html>"), f"{path} is torn"


def sweep_words(file: Path, data: Path, sweeps: Path) -> tuple[str, ...]:
    """Return the command of a worker of the tiny sweep."""
    machine = ("--data", str(data), "--sweeps-dir", str(sweeps), "--save-every", "0.05", "--heartbeat", "1")
    return ("sweep", str(file), *machine, *MACHINE)


def straight_sweep(place: Place) -> Path:
    """Return the folder of a sweep that nothing happened to."""
    if not _has_optuna():
        raise NotHere("Optuna is not installed")

    def make(folder: Path) -> Path:
        file = folder / "tiny.toml"
        file.write_text(SWEEP)
        words = sweep_words(file, data_of(place), folder / "sweeps")
        expect_success(call(*words, cwd=folder / "here", env=cache_of(place)))
        return folder / "sweeps" / "tiny"

    return cast(Path, place.once("straight sweep", make))


def _has_optuna() -> bool:
    from importlib.util import find_spec

    return find_spec("optuna") is not None


def expect_same_sweep(folder: Path, straight: Path) -> None:
    """Make sure that each cell is done once, and learned what it does when nothing happens."""
    tables = [json.loads((path / "table.json").read_text())["rows"] for path in (folder, straight)]
    found, wanted = ([(row["cell"], row["state"], row["accuracy"]) for row in rows] for rows in tables)
    assert found == wanted, f"{found} is not {wanted}"
    with sqlite3.connect(folder / "study.db") as database:
        states = [state for (state,) in database.execute("SELECT state FROM trials")]
    assert states.count("COMPLETE") == len(wanted) and not {"RUNNING", "WAITING"} & set(states), states
    for row, other in zip(*tables, strict=True):
        expect_same(folder / row["run"], straight / other["run"])


def _sweep(place: Place, random: Random, folder: Path) -> str:
    """Kill one of two workers of a sweep; the other, or a later one, does its cells."""
    straight = straight_sweep(place)
    file = folder / "tiny.toml"
    file.write_text(SWEEP)
    words = sweep_words(file, data_of(place), folder / "sweeps")
    workers: list[Running] = []
    for number in range(2):
        workers.append(start(*words, cwd=folder / f"worker-{number}", env=cache_of(place)))
    time.sleep(random.uniform(0.3, 3.0))
    killed = random.randrange(2)
    workers[killed].kill()
    workers[killed].wait()
    expect_success(workers[1 - killed].wait())
    expect_success(call(*words, cwd=folder / "after", env=cache_of(place)))
    expect_same_sweep(folder / "sweeps" / "tiny", straight)
    return "each cell done once, with the same bits"
