"""Files under relative paths: a folder on disk, or a tar read as a stream and never extracted."""

from __future__ import annotations

import gzip
import hashlib
import io
import lzma
import os
import tarfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, Protocol

from fastresnet.errors import UserError
from fastresnet.loaders.sources.decode import File
from fastresnet.loaders.sources.source import Progress, shown

_CHUNK = 1 << 20  # bytes
_MAX_FILE = 1 << 28  # bytes of one file in a tar; more is no image, but would be read into memory
_MAX_HEADER = 1 << 20  # bytes of a member's long name or attributes
_MAGIC = {"xz": b"\xfd7zXZ\x00", "gzip": b"\x1f\x8b"}
TAR_SUFFIXES = {
    ".tar": "tar",
    ".tar.gz": "gzip",
    ".tgz": "gzip",
    ".tar.xz": "xz",
    ".txz": "xz",
}


class Entry(NamedTuple):
    """One file.

    Fields:
        path: relative, with forward slashes.
        size: in bytes.
        place: where its bytes begin in the uncompressed tar; of a file in a folder, its mtime in ns.
    """

    path: str
    size: int
    place: int


def as_bytes(path: str) -> bytes:
    """Return a path's bytes as they are in the folder or tar; paths are sorted by them."""
    return path.encode("utf-8", "surrogateescape")


class Tree(Protocol):
    """A folder or a tar."""

    @property
    def where(self) -> str:
        """The path the user gave, for messages."""

    def entries(self, progress: Progress) -> list[Entry]:
        """List the files, in no particular order."""

    def files(self, entries: Iterable[Entry]) -> Iterator[tuple[Entry, File]]:
        """Yield each of ``entries`` with its bytes or its path, in the order that is quickest to read."""


def stem_of(path: Path) -> str:
    """Return the file's name without its data suffixes."""
    for suffix in sorted((*TAR_SUFFIXES, ".npz"), key=len, reverse=True):
        if path.name.lower().endswith(suffix):
            return path.name[: -len(suffix)]
    return path.resolve().name


def hash_file(path: Path, progress: Progress) -> str:
    """Return the sha256 of the file's bytes, in hex."""
    digest = hashlib.sha256()
    try:
        total = path.stat().st_size
        with path.open("rb") as file:
            done = 0
            while chunk := file.read(16 * _CHUNK):
                digest.update(chunk)
                done += len(chunk)
                progress("hashing the file", done, total)
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error
    return digest.hexdigest()


class FolderTree:
    """A folder; links in it are followed, names that start with a dot are not looked at."""

    def __init__(
        self, root: Path, only: tuple[str, ...] = (), depth: int = 4, *, is_data: bool = True
    ) -> None:
        """Look only into the folders ``only`` of ``root`` if any are given, ``depth`` levels down.

        Unless it ``is_data``, what cannot be read is passed over: nothing is to be mended in a folder given by mistake.
        """
        self.root = root
        self._only = only
        self._depth = depth
        self._is_data = is_data

    @property
    def where(self) -> str:
        return str(self.root)

    def entries(self, progress: Progress) -> list[Entry]:
        try:
            return list(self._walk(self.root, "", self._depth))
        except OSError as error:
            raise UserError(f"cannot read {error.filename}: {error.strerror}") from error

    def _walk(self, folder: Path, prefix: str, depth: int) -> Iterator[Entry]:
        with os.scandir(folder) as found:
            for item in found:
                if item.name.startswith(".") or (not prefix and self._only and item.name not in self._only):
                    continue
                try:
                    yield from self._entries_of(item, prefix, depth)
                except (OSError, UserError):
                    if self._is_data:
                        raise

    def _entries_of(self, item: os.DirEntry[str], prefix: str, depth: int) -> Iterator[Entry]:
        if item.is_dir():
            if depth > 1:
                yield from self._walk(Path(item.path), f"{prefix}{item.name}/", depth - 1)
            return
        status = item.stat()
        if not item.is_file():  # a pipe, whose reader would wait, or a device, which may have no end
            raise UserError(f"{item.path} is no plain file; take it out of the folder")
        yield Entry(f"{prefix}{item.name}", status.st_size, status.st_mtime_ns)

    def files(self, entries: Iterable[Entry]) -> Iterator[tuple[Entry, File]]:
        for entry in entries:
            yield entry, self.root / entry.path


class _StrictTarInfo(tarfile.TarInfo):
    """Refuses a broken or missing header where tarfile would take it for the end of the archive.

    And one whose long name or attributes, which tarfile reads into memory whole, are longer than any path.
    """

    def _proc_member(self, archive: tarfile.TarFile) -> Any:
        is_file = self.type in (*tarfile.REGULAR_TYPES, tarfile.GNUTYPE_SPARSE)
        if not is_file and self.size > _MAX_HEADER:
            raise tarfile.ReadError(f"a header of {self.size:,} bytes")
        return super()._proc_member(archive)  # type: ignore[misc]

    @classmethod
    def fromtarfile(cls, archive: tarfile.TarFile) -> _StrictTarInfo:
        try:
            return super().fromtarfile(archive)
        except tarfile.EOFHeaderError:  # type: ignore[attr-defined]
            raise
        except tarfile.HeaderError as error:
            raise tarfile.ReadError(str(error)) from error


class TarTree:
    """A tar, plain or compressed with gzip or xz."""

    def __init__(self, path: Path) -> None:
        """Raises UserError if ``path`` is not what its suffix says."""
        self.path = path
        self._packing = next(
            packing for suffix, packing in TAR_SUFFIXES.items() if path.name.lower().endswith(suffix)
        )
        try:
            with path.open("rb") as file:
                head = file.read(512)
        except OSError as error:
            raise UserError(f"cannot read {path}: {error.strerror}") from error
        if not head:
            raise UserError(f"{path} is empty; get or make it again")
        actual = next((kind for kind, magic in _MAGIC.items() if head.startswith(magic)), "tar")
        if actual != self._packing:
            held = "a plain tar or something else" if actual == "tar" else f"{actual} data"
            raise UserError(f"{path} is named as {self._packing} but holds {held}; rename it or get it again")

    @property
    def where(self) -> str:
        return str(self.path)

    @property
    def is_plain(self) -> bool:
        """It is not compressed: an entry's bytes lie at its ``place`` in the file."""
        return self._packing == "tar"

    @contextmanager
    def _open(self) -> Iterator[BinaryIO]:
        """Yield the uncompressed bytes; any way in which they can be broken raises one UserError."""
        openers: dict[str, Callable[..., Any]] = {"tar": open, "gzip": gzip.open, "xz": lzma.open}
        try:
            with openers[self._packing](self.path, "rb") as stream:
                yield stream
        except (OSError, EOFError, lzma.LZMAError, zlib.error, tarfile.TarError) as error:
            raise UserError(
                f"{self.path} is truncated or damaged ({shown(str(error))}); get or make it again"
            ) from error

    def entries(self, progress: Progress) -> list[Entry]:
        found: dict[str, Entry] = {}
        with (
            self._open() as stream,
            tarfile.open(fileobj=stream, mode="r|", bufsize=_CHUNK, tarinfo=_StrictTarInfo) as archive,
        ):
            while (member := archive.next()) is not None:
                archive.members.clear()  # type: ignore[attr-defined]  # tarfile keeps every header it has read
                path = self._safe_path(member)
                if member.isdir():
                    continue
                if path in found:
                    raise UserError(f"{self.path} holds {path!r} twice; make it again with each file once")
                found[path] = Entry(path, member.size, member.offset_data)
                if len(found) % 1000 == 0:
                    progress("listing the archive", len(found), 0)
            while stream.read(_CHUNK):  # to the end, where the compressed formats keep their checksums
                pass
        return list(found.values())

    def _safe_path(self, member: tarfile.TarInfo) -> str:
        name = member.name
        parts = [part for part in name.split("/") if part not in ("", ".")]
        if name.startswith("/") or ".." in parts:
            raise UserError(f"{self.path} has a member that would leave its folder: {name!r}; refused")
        if not (member.isdir() or (member.isreg() and not member.issparse())) or member.size < 0:
            raise UserError(f"{self.path} has a member that is no plain file: {name!r}; refused")
        return "/".join(parts)

    def files(self, entries: Iterable[Entry]) -> Iterator[tuple[Entry, File]]:
        with self._open() as stream:
            place = 0
            for entry in sorted(entries, key=lambda entry: entry.place):
                if entry.size > _MAX_FILE:
                    raise UserError(
                        f"{self.path}: {shown(entry.path)} has {entry.size:,} bytes; an image may have "
                        f"{_MAX_FILE:,}"
                    )
                while place < entry.place:
                    skipped = len(stream.read(min(_CHUNK, entry.place - place)))
                    if not skipped:
                        raise EOFError("it ends early")
                    place += skipped
                data = stream.read(entry.size)
                if len(data) < entry.size:
                    raise EOFError("it ends early")
                place += len(data)
                yield entry, io.BytesIO(data)
