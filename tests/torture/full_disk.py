"""A full disk, at every kind of write: a small file system of our own that is filled, or a limit on files' sizes."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from random import Random

from torture.case import Case, NotHere, Place, Run, cases_of, expect_one_line, expect_success
from torture.child import Fault, call, start
from torture.kills import SWEEP, expect_same_sweep, straight_sweep, sweep_words
from torture.tiny import (
    begun,
    cache_of,
    data_of,
    expect_same,
    finish,
    images_of,
    only_run,
    started_run,
    train_words,
    whole_run,
)

SAYS = "No space left on device"
PAGE = 4096  # bytes that a file takes at the least


@contextmanager
def small_disk(folder: Path, size: int = 8 << 20) -> Iterator[Path]:
    """Yield an empty file system of ``size`` bytes at ``folder/disk``. Raises NotHere where none can be mounted."""
    disk = folder / "disk"
    disk.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "torture", str(disk)]
    try:
        mounted = subprocess.run(command, capture_output=True, text=True)
    except OSError as error:
        raise NotHere(f"no small file system can be mounted: {error}") from error
    if mounted.returncode:
        raise NotHere(f"no small file system can be mounted: {mounted.stderr.strip()}")
    try:
        yield disk
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=False)


def fill(disk: Path, left: int) -> Path:
    """Fill ``disk`` up to about ``left`` bytes; return the file that does it."""
    filler = disk / "filler"
    status = os.statvfs(disk)
    size = max(0, status.f_bavail * status.f_frsize - left) // PAGE * PAGE
    with filler.open("wb") as file, contextlib.suppress(OSError):
        os.posix_fallocate(file.fileno(), 0, max(1, size))
    return filler


def cases(place: Place, short: bool) -> Iterator[Case]:
    """Yield a full disk at each kind of write, with more and less room left on it."""
    kinds: dict[str, tuple[int, Run]] = {
        "packing": (3, _packing),
        "making a run": (3, _making),
        "training": (6, _training),
        "training, with its output there": (2, _output),
        "writing a report": (2, _report),
        "exporting": (2, _export),
        "compiling": (1, _compiling),
        "a benchmark's record": (2, _board),
        "a sweep": (2, _sweep),
        "re-encoding as JPEGs": (2, _jpegs),
        "writing betons": (2, _betons),
        "a limit on files' sizes": (2, _limit),
    }
    if short:
        few = ("packing", "making a run", "training", "training, with its output there")
        kinds = {what: kinds[what] for what in few}
    yield from cases_of(place, kinds, fault="disk full: ", name="full disk", times=1 if short else None)


def _size(folder: Path) -> int:
    return sum(-(-path.stat().st_size // PAGE) * PAGE for path in folder.rglob("*") if path.is_file())


def _packing(place: Place, random: Random, folder: Path) -> str:
    whole = whole_run(place)
    needed = _size(place.root / "cache" / "packs")
    with small_disk(folder) as disk:
        env = {"FASTRESNET_CACHE": str(disk / "cache")}
        filler = fill(disk, random.randrange(2 * PAGE, max(3 * PAGE, needed // 2)))
        words = train_words(data_of(place))
        said = expect_one_line(call(*words, cwd=folder / "here", env=env), "the disk is full while packing")
        left = [
            path for path in (disk / "cache").rglob("*") if path.is_file() and not path.name.endswith(".lock")
        ]
        assert not left and not begun(folder / "here"), f"left behind: {left}"
        filler.unlink()
        expect_success(call(*words, cwd=folder / "here", env=env))
        expect_same(only_run(folder / "here"), whole)
    return said


def _making(place: Place, random: Random, folder: Path) -> str:
    """Leave room for some of a new run's folder, but not for all of it."""
    whole = whole_run(place)
    first = sum((whole / name).stat().st_size for name in ("config.json", "last.safetensors"))
    with small_disk(folder) as disk:
        filler = fill(disk, random.randrange(0, first))
        words = train_words(data_of(place), "--runs-dir", str(disk / "runs"))
        done = call(*words, cwd=folder / "here", env=cache_of(place))
        said = expect_one_line(done, SAYS)
        filler.unlink()
        left = list((disk / "runs").iterdir()) if (disk / "runs").exists() else []
        if left:  # there was room for all of the folder after all, and a later write has met the end
            _resumed(place, folder, disk, whole)
        else:
            expect_success(call(*words, cwd=folder / "here", env=cache_of(place)))
            expect_same(only_run(disk), whole)
    return said


def _resumed(place: Place, folder: Path, disk: Path, whole: Path) -> None:
    run = only_run(disk)
    words = ("train", "--resume", "last", "--runs-dir", str(disk / "runs"))
    expect_success(call(*words, cwd=folder / "here", env=cache_of(place)))
    expect_same(run, whole)


def _training(place: Place, random: Random, folder: Path) -> str:
    """Fill the disk while a run trains: whatever it writes next meets the end."""
    whole = whole_run(place)
    with small_disk(folder) as disk:
        (disk / "here").mkdir()
        running = started_run(place, disk / "here", rows=random.randint(0, 4))
        filler = fill(disk, random.choice([0, 0, PAGE, 3 * PAGE, 8 * PAGE, 16 * PAGE]))
        done = running.wait()
        filler.unlink()
        if done.code == 0:
            said = "it had ended"
        else:
            said = expect_one_line(done, "cannot write", SAYS)
            expect_success(finish(place, only_run(disk / "here")))
        expect_same(only_run(disk / "here"), whole)
    return said


def _output(place: Place, random: Random, folder: Path) -> str:
    """What the command prints goes to the full disk, and nothing else."""
    with small_disk(folder) as disk:
        filler = fill(disk, 0)
        words = train_words(data_of(place))
        running = start(*words, cwd=folder / "here", env=cache_of(place), said=disk)
        done = running.wait()
        assert done.code == 2 and "Traceback" not in done.err, f"exit {done.code}: {done.err[-800:]}"
        filler.unlink()
    if begun(folder / "here"):
        expect_success(finish(place, only_run(folder / "here")))
        expect_same(only_run(folder / "here"), whole_run(place))
    return "exit 2, and resumed to the same bits"


def _report(place: Place, random: Random, folder: Path) -> str:
    run = whole_run(place)
    with small_disk(folder) as disk:
        filler = fill(disk, random.randrange(0, 40 * PAGE))
        words = ("report", str(run), "--out", str(disk / "report"))
        said = expect_one_line(call(*words, cwd=folder / "here", env=cache_of(place)), SAYS)
        assert not list(disk.rglob(".*")), "a temporary file is left"
        filler.unlink()
        expect_success(call(*words, cwd=folder / "here", env=cache_of(place)))
    return said


def _compiling(place: Place, random: Random, folder: Path) -> str:
    """Leave room for the pack, and for none or some of what torch.compile keeps."""
    whole_run(place)
    with small_disk(folder, 16 << 20) as disk:
        shutil.copytree(place.root / "cache", disk / "cache")
        filler = fill(disk, random.choice((0, 2 * PAGE)))
        words = train_words(data_of(place), "--epochs", "1", "--compile", "on")
        # Named, as the process that cases are forked from has torch loaded, which then has a place of its own.
        env = {key: str(disk / "cache") for key in ("FASTRESNET_CACHE", "TORCHINDUCTOR_CACHE_DIR")}
        said = expect_one_line(call(*words, cwd=folder / "here", env=env), SAYS, "--compile on")
        assert not (folder / "here" / "runs").exists(), "a run was begun"
        filler.unlink()
        expect_success(call(*words, cwd=folder / "here", env=env))
    return said


def _board(place: Place, random: Random, folder: Path) -> str:
    """Leave room for the record of a run or two, and not for that of all; the same command goes on."""
    words = ("bench", "time-to", "--archs", "n2-b1-c4", "--epochs", "1", "--runs", "4", "--target", "0.9")
    with small_disk(folder) as disk:
        tiny = ("--set", "batch_size=16", "--compile", "off", "--threads", "1", "--device", "cpu")
        command = (*words, *tiny, "--data", str(data_of(place)), "--out", str(disk / "board.json"))
        filler = fill(disk, 2 * PAGE)
        said = expect_one_line(call(*command, cwd=folder / "here", env=cache_of(place)), SAYS)
        assert not list(disk.glob(".*")), "a temporary file is left"
        kept = (
            json.loads((disk / "board.json").read_bytes())["runs"] if (disk / "board.json").exists() else []
        )
        filler.unlink()
        expect_success(call(*command, cwd=folder / "here", env=cache_of(place)))
        runs = json.loads((disk / "board.json").read_bytes())["runs"]
        assert runs[: len(kept)] == kept and len(runs) == 4
    return said


def _export(place: Place, random: Random, folder: Path) -> str:
    run = whole_run(place)
    with small_disk(folder) as disk:
        filler = fill(disk, random.choice([0, PAGE]))
        form = random.choice(("safetensors", "torch-export"))
        words = ("export", str(run), "--to", form, "--out", str(disk / "network"))
        said = expect_one_line(call(*words, cwd=folder / "here", env=cache_of(place)), SAYS)
        left = [path.name for path in disk.iterdir() if path != filler]
        assert not left, f"left behind: {left}"
        filler.unlink()
        expect_success(call(*words, cwd=folder / "here", env=cache_of(place)))
    return said


def _sweep(place: Place, random: Random, folder: Path) -> str:
    straight = straight_sweep(place)
    file = folder / "tiny.toml"
    file.write_text(SWEEP)
    with small_disk(folder) as disk:
        filler = fill(disk, random.randrange(0, 120) * PAGE)
        words = sweep_words(file, data_of(place), disk / "sweeps")
        done = call(*words, cwd=folder / "here", env=cache_of(place))
        filler.unlink()
        assert done.code in (0, 1, 2) and "Traceback" not in done.err, f"exit {done.code}: {done.err[-1500:]}"
        said = done.last_line
        if done.code == 2:
            said = expect_one_line(done)
        expect_success(call(*words, "--retry-failed", cwd=folder / "here", env=cache_of(place)))
        expect_same_sweep(disk / "sweeps" / "tiny", straight)
    return said


def _jpegs(place: Place, random: Random, folder: Path) -> str:
    return _converted(place, random, folder, "jpeg", "--from", str(images_of(place)), "--to", "again.tar")


def _betons(place: Place, random: Random, folder: Path) -> str:
    return _converted(
        place, random, folder, "pack", str(images_of(place)), "--to", "beton", "--out", "betons"
    )


def _converted(place: Place, random: Random, folder: Path, *words: str) -> str:
    """Convert a data set to a file or folder on the full disk, the last of ``words``."""
    with small_disk(folder, 80 << 20) as disk:
        filler = fill(disk, random.randrange(0, 5 * PAGE))
        command = ("data", *words[:-1], str(disk / words[-1]))
        said = expect_one_line(call(*command, cwd=folder / "here", env=cache_of(place)), SAYS)
        left = [path.name for path in disk.rglob("*") if path.is_file() and path != filler]
        assert not left, f"left behind: {left}"
        filler.unlink()
        expect_success(call(*command, cwd=folder / "here", env=cache_of(place)))
    return said


def _limit(place: Place, random: Random, folder: Path) -> str:
    """A limit on files' sizes stands in for the disk where none can be mounted."""
    whole = whole_run(place)
    largest = (whole / "last.safetensors").stat().st_size
    here = folder / "here"
    fault = Fault(file_size=random.randrange(1, largest))
    done = call(*train_words(data_of(place)), cwd=here, env=cache_of(place), fault=fault)
    said = expect_one_line(done, "File too large")
    if begun(here):
        expect_success(finish(place, only_run(here)))
    else:
        assert not list((here / "runs").glob("*"))
        expect_success(call(*train_words(data_of(place)), cwd=here, env=cache_of(place)))
    expect_same(only_run(here), whole)
    return said
