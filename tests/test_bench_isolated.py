"""A measurement in a process of its own, whose parent is killed."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil

FAR = 60.0
PROGRAM = """
import os, sys, time
from pathlib import Path
from fastresnet.bench.isolated import run_isolated

def measure(folder, weigh):
    (folder / "pid.tmp").write_text(str(os.getpid()))
    (folder / "pid.tmp").rename(folder / "pid")
    while not (folder / "go").exists():
        time.sleep(0.01)
    weigh(True)

run_isolated(measure, Path(sys.argv[1]), limit_s=600)
"""


def test_it_ends_when_its_parent_is_killed(tmp_path: Path) -> None:
    """It waited for ever for an answer to ``weigh``: it held the parent's end of the pipe too."""
    parent = subprocess.Popen([sys.executable, "-c", PROGRAM, str(tmp_path)])
    end = time.monotonic() + FAR
    try:
        while not (tmp_path / "pid").exists():
            assert parent.poll() is None and time.monotonic() < end
            time.sleep(0.01)
    finally:
        parent.kill()
        parent.wait()
    child = int((tmp_path / "pid").read_text())
    (tmp_path / "go").touch()
    try:
        while psutil.pid_exists(child) and psutil.Process(child).status() != psutil.STATUS_ZOMBIE:
            assert time.monotonic() < end, "it waits for a parent that is gone"
            time.sleep(0.01)
    except psutil.NoSuchProcess:
        return
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(child, signal.SIGKILL)
