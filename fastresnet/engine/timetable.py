"""What changes from step to step, on the device: where a step that is compiled whole or captured reads it."""

from __future__ import annotations

import torch

from fastresnet.engine.state import TrainState


class Timetable:
    """A row for each step of an epoch: the lr of every parameter group, and the average's share of new weights.

    :meth:`advance` is part of the step; the host writes nothing from one step to the next.

    Attributes:
        lrs: float32 scalars, the groups' at this step.
        share: float32 scalar, of :meth:`EmaModel.move` at this step.
        step: int64 scalar, the number of this step (from 0) in the run.
    """

    def __init__(self, state: TrainState) -> None:
        self.state = state
        device = state.sums.device
        columns = len(state.optimizer.param_groups) + 1
        self._rows = torch.zeros(state.schedule.steps_per_epoch, columns, device=device)
        self._values = [torch.zeros((), device=device) for _ in range(columns)]
        *self.lrs, self.share = self._values
        self._next = torch.zeros(1, dtype=torch.int64, device=device)  # the row of the step that follows
        self.step = torch.full((), -1, device=device)
        self._filled: tuple[int, int] | None = None  # for which epoch, and after which load of the state
        self._host_step = -1  # the step that follows, once all that is queued is done

    def point_at_step(self) -> None:
        """Make :meth:`advance` come to the state's step; in the course of an epoch there is nothing to do."""
        state = self.state
        epoch = state.step // len(self._rows)
        if self._filled != (epoch, state.loads):
            self._filled = (epoch, state.loads)
            self._fill(epoch)
            self._host_step = -1
        if self._host_step != state.step:
            self._next.fill_(state.step % len(self._rows))
            self.step.fill_(state.step - 1)
        self._host_step = state.step + 1

    def advance(self) -> None:
        """Take the next row; all on the device."""
        row = self._rows.index_select(0, self._next).view(-1)
        torch._foreach_copy_(self._values, list(row.unbind()))
        # From the last to the first: calls before a capture do not stop at the end of an epoch.
        self._next.copy_((self._next + 1) % len(self._rows))
        self.step += 1

    def _fill(self, epoch: int) -> None:
        """Compute the rows from the state's step to the end of ``epoch``."""
        state, ema = self.state, self.state.ema
        bases = torch.tensor(
            [group["base_lr"] for group in state.optimizer.param_groups], dtype=torch.float64
        )
        rows = torch.zeros(self._rows.shape, dtype=torch.float64)
        update = ema.updates if ema else 0
        for step in range(state.step, (epoch + 1) * len(rows)):
            place = step % len(rows)
            rows[place, :-1] = bases * state.schedule.factor(step)
            if ema and ema.is_due(step):
                rows[place, -1] = ema.share(update)
                update += 1
        sent = rows.float()
        if self._rows.is_cuda:
            sent = sent.pin_memory()
        self._rows.copy_(sent, non_blocking=True)
