"""The training loop: epochs of steps, evaluations, event rows and checkpoints."""

from __future__ import annotations

import math
import signal
import threading
import time
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from fastresnet.engine.checkpoint import BEST, save_state, write_checkpoint
from fastresnet.engine.compiler import num_compiled
from fastresnet.engine.distributed import fingerprint
from fastresnet.engine.evaluate import EvalResult, evaluate
from fastresnet.engine.listener import Listener
from fastresnet.engine.machine import synchronise
from fastresnet.engine.step import TrainStep
from fastresnet.errors import UserError
from fastresnet.folder import RunFolder
from fastresnet.loaders.protocol import Loader
from fastresnet.recipe_parts import Tta
from fastresnet.signals import on_stop, stopped_by

CHECK_EVERY = 50  # steps between looks at whether the loss is still finite: each look waits for the device


class Interrupted(Exception):
    """The run was stopped by a signal, after saving.

    Attributes:
        signum: the signal.
        run_id: what to resume.
    """

    def __init__(self, signum: int, run_id: str, saved: str) -> None:
        super().__init__(f"{stopped_by(signum)}; {saved}")
        self.signum = signum
        self.run_id = run_id


class StopSignals:
    """Turns the first signal into a request that the loop meets between steps."""

    def __init__(self) -> None:
        self.requested: int | None = None
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> StopSignals:
        if threading.current_thread() is threading.main_thread():
            self._previous = on_stop(self._request)
        return self

    def _request(self, signum: int) -> None:
        self.requested = signum

    def __exit__(self, *_: object) -> None:
        for signum, handler in self._previous.items():
            signal.signal(signum, handler)


@dataclass(kw_only=True)
class Fit:
    """A run's loop.

    Attributes:
        step: the step, and in it the state.
        folder: where rank 0 puts rows and checkpoints.
        agree_every: steps between the ranks' agreeing whether to stop.
        train: the training samples.
        members: int64 [M], their indices.
        evals: the splits to evaluate, by name; ``best`` is chosen on the first.
        epochs: of the whole run.
        eval_every: epochs between evaluations; the last epoch is always evaluated, and every one where the
            schedule listens.
        tta: what the last evaluation is done with too.
        save_every_s: seconds between checkpoints.
        target: accuracy whose first crossing is timed.
        listener: told how it goes on.
        rows: the event rows so far.
    """

    step: TrainStep
    folder: RunFolder
    train: Loader
    members: NDArray[np.int64]
    evals: dict[str, Loader]
    epochs: int
    eval_every: int
    tta: Tta
    save_every_s: float
    target: float | None
    listener: Listener
    agree_every: int = 1
    rows: list[dict[str, Any]] = field(default_factory=list)

    def run(self) -> dict[str, Any]:
        """Train to the end and return the final evaluation on test: loss, accuracy, accuracy_tta.

        Raises:
            Interrupted: a signal asked to stop; the state is saved.
            UserError: the loss is not finite, or the disk refuses; the last good checkpoint is kept.
        """
        state = self.step.state
        self._ranks = self.step.ranks
        with StopSignals() as self._stop:
            self._saved_at = time.monotonic()
            self._speed: float | None = None
            self._compiled = num_compiled()
            while state.epoch < self.epochs:
                self._train_epoch()
                self._finish_epoch()
        assert state.final is not None
        return state.final

    def _train_epoch(self) -> None:
        state = self.step.state
        device = state.sums.device
        self._clock, self._cpu_clock = time.perf_counter(), time.process_time()
        self.step.augment.begin_epoch(self.step.seed, state.epoch, self.members, device)
        self.train.set_epoch(state.epoch, state.epoch_step)
        started, samples = time.perf_counter(), 0
        for batch in self.train:
            self.step(batch)
            samples += len(batch.labels) * self._ranks.world_size
            speed = samples / (time.perf_counter() - started)
            self.listener.on_step(state.epoch, state.epoch_step, len(self.train), speed)
            if state.step % CHECK_EVERY == 0:
                self._check_finite()
            if state.step % self.agree_every == 0 and self._is_asked_to_stop():
                synchronise(device)
                self._lap("train_s")
                self._save_and_stop()
            if self._save_is_due():
                synchronise(device)
                self._lap("train_s")
                self.save()
                self._lap("between_s")
        synchronise(device)
        self._lap("train_s")
        self._check_finite()
        self._speed = samples / (time.perf_counter() - started) if samples else None

    def _is_asked_to_stop(self) -> bool:
        """Return whether any rank is asked to stop, having waited for the others, but not for their devices."""
        self._stopped_by = int(self._ranks.highest(self._stop.requested or 0))
        return self._stopped_by > 0

    def _save_is_due(self) -> bool:
        return self._ranks.is_first and time.monotonic() - self._saved_at > self.save_every_s

    def _lap(self, clock: str) -> None:
        """Add the seconds since the last lap to a clock."""
        now, cpu_now = time.perf_counter(), time.process_time()
        self.step.state.clocks.charge(clock, now - self._clock, cpu_now - self._cpu_clock)
        self._clock, self._cpu_clock = now, cpu_now

    def _finish_epoch(self) -> None:
        state = self.step.state
        last = state.epoch + 1 == self.epochs
        listens = state.schedule.metric is not None
        self._check_same_weights()
        results: dict[str, EvalResult] = {}
        if last or listens or (state.epoch + 1) % self.eval_every == 0:
            for name, loader in self.evals.items():
                self.listener.on_phase(f"epoch {state.epoch + 1}: evaluating on {name}")
                final = last and name == "test"
                chosen_on = name == next(iter(self.evals))
                if final and self.tta != "none" and chosen_on and self.target is not None:
                    # the target is timed without TTA, whatever the final evaluation averages over
                    self._evaluated(self._evaluate(loader, "none"))
                    self._lap("between_s")
                results[name] = self._evaluate(loader, self.tta if final else "none")
                if chosen_on:
                    self._evaluated(results[name])
                self._lap("eval_s" if final else "between_s")
                if final:
                    state.final = asdict(results[name]) | {"loss": _finite(results[name].loss)}
        loss, num_correct, num_samples = state.sums.tolist()
        row: dict[str, Any] = {
            "event": "epoch",
            "epoch": state.epoch + 1,
            "step": state.step,
            "lr": state.lr,
            "train_loss": loss / num_samples,
            "train_accuracy": num_correct / num_samples,
        }
        for name, result in results.items():
            row |= {f"{name}_loss": _finite(result.loss), f"{name}_accuracy": result.accuracy}
        self._note_best(results)
        if listens:
            first = next(iter(results.values()))
            metric = first.accuracy if state.schedule.metric == "accuracy" else first.loss
            state.schedule.observe(state.epoch, metric)
        row["clock"] = {
            "train_s": state.clocks.train_s,
            "images_per_s": self._speed,
            "segment": state.segment,
            "recompiled": self._count_recompiled(),
            "time": time.time(),
        }
        state.sums.zero_()
        state.epoch += 1
        state.epoch_step = 0
        if self._ranks.is_first:
            self.folder.append_event(row)
        self.rows.append(row)
        self.listener.on_epoch(row)
        if self._save_is_due() or state.epoch == self.epochs:
            self.save()
        self._lap("between_s")

    def _count_recompiled(self) -> int:
        """Return how many graphs torch.compile has compiled since the last call; the warm-up should leave none."""
        before, self._compiled = self._compiled, num_compiled()
        new = self._compiled - before
        if new:
            self.listener.on_notice(
                f"torch.compile compiled {new} more in epoch {self.step.state.epoch + 1}, which its time includes"
            )
        return new

    def _evaluate(self, loader: Loader, tta: Tta) -> EvalResult:
        return evaluate(
            self.step.scorer, loader, tta=tta, ranks=self._ranks, between_batches=self._stop_if_asked
        )

    def _evaluated(self, result: EvalResult) -> None:
        """Time the target where this evaluation, on what the best weights are chosen on, is the first to reach it."""
        clocks = self.step.state.clocks
        if self.target is not None and clocks.time_to_target_s is None and result.accuracy >= self.target:
            clocks.time_to_target_s = clocks.init_s + clocks.train_s + time.perf_counter() - self._clock

    def _note_best(self, results: dict[str, EvalResult]) -> None:
        """Keep the weights of the best evaluation; of equals, the first."""
        state = self.step.state
        if not results:
            return
        name, result = next(iter(results.items()))
        if result.accuracy > state.best.get("accuracy", -1.0):
            state.best = {"epoch": state.epoch + 1, "accuracy": result.accuracy, "chosen_on": name}
            if "test" in results:
                state.best["test_accuracy"] = results["test"].accuracy
            if self._ranks.is_first:
                content = {"model": state.eval_model.state_dict(), "best": state.best}
                write_checkpoint(self.folder.path / BEST, content)

    def _check_finite(self) -> None:
        """Raise UserError if a loss or a weight is not finite; waits for the device."""
        state = self.step.state
        bad = int(state.first_bad_step)
        weights: list[torch.Tensor] = list(state.model.parameters())
        what = ""
        if bad >= 0:
            what = f"the loss is not finite at step {bad + 1} (epoch {bad // len(self.train) + 1})"
        elif not bool(torch.isfinite(torch.stack(torch._foreach_norm(weights))).all()):
            what = f"the weights are not finite after step {state.step} (epoch {state.epoch + 1})"
        if what:
            raise UserError(
                f"{what}; the last good checkpoint in {self.folder.path} is kept; train again with a lower lr "
                "(--set optimizer.lr=...)"
            )

    def _check_same_weights(self) -> None:
        """Raise UserError if a rank's weights have a bit of their own; waits for the device."""
        if self._ranks.is_alone:
            return
        prints = self._ranks.gather(fingerprint(self.step.state.model.parameters()))
        if len(set(prints)) > 1:
            other = next(rank for rank, found in enumerate(prints) if found != prints[0])
            raise UserError(
                f"rank {other} has other weights than rank 0 after step {self.step.state.step}: their machines "
                f"compute differently; the last checkpoint in {self.folder.path} is kept; use machines of one kind"
            )

    def save(self) -> None:
        """Write the last checkpoint, having made sure that it is good; on rank 0."""
        self._check_finite()
        if self._ranks.is_first:
            save_state(self.folder, self.step.state)
        self._saved_at = time.monotonic()

    def _save_and_stop(self) -> None:
        self.save()
        self._ranks.barrier()  # once one rank has ended, the others are not given time
        state = self.step.state
        saved = f"saved after step {state.epoch_step} of epoch {state.epoch + 1}"
        raise Interrupted(self._stopped_by, self.folder.id, saved)

    def _stop_if_asked(self) -> None:
        if self._is_asked_to_stop():
            self._lap("between_s")
            self._save_and_stop()


def _finite(loss: float) -> float | None:
    """Return the loss, or None, which JSON has a word for."""
    return loss if math.isfinite(loss) else None
