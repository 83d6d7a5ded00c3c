"""A measurement in a process of its own, so that it starts clean, can be weighed whole and cannot stop the rest."""

from __future__ import annotations

import contextlib
import multiprocessing
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any

import psutil

from fastresnet.errors import UserError

SAMPLE_EVERY_S = 0.05


class FailedError(Exception):
    """Why a measurement has no result, in one line."""


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What a measurement gave.

    Attributes:
        value: what the function returned.
        peak_added_bytes: most memory that the process, its workers and we held at once between its calls of
            ``weigh(True)`` and ``weigh(False)``, beyond what we held before; None if it never called.
    """

    value: Any
    peak_added_bytes: int | None


def _held_bytes() -> int:
    """Return the memory of this process and all below it: shared pages count once, mapped files as far as touched."""
    total = 0
    this = psutil.Process()
    for process in (this, *this.children(recursive=True)):
        with contextlib.suppress(psutil.Error):
            total += process.memory_full_info().pss
    return total


def _child(
    theirs: Connection, connection: Connection, function: Callable[..., Any], arguments: tuple[Any, ...]
) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to act on
    theirs.close()  # held here too, it would keep this waiting for a parent that was killed

    def weigh(on: bool) -> None:
        connection.send(("weigh", on))
        connection.recv()

    try:
        connection.send(("done", function(*arguments, weigh)))
    except BaseException as error:
        line = (str(error).strip().splitlines() or [""])[0]
        connection.send(
            ("failed", line if isinstance(error, UserError) else f"{type(error).__name__}: {line}")
        )


def run_isolated(function: Callable[..., Any], *arguments: Any, limit_s: float) -> Outcome:
    """Call ``function(*arguments, weigh)`` in a forked process and return what it gave.

    The fork inherits imported modules and opened data, so that neither is measured. This process must not have
    used CUDA or started threads.

    Raises:
        FailedError: it raised, died, or took over ``limit_s`` seconds.
    """
    context = multiprocessing.get_context("fork")
    before = _held_bytes()
    here, there = context.Pipe()
    process = context.Process(target=_child, args=(here, there, function, arguments))
    sys.stdout.flush()
    sys.stderr.flush()
    process.start()
    there.close()
    try:
        return _follow(here, before, time.monotonic() + limit_s)
    finally:
        _kill_tree(process.pid)
        process.join()
        here.close()


def _follow(connection: Connection, before: int, deadline: float) -> Outcome:
    weighing, peak = False, None
    while True:
        if not connection.poll(
            SAMPLE_EVERY_S if weighing else max(0.0, min(1.0, deadline - time.monotonic()))
        ):
            if time.monotonic() > deadline:
                raise FailedError("it took too long and was stopped")
            if weighing:
                peak = max(peak or 0, _held_bytes() - before)
            continue
        try:
            kind, value = connection.recv()
        except EOFError:
            raise FailedError("the process died") from None
        if kind == "weigh":
            weighing = value
            peak = max(peak or 0, _held_bytes() - before)
            connection.send(None)
        elif kind == "failed":
            raise FailedError(value)
        else:
            return Outcome(value=value, peak_added_bytes=peak)


def _kill_tree(pid: int | None) -> None:
    with contextlib.suppress(psutil.Error):
        if pid is not None:
            top = psutil.Process(pid)
            for process in (*top.children(recursive=True), top):
                with contextlib.suppress(psutil.Error):
                    process.kill()
