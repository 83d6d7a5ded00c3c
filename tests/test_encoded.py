"""Image files trained on as they lie: the same data set as their pack, decoded by DALI batch by batch."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from made_data import write_images, write_tar
from optional_parts import need
from PIL import Image

from fastresnet.errors import UserError
from fastresnet.loaders.dataset import Dataset, open_dataset
from fastresnet.loaders.encoded import open_encoded
from fastresnet.loaders.protocol import LoaderSpec
from fastresnet.loaders.registry import open_loader

SPEC = LoaderSpec(batch_size=5, padding=2, flip="random")


def opened(data: Path, image_size: int | None = None) -> Dataset:
    dataset = open_encoded(str(data), image_size=image_size)
    assert dataset is not None
    return dataset


@pytest.fixture(params=["folder", "tar", "tar.xz"])
def photos(request: pytest.FixtureRequest, tmp_path: Path, image_folder: Path) -> Path:
    """The same photos as a folder, a plain tar and a compressed one."""
    if request.param == "folder":
        return image_folder
    return write_tar(image_folder, tmp_path / f"photos.{request.param}")


def test_it_is_the_packs_data_set(photos: Path, cache: Path) -> None:
    for _ in range(2):  # made, then from the cache
        encoded = opened(photos)
        assert not (cache / "packs").exists()
    packed = open_dataset(str(photos))
    for field in ("name", "class_names", "mean", "std", "image_size", "digest"):
        assert getattr(encoded, field) == getattr(packed, field), field
    for ours, theirs in ((encoded.train, packed.train), (encoded.test, packed.test)):
        assert np.array_equal(ours.labels, theirs.labels)
        assert ours.encoded is not None
        assert all(np.array_equal(ours.encoded.decode(i), theirs.images[i]) for i in range(len(ours.labels)))


def test_what_is_not_files_of_images_is_left_to_the_pack(official_folder: Path, npz_file: Path) -> None:
    for data in (None, "shapes", str(official_folder), str(npz_file)):
        assert open_encoded(data) is None


def test_other_loaders_refuse_it(photos: Path) -> None:
    with pytest.raises(UserError, match="use the dali loader"):
        open_loader("numba", opened(photos).train, SPEC, "cpu")


def differences(encoded: Dataset, packed: Dataset) -> torch.Tensor:
    """Return |DALI's batches - the pack's| over one epoch."""
    loaders = [
        open_loader("dali", encoded.train, SPEC, "cpu"),
        open_loader("numba", packed.train, SPEC, "cpu"),
    ]
    parts = []
    for theirs, ours in zip(*loaders, strict=True):
        assert torch.equal(theirs.indices, ours.indices)
        assert torch.equal(theirs.labels, ours.labels)
        parts.append((theirs.images.int() - ours.images.int()).abs())
    for loader in loaders:
        loader.close()
    return torch.cat(parts)


def test_dali_decodes_them(photos: Path) -> None:
    need("dali")
    found = differences(opened(photos), open_dataset(str(photos)))
    # Decoders may round differently; on the CPU, DALI's and Pillow's come from one library.
    assert found.max() <= 2


def test_dali_scales_and_crops_other_sizes(tmp_path: Path) -> None:
    need("dali")
    folder = write_images(tmp_path / "big", size=48)
    Image.open(folder / "train" / "ant" / "00000.jpg").resize((70, 50)).save(
        folder / "train" / "ant" / "00000.jpg"
    )
    found = differences(opened(folder, image_size=32), open_dataset(str(folder), image_size=32))
    assert found.float().mean() < 4  # resamplers differ; a wrong crop or order would be tens


def test_png_and_grey_files(tmp_path: Path) -> None:
    need("dali")
    folder = write_images(tmp_path / "mixed")
    for number, path in enumerate(sorted(folder.rglob("*.jpg"))):
        if number % 2:
            Image.open(path).convert("L" if number % 4 == 1 else "RGB").save(path.with_suffix(".png"))
            path.unlink()
    assert differences(opened(folder), open_dataset(str(folder))).max() <= 2


def test_a_file_broken_since_is_named(image_folder: Path) -> None:
    need("dali")
    dataset = opened(image_folder)
    (image_folder / "train" / "bee" / "00003.jpg").write_bytes(b"\xff\xd8\xff no image")
    loader = open_loader("dali", dataset.train, SPEC, "cpu")
    with pytest.raises(UserError, match=r"bee/00003\.jpg") as caught:
        list(loader)
    assert "\n" not in str(caught.value)
    loader.close()
