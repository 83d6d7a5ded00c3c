"""Trainings at once, each in a process of its own that trains one run after another; whoever asks writes the record."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing import connection
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from fastresnet.errors import UserError
from fastresnet.signals import blocked, stopped_by, unblock
from fastresnet.thread_start import bound_thread_starts

if TYPE_CHECKING:
    from fastresnet.recipe import Recipe
    from fastresnet.run import RunConfig


class Trainer:
    """A process that trains what it is given. It gets no signal from the terminal, and ends with this process.

    Args:
        runs_dir: its own, for the folders of its runs.
    """

    def __init__(self, runs_dir: Path) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, runs_dir), name="training")
        with blocked():  # until it has a session of its own
            self._process.start()
        theirs.close()
        self.label: str | None = None
        self.is_over = False

    @property
    def is_idle(self) -> bool:
        """Whether it has nothing to train."""
        return self.label is None and not self.is_over

    def begin(self, recipe: Recipe, config: RunConfig, label: str) -> None:
        """Have it train; ``label`` is what errors call the run. Its answer comes by :func:`answers`."""
        assert self.is_idle
        self.label = label
        with contextlib.suppress(BrokenPipeError):  # the answer says that it died
            self._pipe.send((recipe, config, label))

    def _receive(self) -> tuple[str, Any]:
        """Return ``told`` with a line, ``done`` with what :func:`train_once` returned, or ``failed`` with why."""
        try:
            kind, value = self._pipe.recv()
        except (EOFError, OSError):
            self.close()
            code = self._process.exitcode or 0
            how = f"was ended by {signal.Signals(-code).name}" if code < 0 else f"exited with {code}"
            return "failed", f"its process {how}; the same command does this run again"
        return kind, value

    def close(self) -> None:
        """End the process and all that it has started, whatever it is at."""
        if self.is_over:
            return
        self.is_over = True
        self._pipe.close()
        if self._process.pid is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.kill()  # which may not have had a group of its own yet
            self._process.join()


@contextmanager
def crew(most: int, runs_dir: Path) -> Iterator[Callable[[], Trainer | None]]:
    """Yield what returns a trainer that is idle, started where there are fewer than ``most``, else None.

    All are ended afterwards.
    """
    started: list[Trainer] = []

    def free() -> Trainer | None:
        idle = next((trainer for trainer in started if trainer.is_idle), None)
        if idle is None and sum(not trainer.is_over for trainer in started) < most:
            idle = Trainer(runs_dir / str(len(started)))
            started.append(idle)
        return idle

    try:
        yield free
    finally:
        for trainer in started:
            trainer.close()


def answers(busy: list[Trainer]) -> Iterator[tuple[Trainer, str, Any]]:
    """Wait until some of ``busy`` answer; yield each with ``told`` and a line, ``done`` and a run, ``failed`` and why.

    One whose process died has failed, and is over.
    """
    by_pipe = {trainer._pipe: trainer for trainer in busy}
    for ready in connection.wait(list(by_pipe)):
        trainer = by_pipe[cast(Connection, ready)]
        kind, value = trainer._receive()
        if kind != "told":
            trainer.label = None
        yield trainer, kind, value


def _serve(pipe: Connection, runs_dir: Path) -> None:
    """Train what comes through the pipe, until the other end closes."""
    os.setsid()
    for signum in (signal.SIGINT, signal.SIGHUP):
        signal.signal(signum, signal.SIG_IGN)  # Ctrl-C and a lost terminal are the parent's to act on
    unblock()
    bound_thread_starts()
    threading.Thread(target=_end_with_parent, name="parent", daemon=True).start()
    from fastresnet.bench.board_run import train_once
    from fastresnet.engine.fit import Interrupted

    def tell(line: str) -> None:
        pipe.send(("told", line))

    while True:
        try:
            recipe, config, label = pipe.recv()
            try:
                answer: tuple[str, Any] = ("done", train_once(recipe, config, runs_dir, label, tell))
            except UserError as error:
                answer = ("failed", str(error))
            except Interrupted as stop:
                answer = ("failed", stopped_by(stop.signum))
            pipe.send(answer)
        except (EOFError, BrokenPipeError, ConnectionResetError):
            return


def _end_with_parent() -> None:
    """End this process, and what it has started, once the one that started it is no more."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os.killpg(0, signal.SIGKILL)
