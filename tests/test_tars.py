"""Tars that are hostile, torn, altered, or not what they are named."""

from __future__ import annotations

import gzip
import io
import lzma
import tarfile
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from made_data import refusal, write_images, write_tar

from fastresnet.errors import UserError
from fastresnet.loaders.dataset import Dataset, open_dataset


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
        ("a.tar.xz", gzip.compress(b"x" * 2000, mtime=0), "named as xz but holds gzip data"),
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


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(where=st.floats(0, 1, exclude_max=True))
def test_a_truncated_tar_is_refused(whole_tar: tuple[str, bytes, str], where: float) -> None:
    name, content, digest = whole_tar
    kept = content[: int(where * len(content))]
    dataset = open_or_refuse(name, kept)
    if dataset is not None:  # a plain tar may lose some of its padding unharmed
        assert name == "set.tar" and not any(content[len(kept) :]) and dataset.digest == digest


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
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
