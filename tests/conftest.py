"""Small data sets of every kind, made of real files; a cache folder of each test's own."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from made_data import OFFICIAL_CLASSES, write_images, write_npz, write_official, write_tar

from fastresnet.loaders.dataset import Dataset, open_dataset

if not torch.cuda.is_available():
    # the kernels' tests run in Triton's interpreter, which has to be asked for before Triton is first imported
    os.environ.setdefault("TRITON_INTERPRET", "1")


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Give every test an empty cache folder; it is ``$FASTRESNET_CACHE``, for subprocesses too."""
    folder = tmp_path / "cache"
    monkeypatch.setenv("FASTRESNET_CACHE", str(folder))
    return folder


@pytest.fixture
def image_folder(tmp_path: Path) -> Path:
    """A folder of 32x32 JPEGs: classes ant, bee, cat; 8 train and 4 test images each."""
    return write_images(tmp_path / "photos")


@pytest.fixture
def image_tar(image_folder: Path, tmp_path: Path) -> Path:
    """``photos.tar.xz`` of :func:`image_folder`'s files."""
    return write_tar(image_folder, tmp_path / "photos.tar.xz")


@pytest.fixture
def official_folder(tmp_path: Path) -> Path:
    """A folder of pickles like CIFAR-10's, 20 images each."""
    return write_official(tmp_path / "cifar-10-batches-py")


@pytest.fixture
def npz_file(tmp_path: Path) -> Path:
    """An .npz of 30 train and 12 test images in three named classes."""
    return write_npz(tmp_path / "arrays.npz")


@pytest.fixture(scope="session")
def real_images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``$FASTRESNET_IMAGES`` (a folder or tar of images), else a tar of 500 made JPEGs in ten classes."""
    chosen = os.environ.get("FASTRESNET_IMAGES")
    if chosen:
        return Path(chosen)
    root = tmp_path_factory.mktemp("generated")
    write_images(root / "generated", OFFICIAL_CLASSES, {"train": 40, "test": 10})
    return write_tar(root / "generated", root / "generated.tar")


@pytest.fixture(scope="session")
def shared_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache folder that lasts the session: where ``real_dataset`` is packed."""
    return tmp_path_factory.mktemp("shared_cache")


@pytest.fixture(scope="session")
def real_dataset(real_images: Path, shared_cache: Path) -> Dataset:
    """``real_images``, packed once a session."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FASTRESNET_CACHE", str(shared_cache))
        return open_dataset(str(real_images))
