"""Training, from a recipe and a config to a result: a new run, or one that goes on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fastresnet.engine import machine
from fastresnet.engine.compiler import compiler_missing
from fastresnet.engine.distributed import Ranks
from fastresnet.engine.listener import Listener
from fastresnet.engine.session import joined
from fastresnet.folder import CONFIG, RunFolder, find_run, new_run_name
from fastresnet.kernels.conv import convs_obstacle
from fastresnet.kernels.dispatch import kernels_obstacle
from fastresnet.recipe import Recipe, load_recipe, recipe_names
from fastresnet.run import RunConfig, RunResult, file_record
from fastresnet.training_run import MachineDiffers, Run


def train(
    recipe: Recipe | str = "fast",
    config: RunConfig | None = None,
    *,
    runs_dir: Path | str = "runs",
    run_name: str | None = None,
    recipe_file: Path | str | None = None,
    init_from: str | None = None,
    listener: Listener | None = None,
    **overrides: Any,
) -> RunResult:
    """Train a recipe in a new run folder and return what came of it.

    Started by torchrun, every rank calls it, and rank 0's arguments count; when torchrun starts the ranks again
    after one was lost, it goes on with the run that they trained.

    Args:
        recipe: a recipe, or the name or path of one.
        config: the machine and data; None takes CIFAR-10 and chooses the rest.
        runs_dir: where the run folder is made.
        run_name: the run folder's name, of which there must be none yet; None makes a new one.
        recipe_file: where ``recipe`` was read from, recorded with its hash; a path given as ``recipe`` is it.
        init_from: start from another run's weights: a path, name, id or ``last``, with ``:best`` for its best.
        listener: told how it goes on.
        overrides: top-level recipe keys, as in ``arch="resnet8", epochs=4``.

    Raises:
        UserError: a recipe, value or data set that is not allowed, a full disk, a loss that is not finite.
        Interrupted: a signal asked the run to stop; it has saved.
    """
    listener = listener or Listener()
    with joined() as session:
        if not session.ranks.is_first:
            return follow()
        before = session.run_before_restart()
        if before is not None and (before / CONFIG).exists():
            listener.on_notice(f"torchrun has started the ranks again; going on with run {before.name}")
            return resume(str(before), listener=listener)
        given = recipe
        if isinstance(given, str):
            given = load_recipe(given)
            recipe_file = recipe_file if recipe in recipe_names() else str(recipe)
        given = given.with_overrides(overrides)
        file = file_record(Path(recipe_file)) if recipe_file else None
        run = Run(given, config or RunConfig(), listener, session)
        with machine.memory_errors(given):
            name = run_name or new_run_name(given.arch, given.name)
            return run.start(Path(runs_dir) / name, init_from, file)


def resume(
    reference: str,
    *,
    runs_dir: Path | str = "runs",
    data: str | None = None,
    save_every_s: float | None = None,
    allow_different_machine: bool = False,
    listener: Listener | None = None,
) -> RunResult:
    """Go on with a run from its last checkpoint, to the same bits as if it had not stopped.

    A run that has finished only returns its result.

    Args:
        reference: the run's path, name, id, or ``last``.
        runs_dir: where to look for it.
        data: where its data set lies now; its contents must be the same.
        save_every_s: seconds between checkpoints from now on.
        allow_different_machine: accept other versions or hardware, and so other bits; where the run's device, or
            how it does its steps, cannot be had, they are chosen anew.
        listener: told how it goes on.

    Raises:
        RunInUse: another process trains it.
        MachineDiffers: it was started on another machine or version, or does its steps as cannot be done here.
        UserError: no such run, a damaged one, or other data.
        Interrupted: a signal asked the run to stop; it has saved.
    """
    listener = listener or Listener()
    with joined() as session:
        if not session.ranks.is_first:
            return follow()
        folder = RunFolder(find_run(reference, Path(runs_dir)))
        folder.lock()
        try:
            finished = folder.read_result()
            if finished is not None:
                listener.on_notice(f"run {folder.name} is complete; this is its result")
                session.ranks.broadcast({"result": finished})
                return RunResult(**finished)
            content = folder.read_config()
            changes = {"data": data, "save_every_s": save_every_s}
            given = {key: value for key, value in changes.items() if value is not None}
            config = RunConfig.parse(**content["config"] | given)
            if not machine.has_device(config.device):
                name = content["environment"]["device_name"]
                missing: str | None = f"was started on {name} ({config.device}), which is not here"
                config_here = config.model_copy(update=machine.UNRESOLVED)
            else:
                missing = lost_way(config, session.ranks)
                config_here = config.model_copy(update=machine.UNFOUND)
            if missing is not None:
                if not allow_different_machine:
                    raise MachineDiffers(
                        f"this run {missing}. Give --allow-different-machine to go on with what is"
                    )
                listener.on_notice(f"this run {missing}; its steps are done in another way")
                config = config_here
            recipe = Recipe.from_json_dict(content["recipe"])
            run = Run(recipe, config, listener, session)
            with machine.memory_errors(recipe):
                return run.go_on(folder, content, given, allow_different_machine)
        finally:
            folder.close()


def lost_way(config: RunConfig, ranks: Ranks) -> str | None:
    """Return what of the way in which a run does its steps cannot be had here, in words; None if all of it can."""
    device = machine.resolve_device(config.device, ranks)
    graphs = None if device.type == "cuda" and ranks.is_alone else "CUDA graphs are for one process on a GPU"
    for option, is_kept, obstacle in (
        ("kernels", True, kernels_obstacle(config.kernels, device)),
        ("convs", True, convs_obstacle(config.convs, device.type, config.amp)),
        ("compile", config.compile in ("on", "whole"), compiler_missing(device)),
        ("graphs", config.graphs == "on", graphs),
    ):
        if is_kept and obstacle is not None:
            value = getattr(config, option)
            return f"does its steps with {option} {value}, which cannot be had here ({obstacle})"
    return None


def follow() -> RunResult:
    """Take part in the training that rank 0 begins or goes on with, as another rank; return what came of it.

    Raises:
        UserError, Interrupted: as on rank 0.
        ToldElsewhere: another rank shows why the training has ended.
    """
    with joined() as session:
        order = session.ranks.broadcast()
        if "result" in order:
            return RunResult(**order["result"])
        recipe = Recipe.from_json_dict(order["recipe"])
        run = Run(recipe, RunConfig(**order["config"]), Listener(), session)
        with machine.memory_errors(recipe):
            return run.follow(Path(order["path"]))
