"""Progressive resizing: which size each epoch has, what the network sees, and that such runs compile and resume."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from made_steps import Made
from PIL import Image
from tiny_runs import (
    SIZE,
    STEPS,
    Heard,
    StopAt,
    assert_same_science,
    stop,
    tiny_config,
    tiny_recipe,
    train_tiny,
)

from fastresnet.assembly import Data, open_data
from fastresnet.augment_ops import shrink
from fastresnet.bench import board_run
from fastresnet.bench.board_run import measure_run_s
from fastresnet.cli.train_progress import TrainProgress, sizes_shown
from fastresnet.engine.listener import Listener, RunInfo
from fastresnet.engine.warmup import WarmUp
from fastresnet.engine.way import Way
from fastresnet.errors import UserError
from fastresnet.mix import SentDraw
from fastresnet.recipe import Recipe, load_recipe
from fastresnet.sweep_spec import load_sweep
from fastresnet.training import resume, train

FAST = load_recipe("fast")
# One epoch of three each at 4, 6 and 8 pixels.
GROWING: list[dict[str, Any]] = [{"size": 4, "until": 0.3}, {"size": 6, "until": 0.7}]


# Which size each epoch has


@given(
    epochs=st.integers(1, 400),
    sizes=st.lists(st.integers(1, 31), unique=True, max_size=5).map(sorted),
    untils=st.lists(st.floats(0.001, 0.999), unique=True, min_size=5, max_size=5).map(sorted),
)
def test_sizes_rise_at_their_epochs_and_the_last_is_full(
    epochs: int, sizes: list[int], untils: list[float]
) -> None:
    resize = [{"size": size, "until": until} for size, until in zip(sizes, untils, strict=False)]
    recipe = FAST.with_overrides({"epochs": epochs, "arch": "n1-b1-c8", "resize": resize})
    found = recipe.image_sizes(32)
    assert len(found) == epochs and found[-1] == 32
    assert all(before <= after for before, after in pairwise(found))
    for phase in recipe.resize:
        ends = round(phase.until * epochs)
        assert sum(size <= phase.size for size in found) == min(ends, epochs - 1)
    assert Recipe.from_json_dict(recipe.to_json_dict()) == recipe


def test_it_is_written_in_toml_typed_and_swept(tmp_path: Path) -> None:
    text = tmp_path / "mine.toml"
    text.write_text(
        'name = "mine"\narch = "n3-b1-c32"\nepochs = 4\nbatch_size = 64\n'
        'optimizer = { name = "sgd", lr = 0.1 }\nschedule = { name = "constant" }\n'
        "[[resize]]\nsize = 24\nuntil = 0.5\n[[resize]]\nsize = 28\nuntil = 0.75\n"
    )
    recipe = load_recipe(str(text))
    assert recipe.image_sizes(32) == (24, 24, 28, 32)
    typed = FAST.with_overrides({"resize": "[{size = 24, until = 0.5}, {size = 28, until = 0.75}]"})
    assert typed.resize == recipe.resize and FAST.resize == ()
    assert typed.with_overrides({"resize.0.size": "20"}).image_sizes(32)[0] == 20
    assert typed.with_overrides({"resize": "[]"}) == FAST
    assert FAST.image_sizes(32) == (32,) * FAST.epochs

    sweep = tmp_path / "sizes.toml"
    sweep.write_text(
        'name = "sizes"\nrecipe = "fast"\nset = { arch = "n3-b1-c32", epochs = 4 }\n'
        "[grid]\nresize = [\n"
        '    "[]",\n    "[{size = 16, until = 0.5}]",\n    "[{size = 33, until = 0.5}]",\n]\n'
    )
    with pytest.raises(UserError, match=r"sizes.toml:8: resize.0.size is 33; it must be below .* 32 pixels"):
        load_sweep(str(sweep)).all_cells()
    sweep.write_text(sweep.read_text().replace("33", "28"))
    ((_, cells),) = load_sweep(str(sweep)).all_cells()
    assert [cell.recipe.image_sizes(32)[0] for cell in cells] == [32, 16, 28]
    assert len({cell.key({}) for cell in cells}) == 3


WRONG: list[tuple[Any, str]] = [
    ("[{size = 28, until = 0.5}, {size = 24, until = 0.7}]", "resize: size is 28, 24; each must be above"),
    ("[{size = 24, until = 0.5}, {size = 28, until = 0.5}]", "resize: until is 0.5, 0.5; each must be above"),
    ("[{size = 24, until = 1.0}]", "resize.0.until is 1.0; it must be below 1"),
    ("[{size = 24, until = 0}]", "resize.0.until is 0; it must be above 0"),
    ("[{size = 0, until = 0.5}]", "resize.0.size is 0; it must be at least 1"),
    ("[{size = 24}]", "resize.0.until is missing"),
    ("[{size = 24, til = 0.5}]", r"unknown key 'resize.0.til'; did you mean 'resize.0.until'\?"),
]


@pytest.mark.parametrize(("value", "message"), WRONG)
def test_a_wrong_value_is_explained(value: str, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        FAST.with_overrides({"resize": value})
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("arch", "size", "message"),
    [
        ("n2-b1-c4", 8, "resize.0.size is 8; it must be below the data set's 8 pixels"),
        ("n2-b1-c4", 9, "resize.0.size is 9; it must be below the data set's 8 pixels"),
        ("n2-b1-c4-p2", 6, "n2-b1-c4-p2 pools 2x2 of it; take --arch n2-b1-c4, or resize=\\[\\]"),
        ("n3-b1-c4", 2, "resize.0.size is 2: image size 2 is too small for 3 stages"),
    ],
)
def test_what_the_data_or_the_arch_does_not_allow_is_refused(
    arch: str, size: int, message: str, data: Path, runs: Path
) -> None:
    recipe = tiny_recipe({"arch": arch, "resize": [{"size": size, "until": 0.5}]})
    with pytest.raises(UserError, match=message) as caught:
        train(recipe, tiny_config(data), runs_dir=runs)
    assert "\n" not in str(caught.value)
    assert not runs.exists() or not list(runs.iterdir())


def test_a_pool_of_the_whole_last_map_takes_every_size() -> None:
    """As resnet24's, whose P of 4 is its last map at 32 pixels, and not resnet8's."""
    resize = {"resize": [{"size": 24, "until": 0.5}]}
    assert FAST.with_overrides(resize | {"arch": "resnet24"}).image_sizes(32)[0] == 24
    with pytest.raises(UserError, match="pools 4x4 of it; take --arch n3-b1-c32, or"):
        FAST.with_overrides(resize | {"arch": "resnet8"}).image_sizes(32)


# What the network sees


@pytest.mark.parametrize(("full", "size"), [(32, 24), (32, 28), (32, 12), (9, 4)])
def test_images_are_resized_as_pillow_does(full: int, size: int) -> None:
    planes = np.random.default_rng(full + size).standard_normal((2, 3, full, full)).astype(np.float32)
    images = torch.from_numpy(planes).contiguous(memory_format=torch.channels_last)
    small = shrink(images, size)
    assert small.shape == (2, 3, size, size) and small.is_contiguous(memory_format=torch.channels_last)
    for image, plane in zip(small.flatten(0, 1), planes.reshape(-1, full, full), strict=True):
        wanted = Image.fromarray(plane).resize((size, size), Image.Resampling.BILINEAR)
        np.testing.assert_allclose(image.numpy(), np.asarray(wanted), atol=1e-5)
    assert shrink(images, full) is images
    half = shrink(images.bfloat16(), size)
    assert half.dtype == torch.bfloat16 and half.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(half.float(), small, rtol=0.02, atol=0.02)


def test_each_epoch_has_its_size_and_evaluations_are_full(data: Path) -> None:
    made = Made(data, {"resize": GROWING, "ema": None}, Way())
    seen: list[tuple[bool, int]] = []
    made.step.state.model.register_forward_pre_hook(
        lambda model, args: seen.append((model.training, args[0].shape[-1]))
    )
    made.learn(3)
    trained = [size for training, size in seen if training]
    steps = len(trained) // 3
    assert trained == [4] * steps + [6] * steps + [8] * steps
    assert {size for training, size in seen if not training} == {SIZE}


def test_images_are_augmented_and_mixed_at_full_size_first(data: Path) -> None:
    overrides: dict[str, Any] = {"mix": {"name": "cutmix", "block": 2}, "resize": GROWING}
    made = Made(data, overrides | {"augment.ops": [{"name": "cutout", "size": 3}]}, Way())
    step = made.step
    batch = made.first_batch()
    seen: list[torch.Tensor] = []
    step.state.model.register_forward_pre_hook(lambda model, args: seen.append(args[0].clone()))
    step(batch)
    assert step.mix is not None
    images = step.augment(batch.images, batch.indices, torch.float32, train=True)
    mixed, _ = step.mix.mixed(images, batch.labels, SentDraw(*step.mix.send(batch.images, 0, 0)))
    assert torch.equal(seen[0], shrink(mixed, 4))
    assert not torch.equal(seen[0], shrink(images, 4))


# Runs


def test_resumed_in_any_phase_a_run_learns_the_same_bits(data: Path, tmp_path: Path) -> None:
    overrides = {"resize": GROWING, "mix": {"name": "cutmix", "block": 16}, "dropout": {"head": 0.2}}
    whole = train_tiny(data, tmp_path / "whole", overrides)
    sizes = ({4, 6, 8}, {6, 8}, {8})
    for epoch, left in enumerate(sizes):
        run = stop(data, tmp_path / f"epoch-{epoch}", StopAt(epoch * STEPS + 2), overrides)
        heard = Heard()
        resume(str(run), listener=heard)
        assert_same_science(run, whole)
        info = heard.info
        assert info is not None and info.resumed_at == (epoch, 2) and info.image_sizes == (4, 6, 8)
        assert set(info.step_s) == left  # what is done with is not warmed up again
        assert info.left_s(epoch, 2) > 0


def told(image_sizes: tuple[int, ...], step_s: dict[int, float]) -> RunInfo:
    """A run of 10 steps an epoch, told of before its first."""
    epochs = len(image_sizes)
    recipe = FAST.with_overrides({"epochs": epochs, "resize": [{"size": image_sizes[0], "until": 0.5}]})
    return RunInfo(
        path="runs/r",
        recipe=recipe,
        spec=recipe.arch_spec(),
        config=tiny_config(Path("d")),
        dataset={
            "name": "d",
            "class_names": ["a", "b"],
            "image_size": image_sizes[-1],
            "num_train": 10 * recipe.batch_size,
            "num_test": 3 * recipe.batch_size,
            "is_builtin": False,
        },
        device_name="cpu",
        num_params=1,
        multiply_adds=1,
        reasons=dict.fromkeys(("compile", "kernels", "convs", "graphs"), ""),
        steps_per_epoch=10,
        steps_left=10 * epochs,
        image_sizes=image_sizes,
        step_s=step_s,
        resumed_at=None,
    )


def test_the_time_left_counts_each_epoch_at_its_own_size(capfd: pytest.CaptureFixture[str]) -> None:
    info = told((24, 24, 28, 32), {24: 1.0, 28: 2.0, 32: 4.0})
    assert info.left_s() == 10 * (1 + 1 + 2 + 4)
    assert info.left_s(1, 4) == 6 * 1 + 10 * (2 + 4)
    assert info.left_s(3, 10) == 0 == info.left_s(4)
    assert info.evaluations_s == pytest.approx(4.0)  # a third of 3 steps at full size
    progress = TrainProgress()
    progress.on_start(info)
    out = capfd.readouterr().out
    assert "resize   24x24 for 2 epochs, then 28x28 for 1 epoch, then 32x32 for 1 epoch\n" in out
    assert "estimate 1 min 20 s of training at 64 img/s, 1 min 36 s with evaluations" in out
    assert sizes_shown((32, 32)) == "32x32 for 2 epochs"

    shown: list[str] = []
    progress.output.is_due = lambda: True  # type: ignore[method-assign]
    progress.output.show = shown.append  # type: ignore[method-assign]
    # Twice as fast as the warm-up was, in an epoch of small images: so will the others be.
    progress.on_step(1, 4, 10, 2 * FAST.batch_size)
    assert shown[0].endswith("33.0 s left")


def test_a_boards_estimate_counts_each_epoch_at_its_own_size(
    data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe, config = tiny_recipe({"resize": GROWING}), tiny_config(data)
    opened: Data = open_data(recipe, config, Listener())
    found = WarmUp(step_s={4: 1.0, 6: 2.0, 8: 4.0}, way=Way(), reasons={})
    monkeypatch.setattr(board_run, "warm_up_step", lambda *_: found)
    evaluating = 4.0 * 300 / (3 * 100)  # steps' seconds: 300 test images against 100 to train on
    assert measure_run_s(recipe, config, opened) == pytest.approx(STEPS * (1 + 2 + 4 + 3 * evaluating))
