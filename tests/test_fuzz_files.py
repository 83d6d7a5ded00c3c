"""Fuzzers of what is read from disk: each damaged or hostile file ends in one line, runs nothing, and stays small."""

from __future__ import annotations

import hashlib
import io
import json
import lzma
import os
import pickle
import shutil
import struct
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fuzzing import bounded_memory, examples, outcome
from hypothesis import example, given
from hypothesis import strategies as st
from made_data import write_images, write_npz, write_official
from safetensors.torch import save

from fastresnet.atomic import read_sealed_json
from fastresnet.engine import checkpoint
from fastresnet.errors import UserError
from fastresnet.folder import RunFolder
from fastresnet.loaders.beton import Beton, read_beton
from fastresnet.loaders.dataset import Dataset, open_dataset
from fastresnet.loaders.sources import official
from fastresnet.loaders.sources.betons import write_betons

MB = 1 << 20


def altered(raw: bytes, data: st.DataObject, most: int = 3) -> bytes:
    """Return ``raw`` with bytes changed, put in, left out or cut off."""
    out = bytearray(raw)
    for _ in range(data.draw(st.integers(1, most))):
        place = data.draw(st.integers(0, max(0, len(out) - 1)))
        kind = data.draw(st.sampled_from(["change", "change", "replace", "cut"]))
        if kind == "change" and out:
            out[place] = data.draw(st.integers(0, 255))
        elif kind == "replace":
            out[place : place + data.draw(st.integers(0, 16))] = data.draw(st.binary(max_size=16))
        else:
            del out[place:]
    return bytes(out)


# ---------------------------------------------------------------------------------------------------------- pickles


class Command:
    """Would run a command, were it loaded."""

    def __reduce__(self) -> Any:
        return os.system, ("touch pickle-ran",)


def doubled(leaf: bytes, make: bytes, times: int) -> bytes:
    """Return opcodes for ``leaf`` in a pair of itself, and so on: 2 to the ``times`` of it, once spread out."""
    return leaf + (b"2" + make) * times  # DUP, and what makes one of two


PAIR = b"\x86"  # TUPLE2


def memo_lists(times: int) -> bytes:
    """Return a pickle of {b"label_names", b"labels": lists of lists that share their parts, b"data": ...}."""
    shared: Any = [1, 1]
    for _ in range(times):
        shared = [shared, shared]
    planes = np.zeros((2, 3072), np.uint8)
    return pickle.dumps({b"labels": shared, b"data": planes, b"label_names": [b"a", b"b"]}, 2)


@examples(150)
@given(data=st.data())
def test_an_altered_pickle_of_arrays(data: st.DataObject, tmp_path_factory: pytest.TempPathFactory) -> None:
    content = {b"labels": [0, 1], b"data": np.zeros((2, 3072), np.uint8), b"names": ["x", ("y", {b"z": 1.5})]}
    raw = altered(pickle.dumps(content, data.draw(st.sampled_from([0, 1, 2, 4, 5]))), data)
    with bounded_memory(8 * MB):
        loaded = outcome(official._load, raw, "file")
        outcome(official._batch, raw, "file", 10)
        outcome(official._class_names, loaded, "file")
    assert not callable(loaded)


@examples(200)
@given(
    parts=st.lists(
        st.sampled_from([op.to_bytes(1, "little") for op in range(256)])
        | st.sampled_from(
            [b"cos\nsystem\n", b"cnumpy\nndarray\n", b"c_codecs\nencode\n", b"I1\n", b"X\x01\0\0\0a", b")"]
        )
        | st.binary(max_size=6),
        max_size=30,
    )
)
@example(parts=[b"c_codecs\nencode\n", b"}(X\x0b\0\0\0__defaults__", b"N", b"ub"])
@example(parts=[b"\x96", b"\xff" * 7])  # BYTEARRAY8 of 2**63 bytes
@example(parts=[b"r\x00\x00\x00\x7fN"])
@example(parts=[b"}(" + doubled(b")", PAIR, 60) + b"Nu"])
@example(parts=[b"\x8f(" + doubled(b")", PAIR, 60) + b"\x90"])  # a set of them
@example(parts=[b"(" + doubled(b")", PAIR, 60) + b"\x91"])  # and a frozen one
def test_opcodes_in_any_order(parts: list[bytes]) -> None:
    with bounded_memory(8 * MB):
        loaded = outcome(official._load, b"\x80\x04" + b"".join(parts) + b".", "file")
    assert official._reconstruct.__defaults__ is None and not isinstance(loaded, set | frozenset)


@pytest.mark.parametrize("protocol", range(6))
def test_no_pickle_runs_code(protocol: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    found = outcome(official._load, pickle.dumps({b"labels": Command()}, protocol), "file")
    assert "asks for code" in str(found) and not Path("pickle-ran").exists()


def test_lists_that_share_their_parts_stay_small() -> None:
    """``np.array`` of 40 lists in each other took 2**40 numbers."""
    with bounded_memory(8 * MB):
        found = outcome(official._batch, memo_lists(40), "file", 10)
    assert "no label in [0, 10) for each image" in str(found)


def test_one_long_name_for_many_classes_stays_small() -> None:
    name = "x" * 100_000
    raw = pickle.dumps({b"label_names": [name.encode()] * 100_000}, 2)
    with bounded_memory(40 * MB):
        loaded = official._load(raw, "file")
        assert "over 1000 label_names, or longer ones" in str(outcome(official._class_names, loaded, "file"))


def test_bytes_made_of_one_text_again_and_again_stay_small() -> None:
    """Protocol 2 writes bytes as a call with a text: each call with the same text makes new ones."""
    text = b"X" + struct.pack("<I", MB) + b"a" * MB + b"q\x000"
    call = b"c_codecs\nencode\nh\x00X\x06\0\0\0latin1\x86R"
    with bounded_memory(40 * MB):
        found = outcome(official._load, b"\x80\x02" + text + b"](" + call * 200 + b"e.", "file")
    assert "characters to be encoded" in str(found)


# ------------------------------------------------------------------------------------------------------------- tars

names = st.sampled_from(
    [
        "train/ant/1.jpg",
        "test/bee/2.jpg",
        "../x.jpg",
        "/etc/x.jpg",
        "train/../../x",
        "a/./b//c.jpg",
        "",
        ".",
        "\n\x1b[2J.jpg",
    ]
) | st.text(max_size=20)
kinds = st.sampled_from([bytes([code]) for code in b"0123456789gxKLSVDMNA\0"])


@examples(100)
@given(
    members=st.lists(st.tuples(names, kinds, st.integers(0, 2000), st.binary(max_size=40)), max_size=6),
    cut=st.integers(0, 3000),
)
def test_a_tar_of_anything(
    members: list[tuple[str, bytes, int, bytes]], cut: int, tmp_path: Path, cache: Path
) -> None:
    """Links, devices, sparse files, headers of headers, sizes that are not there: nothing is written but the cache."""
    buffer = io.BytesIO()
    for name, kind, size, content in members:
        info = tarfile.TarInfo(name)
        info.type, info.size, info.linkname = kind, size, "/etc/passwd"
        buffer.write(
            info.tobuf(tarfile.GNU_FORMAT, errors="replace")
            + content.ljust(-(-size // 512) * 512, b"\0")[:4096]
        )
    (tmp_path / "odd.tar").write_bytes(buffer.getvalue()[: len(buffer.getvalue()) - cut] or b"\0")
    before = sorted(tmp_path.iterdir())
    with bounded_memory(40 * MB):
        found = outcome(open_dataset, str(tmp_path / "odd.tar"))
    assert isinstance(found, UserError)
    assert sorted(path for path in tmp_path.iterdir() if path != cache) == [
        path for path in before if path != cache
    ]


@pytest.mark.parametrize(
    "kind", [tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK, tarfile.XHDTYPE, tarfile.XGLTYPE]
)
def test_a_long_name_of_gigabytes_stays_small(kind: bytes, tmp_path: Path) -> None:
    """tarfile reads it into memory whole; compressed, it takes a few kilobytes of the archive."""
    info = tarfile.TarInfo("x")
    info.type, info.size = kind, 64 * MB
    packed = lzma.compress(info.tobuf(tarfile.GNU_FORMAT) + bytes(64 * MB), preset=0)
    (tmp_path / "odd.tar.xz").write_bytes(packed)
    with bounded_memory(40 * MB):
        found = outcome(open_dataset, str(tmp_path / "odd.tar.xz"))
    assert "a header of 67,108,864 bytes" in str(found)


# -------------------------------------------------------------------------------------------------------------- npz


def npy(shape: str, content: bytes, kind: str = "|u1") -> bytes:
    """Return an .npy whose header says what it likes."""
    header = f"{{'descr': '{kind}', 'fortran_order': False, 'shape': {shape}, }}".encode()
    header = header.ljust(-(-(len(header) + 11) // 64) * 64 - 11) + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + content


def npz_with(path: Path, good: Path, **changed: bytes) -> Path:
    """Write ``good`` to ``path``, some members changed."""
    with zipfile.ZipFile(good) as old, zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as new:
        for name in old.namelist():
            new.writestr(name, changed.get(name.removesuffix(".npy"), old.read(name)))
    return path


@pytest.fixture(scope="module")
def good_npz(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_npz(tmp_path_factory.mktemp("good") / "good.npz")


@pytest.mark.parametrize(
    ("member", "says"),
    [
        (npy("(100000000000, 8, 8, 3)", b""), "train_images has 0 bytes; its shape needs 19,200,000,000,000"),
        (npy("(-1, 8, 8, 3)", b""), "no readable .npz"),
        (npy("(2, 8, 8, 3)", b"x" * 400), "train_images has 400 bytes"),
        (npy("(3,)", pickle.dumps([Command()] * 3), "|O"), "it holds Python objects"),
        (npy("(3, 8, 8, 3)", b"", "[('a', '|O')]"), "no readable .npz"),
        (b"\x93NUMPY\x07\x00", "no readable .npz"),
        (npy("__import__('os').system('touch ran')", b""), "no readable .npz"),
        (b"", "no readable .npz"),
    ],
)
def test_an_npz_that_claims_what_it_likes(
    member: bytes, says: str, good_npz: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    path = npz_with(tmp_path / "odd.npz", good_npz, train_images=member)
    with bounded_memory(40 * MB):
        found = outcome(open_dataset, str(path))
    assert isinstance(found, UserError) and says in str(found)
    assert not Path("ran").exists() and not Path("pickle-ran").exists()


def test_an_npz_that_is_a_bomb_is_weighed_first(
    good_npz: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Zeros pack a thousand to one: the arrays are compared with the memory that is there before any is unpacked."""
    import psutil

    path = npz_with(tmp_path / "odd.npz", good_npz, train_images=npy("(200000, 8, 8, 3)", bytes(38_400_000)))
    assert path.stat().st_size < MB
    memory = psutil.virtual_memory()._replace(available=10 * MB)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: memory)
    with bounded_memory(18 * MB):  # 16 of which hash the file
        assert "this machine has 0.0 GB of memory free" in str(outcome(open_dataset, str(path)))


@examples(80)
@given(data=st.data())
def test_an_altered_npz(data: st.DataObject, good_npz: Path, tmp_path: Path) -> None:
    path = tmp_path / "odd.npz"
    path.write_bytes(altered(good_npz.read_bytes(), data))
    with bounded_memory(40 * MB):
        found = outcome(open_dataset, str(path))
    assert isinstance(found, Dataset) or "odd.npz" in str(found)


# ----------------------------------------------------------------------------------------------------------- betons


@pytest.fixture(scope="module")
def good_betons(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("betons")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FASTRESNET_CACHE", str(folder / "cache"))
        write_betons(open_dataset(str(write_images(folder / "photos", size=8))), folder / "good")
    return folder / "good"


def packed_beton(good: Path) -> tuple[bytes, bytes, int]:
    """Return a beton's head and its table, and how many bytes of pages lie between, most of them nothing."""
    raw = (good / "train.beton").read_bytes()
    return raw[:4096], raw[-24 * 24 :], len(raw) - 4096 - 24 * 24


@examples(60)
@given(data=st.data())
def test_an_altered_beton(data: st.DataObject, good_betons: Path, tmp_path: Path) -> None:
    folder = tmp_path / "odd"
    if not folder.exists():
        shutil.copytree(good_betons, folder)
    head, table, _ = packed_beton(good_betons)
    patches = {}
    with (folder / "train.beton").open("r+b") as file:
        end = file.seek(0, 2)
        for _ in range(data.draw(st.integers(1, 3))):
            in_head = data.draw(st.booleans())
            place = (
                data.draw(st.integers(0, len(head) - 9))
                if in_head
                else end - data.draw(st.integers(8, len(table)))
            )
            value = data.draw(st.integers(0, 2**64 - 1) | st.sampled_from([0, 1, 2**31, 2**63, 2**64 - 1]))
            file.seek(place)
            patches.setdefault(place, file.read(8))
            file.seek(place)
            file.write(value.to_bytes(8, "little")[: data.draw(st.sampled_from([1, 2, 4, 8]))])
    try:
        with bounded_memory(40 * MB):
            found = outcome(read_beton, folder / "train.beton")
            opened = outcome(open_dataset, str(folder)) if isinstance(found, Beton) else found
        assert isinstance(opened, Dataset | UserError)
    finally:
        with (folder / "train.beton").open("r+b") as file:
            for place, old in reversed(patches.items()):
                file.seek(place)
                file.write(old)


def test_an_image_before_the_beton_is_refused(good_betons: Path, tmp_path: Path) -> None:
    """A pointer of 2**63 and more was a negative place, counted from the end: another image's bytes, without a word."""
    raw = bytearray((good_betons / "train.beton").read_bytes())
    old = (1 << 23).to_bytes(8, "little")  # the first page
    new = (2**64 - 24 * 24 - 192).to_bytes(8, "little")
    for _ in range(2):  # in the sample's row and in the table
        place = raw.index(old, 2000)
        raw[place : place + 8] = new
    (tmp_path / "train.beton").write_bytes(raw)
    assert "it is truncated" in str(outcome(read_beton, tmp_path / "train.beton"))


@pytest.mark.parametrize("text", ["[" * 100_000, "{}", '["a", "a", "a"]', "[1, 2", "\0"])
def test_class_names_of_betons(text: str, good_betons: Path, tmp_path: Path) -> None:
    shutil.copytree(good_betons, tmp_path / "odd")
    (tmp_path / "odd" / "classes.json").write_text(text)
    assert "classes.json" in str(outcome(open_dataset, str(tmp_path / "odd")))


# ------------------------------------------------------------------------------------------------------- run folders

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)


@examples(150)
@given(raw=st.binary(max_size=40) | json_values.map(json.dumps).map(str.encode))
@example(raw=b"[" * 100_000)
@example(raw=b'{"a": ' + b"9" * 5000 + b"}")
@example(raw=b'{"sha256": {}, "a": NaN}')
@example(raw=b'{"sha256": 1, "a": 1e999}')
def test_sealed_json_of_anything(raw: bytes, tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_bytes(raw)
    assert isinstance(outcome(read_sealed_json, path), UserError)
    assert isinstance(outcome(RunFolder(tmp_path).read_config), UserError)


@examples(150)
@given(
    header=st.binary(max_size=60) | json_values.map(json.dumps).map(str.encode),
    size=st.none() | st.integers(0, 2**64 - 1),
)
@example(header=b'{"a":{"dtype":"F32","shape":[1000000000000],"data_offsets":[0,4000000000000]}}', size=None)
@example(header=b'{"a":{"dtype":"F32","shape":[-1],"data_offsets":[0,0]}}', size=None)
@example(header=b"{" * 100_000, size=None)
def test_a_safetensors_header_of_anything(header: bytes, size: int | None, tmp_path: Path) -> None:
    path = tmp_path / "last.safetensors"
    path.write_bytes(struct.pack("<Q", len(header) if size is None else size) + header)
    with bounded_memory(40 * MB):
        assert isinstance(outcome(checkpoint.read_checkpoint, path), UserError)


def forged(content: Any) -> bytes:
    """Return a checkpoint whose hash fits, and whose content is anything."""
    tensors = {"w": torch.zeros(2, 3)}
    text = json.dumps(content)
    sha256 = checkpoint._digest(text, tensors)
    return save(tensors, {"fastresnet": checkpoint.FORMAT, "content": text, "sha256": sha256})


@examples(150)
@given(content=json_values)
@example(content={"$dict": [["w", {"$tensor": "w", "strides": [10**12, 1]}]]})
@example(content={"$dict": [["w", {"$tensor": "w", "strides": [-3, 1]}]]})
@example(content={"$dict": [["w", {"$tensor": "w", "strides": [1]}]]})
@example(content={"$dict": [["w", {"$tensor": "absent", "strides": [3, 1]}]]})
@example(content={"$dict": [[[], 1]]})
@example(content={"$dict": 1})
def test_a_forged_checkpoint(content: Any, tmp_path: Path) -> None:
    path = tmp_path / "last.safetensors"
    path.write_bytes(forged(content))
    with bounded_memory(40 * MB):
        found = outcome(checkpoint.read_checkpoint, path)
    assert isinstance(found, dict | UserError)


@examples(60)
@given(raw=st.binary(max_size=200))
def test_events_that_a_checkpoint_vouches_for(raw: bytes, tmp_path: Path) -> None:
    """The hash of any bytes can be forged with them."""
    folder = RunFolder(tmp_path)
    (tmp_path / "events.jsonl").write_bytes(raw)
    outcome(folder.restore_events, {"bytes": len(raw), "sha256": hashlib.sha256(raw).hexdigest()})


@pytest.mark.parametrize("name", ["data_batch_1", "batches.meta"])
@pytest.mark.parametrize("what", ["folder", "link to nothing", "fifo"])
def test_a_file_that_is_none(what: str, name: str, tmp_path: Path) -> None:
    folder = write_official(tmp_path / "pickles", per_batch=10)
    (folder / name).unlink()
    if what == "folder":
        (folder / name).mkdir()
    elif what == "fifo":
        os.mkfifo(folder / name)  # whose reader would wait for ever
    else:
        (folder / name).symlink_to(tmp_path / "absent")
    assert isinstance(outcome(open_dataset, str(folder)), UserError)
