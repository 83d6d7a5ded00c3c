"""Which kernels a run takes: what was asked for, what the machine can run, what was measured and kept."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from kernel_cases import DEVICE
from optional_parts import need

from fastresnet.errors import UserError
from fastresnet.kernels import block_time, dispatch, timing
from fastresnet.kernels.block_time import BlockShape
from fastresnet.kernels.dispatch import Choice, choose_kernels, describe_choices, triton_obstacle
from fastresnet.kernels.norm_act import KERNELS

BLOCKS = [BlockShape(4, 8, 6, 3, (8,), (3, 3)), BlockShape(4, 16, 3, 2, (4, 4), (1, 3, 1))]


def choose(wanted: str = "auto", **changes: Any) -> Choice:
    arguments: dict[str, Any] = {
        "activation": "relu",
        "dtype": torch.float32,
        "device": torch.device("cpu"),
        "compiled": False,
        "launched": True,
        "synced": False,
        "deterministic": False,
        "cache_folder": Path("unused"),
    }
    return choose_kernels(wanted, BLOCKS, **(arguments | changes))


class Machine:
    """A GPU that Triton runs on, as far as dispatch can see; ``times`` is what its blocks take."""

    def __init__(self) -> None:
        self.times = {"inductor": 2.0, "triton": 1.0}
        self.tuning = 0
        self.measurements = 0
        self.announced: list[str] = []
        self.fails: Exception | None = None

    def time_blocks(self, kernels: list[str], *_: Any, **how: bool) -> dict[str, float]:
        self.measurements += 1
        if self.fails:
            raise self.fails
        return {name: self.times[name.split("-")[0]] for name in kernels}

    def choose(self, folder: Path, **changes: Any) -> Choice:
        here = {"compiled": True, "device": torch.device("cuda", 0), "cache_folder": folder}
        return choose(**here, announce=self.announced.append, **changes)


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Machine:
    need("triton")
    machine = Machine()
    monkeypatch.setattr(dispatch, "triton_obstacle", lambda device: None)
    monkeypatch.setattr(dispatch, "time_blocks", machine.time_blocks)
    monkeypatch.setattr(dispatch, "fastest_tuning", lambda *_: machine.tuning)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA H200")
    return machine


@pytest.mark.parametrize(("compiled", "kernels"), [(True, "inductor"), (False, "eager")])
def test_a_cpu_takes_the_plain_module(compiled: bool, kernels: str, tmp_path: Path) -> None:
    choice = choose(compiled=compiled, cache_folder=tmp_path)
    assert choice.kernels == kernels and choice.reason
    assert list(tmp_path.iterdir()) == []


def test_a_cpu_never_loads_triton() -> None:
    program = """
import sys, torch
from pathlib import Path
from fastresnet.kernels.dispatch import choose_kernels
choose_kernels("auto", [], activation="relu", dtype=torch.float32, device=torch.device("cpu"), compiled=False,
               launched=True, synced=False, deterministic=False, cache_folder=Path("unused"))
assert "triton" not in sys.modules
"""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", program], capture_output=True, text=True, timeout=120
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_what_was_asked_for_is_taken_or_refused_in_one_line(machine: Machine) -> None:
    assert [choose(name, compiled=True).kernels for name in KERNELS] == list(KERNELS)
    with pytest.raises(UserError, match=r"must be one of auto, eager, .*; did you mean 'triton'"):
        choose("tritn")
    with pytest.raises(UserError, match="add --compile on"):
        choose("inductor")
    assert machine.measurements == 0


def test_triton_on_a_cpu_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dispatch, "INTERPRETED", False)
    with pytest.raises(
        UserError, match=r"cannot be had: Triton compiles for GPUs, and this is a cpu; use --kernels auto"
    ):
        choose("triton")


def test_the_fastest_is_taken(machine: Machine, tmp_path: Path) -> None:
    assert machine.choose(tmp_path).kernels == "triton"
    machine.times = {"inductor": 1.0, "triton": 1.5}
    slower = machine.choose(tmp_path, activation="gelu")
    assert slower.kernels == "inductor" and "inductor 1000.000 ms, triton 1500.000 ms" in slower.reason
    machine.times = {"inductor": 1.0, "triton": 1.0}
    assert machine.choose(tmp_path, activation="silu").kernels == "inductor"


def test_the_fastest_tuning_is_what_is_compared(machine: Machine, tmp_path: Path) -> None:
    machine.tuning = 2
    assert machine.choose(tmp_path).kernels == "triton-2"


def test_measured_once_a_machine_and_network(machine: Machine, tmp_path: Path) -> None:
    first = machine.choose(tmp_path / "cache")
    again = machine.choose(tmp_path / "cache")
    assert machine.measurements == 1 and len(machine.announced) == 1
    assert again.kernels == first.kernels
    assert "measured earlier" in again.reason and "NVIDIA H200" in first.reason
    machine.choose(tmp_path / "cache", launched=False)
    assert machine.measurements == 2, "replays are another thing than launches"
    kept = json.loads((tmp_path / "cache" / dispatch.CACHE_FILE).read_text())
    keys = sorted(kept.keys() - {"sha256"})
    assert len(keys) == 2 and all("NVIDIA H200; torch " in key and "; triton " in key for key in keys)


def test_what_auto_comes_to_is_told(
    machine: Machine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gpu = torch.device("cuda", 0)
    assert "at the first run that is worth it" in describe_choices(gpu, tmp_path)
    machine.choose(tmp_path)
    machine.choose(tmp_path, dtype=torch.bfloat16)
    machine.times = {"inductor": 1.0, "triton": 1.5}
    machine.choose(tmp_path, activation="gelu")
    assert describe_choices(gpu, tmp_path) == "measured here: triton for 2 of 3, inductor for 1 of 3"
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA A100")
    assert "at the first run" in describe_choices(gpu, tmp_path)


def test_a_short_run_measures_nothing_and_takes_what_was_measured(machine: Machine, tmp_path: Path) -> None:
    short = machine.choose(tmp_path, worth_measuring=False)
    assert (short.kernels, machine.measurements) == ("inductor", 0) and "too short" in short.reason
    machine.choose(tmp_path)
    assert machine.choose(tmp_path, worth_measuring=False).kernels == "triton"


@pytest.mark.parametrize("damage", [b"", b"{}", b'{"key": {"triton": 0.1}, "sha256": "0"}'])
def test_a_damaged_cache_is_measured_again(machine: Machine, tmp_path: Path, damage: bytes) -> None:
    (tmp_path / dispatch.CACHE_FILE).write_bytes(damage)
    machine.choose(tmp_path)
    machine.choose(tmp_path)
    assert machine.measurements == 1


def test_deterministic_runs_measure_nothing(machine: Machine, tmp_path: Path) -> None:
    assert machine.choose(tmp_path, deterministic=True).kernels == "triton"
    assert machine.measurements == 0 and list(tmp_path.iterdir()) == []


def test_statistics_that_ranks_share_are_measured_nowhere(machine: Machine, tmp_path: Path) -> None:
    choice = machine.choose(tmp_path, synced=True)
    assert (choice.kernels, machine.measurements) == ("inductor", 0) and "ranks share" in choice.reason
    assert machine.choose(tmp_path, synced=True, deterministic=True).kernels == "inductor"


def test_measurements_of_two_at_once_are_both_kept(machine: Machine, tmp_path: Path) -> None:
    """Each waits for the other's turn at the file, and reads it then."""
    before, read = threading.active_count(), dispatch._read

    def slowly(file: Path) -> dict[str, Any]:
        found = read(file)
        time.sleep(0.1)
        return found

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dispatch, "_read", slowly)
        workers = [
            threading.Thread(target=machine.choose, args=(tmp_path,), kwargs={"dtype": dtype})
            for dtype in (torch.float32, torch.bfloat16)
        ]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
    assert threading.active_count() == before
    assert len(read(tmp_path / dispatch.CACHE_FILE)) == 2


def test_a_failing_compiler_does_not_keep_a_run_from_training(machine: Machine, tmp_path: Path) -> None:
    machine.fails = RuntimeError("ptxas: unsupported\nlong log")
    choice = machine.choose(tmp_path)
    assert (
        choice.kernels == "inductor" and choice.reason == "measuring failed: RuntimeError: ptxas: unsupported"
    )
    machine.fails = None
    assert machine.choose(tmp_path).kernels == "triton", "a failure is not kept"


def test_obstacles(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = torch.device("cuda", 0)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    assert "8.0" in str(triton_obstacle(gpu))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    monkeypatch.setattr(dispatch.importlib.util, "find_spec", lambda name: None)
    assert "not installed" in str(triton_obstacle(gpu))
    monkeypatch.setattr(dispatch.importlib.util, "find_spec", lambda name: object())
    assert triton_obstacle(gpu) is None


def test_blocks_and_tunings_are_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The measurement itself, on a block small enough for the interpreter."""
    need("triton")
    monkeypatch.setattr(block_time, "ROUNDS", 2)
    monkeypatch.setattr(block_time, "CALLS", 1)
    shapes = [BlockShape(2, 4, 5, 2, (4,), (3, 3))]
    for launched in (True, False):
        times = block_time.time_blocks(
            ["eager", "triton-1"], shapes, "relu", torch.float32, DEVICE, compiled=False, launched=launched
        )
        assert times.keys() == {"eager", "triton-1"} and all(seconds > 0 for seconds in times.values())
    assert block_time.fastest_tuning(shapes, "gelu", torch.float32, DEVICE) in range(4)


def test_a_compiled_block_is_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(block_time, "ROUNDS", 1)
    shapes = [BlockShape(2, 4, 5, 2, (4,), (3, 3)), BlockShape(2, 4, 5, 1, (), (3,), joins=False)]
    times = block_time.time_blocks(
        ["inductor"], shapes, "relu", torch.float32, DEVICE, compiled=True, launched=False
    )
    assert times["inductor"] > 0


def test_quantiles_and_turns() -> None:
    calls: list[str] = []
    runs = {"one": [lambda: calls.append("a"), lambda: calls.append("b")], "two": [lambda: calls.append("c")]}
    times = timing.time_interleaved(runs, torch.device("cpu"), rounds=2, calls=3)
    assert "".join(calls) == "abc" + "aba" + "ccc" + "bab" + "ccc", "warmed up, then by turns"
    assert all(q.p20_s <= q.p50_s <= q.p80_s for q in times.values())
    assert timing.quantiles([5.0, 1.0, 4.0, 2.0, 3.0, 6.0]) == pytest.approx((2.0, 3.5, 5.0))
