"""One training step: augment, forward, loss, backward, update; nothing in it waits for the device."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from fastresnet.augment import Augment
from fastresnet.draws import Purpose, scalar_seed
from fastresnet.engine.state import TrainState
from fastresnet.loaders.protocol import Batch
from fastresnet.losses import LossFunction, Targets
from fastresnet.mix import Mix
from fastresnet.optim import set_lr

Forward = Callable[[nn.Module, torch.Tensor, "torch.Tensor | Targets"], tuple[torch.Tensor, torch.Tensor]]


class TrainStep:
    """The step of a run, eager or compiled.

    Args:
        state: what the step changes.
        augment, mix, loss: the recipe's; ``mix`` is None without mixup or cutmix.
        clip_grad_norm: greatest 2-norm of the gradient; None does not clip.
        amp_dtype: dtype of activations; float32 is without autocast.
        seed: of dropout (order contract).
        has_dropout: reseed dropout's generator at each step.
        rank: this process's, also for dropout.
    """

    def __init__(
        self,
        state: TrainState,
        *,
        augment: Augment,
        mix: Mix | None,
        loss: LossFunction,
        clip_grad_norm: float | None,
        amp_dtype: torch.dtype,
        seed: int,
        has_dropout: bool,
        rank: int = 0,
    ) -> None:
        self.state = state
        self.augment = augment
        self.mix = mix
        self.loss = loss
        self.clip_grad_norm = clip_grad_norm
        self.amp_dtype = amp_dtype
        self.seed = seed
        self.has_dropout = has_dropout
        self.rank = rank
        self.device_type = state.sums.device.type
        self.forward: Forward = self.forward_eager

    def forward_eager(
        self, model: nn.Module, inputs: torch.Tensor, targets: torch.Tensor | Targets
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the loss, a float32 scalar, and the number of right answers, an int64 scalar."""
        with torch.autocast(self.device_type, self.amp_dtype, enabled=self.amp_dtype != torch.float32):
            logits = model(inputs)
        labels = targets.labels_a if isinstance(targets, Targets) else targets
        return self.loss(logits, targets), (logits.detach().argmax(1) == labels).sum()

    def compile(self) -> None:
        """Compile the forward and backward passes for the batch shapes met; autograd calls both."""
        self.forward = torch.compile(self.forward_eager, dynamic=False)

    def use_eager(self) -> None:
        """Run without compiling."""
        self.forward = self.forward_eager

    def __call__(self, batch: Batch) -> None:
        """Do step ``state.step`` on ``batch``."""
        state = self.state
        if self.has_dropout:
            torch.manual_seed(scalar_seed(self.seed, Purpose.DROPOUT, state.step, self.rank))
        set_lr(state.optimizer, state.schedule.factor(state.step))
        inputs = self.augment(batch.images, batch.indices, self.amp_dtype, train=True)
        targets: torch.Tensor | Targets = batch.labels
        if self.mix is not None:
            inputs, targets = self.mix.apply(inputs, batch.labels, state.epoch, state.epoch_step)
        loss, num_correct = self.forward(state.model, inputs, targets)
        self._update(loss)
        with torch.no_grad():
            size = len(batch.labels)
            state.sums += torch.stack((loss.detach() * size, num_correct, torch.full_like(num_correct, size)))
            bad = ~torch.isfinite(loss.detach()) & (state.first_bad_step < 0)
            state.first_bad_step.masked_fill_(bad, state.step)
        if state.ema is not None:
            state.ema.update(state.step)
        state.step += 1
        state.epoch_step += 1

    def _update(self, loss: torch.Tensor) -> None:
        state = self.state
        scaler = state.scaler
        (scaler.scale(loss) if scaler else loss).backward()
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
        state.optimizer.zero_grad(set_to_none=True)
