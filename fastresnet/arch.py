"""The architecture space: N stages of B blocks, C channels, F kernels, K shortcut kernels, P pooling.

:class:`ArchSpec` is a point of the space; :meth:`ArchSpec.layers` lists its layers, and every parameter and
multiply-add count derives from that list. A spec's slug (``n4-b3,3,2,3-c64,128,128,256-p4``) names it wholly:
``parse_slug(spec.slug) == spec``. No torch here: :mod:`fastresnet.resnet` builds the module.
"""

from __future__ import annotations

import dataclasses
import operator
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, get_args

from fastresnet.errors import UserError, did_you_mean
from fastresnet.words import counted

if TYPE_CHECKING:
    from fastresnet.layers import Layer

BlockKind = Literal["basic", "bottleneck", "plain"]
Activation = Literal["relu", "leaky_relu", "gelu", "silu"]
Down = Literal["stride", "maxpool"]
HeadPool = Literal["average", "max"]

NUM_CONVS = {"basic": 2, "bottleneck": 3, "plain": 1}  # on a block's longest path
EXPANSION = {"basic": 1, "bottleneck": 4, "plain": 1}  # output channels of a block over its width
# Beyond these a typing error is likelier than a network; they also bound the time that counting takes.
MAX_STAGES = 12
MAX_BLOCKS = 1000
MAX_CHANNELS = 65536
MAX_KERNEL = 31
MAX_POOL = 4096


@dataclass(frozen=True, kw_only=True)
class Dropout:
    """Drop probabilities, each in [0, 1); 0 leaves the layer out.

    Attributes:
        head: before the linear layer.
        block: inside each block, before its last convolution (basic: between the two; plain: before the one).
        stage: after each stage.
    """

    head: float = 0.0
    block: float = 0.0
    stage: float = 0.0

    def __post_init__(self) -> None:
        for name in ("head", "block", "stage"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0.0 <= value < 1.0:
                raise UserError(f"dropout.{name} is {value!r}; it must be a number from 0 up to but not 1")
            object.__setattr__(self, name, float(value))


@dataclass(frozen=True, kw_only=True)
class ArchSpec:
    """A network for square RGB images, residual but for plain blocks.

    Stem (conv, BN, activation), then stages; stage 2 and later halve the map (rounding up), with stride 2 in
    their first block or before it, by a convolution with a 2x2 max pool, BN and activation. A block's shortcut is
    a convolution and BN where stride or width changes, else the identity; plain blocks have none. Head: pool PxP
    with stride P (rounding down), flatten, linear.

    Attributes:
        blocks: B, blocks of each stage; its length is N. A stage may have none where ``down`` is ``maxpool``.
        channels: C, width of each stage; a bottleneck block puts out four times its width.
        kernels: F, odd kernel of the blocks' convolutions, one a stage; empty for 3 throughout. In a
            bottleneck block (1x1, FxF, 1x1; the stride is on the FxF) that of the middle one.
        shortcut_kernels: K, odd kernel of the projection shortcuts, one a stage; empty for 1 throughout.
        pool: P, or None for the whole last map.
        stem: odd kernel of the first convolution, whose stride is 1.
        stem_channels: its width; None for that of the first stage (and stored so when they are equal).
        block: ``basic`` (two FxF convolutions), ``bottleneck`` or ``plain`` (one FxF convolution, no shortcut).
        activation: after every BN but a shortcut's; leaky_relu has slope 0.01, gelu is the exact one.
        down: how the map is halved: ``stride``, as the reports do, or ``maxpool``, as Page's ResNet-9 does
            ("How to Train Your ResNet", 2018), whose convolutions all have stride 1.
        head_pool: ``average``, as the reports do, or ``max``: what the pool before the linear layer takes.
        dropout: three probabilities.

    Raises:
        UserError: a field is out of range, or the per-stage fields differ in length.
    """

    blocks: tuple[int, ...]
    channels: tuple[int, ...]
    kernels: tuple[int, ...] = ()
    shortcut_kernels: tuple[int, ...] = ()
    pool: int | None = None
    stem: int = 3
    stem_channels: int | None = None
    block: BlockKind = "basic"
    activation: Activation = "relu"
    down: Down = "stride"
    head_pool: HeadPool = "average"
    dropout: Dropout = field(default_factory=Dropout)

    def __post_init__(self) -> None:
        def store(name: str, value: object) -> None:
            object.__setattr__(self, name, value)

        _one_of("down", self.down, get_args(Down))
        least = 0 if self.down == "maxpool" else 1
        try:
            store("blocks", _per_stage("blocks", self.blocks, least, MAX_BLOCKS))
        except UserError as error:
            hint = ", or 0 where max pools halve the maps (maxpool)" if least and 0 in self.blocks else ""
            raise UserError(f"{error}{hint}") from None
        if not 1 <= len(self.blocks) <= MAX_STAGES:
            raise UserError(f"blocks has {len(self.blocks)} values; a network has 1 to {MAX_STAGES} stages")
        store("channels", _per_stage("channels", self.channels, 1, MAX_CHANNELS))
        for name, usual in (("kernels", 3), ("shortcut_kernels", 1)):
            values = getattr(self, name)
            empty = isinstance(values, Sequence) and not values
            store(
                name,
                _per_stage(name, (usual,) * self.num_stages if empty else values, 1, MAX_KERNEL, odd=True),
            )
        for name in ("channels", "kernels", "shortcut_kernels"):
            if len(getattr(self, name)) != self.num_stages:
                raise UserError(
                    f"{name} has {len(getattr(self, name))} values and blocks has {self.num_stages}; "
                    "give one value a stage"
                )
        store("stem", whole_number("stem", self.stem, 1, MAX_KERNEL, odd=True))
        if self.pool is not None:
            store("pool", whole_number("pool", self.pool, 1, MAX_POOL))
        if self.stem_channels is not None:
            width = whole_number("stem_channels", self.stem_channels, 1, MAX_CHANNELS)
            store("stem_channels", None if width == self.channels[0] else width)
        if not any(self.blocks):
            raise UserError("blocks has only zeros; a network has a block in one stage at least")
        if not self.blocks[0] and self.stem_channels is not None:
            raise UserError(
                f"stem_channels is {self.stem_channels} and stage 1 of {self.channels[0]} channels has no blocks, so "
                "it puts out what the stem does; leave stem_channels out"
            )
        _one_of("block", self.block, get_args(BlockKind))
        if not self.has_shortcuts and set(self.shortcut_kernels) != {1}:
            raise UserError(
                f"shortcut_kernels (K) is {self.shortcut_kernels} and plain blocks have no shortcuts; leave it out"
            )
        _one_of("activation", self.activation, get_args(Activation))
        _one_of("head_pool", self.head_pool, get_args(HeadPool))
        if not isinstance(self.dropout, Dropout):
            raise UserError(f"dropout is {self.dropout!r}; it must be a Dropout(head=, block=, stage=)")

    @property
    def num_stages(self) -> int:
        """N."""
        return len(self.blocks)

    @property
    def has_shortcuts(self) -> bool:
        """Whether its blocks are residual."""
        return self.block != "plain"

    @property
    def depth(self) -> int:
        """Convolutions on the longest path, and the linear layer: the number in names like ResNet-24."""
        before_blocks = self.num_stages if self.down == "maxpool" else 1
        return NUM_CONVS[self.block] * sum(self.blocks) + before_blocks + 1

    @property
    def stem_width(self) -> int:
        """Channels the stem puts out."""
        return self.channels[0] if self.stem_channels is None else self.stem_channels

    @property
    def expansion(self) -> int:
        """A block's output channels over its width."""
        return EXPANSION[self.block]

    @property
    def outputs(self) -> tuple[int, ...]:
        """Channels that each stage puts out."""
        first, *others = (width * self.expansion for width in self.channels)
        return first if self.blocks[0] else self.stem_width, *others

    @property
    def slug(self) -> str:
        """The canonical text of this spec; :func:`parse_slug` gives the spec back."""
        from fastresnet.slug import format_slug

        return format_slug(self)

    def replace(self, **changes: Any) -> ArchSpec:
        """Return a copy with ``changes``; kernels that are alike in all stages follow a new N."""
        stages = len(changes.get("blocks", self.blocks))
        for name in ("kernels", "shortcut_kernels"):
            values = getattr(self, name)
            if name not in changes and stages != self.num_stages and len(set(values)) == 1:
                changes[name] = values[:1] * stages
        return dataclasses.replace(self, **changes)

    def map_sizes(self, image_size: int = 32) -> tuple[int, ...]:
        """Return the side of each stage's output map, for square images of side ``image_size`` pixels.

        Raises:
            UserError: the images are too small for this many stages.
        """
        sizes = [whole_number("image size", image_size, 1, 1 << 16)]
        for _ in range(self.num_stages - 1):
            if sizes[-1] == 1:
                raise UserError(
                    f"image size {image_size} is too small for {self.num_stages} stages, which halve the map "
                    f"{counted(self.num_stages - 1, 'time')}; at least {2 ** (self.num_stages - 2) + 1} is needed"
                )
            sizes.append((sizes[-1] + 1) // 2)
        return tuple(sizes)

    def pooled_size(self, image_size: int = 32) -> int:
        """Return the side of the map after the head's pool.

        Raises:
            UserError: as :meth:`validate_for`.
        """
        last = self.map_sizes(image_size)[-1]
        if self.pool is not None and self.pool > last:
            raise UserError(
                f"pool (P) is {self.pool} and the last map of {image_size}x{image_size} images is "
                f"{last}x{last}; P may be 1 to {last}, or be left out for global pooling"
            )
        return 1 if self.pool is None else last // self.pool

    def validate_for(self, image_size: int) -> None:
        """Check that the network takes square images of this side, in pixels.

        Raises:
            UserError: P is larger than the last map, or the images are too small for this many stages.
        """
        self.pooled_size(image_size)

    def layers(self, num_classes: int = 10, image_size: int = 32) -> list[Layer]:
        """Return every layer, a block's shortcut last, for square RGB images of side ``image_size`` pixels.

        Raises:
            UserError: as :meth:`validate_for`, or fewer than 2 classes.
        """
        from fastresnet.layers import list_layers

        whole_number("number of classes", num_classes, 2, 1 << 20)
        self.validate_for(image_size)
        return list_layers(self, num_classes, image_size)

    def num_params(self, num_classes: int = 10, image_size: int = 32) -> int:
        """Return the number of learnable parameters. Raises UserError as :meth:`layers`."""
        return sum(layer.params for layer in self.layers(num_classes, image_size))

    def num_multiply_adds(self, num_classes: int = 10, image_size: int = 32) -> int:
        """Return the multiply-adds of one image's forward pass: convolutions and linear layers only.

        Raises UserError as :meth:`layers`.
        """
        return sum(layer.multiply_adds for layer in self.layers(num_classes, image_size))


def get_arch(name_or_slug: str) -> ArchSpec:
    """Return the spec of a catalogue name (``resnet24``) or of a slug (``n3-b2-c85``).

    Raises:
        UserError: neither; the message offers the nearest name or says what is wrong with the slug.
    """
    from fastresnet.catalogue import CATALOGUE  # the catalogue is made of ArchSpecs
    from fastresnet.slug import looks_like_slug, parse_slug

    for entry in CATALOGUE:
        if entry.name == name_or_slug:
            return entry.spec
    if looks_like_slug(name_or_slug):
        return parse_slug(name_or_slug)
    names = [entry.name for entry in CATALOGUE]
    raise UserError(
        f"unknown architecture {name_or_slug!r}{did_you_mean(name_or_slug, names) or ';'} `fastresnet archs` lists "
        "the names, and a slug such as n4-b3,3,2,3-c64,128,128,256-p4 gives any other"
    )


def whole_number(name: str, value: object, low: int, high: int, *, odd: bool = False) -> int:
    """Return ``value`` as an int; raises UserError, naming it, unless it is whole (or odd too) and in the range."""
    allowed = f"{'an odd' if odd else 'a whole'} number from {low} to {high}"
    try:
        number = operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        raise UserError(f"{name} is {value!r}; it must be {allowed}") from None
    if not low <= number <= high or (odd and number % 2 == 0):
        raise UserError(f"{name} is {number}; it must be {allowed}")
    return number


def _per_stage(name: str, values: object, low: int, high: int, *, odd: bool = False) -> tuple[int, ...]:
    if isinstance(values, str) or not isinstance(values, Sequence):
        raise UserError(f"{name} is {values!r}; give a tuple with one value a stage")
    return tuple(whole_number(f"{name}[{i}]", value, low, high, odd=odd) for i, value in enumerate(values))


def _one_of(name: str, value: object, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise UserError(
            f"{name} is {value!r}; it must be one of {', '.join(allowed)}{did_you_mean(str(value), allowed)}"
        )
