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
        UserError: another process fills this board.
    """
    digest = hashlib.sha256(str(out.resolve()).encode()).hexdigest()[:16]
    folder = Path(tempfile.gettempdir()) / f"fastresnet-board-{os.getuid()}-{digest}"
    try:
        folder.mkdir(exist_ok=True)
        lock = open(folder / "lock", "w")  # noqa: SIM115 - held while the board is filled
    except OSError as error:
        raise explain_os_error(error, f"cannot use {folder}") from error
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(
                f"another process fills the board {out}; wait for it, or choose another --out"
            ) from None
        try:
            shutil.rmtree(folder / "runs", ignore_errors=True)  # of a process that was killed
            yield folder / "runs"
        finally:
            shutil.rmtree(folder, ignore_errors=True)
