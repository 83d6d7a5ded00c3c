"""FFCV files: ``train.beton`` and ``test.beton`` (or ``val.beton``) side by side, however they were written."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, cast

import numpy as np
from numpy.typing import NDArray

from fastresnet.atomic import explain_os_error, write_atomic
from fastresnet.errors import UserError
from fastresnet.loaders.beton import Beton, read_beton, write_beton
from fastresnet.loaders.protocol import Split
from fastresnet.loaders.sources.decode import DEFAULT_SIZE, decode, resize_all
from fastresnet.loaders.sources.source import (
    SPLITS,
    Block,
    Contents,
    Progress,
    SplitName,
    check_labels,
    shown,
)
from fastresnet.loaders.sources.tree import hash_file

if TYPE_CHECKING:
    from fastresnet.loaders.dataset import Dataset

SUFFIX = ".beton"
CLASSES = "classes.json"  # a list of class names, which a .beton has no place for
_ROWS = 1024  # images decoded at a time


def beton_path(folder: Path, split: SplitName) -> Path:
    """Return where ``folder`` holds, or is to hold, the split."""
    return folder / f"{split}{SUFFIX}"


class BetonPair:
    """The source of two .beton files, each with one image field and one integer label field."""

    def __init__(self, path: Path, image_size: int | None) -> None:
        """Take the folder of both, or the path of ``train.beton``. Raises UserError if one is missing."""
        folder = path if path.is_dir() else path.parent
        if path.is_file() and path.name != beton_path(folder, "train").name:
            raise UserError(f"{path} is one split; give its folder, holding train.beton and test.beton")
        self.stem = folder.resolve().name
        self._image_size = image_size
        test = next(
            (folder / name for name in ("test.beton", "val.beton") if (folder / name).is_file()), None
        )
        train = beton_path(folder, "train")
        if test is None or not train.is_file():
            raise UserError(f"{folder} must hold train.beton and test.beton (or val.beton)")
        self._paths: dict[SplitName, Path] = {"train": train, "test": test}
        self._classes = folder / CLASSES

    def attach(self, split: Split, name: SplitName) -> Split:
        """Return the pack's split with the file that it was made from."""
        return replace(split, beton=self._paths[name])

    def fingerprint(self, progress: Progress) -> str:
        """Return a hash of both files' contents and of the class names."""
        parts = [hash_file(path, progress) for path in self._paths.values()]
        if self._classes.is_file():
            parts.append(hash_file(self._classes, progress))
        return hashlib.sha256(" ".join(parts).encode()).hexdigest()

    def scan(self, progress: Progress) -> Contents:
        """Read both files' metadata and check it."""
        betons: dict[SplitName, Beton] = {split: read_beton(path) for split, path in self._paths.items()}
        labels = {split: beton.labels for split, beton in betons.items()}
        names = self._class_names(labels)
        check_labels(str(self._paths["train"].parent), names, labels)
        sizes = {beton.square_size for beton in betons.values()}
        common = sizes.pop() if len(sizes) == 1 else None
        size = self._image_size or common or DEFAULT_SIZE
        notices = [] if size == common else [f"images are scaled and cropped to {size}x{size}"]
        if any(beton.is_jpeg.any() for beton in betons.values()):
            notices.append(
                "JPEG images are decoded by Pillow for the pack; the ffcv loader decodes them itself"
            )
        return Contents(
            name=self.stem,
            class_names=names,
            image_size=size,
            labels=labels,
            blocks=lambda progress: _blocks(betons, size, progress),
            notices=tuple(notices),
        )

    def _class_names(self, labels: dict[SplitName, NDArray[np.int64]]) -> tuple[str, ...]:
        every = np.concatenate([labels[split] for split in SPLITS])
        low, high = (int(every.min()), int(every.max())) if len(every) else (0, 0)
        if low < 0 or high >= 1 << 20:
            raise UserError(
                f"{self._paths['train'].parent}: labels are {low} to {high}; they count classes from 0"
            )
        if not self._classes.is_file():
            return tuple(str(label) for label in range(high + 1))
        try:
            names = json.loads(self._classes.read_bytes())
        except (OSError, ValueError, RecursionError) as error:
            raise UserError(
                f"{self._classes} cannot be read ({shown(str(error))}); mend or remove it"
            ) from error
        if not isinstance(names, list) or len(set(map(str, names))) != len(names) or len(names) <= high:
            raise UserError(f"{self._classes} must be a list of {high + 1} or more different class names")
        return tuple(str(name) for name in names)


def write_betons(dataset: Dataset, folder: Path) -> None:
    """Write the packed ``dataset`` to ``folder``, made if need be, as :class:`BetonPair` reads it.

    Raises:
        UserError: the folder or a file cannot be written; no file is left half-written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise explain_os_error(error, f"cannot make {folder}") from error
    for name, split in (("train", dataset.train), ("test", dataset.test)):
        write_beton(split, beton_path(folder, cast(SplitName, name)))
    names = json.dumps(list(dataset.class_names), ensure_ascii=False).encode()
    write_atomic(folder / CLASSES, lambda file: file.write(names) and None)


def _blocks(betons: dict[SplitName, Beton], size: int, progress: Progress) -> Iterator[Block]:
    done, total = 0, sum(len(beton.labels) for beton in betons.values())
    for split, beton in betons.items():
        data = np.asarray(np.memmap(beton.path, np.uint8, "r"))
        for start in range(0, len(beton.labels), _ROWS):
            rows = np.arange(start, min(start + _ROWS, len(beton.labels)))
            yield Block(split, rows, np.stack([_image(beton, data, int(row), size) for row in rows]))
            done += len(rows)
            progress("packing images", done, total)


def _image(beton: Beton, data: NDArray[np.uint8], row: int, size: int) -> NDArray[np.uint8]:
    stored = data[beton.pointers[row] : beton.pointers[row] + beton.sizes[row]]
    if beton.is_jpeg[row]:
        return decode(io.BytesIO(stored.tobytes()), f"{beton.path}: image {row}", size)
    return resize_all(stored.reshape(1, int(beton.heights[row]), int(beton.widths[row]), 3), size)[0]
