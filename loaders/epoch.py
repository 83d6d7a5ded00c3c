"""What the backends share: which epoch comes next, its plan made ahead of need, and its labels."""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fastresnet.errors import UserError
from fastresnet.loaders.plan import EpochPlan, num_steps, plan_epoch
from fastresnet.loaders.protocol import LoaderSpec, Split
from fastresnet.words import counted


@dataclass(frozen=True, kw_only=True)
class Epoch:
    """One iteration of a loader.

    Attributes:
        plan: the epoch's plan.
        labels: int64 [n], the plan's samples' labels.
        start_step: the first step to yield.
    """

    plan: EpochPlan
    labels: NDArray[np.int64]
    start_step: int

    @property
    def steps(self) -> range:
        """The steps to yield."""
        return range(self.start_step, len(self.plan.bounds) - 1)

    def rows(self, step: int) -> slice:
        """The rows of the plan that are batch ``step``."""
        return slice(int(self.plan.bounds[step]), int(self.plan.bounds[step + 1]))


def loader_failed(backend: str, error: BaseException) -> UserError:
    """Return ``error``, met by a worker or a thread of ``backend``, as one line."""
    if isinstance(error, MemoryError):
        return UserError(
            f"the machine's memory is too small for the {backend} loader; "
            "give a smaller batch size, or another loader"
        )
    lines = str(error).strip().splitlines() or ["no message"]
    return UserError(f"the {backend} loader failed: {type(error).__name__}: {lines[-1].strip()}")


class EpochCursor:
    """The Loader protocol's bookkeeping; a backend inherits it and adds ``__iter__``.

    Ordering 50,000 samples takes milliseconds, which shows in the fastest epochs. So when an epoch begins,
    the next one's plan is made on a thread.
    """

    def __init__(self, split: Split, spec: LoaderSpec) -> None:
        self.split = split
        self.spec = spec
        self._epoch = 0
        self._start_step = 0
        self._ahead: tuple[int, Future[EpochPlan]] | None = None
        self._planner: ThreadPoolExecutor | None = ThreadPoolExecutor(1, "fastresnet-plan")

    @property
    def num_samples(self) -> int:
        """Samples an epoch yields over all ranks."""
        members = len(self.split.members)
        return len(self) * self.spec.batch_size if self.spec.drop_last else members

    def __len__(self) -> int:
        """Steps in a whole epoch."""
        return num_steps(len(self.split.members), self.spec)

    def set_epoch(self, epoch: int, start_step: int = 0) -> None:
        """Choose the epoch, and the step within it, that the next iterations start from."""
        if not 0 <= start_step <= len(self):
            raise UserError(f"start step is {start_step}; an epoch here has {counted(len(self), 'step')}")
        self._epoch, self._start_step = epoch, start_step

    def begin(self) -> Epoch:
        """Return the chosen epoch, ready to iterate, and start on the plan of the one after."""
        if self._planner is None:
            raise UserError("the loader is closed; open a new one")
        if self._ahead is not None and self._ahead[0] == self._epoch:
            plan = self._ahead[1].result()
        else:
            plan = plan_epoch(self.split, self.spec, self._epoch)
        following = self._epoch + 1
        self._ahead = following, self._planner.submit(plan_epoch, self.split, self.spec, following)
        return Epoch(plan=plan, labels=self.split.labels[plan.indices], start_step=self._start_step)

    def close(self) -> None:
        """Free the planning thread; calling it again does nothing."""
        planner, self._planner, self._ahead = self._planner, None, None
        if planner is not None:
            planner.shutdown(wait=True, cancel_futures=True)
