"""What the ranks of a training do together; a process by itself is the only rank.

Tensors on a GPU go through NCCL, those on a CPU through gloo. What is agreed (numbers, texts, checkpoints) is on
the host, so agreeing never waits for a GPU.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

import torch
from torch import distributed

from fastresnet.torchrun import Launch

T = TypeVar("T")


class Ranks:
    """This process among those that train together.

    Every method but the properties is called by all ranks, in the same order.

    Attributes:
        launch: which rank this is.
    """

    def __init__(self, launch: Launch | None = None) -> None:
        self.launch = launch or Launch()

    @property
    def rank(self) -> int:
        return self.launch.rank

    @property
    def world_size(self) -> int:
        return self.launch.world_size

    @property
    def is_first(self) -> bool:
        """This is rank 0, which writes and prints."""
        return self.rank == 0

    @property
    def is_alone(self) -> bool:
        return self.world_size == 1

    def share(self, size: int) -> int:
        """Return how many of a batch's ``size`` samples this rank takes, as loaders cut it."""
        lower, extra = divmod(size, self.world_size)
        return lower + (self.rank < extra)

    def add(self, tensor: torch.Tensor) -> None:
        """Replace ``tensor`` by its sum over all ranks, the same bits on each; queued, on a GPU."""
        if not self.is_alone:
            distributed.all_reduce(tensor)

    def highest(self, value: float) -> float:
        """Return the greatest of the ranks' values."""
        if self.is_alone:
            return value
        highest = torch.tensor([value], dtype=torch.float64)
        distributed.all_reduce(highest, distributed.ReduceOp.MAX)
        return float(highest)

    def barrier(self) -> None:
        """Wait until every rank is here."""
        self.highest(0.0)

    def broadcast_bytes(self, raw: bytes | None) -> bytes:
        """Return rank 0's bytes; what the others give is not looked at."""
        if self.is_alone:
            assert raw is not None
            return raw
        own = raw if self.is_first and raw is not None else b""
        size = torch.tensor([len(own)])
        distributed.broadcast(size, 0)
        content = torch.empty(int(size), dtype=torch.uint8)
        if own:
            content = torch.frombuffer(bytearray(own), dtype=torch.uint8)
        distributed.broadcast(content, 0)
        return content.numpy().tobytes()

    def broadcast(self, value: Any = None) -> Any:
        """Return rank 0's value of JSON types."""
        return json.loads(self.broadcast_bytes(json.dumps(value).encode()))

    def gather(self, value: Any) -> list[Any]:
        """Return every rank's value of JSON types, by rank."""
        if self.is_alone:
            return [value]
        own = json.dumps(value).encode()
        size = int(self.highest(len(own)))
        padded = torch.frombuffer(bytearray(own.ljust(size)), dtype=torch.uint8)
        gathered = [torch.empty_like(padded) for _ in range(self.world_size)]
        distributed.all_gather(gathered, padded)
        return [json.loads(part.numpy().tobytes()) for part in gathered]

    def first_here(self, do: Callable[[], T]) -> T:
        """Return what ``do`` does, on one rank of each host before the others: it packs, they find the pack."""
        if self.launch.local_rank == 0:
            done = do()
            self.barrier()
            return done
        self.barrier()
        return do()


ALONE = Ranks()


def fingerprint(tensors: Iterable[torch.Tensor]) -> int:
    """Return a sum over the bits of float32 tensors, which a single other bit changes; waits for the device."""
    sums = [tensor.detach().view(torch.int32).sum(dtype=torch.int64) for tensor in tensors]
    return int(torch.stack(sums).sum())
