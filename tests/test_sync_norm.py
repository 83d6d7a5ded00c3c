"""Statistics over all ranks: three gloo processes compute what one does on the whole batch."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from optional_parts import need
from sync_worker import CASES, SHARES

WORKER = Path(__file__).with_name("sync_worker.py")
Results = dict[str, dict[str, torch.Tensor]]


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[int, list[Results]]:
    """The results of every rank, by number of ranks."""
    need("triton")
    need("torchrun")
    folder = tmp_path_factory.mktemp("ranks")
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "TRITON_INTERPRET": "1", "CUDA_VISIBLE_DEVICES": ""}
    processes = [
        subprocess.Popen(
            [sys.executable, WORKER, str(rank), str(world_size), folder],
            env=environment,
            stderr=subprocess.PIPE,
            text=True,
        )
        for world_size in SHARES
        for rank in range(world_size)
    ]
    for process in processes:
        _, errors = process.communicate(timeout=300)
        assert process.returncode == 0, errors
    return {
        world_size: [torch.load(folder / f"{world_size}-{rank}.pt") for rank in range(world_size)]
        for world_size in SHARES
    }


@pytest.mark.parametrize("case", CASES)
def test_ranks_are_one_process(results: dict[int, list[Results]], case: str) -> None:
    whole = results[1][0][case]
    ranks = [result[case] for result in results[3]]
    assert ranks[0].keys() == whole.keys() and len(whole) > 8
    for name, wanted in whole.items():
        shares = [rank[name] for rank in ranks]
        if name in ("y", "gradient of images"):
            assert [len(share) for share in shares] == list(SHARES[3])
            torch.testing.assert_close(torch.cat(shares), wanted, rtol=1e-4, atol=1e-5)
        else:
            for share in shares:
                torch.testing.assert_close(share, wanted, rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize("case", CASES)
def test_ranks_keep_the_same_bits(results: dict[int, list[Results]], case: str) -> None:
    """So that their weights never drift apart."""
    first, *others = results[3]
    for name in first[case]:
        if name not in ("y", "gradient of images"):
            assert all(torch.equal(first[case][name], other[case][name]) for other in others), name
