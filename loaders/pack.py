"""The pack: a data set decoded once into raw, memory-mappable, hash-checked files.

A pack is a folder: ``meta.json`` and, for train and test, ``<split>_images.u8`` (uint8 [N, S, S, 3], C
order) and ``<split>_labels.i64`` (int64 [N], little-endian), rows by sample index.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fastresnet.atomic import read_sealed_json, write_sealed_json
from fastresnet.errors import UserError
from fastresnet.loaders.sources.known import KNOWN_NAMES
from fastresnet.loaders.sources.source import SPLITS, Contents, Progress, SplitName

FORMAT = 1
META = "meta.json"
_ROWS = 4096  # images read at a time where all of them need not be in memory


class PackDamagedError(Exception):
    """A pack's file is missing, torn or altered; the text names it."""


@dataclass(frozen=True, kw_only=True)
class Meta:
    """What ``meta.json`` says.

    Attributes:
        format: :data:`FORMAT`.
        name: what figures measured on the data are called.
        class_names: a name per label.
        image_size: S, in pixels.
        counts: images per split.
        mean, std: per channel over train, of pixel values in [0, 1]; std is the population's.
        digest: sha256 of class names, shapes, pixels and labels, whatever the source was.
        files: sha256 by file name.
        source: the source's fingerprint.
        notices: what the user should know about how it was made.
    """

    format: int
    name: str
    class_names: tuple[str, ...]
    image_size: int
    counts: dict[SplitName, int]
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    digest: str
    files: dict[str, str]
    source: str
    notices: tuple[str, ...]


def images_file(split: SplitName) -> str:
    """Return the name of the split's file of pixels."""
    return f"{split}_images.u8"


def labels_file(split: SplitName) -> str:
    """Return the name of the split's file of labels."""
    return f"{split}_labels.i64"


def write_pack(folder: Path, contents: Contents, source: str, progress: Progress) -> None:
    """Decode ``contents`` into ``folder``, which exists and is empty; every file is fsynced.

    Raises OSError if the disk fails or is full, UserError if an image cannot be decoded.
    """
    size = contents.image_size
    image_bytes = size * size * 3
    counts: dict[SplitName, int] = {split: len(contents.labels[split]) for split in SPLITS}
    handles: dict[SplitName, int] = {}
    try:
        for split in SPLITS:
            handles[split] = os.open(folder / images_file(split), os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o644)
            # Asked for at once, so that a full disk is known before the decoding, not after it.
            _allocate(handles[split], counts[split] * image_bytes)
        for block in contents.blocks(progress):
            assert block.images.shape[1:] == (size, size, 3) and block.images.dtype == np.uint8
            for row, image in zip(block.rows.tolist(), block.images, strict=True):
                _write_at(handles[block.split], image.tobytes(), row * image_bytes)
        for handle in handles.values():
            os.fsync(handle)
    finally:
        for handle in handles.values():
            os.close(handle)
    for split in SPLITS:
        _write_whole(folder / labels_file(split), contents.labels[split].astype("<i8").tobytes())
    mean, std = _mean_std(_map_images(folder, "train", counts["train"], size))
    files = _hash_files(folder)
    digest = dataset_digest(contents.class_names, size, counts, files)
    meta = Meta(
        format=FORMAT,
        name=KNOWN_NAMES.get(digest, contents.name),
        class_names=contents.class_names,
        image_size=size,
        counts=counts,
        mean=mean,
        std=std,
        digest=digest,
        files=files,
        source=source,
        notices=contents.notices,
    )
    write_sealed_json(folder / META, asdict(meta))


def read_pack(
    folder: Path,
) -> tuple[Meta, dict[SplitName, NDArray[np.uint8]], dict[SplitName, NDArray[np.int64]]]:
    """Return the pack in ``folder``: meta, read-only images (memory-mapped) and labels; all hashes are
    checked.

    Raises PackDamagedError naming the file that is missing, torn or altered.
    """
    meta = _read_meta(folder)
    try:
        actual = _hash_files(folder)
    except OSError as error:
        raise PackDamagedError(f"{error.filename} cannot be read ({error.strerror})") from error
    for name, expected in meta.files.items():
        if actual[name] != expected:
            raise PackDamagedError(f"{folder / name} is torn or altered (its sha256 is not the recorded one)")
    images = {split: _map_images(folder, split, meta.counts[split], meta.image_size) for split in SPLITS}
    labels = {split: np.fromfile(folder / labels_file(split), "<i8").astype(np.int64) for split in SPLITS}
    return meta, images, labels


def _read_meta(folder: Path) -> Meta:
    path = folder / META
    try:
        fields = read_sealed_json(path)
        for name in ("class_names", "mean", "std", "notices"):
            fields[name] = tuple(fields[name])
        return Meta(**fields)
    except UserError as error:
        raise PackDamagedError(str(error)) from error
    except (KeyError, TypeError) as error:
        raise PackDamagedError(f"{path} was written by another version") from error


def _allocate(handle: int, num_bytes: int) -> None:
    try:
        os.posix_fallocate(handle, 0, num_bytes)
    except OSError as error:
        if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL):  # a file system that cannot
            raise


def _write_at(handle: int, data: bytes, offset: int) -> None:
    view = memoryview(data)
    while view:
        written = os.pwrite(handle, view, offset)
        view, offset = view[written:], offset + written


def _write_whole(path: Path, data: bytes) -> None:
    with path.open("xb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _map_images(folder: Path, split: SplitName, count: int, size: int) -> NDArray[np.uint8]:
    mapped = np.memmap(folder / images_file(split), np.uint8, "r", shape=(count, size, size, 3))
    return np.asarray(mapped)  # a plain array: indexing a memmap object is several times slower


def _hash_files(folder: Path) -> dict[str, str]:
    names = [name for split in SPLITS for name in (images_file(split), labels_file(split))]

    def digest(name: str) -> str:
        with (folder / name).open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()

    # One after another: most of the bytes are training images, in one file, so that threads would save little.
    return {name: digest(name) for name in names}


def dataset_digest(
    class_names: tuple[str, ...], size: int, counts: dict[SplitName, int], files: dict[str, str]
) -> str:
    """Return sha256 over class names, shapes, and the hashes of pixels and labels."""
    parts = {
        "classes": list(class_names),
        "shapes": {split: [counts[split], size, size, 3] for split in SPLITS},
        "pixels": {split: files[images_file(split)] for split in SPLITS},
        "labels": {split: files[labels_file(split)] for split in SPLITS},
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


class ChannelHistogram:
    """How often each channel has each of its 256 values: what exact means and deviations come from."""

    def __init__(self) -> None:
        self._counts = np.zeros((3, 256), np.int64)

    def add(self, images: NDArray[np.uint8]) -> None:
        """Count uint8 [k, H, W, 3]."""
        for channel in range(3):
            self._counts[channel] += np.bincount(images[..., channel].ravel(), minlength=256)

    def mean_std(self) -> tuple[tuple[float, float, float], tuple[float, float, float]]:
        """Return the mean and standard deviation per channel, of pixels / 255, rounded once to float64."""
        values = range(256)
        means, stds = [], []
        for counts in self._counts.tolist():
            n = sum(counts)
            first = sum(count * value for count, value in zip(counts, values, strict=True))
            second = sum(count * value * value for count, value in zip(counts, values, strict=True))
            means.append(first / (255 * n))
            stds.append(((n * second - first * first) / (255 * n) ** 2) ** 0.5)
        return (means[0], means[1], means[2]), (stds[0], stds[1], stds[2])


def _mean_std(
    images: NDArray[np.uint8],
) -> tuple[tuple[float, float, float], tuple[float, float, float]]:
    histogram = ChannelHistogram()
    for rows in _row_blocks(images):
        histogram.add(rows)
    return histogram.mean_std()


def _row_blocks(images: NDArray[np.uint8]) -> Iterator[NDArray[np.uint8]]:
    rows = max(1, _ROWS * 32 * 32 // (images.shape[1] * images.shape[2]))
    for start in range(0, len(images), rows):
        yield images[start : start + rows]
