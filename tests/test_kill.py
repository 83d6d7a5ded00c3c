"""Real processes, killed and stopped at any moment, and resumed."""

from __future__ import annotations

import json
import os
import random
import re
import shlex
import signal
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest
from tiny_runs import ARCH, assert_same_science, train_tiny
from train_processes import FAR, TINY, Terminal, await_line, await_run, screen_lines, started

from fastresnet.engine.checkpoint import load_last
from fastresnet.folder import RunInUse, find_run
from fastresnet.training import resume

NUM_KILLS = 5


pytestmark = pytest.mark.usefixtures("one_thread")


def test_killed_at_random_moments_a_run_learns_the_same_bits(data: Path, tmp_path: Path) -> None:
    """Every run is killed while it trains, each at another moment, one of them again after it was resumed."""
    whole = train_tiny(data, tmp_path / "whole", {"epochs": 12}, save_every_s=0.02)
    clocks = json.loads((whole / "result.json").read_text())["clocks"]
    lasts = clocks["train_s"] + clocks["between_s"] + clocks["eval_s"]
    own = ("--epochs", "12", "--set", "optimizer.lr=0.05", "--save-every", "0.02", "--data", str(data))
    seed = time.time_ns()
    print(f"kills drawn with seed {seed}; a whole run lasts {lasts:.2f} s")

    def killed_run(number: int) -> Path:
        drawn = random.Random(seed + number)
        for attempt in range(20):
            folder = tmp_path / f"killed-{number}-{attempt}"
            with started(folder, *TINY, *own) as process:
                run = await_run(process, folder)
                time.sleep(drawn.uniform(0, 0.6 * lasts))
                process.send_signal(signal.SIGKILL)
                process.wait()
            if not (run / "result.json").exists():  # else it was quicker than the moment
                return run
        pytest.fail("no run was killed before its end")

    with ThreadPoolExecutor(2) as pool:
        runs = list(pool.map(killed_run, range(NUM_KILLS)))
    steps = [load_last(run)[0]["state"]["step"] for run in runs]
    print(f"going on from steps {steps}")
    assert len(set(steps)) > 1

    with started(runs[0].parent.parent, "--resume", "last") as process:
        await_line(process, "resuming")
        time.sleep(random.Random(seed).uniform(0, 0.3 * lasts))
        process.send_signal(signal.SIGKILL)
        process.wait()
    for run in runs:
        resume(str(run))
        assert_same_science(run, whole)
        assert not list(run.glob(".*")) and list(run.parent.iterdir()) == [run]


def test_a_signal_saves_and_says_how_to_go_on(data: Path, tmp_path: Path) -> None:
    """SIGTERM as `timeout` and batch systems send it: to the whole process group, and twice."""
    arguments = ("--epochs", "100000", "--loader", "torch", "--workers", "2", "--runs-dir", "my runs")
    folder = tmp_path / "here"
    with started(folder, *TINY, "--data", str(data), *arguments) as process:
        await_line(process, "epoch")
        os.killpg(process.pid, signal.SIGTERM)
        os.killpg(process.pid, signal.SIGTERM)
        stdout, stderr = process.communicate(timeout=FAR)
    assert (process.returncode, stderr) == (143, "")
    said, command = stdout.splitlines()[-2:]
    found = re.fullmatch(r"stopped by SIGTERM; saved after step (\d) of epoch (\d+); to go on:", said)
    assert found, said
    run = find_run("last", folder / "my runs")
    state = load_last(run)[0]["state"]
    assert (state["epoch_step"], state["epoch"] + 1) == (int(found[1]), int(found[2]))

    # The line works as it stands, in a shell that knows nothing of how the first was started.
    # exec: the process is then the command itself.
    with started(folder, command=("bash", "-c", f"exec {command.strip()}")) as process:
        line = await_line(process, "resuming")
        assert line == f"resuming in epoch {found[2]}, after {found[1]} of its 6 steps\n"
        with pytest.raises(RunInUse, match=rf"is in use by another process \(pid {process.pid}\)"):
            resume(str(run))
        # Told once more as the first time, which shows that it goes on.
        process.send_signal(signal.SIGINT)
        stdout, stderr = process.communicate(timeout=FAR)
    assert (process.returncode, stderr) == (130, "")
    # It may not have come to its first step.
    assert re.match(
        r"stopped by SIGINT; (saved after step \d|the last checkpoint is kept)", stdout.splitlines()[-2]
    )
    assert stdout.splitlines()[-1] == command


def test_stopped_while_packing_nothing_is_left(tmp_path: Path, cache: Path) -> None:
    with started(tmp_path / "here", *TINY, "--data", "shapes") as process:
        end = time.monotonic() + FAR
        while not list(cache.glob("packs/.*.partial/*")):
            assert process.poll() is None and time.monotonic() < end
            time.sleep(0.01)
        process.send_signal(signal.SIGTERM)
        stdout, stderr = process.communicate(timeout=FAR)
    assert (process.returncode, stdout) == (143, "")
    assert stderr.splitlines()[-1] == "fastresnet: stopped by SIGTERM; nothing was left half-written"
    assert "Traceback" not in stderr
    assert not list(cache.glob("packs/.*.partial")) and not (tmp_path / "here" / "runs").exists()


FORKSERVED = """
import multiprocessing, sys
from fastresnet.cli.main import main
multiprocessing.set_start_method("forkserver")
multiprocessing.set_forkserver_preload(["fastresnet.loaders.torch_backend"])
sys.argv = ["fastresnet", "train", *sys.argv[1:]]
main()
"""


def test_a_killed_fork_server_is_one_line_too(data: Path, tmp_path: Path) -> None:
    """Newer Pythons start processes by one. Its workers live on and must not speak."""
    arguments = ("--epochs", "100000", "--loader", "torch", "--workers", "2", "--data", str(data))
    command = (sys.executable, "-c", FORKSERVED)
    with started(tmp_path / "here", *TINY, *arguments, command=command) as process:
        await_line(process, "epoch")
        (server,) = [child for child in psutil.Process(process.pid).children() if child.children()]
        workers = server.children()
        server.kill()
        _, stderr = process.communicate(timeout=FAR)
    assert process.returncode == 2 and stderr.count("\n") == 1, stderr
    assert stderr.startswith("fastresnet: error: a process of the torch loader was killed, ")
    assert len(workers) == 4 and psutil.wait_procs(workers, timeout=FAR)[1] == []


def test_a_killed_loader_process_is_one_line_and_the_run_goes_on(data: Path, tmp_path: Path) -> None:
    """Whatever the training does at that moment: it saves after every step, so it is mostly amid that."""
    folder = tmp_path / "here"
    arguments = ("--epochs", "100000", "--save-every", "1e-9", "--loader", "torch", "--workers", "2")
    with started(folder, *TINY, "--data", str(data), *arguments) as process:
        await_line(process, "epoch")
        parent = psutil.Process(process.pid)
        # A forked worker has its parent's command line, Python's resource tracker another one.
        workers = [child for child in parent.children() if child.cmdline() == parent.cmdline()]
        random.choice(workers).kill()
        stdout, stderr = process.communicate(timeout=FAR)
    assert process.returncode == 2 and stderr.count("\n") == 1, stderr
    assert stderr.startswith("fastresnet: error: a process of the torch loader was killed, ")
    assert "go on with --resume" in stderr and "Traceback" not in stdout
    assert [worker for worker in workers if worker.is_running()] == []

    state = load_last(find_run("last", folder / "runs"))[0]["state"]
    assert state["step"] > 0
    with started(folder, "--resume", "last") as process:
        line = await_line(process, "resuming")
        assert line == f"resuming in epoch {state['epoch'] + 1}, after {state['epoch_step']} of its 6 steps\n"
        await_line(process, "epoch")


def test_ctrl_c_while_warming_up_is_one_line(data: Path, tmp_path: Path) -> None:
    folder = tmp_path / "here"
    slow = ("--arch", "n3-b4-c64", "--batch-size", "100", "--threads", "1", "--data", str(data))
    terminal = Terminal(folder, *slow)
    terminal.read("warming up on random labels")
    code, shown = terminal.interrupt()
    assert code == 130
    assert [line.replace("^C", "") for line in screen_lines(shown)][-1:] == [
        "fastresnet: stopped by SIGINT; nothing was left half-written"
    ]
    assert "Traceback" not in shown and not (folder / "runs").exists()


def test_a_terminal_shows_progress_and_ctrl_c_ends_it_cleanly(data: Path, tmp_path: Path) -> None:
    """A live line is there from the first step on, however fast epochs and their evaluations pass."""
    folder = tmp_path / "here"
    arguments = (*TINY, "--data", str(data), "--epochs", "100000", "--loader", "torch", "--workers", "1")
    terminal = Terminal(folder, *arguments)
    before = terminal.read(" left")
    live = before.rsplit("\r\x1b[K", 1)[-1]
    assert re.fullmatch(r"epoch 1/100000  step 1/6  [\d,]+ img/s  [\d. a-z]+ left", live), live
    lines = screen_lines(before + terminal.read("  lr "))
    assert any(re.search(rf"(^|\x1b\[2K)arch     {ARCH} with gelu for relu: ", line) for line in lines)
    assert any(
        re.match(r"epoch +1/100000  loss \d\.\d{4}  train 0\.\d{4}  test 0\.\d{4}  lr ", line)
        for line in lines
    )
    again = terminal.read(" left").rsplit("\r\x1b[K", 1)[
        -1
    ]  # half a second later, amid epochs of milliseconds
    assert re.fullmatch(r"epoch \d+/100000  step \d/6  [\d,]+ img/s  [\d. a-z]+ left", again), again
    code, shown = terminal.interrupt()
    assert code == 130 and "Traceback" not in shown
    *_, said, command = screen_lines(shown)
    assert said.removeprefix("^C").startswith("stopped by SIGINT; saved after step")
    assert shlex.split(command)[-3:-1] == ["train", "--resume"]
    assert find_run(shlex.split(command)[-1], folder / "runs")
