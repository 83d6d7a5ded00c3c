"""Progressive resizing: training images that are small in a run's first epochs, and grow to the data set's size."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Annotated

from pydantic import AfterValidator, Field

from fastresnet.errors import Conflict, UserError
from fastresnet.recipe_parts import Part

if TYPE_CHECKING:
    from fastresnet.arch import ArchSpec


class Resize(Part):
    """Train on images of ``size`` pixels a side until fraction ``until`` of the run's epochs.

    Howard's for ImageNet (fast.ai at DAWNBench, 2018). Images are cropped, flipped, augmented and mixed at the
    data set's size and resized last, on the device; evaluations are at the data set's size.

    Attributes:
        size: below the data set's.
        until: rounded to whole epochs. The last epoch is at the data set's size whatever that comes to.
    """

    size: int = Field(ge=1, le=1 << 16)
    until: float = Field(gt=0, lt=1)


def _rising(phases: tuple[Resize, ...]) -> tuple[Resize, ...]:
    for key in ("size", "until"):
        values = [getattr(phase, key) for phase in phases]
        for place, (before, after) in enumerate(pairwise(values), 1):
            if after <= before:
                shown = ", ".join(f"{value:g}" for value in values)
                raise Conflict(f"{key} is {shown}; each must be above the last", place, key)
    return phases


Resizes = Annotated[tuple[Resize, ...], AfterValidator(_rising)]


def sizes_by_epoch(phases: Sequence[Resize], epochs: int, spec: ArchSpec, image_size: int) -> tuple[int, ...]:
    """Return the side of the training images in each epoch, in pixels.

    Args:
        phases: rising.
        epochs: of the run.
        spec: the network, which must take every size with the same weights.
        image_size: the data set's.

    Raises:
        UserError: a size that is not below the data set's or too small for the network, or a network that does not
            pool its whole last map, so that its head fits one size alone.
    """
    sizes: list[int] = []
    for place, phase in enumerate(phases):
        if phase.size >= image_size:
            raise UserError(
                f"resize.{place}.size is {phase.size}; it must be below the data set's {image_size} pixels, which "
                "the last epochs have in any case"
            )
        whole = spec.replace(pool=None)
        if spec.pool not in (None, spec.map_sizes(image_size)[-1]):
            raise UserError(
                f"resize needs a network that pools its whole last map, and {spec.slug} pools "
                f"{spec.pool}x{spec.pool} of it; take --arch {whole.slug}, or resize=[]"
            )
        try:
            whole.validate_for(phase.size)
        except UserError as error:
            raise UserError(f"resize.{place}.size is {phase.size}: {error}") from None
        sizes += [phase.size] * (min(round(phase.until * epochs), epochs - 1) - len(sizes))
    return (*sizes, *[image_size] * (epochs - len(sizes)))
