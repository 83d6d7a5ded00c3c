"""CUDA graphs: work that is captured once for each kind of input and then replayed by one launch.

As torch's notes on CUDA graphs ask (https://docs.pytorch.org/docs/stable/notes/cuda.html#cuda-graphs): some calls on
a side stream first, so that every lazy start (cuDNN's choice of algorithms, cuBLAS's workspaces, the compiler) is
over; inputs in buffers that stay; nothing inside that waits for the device or decides on the host. The default
generator is registered with each graph by torch: seeded before a replay, it gives dropout the masks of that seed.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple, Protocol

import torch

NUM_WARM = 3  # calls before the capture; torch asks for as many


class Capture(Protocol):
    """Turns a call into a replay."""

    def __call__(self, function: Callable[[], Any]) -> tuple[Callable[[], None], Any]:
        """Return what does again what ``function`` did, and what it returned: tensors that each replay overwrites.

        ``function`` has been called a few times when this returns.
        """


class CudaCapture:
    """Captures on one side stream of ``device``, into one memory pool.

    The pool is shared because no graph here leaves anything in it that is read after another's replay.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.stream = torch.cuda.Stream(device)
        self.pool = torch.cuda.graph_pool_handle()

    def __call__(self, function: Callable[[], Any]) -> tuple[Callable[[], None], Any]:
        current = torch.cuda.current_stream(self.device)
        self.stream.wait_stream(current)
        # Warmed on the stream that captures: workspaces are kept by stream, and a backward pass runs on the
        # stream that its forward pass ran on.
        with torch.cuda.stream(self.stream):
            for _ in range(NUM_WARM):
                function()
        self.stream.synchronize()
        graph = torch.cuda.CUDAGraph()
        # The loaders' threads may allocate meanwhile: only this thread's calls are held to the rules.
        with torch.cuda.graph(graph, pool=self.pool, stream=self.stream, capture_error_mode="thread_local"):
            outputs = function()
        current.wait_stream(self.stream)
        return graph.replay, outputs


class _Entry(NamedTuple):
    inputs: list[torch.Tensor]
    replay: Callable[[], None]
    outputs: Any


class Replays:
    """A function of tensors, captured anew for each kind of arguments it meets.

    Args:
        function: of tensors and hashable keywords; what it returns is overwritten by the next call of that kind.
        capture: how.
        preserving: around each capture, which calls the function; restores what these calls change.
    """

    def __init__(
        self,
        function: Callable[..., Any],
        capture: Capture,
        preserving: Callable[[], AbstractContextManager[None]] = nullcontext,
    ) -> None:
        self.function = function
        self.capture = capture
        self.preserving = preserving
        self._entries: dict[Hashable, _Entry] = {}

    def __len__(self) -> int:
        """Return how many kinds were captured."""
        return len(self._entries)

    def __call__(self, *inputs: torch.Tensor, **kind: Hashable) -> Any:
        """Do what ``function(*inputs, **kind)`` does, without waiting for the device."""
        key = (*((t.shape, t.stride(), t.dtype) for t in inputs), *sorted(kind.items()))
        entry = self._entries.get(key)
        if entry is None:
            entry = self._entries[key] = self._captured(inputs, kind)
        for buffer, given in zip(entry.inputs, inputs, strict=True):
            buffer.copy_(given, non_blocking=True)
        entry.replay()
        return entry.outputs

    def _captured(self, inputs: tuple[torch.Tensor, ...], kind: dict[str, Hashable]) -> _Entry:
        buffers = [torch.empty_strided(t.shape, t.stride(), dtype=t.dtype, device=t.device) for t in inputs]
        for buffer, given in zip(buffers, inputs, strict=True):
            buffer.copy_(given)
        with self.preserving():
            replay, outputs = self.capture(lambda: self.function(*buffers, **kind))
        return _Entry(buffers, replay, outputs)
