"""The augmentations a recipe may list; the parameters are torchvision's."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from fastresnet.errors import Conflict, UserError
from fastresnet.recipe_parts import Fraction, NonNegative, Part, Positive, Probability, ordered

Interpolation = Literal["nearest", "bilinear"]


class Crop(Part):
    """Random crop back to the image's size after ``padding`` pixels on each side; done by the loader."""

    padding: int = Field(ge=1, le=64)
    mode: Literal["zero", "reflect"] = "zero"


class Rotation(Part):
    """torchvision's RandomRotation: an angle in [-degrees, degrees] about the centre; outside is 0."""

    name: Literal["rotation"]
    degrees: float = Field(gt=0, le=180)
    interpolation: Interpolation = "nearest"


class Affine(Part):
    """torchvision's RandomAffine about the centre; outside is 0.

    Attributes:
        degrees: angle in [-degrees, degrees].
        translate: greatest shift as fractions of width and height, rounded to whole pixels.
        scale: range of the scale.
        shear: x-shear in [-shear, shear] degrees.
    """

    name: Literal["affine"]
    degrees: float = Field(default=0.0, ge=0, le=180)
    translate: tuple[Fraction, Fraction] = (0.0, 0.0)
    scale: tuple[Positive, Positive] = (1.0, 1.0)
    shear: float = Field(default=0.0, ge=0, lt=90)
    interpolation: Interpolation = "nearest"

    @model_validator(mode="after")
    def _scale_ascends(self) -> Affine:
        ordered(self.scale, "scale")
        return self


class ColorJitter(Part):
    """torchvision's ColorJitter, in an order drawn for each image.

    Factors are in [max(0, 1 - x), 1 + x], the hue's shift in [-hue, hue] of a turn.
    """

    name: Literal["color-jitter"]
    brightness: NonNegative = 0.0
    contrast: NonNegative = 0.0
    saturation: NonNegative = 0.0
    hue: float = Field(default=0.0, ge=0, le=0.5)


class Grayscale(Part):
    """torchvision's RandomGrayscale with probability ``p``."""

    name: Literal["grayscale"]
    p: Probability = 0.1


class Erasing(Part):
    """torchvision's RandomErasing: with probability ``p``, a box is 0.

    Its area is ``scale`` of the image's, its height over its width in ``ratio``.
    """

    name: Literal["erasing"]
    p: Probability = 0.5
    scale: tuple[Fraction, Fraction] = (0.02, 0.33)
    ratio: tuple[Positive, Positive] = (0.3, 3.3)

    @model_validator(mode="after")
    def _ranges_ascend(self) -> Erasing:
        ordered(self.scale, "scale")
        ordered(self.ratio, "ratio")
        return self


class Cutout(Part):
    """Cutout (DeVries and Taylor 2017): a square of ``size`` pixels about a random pixel is 0."""

    name: Literal["cutout"]
    size: int = Field(ge=1)


class NormaliseHere(Part):
    """Normalise at this place in the list; where it is not listed, it comes last."""

    name: Literal["normalise"]


AugmentOp = Annotated[
    Rotation | Affine | ColorJitter | Grayscale | Erasing | Cutout | NormaliseHere,
    Field(discriminator="name"),
]


class Augment(Part):
    """What is done to training images, in this order: ``crop``, ``flip``, then ``ops`` as listed.

    Attributes:
        crop: None for none.
        flip: left to right: ``random`` with probability one half, or ``alternating`` every other epoch.
        ops: done on the device, on images in [0, 1] until they are normalised.
    """

    crop: Crop | None = None
    flip: Literal["none", "random", "alternating"] = "none"
    ops: tuple[AugmentOp, ...] = ()

    def check_fits(self, image_size: int) -> None:
        """Raise UserError where an operation cannot be done on images of ``image_size`` pixels a side."""
        for place, op in enumerate(self.ops):
            if isinstance(op, Cutout) and op.size > image_size:
                raise UserError(
                    f"augment.ops.{place}.size is {op.size}; a cutout must be at most as large as the data set's "
                    f"images, {image_size} pixels"
                )

    @model_validator(mode="after")
    def _order_makes_sense(self) -> Augment:
        names = [op.name for op in self.ops]
        first = names.index("normalise") if "normalise" in names else len(names)
        for place, name in enumerate(names[first + 1 :], first + 1):
            if name == "normalise":
                raise Conflict("ops lists 'normalise' more than once", "ops", place)
            if name in ("color-jitter", "grayscale"):
                raise Conflict(
                    f"ops lists {name!r} after 'normalise'; it needs images in [0, 1]", "ops", place
                )
        return self
