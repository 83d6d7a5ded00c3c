"""``fastresnet train``."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fastresnet.cli.options import Compile
from fastresnet.cli.typed import assigned, named_as_typed, option_of
from fastresnet.errors import UserError
from fastresnet.signals import Stopped

if TYPE_CHECKING:
    from fastresnet.cli.train_progress import TrainProgress
    from fastresnet.run import RunConfig

RUN, MODEL, DATA, MACHINE = "Run", "What to train", "Data", "Machine (all chosen for you by default)"


def train(
    recipe: Annotated[
        str | None,
        typer.Option(help="A recipe's name or TOML file [default: fast].", rich_help_panel=MODEL),
    ] = None,
    arch: Annotated[
        str | None,
        typer.Option(help="An arch's name or slug; `fastresnet archs` lists them.", rich_help_panel=MODEL),
    ] = None,
    epochs: Annotated[int | None, typer.Option(help="Passes over the data.", rich_help_panel=MODEL)] = None,
    batch_size: Annotated[int | None, typer.Option(help="Images a step.", rich_help_panel=MODEL)] = None,
    tta: Annotated[
        bool | None,
        typer.Option("--tta/--no-tta", help="Also report accuracy with flip TTA.", rich_help_panel=MODEL),
    ] = None,
    set_: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="KEY=VALUE",
            help="Change a key of the recipe, as in --set optimizer.lr=0.1; may be repeated.",
            rich_help_panel=MODEL,
        ),
    ] = None,
    seed: Annotated[
        int | None, typer.Option(help="Seed of every draw [default: 0].", rich_help_panel=MODEL)
    ] = None,
    data: Annotated[
        str | None,
        typer.Option(
            help="A folder, tar, .npz or 'shapes' [default: CIFAR-10, downloaded once].", rich_help_panel=DATA
        ),
    ] = None,
    image_size: Annotated[
        int | None, typer.Option(help="Scale images to this side in pixels.", rich_help_panel=DATA)
    ] = None,
    val: Annotated[
        int | None,
        typer.Option(
            help="Hold out this many training images to choose the best epoch on.", rich_help_panel=DATA
        ),
    ] = None,
    limit_train: Annotated[
        int | None, typer.Option(help="Train on this many images only.", rich_help_panel=DATA)
    ] = None,
    target: Annotated[
        float | None,
        typer.Option(
            help="Time the first crossing of this accuracy, as in 0.94: of the test set, or of the validation "
            "split where --val holds one out.",
            rich_help_panel=RUN,
        ),
    ] = None,
    resume: Annotated[
        str | None,
        typer.Option(metavar="RUN", help="Go on with a run: its path, id, or 'last'.", rich_help_panel=RUN),
    ] = None,
    init_from: Annotated[
        str | None,
        typer.Option(
            metavar="RUN[:best]", help="Start a new run from the weights of another.", rich_help_panel=RUN
        ),
    ] = None,
    runs_dir: Annotated[Path, typer.Option(help="Where run folders lie.", rich_help_panel=RUN)] = Path(
        "runs"
    ),
    save_every: Annotated[
        float | None, typer.Option(help="Seconds between checkpoints [default: 60].", rich_help_panel=RUN)
    ] = None,
    eval_every: Annotated[
        int | None, typer.Option(help="Epochs between evaluations [default: 1].", rich_help_panel=RUN)
    ] = None,
    allow_different_machine: Annotated[
        bool,
        typer.Option(
            "--allow-different-machine", help="Resume although the bits will differ.", rich_help_panel=RUN
        ),
    ] = False,
    device: Annotated[
        str | None, typer.Option(help="auto, cpu, cuda or cuda:N.", rich_help_panel=MACHINE)
    ] = None,
    loader: Annotated[
        str | None, typer.Option(help="auto, resident, numba, torch, ffcv or dali.", rich_help_panel=MACHINE)
    ] = None,
    workers: Annotated[
        int | None,
        typer.Option(
            help="Processes (torch) or threads (numba, ffcv, dali) that load; 0 chooses.",
            rich_help_panel=MACHINE,
        ),
    ] = None,
    amp: Annotated[str | None, typer.Option(help="auto, bf16, fp16 or off.", rich_help_panel=MACHINE)] = None,
    compile_: Compile = None,
    kernels: Annotated[
        str | None,
        typer.Option(help="auto (measured), triton, llvm, inductor or eager.", rich_help_panel=MACHINE),
    ] = None,
    convs: Annotated[
        str | None,
        typer.Option(
            help="3x3 convolutions: auto (measured), direct or winograd (a CPU).", rich_help_panel=MACHINE
        ),
    ] = None,
    graphs: Annotated[
        str | None, typer.Option(help="CUDA graphs: auto (measured), on or off.", rich_help_panel=MACHINE)
    ] = None,
    threads: Annotated[int | None, typer.Option(help="CPU threads.", rich_help_panel=MACHINE)] = None,
    sync_bn: Annotated[
        bool | None,
        typer.Option(
            "--sync-bn/--no-sync-bn",
            help="Over several ranks: normalise by the whole batch [default], or each rank by its share.",
            rich_help_panel=MACHINE,
        ),
    ] = None,
    deterministic: Annotated[
        bool | None,
        typer.Option("--deterministic", help="Same bits on every run of a GPU too.", rich_help_panel=MACHINE),
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
    overrides: dict[str, Any] = {"arch": arch, "epochs": epochs, "batch_size": batch_size}
    overrides |= {"tta": None if tta is None else "flip" if tta else "none"}
    overrides = {key: value for key, value in overrides.items() if value is not None}
    settings = assigned(set_, overrides)
    with named_as_typed(tuple(overrides)):
        overrides |= settings
        if recipe is None and "arch" not in overrides:
            overrides = _default_arch(config.device, init_from, runs_dir) | overrides
        chosen = load_recipe(recipe or "fast").with_overrides(overrides)
    file = recipe if recipe is not None and recipe not in recipe_names() else None
    with _interruptible(runs_dir, progress):
        named = (data, recipe, arch, target, init_from, settings.get("arch"))
        config = config if any(value is not None for value in named) else _fall_back(config)
        result = training.train(
            chosen, config, runs_dir=runs_dir, recipe_file=file, init_from=init_from, listener=progress
        )
    show_result(result, runs_dir)


def _default_arch(device: str, init_from: str | None, runs_dir: Path) -> dict[str, Any]:
    """Return the arch of the run whose weights are taken, else an arch and epochs that suit the device."""
    from fastresnet.engine.machine import has_fast_bf16, resolve_device

    if init_from is not None:
        from fastresnet.inference import load_weights

        return {"arch": load_weights(init_from, runs_dir).arch}
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
