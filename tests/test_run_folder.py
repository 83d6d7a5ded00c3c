"""The run folder: made whole or not at all, held by one process, its rows cut back to what a checkpoint knew."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_checkpoint import die_at_line

from fastresnet.atomic import locked, read_sealed_json, write_sealed_json
from fastresnet.engine.checkpoint import load_last, save_last
from fastresnet.errors import UserError
from fastresnet.folder import (
    CONFIG,
    EVENTS,
    LOCK,
    RunFolder,
    RunInUse,
    check_writable,
    find_run,
    new_run_name,
)
from fastresnet.recipe import load_recipe
from fastresnet.run import RunConfig

VERSIONS = {"fastresnet": "1", "torch": "2", "python": "3", "device_name": "a processor"}
DATA = {
    "name": "d",
    "digest": "0",
    "class_names": ["a", "b"],
    "image_size": 8,
    "mean": [0.5] * 3,
    "std": [0.2] * 3,
}
CONFIG_OF_RUN = {
    "recipe": load_recipe("fast").to_json_dict(),
    "recipe_file": None,
    "config": RunConfig().model_dump(mode="json"),
    "environment": VERSIONS,
    "dataset": {**DATA, "is_builtin": False, "num_train": 9, "num_test": 9},
    "parent": None,
}


def write_first(folder: RunFolder) -> None:
    save_last(folder.path, {"step": 0})


def make_run(runs_dir: Path, name: str = "20260101-000000-a-fast-c0ffee") -> RunFolder:
    folder = RunFolder.create(runs_dir / name, CONFIG_OF_RUN, write_first)
    folder.close()
    return folder


def test_a_new_run_has_its_config_its_first_checkpoint_and_nothing_else(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "runs")
    assert [path.name for path in (tmp_path / "runs").iterdir()] == [folder.name]
    assert {path.name for path in folder.path.iterdir()} == {CONFIG, EVENTS, LOCK, "last.safetensors"}
    assert RunFolder(folder.path).read_config() == {"run": folder.name, **CONFIG_OF_RUN}
    assert load_last(folder.path)[0]["step"] == 0
    assert folder.id == "c0ffee"


def test_killed_at_any_line_of_making_a_run_there_is_all_of_it_or_none(tmp_path: Path) -> None:
    functions = {"create", "write_config", "write_sealed_json", "write_atomic", "lock", "write_first"}
    runs, seen = tmp_path / "runs", set()
    for line in range(10_000):
        child = os.fork()
        if child == 0:
            die_at_line(line, functions)
            make_run(runs)
            os._exit(0)
        _, status = os.waitpid(child, 0)
        visible = list(runs.glob("[!.]*"))
        seen.add(bool(visible))
        if visible:
            folder = RunFolder(find_run("last", runs))
            folder.lock()  # which died with its holder
            assert folder.read_config()["run"] == folder.name
            assert load_last(folder.path)[0]["step"] == 0
            assert [path.name for path in folder.path.glob(".*")] == []
            folder.close()
        else:
            with pytest.raises(UserError, match="holds no runs"):
                find_run("last", runs)
        # The next run that is made here removes what the killed one left.
        make_run(runs, "20260101-000000-b-fast-abcdef")
        assert [path.name for path in runs.glob(".*")] == []
        shutil.rmtree(runs)
        if os.waitstatus_to_exitcode(status) == 0:
            break
    assert line > 40 and seen == {False, True}


def test_what_a_live_process_is_making_is_left_alone(tmp_path: Path) -> None:
    inside = tmp_path / f".x.{os.getpid()}.tmp"
    inside.mkdir()
    make_run(tmp_path)
    assert inside.is_dir()


def test_a_run_that_cannot_be_made_leaves_nothing(tmp_path: Path) -> None:
    def fail(folder: RunFolder) -> None:
        raise UserError("the disk is full")

    with pytest.raises(UserError, match="the disk is full"):
        RunFolder.create(tmp_path / "runs" / "r", CONFIG_OF_RUN, fail)
    assert list((tmp_path / "runs").iterdir()) == []
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"cannot make the run folder .*/file/r: Not a directory"):
        RunFolder.create(tmp_path / "file" / "r", CONFIG_OF_RUN, write_first)
    with pytest.raises(UserError, match="is no folder; choose another --runs-dir"):
        check_writable(tmp_path / "file" / "runs")
    # /proc takes no folder from anyone, root included.
    with pytest.raises(UserError, match="cannot make a run folder in /proc/runs"):
        check_writable(Path("/proc/runs"))
    check_writable(tmp_path / "not" / "yet")
    assert not (tmp_path / "not").exists()


def test_a_name_that_is_taken_is_not_overwritten(tmp_path: Path) -> None:
    folder = make_run(tmp_path)
    with pytest.raises(RunInUse):
        make_run(tmp_path)
    assert load_last(folder.path)[0]["step"] == 0
    assert [path.name for path in tmp_path.iterdir()] == [folder.name]


def test_names_say_when_and_what_and_fit_a_file_system() -> None:
    name = new_run_name("n2-b1-c4", "fast")
    assert name.split("-", 2)[0] == time.strftime("%Y%m%d") and "-n2-b1-c4-fast-" in name
    assert new_run_name("n2-b1-c4", "fast") != name
    assert len(new_run_name("n9-b" + "1," * 400, "r" * 400)) < 200


HOLD = """
import sys, time
from pathlib import Path
from fastresnet.folder import RunFolder
folder = RunFolder(Path(sys.argv[1]))
folder.lock()
print("held", flush=True)
time.sleep(60)
"""


@contextmanager
def held_elsewhere(path: Path, program: str = HOLD) -> Iterator[subprocess.Popen[str]]:
    """Hold the run in a process of its own."""
    process = subprocess.Popen([sys.executable, "-c", program, str(path)], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None and process.stdout.readline() == "held\n"
        yield process
    finally:
        process.kill()
        process.communicate()


def test_one_process_holds_a_run_until_it_dies(tmp_path: Path) -> None:
    path = make_run(tmp_path).path
    with held_elsewhere(path) as process:
        with pytest.raises(RunInUse, match=rf"is in use by another process \(pid {process.pid}\)"):
            RunFolder(path).lock()
        with pytest.raises(RunInUse):  # and asking twice changes nothing
            RunFolder(path).lock()
        process.send_signal(signal.SIGKILL)
        process.wait()
        folder = RunFolder(path)
        folder.lock()
    with pytest.raises(RunInUse, match=f"pid {os.getpid()}"):
        RunFolder(path).lock()
    folder.close()
    RunFolder(path).lock()


HOLD_AND_FORK = """
import os, sys, time
from pathlib import Path
from fastresnet.folder import RunFolder
folder = RunFolder(Path(sys.argv[1]))
folder.lock()
ready, tell = os.pipe()
child = os.fork()
if child:
    os.read(ready, 1)
    print("held", flush=True)
    print(child, flush=True)
else:
    os.write(tell, b"x")  # the child runs, so what is done after a fork in it is done
time.sleep(60)
"""


def test_a_forked_child_does_not_keep_a_dead_run_locked(tmp_path: Path) -> None:
    """Loader processes outlive a killed parent by seconds."""
    path = make_run(tmp_path).path
    with held_elsewhere(path, HOLD_AND_FORK) as process:
        assert process.stdout is not None
        child = int(process.stdout.readline())
        with pytest.raises(RunInUse):
            RunFolder(path).lock()
        process.kill()
        process.wait()
        try:
            os.kill(child, 0)
            RunFolder(path).lock()
        finally:
            os.kill(child, signal.SIGKILL)


def test_taking_a_run_removes_what_a_killed_process_was_writing(tmp_path: Path) -> None:
    path = make_run(tmp_path).path
    (path / ".next.safetensors.123.tmp").write_bytes(b"half")
    RunFolder(path).lock()
    assert not list(path.glob(".*"))


def rows_of(count: int, start: int = 0) -> list[dict[str, Any]]:
    clock = {"train_s": 1.0, "images_per_s": 3.0, "segment": 0}
    learned = {"event": "epoch", "lr": 0.1, "train_accuracy": 0.5, "clock": clock}
    return [{**learned, "epoch": start + i + 1, "train_loss": 1 / (start + i + 3)} for i in range(count)]


@settings(max_examples=30)
@given(before=st.integers(0, 3), after=st.integers(0, 3), torn=st.binary(max_size=20), more=st.integers(0, 2))
def test_rows_are_neither_lost_nor_doubled(
    before: int, after: int, torn: bytes, more: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Whatever was written after the checkpoint, torn or whole, the rows go on from the checkpoint."""
    path = make_run(tmp_path_factory.mktemp("runs")).path
    first = RunFolder(path)
    for row in rows_of(before):
        first.append_event(row)
    mark = first.events_mark()
    for row in rows_of(after, before):
        first.append_event(row)
    with open(path / EVENTS, "ab") as file:
        file.write(torn)

    second = RunFolder(path)
    assert second.read_events(mark) == rows_of(before)
    assert second.restore_events(mark) == rows_of(before)
    assert second.events_mark() == mark
    for row in rows_of(more, before):
        second.append_event(row)
    text = (path / EVENTS).read_text()
    assert [json.loads(line) for line in text.splitlines()] == rows_of(before + more)
    assert RunFolder(path).restore_events(second.events_mark()) == rows_of(before + more)


@pytest.mark.parametrize("how", ["cut", "altered", "gone"])
def test_damaged_rows_are_named(how: str, tmp_path: Path) -> None:
    path = make_run(tmp_path).path
    folder = RunFolder(path)
    for row in rows_of(3):
        folder.append_event(row)
    raw = (path / EVENTS).read_bytes()
    if how == "gone":
        (path / EVENTS).unlink()
    else:
        (path / EVENTS).write_bytes(raw[:-1] if how == "cut" else raw.replace(b'"epoch": 1', b'"epoch": 7'))
    expected = "cannot read .*events.jsonl" if how == "gone" else "events.jsonl was altered"
    with pytest.raises(UserError, match=expected):
        RunFolder(path).restore_events(folder.events_mark())


def test_an_interrupted_row_is_written_over(tmp_path: Path) -> None:
    """A process that met a full disk in the middle of a row and goes on does not double it."""
    path = make_run(tmp_path).path
    folder = RunFolder(path)
    folder.append_event(rows_of(1)[0])
    with open(path / EVENTS, "ab") as file:
        file.write(b'{"event": "epo')
    folder.append_event(rows_of(1, 1)[0])
    assert [json.loads(line) for line in (path / EVENTS).read_text().splitlines()] == rows_of(2)


def test_runs_are_found_by_path_name_id_and_last(tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    made = [make_run(runs, name).path for name in ("z-a-fast-111111", "b-a-fast-222222", "c-a-fast-333333")]
    # The newest is told by when it was made, not by its name.
    for age, path in enumerate(reversed(made)):
        os.utime(path / CONFIG, ns=(10**18 - age, 10**18 - age))
    assert find_run("last", runs) == made[2]
    os.utime(made[0] / CONFIG, ns=(2 * 10**18, 2 * 10**18))
    assert find_run("last", runs) == made[0]
    assert find_run(str(made[1]), tmp_path / "elsewhere") == made[1]
    assert find_run("b-a-fast-222222", runs) == find_run("222222", runs) == made[1]


def test_a_run_that_is_not_there_is_said_in_one_line(tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    with pytest.raises(UserError, match="holds no runs"):
        find_run("last", runs)
    make_run(runs, "a-fast-111111")
    make_run(runs, "b-fast-111111")
    with pytest.raises(UserError, match=r"'111111' names 2 runs in .*: a-fast-111111, b-fast-111111"):
        find_run("111111", runs)
    with pytest.raises(UserError, match=r"no run '111112' in .*; did you mean '111111'"):
        find_run("111112", runs)
    with pytest.raises(UserError, match=r"is a folder but not a run: it has no config.json"):
        find_run(str(tmp_path), runs)
    for empty in ("", "-"):
        with pytest.raises(UserError):
            find_run(empty, runs)
    # What a killed process was still making is no run.
    shutil.copytree(runs / "a-fast-111111", tmp_path / "other" / ".a-fast-111111.99.tmp")
    with pytest.raises(UserError, match="holds no runs"):
        find_run("last", tmp_path / "other")


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@settings(max_examples=60)
@given(content=st.dictionaries(st.text().filter(lambda key: key != "sha256"), values, max_size=4))
def test_sealed_json_is_read_as_written(
    content: dict[str, Any], tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("sealed") / "c.json"
    write_sealed_json(path, content)
    assert read_sealed_json(path) == content
    assert json.loads(path.read_text())["sha256"]


def test_sealed_json_that_was_touched_is_named(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    content = {"seed": 3, "lr": 0.1, "name": "r"}
    write_sealed_json(path, content)
    raw = path.read_bytes()
    for at in range(len(raw)):
        for altered in (raw[:at], raw[:at] + bytes([raw[at] ^ 4]) + raw[at + 1 :]):
            path.write_bytes(altered)
            try:
                assert read_sealed_json(path) == content  # only white space was touched
            except UserError as error:
                assert str(path) in str(error) and "\n" not in str(error)
    path.write_bytes(raw.replace(b"0.1", b"0.2"))
    with pytest.raises(UserError, match="is torn or was altered: its contents do not match its sha256"):
        read_sealed_json(path)
    path.unlink()
    with pytest.raises(UserError, match=r"cannot read .*config.json: No such file"):
        read_sealed_json(path)


def test_a_config_of_another_format_is_refused(tmp_path: Path) -> None:
    path = make_run(tmp_path).path
    write_sealed_json(path / CONFIG, {"format": 2, "run": "r"})
    with pytest.raises(UserError, match="is of another format; this version reads format 1"):
        RunFolder(path).read_config()


def test_a_result_is_read_with_its_rows(tmp_path: Path) -> None:
    folder = make_run(tmp_path)
    assert folder.read_result() is None
    folder.append_event(rows_of(1)[0])
    result = {key: CONFIG_OF_RUN[key] for key in ("recipe", "config", "environment", "dataset")}
    result |= {"run": folder.name, "path": "p", "num_params": 1, "multiply_adds": 1, "epochs": rows_of(1)}
    result |= {"clocks": {}, "test_accuracy": 0.5, "test_loss": None, "test_accuracy_tta": None}
    result |= {"best": {"epoch": 1, "accuracy": 0.5, "test_accuracy": 0.5, "chosen_on": "test"}}
    folder.write_result(result)
    assert RunFolder(folder.path).read_result() == result
    (folder.path / EVENTS).write_text("")
    with pytest.raises(UserError, match=r"events.jsonl was altered"):
        RunFolder(folder.path).read_result()


def test_a_lock_whose_holder_removed_its_file_is_taken_anew(tmp_path: Path) -> None:
    """Else the waiting one would hold a file that nobody finds, and the next would hold another beside it."""
    path, waits = tmp_path / "lock", threading.Event()

    def hold() -> bool:
        with locked(path, waits.set):
            return is_taken()

    def is_taken() -> bool:
        class Taken(Exception):
            pass

        def taken() -> None:
            raise Taken

        try:
            with locked(path, taken):
                return False
        except Taken:
            return True

    with ThreadPoolExecutor(1) as pool:
        with locked(path, waits.set):
            held = pool.submit(hold)
            assert waits.wait(60)
            path.unlink()
        assert held.result(60)
    assert not is_taken()
