"""What a device can do at most, and the floor of a training step that follows from it."""

from __future__ import annotations

import pytest
import torch

from fastresnet.arch import get_arch
from fastresnet.bench import ceilings
from fastresnet.bench.ceilings import Ceilings, measure_ceilings, norm_bytes, step_floor, step_flops
from fastresnet.catalogue import CATALOGUE


def test_the_floor_of_resnet24_on_an_h200() -> None:
    """By hand: 16 bytes of bf16 an element of every norm's output; two operations a multiply-add, three times over."""
    spec = get_arch("resnet24")
    elements = 7 * 64 * 32**2 + 7 * 128 * 16**2 + 5 * 128 * 8**2 + 7 * 256 * 4**2
    assert norm_bytes(spec, 10, 32, torch.bfloat16) == 16 * elements
    assert step_flops(spec, 10, 32) == 6 * 529_205_760 - 2 * 3 * 64 * 9 * 32**2
    rates = Ceilings(copy_bytes_per_s=4.3e12, matrix_flops_per_s=790e12, dtype="bfloat16")
    floor = step_floor(spec, 10, 32, torch.bfloat16, rates)
    assert floor["images_per_s"] == pytest.approx(147_000, rel=0.01)
    assert floor["arithmetic_s"] == pytest.approx(4.01e-6, rel=0.01)


@pytest.mark.parametrize("name", sorted({entry.name for entry in CATALOGUE if entry.table == "r0-table1"}))
def test_multiply_adds_are_what_torch_counts(name: str) -> None:
    """Of the backward pass too: torch counts the operations of the step as it runs."""
    from torch.utils.flop_counter import FlopCounterMode

    from fastresnet.resnet import build_model

    model = build_model(get_arch(name), 10, 32)
    with FlopCounterMode(display=False) as counted:
        model(torch.zeros(1, 3, 32, 32)).sum().backward()
    assert counted.get_total_flops() == step_flops(get_arch(name), 10, 32)


def test_ceilings_are_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ceilings, "COPY_BYTES", {"cpu": 2**20})
    monkeypatch.setattr(ceilings, "MATRIX_SIDE", {"cpu": 64})
    found = measure_ceilings(torch.device("cpu"), torch.float32)
    assert found.copy_bytes_per_s > 0 and found.matrix_flops_per_s > 0
    assert Ceilings(**found.to_json()) == found and found.dtype == "float32"
