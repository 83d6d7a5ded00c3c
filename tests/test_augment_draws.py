"""Augmentation parameters are distributed as torchvision's own draws are."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from fastresnet import augment_draws as draws
from fastresnet import recipe_augment as parts
from fastresnet.torchvision_import import import_torchvision

import_torchvision()
from torchvision.transforms import v2  # noqa: E402

SIZE = 32
BIG = 20000


def uniforms(members: int = BIG) -> draws.Uniforms:
    return draws.uniforms(7, 3, 0, np.arange(members))


def ks_gap(a: NDArray[Any], b: NDArray[Any]) -> float:
    """Return the two-sample Kolmogorov-Smirnov statistic over its bound at one in a thousand."""
    both = np.sort(np.concatenate([a, b]))
    gap = np.abs(
        np.searchsorted(np.sort(a), both, side="right") / len(a)
        - np.searchsorted(np.sort(b), both, side="right") / len(b)
    ).max()
    return float(gap / (1.95 * np.sqrt(1 / len(a) + 1 / len(b))))


def torchvision_params(transform: Any, n: int = 3000) -> dict[str, NDArray[Any]]:
    """Return ``n`` of torchvision's own draws for a 32x32 image, each parameter as an array."""
    torch.manual_seed(0)
    image = torch.zeros(3, SIZE, SIZE)
    drawn = [transform.make_params([image]) for _ in range(n)]
    return {key: np.array([params[key] for params in drawn]) for key in drawn[0] if key != "v"}


def test_geometry_is_distributed_as_torchvisions() -> None:
    theirs = torchvision_params(v2.RandomAffine(30, translate=(0.2, 0.1), scale=(0.8, 1.2), shear=10))
    part = parts.Affine(name="affine", degrees=30, translate=(0.2, 0.1), scale=(0.8, 1.2), shear=10)
    ours = draws.draw_affine(part, uniforms(), SIZE)
    assert ks_gap(ours["angle"], theirs["angle"]) < 1
    assert ks_gap(ours["scale"], theirs["scale"]) < 1
    assert ks_gap(ours["shear"], theirs["shear"][:, 0]) < 1
    assert (theirs["shear"][:, 1] == 0).all()
    for axis, key in enumerate(("tx", "ty")):
        assert ks_gap(ours[key], theirs["translate"][:, axis]) < 1
        assert set(ours[key]) == set(theirs["translate"][:, axis])
    rotation = torchvision_params(v2.RandomRotation(15))["angle"]
    turned = draws.draw_rotation(parts.Rotation(name="rotation", degrees=15), uniforms())
    assert ks_gap(turned, rotation) < 1
    independent = np.corrcoef(np.stack([ours[key] for key in ours]))
    assert np.abs(independent - np.eye(5)).max() < 5 / np.sqrt(BIG)


def test_jitter_is_distributed_as_torchvisions() -> None:
    theirs = torchvision_params(v2.ColorJitter(0.2, 1.5, 0.4, 0.1))
    part = parts.ColorJitter(name="color-jitter", brightness=0.2, contrast=1.5, saturation=0.4, hue=0.1)
    values, orders = draws.draw_jitter(part, uniforms())
    for which, key in enumerate(("brightness", "contrast", "saturation", "hue")):
        assert ks_gap(values[:, which], theirs[f"{key}_factor"]) < 1
    assert values[:, 1].min() >= 0
    _, counts = np.unique(orders, axis=0, return_counts=True)
    assert len(counts) == 24
    chi_square = ((counts - BIG / 24) ** 2 / (BIG / 24)).sum()
    assert chi_square < 49.7  # 23 degrees of freedom, one in a thousand


@pytest.mark.parametrize(
    ("scale", "ratio"),
    [((0.02, 0.33), (0.3, 3.3)), ((0.3, 1.0), (0.2, 5.0))],
    ids=["default", "often refused"],
)
def test_erasing_is_distributed_as_torchvisions(
    scale: tuple[float, float], ratio: tuple[float, float]
) -> None:
    theirs = torchvision_params(v2.RandomErasing(1.0, scale, ratio))
    none = theirs["h"] == SIZE  # after ten refused draws it gives the whole image, and erases nothing
    part = parts.Erasing(name="erasing", p=1.0, scale=scale, ratio=ratio)
    y0, y1, x0, x1 = draws.draw_erasing(part, uniforms(), SIZE).T
    ours_none = y1 == y0
    assert abs(ours_none.mean() - none.mean()) < 4 * np.sqrt(0.25 / len(none))
    drawn = ~ours_none
    for ours, key in ((y1 - y0, "h"), (x1 - x0, "w"), (y0, "i"), (x0, "j")):
        assert ks_gap(ours[drawn], theirs[key][~none]) < 1
    assert ks_gap(((y1 - y0) * (x1 - x0))[drawn], (theirs["h"] * theirs["w"])[~none]) < 1
    assert y1.max() <= SIZE
    assert x1.max() <= SIZE


@pytest.mark.parametrize("p", [0.0, 0.1, 0.5, 1.0])
def test_chances_are_p(p: float) -> None:
    gray = draws.draw_grayscale(parts.Grayscale(name="grayscale", p=p), uniforms())
    boxes = draws.draw_erasing(parts.Erasing(name="erasing", p=p), uniforms(), SIZE)
    bound = 4 * np.sqrt(p * (1 - p) / BIG)
    assert abs(gray.mean() - p) <= bound
    assert abs((boxes[:, 1] > boxes[:, 0]).mean() - p) <= bound
