"""Damaged files, of every kind that is read: ours are named or made again, the user's named or without effect."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random
from typing import cast

from made_data import write_official, write_tar

from torture.case import Case, Place, expect_one_line, expect_success
from torture.child import Done, call
from torture.kills import SWEEP
from torture.tiny import (
    cache_of,
    data_of,
    expect_same,
    finish,
    images_of,
    stopped_run,
    whole_run,
)

RUN_FILES = {  # and how often
    "last.safetensors": 5,
    "previous.safetensors": 2,
    "best.safetensors": 2,
    "events.jsonl": 4,
    "config.json": 4,
    "lock": 1,
    "result.json": 3,
}
PACK_FILES = {"train_images.u8": 2, "train_labels.i64": 2, "test_images.u8": 1, "meta.json": 3}
DATA = ("image folder", "tar", "tar.gz", "tar.xz", "npz", "pickles", "betons")


def damage(path: Path, random: Random) -> str:
    """Change a file as a failing disk, a cut connection or a slip of the hand does; return what was done."""
    content = bytearray(path.read_bytes())
    place = random.randrange(max(1, len(content)))
    kind = random.choice(["bit", "bit", "bit", "byte", "cut", "hole", "tail"])
    if kind == "bit" and content:
        content[place] ^= 1 << random.randrange(8)
    elif kind == "byte" and content:
        content[place] = random.randrange(256)
    elif kind == "cut":
        del content[place:]
    elif kind == "hole":
        content[place : place + 512] = bytes(len(content[place : place + 512]))
    else:
        content += random.randbytes(random.randint(1, 64))
    path.write_bytes(content)
    return f"{kind} at {place} of {path.name}"


def cases(place: Place, short: bool) -> Iterator[Case]:
    """Yield damage to each kind of file."""

    def case(what: str, index: int, run: Callable[[Random, Path], str]) -> Case:
        return Case(fault=f"damaged: {what}", name=f"damaged {what} {index}", run=run)

    for name, times in RUN_FILES.items():
        for index in range(1 if short else times):
            yield case(name, index, lambda random, folder, name=name: _run_file(place, random, folder, name))  # type: ignore[misc]
    for name, times in PACK_FILES.items():
        for index in range(1 if short else times):
            yield case(
                f"pack's {name}", index, lambda r, folder, name=name: _pack_file(place, r, folder, name)
            )  # type: ignore[misc]
    for kind in DATA:
        for index in range(1 if short else 4):
            yield case(kind, index, lambda random, folder, kind=kind: _data(place, random, folder, kind))  # type: ignore[misc]
    for index in range(1 if short else 4):
        yield case("recipe", index, lambda random, folder: _recipe(place, random, folder))
        yield case("sweep file", index, lambda random, folder: _sweep(place, random, folder))


def _stopped(place: Place, folder: Path) -> Path:
    """Return a copy of a run that was killed on its way."""
    first = place.once("stopped", lambda there: stopped_run(place, there, Random(1)))
    run = folder / "here" / "runs" / cast(Path, first).name
    shutil.copytree(cast(Path, first), run)
    return run


def _run_file(place: Place, random: Random, folder: Path, name: str) -> str:
    whole = whole_run(place)
    if name == "result.json":
        run = folder / "here" / "runs" / whole.name
        shutil.copytree(whole, run)
        did = damage(run / name, random)
        saw = [expect_one_line(done, name) for done in (finish(place, run), _report(place, run, folder))]
        return _cut(saw[0])
    run = _stopped(place, folder)
    if not (run / name).exists():
        shutil.copy(run / "last.safetensors", run / name)
    did = damage(run / name, random)
    before = {path.name: path.read_bytes() for path in run.iterdir()}
    done = finish(place, run)
    if done.code != 0:
        assert name in ("events.jsonl", "config.json"), f"{did}: {done.err}"
        said = expect_one_line(done, name)
        after = {path.name: path.read_bytes() for path in run.iterdir()}
        del before["lock"], after["lock"]
        assert before == after, "it was changed all the same"
        return _cut(said)
    if name == "best.safetensors":
        tested = call("eval", f"{run}:best", cwd=folder / "here", env=cache_of(place))
        if tested.code != 0:  # no later epoch was better, so the damaged one is still there
            return _cut(expect_one_line(tested, name))
    expect_same(run, whole)
    if name == "last.safetensors":
        assert "torn or was altered" in done.out or "not a fastresnet checkpoint" in done.out, (
            f"{did}: {done.out}"
        )
        return "said, and gone on from the checkpoint before it to the same bits"
    return "no difference: the same bits"


def _cut(said: str) -> str:
    """Return a line whose ends differ with the damage, less what differs."""
    return said.split(": its ")[0] if ": its " in said else said


def _report(place: Place, run: Path, folder: Path) -> Done:
    return call("report", str(run), "--out", str(folder / "report"), cwd=folder / "here", env=cache_of(place))


def _pack_file(place: Place, random: Random, folder: Path, name: str) -> str:
    whole = whole_run(place)
    run = _stopped(place, folder)
    env = {"FASTRESNET_CACHE": str(folder / "cache")}
    expect_success(call("data", "info", str(data_of(place)), cwd=folder / "here", env=env))
    (pack,) = [path for path in (folder / "cache" / "packs").iterdir() if path.is_dir()]
    did = damage(pack / name, random)
    checked = call("data", "verify", cwd=folder / "here", env=env)
    assert (checked.code == 1) == ("damaged" in checked.out), f"{did}: {checked.out}{checked.err}"
    done = finish(place, run, env=env)
    expect_success(done)
    expect_same(run, whole)
    if checked.code == 0:
        return "no difference: the same bits"
    assert "the pack was damaged" in done.out, f"{did}: {done.out}"
    return "said, packed again, and the same bits"


def make_data(place: Place, kind: str) -> Path:
    """Return data of a kind; the cases damage copies of it."""

    def make(folder: Path) -> Path:
        images = images_of(place)
        if kind.startswith("tar"):
            return write_tar(images, folder / f"photos.{kind}")
        if kind == "pickles":
            return write_official(folder / "pickles", per_batch=10)
        if kind == "betons":
            words = ("data", "pack", str(images), "--to", "beton", "--out", str(folder / "betons"))
            expect_success(call(*words, cwd=folder / "here", env=cache_of(place)))
            return folder / "betons"
        return images if kind == "image folder" else data_of(place)

    return cast(Path, place.once(f"data {kind}", make))


def _data(place: Place, random: Random, folder: Path, kind: str) -> str:
    data = make_data(place, kind)
    whole = whole_run(place, kind, lambda place: data)
    first = place.once(f"stopped {kind}", lambda there: stopped_run(place, there, Random(1), data))
    run = folder / "here" / "runs" / cast(Path, first).name
    shutil.copytree(cast(Path, first), run)
    copy = folder / data.name
    if data.is_dir():
        shutil.copytree(data, copy)
        files = sorted(path for path in copy.rglob("*") if path.is_file())
    else:
        shutil.copy(data, copy)
        files = [copy]
    did = damage(random.choice(files), random)
    done = finish(place, run, "--data", str(copy))
    if done.code == 0:
        expect_same(run, whole)
        return "no difference: the same bits"
    said = expect_one_line(done)
    assert copy.name in said or "the data has changed since this run began" in said, f"{did}: {said}"
    expect_success(finish(place, run, "--data", str(data)))
    expect_same(run, whole)
    return "named: the data has changed" if "has changed" in said else _kind_of(said)


def _kind_of(said: str) -> str:
    """Return what a refusal says without the decoder's own words, which differ with each byte."""
    for phrase in (
        "is not an image that can be read",
        "is truncated or damaged",
        "is truncated or no pickle of arrays",
        "is truncated or no .npz",
        "is no readable .npz",
        "is no .beton file that can be read",
        "cannot be read",
    ):
        if phrase in said:
            return f"named: ... {phrase} ..."
    return f"named: {said}"


def _recipe(place: Place, random: Random, folder: Path) -> str:
    """A recipe that changes under a run is named; the run goes on as it began. A new run takes it or says one line."""
    recipe = folder / "own.toml"
    shown = call("recipes", "fast", cwd=folder / "here", env=cache_of(place))
    recipe.write_text(shown.out)
    whole = whole_run(place)
    run = stopped_run(place, folder, random, None, "--recipe", str(recipe))
    did = damage(recipe, random)
    done = finish(place, run)
    expect_success(done)
    expect_same(run, whole)
    if recipe.read_text("utf-8", "replace") != shown.out:
        assert "has changed since the run began" in done.out, f"{did}: {done.out}"
    again = call("recipes", str(recipe), cwd=folder / "here", env=cache_of(place))
    if again.code != 0:
        expect_one_line(again, recipe.name)
    assert "Traceback" not in again.err, again.err
    return "named, and gone on with as it began"


def _sweep(place: Place, random: Random, folder: Path) -> str:
    file = folder / "tiny.toml"
    file.write_text(SWEEP)
    damage(file, random)
    done = call("sweep", str(file), "--list", cwd=folder / "here", env=cache_of(place))
    if done.code == 0:
        return "still a sweep, which is shown"
    said = expect_one_line(done)
    assert file.name in said, said
    return "named: not a sweep"
