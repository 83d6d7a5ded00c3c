"""Processes that end with the one that started them, however that ends.

Run as a file it is a guard: it runs a shell command, and when its parent dies ends that with all that it has started.
The guard's group must be its own. It imports the standard library alone, so that it starts at once.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
from types import FrameType

PR_SET_PDEATHSIG = 1  # of prctl(2)


def die_with_parent(signum: int = signal.SIGKILL) -> None:
    """Have the kernel send this process a signal when its parent ends."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signum)


def guarded(command: str) -> list[str]:
    """Return the command line of a guard of ``command``, for a child of this process in a session of its own."""
    return [sys.executable, "-I", __file__, str(os.getpid()), command]


def end_group(process: subprocess.Popen[bytes]) -> None:
    """End a child that leads a group of its own, and whatever it has left running in that, and wait for it."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _end_group(signum: int, frame: FrameType | None) -> None:
    os.killpg(0, signal.SIGKILL)


def _guard(parent: int, command: str) -> int:
    signal.signal(signal.SIGTERM, _end_group)
    die_with_parent(signal.SIGTERM)
    if os.getppid() != parent:  # it ended before the kernel was asked
        return 1
    code = subprocess.call(command, shell=True)
    return code if code >= 0 else 128 - code  # as a shell says a signal


if __name__ == "__main__":
    sys.exit(_guard(int(sys.argv[1]), sys.argv[2]))
