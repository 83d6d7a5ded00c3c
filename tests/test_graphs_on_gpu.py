"""CUDA graphs of real steps: they learn what launched steps do. Only where there is a GPU."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from made_steps import RECIPES, Made
from tiny_runs import write_tiny

from fastresnet.engine.way import Way

if not torch.cuda.is_available():
    pytest.skip("no GPU", allow_module_level=True)


@pytest.mark.parametrize("kernels", ["eager", "triton"])
@pytest.mark.parametrize("name", RECIPES)
def test_captured_steps_learn_what_launched_ones_do(name: str, kernels: str, tmp_path: Path) -> None:
    data = write_tiny(tmp_path / "tiny.npz")
    plain = Made(data, RECIPES[name], Way(kernels=kernels), device="cuda")
    wanted = plain.learn()
    graphed = Made(data, RECIPES[name], Way(kernels=kernels, graphs=True), device="cuda")
    places = {key: tensor.data_ptr() for key, tensor in graphed.tensors().items()}
    # Atomic additions and TF32 come to other roundings in another run.
    assert graphed.learn() == pytest.approx(wanted, rel=0.05)
    for key, tensor in graphed.tensors().items():
        assert tensor.data_ptr() == places[key], key
        torch.testing.assert_close(tensor, plain.tensors()[key], rtol=0.05, atol=0.02, msg=key)
