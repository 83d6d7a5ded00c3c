"""One rank of ``test_sync_norm.py``: ``sync_worker.py RANK WORLD_SIZE FOLDER``; a world of 1 takes the whole batch.

Saves {case: tensors} as ``WORLD_SIZE-RANK.pt``: this rank's rows of what has rows, and the rest as over all ranks.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from torch import distributed, nn
from torch.nn.parallel import DistributedDataParallel

from fastresnet.kernels.norm_act import BatchNormAct2d

BATCH = 7
# samples of each rank, by number of ranks; a short last batch leaves a rank with none
SHARES = {1: (7,), 3: (4, 0, 3)}


class Block(nn.Module):
    """Both norms of a block that ends in an add, its shortcut's norm too where ``added`` is "norm"."""

    def __init__(self, activation: str, added: str, kernels: str) -> None:
        super().__init__()
        self.added = added
        self.conv = nn.Conv2d(3, 6, 3, padding=1, bias=False)
        self.norm1 = BatchNormAct2d(6, activation, kernels=kernels, sync=True)
        self.norm2 = BatchNormAct2d(6, activation, kernels=kernels, sync=True)
        self.shortcut_norm = BatchNormAct2d(6, "identity", kernels=kernels, sync=True)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        x = self.conv(images)
        return self.norm2(
            self.norm1(x),
            residual=None if self.added == "none" else x,
            residual_norm=self.shortcut_norm if self.added == "norm" else None,
        )


CASES = {
    f"{activation}, {added}, {kernels}{', compiled' if compiled else ''}": (
        activation,
        added,
        kernels,
        compiled,
    )
    for activation, added, kernels, compiled in (
        ("relu", "none", "eager", False),
        ("gelu", "norm", "eager", False),
        ("silu", "plain", "triton", False),
        ("relu", "plain", "triton", False),
        ("relu", "norm", "triton", False),
        ("relu", "norm", "eager", True),
    )
}


def run(case: tuple[str, str, str, bool], rank: int, world_size: int) -> dict[str, torch.Tensor]:
    activation, added, kernels, compiled = case
    torch.manual_seed(0)
    block = Block(activation, added, kernels).to(memory_format=torch.channels_last)
    images, weights = torch.randn(BATCH, 3, 5, 4), torch.randn(BATCH, 6, 5, 4)
    start = sum(SHARES[world_size][:rank])
    rows = slice(start, start + SHARES[world_size][rank])
    images = images[rows].contiguous(memory_format=torch.channels_last).requires_grad_()
    module: nn.Module = torch.compile(block, backend="aot_eager", fullgraph=True) if compiled else block
    if world_size > 1 and not compiled:
        module = DistributedDataParallel(block, broadcast_buffers=False, find_unused_parameters=True)
    y = module(images)
    (y * weights[rows]).sum().backward()
    results = {"y": y.detach(), "gradient of images": images.grad}
    for name, parameter in block.named_parameters():
        if parameter.grad is not None:
            if compiled and world_size > 1:
                distributed.all_reduce(parameter.grad)
            results[name] = parameter.grad * (
                1 if compiled else world_size
            )  # DDP averages, the loss is a sum
    return results | {name: buffer.clone() for name, buffer in block.named_buffers()}


def main() -> None:
    rank, world_size, folder = int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3])
    torch.set_num_threads(1)
    store = f"file://{folder}/store{world_size}"
    distributed.init_process_group("gloo", init_method=store, rank=rank, world_size=world_size)
    results = {name: run(case, rank, world_size) for name, case in CASES.items()}
    torch.save(results, folder / f"{world_size}-{rank}.pt")
    distributed.destroy_process_group()


if __name__ == "__main__":
    main()
