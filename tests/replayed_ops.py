"""A stand-in for CUDA graphs on a CPU: the operations of a call, done again on the same tensors without its Python."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from fastresnet.engine.graphs import NUM_WARM


class _Recorder(TorchDispatchMode):
    """Notes every operation below autograd, with the tensors it was done on."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Any, Any, Any, Any]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten._local_scalar_dense.default:
            raise RuntimeError("waits for the device: operation not permitted when stream is capturing")
        out = func(*args, **(kwargs or {}))
        self.calls.append((func, args, kwargs or {}, out))
        return out


class RecordedOps:
    """As :class:`CudaCapture`: numbers from the host are frozen, what is read back is refused, Python is not run again.

    Unlike a graph's, tensors made on the way have new addresses in each replay; what is returned keeps its own.

    Attributes:
        num_captured, num_replayed: so far.
    """

    def __init__(self) -> None:
        self.num_captured = self.num_replayed = 0

    def __call__(self, function: Callable[[], Any]) -> tuple[Callable[[], None], Any]:
        for _ in range(NUM_WARM):
            function()
        with _Recorder() as recorder:
            outputs = function()
        self.num_captured += 1

        def replay() -> None:
            self.num_replayed += 1
            made: dict[int, torch.Tensor] = {}

            def now(value: Any) -> Any:
                return made.get(id(value), value) if isinstance(value, torch.Tensor) else value

            with torch.no_grad():
                for func, args, kwargs, before in recorder.calls:
                    after = func(*tree_map(now, args), **tree_map(now, kwargs))
                    for old, new in zip(tree_leaves(before), tree_leaves(after), strict=True):
                        if isinstance(old, torch.Tensor):
                            made[id(old)] = new
                for output in tree_leaves(outputs):
                    if isinstance(output, torch.Tensor):
                        output.copy_(now(output))

        return replay, outputs
