"""Runs whose steps go through torch's real compiler: killed and resumed, and what a second process compiles."""

from __future__ import annotations

import random
import signal
import threading
import time
from pathlib import Path

import pytest
import torch
from tiny_runs import BATCH, assert_same_science, train_tiny, write_tiny
from train_processes import await_run, started

from fastresnet.engine.checkpoint import load_last
from fastresnet.engine.compiler import compiler_missing, prepare_to_compile
from fastresnet.engine.machine import resolve_device
from fastresnet.training import resume

ARCH = "n1-b1-c8"
EPOCHS = 40


def test_compiling_makes_no_lock_that_a_kill_would_leave_behind() -> None:
    tqdm = pytest.importorskip("tqdm").tqdm
    prepare_to_compile()
    assert isinstance(tqdm.get_lock(), type(threading.RLock()))


def test_a_compiled_run_is_killed_and_resumed_to_the_same_bits_and_compiled_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The process that is killed, and the resumed run, take what the first has compiled from the cache folder."""
    if compiler_missing(resolve_device("cpu")):
        pytest.skip("no C++ compiler")
    cache = tmp_path / "compiled"
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(cache))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    data = write_tiny(tmp_path / "tiny.npz")
    torch._dynamo.reset()
    options = {"compile": "on", "save_every_s": 0.02}
    whole = train_tiny(data, tmp_path / "whole", {"arch": ARCH, "epochs": EPOCHS}, **options)
    # Not the library by which torch finds out what the processor can: a process that has done so builds none.
    compiled = sorted(path.name for path in cache.rglob("*.main.so"))
    assert compiled

    folder, seed = tmp_path / "killed", time.time_ns()
    print(f"kill drawn with seed {seed}")
    arguments = (
        "--arch",
        ARCH,
        "--batch-size",
        str(BATCH),
        "--threads",
        "1",
        "--device",
        "cpu",
        "--compile",
        "on",
    )
    own = ("--epochs", str(EPOCHS), "--set", "optimizer.lr=0.05", "--save-every", "0.02", "--data", str(data))
    with started(folder, *arguments, *own) as process:
        run = await_run(process, folder)
        time.sleep(random.Random(seed).uniform(0, 0.3))
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert not (run / "result.json").exists()
    print(f"going on from step {load_last(run)[0]['state']['step']}")
    torch._dynamo.reset()
    resume(str(run))
    assert_same_science(run, whole)
    assert sorted(path.name for path in cache.rglob("*.main.so")) == compiled
