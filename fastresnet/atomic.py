"""Files that are the old or the new, whenever the process dies, and locks that die with it."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import glob
import hashlib
import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from fastresnet.errors import UserError


def sync_folder(folder: Path) -> None:
    """Make renames in ``folder`` durable."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def explain_os_error(error: OSError, doing: str) -> UserError:
    """Return a one-line error for a failed read or write, such as a full disk."""
    advice = {
        errno.ENOSPC: "; free some space and try again",
        errno.EDQUOT: "; the quota is used up: free some space and try again",
        errno.EFBIG: "; the file would pass this account's limit on file sizes (ulimit -f)",
        errno.EROFS: "; choose a folder that can be written",
        errno.EACCES: "; choose a folder that you may write, or mend its permissions",
        errno.EPERM: "; choose a folder that you may write, or mend its permissions",
    }
    reason = os.strerror(error.errno) if error.errno else str(error)
    return UserError(f"{doing}: {reason}{advice.get(error.errno or 0, '')}")


def temporary_of(path: Path) -> Path:
    """Return where this process writes what shall be at ``path``, or tries whether it could."""
    return path.parent / f".{path.name}.{os.getpid()}.tmp"


def clear_temporaries(path: Path) -> None:
    """Remove what processes that were killed have left half-written of ``path``; none may be writing it now."""
    for temporary in path.parent.glob(f".{glob.escape(path.name)}.*.tmp"):
        temporary.unlink(missing_ok=True)


def write_atomic(path: Path, write: Callable[[BinaryIO], object]) -> None:
    """Write ``path`` by temporary file, fsync, rename and fsync of its folder.

    Raises:
        UserError: the file could not be written; ``path`` is as it was and no temporary file is left.
    """
    temporary = temporary_of(path)
    try:
        with open(temporary, "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        sync_folder(path.parent)
    except OSError as error:
        raise explain_os_error(error, f"cannot write {path}") from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()


@contextmanager
def locked(path: Path, waiting: Callable[[], None]) -> Iterator[None]:
    """Hold the lock file ``path``, alone among threads and processes; calls ``waiting`` if another has it.

    The kernel frees the lock of a process that dies. The file stays, or its holder removes it: who has then locked
    what is no longer at ``path`` locks what is.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    is_held = False
    while not is_held:
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                waiting()
                fcntl.flock(handle, fcntl.LOCK_EX)
            with contextlib.suppress(FileNotFoundError):
                is_held = os.path.samestat(os.fstat(handle), path.stat())
            if is_held:
                yield
        finally:
            os.close(handle)


def _seal(content: dict[str, Any]) -> str:
    canonical = json.dumps(content, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(canonical.encode()).hexdigest()


def write_sealed_json(path: Path, content: dict[str, Any]) -> None:
    """Write ``content`` as readable JSON with a ``sha256`` of itself, atomically."""
    text = json.dumps({**content, "sha256": _seal(content)}, indent=2, allow_nan=False) + "\n"
    write_atomic(path, lambda file: file.write(text.encode()))


def read_sealed_json(path: Path) -> dict[str, Any]:
    """Read what :func:`write_sealed_json` wrote.

    Raises:
        UserError: the file is missing, unreadable, torn or altered.
    """
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise explain_os_error(error, f"cannot read {path}") from error
    try:
        content = json.loads(raw)
        seal = content.pop("sha256")
        intact = seal == _seal(content)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        intact = False
    if not intact:
        raise UserError(f"{path} is torn or was altered: its contents do not match its sha256")
    assert isinstance(content, dict)
    return content
