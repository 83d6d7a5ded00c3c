"""SIGINT and SIGTERM: the first one asks to stop, one that comes later kills."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from types import FrameType
from typing import Any

SIGNALS = (signal.SIGINT, signal.SIGTERM)
PATIENCE_S = 1.0  # within it a signal that comes again, as from `timeout`, is still the first
# torchrun passes on what the terminal has sent already, perhaps late, and kills by itself after 30 s.
TORCHRUN_PATIENCE_S = 15.0


class Stopped(BaseException):
    """A signal asked the program to stop.

    Attributes:
        signum: the signal.
        name: its name.
    """

    def __init__(self, signum: int) -> None:
        super().__init__(signum)
        self.signum = signum
        self.name = signal.Signals(signum).name


def on_stop(ask: Callable[[int], None]) -> dict[int, Any]:
    """From now on give the first SIGINT or SIGTERM to ``ask``; return the handlers that were there before.

    Only the main thread may call it.
    """
    owner, first = os.getpid(), 0.0
    patience_s = TORCHRUN_PATIENCE_S if "TORCHELASTIC_RUN_ID" in os.environ else PATIENCE_S

    def handle(signum: int, frame: FrameType | None) -> None:
        nonlocal first
        if os.getpid() != owner:
            return  # a forked loader process is ended by its parent
        if not first:
            first = time.monotonic()
            ask(signum)
        elif time.monotonic() - first > patience_s:
            signal.signal(signum, signal.SIG_DFL)
            signal.raise_signal(signum)

    return {signum: signal.signal(signum, handle) for signum in SIGNALS}


def raise_stopped() -> None:
    """From now on the first SIGINT or SIGTERM raises :class:`Stopped`, which unwinds what is being written."""

    def ask(signum: int) -> None:
        raise Stopped(signum)

    on_stop(ask)
