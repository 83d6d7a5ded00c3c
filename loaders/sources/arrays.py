"""An ``.npz`` of arrays.

Keys: ``train_images``, ``test_images``: uint8 [N, H, W, 3], or grey as [N, H, W, 1] or [N, H, W];
``train_labels``, ``test_labels``: integers [N] or [N, 1] from 0; optionally ``class_names``: strings [C].
"""

from __future__ import annotations

import math
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import psutil
from numpy.typing import NDArray

from fastresnet.errors import UserError, did_you_mean
from fastresnet.loaders.sources.decode import DEFAULT_SIZE, resize_all
from fastresnet.loaders.sources.source import (
    SPLITS,
    Block,
    Contents,
    Progress,
    SplitName,
    check_labels,
    shown,
)
from fastresnet.loaders.sources.tree import hash_file, stem_of

REQUIRED = tuple(f"{split}_{part}" for split in SPLITS for part in ("images", "labels"))
OPTIONAL = ("class_names",)
_ROWS = 1024  # images a block


class ArrayFile:
    """The source of the arrays in ``path``."""

    def __init__(self, path: Path, image_size: int | None) -> None:
        """``image_size`` forces the side S; None keeps square images as they are and scales others to 32."""
        self.stem = stem_of(path)
        self._path = path
        self._image_size = image_size

    def fingerprint(self, progress: Progress) -> str:
        """Return the file's content hash."""
        return hash_file(self._path, progress)

    def scan(self, progress: Progress) -> Contents:
        """Load the arrays into memory and check them."""
        arrays, notices = self._load()
        images = {split: self._images(arrays, split) for split in SPLITS}
        labels = {split: self._labels(arrays, split, len(images[split])) for split in SPLITS}
        shapes = {found.shape[1:3] for found in images.values()}
        class_names = self._class_names(arrays, labels)
        check_labels(str(self._path), class_names, labels)
        height, width = max(shapes)
        square = len(shapes) == 1 and height == width
        size = self._image_size or (height if square else DEFAULT_SIZE)
        if not square or size != height:
            notices.append(f"images (such as {width}x{height}) are scaled and cropped to {size}x{size}")
        return Contents(
            name=self.stem,
            class_names=class_names,
            image_size=size,
            labels=labels,
            blocks=lambda progress: _blocks(images, size, progress),
            notices=tuple(notices),
        )

    def _load(self) -> tuple[dict[str, NDArray[np.generic]], list[str]]:
        if not zipfile.is_zipfile(self._path):
            raise UserError(f"{self._path} is truncated or no .npz (which is a zip of arrays); make it again")
        try:
            with np.load(self._path, allow_pickle=False) as archive:
                missing = [key for key in REQUIRED if key not in archive.files]
                if missing:
                    near = did_you_mean(missing[0], archive.files)
                    raise UserError(
                        f"{self._path} has no array {missing[0]!r}{near or ';'} it needs "
                        f"{', '.join(REQUIRED)} and may have class_names; it has {', '.join(archive.files)}"
                    )
                known = [key for key in archive.files if key in (*REQUIRED, *OPTIONAL)]
                others = [key for key in archive.files if key not in known]
                self._check_sizes(archive.zip, known)
                return {key: archive[key] for key in known}, (
                    [f"left out the arrays {', '.join(others)}"] if others else []
                )
        except (
            OSError,
            EOFError,
            ValueError,
            KeyError,
            zipfile.BadZipFile,
            zlib.error,
            RuntimeError,
        ) as error:
            reason = "it holds Python objects" if "allow_pickle" in str(error) else shown(str(error))
            raise UserError(f"{self._path} is no readable .npz of plain arrays ({reason})") from error

    def _check_sizes(self, archive: zipfile.ZipFile, keys: list[str]) -> None:
        """Refuse arrays that claim more bytes than they bring, or than this machine has memory for."""
        total = 0
        for key in keys:
            info = archive.getinfo(f"{key}.npy")
            with archive.open(info) as file:
                version = np.lib.format.read_magic(file)
                read = (
                    np.lib.format.read_array_header_1_0
                    if version == (1, 0)
                    else np.lib.format.read_array_header_2_0
                )
                shape, _, dtype = read(file)
                num_bytes = math.prod(shape) * dtype.itemsize
                if not dtype.hasobject and num_bytes != info.file_size - file.tell():
                    raise ValueError(
                        f"{key} has {info.file_size - file.tell():,} bytes; its shape needs {num_bytes:,}"
                    )
                total += num_bytes
        available = psutil.virtual_memory().available
        if total > available:
            raise UserError(
                f"{self._path} holds {total / 1e9:.1f} GB of arrays, and this machine has {available / 1e9:.1f} GB of "
                "memory free; give fewer images, or image files in a folder"
            )

    def _images(self, arrays: dict[str, NDArray[np.generic]], split: SplitName) -> NDArray[np.uint8]:
        key = f"{split}_images"
        images = arrays[key]
        if images.ndim == 3:
            images = images[..., None]
        if (
            images.dtype != np.uint8
            or images.ndim != 4
            or images.shape[3] not in (1, 3)
            or 0 in images.shape[1:]
        ):
            raise UserError(
                f"{self._path}: {key} is {arrays[key].dtype} {list(arrays[key].shape)}; it must be uint8 "
                "[N, H, W, 3], [N, H, W, 1] or [N, H, W]"
            )
        return np.broadcast_to(images.view(np.uint8), (*images.shape[:3], 3))

    def _labels(
        self, arrays: dict[str, NDArray[np.generic]], split: SplitName, num_images: int
    ) -> NDArray[np.int64]:
        key = f"{split}_labels"
        labels = arrays[key]
        if labels.ndim == 2 and labels.shape[1] == 1:
            labels = labels[:, 0]
        if labels.dtype.kind not in "iu" or labels.shape != (num_images,):
            raise UserError(
                f"{self._path}: {key} is {arrays[key].dtype} {list(arrays[key].shape)}; it must be integers "
                f"[{num_images}], one an image"
            )
        if len(labels) and (int(labels.min()) < 0 or int(labels.max()) >= 1 << 20):
            raise UserError(
                f"{self._path}: {key} holds {labels.min()} to {labels.max()}; labels count classes from 0"
            )
        return labels.astype(np.int64)

    def _class_names(
        self, arrays: dict[str, NDArray[np.generic]], labels: dict[SplitName, NDArray[np.int64]]
    ) -> tuple[str, ...]:
        highest = max((int(found.max()) for found in labels.values() if len(found)), default=0)
        names = arrays.get("class_names")
        if names is None:
            return tuple(str(label) for label in range(highest + 1))
        if names.dtype.kind != "U" or names.ndim != 1 or len(names) <= highest:
            raise UserError(
                f"{self._path}: class_names is {names.dtype} {list(names.shape)}; it must be strings [C] "
                f"with C over the highest label, {highest}"
            )
        if len(set(names.tolist())) < len(names):
            raise UserError(f"{self._path}: class_names holds a name twice; each class needs its own")
        return tuple(str(name) for name in names)


def _blocks(images: dict[SplitName, NDArray[np.uint8]], size: int, progress: Progress) -> Iterator[Block]:
    done, total = 0, sum(len(found) for found in images.values())
    for split, found in images.items():
        for start in range(0, len(found), _ROWS):
            block = found[start : start + _ROWS]
            yield Block(split, np.arange(start, start + len(block)), resize_all(block, size))
            done += len(block)
            progress("packing images", done, total)
