"""Image folders, arrays and the built-in set as --data, and one helpful line for whatever is wrong."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

import numpy as np
import pytest
from made_data import CLASSES, refusal, write_images, write_npz, write_tar
from PIL import Image

from fastresnet.loaders.dataset import Dataset, open_dataset

SHAPES_DIGEST = "14808631965185ece37ababf6fd8a7b9081f46c9c2544b187d6c7fa67e94a928"


def save(path: Path, image: Image.Image, **options: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path, **options)


# Folder and tar


def test_folder_and_every_tar_of_it_agree(image_folder: Path, tmp_path: Path) -> None:
    expected = open_dataset(str(image_folder))
    assert expected.name == "photos" and expected.class_names == CLASSES and expected.image_size == 32
    tars = [write_tar(image_folder, tmp_path / name) for name in ("a.tar", "b.tar.gz", "c.tgz", "d.tar.xz")]
    (tmp_path / "unpacked").mkdir()
    shutil.copytree(image_folder, tmp_path / "unpacked" / "photos")
    assert open_dataset(str(tmp_path / "unpacked")).digest == expected.digest
    for name, inner in (("dot.tar", "."), ("inside.tar", "photos")):  # tar -C photos . and tar photos/
        with tarfile.open(tmp_path / name, "w") as archive:
            archive.add(image_folder, inner)
        tars.append(tmp_path / name)
    for path in tars:
        dataset = open_dataset(str(path))
        assert dataset.digest == expected.digest, path
        assert dataset.name == path.name.split(".")[0]
        assert dataset.notices == ()


def test_samples_are_in_bytewise_order_of_path(tmp_path: Path) -> None:
    shade = 0
    paths = []
    for split in ("train", "test"):
        for name in ("b", "a", "Z", "é", "a-b"):
            for file in ("9.png", "10.png", "A.PNG"):
                shade += 8
                save(tmp_path / "set" / split / name / file, Image.new("RGB", (4, 4), (shade,) * 3))
                paths.append((f"{split}/{name}/{file}".encode(), shade))
    dataset = open_dataset(str(tmp_path / "set"))
    assert dataset.class_names == ("Z", "a", "a-b", "b", "é")
    for split, samples in (("train", dataset.train), ("test", dataset.test)):
        expected = sorted((path, shade) for path, shade in paths if path.startswith(split.encode()))
        assert samples.images[:, 0, 0, 0].tolist() == [shade for _, shade in expected]
        names = [dataset.class_names[label] for label in samples.labels]
        assert names == [path.decode().split("/")[1] for path, _ in expected]


def test_every_colour_mode_becomes_rgb(tmp_path: Path) -> None:
    grey = Image.linear_gradient("L").resize((16, 16))
    colour = Image.merge("RGB", (grey, grey.rotate(90), grey.rotate(180)))
    images = {
        "grey.png": grey,
        "grey16.png": Image.fromarray(np.asarray(grey).astype(np.uint16) * 257),
        "bits.png": grey.convert("1"),
        "alpha.png": colour.convert("RGBA"),
        "palette.png": colour.convert("P", palette=Image.Palette.ADAPTIVE, colors=64),
        "colour.png": colour,
        "cmyk.jpg": colour.convert("CMYK"),
        "grey.jpg": grey,
    }
    for split in ("train", "test"):
        for name, image in images.items():
            save(tmp_path / "set" / split / "a" / name, image)
        save(tmp_path / "set" / split / "b" / "x.png", colour)
    dataset = open_dataset(str(tmp_path / "set"))
    decoded = dict(zip(sorted(images), dataset.train.images, strict=False))
    assert dataset.image_size == 16 and dataset.notices == ()
    for name in ("grey.png", "grey16.png"):
        assert (decoded[name] == np.asarray(grey)[..., None]).all(), name
    for name in ("colour.png", "alpha.png"):
        assert (decoded[name] == np.asarray(colour)).all(), name
    for name in ("palette.png", "cmyk.jpg"):
        assert np.abs(decoded[name].astype(int) - np.asarray(colour)).mean() < 12, name


@pytest.mark.parametrize("orientation", range(1, 9))
def test_images_are_turned_upright(tmp_path: Path, orientation: int) -> None:
    """The pixels are stored turned, and EXIF says how; 1 to 8 as in the EXIF standard's table."""
    upright = np.zeros((16, 16, 3), np.uint8)
    upright[:8, :8, 0] = upright[:8, 8:, 1] = upright[8:, :8, 2] = 255
    stored = {
        1: upright,
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: upright.transpose(1, 0, 2),
        6: np.rot90(upright, 1),
        7: upright[::-1, ::-1].transpose(1, 0, 2),
        8: np.rot90(upright, -1),
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    for split in ("train", "test"):
        for name in ("a", "b"):
            image = Image.fromarray(np.ascontiguousarray(stored))
            save(tmp_path / "set" / split / name / "0.png", image, exif=exif)
    assert (open_dataset(str(tmp_path / "set")).train.images[0] == upright).all()


def test_square_images_of_one_size_keep_it(tmp_path: Path) -> None:
    dataset = open_dataset(str(write_images(tmp_path / "set", size=20)))
    assert dataset.image_size == 20 and dataset.train.images.shape == (24, 20, 20, 3)
    assert dataset.notices == ()


def test_other_sizes_are_scaled_with_a_notice(tmp_path: Path) -> None:
    root = write_images(tmp_path / "set", size=40)
    wide = np.zeros((60, 120, 3), np.uint8)
    wide[:, 30:90] = (200, 100, 50)  # the square at the centre
    save(root / "train" / "ant" / "wide.jpg", Image.fromarray(wide), quality=95)
    dataset = open_dataset(str(root))
    assert dataset.image_size == 32
    assert len(dataset.notices) == 1 and "wide.jpg, 120x60" in dataset.notices[0]
    inner = dataset.train.images[8, 2:-2, 2:-2].reshape(-1, 3).astype(int)
    assert np.abs(inner - (200, 100, 50)).max() < 12
    forced = open_dataset(str(root), image_size=48)
    assert forced.image_size == 48 and forced.train.images.shape == (25, 48, 48, 3)
    assert "48x48" in forced.notices[0]
    assert "image size is 0" in refusal(root, image_size=0)


def test_large_photos_are_scaled_without_aliasing(tmp_path: Path) -> None:
    """One-pixel stripes come out grey, not as stripes."""
    stripes = np.zeros((640, 640, 3), np.uint8)
    stripes[:, ::2] = 255
    for split in ("train", "test"):
        for name in ("a", "b"):
            save(tmp_path / "set" / split / name / "0.png", Image.fromarray(stripes))
    pixels = open_dataset(str(tmp_path / "set"), image_size=32).train.images
    assert np.abs(pixels.astype(int) - 127).max() <= 3


def test_stray_files_are_left_out(image_folder: Path) -> None:
    before = open_dataset(str(image_folder)).digest
    (image_folder / "train" / ".DS_Store").write_bytes(b"x")
    (image_folder / "train" / "ant" / "._0.jpg").write_bytes(b"x")
    (image_folder / "__MACOSX").mkdir()
    (image_folder / "notes.txt").write_bytes(b"x")
    dataset = open_dataset(str(image_folder))
    assert dataset.digest == before and dataset.notices == ()
    (image_folder / "train" / "ant" / "film.gif").write_bytes(b"x")
    dataset = open_dataset(str(image_folder))
    assert dataset.digest == before
    assert "left out 1 file not named .jpg, .jpeg or .png (first: train/ant/film.gif)" in dataset.notices[0]


def test_an_empty_class_folder_is_said_as_long_as_it_is_there(image_folder: Path) -> None:
    before = open_dataset(str(image_folder))
    (image_folder / "train" / "dog").mkdir()
    (image_folder / "test" / "eel").mkdir()
    dataset = open_dataset(str(image_folder))
    assert dataset.digest == before.digest and dataset.class_names == CLASSES
    assert dataset.notices == ("class folder test/eel is empty", "class folder train/dog is empty")
    shutil.rmtree(image_folder / "train" / "dog")
    assert open_dataset(str(image_folder)).notices == ("class folder test/eel is empty",)
    shutil.rmtree(image_folder / "test" / "eel")
    assert open_dataset(str(image_folder)).folder == before.folder


# What is wrong with a folder


def break_folder(root: Path, how: str) -> None:
    if how == "empty":
        shutil.rmtree(root)
        root.mkdir()
    elif how == "no test":
        (root / "test").rename(root / "val")
    elif how == "capitals":
        for split in ("train", "test"):
            (root / split).rename(root / split.capitalize())
    elif how == "classes at the top":
        for name in CLASSES:
            (root / "train" / name).rename(root / name)
        shutil.rmtree(root / "train")
        shutil.rmtree(root / "test")
    elif how == "one class":
        for split in ("train", "test"):
            for name in CLASSES[1:]:
                shutil.rmtree(root / split / name)
    elif how == "class only in test":
        shutil.rmtree(root / "train" / "bee")
    elif how == "too deep":
        (root / "train" / "ant" / "more").mkdir()
        (root / "train" / "ant" / "00000.jpg").rename(root / "train" / "ant" / "more" / "0.jpg")
    elif how == "no class folders":
        (root / "train" / "ant" / "00000.jpg").rename(root / "train" / "0.jpg")
    elif how == "newline in a name":
        (root / "train" / "ant" / "x\ny.jpg").write_bytes(b"x")
    elif how == "no data set":
        for split in ("train", "test"):
            shutil.rmtree(root / split)
        (root / "etc").mkdir()
        (root / "etc" / "mtab").symlink_to("nowhere")
        os.mkfifo(root / "pipe")
    elif how == "broken link":
        (root / "train" / "ant" / "link.jpg").symlink_to("nowhere.jpg")
    elif how == "empty image":
        (root / "train" / "bee" / "00003.jpg").write_bytes(b"")
    elif how == "torn image":
        path = root / "test" / "cat" / "00002.jpg"
        path.write_bytes(path.read_bytes()[:-200])
    elif how == "text for an image":
        (root / "train" / "bee" / "00003.jpg").write_text("<html>not found</html>")
    elif how == "another format":
        Image.new("RGB", (32, 32)).save(root / "train" / "bee" / "00003.jpg", "GIF")


@pytest.mark.parametrize(
    ("how", "says"),
    [
        ("empty", ["photos holds no .jpg, .jpeg or .png images", "{train,test}/<class>/<file>"]),
        ("no test", ["no images in test/", "{train,test}/<class>/<file>", "what it has instead is val"]),
        ("capitals", ["no images in train/ or test/", "what it has instead is Test, Train"]),
        ("classes at the top", ["ant, bee, cat", "put them under train/ and test/"]),
        ("one class", ["one class only ('ant')"]),
        ("class only in test", ["'bee'", "in test but not in train"]),
        ("too deep", ["train/ant/more/0.jpg"]),
        ("no class folders", ["train/0.jpg"]),
        ("newline in a name", ["train/ant/x\\ny.jpg"]),
        ("no data set", ["photos holds no .jpg, .jpeg or .png images", "{train,test}/<class>/<file>"]),
        ("broken link", ["link.jpg", "No such file"]),
        ("empty image", ["train/bee/00003.jpg", "no JPEG or PNG"]),
        ("torn image", ["test/cat/00002.jpg", "truncated"]),
        ("text for an image", ["train/bee/00003.jpg", "no JPEG or PNG"]),
        ("another format", ["train/bee/00003.jpg", "no JPEG or PNG"]),
    ],
)
def test_bad_folder_is_refused(image_folder: Path, cache: Path, how: str, says: list[str]) -> None:
    break_folder(image_folder, how)
    message = refusal(image_folder)
    for part in says:
        assert part in message
    assert not [path for path in cache.rglob("*") if path.is_file() and path.suffix != ".lock"]


def test_bad_values_are_refused(tmp_path: Path) -> None:
    assert "no such data" in refusal(tmp_path / "nowhere") and "'shapes'" in refusal(tmp_path / "nowhere")
    (tmp_path / "set.zip").write_bytes(b"PK\x03\x04")
    assert "no such data: shpaes; did you mean 'shapes'?" in refusal("shpaes")
    assert "cannot tell" in refusal(tmp_path / "set.zip")
    assert "32x32 only" in refusal("shapes", image_size=64)
    assert "name is empty" in refusal("")


def test_a_locale_that_cannot_spell_a_class_is_named(image_folder: Path) -> None:
    """The folder's name was blamed, and is UTF-8."""
    for split in ("train", "test"):
        (image_folder / split / "bee").rename(image_folder / split / "b\u00e9e")
    command = [sys.executable, "-m", "fastresnet", "data", "info", str(image_folder)]
    ascii_only = {**os.environ, "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "LC_ALL": "C"}
    done = subprocess.run(command, env=ascii_only, capture_output=True, text=True)
    assert done.returncode == 2 and "is not named in the locale's encoding; set PYTHONUTF8=1" in done.stderr


def test_unreadable_files_are_refused() -> None:
    """Root reads everything, so as root the test becomes another user for the moment."""
    with tempfile.TemporaryDirectory() as name:
        root = write_images(Path(name) / "photos")
        archive = write_tar(root, Path(name) / "photos.tar")
        Path(name).chmod(0o755)
        archive.chmod(0)
        (root / "test" / "cat").chmod(0)
        user = os.geteuid()
        if user == 0:
            os.seteuid(65534)
        try:
            assert "test/cat: Permission denied" in refusal(root)
            assert "photos.tar: Permission denied" in refusal(archive)
        finally:
            os.seteuid(user)
        (root / "test" / "cat").chmod(0o755)


# Arrays


def test_npz(npz_file: Path, tmp_path: Path) -> None:
    dataset = open_dataset(str(npz_file))
    arrays = np.load(npz_file)
    assert dataset.name == "arrays" and dataset.class_names == CLASSES
    assert (dataset.train.images == arrays["train_images"]).all()
    assert (dataset.test.labels == arrays["test_labels"]).all()
    grey = arrays["train_images"][..., 0]
    column = arrays["train_labels"][:, None].astype(np.uint8)
    other = write_npz(tmp_path / "grey.npz", train_images=grey, train_labels=column, val_images=grey)
    dataset = open_dataset(str(other))
    assert (dataset.train.images == grey[..., None]).all()
    assert dataset.notices == ("left out the arrays val_images",)


def test_npz_of_oblong_images_is_scaled(tmp_path: Path) -> None:
    images = np.zeros((30, 20, 40, 3), np.uint8)
    path = write_npz(tmp_path / "oblong.npz", train_images=images, test_images=images[:12])
    dataset = open_dataset(str(path))
    assert dataset.image_size == 32 and "40x20" in dataset.notices[0]


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"train_images": np.zeros((30, 8, 8, 3))}, "train_images is float64 [30, 8, 8, 3]"),
        ({"train_images": np.zeros((30, 3, 8, 8), np.uint8)}, "must be uint8 [N, H, W, 3]"),
        ({"train_labels": np.zeros(30)}, "train_labels is float64 [30]"),
        ({"train_labels": np.zeros(29, int)}, "must be integers [30]"),
        ({"train_labels": np.zeros(30, int)}, "one class only"),
        ({"test_labels": np.full(12, -1)}, "labels count classes from 0"),
        ({"test_labels": np.full(12, 2**40)}, "labels count classes from 0"),
        ({"test_labels": np.full(12, 7), "class_names": np.array(list("abcdefgh"))}, "class 'h'"),
        ({"class_names": np.array(["a", "b"])}, "class_names"),
        ({"class_names": np.array(["a", "b", "a"])}, "holds a name twice"),
        ({"class_names": np.array(["a", "b", None])}, "Python objects"),
        (
            {"test_images": np.zeros((0, 32, 32, 3), np.uint8), "test_labels": np.zeros(0, int)},
            "no test images",
        ),
    ],
)
def test_bad_npz_is_refused(tmp_path: Path, changed: dict[str, np.ndarray], says: str) -> None:
    assert says in refusal(write_npz(tmp_path / "bad.npz", **changed))


def test_npz_with_other_keys_is_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "keys.npz", x_train=np.zeros(3))
    message = refusal(tmp_path / "keys.npz")
    assert "train_images, train_labels, test_images, test_labels" in message and "it has x_train" in message


# The built-in set


def test_shapes_are_the_same_everywhere() -> None:
    dataset = open_dataset("shapes")
    assert dataset.name == "shapes" and dataset.is_builtin and dataset.num_classes == 10
    assert len(dataset.train.labels) == 10_000 and len(dataset.test.labels) == 2_000
    assert list(dataset.class_names) == sorted(dataset.class_names)
    assert dataset.digest == SHAPES_DIGEST
    unique = np.unique(dataset.train.images.reshape(10_000, -1)[:, :64], axis=0)
    assert len(unique) == 10_000


def test_a_folder_called_shapes_is_not_the_built_in_set(
    image_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    image_folder = image_folder.rename(image_folder.with_name("shapes"))
    monkeypatch.chdir(image_folder.parent)
    assert open_dataset("shapes").is_builtin
    assert not open_dataset("./shapes").is_builtin


# Real images


def test_real_images(real_dataset: Dataset) -> None:
    assert real_dataset.train.images.dtype == np.uint8 and real_dataset.train.labels.dtype == np.int64
    assert real_dataset.train.images.std() > 10
    assert set(real_dataset.test.labels) == set(range(real_dataset.num_classes))
