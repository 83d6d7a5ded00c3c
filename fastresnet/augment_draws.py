"""Augmentation parameters, drawn on the host in float64 by the order contract's hash, many samples at once.

The distributions are those of torchvision's ``transforms.v2``.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from fastresnet import recipe_augment as parts
from fastresnet.draws import Purpose, stream, uniform

Array = NDArray[np.float64]
Uniforms = Callable[[Purpose, int], Array]
"""(purpose, attempt) -> float64 [n] in [0, 1), one for each sample."""

ERASE_ATTEMPTS = 10  # torchvision's


def uniforms(seed: int, epoch: int, place: int, members: NDArray[np.int64]) -> Uniforms:
    """Return the draws of the augmentation at ``place`` in the recipe's list, for each of ``members`` [n]."""

    def draws(purpose: Purpose, attempt: int = 0) -> Array:
        key = stream(stream(seed, purpose, epoch), purpose, 64 * place + attempt)
        return uniform(key, members)

    return draws


def within(u: Array, low: float, high: float) -> Array:
    """Return uniforms in [0, 1) stretched to [low, high)."""
    return low + (high - low) * u


def draw_rotation(part: parts.Rotation, u: Uniforms) -> Array:
    """Return angles [n], in degrees counter-clockwise."""
    return within(u(Purpose.ROTATE, 0), -part.degrees, part.degrees)


def draw_affine(part: parts.Affine, u: Uniforms, size: int) -> dict[str, Array]:
    """Return [n] each: angle (degrees clockwise), tx and ty (pixels), scale, shear (degrees)."""
    tx, ty = (
        np.rint(within(u(purpose, 0), -part.translate[axis] * size, part.translate[axis] * size))
        for axis, purpose in enumerate((Purpose.TRANSLATE_X, Purpose.TRANSLATE_Y))
    )
    return {
        "angle": within(u(Purpose.ROTATE, 0), -part.degrees, part.degrees),
        "tx": tx,
        "ty": ty,
        "scale": within(u(Purpose.SCALE, 0), *part.scale),
        "shear": within(u(Purpose.SHEAR_X, 0), -part.shear, part.shear),
    }


def inverse_affine(angle: Array, tx: Array, ty: Array, scale: Array, shear: Array) -> Array:
    """Return [n, 6] (a, b, c, d, e, f): output pixel (x, y) shows input pixel (ax + by + c, dx + ey + f).

    Both are counted from the image's centre. The image is sheared in x, scaled, turned clockwise and shifted,
    in that order: torchvision's ``_get_inverse_affine_matrix`` for a shear in x alone.
    """
    cos, sin = np.cos(np.radians(angle)), np.sin(np.radians(angle))
    tan = np.tan(np.radians(shear))
    a, b = (cos - sin * tan) / scale, (cos * tan + sin) / scale
    d, e = -sin / scale, cos / scale
    return np.stack([a, b, -a * tx - b * ty, d, e, -d * tx - e * ty], axis=1)


def draw_jitter(part: parts.ColorJitter, u: Uniforms) -> tuple[Array, NDArray[np.int64]]:
    """Return values [n, 4] and orders [n, 4].

    The values are factors of brightness, contrast and saturation, and the hue's turns; a row of ``orders``
    lists the four, as 0 to 3, in the order of use.
    """
    values = [
        within(u(purpose, 0), max(0.0, 1 - strength), 1 + strength)
        for purpose, strength in (
            (Purpose.BRIGHTNESS, part.brightness),
            (Purpose.CONTRAST, part.contrast),
            (Purpose.SATURATION, part.saturation),
        )
    ]
    values.append(within(u(Purpose.HUE, 0), -part.hue, part.hue))
    keys = np.stack([u(Purpose.JITTER_ORDER, which) for which in range(4)], axis=1)
    return np.stack(values, axis=1), np.argsort(keys, axis=1, kind="stable")


def jitter_columns(part: parts.ColorJitter, u: Uniforms) -> Array:
    """Return the drawn jitter as blends of images: [n, 9], or with a hue [n, 19].

    A blend (i, g, m) is clamp(i * image + g * grayscale + m * mean of the grayscale); (1, 0, 0) changes
    nothing. Without a hue there are three, for brightness, contrast and saturation in the order drawn. With
    one there are three before it, the shift in turns, and three after it; each changes the image on its side
    only.
    """
    values, orders = draw_jitter(part, u)
    row = np.arange(len(values))
    blends = np.zeros((len(values), 2, 3, 3))
    blends[..., 0] = 1
    ranks = np.argsort(orders, axis=1)  # the place of each of the four
    for which in range(3):
        after = (ranks[:, which] > ranks[:, 3]).astype(np.int64)
        side = after if part.hue else 0
        place = ranks[:, which] - after  # among the three
        blends[row, side, place, 0] = values[:, which]
        if which:
            blends[row, side, place, 2 if which == 1 else 1] = 1 - values[:, which]
    early, late = blends.reshape(len(values), 2, 9).swapaxes(0, 1)
    return np.concatenate([early, values[:, 3:], late], axis=1) if part.hue else early


def draw_grayscale(part: parts.Grayscale, u: Uniforms) -> Array:
    """Return 1 where an image loses its colours, else 0: [n]."""
    return (u(Purpose.GRAYSCALE, 0) < part.p).astype(np.float64)


def draw_erasing(part: parts.Erasing, u: Uniforms, size: int) -> Array:
    """Return boxes [n, 4] of (y0, y1, x0, x1) in pixels, empty where nothing is erased.

    The first of ten draws of area and ratio that fits into the image is taken, as torchvision does.
    """
    erased = u(Purpose.ERASE, 0) < part.p
    height, width = np.zeros_like(erased, np.float64), np.zeros_like(erased, np.float64)
    waiting = np.flatnonzero(erased)
    for attempt in range(ERASE_ATTEMPTS):
        area = within(u(Purpose.ERASE_AREA, attempt)[waiting], *part.scale) * size * size
        ratio = np.exp(within(u(Purpose.ERASE_RATIO, attempt)[waiting], *np.log(part.ratio)))
        tall, wide = np.rint(np.sqrt(area * ratio)), np.rint(np.sqrt(area / ratio))
        fits = (tall < size) & (wide < size)
        height[waiting[fits]], width[waiting[fits]] = tall[fits], wide[fits]
        waiting = waiting[~fits]
        if not len(waiting):
            break
    y0 = np.floor(u(Purpose.ERASE_Y, 0) * (size - height + 1))
    x0 = np.floor(u(Purpose.ERASE_X, 0) * (size - width + 1))
    return np.stack([y0, y0 + height, x0, x0 + width], axis=1)


def draw_cutout(part: parts.Cutout, u: Uniforms, size: int) -> Array:
    """Return boxes [n, 4] of (y0, y1, x0, x1) in pixels, about any pixel and cut at the image's border."""
    corners = []
    for purpose in (Purpose.CUTOUT_Y, Purpose.CUTOUT_X):
        start = np.floor(u(purpose, 0) * size) - part.size // 2
        corners += [np.clip(start, 0, size), np.clip(start + part.size, 0, size)]
    return np.stack(corners, axis=1)
