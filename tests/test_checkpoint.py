"""Checkpoints: what goes in comes out, and nothing else ever does."""

from __future__ import annotations

import json
import math
import os
import shutil
import struct
import sys
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_runs import assert_same_bits

from fastresnet.engine.checkpoint import (
    LAST,
    NEXT,
    PREVIOUS,
    load_last,
    read_checkpoint,
    save_last,
    write_checkpoint,
)
from fastresnet.errors import UserError

DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64, torch.int64, torch.uint8, torch.bool)


def laid_out(shape: tuple[int, ...], order: tuple[int, ...], dtype: torch.dtype, seed: int) -> torch.Tensor:
    """Return a tensor of ``shape`` whose dimensions lie in memory in ``order``."""
    made = torch.randint(0, 2**15, [shape[i] for i in order], generator=torch.Generator().manual_seed(seed))
    return made.to(dtype).permute(*torch.argsort(torch.tensor(order)).tolist()) if order else made.to(dtype)


@st.composite
def tensors(draw: st.DrawFn) -> torch.Tensor:
    shape = tuple(draw(st.lists(st.integers(0, 4), max_size=4)))
    order = tuple(draw(st.permutations(range(len(shape)))))
    return laid_out(shape, order, draw(st.sampled_from(DTYPES)), draw(st.integers(0, 9)))


texts = st.text(max_size=8)
leaves = st.one_of(
    tensors(),
    st.none(),
    st.booleans(),
    st.integers(-(2**70), 2**70),
    st.floats(allow_nan=False, allow_infinity=False),
    texts,
)
contents = st.dictionaries(
    texts.filter(lambda key: key != "sha256"),
    st.recursive(
        leaves,
        lambda inner: st.one_of(
            st.lists(inner, max_size=3),
            st.lists(inner, max_size=3).map(tuple),
            st.dictionaries(st.one_of(texts, st.integers(-3, 3)), inner, max_size=3),
        ),
        max_leaves=6,
    ),
    max_size=3,
)


def without_hash(content: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in content.items() if key != "sha256"}


@settings(max_examples=60)
@given(content=contents)
def test_what_is_written_is_read(content: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.mktemp("checkpoint") / "c.safetensors"
    sha256 = write_checkpoint(path, content)
    found = read_checkpoint(path)
    assert found["sha256"] == sha256
    assert_same_bits(without_hash(found), content)


def test_layout_keys_and_tuples_survive(tmp_path: Path) -> None:
    """What an optimizer's state is made of: int keys, tuples, and filters that are channels-last, 1x1 ones too."""
    state = {
        "state": {
            0: {"exp_avg": torch.randn(4, 3, 3, 3).to(memory_format=torch.channels_last), "step": torch.tensor(3.0)},
            1: {"exp_avg": torch.randn(4, 3, 1, 1).to(memory_format=torch.channels_last), "step": torch.tensor(3.0)},
        },
        "param_groups": [{"betas": (0.9, 0.999), "lr": 0.1, "params": [0, 1]}],
        "empty": {},
        "none": (),
    }  # fmt: skip
    assert state["state"][1]["exp_avg"].stride() == (
        3,
        1,
        3,
        3,
    )  # which no memory format tells from contiguous
    write_checkpoint(tmp_path / "c", state)
    assert_same_bits(without_hash(read_checkpoint(tmp_path / "c")), state)


def test_tensors_read_are_their_own(tmp_path: Path) -> None:
    """They outlive the file, and changing them changes nothing else."""
    write_checkpoint(tmp_path / "c", {"t": torch.arange(1000.0)})
    found = read_checkpoint(tmp_path / "c")["t"]
    with open(tmp_path / "c", "r+b") as file:
        file.truncate(0)
    found += 1
    assert torch.equal(found, torch.arange(1000.0) + 1)


def test_what_json_cannot_say_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(ValueError):
        write_checkpoint(tmp_path / "c", {"loss": math.nan})
    assert list(tmp_path.iterdir()) == []


CONTENT = {
    "state": {"model": {"w": torch.arange(40.0).view(5, 8), "n": torch.tensor(7)}, "lr": (0.1, 0.2)},
    "step": 12,
}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("whole") / LAST
    write_checkpoint(path, CONTENT)
    return path.read_bytes()


def refused_or_equal(raw: bytes, path: Path) -> None:
    """Assert that ``raw`` is refused in one line that names the file, or says just what was written."""
    path.write_bytes(raw)
    try:
        found = read_checkpoint(path)
    except UserError as error:
        assert str(path) in str(error) and "\n" not in str(error)
        return
    assert_same_bits(without_hash(found), CONTENT)  # a space of the header, made another kind of space


@settings(max_examples=400)
@given(data=st.data())
def test_altered_bytes_are_never_taken_for_something_else(
    data: st.DataObject, whole: bytes, tmp_path_factory: pytest.TempPathFactory
) -> None:
    raw = bytearray(whole)
    for _ in range(data.draw(st.integers(1, 3))):
        raw[data.draw(st.integers(0, len(raw) - 1))] ^= data.draw(st.integers(1, 255))
    refused_or_equal(bytes(raw), tmp_path_factory.mktemp("altered") / LAST)


def test_every_single_bit_of_the_tensors_is_watched(whole: bytes, tmp_path: Path) -> None:
    start = 8 + struct.unpack("<Q", whole[:8])[0]
    for at in range(start, len(whole)):
        raw = bytearray(whole)
        raw[at] ^= 1 << (at % 8)
        (tmp_path / LAST).write_bytes(raw)
        with pytest.raises(UserError, match=r"last\.safetensors is torn or was altered"):
            read_checkpoint(tmp_path / LAST)


def test_a_torn_file_is_refused_wherever_it_ends(whole: bytes, tmp_path: Path) -> None:
    for length in (*range(0, len(whole) - 20, 3), *range(len(whole) - 20, len(whole))):
        (tmp_path / LAST).write_bytes(whole[:length])
        with pytest.raises(UserError, match=r"last\.safetensors"):
            read_checkpoint(tmp_path / LAST)
    (tmp_path / LAST).write_bytes(whole + b"\0")
    with pytest.raises(UserError, match=r"last\.safetensors"):
        read_checkpoint(tmp_path / LAST)


def test_a_file_of_another_kind_is_refused(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    save_file({"w": torch.zeros(2)}, tmp_path / "other")
    with pytest.raises(UserError, match="not a fastresnet checkpoint"):
        read_checkpoint(tmp_path / "other")
    with pytest.raises(UserError, match=r"cannot read .*missing: No such file"):
        read_checkpoint(tmp_path / "missing")


def test_a_damaged_last_is_named_and_the_previous_used(tmp_path: Path) -> None:
    for step in (1, 2, 3):
        save_last(tmp_path, {"step": step, "t": torch.zeros(1)})
    assert load_last(tmp_path)[0]["step"] == 3
    raw = bytearray((tmp_path / LAST).read_bytes())
    raw[-1] ^= 1
    (tmp_path / LAST).write_bytes(raw)
    found, passed_over = load_last(tmp_path)
    assert found["step"] == 2
    assert passed_over == [f"{tmp_path / LAST} is torn or was altered: its contents do not match its sha256"]
    # Going on from there leaves a whole checkpoint at every moment, and a clean end.
    save_last(tmp_path, {"step": 4})
    assert load_last(tmp_path) == (read_checkpoint(tmp_path / LAST), [])
    (tmp_path / PREVIOUS).write_bytes(b"torn")
    (tmp_path / LAST).write_bytes(b"torn too")
    with pytest.raises(UserError, match=r"has no whole checkpoint: .*last.*; .*previous"):
        load_last(tmp_path)


def die_at_line(number: int, functions: set[str]) -> None:
    """End the process, as a kill does, before line ``number`` (from 0) that any of ``functions`` executes."""
    seen = 0

    def on_line(frame: FrameType, event: str, argument: Any) -> Any:
        nonlocal seen
        if event == "line":
            if seen == number:
                os._exit(9)
            seen += 1
        return on_line

    sys.settrace(lambda frame, event, argument: on_line if frame.f_code.co_name in functions else None)


@pytest.mark.parametrize("damaged", [False, True])
def test_killed_at_any_line_of_saving_there_is_a_whole_checkpoint(damaged: bool, tmp_path: Path) -> None:
    """And never an older one than the last that was finished, though the save began beside a damaged one."""
    functions = {"save_last", "write_checkpoint", "write_atomic", "sync_folder"}
    base, progress = tmp_path / "base", tmp_path / "saved"
    base.mkdir()
    save_last(base, {"step": 0})
    if damaged:
        shutil.copy(base / LAST, base / PREVIOUS)
        (base / LAST).write_bytes(b"torn")
    found_at: set[tuple[bool, ...]] = set()
    for line in range(10_000):
        folder = tmp_path / "run"
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(base, folder)
        progress.write_text("0")
        child = os.fork()
        if child == 0:
            die_at_line(line, functions)
            for step in (1, 2):
                save_last(folder, {"step": step, "t": torch.full((3,), step)})
                progress.write_text(str(step))
            os._exit(0)
        _, status = os.waitpid(child, 0)
        saved = int(progress.read_text())
        found, passed_over = load_last(folder)
        assert found["step"] in (saved, saved + 1), line
        assert damaged or passed_over == [], line
        found_at.add(tuple((folder / name).exists() for name in (NEXT, LAST, PREVIOUS)))
        # The next save goes on from whatever was left.
        save_last(folder, {"step": 9})
        assert load_last(folder)[0]["step"] == 9 and not (folder / NEXT).exists()
        if os.waitstatus_to_exitcode(status) == 0:
            break
        assert os.waitstatus_to_exitcode(status) == 9
    assert line > 40
    assert (True, False, True) in found_at  # the moment when there is no last one


def test_the_hash_says_what_was_hashed(whole: bytes, tmp_path: Path) -> None:
    """A hash made for other contents does not pass, though every part of the file is well formed."""
    size = struct.unpack("<Q", whole[:8])[0]
    header = json.loads(whole[8 : 8 + size])
    text = header["__metadata__"]["content"]
    header["__metadata__"]["content"] = text.replace('["step", 12]', '["step", 13]')
    assert header["__metadata__"]["content"] != text
    raw = json.dumps(header).encode()
    raw += b" " * (-len(raw) % 8)
    (tmp_path / LAST).write_bytes(struct.pack("<Q", len(raw)) + raw + whole[8 + size :])
    with pytest.raises(UserError, match="do not match its sha256"):
        read_checkpoint(tmp_path / LAST)
