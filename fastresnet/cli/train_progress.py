"""How a training shows itself: what it is about to do, a line an epoch, and what came of it."""

from __future__ import annotations

import shlex
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import typer

from fastresnet.cli.progress import shown_progress
from fastresnet.engine.listener import Listener, RunInfo
from fastresnet.run import RunResult

LONG_RUN_S = 600.0  # a run that will take longer says so, and names a shorter one
LIVE_EVERY_S = 0.5  # on a terminal
PRINT_EVERY_S = 20.0  # elsewhere


def command(*arguments: str) -> str:
    """Return a command line of ours that works as typed from here: by the path this process was started by."""
    started_by = Path(sys.argv[0])
    if started_by.name == "__main__.py":
        own = [Path(sys.executable).name, "-m", "fastresnet"]
    else:
        path = started_by.absolute()
        near = path.is_relative_to(Path.cwd())
        on_path = str(started_by) == started_by.name
        own = [started_by.name if on_path else str(path.relative_to(Path.cwd()) if near else path)]
    return shlex.join([*own, *arguments])


def resume_command(run: str, runs_dir: Path) -> str:
    """Return the command that resumes a run."""
    where = [] if runs_dir == Path("runs") else ["--runs-dir", str(runs_dir)]
    return command("train", "--resume", run, *where)


def duration(seconds: float) -> str:
    """Return seconds in words: 12.3 s, 4 min 05 s, 2 h 10 min."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"


class LiveLine:
    """One line that is overwritten on a terminal, and printed now and then elsewhere."""

    def __init__(self) -> None:
        self.live = sys.stdout.isatty()
        self.shown = ""
        self.at = 0.0

    def show(self, text: str, now: bool = False) -> None:
        """Show ``text``, unless something was shown a moment ago and it need not be ``now``."""
        since = time.monotonic() - self.at
        if self.live and (now or since > LIVE_EVERY_S):
            sys.stdout.write(f"\r\x1b[K{text}")
            sys.stdout.flush()
        elif not self.live and since > PRINT_EVERY_S and self.at:
            typer.echo(text)
        elif self.at:
            return
        self.shown, self.at = text, time.monotonic()

    def clear(self) -> None:
        """Make room for a whole line."""
        if self.live and self.shown:
            sys.stdout.write("\r\x1b[K")
            sys.stdout.flush()
        self.shown = ""


class TrainProgress(Listener):
    """Prints a training's progress."""

    def __init__(self) -> None:
        self.line = LiveLine()
        self.info: RunInfo | None = None
        self._data = ExitStack()
        self._show_data: Callable[[str, int, int], None] | None = None

    def close(self) -> None:
        """Leave the terminal on a new line."""
        self.line.clear()
        self._data.close()
        self._show_data = None

    def _print(self, text: str) -> None:
        self.close()
        typer.echo(text)

    def on_data(self, doing: str, done: int, total: int) -> None:
        if self._show_data is None:
            self._show_data = self._data.enter_context(shown_progress())
        self._show_data(doing, done, total)

    def on_phase(self, text: str) -> None:
        self.close()
        if self.line.live:
            self.line.show(f"{text} ...", now=True)

    def on_notice(self, text: str) -> None:
        self._print(f"note: {text}")

    def on_start(self, info: RunInfo) -> None:
        self.info = info
        recipe, config, data = info.recipe, info.config, info.dataset
        self._print(
            f"arch     {recipe.arch}: {info.num_params:,} parameters, {info.multiply_adds:,} multiply-adds"
        )
        val = f", {data['num_val']:,} val" if "num_val" in data else ""
        self._print(
            f"data     {data['name']}: {data['num_train']:,} train{val}, {data['num_test']:,} test, "
            f"{len(data['class_names'])} classes, {data['image_size']}x{data['image_size']}"
        )
        self._print(
            f"recipe   {recipe.name}: {recipe.epochs} epochs of {info.steps_per_epoch} steps of "
            f"{recipe.batch_size}, {recipe.optimizer.name} lr {recipe.optimizer.lr:g}, seed {config.seed}"
        )
        self._print(
            f"device   {info.device_name} ({config.device}, {config.threads} threads), loader {config.loader}, "
            f"amp {config.amp}, compile {config.compile} ({info.compile_reason}), kernels {config.kernels}"
        )
        self._print(f"run      {info.path}")
        if info.resumed_at:
            epoch, step = info.resumed_at
            self._print(f"resuming in epoch {epoch + 1}, after {step} of its {info.steps_per_epoch} steps")
        left_s = info.steps_left * info.epoch_s / info.steps_per_epoch
        speed = info.steps_per_epoch * recipe.batch_size / info.epoch_s
        self._print(
            f"estimate {duration(left_s)} of training at {speed:,.0f} img/s, as measured over a few warm-up steps"
        )
        if left_s > LONG_RUN_S:
            self._print(self._shorter(info))

    def _shorter(self, info: RunInfo) -> str:
        """Return a line that names a run of under ten minutes: fewer epochs, or the smallest network."""
        fitting = int(LONG_RUN_S // info.epoch_s)
        args = [("--arch", info.recipe.arch), ("--epochs", str(min(fitting, info.recipe.epochs)))]
        if fitting < 2:
            args = [("--arch", "resnet8"), ("--epochs", "8")]
        if info.config.data:
            args.append(("--data", info.config.data))
        shorter = command("train", *(part for pair in args for part in pair))
        return f"this will take over ten minutes; a shorter one: {shorter}"

    def on_step(self, epoch: int, epoch_step: int, steps_per_epoch: int, images_per_s: float) -> None:
        if time.monotonic() - self.line.at < LIVE_EVERY_S or self.info is None:
            return
        recipe = self.info.recipe
        steps_left = (recipe.epochs - epoch) * steps_per_epoch - epoch_step
        left = duration(steps_left * recipe.batch_size / max(images_per_s, 1e-9))
        self.line.show(
            f"epoch {epoch + 1}/{recipe.epochs}  step {epoch_step}/{steps_per_epoch}  "
            f"{images_per_s:,.0f} img/s  {left} left"
        )

    def on_epoch(self, row: dict[str, Any]) -> None:
        assert self.info is not None
        self._print(epoch_line(row, self.info.recipe.epochs, self.info.dataset))


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
    data, best, clocks = result.dataset["name"], result.best, result.clocks
    builtin = " (drawn images, not photographs)" if result.dataset["is_builtin"] else ""
    on = f"{data}{builtin}"
    typer.echo(
        f"test accuracy on {on}: {result.test_accuracy:.4f} (loss {result.test_loss:.4f}), last epoch, no TTA"
    )
    if result.test_accuracy_tta is not None:
        typer.echo(f"test accuracy on {on} with flip TTA: {result.test_accuracy_tta:.4f}")
    split = best["chosen_on"]
    chosen = "the test set itself, so it flatters" if split == "test" else "the validation split"
    of_test = f", test {best['test_accuracy']:.4f}" if split != "test" else ""
    typer.echo(
        f"best {split} accuracy on {on}: {best['accuracy']:.4f}{of_test}, at epoch {best['epoch']}, chosen on {chosen}"
    )
    typer.echo(
        f"times    train {duration(clocks.train_s)}, final evaluation {duration(clocks.eval_s)}; not counted: data "
        f"{duration(clocks.data_s)}, build {duration(clocks.build_s)}, warm-up and compile "
        f"{duration(clocks.compile_s)}, evaluations and checkpoints between {duration(clocks.between_s)}"
    )
    if result.config.target is not None:
        reached = clocks.time_to_target_s
        crossing = f"first reached after {duration(reached)}" if reached is not None else "not reached"
        typer.echo(f"target   {result.config.target:g} on {on}: {crossing} (chosen on {split})")
    typer.echo(f"run      {result.path}")
    where = [] if runs_dir == Path("runs") else ["--runs-dir", str(runs_dir)]
    typer.echo(f"next     {command('eval', result.run.rsplit('-', 1)[-1], *where)}")
