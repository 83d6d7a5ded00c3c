"""The memory limit is hit: a limit on what a process may map, from its start or on its way; a cgroup's."""

from __future__ import annotations

import contextlib
import os
import resource
import time
from collections.abc import Iterator
from pathlib import Path
from random import Random

from torture.case import Case, NotHere, Place, Run, cases_of, expect_success
from torture.child import Done, Fault, call
from torture.tiny import (
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

CGROUPS = Path("/sys/fs/cgroup")


def cases(place: Place, short: bool) -> Iterator[Case]:
    """Yield limits, low and high, at the start and on the way."""
    kinds: dict[str, tuple[int, Run]] = {
        "of what may be mapped, from the start": (6, _from_start),
        "of what may be mapped, on the way": (4, _on_the_way),
        "of a cgroup": (2, _cgroup),
    }
    if short:
        kinds = {what: kind for what, kind in kinds.items() if kind[1] is not _cgroup}
    yield from cases_of(place, kinds, fault="memory limit ", name="memory", times=2 if short else None)


def _from_start(place: Place, random: Random, folder: Path) -> str:
    """Some limits are met while packing, some in the first step, and some never."""
    here, env = folder / "here", cache_of(place)
    fault = Fault(memory=int(2 ** random.uniform(14, 27)))
    words = train_words(data_of(place))
    done = call(*words, cwd=here, env=env, fault=fault)
    return _afterwards(place, here, done)


def _afterwards(place: Place, here: Path, done: Done) -> str:
    """Go on without the limit, or start again: the same bits; and say how the limited one ended."""
    whole = whole_run(place)
    if done.code != 0:
        if begun(here):
            expect_success(finish(place, only_run(here)))
        else:
            left = list((here / "runs").iterdir()) if (here / "runs").exists() else []
            assert done.code < 0 or not left, f"left behind: {left}"  # a killed one's is removed by the next
            expect_success(call(*train_words(data_of(place)), cwd=here, env=cache_of(place)))
    expect_same(only_run(here), whole)
    if done.code == 0:
        return "it had enough"
    if done.is_one_line:
        return done.error
    return f"exit {done.code}, not in one line: {done.last_line}"


def _on_the_way(place: Place, random: Random, folder: Path) -> str:
    here = folder / "here"
    running = started_run(place, here, rows=random.randint(0, 3))
    mapped = 0
    with contextlib.suppress(OSError):
        mapped = int(Path(f"/proc/{running.pid}/statm").read_text().split()[0]) * resource.getpagesize()
    with contextlib.suppress(ProcessLookupError):
        limit = random.choice([mapped // 2, mapped, mapped + (1 << 16)])
        resource.prlimit(running.pid, resource.RLIMIT_AS, (limit, resource.RLIM_INFINITY))
    return _afterwards(place, here, running.wait())


def _cgroup(place: Place, random: Random, folder: Path) -> str:
    group = CGROUPS / f"torture-{os.getpid()}-{random.randrange(10**6)}"
    if not (CGROUPS / "cgroup.controllers").is_file():
        raise NotHere(f"{CGROUPS} holds no cgroups of version 2")
    try:
        group.mkdir()
        with (group / "memory.max").open("r+") as limit:
            limit.write("max")
    except OSError as error:
        with contextlib.suppress(OSError):
            group.rmdir()
        raise NotHere(f"no cgroup with a memory limit can be made: {error.strerror}") from error
    try:
        here = folder / "here"
        running = started_run(place, here, "--batch-size", "16", rows=1)
        with contextlib.suppress(OSError):
            (group / "cgroup.procs").write_text(str(running.pid))
            with contextlib.suppress(OSError):
                (group / "memory.swap.max").write_text("0")
            (group / "memory.max").write_text(str(random.choice([0, 1 << 20])))
        return _afterwards(place, here, running.wait())
    finally:
        for _ in range(50):
            with contextlib.suppress(OSError):
                group.rmdir()
                break
            time.sleep(0.1)
