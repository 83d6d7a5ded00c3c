"""How a training shows itself: what it is about to do, a line an epoch, and what came of it."""

from __future__ import annotations

import itertools
import shlex
import shutil
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import typer

from fastresnet.arch import get_arch
from fastresnet.cli.output import Output
from fastresnet.cli.progress import shown_progress
from fastresnet.engine.listener import Listener, RunInfo
from fastresnet.run import RunResult, duration
from fastresnet.torchrun import read_launch
from fastresnet.words import counted, dataset_shown

LONG_RUN_S = 600.0  # a run that will take longer says so, and names a shorter one
SMALL_ARCH = "resnet8"


def command(*arguments: str) -> str:
    """Return a command line of ours that works as typed from here: by the path this process was started by."""
    started_by = Path(sys.argv[0])
    if started_by.name == "__main__.py":
        own = [_as_typed(Path(sys.executable)), "-m", "fastresnet"]
    else:
        own = [_as_typed(started_by)]
    return shlex.join([*own, *arguments])


def _as_typed(program: Path) -> str:
    """Return the shortest that finds ``program`` from here: its name on PATH, a relative path, or the whole."""
    found = shutil.which(program.name)
    path = program.absolute()
    if found and Path(found).absolute() == path:
        return program.name
    if not path.is_relative_to(Path.cwd()):
        return str(path)
    near = path.relative_to(Path.cwd())
    return str(near) if len(near.parts) > 1 else f"./{near}"


def on_run(name: str, run: str, runs_dir: Path) -> str:
    """Return the command line of ``fastresnet name ... run``, such as ``train --resume``."""
    where = [] if runs_dir == Path("runs") else ["--runs-dir", str(runs_dir)]
    launch = read_launch()
    if launch.world_size == 1 or not name.startswith("train"):
        return command(*name.split(), run, *where)
    # How several hosts find each other is not to be seen from here.
    several = launch.local_world_size < launch.world_size
    options = "OPTIONS" if several else f"--nproc-per-node {launch.world_size}"
    return f"torchrun {options} -m fastresnet {shlex.join([*name.split(), run, *where])}"


class TrainProgress(Listener):
    """Prints a training's progress.

    Args:
        options: what was given on the command line, by option, for naming another one like it.
    """

    def __init__(self, options: Mapping[str, Any] | None = None) -> None:
        self.options = dict(options or {})
        self.output = Output()
        self.info: RunInfo | None = None
        self._epochs_seen = 0
        self._between_s = 0.0
        self._stepped_at = 0.0
        self._data = ExitStack()
        self._show_data: Callable[[str, int, int], None] | None = None

    def close(self) -> None:
        """Leave the terminal on a new line."""
        self.output.clear()
        self._data.close()
        self._show_data = None

    def _print(self, text: str) -> None:
        self.close()
        self.output.print(text)

    def on_data(self, doing: str, done: int, total: int) -> None:
        if self._show_data is None:
            self._show_data = self._data.enter_context(shown_progress())
        self._show_data(doing, done, total)

    def on_phase(self, text: str) -> None:
        self.close()
        self.output.overwrite(f"{text} ...")

    def on_notice(self, text: str) -> None:
        self._print(f"note: {text}")

    def on_start(self, info: RunInfo) -> None:
        self.info = info
        recipe, config, data = info.recipe, info.config, info.dataset
        own = get_arch(recipe.arch).activation
        changed = f" with {info.spec.activation} for {own}" if info.spec.activation != own else ""
        self._print(
            f"arch     {recipe.arch}{changed}: {info.num_params:,} parameters, {info.multiply_adds:,} multiply-adds"
        )
        val = f", {data['num_val']:,} val" if "num_val" in data else ""
        self._print(
            f"data     {data['name']}: {data['num_train']:,} train{val}, {data['num_test']:,} test, "
            f"{len(data['class_names'])} classes, {data['image_size']}x{data['image_size']}"
        )
        self._print(
            f"recipe   {recipe.name}: {counted(recipe.epochs, 'epoch')} of {counted(info.steps_per_epoch, 'step')} of "
            f"{recipe.batch_size}, {recipe.optimizer.name} lr {recipe.optimizer.lr:g}, seed {config.seed}"
        )
        if recipe.resize:
            self._print(f"resize   {sizes_shown(info.image_sizes)}")
        ranks = f"{info.world_size} ranks of " if info.world_size > 1 else ""
        self._print(
            f"device   {info.device_name} ({config.device}, {ranks}{counted(config.threads, 'thread')}), "
            f"loader {config.loader}, amp {config.amp}, compile {config.compile} ({info.reasons['compile']}), "
            f"kernels {config.kernels}, convs {config.convs}, graphs {config.graphs}"
        )
        # where there was something to choose
        chosen = ("kernels", "convs") if config.device == "cpu" else ("kernels", "graphs")
        told = (f"{option} {getattr(config, option)}: {info.reasons[option]}" for option in chosen)
        self._print(f"step     {'; '.join(told)}")
        self._print(f"run      {info.path}")
        if info.resumed_at:
            epoch, step = info.resumed_at
            self._print(
                f"resuming in epoch {epoch + 1}, after {step} of its {counted(info.steps_per_epoch, 'step')}"
            )
        epoch, step = info.resumed_at or (0, 0)
        left_s = info.left_s(epoch, step)
        whole_s = left_s + (recipe.epochs - epoch) * info.evaluations_s
        batch_size = min(recipe.batch_size, data["num_train"])
        speed = info.steps_left * batch_size / max(left_s, 1e-9)
        self._print(
            f"estimate {duration(left_s)} of training at {speed:,.0f} img/s, {duration(whole_s)} with evaluations, "
            "by a few warm-up steps"
        )
        if whole_s > LONG_RUN_S:
            how = "Ctrl-C saves it, and says how to go on"
            if not info.resumed_at:
                how = f"a shorter one: {command('train', *_typed(self.options | shorter(info)))}"
            self._print(f"this will take over ten minutes; {how}")

    def on_step(self, epoch: int, epoch_step: int, steps_per_epoch: int, images_per_s: float) -> None:
        self._stepped_at = time.monotonic()
        if self.info is None or not self.output.is_due():
            return
        recipe = self.info.recipe
        # In proportion to what the warm-up measured, where later epochs have larger images.
        step_s = recipe.batch_size / max(images_per_s, 1e-9)
        left_s = self.info.left_s(epoch, epoch_step) * step_s / self.info.step_s[self.info.image_sizes[epoch]]
        if self._epochs_seen:
            left_s += (recipe.epochs - epoch) * self._between_s / self._epochs_seen
        left = duration(left_s)
        self.output.show(
            f"epoch {epoch + 1}/{recipe.epochs}  step {epoch_step}/{steps_per_epoch}  "
            f"{images_per_s:,.0f} img/s  {left} left"
        )

    def on_epoch(self, row: dict[str, Any]) -> None:
        assert self.info is not None
        if self._stepped_at:
            self._epochs_seen += 1
            self._between_s += time.monotonic() - self._stepped_at
        self._print(epoch_line(row, self.info.recipe.epochs, self.info.dataset))


def sizes_shown(image_sizes: Sequence[int]) -> str:
    """Return a run's sizes of images in words: ``24x24 for 2 epochs, then 32x32 for 1 epoch``."""
    runs = [(size, len(list(epochs))) for size, epochs in itertools.groupby(image_sizes)]
    return ", then ".join(f"{size}x{size} for {counted(count, 'epoch')}" for size, count in runs)


def shorter(info: RunInfo) -> dict[str, Any]:
    """Return the options that make a run of under ten minutes of ``info``'s.

    Fewer epochs; where not even two fit, a small network too; where not even one of it fits, fewer images. An epoch
    counts as one at full size: of a few, resizing may leave most so.
    """
    data, fitting_s = info.dataset, 0.8 * LONG_RUN_S
    epoch_s = info.full_epoch_s + info.evaluations_s
    if fitting_s >= 2 * epoch_s:
        return {"epochs": int(fitting_s // epoch_s)}
    options: dict[str, Any] = {}
    small = get_arch(SMALL_ARCH).num_multiply_adds(len(data["class_names"]), data["image_size"])
    if small < info.multiply_adds:
        options["arch"] = SMALL_ARCH
        epoch_s *= small / info.multiply_adds
    options["epochs"] = max(1, min(8, int(fitting_s // epoch_s)))
    if epoch_s > fitting_s:
        options["limit_train"] = max(1, int(data["num_train"] * fitting_s / epoch_s))
    return options


def _typed(options: Mapping[str, Any]) -> list[str]:
    """Return options as they are typed."""
    words: list[str] = []
    for name, value in options.items():
        option = f"--{name.replace('_', '-')}"
        if isinstance(value, bool):
            words.append(option if value else option.replace("--", "--no-", 1))
        else:
            values = value if isinstance(value, list) else [value]
            words += [word for each in values for word in (option, str(each))]
    return words


def epoch_line(row: dict[str, Any], num_epochs: int, dataset: dict[str, Any]) -> str:
    """Return an epoch's row as a line."""
    width = len(str(num_epochs))
    parts = [
        f"epoch {row['epoch']:>{width}}/{num_epochs}",
        f"loss {row['train_loss']:.4f}",
        f"train {row['train_accuracy']:.4f}",
    ]
    parts += [
        f"{name} {row[f'{name}_accuracy']:.4f}" for name in ("val", "test") if f"{name}_accuracy" in row
    ]
    parts.append(f"lr {row['lr']:.2g}")
    if row["clock"]["images_per_s"]:
        parts.append(f"{row['clock']['images_per_s']:,.0f} img/s")
    if dataset["is_builtin"]:
        parts.append(f"({dataset['name']})")
    return "  ".join(parts)


def show_result(result: RunResult, runs_dir: Path) -> None:
    """Print what came of a run, where it lies and what to type next."""
    best, clocks = result.best, result.clocks
    on = dataset_shown(result.dataset["name"], result.dataset["is_builtin"])
    split = best["chosen_on"]
    tuned = split == "test" and result.recipe["schedule"]["name"] == "plateau"
    typer.echo(
        f"test accuracy on {on}: {result.test_accuracy:.4f} (loss {_loss(result.test_loss)}), last epoch, no TTA"
        + (", the lr reduced by the test set itself, so it flatters" if tuned else "")
    )
    if result.test_accuracy_tta is not None:
        typer.echo(f"test accuracy on {on} with {result.recipe['tta']} TTA: {result.test_accuracy_tta:.4f}")
    chosen = "the test set itself, so it flatters" if split == "test" else "the validation split"
    of_test = f", test {best['test_accuracy']:.4f}" if split != "test" else ""
    typer.echo(
        f"best {split} accuracy on {on}: {best['accuracy']:.4f}{of_test}, at epoch {best['epoch']}, chosen on {chosen}"
    )
    initialisation = f"initialisation {duration(clocks.init_s)}, " if clocks.init_s else ""
    typer.echo(
        f"times    {initialisation}train {duration(clocks.train_s)}, final evaluation {duration(clocks.eval_s)}; "
        f"not counted: data {duration(clocks.data_s)}, build {duration(clocks.build_s)}, warm-up and compile "
        f"{duration(clocks.compile_s)}, evaluations and checkpoints between {duration(clocks.between_s)}"
    )
    if result.config.target is not None:
        reached = clocks.time_to_target_s
        crossing = f"first reached after {duration(reached)}" if reached is not None else "not reached"
        typer.echo(f"target   {result.config.target:g} on {on}: {crossing} (chosen on {split})")
    typer.echo(f"run      {result.path}")
    typer.echo(f"next     {on_run('eval', result.run.rsplit('-', 1)[-1], runs_dir)}")


def _loss(value: float | None) -> str:
    return "not finite" if value is None else f"{value:.4f}"
