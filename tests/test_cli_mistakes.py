"""One line and exit code 2 for what is wrong with a command line, and nothing made."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tiny_runs import ARCH, BATCH, only_run
from typed_commands import TINY, Command, error_of

from fastresnet.atomic import read_sealed_json
from fastresnet.engine.checkpoint import load_last
from fastresnet.errors import UserError

MISTAKES = {
    "arch": (["--arch", "resnet25"], "unknown architecture 'resnet25'; did you mean 'resnet24'?"),
    "recipe": (["--recipe", "fsat"], "unknown recipe 'fsat'; did you mean 'fast'?"),
    "option": (["--archh", "resnet8"], "No such option: --archh"),
    "key": (["--set", "optimizer.lrr=1"], "unknown key 'optimizer.lrr'; did you mean 'optimizer.lr'?"),
    "no equals": (["--set", "optimizer.lr"], "--set 'optimizer.lr' has no '='; write --set KEY=VALUE"),
    "value": (["--set", "optimizer.lr=fast"], "optimizer.lr is 'fast'; it must be a number"),
    "epochs 0": (["--epochs", "0"], "--epochs is 0; it must be at least 1"),
    "epochs word": (["--epochs", "ten"], "--epochs is 'ten'; it must be a whole number"),
    "batch 0": (["--batch-size", "0"], "--batch-size is 0; it must be at least 1"),
    "lengths": (["--arch", "n3-b2,2-c8"], "slug 'n3-b2,2-c8': b has 2 values for n3"),
    "pool": (["--arch", "n2-b1-c4-p9"], "pool (P) is 9 and the last map of 8x8 images is 4x4"),
    "loader": (["--loader", "numbaa"], "unknown loader 'numbaa'; did you mean 'numba'"),
    "amp": (["--amp", "bf61"], "--amp is 'bf61'; did you mean 'bf16'? (allowed: 'auto', 'bf16', 'fp16' or 'off')"),
    "fp16 on a cpu": (["--amp", "fp16", "--device", "cpu"], "--amp fp16 needs a GPU"),
    "amp that is near no choice": (["--amp", "on"], "--amp is 'on' (allowed: 'auto', 'bf16', 'fp16' or 'off')"),
    "compile": (["--compile", "maybe"], "--compile is 'maybe' (allowed: 'auto', 'on', 'whole' or 'off')"),
    "device": (["--device", "tpu"], "--device is 'tpu'; it must be auto, cpu, cuda or cuda:N"),
    "target": (["--target", "94"], "--target is 94.0; it must be at most 1"),
    "seed": (["--seed", "-1"], "--seed is -1; it must be at least 0"),
    "save-every": (["--save-every", "0"], "--save-every is 0.0; it must be above 0"),
    "workers": (["--workers", "-1"], "--workers is -1; it must be at least 0"),
    "target word": (["--target", "most"], "--target is 'most'; it must be a number"),
    "key of an option": (["--set", "drop_last=7"], "drop_last is 7; it must be true or false"),
    "option and key": (["--set", "epochs=3"], "--epochs and --set epochs both set epochs; give one of them"),
    "key twice": (
        ["--set", "val.samples=3", "--set", "val.samples=4"],
        "--set val.samples is given twice, as '3' and '4'; give it once",
    ),
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


def test_a_cache_that_cannot_be_written_is_named_by_its_variable(
    fastresnet: Command, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (file := tmp_path / "file").write_text("")
    monkeypatch.setenv("FASTRESNET_CACHE", str(file / "cache"))
    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR", raising=False)
    for command in (("train", *TINY, "--data", str(data)), ("data", "info", str(data))):
        message = error_of(fastresnet(*command))
        assert "Not a directory; set FASTRESNET_CACHE to a folder that can be written" in message


def test_a_recipe_file_is_read_and_its_mistakes_have_a_line(
    fastresnet: Command, data: Path, here: Path, tmp_path: Path
) -> None:
    file = tmp_path / "mine.toml"
    text = (
        'name = "mine"\narch = "n2-b1-c4"\nepochs = 1\nbatch_size = 16\n\n[optimizer]\nname = "sgd"\nlr = 0.1\n\n'
        '[schedule]\nname = "constant"\n'
    )
    for wrong, line, expected in (
        (
            text.replace("lr = 0.1", "lrr = 0.1"),
            8,
            "unknown key 'optimizer.lrr'; did you mean 'optimizer.lr'",
        ),
        (text.replace("lr = 0.1", "lr = -1"), 8, "optimizer.lr is -1"),
        (
            text.replace('"constant"', '"constnat"'),
            11,
            "schedule.name is 'constnat'; did you mean 'constant'",
        ),
        (text.replace("epochs = 1", "epochs = 0"), 3, "epochs is 0; it must be at least 1"),
    ):
        file.write_text(wrong)
        message = error_of(fastresnet("train", "--recipe", str(file), "--data", str(data)))
        assert message.startswith(f"{file}:{line}: {expected}"), message
    file.write_text("epochs = = 1")
    assert error_of(fastresnet("train", "--recipe", str(file))).startswith(f"{file}:1: not TOML: ")
    missing = str(tmp_path / "missing.toml")
    assert error_of(fastresnet("train", "--recipe", missing)).startswith(f"cannot read recipe {missing}: ")
    assert list(here.iterdir()) == []

    file.write_text(text)
    code, out, _ = fastresnet("train", "--recipe", str(file), "--data", str(data), "--threads", "1")
    assert code == 0 and "-n2-b1-c4-mine-" in out
    recorded = read_sealed_json(only_run(here / "runs") / "config.json")["recipe_file"]
    assert recorded["path"] == str(file)


def test_out_of_memory_is_one_line(
    fastresnet: Command, data: Path, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    from fastresnet.engine.step import TrainStep

    def fail(self: TrainStep, *args: Any, **options: Any) -> Any:
        raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")

    monkeypatch.setattr(TrainStep, "forward_eager", fail)
    message = error_of(fastresnet("train", *TINY, "--data", str(data)))
    assert message == (
        f"the GPU's memory is too small for this training; give a smaller batch size than {BATCH}, or a "
        f"narrower arch than {ARCH}"
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


def test_a_loss_that_is_nan_is_one_line_that_names_the_step(
    fastresnet: Command, data: Path, here: Path
) -> None:
    code, _, err = fastresnet("train", *TINY, "--data", str(data), "--set", "optimizer.lr=1e30")
    assert code == 2 and err.count("\n") == 1
    assert "is not finite at step " in err or "are not finite after step " in err
    run = only_run(here / "runs")
    assert f"the last good checkpoint in runs/{run.name} is kept" in err
    assert load_last(run)[0]["state"]["step"] == 0 and not (run / "result.json").exists()


def test_an_option_that_no_user_types_is_not_offered(fastresnet: Command) -> None:
    assert "No such option: --pare (Possible options: --name, --prune)" in error_of(
        fastresnet("sweep", "r1-c", "--pare", "1")
    )


def test_without_optuna_there_is_one_line() -> None:
    program = (
        "import sys; sys.modules['optuna'] = None\n"
        "from fastresnet.cli.main import main\nsys.argv[1:] = ['sweep', 'r1-c', '--data', 'shapes']\nmain()"
    )
    here = Path(sys.executable).parents[1]
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=here)
    assert done.returncode == 2
    assert done.stderr == (
        "fastresnet: error: a sweep needs Optuna, which is not installed: in the clone, "
        f"bin/{Path(sys.executable).name} -m pip install -c constraints.txt -e '.[sweep]'\n"
    )
