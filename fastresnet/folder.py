"""The run folder: its name, lock, config and event rows (contract 3)."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import secrets
import shutil
import tempfile
import time
import weakref
from pathlib import Path
from typing import IO, Any

from fastresnet.atomic import (
    explain_os_error,
    read_sealed_json,
    sync_folder,
    temporary_of,
    write_atomic,
    write_sealed_json,
)
from fastresnet.errors import UserError, did_you_mean
from fastresnet.recorded import EpochRow, EventsMark, check_recorded
from fastresnet.run import RunContent, RunResult

FORMAT = 1
CONFIG, EVENTS, RESULT, LOCK = "config.json", "events.jsonl", "result.json", "lock"


class RunInUse(UserError):
    """Another process holds the run folder."""


def new_run_name(arch: str, recipe: str) -> str:
    """Return ``<date>-<arch>-<recipe>-<id>``; names sort by time of creation."""
    # A slug may be longer than a file's name may be.
    return f"{time.strftime('%Y%m%d-%H%M%S')}-{arch[:80]}-{recipe[:80]}-{secrets.token_hex(3)}"


def find_run(reference: str, runs_dir: Path) -> Path:
    """Return the folder of a run given as a path, a name, an id (the name's last part) or ``last``, the newest.

    Raises:
        UserError: there is no such run, or several share the id.
    """
    direct = Path(reference)
    if (direct / CONFIG).is_file():
        return direct
    runs = [folder for folder in runs_dir.glob("[!.]*") if (folder / CONFIG).is_file()]
    runs.sort(key=lambda folder: ((folder / CONFIG).stat().st_mtime_ns, folder.name))
    names = [folder.name for folder in runs]
    if reference == "last" and names:
        return runs_dir / names[-1]
    found = [name for name in names if reference and (name == reference or name.endswith(f"-{reference}"))]
    if len(found) == 1:
        return runs_dir / found[0]
    if found:
        raise UserError(
            f"{reference!r} names {len(found)} runs in {runs_dir}; give one of: {', '.join(found)}"
        )
    if direct.is_dir():
        raise UserError(f"{reference} is a folder but not a run: it has no {CONFIG}")
    if not names:
        raise UserError(
            f"no run {reference!r}: {runs_dir} holds no runs; give a run's path or train one first"
        )
    ids = [name.rsplit("-", 1)[-1] for name in names]
    raise UserError(
        f"no run {reference!r} in {runs_dir}{did_you_mean(reference, [*names, *ids]) or ';'} "
        f"give a path, a name, an id or 'last' (which is {names[-1]})"
    )


def check_writable(runs_dir: Path) -> None:
    """Raise UserError unless a run folder can be made in ``runs_dir``, which need not exist yet."""
    there = runs_dir.absolute()
    while not there.exists():
        there = there.parent
    if not there.is_dir():
        raise UserError(
            f"cannot make a run folder in {runs_dir}: {there} is no folder; choose another --runs-dir"
        )
    try:
        os.rmdir(tempfile.mkdtemp(prefix=".", dir=there))
    except OSError as error:
        raise explain_os_error(error, f"cannot make a run folder in {runs_dir}") from error


class RunFolder:
    """One run's folder, open in this process.

    ``events.jsonl`` only grows between checkpoints. A checkpoint notes how much of it had been written and its
    hash, and a resumed run cuts it back to that, so rows are neither lost nor doubled.

    Attributes:
        path: where it lies.
        run: the name it was made with, which its checkpoints bear too.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.run = path.name
        self._lock: IO[str] | None = None
        self._events_hash = hashlib.sha256()
        self._events_size = 0

    @property
    def name(self) -> str:
        return self.path.resolve().name

    @property
    def id(self) -> str:
        return self.name.rsplit("-", 1)[-1]

    @classmethod
    def create(cls, path: Path, config: dict[str, Any], write_first_state: Any) -> RunFolder:
        """Make the folder with its config and first checkpoint, all or nothing, and lock it.

        ``write_first_state(folder)`` writes what else belongs to a new run before it becomes visible.

        Raises:
            RunInUse: there is a folder of that name already.
            UserError: it cannot be written.
        """
        staging = temporary_of(path)
        try:
            staging.mkdir(parents=True)
            _remove_abandoned(path.parent)
            folder = cls(staging)
            folder.run = path.name
            folder.lock()
            folder.write_config({"run": path.name, **config})
            (staging / EVENTS).touch()
            write_first_state(folder)
            os.rename(staging, path)
            sync_folder(path.parent)
        except OSError as error:
            if error.errno in (errno.EEXIST, errno.ENOTEMPTY):
                raise RunInUse(f"{path} has been made by another process meanwhile; resume it") from error
            raise explain_os_error(error, f"cannot make the run folder {path}") from error
        finally:
            shutil.rmtree(staging, ignore_errors=True)
        folder.path = path
        return folder

    def lock(self) -> None:
        """Hold the folder until :meth:`close` or the end of the process.

        Raises:
            RunInUse: another process holds it.
            UserError: it cannot be written.
        """
        try:
            self._lock = open(self.path / LOCK, "a+")  # noqa: SIM115 - held open on purpose
        except OSError as error:
            raise explain_os_error(error, f"cannot use the run folder {self.path}") from error
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._lock.seek(0)
            holder = self._lock.read().strip() or "unknown"
            self._lock.close()
            self._lock = None
            raise RunInUse(
                f"{self.path} is in use by another process (pid {holder}); wait for it to end, or stop it"
            ) from None
        except OSError as error:
            self.close()
            raise explain_os_error(error, f"cannot lock the run folder {self.path}") from error
        _locked.add(self)
        try:
            for torn in self.path.glob(".*.tmp"):
                torn.unlink()  # its writer was killed, or would hold the lock
            self._lock.truncate(0)
            self._lock.write(f"{os.getpid()}\n")
            self._lock.flush()
        except OSError as error:
            self.close()
            raise explain_os_error(error, f"cannot use the run folder {self.path}") from error

    def close(self) -> None:
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def read_config(self) -> dict[str, Any]:
        """Return the run's config.

        Raises:
            UserError: it is torn, altered, of another format, or no run's.
        """
        path = self.path / CONFIG
        content = read_sealed_json(path)
        if content.pop("format", None) != FORMAT:
            raise UserError(f"{path} is of another format; this version reads format {FORMAT}")
        check_recorded(RunContent, content, path)
        self.run = content["run"]
        return content

    def write_config(self, config: dict[str, Any]) -> None:
        """Replace the run's config."""
        write_sealed_json(self.path / CONFIG, {"format": FORMAT, **config})

    def append_event(self, row: dict[str, Any]) -> None:
        """Add a row to ``events.jsonl`` and make it durable."""
        line = (json.dumps(row, allow_nan=False) + "\n").encode()
        path = self.path / EVENTS
        try:
            with open(path, "r+b") as file:
                file.seek(self._events_size)
                file.write(line)
                file.truncate()
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise explain_os_error(error, f"cannot write {path}") from error
        self._events_hash.update(line)
        self._events_size += len(line)

    def events_mark(self) -> dict[str, Any]:
        """Return the size and hash of the rows written so far, for a checkpoint."""
        return {"bytes": self._events_size, "sha256": self._events_hash.hexdigest()}

    def restore_events(self, mark: dict[str, Any]) -> list[dict[str, Any]]:
        """Cut ``events.jsonl`` back to what a checkpoint knew, and return its rows.

        Raises:
            UserError: that part is missing or altered.
        """
        path = self.path / EVENTS
        rows, kept = self._read_marked(mark)
        if path.stat().st_size != len(kept):
            write_atomic(path, lambda file: file.write(kept))
        self._events_hash = hashlib.sha256(kept)
        self._events_size = len(kept)
        return rows

    def read_events(self, mark: dict[str, Any]) -> list[dict[str, Any]]:
        """Return the rows that ``mark`` vouches for, changing nothing."""
        return self._read_marked(mark)[0]

    def _read_marked(self, mark: dict[str, Any]) -> tuple[list[dict[str, Any]], bytes]:
        path = self.path / EVENTS
        try:
            kept = path.read_bytes()[: mark["bytes"]]
        except OSError as error:
            raise explain_os_error(error, f"cannot read {path}") from error
        if hashlib.sha256(kept).hexdigest() != mark["sha256"]:
            raise UserError(f"{path} was altered: its first {mark['bytes']} bytes are not what the run wrote")
        try:
            rows = [json.loads(line) for line in kept.splitlines()]
        except (ValueError, RecursionError):
            raise UserError(f"{path} was altered: a line of it is not one that a run writes") from None
        for number, row in enumerate(rows, 1):
            check_recorded(EpochRow, row, path, f"line {number}: ")
        return rows, kept

    def write_result(self, result: dict[str, Any]) -> None:
        write_sealed_json(self.path / RESULT, {**result, "events": self.events_mark()})

    def read_result(self) -> dict[str, Any] | None:
        """Return the finished run's result, or None if it has not finished.

        Raises:
            UserError: the result is torn, altered or no run's.
        """
        path = self.path / RESULT
        if not path.exists():
            return None
        result = read_sealed_json(path)
        mark = result.pop("events", None)
        check_recorded(EventsMark, mark, path, "events: ")
        check_recorded(RunResult, result, path)
        self.read_events(mark)
        return result


# A forked loader process would hold the lock for seconds after this one was killed.
_locked: weakref.WeakSet[RunFolder] = weakref.WeakSet()


def _close_in_child() -> None:
    for folder in list(_locked):
        folder.close()


os.register_at_fork(after_in_child=_close_in_child)


def _remove_abandoned(runs_dir: Path) -> None:
    """Remove what processes that were killed while making a run folder have left."""
    for staging in runs_dir.glob(".*.tmp"):
        pid = staging.name.split(".")[-2]
        with contextlib.suppress(OSError, UserError):
            if pid.isdigit() and not _is_alive(int(pid)):
                folder = RunFolder(staging)
                folder.lock()  # which another host may hold
                shutil.rmtree(staging)
                folder.close()


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True
