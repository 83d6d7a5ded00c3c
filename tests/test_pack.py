"""The pack: what is in it, and that it is whole or absent whatever happens while it is made."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from made_data import write_images, write_npz
from PIL import Image

from fastresnet.errors import UserError
from fastresnet.loaders.cache import cache_folder
from fastresnet.loaders.dataset import hold_out, limit, open_dataset, packs
from fastresnet.loaders.pack import META
from fastresnet.loaders.protocol import Split

OPEN = "import sys; from fastresnet.loaders.dataset import open_dataset; d = open_dataset(sys.argv[1])"


def leftovers(cache: Path) -> list[str]:
    """Return the files of the cache that are neither locks nor in a published pack."""
    return [
        str(path.relative_to(cache))
        for path in cache.rglob("*")
        if path.is_file() and path.suffix != ".lock" and path.parent not in packs()
    ]


def test_pack_holds_the_images_and_their_statistics(image_folder: Path) -> None:
    dataset = open_dataset(str(image_folder))
    files = sorted((image_folder / "train").rglob("*.jpg"))
    expected = np.stack([np.asarray(Image.open(path)) for path in files])
    assert (dataset.train.images == expected).all()
    assert dataset.train.labels.tolist() == [label for label in range(3) for _ in range(8)]
    assert dataset.train.members.tolist() == list(range(24))
    assert dataset.train.labels.dtype == dataset.train.members.dtype == np.int64
    np.testing.assert_allclose(dataset.mean, (expected / 255).mean((0, 1, 2)), rtol=1e-12)
    np.testing.assert_allclose(dataset.std, (expected / 255).std((0, 1, 2)), rtol=1e-12)


def test_pack_is_made_once_and_mapped_read_only(image_tar: Path) -> None:
    first = open_dataset(str(image_tar))
    stages: list[str] = []
    second = open_dataset(str(image_tar), progress=lambda stage, done, total: stages.append(stage))
    assert set(stages) == {"hashing the file"}
    assert (second.digest, second.folder, second.mean) == (first.digest, first.folder, first.mean)
    assert isinstance(second.train.images.base, np.memmap)
    assert not second.train.images.flags.writeable
    assert len(packs()) == 1 and first.folder.parent.parent == cache_folder()


def test_pack_follows_its_source(image_folder: Path) -> None:
    before = open_dataset(str(image_folder))
    (image_folder / "train" / "ant" / "00000.jpg").unlink()
    after = open_dataset(str(image_folder))
    assert len(after.train.labels) == 23 and after.digest != before.digest


def test_digest_is_of_pixels_labels_and_names(tmp_path: Path) -> None:
    one = open_dataset(str(write_npz(tmp_path / "one.npz")))
    same = open_dataset(str(write_npz(tmp_path / "same.npz")))
    assert same.digest == one.digest and same.name != one.name
    others = [
        {"class_names": np.array(["ant", "bee", "dog"])},
        {"test_labels": (np.arange(12) + 1) % 3},
        {"train_images": np.load(tmp_path / "one.npz")["train_images"] ^ 1},
    ]
    digests = {
        open_dataset(str(write_npz(tmp_path / f"{number}.npz", **changed))).digest
        for number, changed in enumerate(others)
    }
    assert len(digests) == 3 and one.digest not in digests


@pytest.mark.parametrize(
    "name", [META, "train_images.u8", "train_labels.i64", "test_images.u8", "test_labels.i64"]
)
@pytest.mark.parametrize("how", ["altered", "torn", "longer", "missing", "empty"])
def test_damaged_pack_is_named_and_made_again(image_folder: Path, name: str, how: str) -> None:
    whole = open_dataset(str(image_folder))
    path = whole.folder / name
    content = bytearray(path.read_bytes())
    if how == "altered":
        content[len(content) // 2] ^= 1
    elif how == "torn":
        del content[-10:]
    elif how == "longer":
        content += b"x"
    elif how == "empty":
        content.clear()
    path.write_bytes(content)
    if how == "missing":
        path.unlink()
    mended = open_dataset(str(image_folder))
    assert len(mended.notices) == 1 and name in mended.notices[0] and "made again" in mended.notices[0]
    assert mended.digest == whole.digest
    assert open_dataset(str(image_folder)).notices == ()


def test_two_processes_pack_once(tmp_path: Path, cache: Path) -> None:
    root = write_images(tmp_path / "photos", counts={"train": 300, "test": 50})
    script = (
        f"{OPEN.replace('open_dataset(sys.argv[1])', 'open_dataset(sys.argv[1], progress=say)')}; print(d.digest)"
    ).replace("; d =", "; say = lambda stage, done, total: print(stage); d =")
    processes = [
        subprocess.Popen([sys.executable, "-c", script, str(root)], stdout=subprocess.PIPE, text=True)
        for _ in range(3)
    ]
    outputs = [process.communicate(timeout=120)[0].splitlines() for process in processes]
    assert [process.returncode for process in processes] == [0, 0, 0]
    assert len({lines[-1] for lines in outputs}) == 1
    assert sum("decoding images" in lines for lines in outputs) == 1
    assert len(packs()) == 1 and not leftovers(cache)


def test_killed_packing_leaves_no_pack_and_the_next_cleans_up(tmp_path: Path, cache: Path) -> None:
    root = write_images(tmp_path / "photos", counts={"train": 300, "test": 50})
    script = (
        "import sys, time; from fastresnet.loaders.dataset import open_dataset\n"
        "def stop(stage, done, total):\n"
        "    if stage == 'decoding images': print('now', flush=True); time.sleep(60)\n"
        "open_dataset(sys.argv[1], progress=stop)"
    )
    process = subprocess.Popen([sys.executable, "-c", script, str(root)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdout.readline() == "now\n"
    assert leftovers(cache) and not packs()
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert open_dataset(str(root)).num_classes == 3
    assert len(packs()) == 1 and not leftovers(cache)


def test_interrupted_packing_removes_its_files(image_folder: Path, cache: Path) -> None:
    def interrupt(stage: str, done: int, total: int) -> None:
        if stage == "decoding images":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        open_dataset(str(image_folder), progress=interrupt)
    assert not packs() and not leftovers(cache)


def test_full_disk_is_one_line_and_leaves_nothing(image_folder: Path, cache: Path) -> None:
    """A limit on file sizes stands in for the full disk: the pack's largest file does not fit."""
    script = f"import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (40000, 40000)); {OPEN}"
    process = subprocess.run(
        [sys.executable, "-c", script, str(image_folder)], capture_output=True, text=True, timeout=120
    )
    assert process.returncode == 1
    last = process.stderr.splitlines()[-1]
    assert last.startswith("fastresnet.errors.UserError: the disk is full while packing in")
    assert "FASTRESNET_CACHE" in last
    assert not packs() and not leftovers(cache)
    assert open_dataset(str(image_folder)).num_classes == 3


def test_cache_that_cannot_be_written_is_named(
    image_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("not a folder")
    monkeypatch.setenv("FASTRESNET_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.raises(UserError, match=r"Not a directory; set FASTRESNET_CACHE"):
        open_dataset(str(image_folder))


def test_lock_of_a_dead_process_does_not_block(image_folder: Path) -> None:
    folder = open_dataset(str(image_folder)).folder
    (folder / META).unlink()
    script = (
        "import sys, time; from pathlib import Path; from fastresnet.atomic import locked\n"
        "with locked(Path(sys.argv[1]), lambda: None): print('held', flush=True); time.sleep(60)"
    )
    lock = folder.with_name(f"{folder.name}.lock")
    process = subprocess.Popen([sys.executable, "-c", script, str(lock)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdout.readline() == "held\n"
    waited: list[str] = []

    def waiting(stage: str, done: int, total: int) -> None:
        waited.append(stage)
        if stage == "waiting for another process":
            os.kill(process.pid, signal.SIGKILL)

    start = time.monotonic()
    assert open_dataset(str(image_folder), progress=waiting).num_classes == 3
    process.wait()
    assert "waiting for another process" in waited and time.monotonic() - start < 60


def split_of(members: list[int]) -> Split:
    return Split(
        images=np.zeros((max(members) + 1, 1, 1, 3), np.uint8),
        labels=np.zeros(max(members) + 1, np.int64),
        members=np.array(sorted(members), np.int64),
    )


@given(
    members=st.sets(st.integers(0, 500), min_size=2, max_size=80),
    share=st.floats(0, 1),
    seed=st.integers(0, 2**63),
)
def test_hold_out_and_limit_share_out_the_members(members: set[int], share: float, seed: int) -> None:
    split = split_of(list(members))
    num_val = min(max(1, int(share * len(members))), len(members) - 1)
    train, val = hold_out(split, num_val, seed)
    assert len(val.members) == num_val
    assert sorted([*train.members, *val.members]) == sorted(members)
    assert (np.diff(train.members) > 0).all() and (np.diff(val.members) > 0).all()
    assert val.images is split.images and train.labels is split.labels
    again, _ = hold_out(split, num_val, seed)
    assert (again.members == train.members).all()
    fewer = limit(split, num_val, seed)
    more = limit(split, num_val + 1, seed)
    assert len(fewer.members) == num_val and set(fewer.members) < set(more.members)
    assert (np.diff(fewer.members) > 0).all()


def test_hold_out_and_limit_depend_on_the_seed() -> None:
    split = split_of(list(range(100)))
    assert len({tuple(hold_out(split, 10, seed)[1].members) for seed in range(20)}) == 20
    assert len({tuple(limit(split, 10, seed).members) for seed in range(20)}) == 20


@pytest.mark.parametrize("count", [0, -1, 10, 11])
def test_hold_out_of_too_many_is_refused(count: int) -> None:
    with pytest.raises(
        UserError, match=f"cannot hold out {count} of 10 train images; choose between 1 and 9"
    ):
        hold_out(split_of(list(range(10))), count, 0)


@pytest.mark.parametrize("count", [0, -1, 11])
def test_limit_to_too_many_is_refused(count: int) -> None:
    with pytest.raises(UserError, match=f"cannot use {count} of 10 images; choose 1 to 10"):
        limit(split_of(list(range(10))), count, 0)
