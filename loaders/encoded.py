"""Image files that stay encoded: opened for training as they lie in a folder or a tar, without a pack."""

from __future__ import annotations

import hashlib
import io
import os
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastresnet.atomic import read_sealed_json, write_sealed_json
from fastresnet.errors import UserError
from fastresnet.loaders.cache import cache_folder, disk_errors
from fastresnet.loaders.dataset import Dataset
from fastresnet.loaders.pack import ChannelHistogram, dataset_digest, images_file, labels_file
from fastresnet.loaders.protocol import Split
from fastresnet.loaders.sources import Progress, resolve
from fastresnet.loaders.sources.decode import decode
from fastresnet.loaders.sources.known import KNOWN_NAMES
from fastresnet.loaders.sources.paths import Folder, Tar
from fastresnet.loaders.sources.source import SPLITS, Contents, ImageFiles, SplitName, shown, silent
from fastresnet.loaders.sources.tree import Entry, FolderTree, TarTree

FORMAT = 1
_CHUNK = 256  # images decoded at a time


@dataclass(frozen=True, kw_only=True)
class EncodedFiles:
    """One split's files by sample index; see :class:`fastresnet.loaders.protocol.EncodedImages`.

    Attributes:
        names: for messages.
        image_size: S, in pixels.
        all_of_size: every image is S x S as it lies.
        paths: the files, of a folder.
        data, starts, sizes: of a tar: its bytes, and where in them each file lies.
    """

    names: Sequence[str]
    image_size: int
    all_of_size: bool
    paths: Sequence[Path] = ()
    data: NDArray[np.uint8] | None = None
    starts: Sequence[int] = ()
    sizes: Sequence[int] = ()

    def read(self, index: int) -> NDArray[np.uint8]:
        """Return the bytes of one file: uint8 [n]."""
        if self.data is not None:
            return self.data[self.starts[index] : self.starts[index] + self.sizes[index]]
        try:
            return np.fromfile(self.paths[index], np.uint8)
        except OSError as error:
            raise UserError(f"cannot read {self.names[index]}: {error.strerror}") from error

    def decode(self, index: int) -> NDArray[np.uint8]:
        """Return one image as the pack would hold it: uint8 [S, S, 3]. Raises a UserError naming a broken file."""
        return decode(io.BytesIO(self.read(index).tobytes()), self.names[index], self.image_size)


def open_encoded(
    data: str | None, *, image_size: int | None = None, progress: Progress = silent
) -> Dataset | None:
    """Return the data set that ``data`` names with its images left encoded, or None if they are not JPEG or PNG.

    Nothing is packed: every image is decoded once, by Pillow, for the digest, mean and standard deviation, which are
    the pack's own and are kept in the cache.

    Raises:
        UserError: the data is missing or damaged, or the cache cannot be written.
    """
    if data is None:  # the official CIFAR-10, which is pickles
        return None
    source = resolve(data, image_size, progress)
    if not isinstance(source, Folder | Tar):
        return None
    contents = source.scan(progress)
    if contents.files is None:
        return None
    key = hashlib.sha256(f"{FORMAT}|{source.fingerprint(progress)}|{image_size}".encode()).hexdigest()[:16]
    with disk_errors("looking through the images"):
        splits = _open_files(contents.files, contents.image_size)
        facts_path = cache_folder() / "encoded" / f"{key}.json"
        facts = _facts(facts_path, contents, splits, progress)
    made = {split: _split(splits[split], contents.labels[split]) for split in SPLITS}
    return Dataset(
        name=KNOWN_NAMES.get(facts["digest"], contents.name),
        class_names=contents.class_names,
        mean=tuple(facts["mean"]),
        std=tuple(facts["std"]),
        image_size=contents.image_size,
        digest=facts["digest"],
        train=made["train"],
        test=made["test"],
        folder=facts_path.parent,
        is_builtin=False,
        notices=contents.notices,
    )


def _open_files(files: ImageFiles, image_size: int) -> dict[SplitName, EncodedFiles]:
    tree, entries = files.tree, files.entries
    every = [entry for split in SPLITS for entry in entries[split]]
    data: NDArray[np.uint8] | None = None
    starts = {entry: entry.place for entry in every}
    if isinstance(tree, TarTree):
        data, starts = (
            (np.memmap(tree.path, np.uint8, "r"), starts) if tree.is_plain else _unpack(tree, every)
        )
    return {
        split: EncodedFiles(
            names=[f"{tree.where}: {shown(entry.path)}" for entry in entries[split]],
            image_size=image_size,
            all_of_size=files.all_of_size,
            paths=[tree.root / entry.path for entry in entries[split]]
            if isinstance(tree, FolderTree)
            else [],
            data=None if data is None else np.asarray(data),
            starts=[starts[entry] for entry in entries[split]],
            sizes=[entry.size for entry in entries[split]],
        )
        for split in SPLITS
    }


def _unpack(tree: TarTree, entries: Sequence[Entry]) -> tuple[NDArray[np.uint8], dict[Entry, int]]:
    """Return the files of a compressed tar, which cannot be read at random, in an unnamed temporary file."""
    starts = {}
    with tempfile.TemporaryFile(prefix="fastresnet-") as spool:
        for entry, file in tree.files(entries):
            assert isinstance(file, io.BytesIO)
            starts[entry] = spool.tell()
            spool.write(file.getbuffer())
        spool.flush()
        return np.memmap(spool, np.uint8, "r"), starts


def _split(files: EncodedFiles, labels: NDArray[np.int64]) -> Split:
    size = files.image_size
    shape_alone = np.broadcast_to(np.zeros((), np.uint8), (len(labels), size, size, 3))
    return Split(
        images=shape_alone, labels=labels, members=np.arange(len(labels), dtype=np.int64), encoded=files
    )


def _facts(
    path: Path, contents: Contents, splits: dict[SplitName, EncodedFiles], progress: Progress
) -> dict[str, Any]:
    """Return mean, std and digest of the data set, the pack's own, from ``path`` if they are kept there."""
    try:
        return read_sealed_json(path)
    except UserError:
        pass  # not there yet, or torn: made again
    counts = {split: len(contents.labels[split]) for split in SPLITS}
    histogram, hashes, done = ChannelHistogram(), {}, 0
    for split in SPLITS:
        pixels = hashlib.sha256()
        for images in _decoded(splits[split], counts[split]):
            pixels.update(images.data)
            if split == "train":
                histogram.add(images)
            done += len(images)
            progress("looking through the images", done, sum(counts.values()))
        labels = contents.labels[split].astype("<i8")
        hashes[images_file(split)] = pixels.hexdigest()
        hashes[labels_file(split)] = hashlib.sha256(labels.tobytes()).hexdigest()
    mean, std = histogram.mean_std()
    digest = dataset_digest(contents.class_names, contents.image_size, counts, hashes)
    facts = {"mean": mean, "std": std, "digest": digest}
    path.parent.mkdir(parents=True, exist_ok=True)
    write_sealed_json(path, facts)
    return facts


def _decoded(files: EncodedFiles, count: int) -> Iterator[NDArray[np.uint8]]:
    """Yield every image by sample index, some at a time: uint8 [k, S, S, 3]."""

    def some(start: int) -> NDArray[np.uint8]:
        return np.stack([files.decode(index) for index in range(start, min(start + _CHUNK, count))])

    workers = os.cpu_count() or 1
    with ThreadPoolExecutor(workers) as pool:
        for start in range(0, count, workers * _CHUNK):
            yield from pool.map(some, range(start, min(start + workers * _CHUNK, count), _CHUNK))
