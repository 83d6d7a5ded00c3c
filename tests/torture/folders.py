"""Folders that become read-only, vanish or move, under a run on its way or before it begins."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from random import Random

from torture.case import Case, NotHere, Place, Run, cases_of, expect_one_line, expect_success
from torture.child import call
from torture.tiny import (
    EPOCHS,
    cache_of,
    data_of,
    expect_same,
    finish,
    only_run,
    started_run,
    stopped_run,
    train_words,
    whole_run,
)


@contextmanager
def read_only(folder: Path) -> Iterator[None]:
    """Let nobody write ``folder`` or its files: root by the immutable flag, others by the mode.

    Raises:
        NotHere: this is root, and the file system has no such flag.
    """
    if os.geteuid() != 0:
        modes = {path: path.stat().st_mode for path in (folder, *folder.rglob("*"))}
        for path, mode in modes.items():
            path.chmod(mode & ~0o222)
        try:
            yield
        finally:
            for path, mode in modes.items():
                path.chmod(mode)
        return
    done = _flag("+i", folder)
    try:
        if done:
            raise NotHere(f"root heeds no modes, and no immutable flag can be set here: {done}")
        yield
    finally:
        _flag("-i", folder)


def _flag(flag: str, folder: Path) -> str:
    """Set or clear a flag of ``folder`` and all in it; return what went wrong."""
    try:
        done = subprocess.run(["chattr", "-R", flag, str(folder)], capture_output=True, text=True)
    except OSError as error:
        return str(error)
    return "" if done.returncode == 0 else (done.stderr.strip().splitlines() or ["no reason was given"])[-1]


def cases(place: Place, short: bool) -> Iterator[Case]:
    """Yield each kind of folder that goes wrong."""
    kinds: dict[str, tuple[int, Run]] = {
        "read-only under a run": (3, _read_only_run),
        "read-only when a run is made": (1, _read_only_runs),
        "read-only when a run is resumed": (1, _read_only_resume),
        "read-only cache": (1, _read_only_cache),
        "read-only, and only read": (1, _only_read),
        "the run vanishes": (3, _vanished),
        "the run moves": (1, _moved),
        "the cache vanishes": (1, _cache_vanished),
        "the data vanishes": (1, _data_vanished),
        "the working folder vanishes": (1, _here_vanished),
    }
    yield from cases_of(place, kinds, fault="folder: ", name="folder", times=1 if short else None)


REFUSED = "Operation not permitted" if os.geteuid() == 0 else "Permission denied"


def _read_only_run(place: Place, random: Random, folder: Path) -> str:
    running = started_run(place, folder / "here", rows=random.randint(0, 3))
    run = only_run(folder / "here")
    with read_only(run):
        done = running.wait()
    if done.code == 0:
        said = "it had ended"
    else:
        said = expect_one_line(done, "cannot write", REFUSED)
        expect_success(finish(place, run))
    expect_same(run, whole_run(place))
    return said


def _read_only_runs(place: Place, random: Random, folder: Path) -> str:
    here = folder / "here"
    (here / "runs").mkdir(parents=True)
    words = train_words(data_of(place))
    with read_only(here / "runs"):
        said = expect_one_line(
            call(*words, cwd=here, env=cache_of(place)), "cannot make a run folder", REFUSED
        )
    assert not list((here / "runs").iterdir())
    return said


def _read_only_resume(place: Place, random: Random, folder: Path) -> str:
    run = stopped_run(place, folder, random)
    with read_only(run):
        said = expect_one_line(finish(place, run), "cannot use the run folder", REFUSED)
    expect_success(finish(place, run))
    expect_same(run, whole_run(place))
    return said


def _read_only_cache(place: Place, random: Random, folder: Path) -> str:
    cache = folder / "cache"
    cache.mkdir()
    words, env = train_words(data_of(place)), {"FASTRESNET_CACHE": str(cache)}
    with read_only(cache):
        said = expect_one_line(
            call(*words, cwd=folder / "here", env=env), "packing", REFUSED, "FASTRESNET_CACHE"
        )
    return said


def _only_read(place: Place, random: Random, folder: Path) -> str:
    """What only reads a run needs no right to write it."""
    run = folder / "runs" / whole_run(place).name
    shutil.copytree(whole_run(place), run)
    image = next(iter((place.root / "shared").rglob("*.jpg")), None)
    if image is None:
        from torture.tiny import images_of

        image = next(images_of(place).rglob("*.jpg"))
    with read_only(folder / "runs"):
        expect_success(call("eval", str(run), cwd=folder / "here", env=cache_of(place)))
        expect_success(call("predict", str(run), str(image), cwd=folder / "here", env=cache_of(place)))
        out = folder / "report"
        expect_success(call("report", str(run), "--out", str(out), cwd=folder / "here", env=cache_of(place)))
    return "eval, predict and report work"


def _vanished(place: Place, random: Random, folder: Path) -> str:
    running = started_run(place, folder / "here", rows=random.randint(0, EPOCHS // 2))
    gone = random.choice([only_run(folder / "here"), folder / "here" / "runs"])
    shutil.rmtree(gone, ignore_errors=True)  # a file may be written meanwhile
    shutil.rmtree(gone, ignore_errors=True)
    done = running.wait()
    if done.code == 0:
        return "it had ended"
    return expect_one_line(done, "cannot write", "No such file or directory")


def _moved(place: Place, random: Random, folder: Path) -> str:
    running = started_run(place, folder / "here", rows=random.randint(0, 4))
    run = only_run(folder / "here")
    there = folder / "there" / "runs"
    there.mkdir(parents=True)
    run.rename(there / run.name)
    done = running.wait()
    said = "it had ended"
    if done.code != 0:
        said = expect_one_line(done, "cannot write", "No such file or directory")
        expect_success(finish(place, there / run.name))
    expect_same(there / run.name, whole_run(place))
    return f"{said}; resumed where it lies now"


def _cache_vanished(place: Place, random: Random, folder: Path) -> str:
    """The pack stays mapped; a resumed run packs again."""
    env = {"FASTRESNET_CACHE": str(folder / "cache")}
    shutil.copytree(cache_of(place)["FASTRESNET_CACHE"], env["FASTRESNET_CACHE"])
    whole = whole_run(place)
    run = stopped_run(place, folder, random)
    shutil.rmtree(env["FASTRESNET_CACHE"])
    expect_success(finish(place, run, env=env))
    expect_same(run, whole)
    return "packed again, and the same bits"


def _data_vanished(place: Place, random: Random, folder: Path) -> str:
    data = folder / "own.npz"
    shutil.copy(data_of(place), data)
    run = stopped_run(place, folder, random, data)
    data.unlink()
    said = expect_one_line(finish(place, run), "no such data", "--data")
    expect_success(finish(place, run, "--data", str(data_of(place))))
    return said


def _here_vanished(place: Place, random: Random, folder: Path) -> str:
    """The folder that the command was started in, with all its runs."""
    running = started_run(place, folder / "here", rows=1)
    for _ in range(3):
        shutil.rmtree(folder / "here", ignore_errors=True)
    done = running.wait()
    return (
        "it had ended"
        if done.code == 0
        else expect_one_line(done, "cannot write", "No such file or directory")
    )
