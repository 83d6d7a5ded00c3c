"""A thread that dies before it begins ends in an error, not in a wait for ever."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from fastresnet import thread_start


@pytest.fixture(autouse=True)
def bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threading.Thread, "start", threading.Thread.start)
    monkeypatch.setattr(thread_start, "PATIENCE_S", 0.2)
    thread_start.bound_thread_starts()


def dies(thread: threading.Thread) -> None:
    """What a lack of memory does to a thread: the interpreter ends it before its first line."""
    raise SystemExit  # as quiet as can be; a MemoryError would be printed as well


def test_a_thread_that_dies_before_it_begins_is_a_lack_of_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as broken:
        broken.setattr(threading.Thread, "_bootstrap", dies)
        with pytest.raises(MemoryError, match="did not begin"):
            threading.Thread(target=print).start()
        with pytest.raises(MemoryError, match="did not begin"), ThreadPoolExecutor(1) as pool:
            pool.submit(print)


def test_threads_begin_as_ever() -> None:
    with ThreadPoolExecutor(2) as pool:
        assert list(pool.map(abs, range(-9, 0))) == list(range(9, 0, -1))
    thread = threading.Thread(target=int)
    thread.start()
    thread.join()
    with pytest.raises(RuntimeError, match="only be started once"):
        thread.start()
