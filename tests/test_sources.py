"""Every kind of --data: the same images whatever they came in, and one helpful line for whatever is wrong."""

from __future__ import annotations

import gzip
import http.server
import io
import lzma
import os
import pickle
import shutil
import tarfile
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from made_data import CLASSES, OFFICIAL_CLASSES, write_images, write_npz, write_official, write_tar
from PIL import Image

from fastresnet.errors import UserError
from fastresnet.loaders.dataset import Dataset, open_dataset
from fastresnet.loaders.sources import DataUnavailable, download, official

SHAPES_DIGEST = "14808631965185ece37ababf6fd8a7b9081f46c9c2544b187d6c7fa67e94a928"


def refusal(data: Path | str | None, **options: int) -> str:
    """Return the one line with which ``data`` is refused."""
    with pytest.raises(UserError) as caught:
        open_dataset(None if data is None else str(data), **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


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
    assert "1 files that are not .jpg, .jpeg or .png (first: train/ant/film.gif)" in dataset.notices[0]


# What is wrong with a folder


def break_folder(root: Path, how: str) -> None:
    if how == "empty":
        shutil.rmtree(root)
        root.mkdir()
    elif how == "no test":
        (root / "test").rename(root / "val")
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
        ("classes at the top", ["ant, bee, cat", "put them under train/ and test/"]),
        ("one class", ["one class only ('ant')"]),
        ("class only in test", ["'bee'", "in test but not in train"]),
        ("too deep", ["train/ant/more/0.jpg"]),
        ("no class folders", ["train/0.jpg"]),
        ("newline in a name", ["train/ant/x\\ny.jpg"]),
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
    assert "cannot tell" in refusal(tmp_path / "set.zip")
    assert "32x32 only" in refusal("shapes", image_size=64)
    assert "name is empty" in refusal("")


def test_a_member_too_large_for_memory_is_refused(tmp_path: Path) -> None:
    """A tar of a few kilobytes can hold a file of gigabytes of zeros."""
    size = 1 << 29
    member = tarfile.TarInfo("train/a/0.jpg")
    member.size = size
    with lzma.open(tmp_path / "bomb.tar.xz", "wb", preset=0) as file:
        file.write(member.tobuf())
        for _ in range(size >> 20):
            file.write(bytes(1 << 20))
        for name in ("train/b/0.jpg", "test/a/0.jpg"):
            file.write(tarfile.TarInfo(name).tobuf())
        file.write(bytes(1024))
    assert "train/a/0.jpg has 536,870,912 bytes" in refusal(tmp_path / "bomb.tar.xz")


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


# What is wrong with a tar


def add_file(archive: tarfile.TarFile, name: str) -> None:
    member = tarfile.TarInfo(name)
    member.size = 3
    archive.addfile(member, io.BytesIO(b"abc"))


def add_link(archive: tarfile.TarFile, kind: bytes) -> None:
    member = tarfile.TarInfo("train/ant/link.jpg")
    member.type, member.linkname = kind, "/etc/passwd"
    archive.addfile(member)


@pytest.mark.parametrize(
    ("add", "says"),
    [
        (lambda archive: add_file(archive, "/etc/x.jpg"), "would leave its folder: '/etc/x.jpg'"),
        (
            lambda archive: add_file(archive, "train/../../x.jpg"),
            "would leave its folder: 'train/../../x.jpg'",
        ),
        (lambda archive: add_file(archive, ".."), "would leave its folder: '..'"),
        (lambda archive: add_link(archive, tarfile.SYMTYPE), "no plain file: 'train/ant/link.jpg'"),
        (lambda archive: add_link(archive, tarfile.LNKTYPE), "no plain file: 'train/ant/link.jpg'"),
        (lambda archive: add_link(archive, tarfile.FIFOTYPE), "no plain file: 'train/ant/link.jpg'"),
        (lambda archive: add_file(archive, "train/ant/00000.jpg"), "holds 'train/ant/00000.jpg' twice"),
        (lambda archive: add_file(archive, "./train//ant/00000.jpg"), "holds 'train/ant/00000.jpg' twice"),
    ],
)
def test_hostile_members_are_refused(
    image_folder: Path, tmp_path: Path, add: Callable[[tarfile.TarFile], None], says: str
) -> None:
    with tarfile.open(tmp_path / "set.tar", "w") as archive:
        for path in sorted(image_folder.rglob("*.jpg")):
            archive.add(path, str(path.relative_to(image_folder)))
        add(archive)
    assert says in refusal(tmp_path / "set.tar")


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("a.tar.xz", b"<html>not found</html>", "named as xz but holds"),
        ("a.tar.gz", b"<html>not found</html>", "named as gzip but holds"),
        ("a.tar", b"<html>not found</html>", "truncated or damaged"),
        ("a.tar.xz", gzip.compress(b"x" * 2000), "named as xz but holds gzip data"),
        ("a.tar", lzma.compress(b"x" * 2000), "named as tar but holds xz data"),
        ("a.tar.xz", lzma.compress(b"x" * 2000), "truncated or damaged"),
        ("a.tar", b"", "is empty"),
        ("a.tar", bytes(10240), "holds no .jpg"),
        ("a.npz", b"not a zip", "no .npz"),
        ("a.npz", b"", "no .npz"),
    ],
)
def test_files_that_are_not_what_they_claim(tmp_path: Path, name: str, content: bytes, says: str) -> None:
    (tmp_path / name).write_bytes(content)
    assert says in refusal(tmp_path / name)


@pytest.fixture(scope="module", params=["set.tar", "set.tar.gz", "set.tar.xz"])
def whole_tar(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[str, bytes, str]:
    """Name and bytes of a small tar, and the digest of its images."""
    root = tmp_path_factory.mktemp("whole")
    write_images(root / "set", ("a", "b"), {"train": 2, "test": 1}, size=8)
    path = write_tar(root / "set", root / request.param)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FASTRESNET_CACHE", str(root / "cache"))
        return request.param, path.read_bytes(), open_dataset(str(path)).digest


def open_or_refuse(name: str, content: bytes) -> Dataset | None:
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setenv("FASTRESNET_CACHE", str(Path(folder, "cache")))
        path = Path(folder, name)
        path.write_bytes(content)
        try:
            return open_dataset(str(path))
        except UserError as error:
            assert "\n" not in str(error)
            return None


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(where=st.floats(0, 1, exclude_max=True))
def test_a_truncated_tar_is_refused(whole_tar: tuple[str, bytes, str], where: float) -> None:
    name, content, digest = whole_tar
    kept = content[: int(where * len(content))]
    dataset = open_or_refuse(name, kept)
    if dataset is not None:  # a plain tar may lose some of its padding unharmed
        assert name == "set.tar" and not any(content[len(kept) :]) and dataset.digest == digest


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(where=st.floats(0, 1, exclude_max=True), flip=st.integers(1, 255))
def test_an_altered_compressed_tar_is_never_read_as_other_images(
    whole_tar: tuple[str, bytes, str], where: float, flip: int
) -> None:
    name, content, digest = whole_tar
    altered = bytearray(content)
    altered[int(where * len(content))] ^= flip
    dataset = open_or_refuse(name, bytes(altered))
    if dataset is not None and name != "set.tar":  # a plain tar has no checksum over its files
        assert dataset.digest == digest


# CIFAR-10's pickles


def planes(folder: Path, name: str) -> tuple[np.ndarray, list[int]]:
    content = pickle.loads((folder / name).read_bytes())
    return content[b"data"].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1), content[b"labels"]


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_official_pickles_keep_their_order(tmp_path: Path, protocol: int) -> None:
    folder = write_official(tmp_path / "pickles", protocol=protocol)
    dataset = open_dataset(str(folder))
    assert dataset.class_names == OFFICIAL_CLASSES and dataset.image_size == 32
    batches = [planes(folder, f"data_batch_{number}") for number in range(1, 6)]
    assert (dataset.train.images == np.concatenate([images for images, _ in batches])).all()
    assert dataset.train.labels.tolist() == [label for _, labels in batches for label in labels]
    assert (dataset.test.images == planes(folder, "test_batch")[0]).all()


def test_official_pickles_in_a_folder_a_parent_or_a_tar_agree(official_folder: Path, tmp_path: Path) -> None:
    parent = tmp_path / "parent"
    parent.mkdir()
    official_folder = official_folder.rename(parent / official_folder.name)
    archive = tmp_path / "cifar-10-python.tar.gz"
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(official_folder, "cifar-10-batches-py")
    digests = {open_dataset(str(path)).digest for path in (official_folder, parent, archive)}
    assert len(digests) == 1
    assert open_dataset(str(archive), image_size=16).train.images.shape == (100, 16, 16, 3)


def test_only_the_published_files_are_called_cifar_10(
    official_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = open_dataset(str(official_folder))
    assert other.name == "cifar-10-batches-py" and "not CIFAR-10's official file" in other.notices[0]
    import hashlib

    published = {
        name: hashlib.md5((official_folder / name).read_bytes()).hexdigest() for name in official.FILES
    }
    monkeypatch.setattr(official, "PUBLISHED_MD5", published)
    os.utime(official_folder / "test_batch", (1, 1))  # looked at again, as any touched folder is
    assert open_dataset(str(official_folder)).name == "CIFAR-10"


class RunsCode:
    def __reduce__(self) -> tuple[Callable[[str], int], tuple[str]]:
        return os.system, ("touch /tmp/fastresnet-pickle-ran",)


def rewrite(path: Path, **changes: object) -> None:
    content = pickle.loads(path.read_bytes())
    for key, value in changes.items():
        content[key.encode()] = value
    path.write_bytes(pickle.dumps(content, 2))


@pytest.mark.parametrize(
    ("name", "changes", "says"),
    [
        ("data_batch_2", {"labels": RunsCode()}, "asks for code (posix.system)"),
        ("batches.meta", {"label_names": RunsCode()}, "asks for code (posix.system)"),
        ("data_batch_2", {"data": np.array([RunsCode()])}, "no pickle of arrays"),
        ("data_batch_2", {"labels": [0]}, "no label in [0, 10) for each image"),
        ("data_batch_2", {"labels": [10] * 20}, "no label in [0, 10) for each image"),
        ("data_batch_2", {"labels": [2**70] * 20}, "no label in [0, 10) for each image"),
        ("data_batch_2", {"labels": [None] * 20}, "no label in [0, 10) for each image"),
        ("data_batch_2", {"data": np.zeros((20, 3072))}, "no pickle of arrays"),
        ("data_batch_2", {"data": np.zeros((20, 3071), np.uint8)}, "no uint8 array data of [n, 3072]"),
        ("data_batch_2", {"data": None}, "no uint8 array data of [n, 3072]"),
        ("batches.meta", {"label_names": [1, 2]}, "no list label_names"),
    ],
)
def test_bad_pickles_are_refused(
    official_folder: Path, name: str, changes: dict[str, object], says: str
) -> None:
    rewrite(official_folder / name, **changes)
    message = refusal(official_folder)
    assert name in message and says in message
    assert not Path("/tmp/fastresnet-pickle-ran").exists()


def test_missing_and_torn_pickles_are_refused(official_folder: Path) -> None:
    path = official_folder / "data_batch_4"
    path.write_bytes(path.read_bytes()[:-1000])
    assert "data_batch_4 is truncated" in refusal(official_folder)
    path.unlink()
    assert "lacks data_batch_4" in refusal(official_folder)


@settings(max_examples=200, deadline=None)
@given(data=st.data())
def test_no_broken_pickle_gets_past_the_reader(data: st.DataObject) -> None:
    """Whatever byte is altered, it is refused in one line or still gives plain containers and arrays."""
    content = {
        b"labels": [1, 2],
        b"data": np.arange(6, dtype=np.uint8).reshape(2, 3),
        b"x": (b"y", {b"z": None}),
    }
    raw = bytearray(pickle.dumps(content, data.draw(st.sampled_from([2, 4, 5]))))
    for _ in range(data.draw(st.integers(1, 4))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    try:
        loaded = official._load(bytes(raw), "file")
    except UserError as error:
        assert "\n" not in str(error)
        return
    assert not isinstance(loaded, np.ndarray | np.dtype) and not callable(loaded)


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


# Download


@pytest.fixture
def served(
    official_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[dict[str, object]]:
    """Serve an archive of made pickles on this machine in place of the published one."""
    import hashlib

    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        archive.add(official_folder, "cifar-10-batches-py")
    state: dict[str, object] = {"body": buffer.getvalue(), "status": 200, "requests": 0}

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            state["requests"] = int(str(state["requests"])) + 1
            body = bytes(state["body"])  # type: ignore[call-overload]
            self.send_response(int(str(state["status"])))
            self.send_header("Content-Length", str(len(buffer.getvalue())))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.setattr(download, "URL", f"http://127.0.0.1:{server.server_port}/cifar-10-python.tar.gz")
    monkeypatch.setattr(download, "MD5", hashlib.md5(buffer.getvalue()).hexdigest())
    yield state
    server.shutdown()
    server.server_close()


def test_cifar_10_is_downloaded_once(served: dict[str, object], official_folder: Path, cache: Path) -> None:
    seen: list[tuple[str, int, int]] = []
    dataset = open_dataset(None, progress=lambda *step: seen.append(step))
    assert dataset.digest == open_dataset(str(official_folder)).digest
    assert any(stage == "downloading CIFAR-10" and done == total > 0 for stage, done, total in seen)
    assert open_dataset(None).digest == dataset.digest and served["requests"] == 1
    (cache / "downloads" / "cifar-10-python.tar.gz").write_bytes(b"altered")
    assert open_dataset(None).digest == dataset.digest and served["requests"] == 2


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"status": 404}, "404"),
        ({"body": b"short"}, "could not be downloaded"),
        ({"body": b"x" * 100_000}, "could not be downloaded"),
    ],
)
def test_a_download_that_fails_is_explained(
    served: dict[str, object], cache: Path, change: dict[str, object], says: str
) -> None:
    served.update(change)
    with pytest.raises(DataUnavailable, match=says) as caught:
        open_dataset(None)
    assert "--data" in str(caught.value) and "\n" not in str(caught.value)
    assert [path.name for path in (cache / "downloads").iterdir()] == ["cifar-10-python.tar.gz.lock"]


def test_without_a_network_cifar_10_is_unavailable(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.setattr(download, "URL", "http://127.0.0.1:9/cifar-10-python.tar.gz")
    with pytest.raises(DataUnavailable, match="Connection refused"):
        open_dataset(None)


# Real images


def test_real_images(real_dataset: Dataset) -> None:
    assert real_dataset.train.images.dtype == np.uint8 and real_dataset.train.labels.dtype == np.int64
    assert real_dataset.train.images.std() > 10
    assert set(real_dataset.test.labels) == set(range(real_dataset.num_classes))
