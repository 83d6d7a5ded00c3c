"""Two processes, or more, on one run folder and on one cache."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from random import Random

from torture.case import Case, Place, Run, cases_of, expect_one_line, expect_success
from torture.child import call, start
from torture.tiny import (
    cache_of,
    data_of,
    expect_same,
    finish,
    images_of,
    only_run,
    started_run,
    stopped_run,
    train_words,
    whole_run,
)


def cases(place: Place, short: bool) -> Iterator[Case]:
    """Yield what processes do to each other."""
    kinds: dict[str, tuple[int, Run]] = {
        "resumed while it trains": (2, _resumed_while_training),
        "resumed twice at once": (3, _resumed_twice),
        "four pack at once": (2, _four_pack),
        "four find one damaged pack": (2, _four_mend),
        "runs made at once": (1, _runs_at_once),
    }
    yield from cases_of(place, kinds, fault="shared: ", name="shared", times=1 if short else None)


def _resumed_while_training(place: Place, random: Random, folder: Path) -> str:
    here = folder / "here"
    running = started_run(place, here, "--epochs", "40", rows=1)
    run = only_run(here)
    other = finish(place, run)
    if other.code == 0:  # the first had ended before
        said = "it had ended"
    else:
        said = expect_one_line(other, "is in use by another process", f"pid {running.pid}")
    expect_success(running.wait())
    assert json.loads((run / "result.json").read_text())["epochs"][-1]["epoch"] == 40
    return said


def _resumed_twice(place: Place, random: Random, folder: Path) -> str:
    run = stopped_run(place, folder, random)
    words = ("train", "--resume", run.name)
    both = [start(*words, cwd=run.parent.parent, env=cache_of(place)) for _ in range(2)]
    done = [running.wait() for running in both]
    said = "one waited for nothing: the other had ended"
    for other in done:
        if other.code != 0:
            said = expect_one_line(other, "is in use by another process")
    assert any(other.code == 0 for other in done)
    expect_same(run, whole_run(place))
    return said


def _digests(place: Place, folder: Path, env: dict[str, str], data: Path) -> set[str]:
    words = ("data", "info", str(data), "--json")
    four = [start(*words, cwd=folder / f"reader-{number}", env=env) for number in range(4)]
    found = set()
    for running in four:
        done = running.wait()
        expect_success(done)
        found.add(json.loads(done.out)["digest"])
    packs = Path(env["FASTRESNET_CACHE"]) / "packs"
    left = sorted(path.name for path in packs.iterdir() if path.name.startswith("."))
    assert not left, f"left in the cache: {left}"
    assert sum(path.is_dir() for path in packs.iterdir()) == 1
    return found


def _four_pack(place: Place, random: Random, folder: Path) -> str:
    env = {"FASTRESNET_CACHE": str(folder / "cache")}
    assert len(_digests(place, folder, env, images_of(place))) == 1
    expect_success(call("data", "verify", cwd=folder / "here", env=env))
    return "one pack, the same for all"


def _four_mend(place: Place, random: Random, folder: Path) -> str:
    env = {"FASTRESNET_CACHE": str(folder / "cache")}
    wanted = _digests(place, folder, env, images_of(place))
    files = sorted(path for path in (folder / "cache" / "packs").glob("*/*") if path.stat().st_size)
    torn = random.choice(files)
    content = bytearray(torn.read_bytes())
    content[random.randrange(len(content))] ^= 1 << random.randrange(8)
    torn.write_bytes(content)
    shutil.rmtree(folder / "reader-0")
    assert _digests(place, folder, env, images_of(place)) == wanted
    return "mended once, the same for all"


def _runs_at_once(place: Place, random: Random, folder: Path) -> str:
    """Three runs are made in one folder at once: none is taken for what another left."""
    here = folder / "here"
    whole = whole_run(place)
    words = train_words(data_of(place))
    three = [start(*words, cwd=here, env=cache_of(place)) for _ in range(3)]
    for running in three:
        expect_success(running.wait())
    runs = sorted((here / "runs").iterdir())
    assert len(runs) == 3, [path.name for path in runs]
    for run in runs:
        expect_same(run, whole)
    return "each its own run, with the same bits"
