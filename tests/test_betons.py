"""FFCV's files: ours read by ffcv, ffcv's read by us, and one line for what is wrong with either."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from made_data import picture, refusal, write_images
from optional_parts import need
from typer.testing import CliRunner

from fastresnet.cli.main import app
from fastresnet.loaders.beton import holds, read_beton, write_beton
from fastresnet.loaders.cache import cache_folder
from fastresnet.loaders.dataset import Dataset, open_dataset
from fastresnet.loaders.protocol import LoaderSpec
from fastresnet.loaders.registry import open_loader
from fastresnet.loaders.sources.betons import write_betons
from fastresnet.loaders.testing import as_arrays, example_split, reference_epoch

SPEC = LoaderSpec(batch_size=4, padding=2, flip="random")


def expect_reference_bits(backend: str, dataset: Dataset) -> None:
    loader = open_loader(backend, dataset.train, SPEC, "cpu")
    got = [as_arrays(batch) for batch in loader]
    loader.close()
    for a, b in zip(got, reference_epoch(dataset.train, SPEC, 0), strict=True):
        assert all(np.array_equal(x, y) for x, y in zip(a, b, strict=True))


@pytest.mark.parametrize(("num_images", "side"), [(7, 5), (700, 32), (3, 1200)])
def test_written_files_read_back(tmp_path: Path, num_images: int, side: int) -> None:
    path = tmp_path / "x.beton"
    with example_split(num_images, side) as split, example_split(num_images + 1, side) as other:
        write_beton(split, path)
        beton = read_beton(path)
        assert (beton.image_field, beton.other_fields, beton.square_size) == ("image", ("label",), side)
        assert holds(beton, split)
        assert not holds(beton, other)
        with path.open("r+b") as file:
            file.seek(int(beton.pointers[-1]))
            file.write(bytes([split.images[-1, 0, 0, 0] ^ 1]))
        assert not holds(read_beton(path), split)


def test_from_any_source_and_back_is_the_same_data_set(image_folder: Path, tmp_path: Path) -> None:
    dataset = open_dataset(str(image_folder))
    done = CliRunner().invoke(
        app, ["data", "pack", str(image_folder), "--to", "beton", "--out", str(tmp_path / "b")]
    )
    assert done.exit_code == 0, done.output
    again = open_dataset(str(tmp_path / "b"))
    assert again.digest == dataset.digest
    assert again.train.beton == tmp_path / "b" / "train.beton"
    assert open_dataset(str(tmp_path / "b" / "train.beton")).digest == dataset.digest


@pytest.mark.parametrize("arguments", [["--to", "npz"], ["--out", "x"]])
def test_pack_options_are_checked(arguments: list[str], image_folder: Path) -> None:
    done = CliRunner().invoke(app, ["data", "pack", str(image_folder), *arguments])
    assert done.exit_code != 0
    assert "beton" in str(done.exception)


def test_the_ffcv_loader_reads_the_packs_own_and_the_users_file(image_folder: Path, tmp_path: Path) -> None:
    need("ffcv")
    dataset = open_dataset(str(image_folder))
    expect_reference_bits("ffcv", dataset)
    (kept,) = (cache_folder() / "betons").glob("*-train.beton")
    kept.write_bytes(kept.read_bytes()[:-100])  # torn: written again
    expect_reference_bits("ffcv", dataset)
    write_betons(dataset, tmp_path / "mine")
    expect_reference_bits("ffcv", open_dataset(str(tmp_path / "mine")))


def write_with_ffcv(
    path: Path, count: int, *, first: int = 0, mode: str = "raw", sides: tuple[int, ...] = (32,)
) -> None:
    """Write a .beton as a user of ffcv would, its fields in another order and with other names than ours."""
    from ffcv.fields import FloatField, IntField, RGBImageField
    from ffcv.writer import DatasetWriter

    class Images:
        def __len__(self) -> int:
            return count

        def __getitem__(self, index: int) -> tuple[int, float, np.ndarray]:
            side = sides[index % len(sides)]
            return index % 3, 0.5, picture(index % 3, first + index, side)

    fields = {
        "target": IntField(),
        "weight": FloatField(),
        "pixels": RGBImageField(write_mode=mode, jpeg_quality=90),
    }
    DatasetWriter(str(path), fields, num_workers=1).from_indexed_dataset(Images())


def test_a_users_own_raw_files(tmp_path: Path) -> None:
    need("ffcv")
    write_with_ffcv(tmp_path / "train.beton", 30)
    write_with_ffcv(tmp_path / "val.beton", 12, first=100)
    dataset = open_dataset(str(tmp_path))
    assert np.array_equal(dataset.train.images[7], picture(1, 7))
    assert dataset.train.labels.tolist() == [index % 3 for index in range(30)]
    assert dataset.class_names == ("0", "1", "2")
    for backend in ("ffcv", "numba"):
        expect_reference_bits(backend, dataset)


def test_a_users_own_jpegs_differ_by_the_decoder_alone(tmp_path: Path) -> None:
    need("ffcv")
    write_with_ffcv(tmp_path / "train.beton", 30, mode="jpg")
    write_with_ffcv(tmp_path / "test.beton", 12, first=100, mode="jpg")
    dataset = open_dataset(str(tmp_path))
    assert any("decodes them itself" in notice for notice in dataset.notices)
    loaders = [open_loader(backend, dataset.train, SPEC, "cpu") for backend in ("ffcv", "numba")]
    for theirs, ours in zip(*loaders, strict=True):
        assert torch.equal(theirs.indices, ours.indices)
        difference = (theirs.images.int() - ours.images.int()).abs()
        assert difference.float().mean() < 2
        assert difference.max() < 40
    for loader in loaders:
        loader.close()


def test_a_users_own_images_of_several_sizes_are_packed(tmp_path: Path) -> None:
    need("ffcv")
    write_with_ffcv(tmp_path / "train.beton", 30, sides=(32, 48))
    write_with_ffcv(tmp_path / "test.beton", 12, first=100)
    dataset = open_dataset(str(tmp_path))
    assert dataset.image_size == 32
    expect_reference_bits("ffcv", dataset)


def test_what_is_wrong_is_one_line(tmp_path: Path) -> None:
    with example_split(20) as split:
        write_beton(split, tmp_path / "train.beton")
        assert "must hold train.beton and test.beton" in refusal(tmp_path)
        write_beton(split, tmp_path / "test.beton")
    whole = (tmp_path / "train.beton").read_bytes()
    for cut in (0, 10, 100, 3000, len(whole) // 2, len(whole) - 1):
        (tmp_path / "train.beton").write_bytes(whole[:cut])
        assert "train.beton" in refusal(tmp_path), cut
    (tmp_path / "train.beton").write_bytes(b"\7" + whole[1:])
    assert "version 7" in refusal(tmp_path)
    assert "give its folder" in refusal(tmp_path / "test.beton")


def test_bad_class_names_are_refused(tmp_path: Path, image_folder: Path) -> None:
    write_betons(open_dataset(str(image_folder)), tmp_path / "b")
    for text in ('["ant"]', '["ant", "ant", "bee"]', "{", "3"):
        (tmp_path / "b" / "classes.json").write_text(text)
        assert "classes.json" in refusal(tmp_path / "b")


def test_two_fields_of_images_are_refused(tmp_path: Path) -> None:
    with example_split(20) as split:
        for name in ("train", "test"):
            write_beton(split, tmp_path / f"{name}.beton")
    data = bytearray((tmp_path / "train.beton").read_bytes())
    data[24 + 1041] = 2  # the second descriptor's type
    (tmp_path / "train.beton").write_bytes(bytes(data))
    assert "one image field" in refusal(tmp_path)


def test_images_as_folders_are_not_taken_for_betons(tmp_path: Path) -> None:
    folder = write_images(tmp_path / "photos")
    assert open_dataset(str(folder)).train.beton is None
