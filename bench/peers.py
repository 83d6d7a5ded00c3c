"""Outside commands on the board: each run prints one JSON line, and the clock is its own."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import time
from dataclasses import dataclass
from typing import Any

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
        start = time.perf_counter()
        process = subprocess.Popen(
            self.command.replace(SEED, str(seed)),
            shell=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        try:
            said, complained = process.communicate()
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)  # whatever it has left running
            process.wait()
        process_s = time.perf_counter() - start
        if process.returncode:
            last = (complained.strip().splitlines() or ["it said nothing"])[-1]
            raise UserError(f"--peer {self.name} exited with {process.returncode}: {last}")
        return {**self._line(said), "process_s": process_s}

    def _line(self, said: str) -> dict[str, Any]:
        last = (said.strip().splitlines() or [""])[-1]
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
