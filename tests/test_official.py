"""CIFAR-10's official pickles: read in order without running them, and downloaded once."""

from __future__ import annotations

import hashlib
import http.server
import io
import os
import pickle
import shutil
import tarfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from made_data import OFFICIAL_CLASSES, refusal, write_official

from fastresnet.errors import UserError
from fastresnet.loaders.dataset import open_dataset
from fastresnet.loaders.sources import DataUnavailable, download, official


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
    published = {
        name: hashlib.md5((official_folder / name).read_bytes()).hexdigest() for name in official.FILES
    }
    monkeypatch.setattr(official, "PUBLISHED_MD5", published)
    os.utime(official_folder / "test_batch", (1, 1))  # looked at again, as any touched folder is
    assert open_dataset(str(official_folder)).name == "CIFAR-10"


class RunsCode:
    """Pickled, it makes a file in the folder it is loaded in."""

    def __reduce__(self) -> tuple[Callable[[str], int], tuple[str]]:
        return os.system, ("touch pickle-ran",)


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
    official_folder: Path,
    name: str,
    changes: dict[str, object],
    says: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    rewrite(official_folder / name, **changes)
    message = refusal(official_folder)
    assert name in message and says in message
    assert not Path("pickle-ran").exists()


def test_missing_and_torn_pickles_are_refused(official_folder: Path) -> None:
    path = official_folder / "data_batch_4"
    path.write_bytes(path.read_bytes()[:-1000])
    assert "data_batch_4 is truncated" in refusal(official_folder)
    path.unlink()
    assert "lacks data_batch_4" in refusal(official_folder)


def test_what_makes_an_array_is_no_content() -> None:
    raw = pickle.dumps(np.dtype, 2)
    with pytest.raises(UserError, match="asks for code"):
        official._load(raw, "file")


@settings(max_examples=200)
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


# Download


@pytest.fixture
def served(
    official_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[dict[str, object]]:
    """Serve an archive of made pickles on this machine in place of the published one."""
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
    # The pack is enough from then on; to be packed again, the archive has to be the published one.
    (cache / "downloads" / "cifar-10-python.tar.gz").write_bytes(b"altered")
    assert open_dataset(None).digest == dataset.digest and served["requests"] == 1
    shutil.rmtree(dataset.folder)
    assert open_dataset(None).digest == dataset.digest and served["requests"] == 2
    assert open_dataset(None, image_size=16).image_size == 16 and served["requests"] == 2


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
