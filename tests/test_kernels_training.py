"""Training with the fused norms: the option from the config to the resumed run, and the same loss curve."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from optional_parts import need
from tiny_runs import BATCH, StopAt, assert_same_science, tiny_config, tiny_recipe, write_tiny

from fastresnet.assembly import build_step, choose_machine, open_data, open_loaders
from fastresnet.engine.fit import Interrupted
from fastresnet.engine.listener import Listener
from fastresnet.errors import UserError
from fastresnet.kernels import dispatch
from fastresnet.training import resume, train


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return write_tiny(tmp_path / "tiny.npz", num_train=4 * BATCH, num_test=20)


def loss_curve(data: Path, **options: Any) -> list[float]:
    """Return the loss of every step of an epoch of resnet8."""
    # Not Muon, which makes steps of one size of rounding alone, where a gradient has little else.
    sgd = {"name": "sgdn", "lr": 0.02, "momentum": 0.9}
    recipe = tiny_recipe({"arch": "resnet8", "batch_size": 4, "ema": None, "optimizer": sgd})
    chosen = choose_machine(tiny_config(data, image_size=16, limit_train=12, **options))
    opened = open_data(recipe, chosen.config, Listener())
    loaders = open_loaders(recipe, chosen.config, opened, torch.device("cpu"))
    step = build_step(recipe, chosen, opened, len(loaders.train))
    step.augment.begin_epoch(0, 0, opened.splits["train"].members, "cpu")
    losses, before = [], 0.0
    for batch in loaders.train:
        step(batch)
        total = float(step.state.sums[0])
        losses.append((total - before) / len(batch.labels))
        before = total
    loaders.close()
    return losses


def test_an_epoch_of_resnet8_has_the_same_loss_curve_with_kernels(data: Path) -> None:
    """Within a thousandth in float32; in bfloat16 within one of its units, since the interpreter cuts off."""
    need("triton")
    for amp, tolerance in (("off", 1e-3), ("bf16", 2**-8)):
        plain, fused = (loss_curve(data, amp=amp, kernels=kernels) for kernels in ("eager", "triton"))
        assert fused == pytest.approx(plain, rel=tolerance) and len(plain) == 3


SMALL = {"arch": "n1-b1-c8", "epochs": 1}


def test_chosen_kernels_are_kept_in_the_config_and_taken_by_a_resumed_run(data: Path, tmp_path: Path) -> None:
    need("triton")
    config = tiny_config(data, kernels="triton-1", amp="off")
    whole = train(tiny_recipe(SMALL), config, runs_dir=tmp_path / "whole")
    with pytest.raises(Interrupted):
        train(tiny_recipe(SMALL), config, runs_dir=tmp_path / "runs", listener=StopAt(2))
    resumed = resume("last", runs_dir=tmp_path / "runs")
    assert whole.config.kernels == resumed.config.kernels == "triton-1"
    assert_same_science(Path(resumed.path), Path(whole.path))


def test_kernels_in_a_compiled_step_learn_what_the_plain_network_does(
    data: Path, tmp_path: Path, quick_compiler: None
) -> None:
    need("triton")
    plain, fused = (
        train(tiny_recipe(SMALL), tiny_config(data, amp="off", **options), runs_dir=tmp_path / "runs")
        for options in ({}, {"kernels": "triton", "compile": "on"})
    )
    assert (fused.config.kernels, fused.config.compile) == ("triton", "on")
    assert fused.epochs[0]["train_loss"] == pytest.approx(plain.epochs[0]["train_loss"], rel=1e-4)
    assert fused.test_loss == pytest.approx(plain.test_loss, rel=1e-4)


def test_kernels_that_cannot_be_had_are_refused_before_anything_slow(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dispatch, "INTERPRETED", False)
    with pytest.raises(
        UserError, match="--kernels triton cannot be had: Triton compiles for GPUs, and this is a cpu"
    ):
        train(tiny_recipe(), tiny_config(Path("/no/data"), kernels="triton"), runs_dir=tmp_path / "runs")
    with pytest.raises(UserError, match=r"--kernels inductor is what .* makes"):
        options = {"kernels": "inductor", "compile": "off"}
        train(tiny_recipe(), tiny_config(Path("/no/data"), **options), runs_dir=tmp_path / "runs")
    assert list(tmp_path.iterdir()) == []


def test_auto_on_a_cpu_is_plain_pytorch_and_says_nothing(data: Path, tmp_path: Path, recwarn: Any) -> None:
    listener = StopAt(10**6)
    result = train(
        tiny_recipe({"epochs": 1}), tiny_config(data), runs_dir=tmp_path / "runs", listener=listener
    )
    assert (result.config.kernels, result.config.graphs) == ("eager", "off")
    assert listener.notices == [] and [str(w.message) for w in recwarn] == []
