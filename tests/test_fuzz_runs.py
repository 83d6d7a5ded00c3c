"""Fuzzers of a stranger's run folder: its seals fit, what they seal is anything, and each command ends in one line."""

from __future__ import annotations

import copy
import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from fuzzing import examples, outcome
from hypothesis import example, given
from hypothesis import strategies as st
from tiny_runs import StopAt, stop, train_tiny, write_tiny

from fastresnet.atomic import read_sealed_json, write_sealed_json
from fastresnet.engine.checkpoint import BEST, LAST, load_best, load_last, write_checkpoint
from fastresnet.engine.fit import Interrupted
from fastresnet.errors import UserError
from fastresnet.evaluation import evaluate_run
from fastresnet.folder import CONFIG, EVENTS, RESULT, RunFolder
from fastresnet.inference import load
from fastresnet.report.records import read_run
from fastresnet.training import resume

# Anything but what stands at most places.
ODD: list[Any] = [
    None,
    True,
    -1,
    0,
    3,
    10**30,
    0.5,
    -1e308,
    "",
    "x",
    "a\0b",
    "\n\x1b[2J",
    [],
    [[]],
    {},
    {"a": {"b": 1}},
    "/dev/zero",
]
TENSORS = [
    torch.zeros(()),
    torch.ones(2, 3, dtype=torch.int8),
    torch.full((3,), torch.nan, dtype=torch.float64),
]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A run that was stopped in the midst of an epoch, and one that is complete, of the same data."""
    folder = tmp_path_factory.mktemp("made")
    data = write_tiny(folder / "tiny.npz")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FASTRESNET_CACHE", str(folder / "cache"))
        overrides = {"epochs": 2, "schedule.name": "plateau", "schedule.metric": "loss"}
        stopped = stop(data, folder / "a", StopAt(8), overrides)
        return {"stopped": stopped, "complete": train_tiny(data, folder / "b", {"epochs": 1})}


@pytest.fixture
def shared(made: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """The cache that the made runs' data is packed in."""
    monkeypatch.setenv("FASTRESNET_CACHE", str(made["stopped"].parent.parent / "cache"))


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Return the path of every entry of nested dicts, lists and tuples."""
    items: Any = value.items() if isinstance(value, dict) else enumerate(value)
    found = []
    for key, entry in items:
        found.append((*path, key))
        if isinstance(entry, dict | list | tuple):
            found += places(entry, (*path, key))
    return found


def changed(value: Any, path: tuple[Any, ...], how: Callable[[Any, Any], None]) -> Any:
    """Return a copy of ``value`` in which ``how(container, key)`` was done at ``path``; tuples become lists."""
    at = value = copy.deepcopy(value)
    for key in path[:-1]:
        if isinstance(at[key], tuple):
            at[key] = list(at[key])
        at = at[key]
    how(at, path[-1])
    return value


def put(entry: Any) -> Callable[[Any, Any], None]:
    def do(container: Any, key: Any) -> None:
        container[key] = entry

    return do


def leave_out(container: Any, key: Any) -> None:
    del container[key]


def add(container: Any, key: Any) -> None:
    (container.append if isinstance(container, list) else lambda entry: container.update({"odd": entry}))(1)


changes = st.sampled_from([*map(put, ODD), leave_out, add])
tensor_changes = st.sampled_from([*map(put, [*ODD, *TENSORS]), leave_out, add])


def attempt(run: Path) -> list[Any]:
    """Do with ``run`` all that a command does, up to a step or two of training; return what came of each."""
    found = [outcome(evaluate_run, f"{run}{which}", device="cpu") for which in ("", ":best")]
    found.append(outcome(load, run, device="cpu"))  # for predict and export
    found.append(outcome(read_run, str(run), run.parent))  # for report
    found.append(outcome(resumed, run))
    return found


def resumed(run: Path) -> Any:
    try:
        return resume(str(run), listener=StopAt(1), allow_different_machine=True)
    except Interrupted as interrupted:
        return interrupted


@pytest.fixture
def copied(made: dict[str, Path], tmp_path: Path, shared: None) -> Callable[[str], Path]:
    """Copies a made run over whatever an example before has left."""

    def copy_of(kind: str) -> Path:
        run = tmp_path / made[kind].name
        shutil.rmtree(run, ignore_errors=True)
        shutil.copytree(made[kind], run)
        return run

    return copy_of


def test_the_runs_themselves_go_through(copied: Callable[[str], Path]) -> None:
    for kind in ("stopped", "complete"):
        assert not [found for found in attempt(copied(kind)) if isinstance(found, UserError)]


def assert_lines(found: list[Any]) -> None:
    """Assert that what came of each command is a line or a result: ``outcome`` has let nothing else through."""
    assert len(found) == 5


@examples(60)
@given(data=st.data())
def test_a_sealed_config_of_anything(data: st.DataObject, copied: Callable[[str], Path]) -> None:
    run = copied(data.draw(st.sampled_from(["stopped", "complete"])))
    content = read_sealed_json(run / CONFIG)
    parts = data.draw(st.sampled_from(sorted({path[:1] for path in places(content)})))
    path = data.draw(st.sampled_from([path for path in places(content) if path[:1] == parts]))
    write_sealed_json(run / CONFIG, changed(content, path, data.draw(changes)))
    found = outcome(RunFolder(run).read_config)
    if isinstance(found, UserError):
        assert CONFIG in str(found)
    else:
        assert_lines(attempt(run))


@pytest.mark.parametrize("content", [{"a": 1}, {"format": 1}, {"format": [1]}, {"format": 1, "run": {}}, {}])
def test_a_sealed_file_of_something_else(content: dict[str, Any], copied: Callable[[str], Path]) -> None:
    run = copied("stopped")
    write_sealed_json(run / CONFIG, content)
    for found in attempt(run):
        assert isinstance(found, UserError) and CONFIG in str(found)
    run = copied("complete")
    write_sealed_json(run / RESULT, content)
    for found in attempt(run)[-2:]:
        assert isinstance(found, UserError) and RESULT in str(found)


@examples(40)
@given(data=st.data())
def test_a_sealed_result_of_anything(data: st.DataObject, copied: Callable[[str], Path]) -> None:
    run = copied("complete")
    content = read_sealed_json(run / RESULT)
    path = data.draw(st.sampled_from(places(content)))
    write_sealed_json(run / RESULT, changed(content, path, data.draw(changes)))
    found = outcome(RunFolder(run).read_result)
    if isinstance(found, UserError):
        assert RESULT in str(found) or EVENTS in str(found)
    else:
        outcome(read_run, str(run), run.parent)
        outcome(resumed, run)


@examples(40)
@given(data=st.data())
@example(data=None)
def test_a_sealed_checkpoint_of_anything(data: Any, copied: Callable[[str], Path]) -> None:
    run = copied("stopped")
    content = load_last(run)[0]
    del content["sha256"]
    if data is None:
        content = {"model": {}}
    else:
        # Each of the larger parts as often as each of the small.
        known = places(content)
        heads = sorted({path[:3] for path in known}, key=str)
        head = data.draw(st.sampled_from(heads))
        path = data.draw(st.sampled_from([path for path in known if path[: len(head)] == head]))
        content = changed(content, path, data.draw(tensor_changes))
    write_checkpoint(run / LAST, content)
    assert_lines(attempt(run))


@examples(15)
@given(data=st.data())
def test_a_sealed_best_of_anything(data: st.DataObject, copied: Callable[[str], Path]) -> None:
    run = copied("complete")
    content = load_best(run)
    path = data.draw(st.sampled_from(places(content)))
    content = changed(content, path, data.draw(tensor_changes))
    content.pop("sha256", None)
    write_checkpoint(run / BEST, content)
    outcome(evaluate_run, f"{run}:best", device="cpu")


@examples(40)
@given(data=st.data())
def test_rows_of_anything_that_a_checkpoint_vouches_for(
    data: st.DataObject, copied: Callable[[str], Path]
) -> None:
    run = copied("stopped")
    rows = [json.loads(line) for line in (run / EVENTS).read_text().splitlines()]
    path = data.draw(st.sampled_from(places(rows)))
    raw = "".join(f"{json.dumps(row)}\n" for row in changed(rows, path, data.draw(changes))).encode()
    (run / EVENTS).write_bytes(raw)
    content = load_last(run)[0]
    del content["sha256"]
    content["events"] = {"bytes": len(raw), "sha256": hashlib.sha256(raw).hexdigest()}
    write_checkpoint(run / LAST, content)
    outcome(read_run, str(run), run.parent)
    outcome(resumed, run)
