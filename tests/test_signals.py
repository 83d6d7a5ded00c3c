"""Signals that ask to stop, wherever they find the program."""

from __future__ import annotations

import gc
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from llvmlite import ir

from fastresnet import signals
from fastresnet.kernels import vector_code
from fastresnet.signals import Stopped, held, raise_stopped

# A library that takes a stop amid its import for a part that is missing, and goes on without.
TOLERANT = """
import os, signal, time
try:
    os.kill(os.getpid(), signal.SIGINT)
    time.sleep(0.1)
    whole = True
except BaseException:
    whole = False
"""


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


@pytest.mark.usefixtures("signals_of_its_own")
def test_a_stop_amid_an_import_waits_for_its_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Torch's own import lost one in fifty, or made an error of numpy's of it."""
    (tmp_path / "tolerant.py").write_text(TOLERANT)
    monkeypatch.syspath_prepend(tmp_path)
    raise_stopped()
    with pytest.raises(Stopped, match="stopped by SIGINT"):
        import tolerant  # type: ignore[import-not-found]

        assert tolerant.whole
        time.sleep(10)
    assert sys.modules.pop("tolerant").whole


@pytest.mark.usefixtures("signals_of_its_own")
def test_who_stops_an_import_twice_does_not_wait_for_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(signals, "PATIENCE_S", 0.02)
    again = "import os, signal, time\nfor _ in range(500):\n    os.kill(os.getpid(), signal.SIGINT); time.sleep(0.1)"
    (tmp_path / "endless.py").write_text(again)
    monkeypatch.syspath_prepend(tmp_path)
    raise_stopped()
    with pytest.raises(Stopped, match="stopped by SIGINT"):
        import endless  # type: ignore[import-not-found]  # noqa: F401


@pytest.mark.usefixtures("signals_of_its_own")
def test_a_stop_amid_the_writing_of_machine_code_is_acted_on_at_its_end() -> None:
    """Amid what llvmlite disposes of, it had that disposed of twice: the process ended by SIGABRT."""
    done = []

    def write(module: ir.Module) -> None:
        function = ir.Function(module, ir.FunctionType(ir.VoidType(), [ir.IntType(64)]), "run")
        ir.IRBuilder(function.append_basic_block()).ret_void()
        os.kill(os.getpid(), signal.SIGTERM)
        done.append("written")

    raise_stopped()
    before = len(vector_code._engines)
    with pytest.raises(Stopped, match="stopped by SIGTERM"):
        vector_code.compiled(write)
    assert done and len(vector_code._engines) == before + 1


def test_ctrl_c_before_the_command_line_is_there_ends_it_without_a_word(tmp_path: Path) -> None:
    (tmp_path / "typer.py").write_text("import os, signal\nos.kill(os.getpid(), signal.SIGINT)")
    command = [sys.executable, "-m", "fastresnet", "doctor"]
    ended = subprocess.run(
        command, env=os.environ | {"PYTHONPATH": str(tmp_path)}, capture_output=True, text=True
    )
    assert (ended.returncode, ended.stdout, ended.stderr) == (-signal.SIGINT, "", "")
