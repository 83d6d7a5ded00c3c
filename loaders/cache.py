"""The cache folder, and how anything is put into it: under a lock, whole or not at all."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fastresnet.atomic import sync_folder
from fastresnet.errors import UserError

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


def cache_folder() -> Path:
    """Return ``$FASTRESNET_CACHE``, else ``~/.cache/fastresnet``; it need not exist."""
    chosen = os.environ.get("FASTRESNET_CACHE")
    return Path(chosen).expanduser() if chosen else Path("~/.cache/fastresnet").expanduser()


@contextmanager
def disk_errors(doing: str) -> Iterator[None]:
    """Turn an OSError while ``doing`` something in the cache folder into one UserError."""
    try:
        yield
    except OSError as error:
        if error.errno in _FULL:
            raise UserError(
                f"the disk is full while {doing} in {cache_folder()}; free some space or set "
                "FASTRESNET_CACHE to a folder on another disk"
            ) from error
        raise UserError(
            f"{doing} in {cache_folder()} failed: {error.strerror or error}; set FASTRESNET_CACHE to a "
            "folder that can be written"
        ) from error


@contextmanager
def publishing(final: Path) -> Iterator[Path]:
    """Yield a temporary folder beside ``final``; rename it there if the body succeeds, else remove it.

    Call it under a lock of ``final``'s own: what a killed process left is then known to be nobody's, and
    removed. The body fsyncs the files that it writes.
    """
    temporary = final.with_name(f".{final.name}.partial")
    if temporary.exists():
        shutil.rmtree(temporary)
    temporary.mkdir(parents=True)
    try:
        yield temporary
        sync_folder(temporary)
        os.rename(temporary, final)
        sync_folder(final.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
