"""``fastresnet`` in processes of its own, on pipes or on a terminal."""

from __future__ import annotations

import contextlib
import os
import pty
import re
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest
from tiny_runs import ARCH, BATCH

from fastresnet.folder import CONFIG

COMMAND = (sys.executable, "-m", "fastresnet", "train")
# Of a run of many epochs it would be measured whether compiling pays, which takes a minute.
TINY = ("--arch", ARCH, "--batch-size", str(BATCH), "--threads", "1", "--device", "cpu", "--compile", "off")
FAR = 300.0  # seconds after which a process that should have ended or spoken is taken to hang


@contextmanager
def started(
    folder: Path, *arguments: str, command: tuple[str, ...] = COMMAND
) -> Iterator[subprocess.Popen[str]]:
    """Start ``fastresnet train`` in ``folder``, in a process group of its own that does not outlive the test."""
    folder.mkdir(exist_ok=True)
    process = subprocess.Popen(
        [*command, *arguments],
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    watch = threading.Timer(FAR, process.kill)  # so that nothing reads its output for ever
    watch.start()
    try:
        yield process
    finally:
        watch.cancel()
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


def await_line(process: subprocess.Popen[str], start: str) -> str:
    """Return the next line of output that begins with ``start``."""
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith(start):
            return line
    pytest.fail(f"ended without saying {start!r}: {process.stderr and process.stderr.read()}")


def await_run(process: subprocess.Popen[str], folder: Path) -> Path:
    """Return the run's folder once it is there."""
    end = time.monotonic() + FAR
    while process.poll() is None and time.monotonic() < end:
        found = list((folder / "runs").glob(f"[!.]*/{CONFIG}"))
        if found:
            return found[0].parent
        time.sleep(0.002)
    pytest.fail(f"made no run: {process.communicate()}")


def spawned(parent: int) -> list[psutil.Process]:
    """Return the processes that multiprocessing has spawned for ``parent``."""
    found = []
    for process in psutil.Process(parent).children():
        with contextlib.suppress(psutil.Error):
            if "spawn_main" in " ".join(process.cmdline()):
                found.append(process)
    return found


class Terminal:
    """``fastresnet train`` on a terminal of 200 columns, where Ctrl-C can be typed."""

    def __init__(self, folder: Path, *arguments: str, hears_hangups: bool = True) -> None:
        folder.mkdir(exist_ok=True)
        self.shown = ""
        self.pid, self.screen = pty.fork()
        if self.pid == 0:
            os.chdir(folder)
            if not hears_hangups:
                signal.signal(signal.SIGHUP, signal.SIG_IGN)
            os.environ |= {"TERM": "xterm", "COLUMNS": "200"}
            os.execv(sys.executable, [*COMMAND, *arguments])

    def read(self, until: str | None) -> str:
        """Return what is shown up to and with ``until``, or to the end."""
        end = time.monotonic() + FAR
        while until is None or until not in self.shown:
            assert select.select([self.screen], [], [], max(0, end - time.monotonic()))[0], self.shown
            try:
                more = os.read(self.screen, 4096)
            except OSError:  # Linux's way of saying that the other side was closed
                more = b""
            if not more:
                assert until is None, self.shown
                break
            self.shown += more.decode()
        cut = len(self.shown) if until is None else self.shown.index(until) + len(until)
        found, self.shown = self.shown[:cut], self.shown[cut:]
        return found

    def interrupt(self) -> tuple[int, str]:
        """Type Ctrl-C; return the exit code and what was shown after it."""
        os.write(self.screen, b"\x03")
        shown = self.read(None)
        return self.close(), shown

    def close(self) -> int:
        """Close the terminal's window; return the exit code."""
        os.close(self.screen)
        end = time.monotonic() + FAR
        while not (ended := os.waitpid(self.pid, os.WNOHANG))[0]:
            if time.monotonic() > end:
                os.kill(self.pid, signal.SIGKILL)
            time.sleep(0.02)
        return os.waitstatus_to_exitcode(ended[1])


def screen_lines(shown: str) -> list[str]:
    """Return the lines that a terminal is left with: a carriage return and an erasure overwrite."""
    lines = []
    for line in re.sub(r"\x1b\[\?\d+[hl]", "", shown).replace("\r\n", "\n").split("\n"):
        last = line.rsplit("\r\x1b[K", 1)[-1]
        if last:
            lines.append(last)
    return lines
