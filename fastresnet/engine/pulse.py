"""Whether the other ranks are still there: a thread that meets theirs every moment, whatever the training does."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable
from datetime import timedelta

import torch
from torch import distributed

BEAT_S = 0.5
FROZEN_S = 30.0  # a rank that misses its beat for so long is lost, even if its connections stand
GRACE_S = 3.0  # for the main thread to find out by itself, before the process is ended under it
EXIT_CODE = 2


class Pulse(threading.Thread):
    """Beats with the other ranks' pulses until all close, or one is gone.

    A dead process is noticed at once, by its closed connections; a frozen one, or a host that has vanished,
    after FROZEN_S. A rank that is merely slow (it compiles, packs, or writes) keeps beating. A main thread that
    waits in a collective for a lost rank cannot be woken, so then this thread ends the process.

    Args:
        group: a gloo group of all ranks that nothing else uses.
        has_ended: whether some rank has said why it ends.
        on_lost: prints what is to be said, when the main thread cannot.
    """

    def __init__(
        self,
        group: distributed.ProcessGroup,
        has_ended: Callable[[], bool],
        on_lost: Callable[[], None],
    ) -> None:
        super().__init__(name="fastresnet-pulse", daemon=True)
        self._group = group
        self._has_ended = has_ended
        self._on_lost = on_lost
        self._closing = threading.Event()
        self._lost = threading.Event()
        self._taken_over = threading.Event()
        self._ends = False  # this thread ends the process
        self._choice = threading.Lock()

    def run(self) -> None:
        world_size = self._group.size()
        while True:
            closing = self._closing.wait(BEAT_S)
            num_closing = torch.tensor([int(closing)])
            try:
                work = distributed.all_reduce(num_closing, group=self._group, async_op=True)
                assert work is not None
                work.wait(timedelta(seconds=FROZEN_S))
                if num_closing.item() == world_size:
                    return
                if self._has_ended():
                    break
            except RuntimeError:
                break
        self._lost.set()
        self._taken_over.wait(GRACE_S)
        with self._choice:
            self._ends = not self._taken_over.is_set()
        if self._ends:
            with contextlib.suppress(Exception):
                self._on_lost()
            os._exit(EXIT_CODE)

    def close(self) -> None:
        """Stop beating, together with every other rank's pulse."""
        self._closing.set()
        self.join()

    def take_over(self) -> None:
        """Leave the end of the process to the caller, or wait for it where it is under way."""
        with self._choice:
            self._taken_over.set()
        if self._ends:
            self.join()

    def lost(self, patience_s: float) -> bool:
        """Return whether a rank is lost, or is found to be within ``patience_s`` seconds."""
        return self._lost.wait(patience_s)
