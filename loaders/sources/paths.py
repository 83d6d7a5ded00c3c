"""A folder or a tar, holding images or CIFAR-10's official pickles."""

from __future__ import annotations

import dataclasses
import hashlib
from pathlib import Path

from fastresnet.loaders.sources import download
from fastresnet.loaders.sources.folder import image_contents
from fastresnet.loaders.sources.official import FILES, holds_pickles, pickle_contents
from fastresnet.loaders.sources.source import SPLITS, Contents, Progress, shown
from fastresnet.loaders.sources.tree import (
    Entry,
    FolderTree,
    TarTree,
    Tree,
    as_bytes,
    hash_file,
    stem_of,
)


class Tar:
    """The source of the tar at ``path``; it is opened only to be packed."""

    def __init__(self, path: Path, image_size: int | None) -> None:
        """Raises UserError if the file is not what its suffix says."""
        self.stem = stem_of(path)
        self._tree = TarTree(path)
        self._image_size = image_size

    def fingerprint(self, progress: Progress) -> str:
        """Return the file's content hash."""
        return hash_file(self._tree.path, progress)

    def scan(self, progress: Progress) -> Contents:
        """List the tar, then read its pickles or look at its images."""
        return _contents(self._tree, self._tree.entries(progress), self.stem, self._image_size, progress)


class Official:
    """The source of CIFAR-10 as published; its archive is looked for, or downloaded, only to be packed."""

    stem = "cifar-10-python"

    def __init__(self, image_size: int | None) -> None:
        self._image_size = image_size

    def fingerprint(self, progress: Progress) -> str:
        """Return the archive's published md5, which is checked before it is packed."""
        return f"md5 {download.MD5}"

    def scan(self, progress: Progress) -> Contents:
        """Get the archive and read its pickles. Raises DataUnavailable if it cannot be had."""
        return Tar(download.official_archive(progress), self._image_size).scan(progress)


class Folder:
    """The source of the folder at ``path``."""

    def __init__(self, path: Path, image_size: int | None) -> None:
        self.stem = stem_of(path)
        self._image_size = image_size
        self._tree = _folder_tree(path)
        self._entries: list[Entry] | None = None

    def _listed(self, progress: Progress) -> list[Entry]:
        if self._entries is None:
            self._entries = self._tree.entries(progress)
        return self._entries

    def fingerprint(self, progress: Progress) -> str:
        """Return a hash of the files' relative paths, sizes and modification times."""
        listing = sorted((as_bytes(path), size, mtime) for path, size, mtime in self._listed(progress))
        listing += [(as_bytes(path), 0, 0) for path in self._empty_classes(progress)]
        return hashlib.sha256(repr(listing).encode()).hexdigest()

    def scan(self, progress: Progress) -> Contents:
        """Read the folder's pickles or look at its images."""
        contents = _contents(self._tree, self._listed(progress), self.stem, self._image_size, progress)
        notices = tuple(f"class folder {shown(path)} is empty" for path in self._empty_classes(progress))
        return dataclasses.replace(contents, notices=(*notices, *contents.notices))

    def _empty_classes(self, progress: Progress) -> list[str]:
        """Return the class folders that hold no file, as ``split/class``."""
        filled = {path.rpartition("/")[0] for path, _, _ in self._listed(progress)}
        folders = [
            f"{split}/{entry.name}"
            for split in SPLITS
            if (self._tree.root / split).is_dir()
            for entry in (self._tree.root / split).iterdir()
            if entry.is_dir() and not entry.name.startswith(".")
        ]
        return sorted(set(folders) - filled, key=as_bytes)


def _folder_tree(path: Path) -> FolderTree:
    """Return the part of ``path`` worth walking: a home folder given by mistake is not."""
    for root in (path, path / "cifar-10-batches-py"):
        if any((root / name).is_file() for name in FILES):
            return FolderTree(root, depth=1)
    inner = [entry for entry in path.iterdir() if entry.is_dir() and not entry.name.startswith(".")]
    if len(inner) == 1 and all((inner[0] / split).is_dir() for split in SPLITS):
        path = inner[0]  # as unpacking an archive may leave it
    if all((path / split).is_dir() for split in SPLITS):
        return FolderTree(path, only=SPLITS)
    found = [entry for entry in inner if entry.name.lower().startswith(("train", "test", "val"))]
    return FolderTree(path, depth=3 if found else 2, is_data=False)  # enough to say what is wrong


def _contents(
    tree: Tree, entries: list[Entry], stem: str, image_size: int | None, progress: Progress
) -> Contents:
    names = {entry.path.rsplit("/", 1)[-1] for entry in entries}
    read = pickle_contents if holds_pickles(names) else image_contents
    return read(tree, entries, stem, image_size, progress)
