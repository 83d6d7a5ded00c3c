"""SIGINT and SIGTERM of a command: an exception that unwinds what is being written, whatever is under way."""

from __future__ import annotations

import os
import signal
import time
from types import FrameType

PATIENCE_S = 1.0  # within it a signal that comes again, as from `timeout`, is still the first


class Stopped(BaseException):
    """A signal asked the command to stop.

    Attributes:
        signum: the signal.
        name: its name.
    """

    def __init__(self, signum: int) -> None:
        super().__init__(signum)
        self.signum = signum
        self.name = signal.Signals(signum).name


def raise_stopped() -> None:
    """From now on the first SIGINT or SIGTERM raises :class:`Stopped`; a later one kills."""
    owner, first = os.getpid(), 0.0

    def stop(signum: int, frame: FrameType | None) -> None:
        nonlocal first
        if os.getpid() != owner:
            return  # a forked loader process is ended by its parent
        if not first:
            first = time.monotonic()
            raise Stopped(signum)
        if time.monotonic() - first > PATIENCE_S:
            signal.signal(signum, signal.SIG_DFL)
            signal.raise_signal(signum)

    for signum in (signal.SIGINT, signal.SIGTERM):
        signal.signal(signum, stop)
