"""What weights start as: identities inside blocks, and patterns of the data's own patches in the stem."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from made_data import write_images
from tiny_runs import (
    SIZE,
    TINY_TRAIN,
    Heard,
    StopAt,
    assert_same_science,
    stop,
    tiny_config,
    tiny_recipe,
    train_tiny,
)
from torch.nn import functional

from fastresnet import whiten
from fastresnet.arch import get_arch
from fastresnet.bench.board_run import outcome
from fastresnet.cli.train_progress import show_result
from fastresnet.engine.checkpoint import load_last
from fastresnet.errors import UserError
from fastresnet.loaders.dataset import Dataset, open_dataset
from fastresnet.loaders.encoded import open_encoded
from fastresnet.recipe_parts import Whiten
from fastresnet.report.facts import times_table
from fastresnet.report.records import read_run
from fastresnet.resnet import ResNet, build_model
from fastresnet.run import duration
from fastresnet.training import resume, train
from fastresnet.whiten import Whitening, patch_covariance, patterns

CPU = torch.device("cpu")


def test_a_recipe_that_went_on_from_a_run_says_so_and_a_cutout_fits_the_images(
    data: Path, runs: Path
) -> None:
    reported = {"source": "x", "began_from": "r0-resnet24-as-run"}
    cutout = [{"name": "normalise"}, {"name": "cutout", "size": SIZE + 1}]
    recipe, heard = tiny_recipe({"reported": reported, "augment.ops": cutout}), Heard()
    with pytest.raises(UserError, match=r"^augment.ops.1.size is 9; a cutout must be at most .* 8 pixels$"):
        train(recipe, tiny_config(data), runs_dir=runs, listener=heard)
    assert "weights of a run of r0-resnet24-as-run; this run begins from new ones" in heard.notices[0]
    assert not runs.exists() or not list(runs.iterdir())


# Identities


def drawn(slug: str, **options: Any) -> ResNet:
    torch.manual_seed(3)
    return build_model(get_arch(slug), image_size=16, **options)


@pytest.mark.parametrize(
    "slug",
    [
        "n3-b2,1,1-c4,8,6-k1,3,1",
        "n2-b1-c4-f5-bottleneck",
        "n3-b0,1,0-c4,6,9-maxpool",
        "n3-b1-c4,6,6-plain",
    ],
)
def test_dirac_passes_channels_on_in_stages_alone(slug: str) -> None:
    plain, made = drawn(slug).state_dict(), drawn(slug, dirac=True).state_dict()
    changed = {name for name in plain if not torch.equal(plain[name], made[name])}
    spatial = {n for n in plain if ".conv" in n and "shortcut" not in n and plain[n].shape[-1] > 1}
    assert changed == spatial - {"stem.conv.weight"} and changed
    for name in changed:
        weight = made[name]
        outputs, inputs, size, _ = weight.shape
        num = min(outputs, inputs)
        images = torch.rand(2, inputs, 9, 9)
        torch.testing.assert_close(
            functional.conv2d(images, weight, padding=size // 2)[:, :num], images[:, :num]
        )
        assert torch.equal(weight[num:], plain[name][num:])


# Patterns


@pytest.fixture
def dataset(data: Path) -> Dataset:
    return open_dataset(str(data))


def made(dataset: Dataset, overrides: dict[str, Any] | None = None, **options: Any) -> torch.Tensor:
    recipe = tiny_recipe({"arch": "n2-b1-c64", **(overrides or {})})
    return Whitening(recipe, Whiten(**options), dataset, CPU).filters(dataset.train, 5)


def test_the_stem_sees_patches_with_unit_variances_that_do_not_correlate(dataset: Dataset) -> None:
    filters = made(dataset, eps=1e-9)
    assert filters.shape == (54, 3, 3, 3) and torch.equal(filters[27:], -filters[:27])
    images = torch.tensor(dataset.train.images).permute(0, 3, 1, 2).double() / 255
    mean, std = (torch.tensor(t, dtype=torch.float64).view(1, 3, 1, 1) for t in (dataset.mean, dataset.std))
    seen = functional.conv2d((images - mean) / std, filters[:27].double()).transpose(0, 1).flatten(1)
    assert seen.shape[1] == TINY_TRAIN * (SIZE - 2) ** 2
    torch.testing.assert_close(
        torch.cov(seen, correction=0), torch.eye(27, dtype=torch.float64), rtol=0, atol=2e-3
    )
    # In falling order of variance: a direction is scaled by the inverse of its deviation.
    assert (filters[:27].flatten(1).norm(dim=1).diff() > 0).all()


def test_eps_bounds_the_scale_and_the_recipes_own_deviations_are_taken(dataset: Dataset) -> None:
    assert made(dataset, eps=1e6).flatten(1).norm(dim=1).numpy() == pytest.approx(np.full(54, 1e-3), rel=1e-4)
    own = {"normalise": {"mean": [0.1] * 3, "std": [std * 10 for std in dataset.std]}}
    torch.testing.assert_close(
        made(dataset, own, eps=1e-9 / 100), made(dataset, eps=1e-9) * 10, rtol=1e-3, atol=1e-3
    )


def test_images_are_drawn_by_the_seed(dataset: Dataset) -> None:
    recipe = tiny_recipe()
    few = Whitening(recipe, Whiten(num=20), dataset, CPU)
    one, same, other = (few.filters(dataset.train, seed) for seed in (1, 1, 2))
    assert torch.equal(one, same) and not torch.equal(one, other)
    every = Whitening(recipe, Whiten(num=10**6), dataset, CPU)
    assert torch.equal(every.filters(dataset.train, 1), every.filters(dataset.train, 2))
    assert one.shape == (4, 3, 3, 3)  # as wide as the stem


def test_undecoded_images_have_the_packs_patterns(tmp_path: Path) -> None:
    folder = str(write_images(tmp_path / "photos"))
    packed, encoded = open_dataset(folder), open_encoded(folder)
    assert encoded is not None and encoded.train.encoded is not None
    assert torch.equal(made(packed, num=9), made(encoded, num=9))


@given(st.integers(0, 2**32 - 1), st.integers(1, 9), st.integers(1, 3))
def test_sums_are_exact_in_any_chunks(seed: int, num: int, kernel: int) -> None:
    images = np.random.default_rng(seed).integers(0, 256, (num, 5, 5, 3), np.uint8)
    with pytest.MonkeyPatch.context() as patch:
        found = []
        for at_once in (1, 2**22):
            patch.setattr(whiten, "AT_ONCE", at_once)
            found.append(patch_covariance(images, kernel, CPU))
    assert np.array_equal(*found)
    windows = np.lib.stride_tricks.sliding_window_view(images.transpose(0, 3, 1, 2), (kernel, kernel), (2, 3))
    patches = windows.transpose(0, 2, 3, 1, 4, 5).reshape(-1, 3 * kernel**2).astype(np.float64)
    np.testing.assert_allclose(found[0], np.cov(patches.T, bias=True).reshape(found[0].shape), atol=1e-8)


@given(st.lists(st.integers(-100, 100), min_size=9, max_size=9))
def test_a_direction_has_one_sign(entries: list[int]) -> None:
    """Whatever sign LAPACK gives: its transpose and reversals are other problems with the same directions."""
    matrix = np.array(entries, np.float64).reshape(3, 3)
    covariance = matrix @ matrix.T + np.diag([1.0, 20.0, 400.0])
    found = patterns(covariance, 0.5)
    backwards = patterns(covariance[::-1, ::-1], 0.5)[:, ::-1]
    for row, other in zip(found[:3], backwards[:3], strict=True):
        same = np.allclose(row, other, atol=1e-9)
        tied = np.sum(np.abs(row) > np.abs(row).max() * (1 - 1e-5)) > 1  # then the first one decides
        assert same or (tied and np.allclose(row, -other, atol=1e-9))
        assert row[np.argmax(np.abs(row) > np.abs(row).max() * (1 - 1e-6))] > 0
    values = np.linalg.eigvalsh(covariance)[::-1]
    assert np.linalg.norm(found[:3], axis=1) == pytest.approx(1 / np.sqrt(values + 0.5))
    assert np.array_equal(found[3:], -found[:3])


def test_images_smaller_than_the_stem_are_refused_in_a_line(data: Path, runs: Path) -> None:
    overrides = {"arch": "n1-b1-c4-stem9", "init.whiten": {}}
    with pytest.raises(UserError, match=r"patches of the stem's 9x9 pixels, and the images have 8x8; choose"):
        train(tiny_recipe(overrides), tiny_config(data), runs_dir=runs)
    assert not runs.exists()


# Runs

WHITE = {"init.whiten": {"num": 50}, "arch": "n1-b1-c60", "epochs": 1, "ema.every": 2}


def stems(run: Path) -> list[torch.Tensor]:
    """Return the stem's filters, and those of the average."""
    state = load_last(run)[0]["state"]
    return [model["stem.conv.weight"] for model in (state["model"], state["ema"]["model"])]


def test_a_frozen_stem_keeps_its_patterns_and_they_are_on_the_clock(
    data: Path, dataset: Dataset, runs: Path
) -> None:
    overrides = WHITE | {"optimizer.decay": "all", "optimizer.name": "muon"}
    result = train(tiny_recipe(overrides), tiny_config(data, target=0.01, seed=5), runs_dir=runs)
    wanted = made(dataset, {"arch": "n1-b1-c60"}, num=50)
    for stem in stems(Path(result.path)):
        assert torch.equal(stem[:54], wanted)
        assert torch.equal(stem[54:], stems(Path(result.path))[0][54:]) and stem[54:].any()
    clocks, row = result.clocks, result.epochs[-1]
    assert clocks.init_s > 0 and clocks.time_to_target_s is not None
    assert clocks.time_to_target_s > clocks.init_s + row["clock"]["train_s"]
    counted = outcome(result)
    assert counted["seconds"] == pytest.approx(clocks.init_s + clocks.train_s + clocks.eval_s)
    assert counted["curve"][-1][0] == pytest.approx(clocks.init_s + row["clock"]["train_s"])


def test_a_stem_may_learn_from_its_patterns(data: Path, dataset: Dataset, runs: Path) -> None:
    sgd = {"name": "sgdn", "lr": 0.01, "decay": "filters", "lookahead": {"k": 100}}
    overrides = WHITE | {"init.whiten.frozen": False, "optimizer": sgd}
    run = train_tiny(data, runs, overrides, seed=5)
    wanted = made(dataset, {"arch": "n1-b1-c60"}, num=50)
    for stem in stems(run):
        assert not torch.equal(stem[:54], wanted)
        torch.testing.assert_close(stem[:54], wanted, rtol=0, atol=0.3)
    slow = load_last(run)[0]["state"]["optimizer"]["slow"]
    assert any(t.shape == (60, 3, 3, 3) and torch.equal(t[:54], wanted) for t in slow)


@pytest.mark.parametrize("frozen", [True, False])
def test_patterns_are_made_once_in_a_run(
    frozen: bool, data: Path, runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Resumed, it has them and learns the same bits; started from another's weights, it has those."""
    overrides = WHITE | {"init.whiten.frozen": frozen, "init.dirac": True, "epochs": 2, "arch": "n2-b1-c4"}
    whole = train_tiny(data, tmp_path / "whole", overrides)
    run = stop(data, runs, StopAt(8), overrides)
    first = load_last(run)[0]["state"]["clocks"]["init_s"]
    monkeypatch.setattr(Whitening, "filters", None)
    resumed = resume(run.name, runs_dir=runs)
    assert_same_science(run, whole)
    assert resumed.clocks.init_s == first > 0
    config = tiny_config(data, seed=9)
    child = train(tiny_recipe(overrides), config, runs_dir=tmp_path / "child", init_from=str(whole))
    assert child.clocks.init_s == 0
    assert torch.equal(stems(Path(child.path))[0], stems(whole)[1]) == frozen


def test_a_page_and_the_last_lines_name_the_time(
    data: Path, runs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    result = train(tiny_recipe(WHITE), tiny_config(data), runs_dir=runs)
    show_result(result, runs)
    assert f"times    initialisation {duration(result.clocks.init_s)}, train " in capsys.readouterr().out
    rows = {row[0]: row[1] for row in times_table(read_run(result.path, runs)).rows}
    assert rows["initialisation"] == duration(result.clocks.init_s)
    c = result.clocks
    total_s = c.data_s + c.build_s + c.compile_s + c.init_s + c.train_s + c.between_s + c.eval_s
    assert rows["in all"] == duration(total_s)
