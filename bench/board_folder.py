"""Where a board's runs lie while they are trained: a folder that one process has at a time."""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fastresnet.atomic import explain_os_error
from fastresnet.errors import UserError


@contextmanager
def own_runs_dir(out: Path) -> Iterator[Path]:
    """Yield a folder for the runs of the board at ``out``, which no other process fills meanwhile.

    It lies among the temporary files, is found again after a kill, and is gone afterwards.

    Raises:
        UserError: another process fills this board, or its folder cannot be written.
    """
    digest = hashlib.sha256(str(out.resolve()).encode()).hexdigest()[:16]
    folder = Path(tempfile.gettempdir()) / f"fastresnet-board-{os.getuid()}-{digest}"
    with _alone(out):
        try:
            folder.mkdir(exist_ok=True)
        except OSError as error:
            raise explain_os_error(error, f"cannot use {folder}") from error
        try:
            shutil.rmtree(folder / "runs", ignore_errors=True)  # of a process that was killed
            yield folder / "runs"
        finally:
            shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def _alone(out: Path) -> Iterator[None]:
    """Hold a lock beside ``out``, where every process that adds to it looks, whatever its temporary files are."""
    path = out.resolve().with_name(f".{out.name}.lock")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        while not _holds(lock := os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666), path):
            os.close(lock)  # of a process that ended just now, and took its file away
    except BlockingIOError:
        raise UserError(
            f"another process fills the board {out}; wait for it, or choose another --out"
        ) from None
    except OSError as error:
        raise explain_os_error(error, f"cannot use {path}") from error
    try:
        yield
    finally:
        path.unlink(missing_ok=True)
        os.close(lock)


def _holds(lock: int, path: Path) -> bool:
    """Lock an open file, and return whether it is still the one at ``path``; closed where it cannot be locked."""
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return os.path.samestat(os.fstat(lock), path.stat())
    except FileNotFoundError:
        return False
    except OSError:
        os.close(lock)
        raise
