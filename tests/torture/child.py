"""The command line in a process of its own that starts in milliseconds, and the faults that are put into it."""

from __future__ import annotations

import atexit
import contextlib
import multiprocessing
import os
import random
import resource
import shutil
import signal
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from types import FrameType
from typing import Any

# Forked from one process that has imported what a command needs, and computed nothing.
_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(["torture.preload"])
_STARTING = threading.Lock()
ERROR = "fastresnet: error: "
FAR = 900.0  # seconds after which a process that should have ended is taken to hang


@dataclass(frozen=True, kw_only=True)
class Fault:
    """What goes wrong inside a process.

    Attributes:
        inside: functions of ours whose lines are counted.
        die_at: SIGKILL comes before that line of them, from 0.
        count_to: a file for the number of lines; it is written when the process ends.
        memory: bytes that may be mapped beyond what is, at the start.
        file_size: bytes that no file may pass.
        clock: seed of a clock that jumps by days, back and forth, each time it is read.
    """

    inside: tuple[str, ...] = ()
    die_at: int | None = None
    count_to: str | None = None
    memory: int | None = None
    file_size: int | None = None
    clock: int | None = None


@dataclass
class Done:
    """How a process ended.

    Attributes:
        code: its exit status; negative for a signal.
        out, err: what it printed.
    """

    code: int
    out: str
    err: str

    @property
    def last_line(self) -> str:
        """The last line that the user saw."""
        lines = [line for line in (self.out + self.err).splitlines() if line.strip()]
        return lines[-1].strip() if lines else ""

    @property
    def is_one_line(self) -> bool:
        """It ended as a mistake of the user's does: exit 2 and one line, no traceback."""
        *before, last = [line for line in self.err.splitlines() if line.strip()] or [""]
        quiet = not any(
            "error" in line or "Traceback" in line for line in before
        )  # progress may stand before it
        return self.code == 2 and quiet and last.startswith(ERROR)

    @property
    def error(self) -> str:
        """The line with which it ended, less its beginning."""
        return (self.err.strip().splitlines() or [""])[-1].removeprefix(ERROR)


@dataclass
class Running:
    """A process on its way."""

    process: Any
    out: Path
    err: Path
    started: float = field(default_factory=time.monotonic)

    @property
    def pid(self) -> int:
        return int(self.process.pid)

    @property
    def is_alive(self) -> bool:
        return bool(self.process.is_alive())

    def kill(self) -> None:
        """Send SIGKILL to it and to the processes that it started."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, signal.SIGKILL)
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGKILL)

    def wait(self, limit_s: float = FAR) -> Done:
        """Return how it ended; after ``limit_s`` it is killed, which is an AssertionError."""
        self.process.join(limit_s)
        hung = self.process.is_alive()
        if hung:
            self.kill()
            self.process.join()
        out, err = (path.read_text("utf-8", "replace") for path in (self.out, self.err))
        assert not hung, f"it hung for {limit_s:.0f} s, having said: {out[-500:]}{err[-500:]}"
        return Done(self.process.exitcode, out, err)


def start(
    *arguments: str | Path,
    cwd: Path,
    fault: Fault | None = None,
    env: Mapping[str, str] | None = None,
    said: Path | None = None,
) -> Running:
    """Start ``fastresnet ARGUMENTS`` in ``cwd``, which is made, in a process group of its own.

    What it prints goes to files in the folder ``said``, by default one beside no run.
    """
    cwd.mkdir(parents=True, exist_ok=True)
    out, err = (
        Path(tempfile.mkstemp(prefix="said-", dir=said or _said(), suffix=kind)[1])
        for kind in (".out", ".err")
    )
    words = tuple(map(str, arguments))
    ask = (words, str(cwd), str(out), str(err), fault or Fault(), dict(env or {}))
    process = _CONTEXT.Process(target=_work, args=ask)
    # Each start looks whether earlier processes have ended. Of two threads that read the status of one, the second
    # finds none and takes it for 255, so only who waits for it may.
    with _STARTING:
        process.start()
        multiprocessing.process._children.discard(process)  # type: ignore[attr-defined]
    return Running(process, out, err)


@cache
def _said() -> str:
    """Return a folder for what processes print."""
    folder = tempfile.mkdtemp(prefix="torture-said-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


def call(
    *arguments: str | Path, cwd: Path, fault: Fault | None = None, env: Mapping[str, str] | None = None
) -> Done:
    """Run ``fastresnet ARGUMENTS`` in ``cwd`` to its end."""
    return start(*arguments, cwd=cwd, fault=fault, env=env).wait()


def _work(words: tuple[str, ...], cwd: str, out: str, err: str, fault: Fault, env: dict[str, str]) -> None:
    with contextlib.suppress(OSError):
        os.setsid()
    os.chdir(cwd)
    os.environ.update(env)
    for path, stream in ((out, 1), (err, 2)):
        handle = os.open(path, os.O_WRONLY | os.O_APPEND)
        os.dup2(handle, stream)
        os.close(handle)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    for name, stream in (("stdout", 1), ("stderr", 2)):
        setattr(sys, name, open(stream, "w", encoding="utf-8", closefd=False))  # noqa: SIM115 - the process's own
    sys.argv = ["fastresnet", *words]
    _put(fault)
    from fastresnet.cli.main import main

    code = 0
    try:
        main()
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    except BaseException:
        traceback.print_exc()
        code = 1
    # What the interpreter does at its end, less multiprocessing's own, which this process inherited.
    with contextlib.suppress(BaseException):
        threading._shutdown()  # type: ignore[attr-defined]
        atexit._run_exitfuncs()
    with contextlib.suppress(OSError):
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(code)


def _put(fault: Fault) -> None:
    if fault.inside:
        _count_lines(fault)
    if fault.clock is not None:
        _jump(fault.clock)
    if fault.file_size is not None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (fault.file_size, resource.RLIM_INFINITY))
    if fault.memory is not None:
        mapped = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (mapped + fault.memory, resource.RLIM_INFINITY))


def _count_lines(fault: Fault) -> None:
    """Count the lines of some functions of ours, and die before one of them."""
    seen = 0

    def on_line(frame: FrameType, event: str, argument: Any) -> Any:
        nonlocal seen
        if event == "line":
            if seen == fault.die_at:
                os.kill(os.getpid(), signal.SIGKILL)
            seen += 1
        return on_line

    def on_call(frame: FrameType, event: str, argument: Any) -> Any:
        code = frame.f_code
        ours = "/fastresnet/" in code.co_filename and code.co_name in fault.inside
        return on_line if ours else None

    if fault.count_to:
        target = Path(fault.count_to)
        atexit.register(lambda: target.write_text(str(seen)))
    sys.settrace(on_call)


def _jump(seed: int) -> None:
    """Have the wall clock jump by days, back and forth, at each look; what measures durations goes on."""
    drawn, real, local = random.Random(seed), time.time, time.localtime

    def now() -> float:
        return real() + drawn.uniform(-3e8, 3e8)

    spell = time.strftime
    time.time = now
    time.time_ns = lambda: int(now() * 1e9)
    time.localtime = lambda seconds=None: local(now() if seconds is None else seconds)  # type: ignore[assignment]
    time.strftime = lambda form, when=None: spell(form, local(now()) if when is None else when)  # type: ignore[assignment]
