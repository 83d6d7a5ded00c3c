"""Threads that die before they begin: CPython waits for such a one for ever (python/cpython#140746)."""

from __future__ import annotations

import threading

PATIENCE_S = 30.0  # however busy a machine is, a thread that has not begun by then has died


class _Begun(threading.Event):
    """The event that a starting thread sets, and that whoever starts it waits for."""

    def wait(self, timeout: float | None = None) -> bool:
        """Wait as an event does, but without a timeout no longer than :data:`PATIENCE_S`; raises MemoryError then."""
        if timeout is None and not super().wait(PATIENCE_S):
            raise MemoryError("a new thread did not begin")
        return super().wait(timeout)


def bound_thread_starts() -> None:
    """From now on starting a thread raises MemoryError where the thread has no memory to begin with.

    Its stack is the greatest part of what a thread needs. Where a limit is met just behind it, the thread dies within
    the interpreter, and :meth:`threading.Thread.start` would not return.
    """
    begin = threading.Thread.start

    def start(self: threading.Thread) -> None:
        begun = getattr(self, "_started", None)
        if isinstance(begun, threading.Event) and not begun.is_set():
            self._started = _Begun()  # type: ignore[attr-defined]
        begin(self)

    threading.Thread.start = start  # type: ignore[method-assign]
