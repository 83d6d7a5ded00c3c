"""``fastresnet sweep``."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from fastresnet.cli.options import (
    Amp,
    Compile,
    Data,
    DeviceIfTyped,
    ImageSize,
    LimitTrain,
    Loader,
    SaveEvery,
    Seed,
    SweepsDir,
)
from fastresnet.cli.typed import named_as_typed
from fastresnet.errors import UserError
from fastresnet.signals import Stopped
from fastresnet.sweep_store import PRUNE_FROM_CELLS, PRUNE_FROM_EPOCHS
from fastresnet.words import counted

if TYPE_CHECKING:
    from fastresnet.sweep import SweepOptions
    from fastresnet.sweep_spec import Sweep
    from fastresnet.sweep_worker import CellBroke

PARENT_LOOK_S = 0.5  # how often a worker looks whether the command that started it lives


def sweep(
    name: Annotated[
        str | None,
        typer.Argument(
            metavar="NAME", help="A sweep's name, or a TOML file of your own; without one, they are listed."
        ),
    ] = None,
    only_list: Annotated[
        bool, typer.Option("--list", "--dry-run", help="Show the cells and train nothing.")
    ] = False,
    print_file: Annotated[
        bool, typer.Option("--toml", help="Print its file, to write one of your own from.")
    ] = False,
    cells: Annotated[
        list[str] | None,
        typer.Option(
            metavar="KEY=VALUES",
            help="Only these cells, as in --cells C=2..64 or --cells C=2,4; repeated, all must hold.",
        ),
    ] = None,
    epochs: Annotated[
        int | None, typer.Option(help="Passes over the data, in place of the recipe's.")
    ] = None,
    seed: Seed = None,
    prune: Annotated[
        bool,
        typer.Option(
            "--prune",
            help="Stop a cell whose accuracy is below the others' median: once "
            f"{PRUNE_FROM_CELLS} cells are done, and from its epoch {PRUNE_FROM_EPOCHS} on, so never one of "
            f"{PRUNE_FROM_EPOCHS - 1} epoch.",
        ),
    ] = False,
    data: Data = None,
    image_size: ImageSize = None,
    val: Annotated[int | None, typer.Option(help="Hold out this many training images.")] = None,
    limit_train: LimitTrain = None,
    sweeps_dir: SweepsDir = Path("sweeps"),
    study: Annotated[
        str | None, typer.Option("--name", help="Name of its folder and study [default: the sweep's].")
    ] = None,
    storage: Annotated[
        str | None,
        typer.Option(
            metavar="URL",
            help="A database that workers on several hosts share, as in postgresql://user@host/database "
            "[default: an SQLite file in the sweep's folder].",
        ),
    ] = None,
    workers: Annotated[int, typer.Option(min=1, help="Processes that train at once.")] = 1,
    retry_failed: Annotated[
        bool, typer.Option("--retry-failed", help="Try cells again that failed.")
    ] = False,
    heartbeat: Annotated[
        int,
        typer.Option(
            min=1,
            help="Seconds between a worker's signs of life; silent for four of them, it counts as dead.",
        ),
    ] = 15,
    allow_different_machine: Annotated[
        bool,
        typer.Option(
            "--allow-different-machine",
            help="Resume runs of another machine although the bits will differ.",
        ),
    ] = False,
    save_every: SaveEvery = None,
    device: DeviceIfTyped = None,
    loader: Loader = None,
    amp: Amp = None,
    compile_: Compile = None,
    threads: Annotated[int | None, typer.Option(help="CPU threads of each worker.")] = None,
    parent: Annotated[int | None, typer.Option(hidden=True)] = None,
    go_on: Annotated[bool, typer.Option("--go-on", hidden=True)] = False,
) -> int:
    """Train a grid of networks or settings, each cell once; the same command goes on where it stopped."""
    if name is None:
        _list_sweeps()
        return 0
    import dataclasses

    from fastresnet.sweep_filter import CellFilter
    from fastresnet.sweep_spec import load_sweep

    if epochs is not None and epochs < 1:
        raise UserError(f"--epochs is {epochs}; it must be at least 1")
    chosen = dataclasses.replace(load_sweep(name), epochs=epochs)
    if print_file:
        if only_list or cells or epochs is not None:
            raise UserError("--toml prints the sweep's file as it is; leave out --list, --cells and --epochs")
        typer.echo(chosen.text.rstrip("\n"))
        return 0
    filters = tuple(CellFilter.parse(text) for text in cells or ())
    if only_list:
        from fastresnet.cli.sweep_progress import show_cells
        from fastresnet.sweep_filter import select_steps

        chosen = _counted_for(chosen, data, image_size)
        show_cells(chosen, select_steps(chosen.all_cells(), filters))
        return 0
    from fastresnet.bench.record import typed_command
    from fastresnet.cli.train import check_loader
    from fastresnet.run import RunConfig
    from fastresnet.sweep import SweepOptions

    given: dict[str, Any] = {
        "data": data,
        "image_size": image_size,
        "seed": seed,
        "val": val,
        "limit_train": limit_train,
    }
    given |= {"save_every_s": save_every, "device": device, "loader": loader, "amp": amp}
    given |= {"compile": compile_, "threads": threads}
    with named_as_typed(given):
        config = RunConfig.parse(**{key: value for key, value in given.items() if value is not None})
    check_loader(config.loader)
    again = go_on or parent is not None  # another process of this command has begun
    options = SweepOptions(
        name=study,
        sweeps_dir=sweeps_dir,
        storage=storage,
        config=config,
        filters=filters,
        prune=prune,
        retry_failed=retry_failed and not again,
        heartbeat_s=heartbeat,
        allow_different_machine=allow_different_machine,
        command=None if again else typed_command(),
    )
    if parent is not None:
        _follow(parent)
    return _run(chosen, options, workers, is_child=parent is not None, goes_on=go_on)


def _run(sweep: Sweep, options: SweepOptions, num_workers: int, is_child: bool, goes_on: bool) -> int:
    from fastresnet.cli.sweep_progress import SweepProgress, show_table
    from fastresnet.engine.fit import Interrupted
    from fastresnet.sweep import SweepRun
    from fastresnet.sweep_worker import CellBroke

    progress = SweepProgress(several=is_child)
    try:
        if goes_on:
            _check_device(options)
        running = SweepRun(sweep, options, progress)
        if not is_child and not goes_on:
            running.prepare()
        if num_workers > 1 and not _run_workers(num_workers, options):
            _check_device(options)
        content = running.run()
    except CellBroke as broke:
        progress.close()
        _go_on_anew(broke)
    except (Interrupted, Stopped) as stop:
        progress.close()
        if not is_child:
            progress.output.print_last(f"{stop}; the same command goes on from here")
        sys.exit(128 + stop.signum)
    finally:
        progress.close()
    failed = sum(row["state"] == "failed" for row in content["rows"])
    if not is_child:
        show_table(content)
        typer.echo(f"\ntable    {running.folder / 'table.json'} and table.md")
        if failed:
            typer.echo(f"{counted(failed, 'cell')} failed; --retry-failed tries again")
    return 1 if failed else 0


def _go_on_anew(broke: CellBroke) -> NoReturn:
    """Put a fresh process in place of this one, for the cells that are left; the failed one is recorded."""
    traceback.print_exception(broke.__cause__)
    sys.stdout.flush()
    sys.stderr.flush()
    for name in os.listdir("/proc/self/fd"):  # what a driver opened must not hold the device any longer
        if int(name) > 2:
            with contextlib.suppress(OSError):
                os.set_inheritable(int(name), False)
    words = [word for word in sys.argv[1:] if word != "--go-on"]
    os.execv(sys.executable, [sys.executable, "-m", "fastresnet", *words, "--go-on"])


def _check_device(options: SweepOptions) -> None:
    """Compute something after a cell broke: on a lost device each cell left would fail, by no fault of its own.

    Raises:
        UserError: the device cannot compute.
    """
    import torch

    from fastresnet.assembly import resolve_machine

    _, device = resolve_machine(options.config)
    try:
        torch.ones(1, device=device).sum().item()
    except RuntimeError as error:
        raise UserError(
            f"{device} computes nothing any more ({error}), so the cells left wait; once it does, the same command "
            "goes on"
        ) from error


def _run_workers(number: int, options: SweepOptions) -> bool:
    """Run this command ``number`` times at once, and wait for all; a signal is passed on, and they save.

    Returns whether all ended well.
    """
    arguments = [*sys.argv[1:], "--workers", "1", "--parent", str(os.getpid())]
    if not options.config.threads:
        arguments += ["--threads", str(max(1, len(os.sched_getaffinity(0)) // number))]
    processes = [
        subprocess.Popen(
            [sys.executable, "-m", "fastresnet", *arguments],
            env=os.environ | environment,
            process_group=0,  # so that Ctrl-C reaches them through us alone, once
        )
        for environment in _environments(number, options.config.device)
    ]
    try:
        for process in processes:
            process.wait()
    except BaseException:
        for process in processes:
            process.terminate()
        for process in processes:
            process.wait()
        raise
    return not any(process.returncode for process in processes)


def _environments(number: int, device: str) -> list[dict[str, str]]:
    """Return what each worker's environment adds: where there are several GPUs, the one it sees, in turn."""
    import torch

    if device not in ("auto", "cuda") or torch.cuda.device_count() < 2:
        return [{}] * number
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    names = visible.split(",") if visible else [str(gpu) for gpu in range(torch.cuda.device_count())]
    return [{"CUDA_VISIBLE_DEVICES": names[worker % len(names)]} for worker in range(number)]


def _follow(parent: int) -> None:
    """Stop this worker, saving, when the command that started it is no more."""

    def look() -> None:
        while os.getppid() == parent:
            time.sleep(PARENT_LOOK_S)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=look, name="parent", daemon=True).start()


def _counted_for(sweep: Sweep, data: str | None, image_size: int | None) -> Sweep:
    """Return the sweep with its cells counted for the data set; CIFAR-10, where none is named, is not opened."""
    import dataclasses

    if data is None:
        return dataclasses.replace(sweep, image_size=image_size or sweep.image_size)
    from fastresnet.cli.progress import shown_progress
    from fastresnet.loaders.dataset import open_dataset

    with shown_progress() as progress:
        dataset = open_dataset(data, image_size=image_size, progress=progress)
    return dataclasses.replace(sweep, num_classes=dataset.num_classes, image_size=dataset.image_size)


def _list_sweeps() -> None:
    from fastresnet.sweep_spec import load_sweep, sweep_names

    rows = [(name, load_sweep(name)) for name in sweep_names()]
    width = max(len(name) for name, _ in rows)
    for name, found in rows:
        typer.echo(f"{name:<{width}}  {found.num_cells:>3} cells  {found.spec.title}")
    typer.echo(
        "\n`fastresnet sweep NAME --list` shows the cells of one; without --list they are trained. `--toml` prints its "
        "file; saved and changed, it is swept by `fastresnet sweep FILE.toml`."
    )
