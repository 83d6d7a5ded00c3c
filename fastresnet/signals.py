"""SIGINT, SIGTERM and SIGHUP: the first one asks to stop; a later SIGINT or SIGTERM kills."""

from __future__ import annotations

import errno
import os
import signal
import sys
import threading
import time
from _thread import start_new_thread
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
# A terminal that closes may send several SIGHUPs, at any distance; nobody grows impatient by them.
KILLING = (signal.SIGINT, signal.SIGTERM)
PATIENCE_S = 1.0  # within it a signal that comes again, as from `timeout`, is still the first
# torchrun passes on what the terminal has sent already, perhaps late, and kills by itself after 30 s.
TORCHRUN_PATIENCE_S = 15.0
AGAIN_S = 0.01  # until a stop that Python threw away, or that came amid an import, is raised again


def stopped_by(signum: int) -> str:
    """Return in words why a program stops; SIGPIPE stands for :func:`ask_to_stop` of a lost reader."""
    if signum == signal.SIGPIPE:
        return "stopped because nobody reads its output any more"
    return f"stopped by {signal.Signals(signum).name}"


class Stopped(BaseException):
    """A signal asked the program to stop.

    Attributes:
        signum: the signal.
        name: its name.
    """

    def __init__(self, signum: int) -> None:
        super().__init__(stopped_by(signum))
        self.signum = signum
        self.name = signal.Signals(signum).name


def on_stop(ask: Callable[[int], None]) -> dict[int, Any]:
    """From now on give the first of SIGNALS to ``ask``; return the handlers that were there before.

    SIGHUP stays ignored where it is, as `nohup` has it. Only the main thread may call this.
    """
    owner, first = os.getpid(), 0.0
    patience_s = TORCHRUN_PATIENCE_S if "TORCHELASTIC_RUN_ID" in os.environ else PATIENCE_S

    def handle(signum: int, frame: FrameType | None) -> None:
        nonlocal first
        if os.getpid() != owner:
            return  # a forked loader process is ended by its parent
        if signum == signal.SIGHUP:
            _discard_lost_terminals()
        if not first:
            first = time.monotonic()
            ask(signum)
        elif signum in KILLING and time.monotonic() - first > patience_s:
            signal.signal(signum, signal.SIG_DFL)
            signal.raise_signal(signum)

    ignored = signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    wanted = [signum for signum in SIGNALS if not (signum == signal.SIGHUP and ignored)]
    return {signum: signal.signal(signum, handle) for signum in wanted}


def raise_stopped() -> None:
    """From now on the first of SIGNALS raises :class:`Stopped`, which unwinds what is being written.

    Python throws away what is raised amid a callback, as of the garbage collector; there it is raised again soon after.
    Libraries that are being imported may do so too, or make another error of it; it waits until they are, or until
    somebody grows impatient.
    """
    first, is_waiting, is_ours = 0.0, False, False

    def ask(signum: int) -> None:
        nonlocal first, is_waiting, is_ours
        first = first or time.monotonic()
        is_patient = is_ours or time.monotonic() - first < PATIENCE_S
        is_waiting = is_ours = False
        if not (is_patient and _is_importing()):
            raise Stopped(signum)
        ask_again(signum)

    def ask_again(signum: int) -> None:
        nonlocal is_waiting
        on_stop(ask)
        is_waiting = True
        # Not a threading.Thread: this may be amid the start of one, whose lock is taken.
        start_new_thread(send, (signum,))

    def send(signum: int) -> None:
        nonlocal is_ours
        time.sleep(AGAIN_S)
        if is_waiting:
            is_ours = True
            os.kill(os.getpid(), signum)

    def unraisable(lost: sys.UnraisableHookArgs) -> None:
        if isinstance(lost.exc_value, Stopped):
            ask_again(lost.exc_value.signum)
        else:
            others(lost)

    others = sys.unraisablehook
    sys.unraisablehook = unraisable
    on_stop(ask)


@contextmanager
def held() -> Iterator[None]:
    """Act on a signal that comes within at the end: code that is called from C++ may lose or replace what is raised.

    In other threads than the main one, which signals do not interrupt, nothing is held.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    came: list[int] = []
    handlers = {signum: signal.getsignal(signum) for signum in SIGNALS}
    ours = {signum: handler for signum, handler in handlers.items() if callable(handler)}
    for signum in ours:
        signal.signal(signum, lambda number, frame: came.append(number))
    try:
        yield
    finally:
        for signum, handler in ours.items():
            signal.signal(signum, handler)
        if came:
            signal.raise_signal(came[0])


@contextmanager
def blocked() -> Iterator[None]:
    """Hold SIGNALS back until the end; processes that are spawned within never get them before :func:`unblock`.

    One that came while such a process imports what it needs would end it with a traceback.
    """
    from multiprocessing import resource_tracker

    resource_tracker.ensure_running()  # whose start, amid that of the first process, would unblock SIGINT
    before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def unblock() -> None:
    """Take what was held back by :func:`blocked`, and what comes from now on."""
    signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)


def ask_to_stop(signum: int) -> None:
    """Do what SIGTERM would do since :func:`on_stop`, for the reason ``signum``."""
    handler = signal.getsignal(signal.SIGTERM)
    if callable(handler):
        handler(signum, None)


def discard(descriptor: int) -> None:
    """Throw away what is written to a file descriptor from now on, and what a buffer still holds of it."""
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, descriptor)
    os.close(null)


def _discard_lost_terminals() -> None:
    """Have no print fail because its terminal is gone."""
    for descriptor in (1, 2):
        try:
            os.get_terminal_size(descriptor)
        except OSError as error:
            if error.errno == errno.EIO:  # one that is no terminal gives another
                discard(descriptor)


def _is_importing() -> bool:
    frame: FrameType | None = sys._getframe()
    while frame is not None and frame.f_globals.get("__name__") != "importlib._bootstrap":
        frame = frame.f_back
    return frame is not None
