"""Writers of small data sets: real JPEGs, tars, pickles and arrays; and how one is refused."""

from __future__ import annotations

import pickle
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fastresnet.errors import UserError
from fastresnet.loaders.dataset import open_dataset

CLASSES = ("ant", "bee", "cat")
PER_CLASS = {"train": 8, "test": 4}
OFFICIAL_CLASSES = (
    *("airplane", "automobile", "bird", "cat", "deer"),
    *("dog", "frog", "horse", "ship", "truck"),
)


def picture(label: int, number: int, size: int = 32) -> np.ndarray:
    """Return uint8 [S, S, 3]: stripes whose direction and colour tell the label, smooth enough for JPEG."""
    random = np.random.default_rng((label, number))
    y, x = np.mgrid[:size, :size] / size
    angle = label * 0.7 + random.normal(0, 0.1)
    stripes = np.sin(12 * (np.cos(angle) * x + np.sin(angle) * y) + random.uniform(0, 6))
    colour = 128 + 80 * np.cos(label * 1.3 + np.arange(3) * 2.1)
    pixels = colour + 45 * stripes[..., None] + random.normal(0, 4, (size, size, 3))
    return np.clip(pixels, 0, 255).astype(np.uint8)


def write_images(
    root: Path, classes: tuple[str, ...] = CLASSES, counts: dict[str, int] | None = None, size: int = 32
) -> Path:
    """Write ``root/{train,test}/<class>/<number>.jpg`` and return ``root``."""
    for split, count in (counts or PER_CLASS).items():
        for label, name in enumerate(classes):
            folder = root / split / name
            folder.mkdir(parents=True)
            for number in range(count):
                pixels = picture(label, number + 1000 * (split == "test"), size)
                Image.fromarray(pixels).save(folder / f"{number:05d}.jpg", quality=90)
    return root


def write_tar(folder: Path, out: Path) -> Path:
    """Write the files of ``folder``, out of order, to the tar ``out``, packed as it is named; return it."""
    mode = {".xz": "w:xz", ".gz": "w:gz", ".tgz": "w:gz"}.get(out.suffix, "w")
    files = sorted((path for path in folder.rglob("*") if path.is_file()), key=lambda path: path.name[::-1])
    with tarfile.open(out, mode) as archive:
        for path in files:
            archive.add(path, str(path.relative_to(folder)))
    return out


def write_official(folder: Path, per_batch: int = 20, protocol: int = 2) -> Path:
    """Write pickles like CIFAR-10's official ones, ``per_batch`` images each; return ``folder``."""
    folder.mkdir(parents=True)
    for number, name in enumerate([f"data_batch_{batch}" for batch in range(1, 6)] + ["test_batch"]):
        labels = [index % 10 for index in range(per_batch)]
        images = np.stack([picture(label, number * per_batch + i) for i, label in enumerate(labels)])
        content = {
            b"batch_label": name.encode(),
            b"labels": labels,
            b"data": np.ascontiguousarray(images.transpose(0, 3, 1, 2).reshape(per_batch, 3072)),
            b"filenames": [b"%d.png" % index for index in range(per_batch)],
        }
        (folder / name).write_bytes(pickle.dumps(content, protocol))
    meta = {b"label_names": [name.encode() for name in OFFICIAL_CLASSES], b"num_vis": 3072}
    (folder / "batches.meta").write_bytes(pickle.dumps(meta, protocol))
    return folder


def write_npz(out: Path, **changed: np.ndarray) -> Path:
    """Write 30 train and 12 test images in three classes to ``out``, some arrays ``changed``; return it."""
    arrays: dict[str, np.ndarray] = {"class_names": np.array(CLASSES)}
    for split, count in (("train", 30), ("test", 12)):
        labels = np.arange(count) % 3
        arrays[f"{split}_labels"] = labels
        arrays[f"{split}_images"] = np.stack([picture(int(label), i) for i, label in enumerate(labels)])
    np.savez(out, **{**arrays, **changed})
    return out


def refusal(data: Path | str | None, **options: int) -> str:
    """Return the one line with which ``data`` is refused."""
    with pytest.raises(UserError) as caught:
        open_dataset(None if data is None else str(data), **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)
