"""Signals that ask to stop, wherever they find the program."""

from __future__ import annotations

import gc
import os
import signal
import time

import pytest

from fastresnet.signals import Stopped, held, raise_stopped


@pytest.mark.usefixtures("signals_of_its_own")
def test_a_stop_amid_a_callback_is_not_lost() -> None:
    """Python throws away what a callback of its garbage collector raises: the program went on for good."""
    sent = []

    def amid_a_collection(phase: str, info: dict[str, int]) -> None:
        if not sent:
            sent.append(phase)
            os.kill(os.getpid(), signal.SIGTERM)

    raise_stopped()
    gc.callbacks.append(amid_a_collection)
    try:
        with pytest.raises(Stopped, match="stopped by SIGTERM"):
            gc.collect()
            assert sent
            time.sleep(10)
    finally:
        gc.callbacks.remove(amid_a_collection)


@pytest.mark.usefixtures("signals_of_its_own")
def test_a_signal_amid_what_must_not_be_torn_is_acted_on_at_its_end() -> None:
    """A board's figure is drawn by C++, which made another error of the stop, or none."""
    raise_stopped()
    before = [signal.getsignal(signum) for signum in (signal.SIGINT, signal.SIGTERM)]
    done = []
    with pytest.raises(Stopped, match="stopped by SIGTERM"), held():
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGINT)
        done.append("the rest")
    assert done and before == [signal.getsignal(signum) for signum in (signal.SIGINT, signal.SIGTERM)]
    with held():
        pass  # and nothing, where none came
