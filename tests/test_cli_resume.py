"""``--resume``, ``--init-from`` and ``eval`` as typed: what goes on, what is refused, disks that are full."""

from __future__ import annotations

import os
import resource
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from tiny_runs import ARCH, STEPS, only_run, write_tiny
from typed_commands import TINY, Command, error_of

from fastresnet import training_run
from fastresnet.atomic import read_sealed_json, write_sealed_json
from fastresnet.engine.checkpoint import BEST, LAST, PREVIOUS

SCIENCE = [
    ["--arch", ARCH], ["--recipe", "fast"], ["--epochs", "3"], ["--batch-size", "16"], ["--tta"], ["--no-tta"],
    ["--set", "optimizer.lr=1"], ["--seed", "0"], ["--image-size", "8"], ["--val", "0"], ["--limit-train", "9"],
    ["--target", "0.9"], ["--init-from", "last"], ["--device", "cpu"], ["--loader", "numba"], ["--workers", "1"],
    ["--amp", "off"], ["--compile", "off"], ["--kernels", "eager"], ["--convs", "direct"], ["--graphs", "off"],
    ["--threads", "1"],
    ["--deterministic"],
    ["--eval-every", "1"],
]  # fmt: skip


@pytest.mark.parametrize("arguments", SCIENCE, ids=lambda arguments: arguments[0])
def test_resuming_takes_no_change(arguments: list[str], fastresnet: Command, here: Path) -> None:
    message = error_of(fastresnet("train", "--resume", "last", *arguments))
    option = arguments[0].replace("--no-tta", "--tta")
    assert message.startswith(f"{option} cannot be changed on --resume"), message
    assert "--init-from RUN" in message


def test_a_stopped_run_goes_on(fastresnet: Command, stopped: Path) -> None:
    code, out, err = fastresnet("train", "--resume", stopped.name[-6:], "--save-every", "7")
    assert (code, err) == (0, "")
    assert "compile off (as the run began)" in out
    assert f"resuming in epoch 2, after 1 of its {STEPS} steps" in out
    assert [line[:9] for line in out.splitlines() if line.startswith("epoch")] == ["epoch 2/3", "epoch 3/3"]
    code, out, _ = fastresnet("train", "--resume", str(stopped))
    assert code == 0 and out.startswith(f"note: run {stopped.name} is complete; this is its result\n")


def test_stopped_before_its_first_step_a_run_that_goes_on_says_how(
    fastresnet: Command, stopped: Path, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*arguments: Any) -> Any:
        signal.raise_signal(signal.SIGINT)

    before = (stopped / LAST).read_bytes()
    monkeypatch.setattr(training_run, "open_data", stop)
    code, out, err = fastresnet("train", "--resume", "last")
    assert (code, err) == (130, "")
    assert out.splitlines() == [
        "stopped by SIGINT; the last checkpoint is kept; to go on:",
        f"  .venv/bin/fastresnet train --resume {stopped.name[-6:]}",
    ]
    # A new run has nothing to go on from.
    code, out, err = fastresnet("train", *TINY, "--data", str(data))
    assert (code, out) == (130, "")
    assert err == "fastresnet: stopped by SIGINT; nothing was left half-written\n"
    monkeypatch.undo()
    assert (stopped / LAST).read_bytes() == before


def test_a_run_that_is_damaged_is_one_line(fastresnet: Command, stopped: Path) -> None:
    whole = {path.name: path.read_bytes() for path in stopped.iterdir()}
    for names, expected in (
        ((LAST, PREVIOUS), f"runs/{stopped.name} has no whole checkpoint: "),
        (("config.json",), f"runs/{stopped.name}/config.json is torn or was altered"),
        (("events.jsonl",), f"runs/{stopped.name}/events.jsonl was altered"),
    ):
        for name in names:
            (stopped / name).write_bytes(whole[name][:-5])
        before = {path.name: path.read_bytes() for path in stopped.iterdir()}
        assert error_of(fastresnet("train", "--resume", "last")).startswith(expected)
        assert before == {path.name: path.read_bytes() for path in stopped.iterdir()} | {
            "lock": before["lock"]
        }
        for name in names:
            (stopped / name).write_bytes(whole[name])
    # A torn last one costs steps, and is named.
    (stopped / LAST).write_bytes(whole[LAST][:-5])
    code, out, _ = fastresnet("train", "--resume", "last")
    assert code == 0 and f"note: runs/{stopped.name}/last.safetensors is torn or was altered" in out
    (stopped / BEST).write_bytes(whole[BEST][:-5])
    assert f"runs/{stopped.name}/best.safetensors is torn" in error_of(fastresnet("eval", "last:best"))


def test_a_run_of_another_network_or_machine_is_one_line(
    fastresnet: Command, stopped: Path, data: Path, here: Path
) -> None:
    message = error_of(
        fastresnet(
            "train",
            "--arch",
            "n2-b1-c6",
            "--batch-size",
            "16",
            "--data",
            str(data),
            "--init-from",
            "last:best",
        )
    )
    assert f"the weights of run {stopped.name} are of another network ({ARCH})" in message
    assert only_run(here / "runs") == stopped
    content = read_sealed_json(stopped / "config.json")
    content["environment"] |= {"torch": "2.0.0"}
    write_sealed_json(stopped / "config.json", content)
    message = error_of(fastresnet("train", "--resume", "last"))
    assert "torch was '2.0.0' and is '" in message and "--allow-different-machine" in message
    code, out, _ = fastresnet("train", "--resume", "last", "--allow-different-machine")
    assert code == 0 and "epoch 3/3" in out


def test_weights_go_on_in_the_network_they_were_trained_in(
    fastresnet: Command, stopped: Path, data: Path
) -> None:
    """``fast`` changes an arch's activation, which no tensor's shape tells."""
    own = ("--batch-size", "16", "--epochs", "1", "--threads", "1", "--device", "cpu", "--data", str(data))
    code, out, _ = fastresnet(
        "train", *own, "--arch", ARCH, "--set", "activation=none", "--init-from", "last"
    )
    assert code == 0 and f"note: the weights of run {stopped.name} were trained with gelu" in out
    assert "this network has relu; --set activation=gelu trains them on as they were" in out
    code, out, _ = fastresnet("train", *own, "--init-from", "last")  # that one's arch, which has ReLU
    assert code == 0 and f"arch     {ARCH}: " in out and "were trained with" not in out


def test_data_that_changed_is_one_line(
    fastresnet: Command, stopped: Path, data: Path, tmp_path: Path
) -> None:
    write_tiny(data, first=7)
    assert "the data has changed since this run began" in error_of(fastresnet("train", "--resume", "last"))
    assert "has changed since the run was trained on it" in error_of(fastresnet("eval", "last"))
    data.unlink()
    assert "say where to with --data" in error_of(fastresnet("train", "--resume", "last"))
    moved = write_tiny(tmp_path / "moved.npz")
    code, _, _ = fastresnet("train", "--resume", "last", "--data", str(moved))
    assert code == 0


def test_evaluating_on_other_data(fastresnet: Command, stopped: Path, tmp_path: Path) -> None:
    """Another test set, smaller than what the run held out, and of another size."""
    import numpy as np
    from made_data import write_npz

    small = write_npz(tmp_path / "small.npz")  # 32x32; the run was trained at 8x8
    code, out, _ = fastresnet("eval", "last", "--data", str(small))
    assert code == 0 and "12 test images of small" in out
    renamed = write_npz(tmp_path / "renamed.npz", class_names=np.array(["a", "b", "c"]))
    message = error_of(fastresnet("eval", "last", "--data", str(renamed)))
    assert "renamed has the classes a, b, c, and the run was trained on ant, bee, cat" in message
    message = error_of(fastresnet("eval", "last", "--split", "val"))
    assert message == "this run has no 'val' split; it has train, test"
    assert "must be auto, cpu, cuda or cuda:N" in error_of(fastresnet("eval", "last", "--device", "tpu"))


@contextmanager
def small_files(size: int) -> Iterator[None]:
    """Let no file grow past ``size`` bytes, as on a full disk; pytest's own log may be such a file afterwards."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_disk_that_is_full_when_a_run_is_made(fastresnet: Command, data: Path, here: Path) -> None:
    fastresnet("train", *TINY, "--data", str(data), "--runs-dir", "packed")
    with small_files(5_000):
        code, _, err = fastresnet("train", *TINY, "--data", str(data))
    assert code == 2 and err.count("\n") == 1
    assert "cannot write runs/" in err and "next.safetensors: File too large" in err
    assert list((here / "runs").iterdir()) == []


def test_a_disk_that_is_full_while_saving(fastresnet: Command, stopped: Path) -> None:
    before = {path.name: path.read_bytes() for path in stopped.iterdir()}
    with small_files(5_000):
        code, _, err = fastresnet("train", "--resume", "last", "--save-every", "0.000001")
    assert code == 2 and err.count("\n") == 1 and f"cannot write runs/{stopped.name}/next.safetensors" in err
    after = {path.name: path.read_bytes() for path in stopped.iterdir()}
    for name in (LAST, PREVIOUS, "events.jsonl"):
        assert after[name] == before[name]
    assert after.keys() == before.keys()
    code, out, _ = fastresnet("train", "--resume", "last")
    assert code == 0 and f"resuming in epoch 2, after 1 of its {STEPS} steps" in out


def test_a_place_where_no_run_can_be_made(fastresnet: Command, data: Path, here: Path) -> None:
    (here / "file").write_text("")
    for runs_dir, expected in (
        ("/proc/runs", "cannot make a run folder in /proc/runs: "),
        ("file", "cannot make a run folder in file: "),
        ("file/runs", "cannot make a run folder in file/runs: "),
    ):
        message = error_of(fastresnet("train", *TINY, "--data", str(data), "--runs-dir", runs_dir))
        assert message.startswith(expected)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_run_that_may_only_be_read(fastresnet: Command, stopped: Path) -> None:
    stopped.chmod(0o555)
    (stopped / "lock").chmod(0o444)
    try:
        message = error_of(fastresnet("train", "--resume", "last"))
        assert message.startswith(f"cannot use the run folder runs/{stopped.name}: Permission denied")
        assert fastresnet("eval", "last")[0] == 0
    finally:
        stopped.chmod(0o755)
