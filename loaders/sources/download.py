"""CIFAR-10's official archive: from the cache, else downloaded once."""

from __future__ import annotations

import hashlib
import http.client
import urllib.error
import urllib.request
from pathlib import Path
from typing import BinaryIO

from fastresnet.atomic import locked, write_atomic
from fastresnet.loaders.cache import cache_folder, disk_errors
from fastresnet.loaders.sources.source import DataUnavailable, Progress

URL = "https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz"
MD5 = "c58f30108f718f92721af3b95e74349a"
_TIMEOUT_S = 20.0  # to connect, and for each read
_CHUNK = 1 << 20  # bytes


def official_archive(progress: Progress) -> Path:
    """Return the path of ``cifar-10-python.tar.gz`` in the cache, downloading it if it is not there intact.

    Raises DataUnavailable if it cannot be had, UserError if the cache cannot be written.
    """
    path = cache_folder() / "downloads" / URL.rsplit("/", 1)[-1]
    with disk_errors("reading CIFAR-10"):
        if _intact(path):
            return path
    with (
        disk_errors("downloading CIFAR-10"),
        locked(path.with_name(f"{path.name}.lock"), lambda: progress("waiting for another process", 0, 0)),
    ):
        if not _intact(path):
            write_atomic(path, lambda file: _download(file, path, progress))
    return path


def _intact(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest() == MD5
    except FileNotFoundError:
        return False


def _download(file: BinaryIO, path: Path, progress: Progress) -> None:
    digest = hashlib.md5(usedforsecurity=False)
    try:
        response = urllib.request.urlopen(URL, timeout=_TIMEOUT_S)
    except (OSError, http.client.HTTPException) as error:
        raise _unavailable(path, error) from error
    with response:
        total, done = int(response.headers.get("Content-Length") or 0), 0
        while True:
            try:
                chunk = response.read(_CHUNK)
            except (OSError, http.client.HTTPException) as error:
                raise _unavailable(path, error) from error
            if not chunk:
                break
            file.write(chunk)
            digest.update(chunk)
            done += len(chunk)
            progress("downloading CIFAR-10", done, total)
    if digest.hexdigest() != MD5:
        raise _unavailable(
            path, f"the {done} bytes that came are not the published file (md5 {digest.hexdigest()})"
        )


def _unavailable(path: Path, reason: object) -> DataUnavailable:
    if isinstance(reason, urllib.error.URLError) and not isinstance(reason, urllib.error.HTTPError):
        reason = reason.reason
    return DataUnavailable(
        f"CIFAR-10 is not in {path.parent} and could not be downloaded ({reason}); fetch {URL} on "
        "another machine and give it with --data cifar-10-python.tar.gz"
    )
