"""A case: one fault put upon one run, and what is asked of it; and where the cases of a torture take place."""

from __future__ import annotations

import shutil
import tempfile
import threading
import traceback
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from random import Random

from torture.child import Done


class NotHere(Exception):
    """This machine cannot have the fault; the text says why."""


@dataclass(frozen=True, kw_only=True)
class Case:
    """One fault.

    Attributes:
        fault: its kind, a row of the table.
        name: what it is replayed by.
        run: puts it upon a run in the folder that it is given; returns what the user saw. Raises AssertionError where
            something was lost or wrong, NotHere where it cannot be had.
    """

    fault: str
    name: str
    run: Callable[[Random, Path], str]


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What came of a case.

    Attributes:
        case: the case.
        state: ``survived``, ``failed``, ``not here``, or ``no time``.
        saw: the line that the user saw, or why it failed.
    """

    case: Case
    state: str
    saw: str


Maker = Callable[["Place", bool], Iterator[Case]]  # (where, short) to the cases of a family


@dataclass
class Place:
    """Folders that every case shares: data, a cache, and runs that nothing happened to, made when first asked for."""

    root: Path
    _made: dict[str, object] = field(default_factory=dict)
    _lock: threading.RLock = field(default_factory=threading.RLock)

    def once(self, name: str, make: Callable[[Path], object]) -> object:
        """Return what ``make(folder)`` gave the first time."""
        with self._lock:
            if name not in self._made:
                folder = self.root / "shared" / name
                folder.mkdir(parents=True)
                self._made[name] = make(folder)
            return self._made[name]


Run = Callable[[Place, Random, Path], str]  # what a :class:`Case` runs, in a place


def cases_of(
    place: Place, kinds: Mapping[str, tuple[int, Run]], *, fault: str, name: str, times: int | None = None
) -> Iterator[Case]:
    """Yield each kind as often as it says, or ``times``; ``fault`` and ``name`` stand before what it is called."""
    for what, (own_times, run) in kinds.items():
        for index in range(own_times if times is None else times):
            yield Case(fault=f"{fault}{what}", name=f"{name} {what} {index}", run=partial(run, place))


def attempt(case: Case, place: Place, seed: int) -> Outcome:
    """Run a case in a folder of its own, which is kept where it fails."""
    folder = Path(
        tempfile.mkdtemp(prefix=f"{case.name.replace(' ', '-').replace('/', '-')}-", dir=place.root)
    )
    try:
        saw = case.run(Random(f"{seed}/{case.name}"), folder)
    except NotHere as reason:
        outcome = Outcome(case=case, state="not here", saw=str(reason))
    except AssertionError as error:
        return Outcome(case=case, state="failed", saw=f"{_first(error)} [{folder}]")
    except Exception as error:
        where = traceback.extract_tb(error.__traceback__)[-1]
        said = f"{type(error).__name__}: {_first(error)} ({Path(where.filename).name}:{where.lineno})"
        return Outcome(case=case, state="failed", saw=f"{said} [{folder}]")
    else:
        outcome = Outcome(case=case, state="survived", saw=saw)
    shutil.rmtree(folder, ignore_errors=True)
    return outcome


def _first(error: BaseException) -> str:
    words = " ".join((str(error) or type(error).__name__).split())
    return words if len(words) < 900 else f"{words[:300]} ... {words[-600:]}"


def expect_one_line(done: Done, *words: str) -> str:
    """Return the one line with which a command ended, having made sure that it is one and holds ``words``."""
    assert done.is_one_line, f"exit {done.code}: {(done.out + done.err)[-1500:]}"
    line = done.error
    for word in words:
        assert word in line, f"{line!r} does not say {word!r}"
    return line


def expect_success(done: Done) -> str:
    """Return the last line of a command that succeeded."""
    assert done.code == 0 and "Traceback" not in done.err, (
        f"exit {done.code}: {(done.out + done.err)[-1500:]}"
    )
    return done.last_line
