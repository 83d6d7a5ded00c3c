"""Outside commands on the board: each run prints one JSON line, and the clock is its own."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import time
from dataclasses import dataclass
from tempfile import TemporaryFile
from typing import IO, Any

from fastresnet.errors import UserError

REQUIRED = {"accuracy": (int, float), "seconds": (int, float), "clock": (str,)}
OPTIONAL = ("repository", "commit", "changes")
SEED = "{seed}"


@dataclass(frozen=True, kw_only=True)
class Peer:
    """A command that trains once and prints a JSON line, its last, on stdout.

    The line holds ``accuracy`` in [0, 1], ``seconds``, and ``clock``, what those seconds cover, in words. For the
    record it may also hold ``repository``, ``commit`` and ``changes``: where the code comes from, and in prose what
    was changed to run it here.

    Attributes:
        name: on the board.
        command: for the shell; ``{seed}`` in it is replaced by the run's number, from 0.
    """

    name: str
    command: str

    @classmethod
    def parse(cls, text: str) -> Peer:
        """Return the peer of ``NAME=COMMAND``."""
        name, equals, command = text.partition("=")
        if not equals or not name.strip() or not command.strip():
            raise UserError(f"--peer is {text!r}; write --peer 'NAME=COMMAND'")
        return cls(name=name.strip(), command=command.strip())

    def run(self, seed: int) -> dict[str, Any]:
        """Run it once and return its line, and ``process_s``, the seconds of the whole process.

        Raises:
            UserError: it failed, or printed no such line.
        """
        # Files: a pipe ends only when all that it has left running has closed it.
        with TemporaryFile() as said, TemporaryFile() as complained:
            start = time.perf_counter()
            process = subprocess.Popen(
                self.command.replace(SEED, str(seed)),
                shell=True,
                stdin=subprocess.DEVNULL,
                stdout=said,
                stderr=complained,
                start_new_session=True,
            )
            try:
                process.wait()
            finally:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)  # whatever it has left running
                process.wait()
            process_s = time.perf_counter() - start
            if process.returncode:
                last = _last_line(complained) or "it said nothing"
                raise UserError(f"--peer {self.name} exited with {process.returncode}: {last}")
            return {**self._line(_last_line(said)), "process_s": process_s}

    def _line(self, last: str) -> dict[str, Any]:
        try:
            found = json.loads(last)
        except ValueError:
            found = None
        wrong = not isinstance(found, dict) or [
            key
            for key, types in REQUIRED.items()
            if not isinstance(found.get(key), types) or isinstance(found[key], bool)
        ]
        if wrong or not 0 <= found["accuracy"] <= 1 or not 0 < found["seconds"] < float("inf"):
            raise UserError(
                f"--peer {self.name} must print, last, one JSON line with accuracy (0 to 1), seconds and clock (what "
                f"the seconds cover); it printed {last[:200]!r}"
            )
        kept = {key: found[key] for key in REQUIRED}
        return kept | {key: str(found[key]) for key in OPTIONAL if found.get(key)}


def _last_line(file: IO[bytes]) -> str:
    """Return the last line of text in a file; empty where there is none."""
    file.seek(0)
    return (file.read().decode(errors="replace").strip().splitlines() or [""])[-1]
