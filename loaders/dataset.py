"""Open a data set: resolve ``--data``, pack it once, map the pack; split train further."""

from __future__ import annotations

import dataclasses
import hashlib
import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fastresnet.atomic import locked
from fastresnet.draws import Purpose, permutation, stream
from fastresnet.errors import UserError
from fastresnet.loaders.cache import cache_folder, disk_errors, publishing
from fastresnet.loaders.pack import FORMAT, PackDamagedError, read_pack, write_pack
from fastresnet.loaders.protocol import Split
from fastresnet.loaders.sources import Progress, Source, resolve
from fastresnet.loaders.sources.betons import BetonPair
from fastresnet.loaders.sources.source import silent


@dataclass(frozen=True, kw_only=True)
class Dataset:
    """A packed data set.

    Attributes:
        name: what figures measured on it are called: "CIFAR-10", "CIFAR-10-J75", "shapes", or the stem
            of the file or folder.
        class_names: a name per label.
        mean, std: float64 per channel over train, of pixel values in [0, 1].
        image_size: S: images are [S, S, 3].
        digest: sha256 in hex of class names, shapes, pixels and labels; a folder and a tar of it agree.
        train, test: every sample of each.
        folder: the pack.
        is_builtin: it is the built-in set, so no figure on it says anything about real images.
        notices: what the user should know, one line each: scaling, files left out, a pack made anew.
    """

    name: str
    class_names: tuple[str, ...]
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    image_size: int
    digest: str
    train: Split
    test: Split
    folder: Path
    is_builtin: bool
    notices: tuple[str, ...]

    @property
    def num_classes(self) -> int:
        """Labels are in [0, num_classes)."""
        return len(self.class_names)


def open_dataset(
    data: str | None, *, image_size: int | None = None, progress: Progress | None = None
) -> Dataset:
    """Return the data set that ``data`` names, packing it into the cache the first time.

    Args:
        data: a path, "shapes", or None for the official CIFAR-10 (cached, else downloaded).
        image_size: the side in pixels to scale every image to; None keeps one square size that all share,
            else takes 32.
        progress: told of hashing, listing and decoding.

    Raises:
        DataUnavailable: ``data`` is None and CIFAR-10 could be neither found nor downloaded.
        UserError: the data is missing, damaged or no data set, or the cache cannot be written.
    """
    if image_size is not None and image_size < 1:
        raise UserError(f"image size is {image_size}; it must be at least 1 pixel")
    progress = progress or silent
    source = resolve(data, image_size, progress)
    fingerprint = source.fingerprint(progress)
    folder = _pack_folder(source.stem, fingerprint, image_size)
    dataset = _open_pack(source, fingerprint, folder, progress)
    if not isinstance(source, BetonPair):
        return dataset
    train, test = source.attach(dataset.train, "train"), source.attach(dataset.test, "test")
    return dataclasses.replace(dataset, train=train, test=test)


def _open_pack(source: Source, fingerprint: str, folder: Path, progress: Progress) -> Dataset:
    if folder.is_dir():
        try:
            return _load(folder)
        except PackDamagedError:
            pass  # looked at again under the lock: another process may be mending it
    return _pack(source, fingerprint, folder, progress)


def packs() -> list[Path]:
    """Return the folders of every pack in the cache, damaged or not."""
    return sorted(path for path in _packs_folder().glob("[!.]*") if path.is_dir())


def find_pack(data: str, image_size: int | None, progress: Progress) -> Path:
    """Return where the pack of ``data`` lies once it is made. Raises UserError if there is no such data."""
    source = resolve(data, image_size, progress)
    return _pack_folder(source.stem, source.fingerprint(progress), image_size)


def _packs_folder() -> Path:
    return cache_folder() / "packs"


def _pack_folder(stem: str, fingerprint: str, image_size: int | None) -> Path:
    key = hashlib.sha256(f"{FORMAT}|{fingerprint}|{image_size}".encode()).hexdigest()[:16]
    name = "".join(letter if letter.isalnum() or letter in "._-" else "_" for letter in stem)[:64]
    return _packs_folder() / f"{name}-{key}"


def _pack(source: Source, fingerprint: str, folder: Path, progress: Progress) -> Dataset:
    notices: tuple[str, ...] = ()
    with (
        disk_errors("packing"),
        locked(
            folder.with_name(f"{folder.name}.lock"), lambda: progress("waiting for another process", 0, 0)
        ),
    ):
        if folder.is_dir():
            try:
                return _load(folder)
            except PackDamagedError as error:
                notices = (f"the pack was damaged ({error}) and has been made again",)
                shutil.rmtree(folder)
        contents = source.scan(progress)
        with publishing(folder) as temporary:
            write_pack(temporary, contents, fingerprint, progress)
        dataset = _load(folder)
    return dataclasses.replace(dataset, notices=(*dataset.notices, *notices))


def _load(folder: Path) -> Dataset:
    meta, images, labels = read_pack(folder)
    return Dataset(
        name=meta.name,
        class_names=meta.class_names,
        mean=meta.mean,
        std=meta.std,
        image_size=meta.image_size,
        digest=meta.digest,
        train=_whole(images["train"], labels["train"]),
        test=_whole(images["test"], labels["test"]),
        folder=folder,
        is_builtin=meta.source.startswith("built-in"),
        notices=meta.notices,
    )


def _whole(images: np.ndarray, labels: np.ndarray) -> Split:
    return Split(images=images, labels=labels, members=np.arange(len(labels), dtype=np.int64))


def hold_out(split: Split, num_val: int, seed: int) -> tuple[Split, Split]:
    """Return (train, val): ``num_val`` of the members drawn by ``seed`` for val, the others left in train.

    Members stay ascending; images and labels are shared. Raises UserError unless 0 < num_val < members.
    """
    if not 0 < num_val < len(split.members):
        raise UserError(
            f"cannot hold out {num_val} of {len(split.members)} train images; choose between 1 and "
            f"{len(split.members) - 1}"
        )
    order = permutation(stream(seed, Purpose.SPLIT, 0), split.members)
    val, train = np.sort(order[:num_val]), np.sort(order[num_val:])
    return dataclasses.replace(split, members=train), dataclasses.replace(split, members=val)


def limit(split: Split, num_samples: int, seed: int) -> Split:
    """Return ``split`` cut to ``num_samples`` members, the first of the permutation drawn by ``seed``.

    Members stay ascending. Raises UserError unless 0 < num_samples <= members.
    """
    if not 0 < num_samples <= len(split.members):
        raise UserError(
            f"cannot use {num_samples} of {len(split.members)} images; choose 1 to {len(split.members)}"
        )
    order = permutation(stream(seed, Purpose.SPLIT, 1), split.members)
    return dataclasses.replace(split, members=np.sort(order[:num_samples]))
