"""One training step: augment, forward, loss, backward, update; nothing in it waits for the device.

The same step can be done in several ways (:class:`Way`): operation by operation, with its passes compiled, compiled
whole, or replayed from a CUDA graph.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import nn

from fastresnet.augment import Augment
from fastresnet.augment_ops import shrink
from fastresnet.draws import Purpose, scalar_seed
from fastresnet.engine.compiler import prepare_to_compile
from fastresnet.engine.distributed import ALONE
from fastresnet.engine.evaluate import Scorer
from fastresnet.engine.exchange import Exchange, Whole
from fastresnet.engine.graphs import Capture, CudaCapture, Replays
from fastresnet.engine.machine import autocast
from fastresnet.engine.state import TrainState
from fastresnet.engine.timetable import Timetable
from fastresnet.engine.way import Way, graph_obstacle, whole_obstacle
from fastresnet.errors import UserError
from fastresnet.kernels.conv import set_convs
from fastresnet.loaders.protocol import Batch
from fastresnet.losses import Filter, LossFunction, Targets, taken
from fastresnet.mix import Mix, SentDraw
from fastresnet.optim import set_lr
from fastresnet.resnet import set_kernels


class _Doing(NamedTuple):
    forward: Callable[..., tuple[torch.Tensor, torch.Tensor, torch.Tensor]]
    update: Callable[..., None]
    learn: Callable[..., None]
    scorer: Scorer


class TrainStep:
    """The step of a run.

    Args:
        state: what the step changes.
        augment, mix, loss: the recipe's; ``mix`` is None without mixup or cutmix.
        image_sizes: the side in pixels that images are resized to in each epoch, after all that is done to them.
        clip_grad_norm: greatest 2-norm of the gradient; None does not clip.
        amp_dtype: dtype of activations; float32 is without autocast.
        seed: of dropout (order contract).
        has_dropout: reseed dropout's generator at each step.
        filter: chooses the images that are trained on; None takes all.
        exchange: joins the step with those of the other ranks; None for a process by itself.
        capture: how graphs are captured; None captures CUDA graphs.

    Attributes:
        way: how steps are done; :meth:`take` changes it.
        scorer: evaluates the state's model in the same way.
        backend: torch.compile's.
    """

    backend = "inductor"

    def __init__(
        self,
        state: TrainState,
        *,
        augment: Augment,
        mix: Mix | None,
        loss: LossFunction,
        image_sizes: Sequence[int],
        clip_grad_norm: float | None,
        amp_dtype: torch.dtype,
        seed: int,
        has_dropout: bool,
        filter: Filter | None = None,
        exchange: Exchange | None = None,
        capture: Capture | None = None,
    ) -> None:
        self.state = state
        self.augment = augment
        self.mix = mix
        self.loss = loss
        self.image_sizes = image_sizes
        self.clip_grad_norm = clip_grad_norm
        self.amp_dtype = amp_dtype
        self.seed = seed
        self.has_dropout = has_dropout
        self.filter = filter
        self.exchange = exchange
        self.ranks = exchange.ranks if exchange else ALONE
        self.capture = capture
        self.device_type = state.sums.device.type
        self._timetable: Timetable | None = None
        self._done_by: dict[Way, _Doing] = {}
        self.take(Way())

    # Ways

    def take(self, way: Way) -> None:
        """Do steps and evaluations in ``way`` from now on.

        What a way compiles or captures, at its first steps, is kept until :meth:`forget_other_ways`.

        Raises:
            UserError: :func:`graph_obstacle` or :func:`whole_obstacle` has a reason against it.
        """
        for option, wanted, obstacle in (
            ("--graphs on", way.graphs, graph_obstacle(self)),
            ("--compile whole", way.compile == "whole", whole_obstacle(self)),
        ):
            if wanted and obstacle is not None:
                raise UserError(f"{option} is not possible here: {obstacle}; use auto or off")
        self.way = way
        for model in (self.state.model, self.state.eval_model):
            set_kernels(model, way.kernels)
            set_convs(model, way.convs)
        self._on_device = way.graphs or way.compile == "whole"
        if self._on_device and self._timetable is None:
            self._timetable = Timetable(self.state)
        self._hold_lr()
        if way not in self._done_by:
            self._done_by[way] = self._make(way)
        self.forward, self.update, self._learn_or_replay, self.scorer = self._done_by[way]

    def forget_other_ways(self) -> None:
        """Give back what other ways than the one taken have compiled and captured."""
        self._done_by = {self.way: self._done_by[self.way]}

    def _make(self, way: Way) -> _Doing:
        forward, update, learn = self.forward_eager, self.update_eager, self._learn
        scorer = Scorer(self.state.eval_model, self.augment, self.amp_dtype)
        if way.compile != "off":
            prepare_to_compile()
            forward = torch.compile(forward, dynamic=False, backend=self.backend)
            scorer.compile(self.backend)
        if way.compile == "whole":
            # It says, of every optimizer, that a marker for the profiler is left out.
            logging.getLogger("torch._dynamo.variables.ctx_manager").setLevel(logging.ERROR)
            update = torch.compile(update, dynamic=False, backend=self.backend)
        if not way.graphs:
            return _Doing(forward, update, learn, scorer)
        if self.capture is None:
            self.capture = CudaCapture(self.state.sums.device)
        scorer.use_graphs(self.capture)
        return _Doing(forward, update, Replays(learn, self.capture, self._preserving), scorer)

    def _hold_lr(self) -> None:
        """Give the optimizer its learning rates as tensors where the host is not to set them at every step."""
        groups = self.state.optimizer.param_groups
        for place, group in enumerate(groups):
            if self._on_device:
                assert self._timetable is not None
                group["lr"] = self._timetable.lrs[place]
            elif isinstance(group["lr"], torch.Tensor):
                group["lr"] = group["base_lr"]
            if "capturable" in group:  # which also says that the lr may be a tensor
                group["capturable"] = self._on_device or self.device_type == "cuda"

    @contextmanager
    def _preserving(self) -> Iterator[None]:
        with self.state.preserved():
            yield
        if self._timetable is not None:
            self._timetable.point_at_step()
        self._seed()

    def _seed(self) -> None:
        """Give the step its own dropout, whatever was drawn before: a capture needs some steps too."""
        if self.has_dropout:
            torch.manual_seed(scalar_seed(self.seed, Purpose.DROPOUT, self.state.step, self.ranks.rank))

    # The step

    def __call__(self, batch: Batch, *, averaging: bool | None = None, image_size: int | None = None) -> None:
        """Do step ``state.step`` on ``batch``.

        Args:
            averaging: whether the average takes the new weights in; None is as the step's number says.
            image_size: side in pixels that the images are resized to; None is as the epoch says.
        """
        state = self.state
        self._seed()
        if averaging is None:
            averaging = state.ema is not None and state.ema.is_due(state.step)
        if self._on_device:
            assert self._timetable is not None
            self._timetable.point_at_step()
        else:
            set_lr(state.optimizer, state.schedule.factor(state.step))
        drawn = self.mix.send(batch.images, state.epoch, state.epoch_step) if self.mix else ()
        image_size = image_size or self.image_sizes[state.epoch]
        self._learn_or_replay(
            batch.images, batch.labels, batch.indices, *drawn, averaging=averaging, image_size=image_size
        )
        if averaging:
            assert state.ema is not None
            state.ema.updates += 1
        state.step += 1
        state.epoch_step += 1

    def _learn(
        self,
        images: torch.Tensor,
        labels: torch.Tensor,
        indices: torch.Tensor,
        *drawn: torch.Tensor,
        averaging: bool,
        image_size: int,
    ) -> None:
        """Do all that is done on the device, and change nothing on the host."""
        state = self.state
        if self.exchange is None:
            loss, shown, num_correct = self.forward(
                state.model, images, labels, indices, *drawn, image_size=image_size
            )
            self._scaled(loss).backward()
            self._advance()
            self.update(shown.detach(), num_correct, len(labels), averaging)
        else:
            whole = self._learn_with_others(
                self.exchange, images, labels, indices, *drawn, image_size=image_size
            )
            self._advance()
            self.update(*whole, averaging)
        state.optimizer.zero_grad(set_to_none=True)

    def _advance(self) -> None:
        if self._on_device:
            assert self._timetable is not None
            self._timetable.advance()

    def _scaled(self, loss: torch.Tensor) -> torch.Tensor:
        return self.state.scaler.scale(loss) if self.state.scaler else loss

    def _learn_with_others(
        self,
        exchange: Exchange,
        images: torch.Tensor,
        labels: torch.Tensor,
        indices: torch.Tensor,
        *drawn: torch.Tensor,
        image_size: int,
    ) -> Whole:
        """Leave the gradients of the whole batch, of which this rank has these images, in the weights."""
        size, model = len(labels), self.state.model
        if not size:
            nothing = torch.zeros((), device=labels.device)
            if exchange.sync_norms:  # the other ranks wait in every norm
                inputs = self.augment(images, None, self.amp_dtype, train=False)
                if self.filter is not None:
                    with torch.no_grad(), autocast(self.device_type, self.amp_dtype):
                        model(inputs)
                with autocast(self.device_type, self.amp_dtype):
                    (model(inputs).float().sum() * 0).backward()
            else:
                exchange.skip(num_passes=1 if self.filter is None else 2)
            return exchange(nothing, nothing, 0)
        # Shares of different sizes have different graphs, which may exchange statistics in different orders.
        forward = self.forward if exchange.is_complete(self.state.epoch_step) else self.forward_eager
        loss, shown, num_correct = forward(model, images, labels, indices, *drawn, image_size=image_size)
        self._scaled(exchange.weigh_kept(loss, size)).backward()
        return exchange(exchange.weigh(shown.detach(), size), num_correct, size)

    def forward_eager(
        self,
        model: nn.Module,
        images: torch.Tensor,
        labels: torch.Tensor,
        indices: torch.Tensor,
        *drawn: torch.Tensor,
        image_size: int,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return the loss to learn from, that of all images (float32 scalars), and the right answers to all (int64).

        The losses are one tensor unless a filter keeps some images. ``images`` is uint8 [B, 3, H, W] channels-last,
        ``labels`` and ``indices`` int64 [B], ``drawn`` a :class:`SentDraw` or nothing; the network sees the images
        at ``image_size`` pixels a side.
        """
        inputs = self.augment(images, indices, self.amp_dtype, train=True)
        targets: torch.Tensor | Targets = labels
        if self.mix is not None:
            inputs, targets = self.mix.mixed(inputs, labels, SentDraw(*drawn))
        inputs = shrink(inputs, image_size)
        with torch.set_grad_enabled(self.filter is None), autocast(self.device_type, self.amp_dtype):
            logits = model(inputs)
        num_correct = (logits.detach().argmax(1) == labels).sum()
        if self.filter is None:
            loss = self.loss(logits, targets)
            return loss, loss, num_correct
        places, shown = self.filter(logits, targets)
        # Autocast anew: it would give the weights' casts of above again, which have no gradient.
        with autocast(self.device_type, self.amp_dtype):
            logits = model(inputs[places])
        return self.loss(logits, taken(targets, places)), shown, num_correct

    def update_eager(
        self, loss: torch.Tensor, num_correct: torch.Tensor, num_images: int | torch.Tensor, averaging: bool
    ) -> None:
        """Step the optimizer, count, and move the average."""
        state = self.state
        self._step_optimizer()
        with torch.no_grad():
            num = torch.zeros_like(num_correct) + num_images
            state.sums += torch.stack((loss * num_images, num_correct, num))
            bad = ~torch.isfinite(loss) & (state.first_bad_step < 0)
            if self._on_device:
                assert self._timetable is not None
                state.first_bad_step.copy_(torch.where(bad, self._timetable.step, state.first_bad_step))
            else:
                state.first_bad_step.masked_fill_(bad, state.step)
            if averaging:
                assert state.ema is not None
                if self._on_device:
                    assert self._timetable is not None
                    state.ema.move(self._timetable.share)
                else:
                    state.ema.move(state.ema.share(state.ema.updates))

    def _step_optimizer(self) -> None:
        state = self.state
        scaler = state.scaler
        if self.clip_grad_norm is not None:
            if scaler:
                scaler.unscale_(state.optimizer)  # type: ignore[arg-type] # Lookahead has the same interface
            nn.utils.clip_grad_norm_(state.model.parameters(), self.clip_grad_norm, foreach=True)
        if scaler:
            # Skipping an overflow waits for the device, but for fused optimizers, which look at it there.
            scaler.step(state.optimizer)  # type: ignore[arg-type] # likewise
            scaler.update()
        else:
            state.optimizer.step()
