"""Training with the fused norms: the option from the config to the resumed run, and the same loss curve."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from optional_parts import need
from tiny_runs import StopAt, assert_same_science, tiny_config, tiny_recipe, write_tiny

from fastresnet.assembly import build_step, choose_machine, open_data, open_loaders
from fastresnet.engine.fit import Interrupted
from fastresnet.engine.listener import Listener
from fastresnet.engine.step import TrainStep
from fastresnet.errors import UserError
from fastresnet.kernels import dispatch
from fastresnet.training import resume, train


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return write_tiny(tmp_path / "tiny.npz")


def loss_curve(data: Path, **options: Any) -> list[float]:
    """Return the loss of every step of an epoch of resnet8."""
    recipe = tiny_recipe({"arch": "resnet8", "ema": None, "optimizer.lr": 0.02})
    chosen = choose_machine(tiny_config(data, **options))
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
    """Within a thousandth in float32; in bfloat16, within twice what rounding to it does to the plain network."""
    need("triton")
    plain, fused = (loss_curve(data, amp="off", kernels=kernels) for kernels in ("eager", "triton"))
    assert fused == pytest.approx(plain, rel=1e-3) and len(plain) == 6
    plain_bf16, fused_bf16 = (
        loss_curve(data, amp="bf16", kernels=kernels) for kernels in ("eager", "triton")
    )
    noise = max(abs(a - b) for a, b in zip(plain, plain_bf16, strict=True))
    apart = max(abs(a - b) for a, b in zip(plain_bf16, fused_bf16, strict=True))
    assert 0 < apart <= 2 * noise, (plain, plain_bf16, fused_bf16)


@pytest.mark.parametrize("compile", ["off", "on"])
def test_chosen_kernels_are_kept_in_the_config_and_taken_by_a_resumed_run(
    compile: str, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    need("triton")
    monkeypatch.setattr(TrainStep, "backend", "aot_eager")
    recipe = tiny_recipe({"arch": "n2-b1-c4", "epochs": 2})
    config = tiny_config(data, kernels="triton-1", compile=compile, amp="off")
    whole = train(recipe, config, runs_dir=tmp_path / "whole")
    assert whole.config.kernels == "triton-1" and whole.config.compile == compile
    with pytest.raises(Interrupted):
        train(recipe, config, runs_dir=tmp_path / "runs", listener=StopAt(8))
    resumed = resume("last", runs_dir=tmp_path / "runs")
    assert resumed.config.kernels == "triton-1"
    assert_same_science(Path(resumed.path), Path(whole.path))


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
