"""The built-in data set: ten classes of drawn 32x32 images, for machines with no data and no network.

Every image is one filled shape, turned, scaled and placed anywhere, in a random colour on a shaded ground,
under a stroke and pixel noise. Only additions, multiplications, divisions and square roots are used,
which IEEE 754 rounds alike everywhere: the pixels, and so the digest, are the same on every machine.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastresnet.draws import Purpose, below, draw, stream, uniform
from fastresnet.errors import UserError
from fastresnet.loaders.sources.source import SPLITS, Block, Contents, Progress, SplitName

VERSION = 2  # of the drawing: raise it whenever a pixel changes
SEED = 0
IMAGE_SIZE = 32
COUNTS: dict[SplitName, int] = {"train": 10_000, "test": 2_000}
_BLOCK = 500  # images drawn at a time
_NOISE = 32.0  # peak to peak, in grey levels
_NUM_PARAMS = 32  # draws set aside for an image; fewer are used

Field = NDArray[np.floating[Any]]  # float32 [k, S, S], or [k, 1, 1] for one number an image
Shape = Callable[[Field, Field], Field]
# Edge normals of regular polygons, written out so that no machine's cosine has a say.
_TRIANGLE = ((0.0, -1.0), (0.8660254, 0.5), (-0.8660254, 0.5))
_PENTAGON = (
    (0.0, 1.0),
    (0.95105652, 0.30901699),
    (0.58778525, -0.80901699),
    (-0.58778525, -0.80901699),
    (-0.95105652, 0.30901699),
)


def _box(u: Field, v: Field, half_width: float, half_height: float) -> Field:
    return np.minimum(half_width - np.abs(u), half_height - np.abs(v))


def _disc(u: Field, v: Field, radius: float) -> Field:
    return radius - np.sqrt(u * u + v * v)


def _edges(u: Field, v: Field, normals: tuple[tuple[float, float], ...], reach: float) -> Field:
    return np.stack([reach - (u * x + v * y) for x, y in normals])


# Distance inside the edge (negative outside) of a shape of radius about 1; alphabetical, as labels are. A
# point of a pentagram lies inside at least four of its five edges.
SHAPES: dict[str, Shape] = {
    "arrow": lambda u, v: np.maximum(
        _box(u, v + 0.45, 0.2, 0.5), _edges(u, v - 0.25, _TRIANGLE, 0.35).min(axis=0)
    ),
    "bars": lambda u, v: _box(np.abs(u) - 0.55, v, 0.25, 0.85),
    "circle": lambda u, v: _disc(u, v, 0.85),
    "crescent": lambda u, v: np.minimum(_disc(u, v, 0.95), -_disc(u - 0.45, v, 0.75)),
    "cross": lambda u, v: np.maximum(_box(u, v, 0.28, 0.95), _box(u, v, 0.95, 0.28)),
    "ellipse": lambda u, v: _disc(u * 2.0, v, 1.0) * 0.6,
    "ring": lambda u, v: np.minimum(_disc(u, v, 0.95), -_disc(u, v, 0.5)),
    "square": lambda u, v: _box(u, v, 0.72, 0.72),
    "star": lambda u, v: np.sort(_edges(u, v, _PENTAGON, 0.38), axis=0)[1],
    "triangle": lambda u, v: _edges(u, v, _TRIANGLE, 0.5).min(axis=0),
}


def _turn(x: Field, y: Field, angle: Field, quadrant: Field) -> tuple[Field, Field]:
    """Return (x, y) turned by any angle: ``angle`` of a quadrant, then quarter turns; both in [0, 1)."""
    cos = (1.0 - angle * angle) / (1.0 + angle * angle)
    sin = 2.0 * angle / (1.0 + angle * angle)
    u, v = x * cos - y * sin, x * sin + y * cos
    half, mirror = quadrant < 0.5, (quadrant * 4.0).astype(np.int64) % 2 == 1
    u, v = np.where(half, u, -u), np.where(half, v, -v)
    return np.where(mirror, -v, u), np.where(mirror, u, v)


def _over(image: Field, inside: Field, colour: Field) -> Field:
    """Return ``image`` [k, S, S, 3] in ``colour`` where ``inside``, in pixels, is positive; antialiased."""
    cover = np.clip(inside + 0.5, 0.0, 1.0)[..., None]
    return image + cover * (colour - image)


def shape_labels(split: SplitName, rows: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the labels of samples ``rows``: int64 [k]."""
    return below(stream(SEED, Purpose.SHAPES, 4 + SPLITS.index(split)), rows, len(SHAPES))


def draw_shapes(split: SplitName, rows: NDArray[np.int64]) -> NDArray[np.uint8]:
    """Return the images of samples ``rows`` of ``split``: uint8 [k, 32, 32, 3]."""
    key = stream(SEED, Purpose.SHAPES, SPLITS.index(split))
    drawn = uniform(key, rows[:, None] * _NUM_PARAMS + np.arange(_NUM_PARAMS)).astype(np.float32)
    params = iter(drawn.T[:, :, None, None])

    def colours() -> Field:
        return np.stack([next(params) * 255.0 for _ in range(3)], axis=-1)

    pixels = np.arange(IMAGE_SIZE, dtype=np.float32) - np.float32(IMAGE_SIZE / 2 - 0.5)
    y, x = pixels[:, None], pixels[None, :]

    ground = colours()
    slope = ((next(params) - 0.5) * x + (next(params) - 0.5) * y) * 3.0
    image = ground + slope[..., None]

    radius = 9.0 + 4.0 * next(params)
    u, v = _turn(x - (next(params) - 0.5) * 6.0, y - (next(params) - 0.5) * 6.0, next(params), next(params))
    u, v = u / radius, v / radius
    labels = shape_labels(split, rows)
    inside = np.empty((len(rows), IMAGE_SIZE, IMAGE_SIZE), np.float32)
    for label, shape in enumerate(SHAPES.values()):
        mine = labels == label
        inside[mine] = shape(u[mine], v[mine])
    # Every channel moves away from its nearer end, by up to 90 to 150 levels.
    contrast = (90.0 + 60.0 * next(params))[..., None]
    away = np.where(ground < 128.0, contrast, -contrast)
    image = _over(image, inside * radius, ground + away * (0.6 + 0.4 * colours() / 255.0))

    across, _along = _turn(x, y, next(params), next(params))
    middle, half_width = (next(params) - 0.5) * 32.0, 0.3 + 1.2 * next(params)  # pixels
    image = _over(image, half_width - np.abs(across - middle), colours())

    noise_key = stream(SEED, Purpose.SHAPES, 2 + SPLITS.index(split))
    num_pixels = IMAGE_SIZE * IMAGE_SIZE
    bits = draw(noise_key, rows[:, None] * num_pixels + np.arange(num_pixels)).reshape(inside.shape)
    levels = np.stack([(bits >> shift) & 255 for shift in (0, 8, 16)], axis=-1).astype(np.float32)
    image = image + (levels / 255.0 - 0.5) * np.float32(_NOISE)
    return np.clip(np.rint(image), 0.0, 255.0).astype(np.uint8)


class Shapes:
    """The source of the built-in set."""

    stem = "shapes"

    def __init__(self, image_size: int | None) -> None:
        """Raises UserError for a size that the shapes are not drawn at."""
        if image_size not in (None, IMAGE_SIZE):
            raise UserError(
                f"the built-in set is drawn at {IMAGE_SIZE}x{IMAGE_SIZE} only; leave the image size out"
            )

    def fingerprint(self, progress: Progress) -> str:
        """Return the version of the drawing code."""
        return f"built-in shapes {VERSION}"

    def scan(self, progress: Progress) -> Contents:
        """Label the images; drawing waits for ``blocks``."""
        return Contents(
            name="shapes",
            class_names=tuple(SHAPES),
            image_size=IMAGE_SIZE,
            labels={split: shape_labels(split, np.arange(COUNTS[split])) for split in SPLITS},
            blocks=_blocks,
            notices=("shapes is the built-in set of drawn images: no accuracy on it speaks of real ones",),
        )


def _blocks(progress: Progress) -> Iterator[Block]:
    done, total = 0, sum(COUNTS.values())
    for split in SPLITS:
        for start in range(0, COUNTS[split], _BLOCK):
            rows = np.arange(start, min(start + _BLOCK, COUNTS[split]))
            yield Block(split, rows, draw_shapes(split, rows))
            done += len(rows)
            progress("drawing images", done, total)
