"""``fastresnet train`` and ``eval``: what is printed, and one line for everything that is wrong."""

from __future__ import annotations

import json
import os
import resource
import shlex
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from tiny_runs import ARCH, BATCH, STEPS, TINY_TEST, StopAt, only_run, write_tiny

from fastresnet import training
from fastresnet.atomic import read_sealed_json, write_sealed_json
from fastresnet.cli import train as train_command
from fastresnet.cli import train_progress
from fastresnet.cli.main import main
from fastresnet.engine.checkpoint import BEST, LAST, PREVIOUS, load_last
from fastresnet.engine.fit import Interrupted
from fastresnet.engine.listener import RunInfo
from fastresnet.errors import UserError
from fastresnet.loaders.sources import download, shapes
from fastresnet.recipe import load_recipe
from fastresnet.run import RunConfig
from fastresnet.training import train

TINY = ("--arch", ARCH, "--batch-size", str(BATCH), "--threads", "1", "--device", "cpu", "--epochs", "2")

Command = Callable[..., tuple[int, str, str]]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder to run commands in."""
    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)
    # Nothing is downloaded: at this address nobody answers.
    monkeypatch.setattr(download, "URL", "http://127.0.0.1:9/cifar-10-python.tar.gz")
    return folder


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return write_tiny(tmp_path / "tiny.npz")


@pytest.fixture
def fastresnet(
    here: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> Iterator[Command]:
    """Run a command line in this process: ``fastresnet("train", ...)`` gives exit code, stdout, stderr."""
    handlers = {signum: signal.getsignal(signum) for signum in (signal.SIGINT, signal.SIGTERM)}

    def command(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", [str(here / ".venv" / "bin" / "fastresnet"), *arguments])
        capfd.readouterr()
        with pytest.raises(SystemExit) as stop:
            main()
        shown = capfd.readouterr()
        return int(stop.value.code or 0), shown.out, shown.err

    yield command
    for signum, handler in handlers.items():
        signal.signal(signum, handler)


def error_of(shown: tuple[int, str, str]) -> str:
    """Return the one line that a refused command says, having made sure that it is one, and all."""
    code, out, err = shown
    assert code == 2, shown
    assert out == "" and err.startswith("fastresnet: error: ") and err.count("\n") == 1, shown
    assert "Traceback" not in err
    return err.removeprefix("fastresnet: error: ").rstrip("\n")


# What it prints


def test_a_training_tells_what_it_is_and_what_came_of_it(fastresnet: Command, data: Path, here: Path) -> None:
    code, out, err = fastresnet("train", *TINY, "--data", str(data), "--tta", "--target", "0.3")
    assert (code, err) == (0, "")
    lines = out.splitlines()
    run = only_run(here / "runs")
    result = json.loads((run / "result.json").read_text())
    assert lines[0].startswith(f"arch     {ARCH}: 1,391 parameters, ")
    assert lines[1] == f"data     tiny: 100 train, {TINY_TEST} test, 3 classes, 8x8"
    assert (
        lines[2]
        == f"recipe   fast: 2 epochs of {STEPS} steps of 16, sgdn lr {load_recipe('fast').optimizer.lr:g}, seed 0"
    )
    assert (
        lines[3].startswith("device   ") and "loader numba, amp " in lines[3] and "compile off (" in lines[3]
    )
    assert lines[4] == f"run      runs/{run.name}"
    assert lines[5].startswith("estimate ") and lines[5].endswith(" with evaluations, by a few warm-up steps")
    assert [line.split("  ")[0] for line in lines[6:8]] == ["epoch 1/2", "epoch 2/2"]
    accuracy, loss = result["test_accuracy"], result["test_loss"]
    assert lines[8] == f"test accuracy on tiny: {accuracy:.4f} (loss {loss:.4f}), last epoch, no TTA"
    assert lines[9] == f"test accuracy on tiny with flip TTA: {result['test_accuracy_tta']:.4f}"
    best = result["best"]
    assert lines[10] == (
        f"best test accuracy on tiny: {best['accuracy']:.4f}, at epoch {best['epoch']}, chosen on the test set "
        "itself, so it flatters"
    )
    assert lines[11].startswith("times    train ") and "not counted: data " in lines[11]
    assert lines[12].startswith("target   0.3 on tiny: first reached after ")
    assert lines[13] == f"run      runs/{run.name}"
    assert lines[14] == f"next     .venv/bin/fastresnet eval {run.name[-6:]}"
    assert len(lines) == 15

    # The line to type next gives the same figures.
    code, out, err = fastresnet(*shlex.split(lines[14].removeprefix("next     "))[1:], "--tta")
    assert (code, err) == (0, "")
    assert out.splitlines() == [
        f"run {run.name}, last weights, {TINY_TEST} test images of tiny",
        lines[8].replace(", last epoch", ""),
        lines[9],
    ]
    code, out, _ = fastresnet("eval", f"{run.name}:best", "--json", "--split", "train")
    assert json.loads(out)["num_samples"] == 100 and json.loads(out)["weights"] == "best"


def test_the_best_is_said_to_be_chosen_on_validation(fastresnet: Command, data: Path) -> None:
    _, out, _ = fastresnet("train", *TINY, "--data", str(data), "--val", "30", "--target", "1.0")
    assert ": 70 train, 30 val, 300 test" in out
    (best,) = [line for line in out.splitlines() if line.startswith("best")]
    assert best.startswith("best val accuracy on tiny: ") and ", test 0." in best
    assert best.endswith("chosen on the validation split")
    assert "target   1 on tiny: not reached (chosen on val)" in out


def small_shapes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shapes, "COUNTS", {"train": 80, "test": 20})


def test_without_data_or_network_it_trains_on_shapes_and_every_accuracy_says_so(
    fastresnet: Command, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small_shapes(monkeypatch)
    monkeypatch.setattr(train_command, "_default_arch", lambda *_: {"arch": ARCH, "epochs": 1})
    code, out, _ = fastresnet("train", "--batch-size", "16", "--tta", "--threads", "1")
    assert code == 0, out
    lines = out.splitlines()
    assert lines[0] == lines[3] == "!" * 78
    assert lines[1].startswith("! CIFAR-10 is not in ") and "could not be downloaded" in lines[1]
    assert "refused" in lines[1]
    assert "--data cifar-10-python.tar.gz" in lines[1]
    assert lines[2].startswith("! Training on 'shapes' now, the built-in set of drawn images.")
    spoken = [line for line in lines if "accuracy on shapes" in line or "  test " in line]
    assert len(spoken) == 4
    for line in spoken:
        assert "shapes" in line, line
    assert sum("(drawn images, not photographs)" in line for line in spoken) == 3
    code, out, _ = fastresnet("eval", "last")
    assert "accuracy on shapes (drawn images, not photographs): " in out


@pytest.mark.parametrize(
    "named",
    [("--arch", ARCH), ("--recipe", "fast"), ("--target", "0.9"), ("--set", f"arch={ARCH}")],
    ids=["arch", "recipe", "target", "set"],
)
def test_a_run_that_names_something_does_not_fall_back(
    named: tuple[str, str], fastresnet: Command, here: Path
) -> None:
    message = error_of(fastresnet("train", *named))
    assert (
        message.startswith("CIFAR-10 is not in ")
        and "or train on the built-in images with --data shapes" in message
    )
    assert list(here.iterdir()) == []


@pytest.mark.parametrize("command", ["train", "eval", "recipes", "archs", "doctor", "data"])
def test_help_of_every_command(command: str, fastresnet: Command) -> None:
    code, out, err = fastresnet(command, "--help")
    assert (code, err) == (0, "") and f"fastresnet {command} " in out.splitlines()[0]
    if command == "train":
        for option in ("--resume RUN", "--init-from RUN[:best]", "--save-every", "--set KEY=VALUE", "--val"):
            assert option in out


# What is wrong: one line, exit code 2, nothing made

MISTAKES = {
    "arch": (["--arch", "resnet25"], r"unknown architecture 'resnet25'; did you mean 'resnet\d+'"),
    "recipe": (["--recipe", "fsat"], "unknown recipe 'fsat'; did you mean 'fast'?"),
    "option": (["--archh", "resnet8"], "No such option: --archh"),
    "key": (["--set", "optimizer.lrr=1"], "unknown key 'optimizer.lrr'; did you mean 'lr'?"),
    "no equals": (["--set", "optimizer.lr"], "--set 'optimizer.lr' has no '='; write --set KEY=VALUE"),
    "value": (["--set", "optimizer.lr=fast"], "optimizer.lr is 'fast'"),
    "epochs 0": (["--epochs", "0"], "epochs is 0"),
    "epochs word": (["--epochs", "ten"], "Invalid value for '--epochs': "),
    "batch 0": (["--batch-size", "0"], "batch_size is 0"),
    "lengths": (["--arch", "n3-b2,2-c8"], "slug 'n3-b2,2-c8': b has 2 values for n3"),
    "pool": (["--arch", "n2-b1-c4-p9"], "pool (P) is 9 and the last map of 8x8 images is 4x4"),
    "loader": (["--loader", "numbaa"], "unknown loader 'numbaa'; did you mean 'numba'"),
    "amp": (["--amp", "bf61"], "amp is 'bf61': it must be 'auto', 'bf16', 'fp16' or 'off'; did you mean 'bf16'?"),
    "fp16 on a cpu": (["--amp", "fp16", "--device", "cpu"], "--amp fp16 needs a GPU"),
    "compile": (["--compile", "maybe"], "compile is 'maybe': it must be 'auto', 'on', 'whole' or 'off'"),
    "device": (["--device", "tpu"], "device is 'tpu': it must be auto, cpu, cuda or cuda:N"),
    "target": (["--target", "94"], "target is 94.0: input should be less than or equal to 1"),
    "seed": (["--seed", "-1"], "seed is -1"),
    "save-every": (["--save-every", "0"], "save-every is 0.0"),
    "val": (["--val", "100"], "cannot hold out 100 of 100 train images; choose between 1 and 99"),
    "limit": (["--limit-train", "101"], "cannot use 101 of 100 images"),
    "too few": (["--batch-size", "101"], "batch size 101 exceeds the 100 training images"),
    "machine": (["--allow-different-machine"], "--allow-different-machine goes with --resume RUN"),
    "init-from": (["--init-from", "last"], "no run 'last': runs holds no runs"),
    "resume": (["--resume", "0a1b2c"], "no run '0a1b2c': runs holds no runs"),
    "argument": (["resnet8"], "resnet8"),
}  # fmt: skip


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_one_line_and_makes_nothing(
    name: str, fastresnet: Command, data: Path, here: Path
) -> None:
    arguments, expected = MISTAKES[name]
    given = list(TINY)
    for option in arguments[::2]:
        if option in given:
            del given[given.index(option) : given.index(option) + 2]
    if name == "resume":
        given = []
    source = [] if name == "resume" else ["--data", str(data)]
    message = error_of(fastresnet("train", *given, *source, *arguments))
    if name == "arch":
        import re

        assert re.match(expected, message)
    else:
        assert expected in message, message
    assert list(here.iterdir()) == []


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (lambda path: None, "no such data: "),
        (lambda path: path.mkdir(), " has neither"),
        (lambda path: path.write_bytes(b""), "cannot tell from its name what "),
    ],
    ids=["missing", "empty folder", "unknown file"],
)
def test_data_that_is_none_is_one_line(
    make: Callable[[Path], Any], expected: str, fastresnet: Command, here: Path, tmp_path: Path
) -> None:
    path = tmp_path / "photos"
    make(path)
    message = error_of(fastresnet("train", *TINY, "--data", str(path)))
    assert str(path) in message
    assert expected.strip() in message or expected == " has neither"
    assert list(here.iterdir()) == []


def test_a_recipe_file_is_read_and_its_mistakes_have_a_line(
    fastresnet: Command, data: Path, here: Path, tmp_path: Path
) -> None:
    file = tmp_path / "mine.toml"
    text = (
        'name = "mine"\narch = "n2-b1-c4"\nepochs = 1\nbatch_size = 16\n\n[optimizer]\nname = "sgd"\nlr = 0.1\n\n'
        '[schedule]\nname = "constant"\n'
    )
    for wrong, line, expected in (
        (text.replace("lr = 0.1", "lrr = 0.1"), 8, "unknown key 'optimizer.lrr'; did you mean 'lr'"),
        (text.replace("lr = 0.1", "lr = -1"), 8, "optimizer.lr is -1"),
        (
            text.replace('"constant"', '"constnat"'),
            11,
            "schedule.name is 'constnat'; did you mean 'constant'",
        ),
        (text.replace("epochs = 1", "epochs = 0"), 3, "epochs is 0"),
    ):
        file.write_text(wrong)
        message = error_of(fastresnet("train", "--recipe", str(file), "--data", str(data)))
        assert message.startswith(f"{file}:{line}: {expected}"), message
    file.write_text("epochs = = 1")
    assert error_of(fastresnet("train", "--recipe", str(file))).startswith(f"{file}: not TOML: ")
    missing = str(tmp_path / "missing.toml")
    assert error_of(fastresnet("train", "--recipe", missing)).startswith(f"cannot read recipe {missing}: ")
    assert list(here.iterdir()) == []

    file.write_text(text)
    code, out, _ = fastresnet("train", "--recipe", str(file), "--data", str(data), "--threads", "1")
    assert code == 0 and "-n2-b1-c4-mine-" in out
    recorded = read_sealed_json(only_run(here / "runs") / "config.json")["recipe_file"]
    assert recorded["path"] == str(file)


# A run that cannot go on


@pytest.fixture
def stopped(data: Path, here: Path) -> Path:
    """A run that was stopped in its second epoch, in ``runs``."""
    recipe = load_recipe("fast").with_overrides({"arch": ARCH, "epochs": 3, "batch_size": BATCH})
    config = RunConfig.parse(data=str(data), device="cpu", threads=1, save_every_s=1e-9)
    with pytest.raises(Interrupted):
        train(recipe, config, runs_dir="runs", listener=StopAt(STEPS + 1))
    return only_run(here / "runs")


SCIENCE = [
    ["--arch", ARCH], ["--recipe", "fast"], ["--epochs", "3"], ["--batch-size", "16"], ["--tta"], ["--no-tta"],
    ["--set", "optimizer.lr=1"], ["--seed", "0"], ["--image-size", "8"], ["--val", "0"], ["--limit-train", "9"],
    ["--target", "0.9"], ["--init-from", "last"], ["--device", "cpu"], ["--loader", "numba"], ["--workers", "1"],
    ["--amp", "off"], ["--compile", "off"], ["--kernels", "eager"], ["--graphs", "off"], ["--threads", "1"],
    ["--deterministic"], ["--eval-every", "1"],
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
    monkeypatch.setattr(training, "open_data", stop)
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


# A disk that is full, a folder that cannot be written


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


# Nan, and time


def test_a_loss_that_is_nan_is_one_line_that_names_the_step(
    fastresnet: Command, data: Path, here: Path
) -> None:
    code, _, err = fastresnet("train", *TINY, "--data", str(data), "--set", "optimizer.lr=1e30")
    assert code == 2 and err.count("\n") == 1
    assert "is not finite at step " in err or "are not finite after step " in err
    run = only_run(here / "runs")
    assert f"the last good checkpoint in runs/{run.name} is kept" in err
    assert load_last(run)[0]["state"]["step"] == 0 and not (run / "result.json").exists()


def told(epoch_s: float, epochs: int, arch: str, **changes: Any) -> RunInfo:
    recipe = load_recipe("fast").with_overrides({"arch": arch, "epochs": epochs})
    spec = recipe.arch_spec()
    info = {
        "path": "runs/r",
        "recipe": recipe,
        "spec": spec,
        "config": RunConfig(),
        "dataset": {
            "name": "d",
            "class_names": list("abcdefghij"),
            "image_size": 32,
            "num_train": 50_000,
            "num_test": 10_000,
            "is_builtin": False,
        },
        "device_name": "cpu",
        "num_params": spec.num_params(),
        "multiply_adds": spec.num_multiply_adds(),
        "reasons": dict.fromkeys(("compile", "kernels", "graphs"), ""),
        "steps_per_epoch": 100,
        "steps_left": 100 * epochs,
        "epoch_s": epoch_s,
        "resumed_at": None,
    }
    return RunInfo(**info | changes)


@pytest.mark.parametrize(
    ("epoch_s", "arch", "expected"),
    [
        (40.0, "resnet24", ["--arch", "resnet24", "--epochs", "11"]),
        (400.0, "resnet24", ["--arch", "resnet8", "--epochs", "8"]),
        (20_000.0, "resnet24", ["--arch", "resnet8", "--epochs", "1", "--limit-train"]),
        (3000.0, ARCH, ["--arch", ARCH, "--epochs", "1", "--limit-train"]),
    ],
    ids=["fewer epochs", "a smaller network", "fewer images too", "already smaller"],
)
def test_a_long_run_names_a_shorter_one_that_works_as_typed(
    epoch_s: float,
    arch: str,
    expected: list[str],
    here: Path,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sys, "argv", ["/opt/it's here/fastresnet"])
    options = {"arch": arch, "epochs": 300, "set": ["a=1", "b=2"], "tta": False, "data": "my photos"}
    info = told(epoch_s, 300, arch)
    train_progress.TrainProgress(options).on_start(info)
    (line,) = [line for line in capfd.readouterr().out.splitlines() if "over ten minutes" in line]
    notice, command = line.split(": ", 1)
    assert notice == "this will take over ten minutes; a shorter one"
    words = shlex.split(command)
    assert words[:2] == ["/opt/it's here/fastresnet", "train"]
    given = iter(words)
    assert all(word in given for word in expected), words  # in this order
    for kept in (["--set", "a=1"], ["--set", "b=2"], ["--no-tta"], ["--data", "my photos"]):
        assert any(words[at : at + len(kept)] == kept for at in range(len(words))), kept
    # It is a command, and by the same measure takes less than ten minutes.
    shorter = {**{"arch": arch, "limit_train": 50_000}, **train_progress.shorter(info)}
    per_image = told(1, 1, shorter["arch"]).multiply_adds / info.multiply_adds
    assert shorter["epochs"] * epoch_s * per_image * shorter["limit_train"] / 50_000 < 600
    assert "--epochs" in words and words.count("--epochs") == 1


def test_a_long_run_that_goes_on_is_not_told_to_be_another(
    here: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    train_progress.TrainProgress().on_start(told(40.0, 300, "resnet24", resumed_at=(3, 5)))
    out = capfd.readouterr().out
    assert "this will take over ten minutes; Ctrl-C saves it, and says how to go on\n" in out
    train_progress.TrainProgress().on_start(told(1.0, 300, "resnet24"))
    assert "over ten minutes" not in capfd.readouterr().out


def test_a_command_is_named_as_it_can_be_typed(
    here: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = here / "bin" / "fastresnet"
    program.parent.mkdir()
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", "/usr/bin")
    monkeypatch.setattr(sys, "argv", [str(program)])
    assert train_progress.command("eval", "a b") == "bin/fastresnet eval 'a b'"
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert train_progress.command("eval") == f"{program} eval"
    monkeypatch.setenv("PATH", f"/usr/bin:{program.parent}")
    assert train_progress.command("eval") == "fastresnet eval"
    monkeypatch.setattr(sys, "argv", [str(tmp_path / "fastresnet" / "__main__.py")])
    assert train_progress.command("eval").endswith(" -m fastresnet eval")
    assert train_progress.on_run("train --resume", "1a2b", Path("my runs")).endswith(
        " train --resume 1a2b --runs-dir 'my runs'"
    )


def test_out_of_memory_is_one_line(
    fastresnet: Command, data: Path, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    from fastresnet.engine.step import TrainStep

    def fail(self: TrainStep, *args: Any) -> Any:
        raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")

    monkeypatch.setattr(TrainStep, "forward_eager", fail)
    message = error_of(fastresnet("train", *TINY, "--data", str(data)))
    assert message == (
        f"the GPU's memory is too small for this training; give a smaller --batch-size than {BATCH}, or a "
        f"narrower --arch than {ARCH}"
    )
    assert list(here.iterdir()) == []


def test_errors_reach_the_user_as_one_line_whatever_they_hold(
    fastresnet: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    from fastresnet import recipe

    def fail(name: str) -> Any:
        raise UserError("one\n  two\tthree")

    monkeypatch.setattr(recipe, "load_recipe", fail)
    assert error_of(fastresnet("train", "--arch", ARCH)) == "one two three"
