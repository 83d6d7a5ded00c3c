"""Where a board's runs lie while they are trained: a folder that one process has at a time."""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from fastresnet.atomic import clear_temporaries, explain_os_error, locked
from fastresnet.errors import UserError


@contextmanager
def own_runs_dir(out: Path) -> Iterator[Path]:
    """Yield a folder for the runs of the board at ``out``, which no other process fills meanwhile.

    It lies among the temporary files, is found again after a kill, and is gone afterwards.

    Raises:
        UserError: another process fills this board, or its folder cannot be written.
    """
    place = out.resolve()
    digest = hashlib.sha256(str(place).encode()).hexdigest()[:16]
    folder = Path(tempfile.gettempdir()) / f"fastresnet-board-{os.getuid()}-{digest}"
    # beside the board, where every process that adds to it looks, whatever its temporary files are
    lock = place.with_name(f".{place.name}.lock")

    def refuse() -> None:
        raise UserError(f"another process fills the board {out}; wait for it, or choose another --out")

    with ExitStack() as stack:
        try:
            stack.enter_context(locked(lock, refuse))
            stack.callback(lock.unlink, missing_ok=True)
            folder.mkdir(exist_ok=True)
        except OSError as error:
            raise explain_os_error(error, f"cannot use {error.filename or lock}") from error
        stack.callback(shutil.rmtree, folder, ignore_errors=True)
        # Of a process that was killed.
        shutil.rmtree(folder / "runs", ignore_errors=True)
        for suffix in (place.suffix, ".md", ".png"):
            clear_temporaries(place.with_suffix(suffix))
        yield folder / "runs"
