"""Outside commands on the board: each run prints one JSON line, and the clock is its own."""

from __future__ import annotations

import datetime
import json
import os
import subprocess
import time
from dataclasses import dataclass
from tempfile import TemporaryFile
from typing import IO, Any

from fastresnet.bench.orphans import end_group, guarded
from fastresnet.errors import UserError

REQUIRED = ("accuracy", "seconds", "clock")
OPTIONAL_NUMBERS = ("cpu_s", "energy_j")
OPTIONAL_WORDS = ("tta", "repository", "commit", "changes")
MOST_LINE_BYTES = 1 << 20  # of the last line that is read
SEED = "{seed}"


@dataclass(frozen=True, kw_only=True)
class Peer:
    """A command that trains once and prints a JSON line, its last, on stdout.

    The line holds ``accuracy`` in [0, 1], ``seconds``, and ``clock``, what those seconds cover, in words. It may also
    hold ``cpu_s`` and ``energy_j``, the CPU seconds and the GPU's joules of what the clock covers, and in words
    ``tta``, ``repository``, ``commit`` and ``changes``: where the code comes from, and what was changed to run it here.

    Attributes:
        name: on the board.
        command: for the shell; ``{seed}`` in it is replaced by the run's seed.
        minutes: most that a run may take; None for any.
    """

    name: str
    command: str
    minutes: float | None = None

    @classmethod
    def parse(cls, text: str, minutes: float | None = None) -> Peer:
        """Return the peer of ``NAME=COMMAND``; raises UserError where it is not of that form."""
        name, equals, command = text.partition("=")
        if not equals or not name.strip() or not command.strip():
            raise UserError(f"--peer is {text!r}; write --peer 'NAME=COMMAND'")
        if "|" in name or not name.isprintable():  # it stands in a table
            raise UserError(f"--peer has the name {name!r}; take one without | and line ends")
        return cls(name=name.strip(), command=command.strip(), minutes=minutes)

    def run(self, seed: int) -> dict[str, Any]:
        """Run it once and return its line, and ``process_s``, the seconds of the whole process.

        Raises:
            UserError: it failed, took too long, or printed no such line.
        """
        started = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        # Files: a pipe ends only when all that it has left running has closed it.
        with TemporaryFile() as said, TemporaryFile() as complained:
            start = time.perf_counter()
            process = subprocess.Popen(
                guarded(self.command.replace(SEED, str(seed))),
                stdin=subprocess.DEVNULL,
                stdout=said,
                stderr=complained,
                start_new_session=True,
            )
            try:
                process.wait(None if self.minutes is None else 60 * self.minutes)
            except subprocess.TimeoutExpired:
                raise UserError(
                    f"--peer {self.name} was ended after {self.minutes:g} minutes, which is --peer-minutes"
                ) from None
            finally:
                end_group(process)
            process_s = time.perf_counter() - start
            if process.returncode:
                last = _last_line(complained) or _last_line(said) or "it said nothing"
                raise UserError(f"--peer {self.name} exited with {process.returncode}: {last}")
            return {**self._line(_last_line(said)), "started": started, "process_s": process_s}

    def _line(self, last: str) -> dict[str, Any]:
        try:
            found = json.loads(last)
        except (ValueError, RecursionError):
            found = None
        if not isinstance(found, dict) or not _is_answer(found):
            raise UserError(
                f"--peer {self.name} must print, last, one JSON line with accuracy (0 to 1), seconds and clock (what "
                f"the seconds cover), and perhaps cpu_s and energy_j, numbers too; it printed {last[:200]!a}"
            )
        kept = {key: found[key] for key in (*REQUIRED, *OPTIONAL_NUMBERS) if found.get(key) is not None}
        words = {key: str(found[key]) for key in ("clock", *OPTIONAL_WORDS) if found.get(key)}
        # they stand in a page's paragraphs
        return kept | {key: " ".join(text.split()) for key, text in words.items()}


def _is_answer(found: dict[str, Any]) -> bool:
    accuracy, clock = found.get("accuracy"), found.get("clock")
    numbers = [
        found.get("seconds"),
        *(found[key] for key in OPTIONAL_NUMBERS if found.get(key) is not None),
    ]
    return (
        isinstance(accuracy, int | float)
        and not isinstance(accuracy, bool)
        and 0 <= accuracy <= 1
        and all(map(_is_amount, numbers))
        and isinstance(clock, str)
        and bool(clock.strip())
        and all(_is_text(str(found[key])) for key in ("clock", *OPTIONAL_WORDS) if found.get(key))
    )


def _is_text(words: str) -> bool:
    """Whether a file in UTF-8 can hold them; JSON may have half a character."""
    try:
        words.encode()
    except UnicodeEncodeError:
        return False
    return True


def _is_amount(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < 1e9


def _last_line(file: IO[bytes]) -> str:
    """Return the last line of text in a file, or the end of it; empty where there is none."""
    file.seek(max(0, file.seek(0, os.SEEK_END) - MOST_LINE_BYTES))
    return (file.read().decode(errors="replace").strip().splitlines() or [""])[-1]
