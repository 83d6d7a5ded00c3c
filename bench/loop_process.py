"""A training loop in a process of its own, idle but while it is timed, so that nothing of another loop is in it.

But for what a DataLoader's workers load ahead: when its turn ends they go on until they have filled their queues (two
batches each), beside the turn that follows, and the next turn of their own begins with those. Of a few steps that hides
what the loader takes; it favours the loop that has one.
"""

from __future__ import annotations

import multiprocessing
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from typing import Any

import torch

from fastresnet.engine.machine import synchronise
from fastresnet.errors import UserError
from fastresnet.signals import blocked, unblock
from fastresnet.thread_start import bound_thread_starts

WARM_STEPS = 2


@dataclass(frozen=True, kw_only=True)
class Loop:
    """A loop that trains without end; each iterator yields the images of the step it has done.

    Attributes:
        steps: on batches as its loader gives them.
        steps_alone: on one batch that stays on the device: what the loader leaves of the speed.
        what: the loop in words.
        device: where it trains.
        options: what was found to be fastest, by option; empty where nothing was looked for.
        reasons: why, in a few words, by option.
    """

    steps: Iterator[int]
    steps_alone: Iterator[int]
    what: str
    device: torch.device
    options: dict[str, str] = field(default_factory=dict)
    reasons: dict[str, str] = field(default_factory=dict)


class LoopProcess:
    """A process that makes a loop and times it when asked.

    It starts when this does, and warms up (compiling, where the loop does) while others do; :meth:`await_ready` waits
    for it. Its settings (threads, allocator) are torch's defaults unless the loop changes them.

    Args:
        name: for errors and process lists.
        make: a function of a module, called there.
        arguments: of ``make``, picklable.
    """

    def __init__(self, name: str, make: Callable[..., Loop], *arguments: Any) -> None:
        context = multiprocessing.get_context("spawn")
        self.name = name
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, make, arguments), name=name)
        with blocked():
            self._process.start()
        theirs.close()

    def await_ready(self) -> dict[str, Any]:
        """Return ``what`` the loop is, its ``options`` and their ``reasons``.

        And its ``start_s``: making it, compiling and warming up.

        Raises:
            UserError: it cannot be had here, or its process died.
        """
        return dict(self._answer())

    def time(self, steps: int, *, alone: bool = False) -> float:
        """Train ``steps`` steps, ``alone`` or with the loader, and return the images a second."""
        self._begin(steps, alone)
        return float(self._answer())

    def _begin(self, steps: int, alone: bool = False) -> None:
        try:
            self._pipe.send((steps, alone))
        except BrokenPipeError:
            raise UserError(f"the process of {self.name!r} died") from None

    def _answer(self) -> Any:
        try:
            kind, value = self._pipe.recv()
        except (EOFError, OSError):
            raise UserError(f"the process of {self.name!r} died") from None
        if kind == "failed":
            raise UserError(f"{self.name!r} failed: {value}")
        return value

    def close(self) -> None:
        """End the process, whatever it is at; calling it again does nothing."""
        self._pipe.close()
        if self._process.is_alive():
            self._process.join(timeout=5)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()


def time_together(processes: Sequence[LoopProcess], steps: int) -> list[float]:
    """Train ``steps`` steps in every process at once, with its loader, and return the images a second of each."""
    for process in processes:
        process._begin(steps)
    return [float(process._answer()) for process in processes]


def _serve(pipe: Connection, make: Callable[..., Loop], arguments: tuple[Any, ...]) -> None:
    """Answer each number of steps with images a second, until the other end closes."""
    signal.signal(
        signal.SIGINT, signal.SIG_DFL
    )  # Ctrl-C ends it without a word; the parent says what there is to say
    unblock()
    bound_thread_starts()
    try:
        start = time.perf_counter()
        loop = make(*arguments)
        for steps in (loop.steps, loop.steps_alone):
            _time_steps(steps, WARM_STEPS, loop.device)
        start_s = time.perf_counter() - start
        pipe.send(
            (
                "done",
                {"what": loop.what, "options": loop.options, "reasons": loop.reasons, "start_s": start_s},
            )
        )
        while True:
            steps, alone = pipe.recv()
            speed = _time_steps(loop.steps_alone if alone else loop.steps, steps, loop.device)
            pipe.send(("done", speed))
    except (EOFError, BrokenPipeError):
        return
    except Exception as error:
        line = (str(error).strip().splitlines() or [""])[0]
        pipe.send(("failed", line if isinstance(error, UserError) else f"{type(error).__name__}: {line}"))


def _time_steps(loop: Iterator[int], steps: int, device: torch.device) -> float:
    synchronise(device)
    start = time.perf_counter()
    images = sum(next(loop) for _ in range(steps))
    synchronise(device)
    return images / (time.perf_counter() - start)
