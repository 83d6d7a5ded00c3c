"""Augmentations image by image against torchvision for the same drawn parameters, and how the parameters are drawn.

Tolerances: colour operations and bilinear resampling agree to 1e-5 (images in [0, 1]). With nearest pixels,
those whose source lies within rounding of the border between two pixels may differ: fewer than 1 in 10,000.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fastresnet import augment_draws as draws
from fastresnet import augment_ops as ops
from fastresnet import recipe_augment as parts
from fastresnet.augment import Augment
from fastresnet.bench.augment import RECIPES, measure
from fastresnet.loaders.dataset import Dataset
from fastresnet.recipe import load_recipe
from fastresnet.run import RunConfig
from fastresnet.torchvision_import import import_torchvision

import_torchvision()
from torchvision.transforms import v2  # noqa: E402
from torchvision.transforms.v2 import functional as tv  # noqa: E402

FAST = load_recipe("fast")
MEAN, STD = (0.49, 0.48, 0.45), (0.25, 0.24, 0.26)
SIZE = 32
N = 48
TIES = 1e-4  # share of pixels that may fall to the other side of a border
EVERY_OP = (
    '[{name="affine",degrees=20,translate=[0.1,0.2],scale=[0.8,1.2],shear=10},'
    '{name="rotation",degrees=15,interpolation="bilinear"},'
    '{name="color-jitter",brightness=0.4,contrast=0.4,saturation=0.4,hue=0.2},'
    '{name="grayscale",p=0.3},{name="cutout",size=8},{name="normalise"},{name="erasing"}]'
)


def augment_part(text: str) -> parts.Augment:
    return FAST.with_overrides({"augment.ops": text}).augment


@pytest.fixture(scope="module")
def uint8_images(real_dataset: Dataset) -> torch.Tensor:
    """uint8 [N, 3, 32, 32], channels-last: made JPEGs, or those that ``$FASTRESNET_IMAGES`` names."""
    images = torch.from_numpy(np.array(real_dataset.train.images[:N]))
    assert images.shape[1:] == (SIZE, SIZE, 3)
    return images.permute(0, 3, 1, 2)


@pytest.fixture(scope="module")
def images(uint8_images: torch.Tensor) -> torch.Tensor:
    """float32 in [0, 1], channels-last."""
    return uint8_images.float() / 255


def each(images: torch.Tensor, function: Callable[[int, torch.Tensor], torch.Tensor]) -> torch.Tensor:
    """Return ``function(i, image)`` of every image, one at a time, as a plain NCHW loop would."""
    return torch.stack([function(i, image.contiguous()) for i, image in enumerate(images)])


def assert_near(ours: torch.Tensor, theirs: torch.Tensor, ties: float = 0.0) -> None:
    assert ours.shape == theirs.shape
    assert ours.is_contiguous(memory_format=torch.channels_last)
    share = ((ours - theirs).abs() > 1e-5).float().mean().item()
    assert share <= ties


def uniforms(members: int = N, seed: int = 7, epoch: int = 3) -> draws.Uniforms:
    return draws.uniforms(seed, epoch, 0, np.arange(members))


# The same image as torchvision's, for the same parameters


@pytest.mark.parametrize("mode", ["nearest", "bilinear"])
def test_rotation_is_torchvisions(images: torch.Tensor, mode: Any) -> None:
    angles = draws.draw_rotation(parts.Rotation(name="rotation", degrees=180), uniforms())
    zero = np.zeros(N)
    inverse = torch.from_numpy(draws.inverse_affine(-angles, zero, zero, zero + 1, zero)).float()
    ours = ops.resample(images, inverse, mode == "bilinear")
    theirs = each(images, lambda i, x: tv.rotate(x, float(angles[i]), v2.InterpolationMode(mode)))
    assert_near(ours, theirs, TIES if mode == "nearest" else 0)
    assert not torch.equal(ours, images)


@pytest.mark.parametrize("mode", ["nearest", "bilinear"])
def test_affine_is_torchvisions(images: torch.Tensor, mode: Any) -> None:
    part = parts.Affine(name="affine", degrees=30, translate=(0.2, 0.3), scale=(0.5, 1.5), shear=20)
    drawn = draws.draw_affine(part, uniforms(), SIZE)
    ours = ops.resample(images, torch.from_numpy(draws.inverse_affine(**drawn)).float(), mode == "bilinear")
    theirs = each(
        images,
        lambda i, x: tv.affine(
            x,
            float(drawn["angle"][i]),
            [int(drawn["tx"][i]), int(drawn["ty"][i])],
            float(drawn["scale"][i]),
            [float(drawn["shear"][i]), 0.0],
            v2.InterpolationMode(mode),
        ),
    )
    assert_near(ours, theirs, TIES if mode == "nearest" else 0)


def test_nearest_outside_is_black_as_with_torchvisions_fill(images: torch.Tensor) -> None:
    shift = torch.tensor([[1.0, 0, -7, 0, 1, 12]]).repeat(N, 1)
    theirs = each(images, lambda i, x: tv.affine(x, 0, [7, -12], 1, [0, 0], fill=[0.0]))
    assert torch.equal(ops.resample(images, shift, False), theirs)
    assert (theirs[:, :, :, :7] == 0).all()


def jittered(part: parts.ColorJitter, u: draws.Uniforms) -> Callable[[int, torch.Tensor], torch.Tensor]:
    values, orders = draws.draw_jitter(part, u)
    steps = (tv.adjust_brightness, tv.adjust_contrast, tv.adjust_saturation, tv.adjust_hue)

    def one(i: int, image: torch.Tensor) -> torch.Tensor:
        for which in orders[i]:
            image = steps[which](image, float(values[i, which]))
        return image

    return one


@pytest.mark.parametrize("hue", [0.0, 0.1, 0.5])
def test_color_jitter_is_torchvisions_in_every_order(images: torch.Tensor, hue: float) -> None:
    part = parts.ColorJitter(name="color-jitter", brightness=0.6, contrast=0.7, saturation=1.5, hue=hue)
    model = Augment(parts.Augment(ops=(part,)), (0, 0, 0), (1, 1, 1), SIZE)
    copies = 5  # 240 draws meet all 24 orders
    model.begin_epoch(7, 3, np.arange(N * copies), "cpu")
    orders = draws.draw_jitter(part, uniforms(N * copies))[1]
    assert len({tuple(order) for order in orders}) == 24
    for copy in range(copies):
        indices = torch.arange(copy * N, (copy + 1) * N)
        ours = model((images * 255).round().byte(), indices, torch.float32, train=True)
        one = jittered(part, draws.uniforms(7, 3, 0, indices.numpy()))
        assert_near(ours, each(images, one))


@pytest.mark.parametrize("turns", [-0.5, -0.2, 0.0, 1e-3, 0.3, 0.5])
def test_hue_is_torchvisions_on_grays_and_pure_colours_too(turns: float) -> None:
    levels = torch.tensor([0.0, 0.25, 1.0])
    colours = torch.cartesian_prod(levels, levels, levels).T.reshape(1, 3, 27, 1)
    colours = colours.contiguous(memory_format=torch.channels_last)
    ours = ops.shift_hue(colours, torch.tensor([turns]))
    torch.testing.assert_close(ours, tv.adjust_hue(colours, turns), rtol=0, atol=1e-5)


def test_grayscale_is_torchvisions(images: torch.Tensor) -> None:
    chosen = draws.draw_grayscale(parts.Grayscale(name="grayscale", p=0.5), uniforms())
    ours = ops.gray_where(images, torch.from_numpy(chosen))
    assert_near(ours, each(images, lambda i, x: tv.rgb_to_grayscale(x, 3) if chosen[i] else x))
    assert 0 < chosen.sum() < N


def test_erasing_is_torchvisions(images: torch.Tensor) -> None:
    boxes = draws.draw_erasing(parts.Erasing(name="erasing", p=0.8), uniforms(), SIZE).astype(int)
    ours = ops.erase(images, torch.from_numpy(boxes))

    def one(i: int, x: torch.Tensor) -> torch.Tensor:
        y0, y1, x0, x1 = boxes[i].tolist()
        return tv.erase(x, y0, x0, y1 - y0, x1 - x0, torch.zeros(1))

    assert_near(ours, each(images, one))
    assert {bool(b[1] > b[0]) for b in boxes} == {True, False}


@pytest.mark.parametrize("size", [1, 8, 9, 40])
def test_cutout_is_devries_square(images: torch.Tensor, size: int) -> None:
    u = uniforms(2000)
    boxes = draws.draw_cutout(parts.Cutout(name="cutout", size=size), u, SIZE).astype(int)
    ours = ops.erase(images, torch.from_numpy(boxes[:N]))
    for i in range(N):
        y0, y1, x0, x1 = boxes[i]
        assert (ours[i, :, y0:y1, x0:x1] == 0).all()
        wanted = images[i].clone()
        wanted[:, y0:y1, x0:x1] = 0
        assert torch.equal(ours[i], wanted)
    heights = boxes[:, 1] - boxes[:, 0]
    assert heights.max() == min(size, SIZE)
    assert heights.min() >= size // 2 if size < SIZE else heights.min() >= SIZE // 2
    starts = np.floor(u(draws.Purpose.CUTOUT_Y, 0) * SIZE)
    assert set(starts) == set(range(SIZE))


R1 = load_recipe("r1-final-text").augment
R2 = load_recipe("r2-improved-resnet").augment


@pytest.mark.parametrize("part", [R1, R2, augment_part(EVERY_OP)], ids=["r1", "r2", "every"])
def test_a_recipes_list_is_torchvisions_transforms_in_its_order(
    uint8_images: torch.Tensor, part: parts.Augment
) -> None:
    """The whole module against a loop over images and over the list."""
    members = np.arange(100, 100 + N)
    model = Augment(part, MEAN, STD, SIZE)
    model.begin_epoch(11, 4, members, "cpu")
    order = torch.randperm(N, generator=torch.Generator().manual_seed(0))
    ours = model(uint8_images[order], torch.from_numpy(members)[order], torch.float32, train=True)

    def whole(i: int, x: torch.Tensor) -> torch.Tensor:
        x = x.float() / 255
        listed = part.ops if "normalise" in [op.name for op in part.ops] else (*part.ops, None)
        for place, op in enumerate(listed):
            u = draws.uniforms(11, 4, place, members[order[i : i + 1].numpy()])
            if op is None or isinstance(op, parts.NormaliseHere):
                x = tv.normalize(x, list(MEAN), list(STD))
            elif isinstance(op, parts.Rotation):
                x = tv.rotate(x, float(draws.draw_rotation(op, u)[0]), v2.InterpolationMode(op.interpolation))
            elif isinstance(op, parts.Affine):
                drawn = {key: float(value[0]) for key, value in draws.draw_affine(op, u, SIZE).items()}
                shift = [int(drawn["tx"]), int(drawn["ty"])]
                x = tv.affine(x, drawn["angle"], shift, drawn["scale"], [drawn["shear"], 0.0])
            elif isinstance(op, parts.ColorJitter):
                x = jittered(op, u)(0, x)
            elif isinstance(op, parts.Grayscale):
                x = tv.rgb_to_grayscale(x, 3) if draws.draw_grayscale(op, u)[0] else x
            else:
                erased = isinstance(op, parts.Erasing)
                box = draws.draw_erasing(op, u, SIZE) if erased else draws.draw_cutout(op, u, SIZE)
                y0, y1, x0, x1 = box[0].astype(int).tolist()
                x = tv.erase(x, y0, x0, y1 - y0, x1 - x0, torch.zeros(1))
        return x

    # A pixel from the other side of a border also moves the mean that contrast turns about, a little.
    theirs = each(uint8_images[order], whole)
    difference = (ours - theirs).abs()
    assert (difference > 1e-4).float().mean() < TIES
    assert difference.median() < 1e-5
    assert ours.is_contiguous(memory_format=torch.channels_last)


def test_evaluation_only_normalises(uint8_images: torch.Tensor) -> None:
    model = Augment(augment_part(EVERY_OP), MEAN, STD, SIZE)
    wanted = tv.normalize(uint8_images.float() / 255, list(MEAN), list(STD))
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        ours = model(uint8_images, torch.arange(N), dtype, train=False)
        assert ours.dtype == dtype
        assert ours.is_contiguous(memory_format=torch.channels_last)
        torch.testing.assert_close(
            ours, wanted.to(dtype), rtol=1e-5 if dtype == torch.float32 else 1e-2, atol=1e-5
        )
    plain = Augment(augment_part("[]"), MEAN, STD, SIZE)
    plain.begin_epoch(0, 0, np.arange(N), "cpu")
    torch.testing.assert_close(plain(uint8_images, torch.arange(N), torch.float32, train=True), wanted)


# The order contract


@settings(max_examples=25)
@given(
    seed=st.integers(0, 2**63 - 1),
    epoch=st.integers(0, 10**6),
    chosen=st.sets(st.integers(0, N - 1), min_size=1),
)
def test_a_samples_augmentation_depends_on_seed_epoch_and_index_alone(
    seed: int, epoch: int, chosen: set[int]
) -> None:
    """Whichever samples are members, whatever batch or rank, and whether or not earlier epochs were drawn."""
    images = torch.arange(N * 3 * SIZE * SIZE).remainder(251).to(torch.uint8).view(N, 3, SIZE, SIZE)
    part = augment_part(EVERY_OP)
    whole, some = (Augment(part, MEAN, STD, SIZE) for _ in range(2))
    whole.begin_epoch(seed, max(0, epoch - 1), np.arange(N), "cpu")
    whole.begin_epoch(seed, epoch, np.arange(N), "cpu")
    members = np.array(sorted(chosen))
    some.begin_epoch(seed, epoch, members, "cpu")
    indices = torch.from_numpy(members[::-1].copy())
    wanted = whole(images, torch.arange(N), torch.float32, train=True)[indices]
    assert torch.equal(some(images[indices], indices, torch.float32, train=True), wanted)


def test_epochs_seeds_and_places_in_the_list_differ() -> None:
    part = augment_part('[{name="rotation",degrees=15},{name="rotation",degrees=15}]')
    tables = []
    for seed, epoch in ((0, 0), (0, 1), (1, 0)):
        model = Augment(part, MEAN, STD, SIZE)
        model.begin_epoch(seed, epoch, np.arange(N), "cpu")
        tables += [model.table[:, :6], model.table[:, 6:]]
    for i, a in enumerate(tables):
        for b in tables[:i]:
            assert not torch.isclose(a, b).all(1).any()


def test_later_epochs_overwrite_the_table_in_place() -> None:
    model = Augment(R1, MEAN, STD, SIZE)
    model.begin_epoch(0, 0, np.arange(N), "cpu")
    table, first = model.table, model.table.clone()
    model.begin_epoch(0, 1, np.arange(N), "cpu")
    assert model.table is table
    assert not torch.equal(table, first)
    assert not model.state_dict()  # nothing of it belongs in a checkpoint


def test_it_compiles_whole(uint8_images: torch.Tensor) -> None:
    model = Augment(augment_part(EVERY_OP), MEAN, STD, SIZE)
    model.begin_epoch(5, 0, np.arange(N), "cpu")
    compiled = torch.compile(model, fullgraph=True, dynamic=False)
    for epoch in range(2):
        model.begin_epoch(5, epoch, np.arange(N), "cpu")
        ours = compiled(uint8_images, torch.arange(N), torch.float32, train=True)
        eager = model(uint8_images, torch.arange(N), torch.float32, train=True)
        assert ((ours - eager).abs() > 1e-4).float().mean() < TIES
        assert ours.is_contiguous(memory_format=torch.channels_last)


def test_the_bench_measures_every_recipe_beside_the_step(image_tar: Path) -> None:
    plain = {"compile": "off", "kernels": "eager", "convs": "direct"}
    config = RunConfig.parse(data=str(image_tar), device="cpu", threads=1, **plain)
    record = json.loads(json.dumps(measure(config, batch_size=2, rounds=1)))
    assert [row["recipe"] for row in record["rows"]] == list(RECIPES)
    for row in record["rows"]:
        amortised = row["batch_ms"] + row["table_ms_per_epoch"] / 25_000
        assert row["share_of_step"] == pytest.approx(amortised / record["step_ms"], rel=0.01, abs=1e-4)


def test_augmentations_cost_less_than_a_tenth_of_a_step() -> None:
    """As recorded, of a step in the way that a run does it."""
    path = Path(__file__).resolve().parents[1] / "bench" / "records" / "augment-cpu.json"
    record = json.loads(path.read_text())
    assert [row["recipe"] for row in record["rows"]] == list(RECIPES)
    assert all(0 < row["share_of_step"] < 0.1 for row in record["rows"])
    fastest = min(record["step_ms_all"])
    assert max(ms for row in record["rows"] for ms in row["batch_ms_all"]) < 0.1 * fastest
