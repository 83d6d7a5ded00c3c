"""Signals that ask to stop, wherever they find the program."""

from __future__ import annotations

import gc
import os
import signal
import time

import pytest

from fastresnet.signals import Stopped, raise_stopped


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
