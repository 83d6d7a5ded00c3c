"""``fastresnet train``: what it prints, and the command lines that it names."""

from __future__ import annotations

import json
import shlex
import sys
from pathlib import Path
from typing import Any

import pytest
from tiny_runs import ARCH, STEPS, TINY_TEST, only_run
from typed_commands import TINY, Command, error_of

from fastresnet.cli import train as train_command
from fastresnet.cli import train_progress
from fastresnet.engine.listener import RunInfo
from fastresnet.loaders.sources import shapes
from fastresnet.recipe import load_recipe
from fastresnet.report.facts import results_table
from fastresnet.report.records import read_run
from fastresnet.run import RunConfig


def test_a_training_tells_what_it_is_and_what_came_of_it(fastresnet: Command, data: Path, here: Path) -> None:
    code, out, err = fastresnet("train", *TINY, "--data", str(data), "--tta", "--target", "0.3")
    assert (code, err) == (0, "")
    lines = out.splitlines()
    run = only_run(here / "runs")
    result = json.loads((run / "result.json").read_text())
    assert lines[0].startswith(f"arch     {ARCH} with gelu for relu: 1,391 parameters, ")
    assert lines[1] == f"data     tiny: 100 train, {TINY_TEST} test, 3 classes, 8x8"
    assert (
        lines[2]
        == f"recipe   fast: 2 epochs of {STEPS} steps of 16, muon lr {load_recipe('fast').optimizer.lr:g}, seed 0"
    )
    assert (
        lines[3].startswith("device   ") and "loader numba, amp " in lines[3] and "compile off (" in lines[3]
    )
    assert lines[4] == (
        "step     kernels eager: the run is too short for measuring to pay; "
        "convs direct: no 3x3 convolution of stride 1 has channels in multiples of 16"
    )
    assert lines[5] == f"run      runs/{run.name}"
    assert lines[6].startswith("estimate ") and lines[6].endswith(" with evaluations, by a few warm-up steps")
    assert [line.split("  ")[0] for line in lines[7:9]] == ["epoch 1/2", "epoch 2/2"]
    accuracy, loss = result["test_accuracy"], result["test_loss"]
    assert lines[9] == f"test accuracy on tiny: {accuracy:.4f} (loss {loss:.4f}), last epoch, no TTA"
    assert lines[10] == f"test accuracy on tiny with flip TTA: {result['test_accuracy_tta']:.4f}"
    best = result["best"]
    assert lines[11] == (
        f"best test accuracy on tiny: {best['accuracy']:.4f}, at epoch {best['epoch']}, chosen on the test set "
        "itself, so it flatters"
    )
    assert lines[12].startswith("times    train ") and "not counted: data " in lines[12]
    assert lines[13].startswith("target   0.3 on tiny: first reached after ")
    assert lines[14] == f"run      runs/{run.name}"
    assert lines[15] == f"next     .venv/bin/fastresnet eval {run.name[-6:]}"
    assert len(lines) == 16

    # The line to type next gives the same figures.
    code, out, err = fastresnet(*shlex.split(lines[15].removeprefix("next     "))[1:], "--tta")
    assert (code, err) == (0, "")
    assert out.splitlines() == [
        f"run {run.name}, last weights, {TINY_TEST} test images of tiny",
        lines[9].replace(", last epoch", ""),
        lines[10],
    ]
    code, out, _ = fastresnet("eval", f"{run.name}:best", "--json", "--split", "train")
    assert json.loads(out)["num_samples"] == 100 and json.loads(out)["weights"] == "best"


def test_a_recipes_own_tta_is_the_one_that_is_done_and_named(
    fastresnet: Command, data: Path, here: Path
) -> None:
    recipe = load_recipe("fast").with_overrides({"tta": "flip-shift"})
    assert recipe.with_tta() is recipe
    text = (Path(train_command.__file__).parents[1] / "recipes" / "fast.toml").read_text()
    Path("mine.toml").write_text(text.replace('tta = "none"', 'tta = "flip-shift"'))
    code, out, err = fastresnet("train", "--recipe", "mine.toml", *TINY, "--data", str(data), "--tta")
    assert (code, err) == (0, "")
    (said,) = [line for line in out.splitlines() if " TTA: " in line]
    assert said.startswith("test accuracy on tiny with flip-shift TTA: 0.")
    _, out, _ = fastresnet("eval", "last", "--tta")
    assert said in out.splitlines()
    run = read_run("last", here / "runs")
    (row,) = [row for row in results_table(run).rows if row[0] == "test, flip-shift TTA"]
    assert row[3] == "mean over image and mirror, in place and moved by a pixel"


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
        "reasons": dict.fromkeys(("compile", "kernels", "convs", "graphs"), ""),
        "steps_per_epoch": 100,
        "steps_left": 100 * epochs,
        "image_sizes": (32,) * epochs,
        "step_s": {32: epoch_s / 100},
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
