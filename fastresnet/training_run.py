"""One run in this process: what it is made of is put together, then fitted, on every rank alike."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from fastresnet.assembly import (
    Loaders,
    build_step,
    choose_machine,
    open_data,
    open_loaders,
    train_loader_spec,
)
from fastresnet.engine.checkpoint import load_saved, pack_checkpoint, save_state, unpack_checkpoint
from fastresnet.engine.fit import CHECK_EVERY, Fit
from fastresnet.engine.listener import Listener, RunInfo
from fastresnet.engine.rehearsal import warm_loaders
from fastresnet.engine.session import Session
from fastresnet.environment import MACHINE_KEYS, machine_difference
from fastresnet.errors import UserError
from fastresnet.folder import RunFolder, check_writable
from fastresnet.inference import Weights, load_weights
from fastresnet.recipe import Recipe
from fastresnet.run import Clocks, RunConfig, RunResult, file_change
from fastresnet.training_warmup import warm_up_step
from fastresnet.whiten import Whitening

AGREE_S = 1.0  # about how often several ranks agree whether to stop


class MachineDiffers(UserError):
    """A run was started on another machine or version, and resuming it here would not give the same bits."""


class Run:
    """A run in this process: what it is made of is put together, then fitted."""

    def __init__(self, recipe: Recipe, config: RunConfig, listener: Listener, session: Session) -> None:
        self.recipe = recipe
        self.spec = recipe.arch_spec()
        self.listener = listener
        self.session = session
        self.ranks = session.ranks
        self.clocks = Clocks()
        self.machine = choose_machine(config, self.ranks)
        self.config = self.machine.config
        self.loaders: Loaders | None = None
        self._steps_agreed = 1
        train_loader_spec(recipe, self.config, self.ranks)  # refuses a batch size before anything slow

    @contextmanager
    def _clock(self, name: str) -> Iterator[None]:
        start, cpu_start = time.perf_counter(), time.process_time()
        yield
        self.clocks.charge(name, time.perf_counter() - start, time.process_time() - cpu_start)

    def start(
        self, path: Path, init_from: str | None, recipe_file: dict[str, str] | None = None
    ) -> RunResult:
        """Train from the beginning, in the folder ``path``."""
        # Found out before anything slow: a wrong name, and a place that cannot be written.
        weights = load_weights(init_from, path.parent) if init_from else None
        activation = self.recipe.arch_spec().activation
        if weights is not None and weights.activation != activation:
            self.listener.on_notice(
                f"the weights of run {weights.run} were trained with {weights.activation}, and this network has "
                f"{activation}; --set activation={weights.activation} trains them on as they were"
            )
        check_writable(path.parent)
        began_from = self.recipe.reported.began_from if self.recipe.reported else None
        if began_from and weights is None:
            self.listener.on_notice(
                f"the source of {self.recipe.name} began from the best weights of a run of {began_from}; this run "
                "begins from new ones, as no --init-from RUN:best is given"
            )
        self._lead(path)
        self._open_data()
        if self.recipe.schedule.name == "plateau" and "val" not in self.data.splits:
            self.listener.on_notice(
                "the lr is reduced by the test set itself, which flatters; --val 5000 holds images out for it"
            )
        try:
            parent = None
            if weights is not None:
                parent = {"run": weights.run, "weights": weights.which, "sha256": weights.sha256}
            self._build(weights, self._patterns() if weights is None else None)
            self._share_state()
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
            self.session.remember_run(path)
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
        self._lead(folder.path)
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
        checkpoint, passed_over = load_saved(folder.path)
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
            if misfit := state.misfit(checkpoint["state"]):
                raise UserError(f"the checkpoint in {folder.path} does not fit its config: {misfit[:300]}")
            state.load_state_dict(checkpoint["state"])
            state.segment += 1
            self._share_state()
            if state.epoch < self.recipe.epochs:  # else only the result is to be written
                self._warm_up(folder.path)
            for name in ("data_s", "build_s", "move_s", "compile_s"):
                spent = getattr(state.clocks, name) + getattr(self.clocks, name)
                setattr(state.clocks, name, spent)
            return self._fit(folder, rows, content["parent"])
        finally:
            self._close()

    def follow(self, path: Path) -> RunResult:
        """Train with rank 0, whose run lies in ``path``, perhaps on another host."""
        self._open_data()
        try:
            self._build()
            self._share_state()
            if self.step.state.epoch < self.recipe.epochs:
                self._warm_up(path)
            return self._fit(RunFolder(path), [], None)
        finally:
            self._close()

    def _lead(self, path: Path) -> None:
        """Tell the other ranks what is trained, with every choice that has been made."""
        config = self.config.model_dump(mode="json")
        order = {"recipe": self.recipe.to_json_dict(), "config": config, "path": str(path)}
        self.ranks.broadcast(order)
        run = RunFolder(path)
        self.session.how_to_go_on = f"the last checkpoint is kept: go on with train --resume {run.id}"

    def _share_state(self) -> None:
        """Give every rank the state that rank 0 begins with."""
        if self.ranks.is_alone:
            return
        state = self.step.state
        raw = pack_checkpoint(state.state_dict())[0] if self.ranks.is_first else None
        shared = self.ranks.broadcast_bytes(raw)
        if not self.ranks.is_first:
            state.load_state_dict(unpack_checkpoint(shared))

    def _close(self) -> None:
        if self.loaders is not None:
            self.loaders.close()

    def _open_data(self) -> None:
        with self._clock("data_s"):
            self.data = self.ranks.first_here(lambda: open_data(self.recipe, self.config, self.listener))

    def _compare_ranks(self) -> None:
        """Raise UserError where the ranks' machines would compute other weights, or their data differ."""
        own = {key: self.machine.environment[key] for key in MACHINE_KEYS}
        if self.machine.device.type == "cuda":
            del own["cpu"]
        kinds = self.ranks.gather(own | {"data": self.data.info["digest"]})
        for rank, kind in enumerate(kinds):
            for key, found in kind.items():
                if found != kinds[0][key]:
                    raise UserError(
                        f"{key} is {found!r} on rank {rank} and {kinds[0][key]!r} on rank 0; the ranks need machines "
                        "and versions of one kind, and the same data"
                    )

    def _patterns(self) -> torch.Tensor | None:
        """Return the filters that the stem of a new run begins with, None where they are drawn alone."""
        part = self.recipe.init.whiten
        if part is None:
            return None
        whitening = Whitening(self.recipe, part, self.data.dataset, self.machine.device)
        with self._clock("compile_s"):
            whitening.warm_up()
        with self._clock("init_s"):
            return whitening.filters(self.data.splits["train"], self.config.seed)

    def _build(self, weights: Weights | None = None, patterns: torch.Tensor | None = None) -> None:
        self._compare_ranks()
        with self._clock("build_s"):
            self.loaders = open_loaders(self.recipe, self.config, self.data, self.machine.device, self.ranks)
            self.clocks.move_s += self.loaders.move_s
            self.config = self.config.model_copy(update={"loader": self.loaders.backend})
            self.step = build_step(
                self.recipe,
                self.machine,
                self.data,
                len(self.loaders.train),
                weights=weights,
                patterns=patterns,
            )

    def _warm_up(self, path: Path) -> None:
        assert self.loaders is not None
        recipe, state = self.recipe, self.step.state
        steps_per_epoch = len(self.loaders.train)
        steps_left = recipe.epochs * steps_per_epoch - state.step
        self.listener.on_phase("warming up on random labels")
        with self._clock("compile_s"):
            warm_loaders((self.loaders.train, *self.loaders.evals.values()))
            # Its batches are whole ones, whatever the next one is: several ranks do incomplete ones otherwise.
            epoch_step, state.epoch_step = state.epoch_step, 0
            try:
                found = warm_up_step(self.step, recipe, self.machine, self.data, self.listener.on_notice)
            finally:
                state.epoch_step = epoch_step
        reasons = dict(found.reasons)
        if state.segment:
            chosen = self.machine.config  # what is auto here is found again: the kept way cannot be had
            kept = [name for name in reasons if getattr(chosen, name) != "auto"]
            reasons |= dict.fromkeys(kept, "as the run began")
        if not self.ranks.is_alone:
            self._steps_agreed = max(1, min(CHECK_EVERY, round(AGREE_S / max(found.step_s.values()))))
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
                world_size=self.ranks.world_size,
                num_params=num_params,
                multiply_adds=multiply_adds,
                reasons=reasons,
                steps_per_epoch=steps_per_epoch,
                steps_left=steps_left,
                image_sizes=recipe.image_sizes(self.data.dataset.image_size),
                step_s=found.step_s,
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
            tta=recipe.tta,
            save_every_s=config.save_every_s,
            target=config.target,
            listener=self.listener,
            agree_every=self._steps_agreed,
            rows=rows,
        )
        test = fit.run()
        self.session.how_to_go_on = ""
        if not self.ranks.is_first:
            return RunResult(**self.ranks.broadcast())
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
        self.ranks.broadcast(result.model_dump(mode="json"))
        return result
