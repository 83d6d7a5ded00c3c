"""``fastresnet train``."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fastresnet.cli.options import (
    Amp,
    Compile,
    Convs,
    Data,
    DeviceIfTyped,
    Graphs,
    ImageSize,
    Kernels,
    LimitTrain,
    Loader,
    RunsDir,
    SaveEvery,
    Seed,
    Threads,
)
from fastresnet.cli.typed import assigned, named_as_typed, option_of
from fastresnet.errors import UserError
from fastresnet.signals import Stopped

if TYPE_CHECKING:
    from fastresnet.cli.train_progress import TrainProgress
    from fastresnet.run import RunConfig


def train(
    recipe: Annotated[str | None, typer.Option(help="A recipe's name or TOML file [default: fast].")] = None,
    arch: Annotated[
        str | None, typer.Option(help="An arch's name or slug; `fastresnet archs` lists them.")
    ] = None,
    epochs: Annotated[int | None, typer.Option(help="Passes over the data.")] = None,
    batch_size: Annotated[int | None, typer.Option(help="Images a step.")] = None,
    tta: Annotated[
        bool | None,
        typer.Option(
            "--tta/--no-tta", help="Also report accuracy with TTA: the recipe's, flip where it has none."
        ),
    ] = None,
    set_: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="KEY=VALUE",
            help="Change a key of the recipe, as in --set optimizer.lr=0.1; may be repeated.",
        ),
    ] = None,
    seed: Seed = None,
    data: Data = None,
    image_size: ImageSize = None,
    val: Annotated[
        int | None, typer.Option(help="Hold out this many training images to choose the best epoch on.")
    ] = None,
    limit_train: LimitTrain = None,
    target: Annotated[
        float | None,
        typer.Option(
            help="Time the first crossing of this accuracy, as in 0.94: of the test set, or of the validation "
            "split where --val holds one out.",
        ),
    ] = None,
    resume: Annotated[
        str | None, typer.Option(metavar="RUN", help="Go on with a run: its path, id, or 'last'.")
    ] = None,
    init_from: Annotated[
        str | None, typer.Option(metavar="RUN[:best]", help="Start a new run from the weights of another.")
    ] = None,
    runs_dir: RunsDir = Path("runs"),
    save_every: SaveEvery = None,
    eval_every: Annotated[int | None, typer.Option(help="Epochs between evaluations [default: 1].")] = None,
    allow_different_machine: Annotated[
        bool, typer.Option("--allow-different-machine", help="Resume although the bits will differ.")
    ] = False,
    device: DeviceIfTyped = None,
    loader: Loader = None,
    workers: Annotated[
        int | None,
        typer.Option(help="Processes (torch) or threads (numba, ffcv, dali) that load; 0 chooses."),
    ] = None,
    amp: Amp = None,
    compile_: Compile = None,
    kernels: Kernels = None,
    convs: Convs = None,
    graphs: Graphs = None,
    threads: Threads = None,
    sync_bn: Annotated[
        bool | None,
        typer.Option(
            "--sync-bn/--no-sync-bn",
            help="Over several ranks: normalise by the whole batch [default], or each rank by its share.",
        ),
    ] = None,
    deterministic: Annotated[
        bool | None,
        typer.Option("--deterministic", help="Same bits on every run: no clock chooses how steps are done."),
    ] = None,
) -> None:
    """Train a network; without arguments, one that suits this machine (minutes on two CPU cores)."""
    science: dict[str, Any] = {
        "recipe": recipe,
        "arch": arch,
        "epochs": epochs,
        "batch_size": batch_size,
        "tta": tta,
        "set": set_,
        "seed": seed,
        "image_size": image_size,
        "val": val,
        "limit_train": limit_train,
        "target": target,
        "init_from": init_from,
    }
    machine: dict[str, Any] = {
        "device": device,
        "loader": loader,
        "workers": workers,
        "amp": amp,
        "compile": compile_,
        "kernels": kernels,
        "convs": convs,
        "graphs": graphs,
        "threads": threads,
        "sync_bn": sync_bn,
        "deterministic": deterministic,
        "eval_every": eval_every,
    }
    from fastresnet.cli.train_progress import TrainProgress, show_result

    given = science | machine | {"data": data, "save_every": save_every}
    given |= {"runs_dir": runs_dir if runs_dir != Path("runs") else None}
    progress = TrainProgress({name: value for name, value in given.items() if value is not None})
    if resume is not None:
        _refuse_changes(science | machine)
        from fastresnet import training

        with _interruptible(runs_dir, progress, resume), named_as_typed(["save_every_s"]):
            result = training.resume(
                resume,
                runs_dir=runs_dir,
                data=data,
                save_every_s=save_every,
                allow_different_machine=allow_different_machine,
                listener=progress,
            )
        show_result(result, runs_dir)
        return
    if allow_different_machine:
        raise UserError("--allow-different-machine goes with --resume RUN")
    from fastresnet import training
    from fastresnet.recipe import load_recipe, recipe_names
    from fastresnet.run import RunConfig

    values: dict[str, Any] = {
        "data": data,
        "image_size": image_size,
        "seed": seed,
        "val": val,
        "limit_train": limit_train,
    }
    values |= {"target": target, "save_every_s": save_every, **machine}
    with named_as_typed(values):
        config = RunConfig.parse(**{key: value for key, value in values.items() if value is not None})
    check_loader(config.loader)
    overrides: dict[str, Any] = {"arch": arch, "epochs": epochs, "batch_size": batch_size, "tta": tta}
    overrides = {key: value for key, value in overrides.items() if value is not None}
    settings = assigned(set_, overrides)
    with named_as_typed(tuple(overrides)):
        overrides |= settings
        if recipe is None and "arch" not in overrides:
            overrides = _default_arch(config.device, init_from, runs_dir) | overrides
        base = load_recipe(recipe or "fast")
        if tta is not None:
            overrides["tta"] = base.with_tta().tta if tta else "none"
        chosen = base.with_overrides(overrides)
    file = recipe if recipe is not None and recipe not in recipe_names() else None
    with _interruptible(runs_dir, progress):
        named = (data, recipe, arch, target, init_from, settings.get("arch"))
        config = config if any(value is not None for value in named) else _fall_back(config)
        result = training.train(
            chosen, config, runs_dir=runs_dir, recipe_file=file, init_from=init_from, listener=progress
        )
    show_result(result, runs_dir)


def _default_arch(device: str, init_from: str | None, runs_dir: Path) -> dict[str, Any]:
    """Return the network of the run whose weights are taken, else an arch and epochs that suit the device."""
    from fastresnet.engine.machine import has_fast_bf16, resolve_device

    if init_from is not None:
        from fastresnet.inference import load_weights

        weights = load_weights(init_from, runs_dir)
        return {"arch": weights.arch, "activation": weights.activation}
    where = resolve_device(device)
    if where.type == "cuda":
        return {"arch": "resnet24", "epochs": 16}
    return {"arch": "resnet8", "epochs": 8 if has_fast_bf16(where) else 4}  # under ten minutes on two cores


def check_loader(name: str) -> None:
    """Raise UserError unless there is a loader of that name."""
    from fastresnet.errors import did_you_mean
    from fastresnet.loaders.registry import backend_names

    allowed = ("auto", *backend_names())
    if name not in allowed:
        raise UserError(
            f"unknown loader {name!r}{did_you_mean(name, allowed) or ';'} the loaders are {', '.join(allowed)}"
        )


def _refuse_changes(options: dict[str, Any]) -> None:
    for name, value in options.items():
        if value is not None:
            raise UserError(
                f"{option_of(name)} cannot be changed on --resume, which goes on with the same run (--data, "
                "--save-every and --allow-different-machine may be given); leave it out, or start a new run from "
                "its weights with --init-from RUN"
            )


def _fall_back(config: RunConfig) -> RunConfig:
    """Return the config with the built-in set when CIFAR-10 cannot be had, having said so loudly."""
    from fastresnet.cli.progress import shown_progress
    from fastresnet.loaders.dataset import open_dataset
    from fastresnet.loaders.sources import DataUnavailable

    try:
        with shown_progress() as progress:
            open_dataset(None, image_size=config.image_size, progress=progress)
    except DataUnavailable as error:
        rule = "!" * 78
        typer.echo(
            f"{rule}\n! {error.reason}\n! Training on 'shapes' now, the built-in set of drawn images. Its accuracies "
            f"say nothing about photographs.\n{rule}"
        )
        return config.model_copy(update={"data": "shapes"})
    return config


class _interruptible:
    """Says how to go on when a signal ends the training, and exits with 128 + its number."""

    def __init__(self, runs_dir: Path, progress: TrainProgress, resumed: str | None = None) -> None:
        self.runs_dir = runs_dir
        self.progress = progress
        self.resumed = resumed

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        self.progress.close()
        if error is None:
            return
        from fastresnet.cli.train_progress import on_run
        from fastresnet.engine.fit import Interrupted
        from fastresnet.folder import CONFIG, RunFolder, find_run

        info, run = self.progress.info, self.resumed
        if run == "last":
            run = RunFolder(find_run(run, self.runs_dir)).id
        elif run is None and info is not None and (Path(info.path) / CONFIG).exists():
            run = RunFolder(Path(info.path)).id
        if isinstance(error, Interrupted):
            said, signum, run = str(error), error.signum, error.run_id
        elif isinstance(error, Stopped) and run is not None:
            said, signum = f"{error}; the last checkpoint is kept", error.signum
        else:
            return
        how = on_run("train --resume", run, self.runs_dir)
        self.progress.output.print_last(f"{said}; to go on:\n  {how}")
        sys.exit(128 + signum)
