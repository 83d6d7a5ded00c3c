"""Real processes whose terminal closes or whose reader goes away: they save, and say so if anyone listens."""

from __future__ import annotations

import os
import re
import shlex
import signal
import subprocess
from pathlib import Path

import pytest
from train_processes import FAR, TINY, Terminal, await_line, started

from fastresnet.engine.checkpoint import load_last
from fastresnet.folder import find_run

LONG = ("--epochs", "100000")  # none of them ends, or saves by the clock, within a test
TORCH = ("--loader", "torch", "--workers", "2")


pytestmark = pytest.mark.usefixtures("one_thread")


def saved_steps(folder: Path) -> int:
    run = find_run("last", folder / "runs")
    assert not list(run.glob(".*")) and not (run / "result.json").exists()
    state, passed_over = load_last(run)
    assert not passed_over
    return int(state["state"]["step"])


@pytest.mark.usefixtures("hears_hangups")
def test_a_terminal_that_closes_saves(data: Path, tmp_path: Path) -> None:
    folder = tmp_path / "here"
    terminal = Terminal(folder, *TINY, "--data", str(data), *LONG, *TORCH)
    terminal.read("  lr ")
    assert terminal.close() == 128 + signal.SIGHUP
    assert saved_steps(folder) >= 6


@pytest.mark.usefixtures("hears_hangups")
def test_a_hangup_of_all_processes_says_how_to_go_on(data: Path, tmp_path: Path) -> None:
    folder = tmp_path / "here"
    with started(folder, *TINY, "--data", str(data), *LONG, *TORCH) as process:
        await_line(process, "epoch")
        os.killpg(process.pid, signal.SIGHUP)
        os.killpg(process.pid, signal.SIGHUP)
        stdout, stderr = process.communicate(timeout=FAR)
    assert (process.returncode, stderr) == (129, "")
    said, command = stdout.splitlines()[-2:]
    assert re.fullmatch(r"stopped by SIGHUP; saved after step \d of epoch \d+; to go on:", said)
    assert find_run(shlex.split(command)[-1], folder / "runs")
    assert saved_steps(folder) >= 6


def test_under_nohup_a_terminal_that_closes_changes_nothing(data: Path, tmp_path: Path) -> None:
    folder = tmp_path / "here"
    epochs = ("--epochs", "20")
    terminal = Terminal(folder, *TINY, "--data", str(data), *epochs, hears_hangups=False)
    terminal.read("  lr ")
    assert terminal.close() == 0
    run = find_run("last", folder / "runs")
    assert len((run / "events.jsonl").read_text().splitlines()) == 20 and (run / "result.json").exists()


def test_a_reader_that_goes_away_saves_and_says_how_to_go_on(data: Path, tmp_path: Path) -> None:
    folder = tmp_path / "here"
    with started(folder, *TINY, "--data", str(data), *LONG) as process:
        await_line(process, "epoch")
        assert process.stdout is not None and process.stderr is not None
        process.stdout.close()
        stderr = process.stderr.read()
        assert process.wait(FAR) == 128 + signal.SIGPIPE
    found = re.fullmatch(
        r"fastresnet: stopped because nobody reads its output any more; saved after step (\d) of epoch (\d+); to go "
        r"on: (.*)\n",
        stderr,
    )
    assert found, stderr
    steps = saved_steps(folder)
    assert steps == int(found[1]) + 6 * (int(found[2]) - 1)

    # Nobody reads what the line prints either, not even its errors: still it keeps what there is.
    reads, writes = os.pipe()
    os.close(reads)
    gone = subprocess.run(shlex.split(found[3]), cwd=folder, stdout=writes, stderr=writes, timeout=FAR)
    os.close(writes)
    assert gone.returncode == 141 and saved_steps(folder) == steps
