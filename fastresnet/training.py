"""Training, from a recipe and a config to a result: a new run, or one that goes on."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from fastresnet.assembly import (
    Loaders,
    build_step,
    choose_machine,
    open_data,
    open_loaders,
    warm_up_step,
)
from fastresnet.engine import machine
from fastresnet.engine.checkpoint import load_last, save_state
from fastresnet.engine.fit import Fit
from fastresnet.engine.listener import Listener, RunInfo
from fastresnet.engine.warmup import warm_loaders
from fastresnet.errors import UserError
from fastresnet.folder import RunFolder, check_writable, find_run, new_run_name
from fastresnet.inference import Weights, load_weights
from fastresnet.recipe import Recipe, load_recipe, recipe_names
from fastresnet.run import Clocks, RunConfig, RunResult, file_change, file_record, machine_difference


class MachineDiffers(UserError):
    """A run was started on another machine or version, and resuming it here would not give the same bits."""


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
    given = recipe
    if isinstance(given, str):
        given = load_recipe(given)
        recipe_file = recipe_file if recipe in recipe_names() else str(recipe)
    given = given.with_overrides(overrides)
    file = file_record(Path(recipe_file)) if recipe_file else None
    run = _Run(given, config or RunConfig(), listener or Listener())
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
        allow_different_machine: accept other versions or hardware, and so other bits.
        listener: told how it goes on.

    Raises:
        RunInUse: another process trains it.
        MachineDiffers: it was started on another machine or version.
        UserError: no such run, a damaged one, or other data.
        Interrupted: a signal asked the run to stop; it has saved.
    """
    listener = listener or Listener()
    folder = RunFolder(find_run(reference, Path(runs_dir)))
    folder.lock()
    try:
        finished = folder.read_result()
        if finished is not None:
            listener.on_notice(f"run {folder.name} is complete; this is its result")
            return RunResult(**finished)
        content = folder.read_config()
        changes = {"data": data, "save_every_s": save_every_s}
        given = {key: value for key, value in changes.items() if value is not None}
        config = RunConfig.parse(**content["config"] | given)
        if not machine.has_device(config.device):
            if not allow_different_machine:
                raise MachineDiffers(
                    f"this run was started on {content['environment']['device_name']} ({config.device}), which is "
                    "not here. Give --allow-different-machine to go on with what is"
                )
            config = config.model_copy(update=machine.UNRESOLVED)
        recipe = Recipe.from_json_dict(content["recipe"])
        run = _Run(recipe, config, listener)
        with machine.memory_errors(recipe):
            return run.go_on(folder, content, given, allow_different_machine)
    finally:
        folder.close()


class _Run:
    """A run in this process: what it is made of is put together, then fitted."""

    def __init__(self, recipe: Recipe, config: RunConfig, listener: Listener) -> None:
        self.recipe = recipe
        self.spec = recipe.arch_spec()
        self.listener = listener
        self.clocks = Clocks()
        self.machine = choose_machine(config)
        self.config = self.machine.config
        self.loaders: Loaders | None = None

    @contextmanager
    def _clock(self, name: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        setattr(self.clocks, name, getattr(self.clocks, name) + time.perf_counter() - start)

    def start(
        self, path: Path, init_from: str | None, recipe_file: dict[str, str] | None = None
    ) -> RunResult:
        """Train from the beginning, in the folder ``path``."""
        # Found out before anything slow: a wrong name, and a place that cannot be written.
        weights = load_weights(init_from, path.parent) if init_from else None
        check_writable(path.parent)
        self._open_data()
        try:
            parent = None
            if weights is not None:
                parent = {"run": weights.run, "weights": weights.which, "sha256": weights.sha256}
            self._build(weights)
            self._warm_up(path)
            self.step.state.clocks = self.clocks
            content = {
                "recipe": self.recipe.to_json_dict(),
                "recipe_file": recipe_file,
                "config": self.config.model_dump(mode="json"),
                "environment": self.machine.environment,
                "dataset": self.data.info,
                "parent": parent,
            }
            folder = RunFolder.create(path, content, self._write_first_state)
            try:
                return self._fit(folder, [], parent)
            finally:
                folder.close()
        finally:
            self._close()

    def go_on(
        self,
        folder: RunFolder,
        content: dict[str, Any],
        changes: dict[str, Any],
        allow_different_machine: bool,
    ) -> RunResult:
        """Train from the last checkpoint of ``folder``, which is locked, with ``changes`` to its config."""
        difference = machine_difference(content["environment"], self.machine.environment)
        if difference and not allow_different_machine:
            raise MachineDiffers(
                f"this run was started on another machine or version: {difference}; it would not give the same "
                "bits. Give --allow-different-machine to go on all the same"
            )
        if content["recipe_file"] and (change := file_change(content["recipe_file"])):
            self.listener.on_notice(f"{change}; going on with the recipe as the run began with it")
        try:
            self._open_data()
        except UserError as error:
            raise UserError(f"{error} (if this run's data has moved, say where to with --data)") from error
        recorded, found = content["dataset"], self.data.info
        if recorded["digest"] != found["digest"]:
            raise UserError(
                f"the data has changed since this run began: it was {recorded['name']} (sha256 "
                f"{recorded['digest'][:12]}...) and is {found['name']} ({found['digest'][:12]}...); "
                "give the same images with --data"
            )
        checkpoint, passed_over = load_last(folder.path)
        for line in passed_over:
            self.listener.on_notice(f"{line}; going on from the checkpoint before it")
        if checkpoint["run"] != content["run"]:
            raise UserError(
                f"the checkpoint in {folder.path} is of another run, {checkpoint['run']}; put this run's own back"
            )
        rows = folder.restore_events(checkpoint["events"])
        if changes:
            folder.write_config(content | {"config": content["config"] | changes})
        try:
            self._build()
            state = self.step.state
            state.load_state_dict(checkpoint["state"])
            state.segment += 1
            if state.epoch < self.recipe.epochs:  # else only the result is to be written
                self._warm_up(folder.path)
            for name in ("data_s", "build_s", "move_s", "compile_s"):
                spent = getattr(state.clocks, name) + getattr(self.clocks, name)
                setattr(state.clocks, name, spent)
            return self._fit(folder, rows, content["parent"])
        finally:
            self._close()

    def _close(self) -> None:
        if self.loaders is not None:
            self.loaders.close()

    def _open_data(self) -> None:
        with self._clock("data_s"):
            self.data = open_data(self.recipe, self.config, self.listener)

    def _build(self, weights: Weights | None = None) -> None:
        with self._clock("build_s"):
            self.loaders = open_loaders(self.recipe, self.config, self.data, self.machine.device)
            self.clocks.move_s += self.loaders.move_s
            self.config = self.config.model_copy(update={"loader": self.loaders.backend})
            self.step = build_step(
                self.recipe, self.machine, self.data, len(self.loaders.train), weights=weights
            )

    def _warm_up(self, path: Path) -> None:
        assert self.loaders is not None
        recipe, state = self.recipe, self.step.state
        steps_per_epoch = len(self.loaders.train)
        steps_left = recipe.epochs * steps_per_epoch - state.step
        self.listener.on_phase("warming up on random labels")
        with self._clock("compile_s"):
            warm_loaders((self.loaders.train, *self.loaders.evals.values()))
            found = warm_up_step(self.step, recipe, self.machine, self.data, self.listener.on_notice)
        reasons = found.reasons if not state.segment else dict.fromkeys(found.reasons, "as the run began")
        self.config = self.config.model_copy(update=found.options)
        num_params, multiply_adds = self._counts()
        self.listener.on_start(
            RunInfo(
                path=str(path),
                recipe=recipe,
                spec=self.spec,
                config=self.config,
                dataset=self.data.info,
                device_name=self.machine.device_name,
                num_params=num_params,
                multiply_adds=multiply_adds,
                reasons=reasons,
                steps_per_epoch=steps_per_epoch,
                steps_left=steps_left,
                epoch_s=found.step_s * steps_per_epoch,
                resumed_at=(state.epoch, state.epoch_step) if state.segment else None,
            )
        )

    def _counts(self) -> tuple[int, int]:
        sizes = self.data.dataset.num_classes, self.data.dataset.image_size
        return self.spec.num_params(*sizes), self.spec.num_multiply_adds(*sizes)

    def _write_first_state(self, folder: RunFolder) -> None:
        save_state(folder, self.step.state)

    def _fit(self, folder: RunFolder, rows: list[dict[str, Any]], parent: dict[str, Any] | None) -> RunResult:
        assert self.loaders is not None
        recipe, config, state = self.recipe, self.config, self.step.state
        fit = Fit(
            step=self.step,
            folder=folder,
            train=self.loaders.train,
            members=self.data.splits["train"].members,
            evals=self.loaders.evals,
            epochs=recipe.epochs,
            eval_every=config.eval_every,
            tta=recipe.tta == "flip",
            save_every_s=config.save_every_s,
            target=config.target,
            listener=self.listener,
            rows=rows,
        )
        test = fit.run()
        num_params, multiply_adds = self._counts()
        result = RunResult(
            run=folder.name,
            path=str(folder.path),
            recipe=recipe.to_json_dict(),
            config=config,
            environment=self.machine.environment,
            dataset=self.data.info,
            num_params=num_params,
            multiply_adds=multiply_adds,
            epochs=fit.rows,
            clocks=state.clocks,
            test_accuracy=test["accuracy"],
            test_loss=test["loss"],
            test_accuracy_tta=test["accuracy_tta"],
            best=state.best,
            parent=parent,
        )
        folder.write_result(result.model_dump(mode="json"))
        return result
