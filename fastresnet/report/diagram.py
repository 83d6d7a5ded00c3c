"""The network drawn from its ArchSpec: maps, stages, blocks and shortcuts, and where its weights and work are."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch, PathPatch, Polygon
from matplotlib.path import Path

from fastresnet.arch import NUM_CONVS, ArchSpec
from fastresnet.layers import Layer
from fastresnet.report.chart import Chart, colour, draw
from fastresnet.words import counted

WIDTH = 600.0  # points
MAP_AT, BOXES_AT, BOXES_END, BARS_AT, BARS_END = 48.0, 112.0, 412.0, 430.0, 590.0
STAGE_HEIGHT, ROW_HEIGHT, HEAD_HEIGHT = 86.0, 58.0, 22.0
SHAPE_AT = BOXES_AT + 54
MOST_BLOCKS = 5  # drawn one by one; of more, the first ones and the last
GAP = 12.0  # between blocks
ARCH = 15.0  # height of a shortcut over its block


@dataclass(frozen=True, kw_only=True)
class Row:
    """A part of the network, from top to bottom.

    Attributes:
        title: its name and, after it, what it puts out.
        stage: its number from 0; None for what is no stage.
        text: what it does, for what is no stage.
        shape: what it puts out: (C, H, W), or one length.
        params, multiply_adds: of all its layers.
    """

    title: str
    stage: int | None = None
    text: str = ""
    shape: tuple[int, ...]
    params: int = 0
    multiply_adds: int = 0

    @property
    def height(self) -> float:
        """In points."""
        return ROW_HEIGHT if self.stage is None else STAGE_HEIGHT


def network_diagram(spec: ArchSpec, num_classes: int, image_size: int, name: str = "network") -> Chart:
    """Return the diagram of ``spec``'s network. Raises UserError as :meth:`ArchSpec.layers`."""
    layers = spec.layers(num_classes, image_size)
    rows = network_rows(spec, layers, image_size)
    height = HEAD_HEIGHT + sum(row.height for row in rows) + 50
    stages = "; ".join(
        f"stage {i + 1} has {_halving(spec, i)}{counted(spec.blocks[i], f'{spec.block} block')} and puts out "
        f"{' x '.join(map(str, row.shape))}"
        for i, row in enumerate(row for row in rows if row.stage is not None)
    )
    alt = (
        f"The network from the {image_size} by {image_size} image to {num_classes} logits, depth {spec.depth}: "
        f"stem, then {stages}; then the {spec.head_pool} pool and the linear layer."
    )

    def paint(figure: Figure) -> None:
        axes = figure.add_subplot()
        axes.set_axis_off()
        axes.set_xlim(0, WIDTH)
        axes.set_ylim(0, height)
        _Painter(axes, spec, layers, image_size).paint(rows, height)

    return draw(
        name,
        f"Network {spec.slug}",
        alt,
        paint,
        size=(WIDTH / 72, height / 72),
        note="Bars: each part's share of the parameters and of the multiply-adds of one image.",
    )


def network_rows(spec: ArchSpec, layers: list[Layer], image_size: int) -> list[Row]:
    """Return the network's parts, image first."""

    def part(prefix: str) -> list[Layer]:
        return [layer for layer in layers if layer.name.startswith(prefix)]

    sides = spec.map_sizes(image_size)

    def row(title: str, prefix: str, text: str = "", stage: int | None = None) -> Row:
        found = part(prefix)
        return Row(
            title=title,
            stage=stage,
            text=text,
            shape=found[-1].shape if stage is None else (spec.outputs[stage], sides[stage], sides[stage]),
            params=sum(layer.params for layer in found),
            multiply_adds=sum(layer.multiply_adds for layer in found),
        )

    act = spec.activation.replace("_", " ")
    dropout = f"dropout {spec.dropout.head:g}, " if spec.dropout.head else ""
    return [
        Row(title="Image", text="normalised", shape=(3, image_size, image_size)),
        row("Stem", "stem.", f"{spec.stem}x{spec.stem} conv, BN, {act}"),
        *(row(f"Stage {i + 1}", f"stages.{i}.", stage=i) for i in range(spec.num_stages)),
        row("Pool", "pool", f"{part('pool')[0].detail}, flatten"),
        row("Head", "head", f"{dropout}linear, {part('head')[0].detail} features"),
    ]


def _halving(spec: ArchSpec, stage: int) -> str:
    """Say what comes before the blocks of a stage, counted from 0."""
    return "a convolution with a max pool and " if stage and spec.down == "maxpool" else ""


class _Painter:
    def __init__(self, axes: Axes, spec: ArchSpec, layers: list[Layer], image_size: int) -> None:
        self.axes = axes
        self.spec = spec
        self.projected = {
            layer.name.removesuffix(".shortcut.conv"): layer.detail
            for layer in layers
            if layer.name.endswith(".shortcut.conv")
        }
        self.image_size = image_size

    def paint(self, rows: list[Row], height: float) -> None:
        top = height - HEAD_HEIGHT
        totals = sum(row.params for row in rows), sum(row.multiply_adds for row in rows)
        self._text(BARS_AT, top + 8, "parameters", "series0", size=8.5, weight="bold")
        self._text(BARS_END, top + 8, "multiply-adds", "series1", size=8.5, weight="bold", ha="right")
        before: float | None = None
        for row in rows:
            middle = top - row.height / 2
            half = self._map(row, middle)
            if before is not None:
                self._arrow(before, middle + half + 3)
            before = middle - half - 3
            self._text(BOXES_AT, top - 13, row.title, "ink", weight="bold")
            self._text(SHAPE_AT, top - 13, _shape_text(row.shape), "muted", size=9)
            if row.stage is None:
                self._text(BOXES_AT, top - 28, row.text, "muted", size=9)
            else:
                self._stage(row.stage, top - 32)
            self._bars(row, top, totals)
            top -= row.height
        self._legend(top - 6)

    def _map(self, row: Row, y: float) -> float:
        """Draw what a row puts out as a slab; return half its height."""
        if len(row.shape) == 3:
            channels, side, _ = row.shape
            front = 8 + 34 * math.sqrt(side / self.image_size)
        else:
            channels, front = row.shape[0], 6.0
        depth = 1.5 + 2.2 * math.log2(channels)
        left, low = MAP_AT - (front + depth) / 2, y - (front + depth * 0.5) / 2
        dx, dy = depth, depth * 0.5
        faces = (
            ([(0, front), (front, front), (front + dx, front + dy), (dx, front + dy)], 0.28),
            ([(front, 0), (front, front), (front + dx, front + dy), (front + dx, dy)], 0.45),
            ([(0, 0), (front, 0), (front, front), (0, front)], 0.15),
        )
        for corners, alpha in faces:
            points = [(left + x, low + z) for x, z in corners]
            self.axes.add_patch(Polygon(points, facecolor=colour("series0"), alpha=alpha, linewidth=0))
            self.axes.add_patch(
                Polygon(
                    points, facecolor="none", edgecolor=colour("series0"), linewidth=0.7, joinstyle="round"
                )
            )
        return (front + dy) / 2

    def _arrow(self, start: float, end: float) -> None:
        if start - end > 2:
            self.axes.add_patch(
                FancyArrowPatch(
                    (MAP_AT, start), (MAP_AT, end), arrowstyle="-|>", mutation_scale=7,
                    color=colour("muted"), linewidth=0.9, shrinkA=0, shrinkB=0,
                )
            )  # fmt: skip

    def _stage(self, stage: int, top: float) -> None:
        """Draw a stage's blocks; shortcuts, where they have some, arch over them."""
        before = int(bool(_halving(self.spec, stage)))
        shown = list(_shown_blocks(self.spec.blocks[stage]))
        if not before and not shown:
            self._text(BOXES_AT, top - 12, "no blocks", "muted", size=9)
            return
        num_boxes = before + len(shown)
        width = min(78.0, (BOXES_END - BOXES_AT - GAP * (num_boxes - 1)) / num_boxes)
        lines = self._block_lines(stage)
        box_top, box_height = top - 12, 9.5 * max(len(lines), 2 * before) + 7
        if before:
            self._box(BOXES_AT, box_top - box_height, width, box_height)
            kernel = self.spec.kernels[stage]
            for i, line in enumerate((f"{kernel}x{kernel}, {self.spec.outputs[stage]}", "max pool")):
                self._text(BOXES_AT + width / 2, box_top - 8.5 - 9.5 * i, line, "ink", size=8, ha="center")
        for place, index in enumerate(shown, before):
            left = BOXES_AT + place * (width + GAP)
            if index is None:
                rest = self.spec.blocks[stage] - len(shown) + 1
                self._text(
                    left + width / 2, box_top - box_height / 2, f"{rest} more", "muted", size=8.5, ha="center"
                )
                continue
            detail = self.projected.get(f"stages.{stage}.blocks.{index}")
            self._box(left, box_top - box_height, width, box_height)
            for i, line in enumerate(lines):
                self._text(left + width / 2, box_top - 8.5 - 9.5 * i, line, "ink", size=8, ha="center")
            self._join_up(left, left + width, box_top - box_height / 2)
            if self.spec.has_shortcuts:
                self._shortcut(left, left + width, box_top, box_height, detail is not None)
            if detail is not None:
                self._text(left + width / 2, box_top + ARCH + 5, detail, "series1", size=7.5, ha="center")

    def _join_up(self, left: float, right: float, middle: float) -> None:
        """Draw what joins a block to its neighbours."""
        for x, towards in ((left - GAP, left), (right, right + GAP)):
            self._line([(x, middle), (towards, middle)], "muted", 1.0)

    def _shortcut(self, left: float, right: float, top: float, height: float, projected: bool) -> None:
        """Draw a block's shortcut, from before it to after it."""
        start, end, middle = left - GAP / 2, right + GAP / 2, top - height / 2
        name, width = ("series1", 1.5) if projected else ("muted", 1.0)
        bend = top + ARCH * 4 / 3 - 4  # of the curve's two handles, so that its crown is ARCH high
        points = [
            (start, middle),
            (start, top - 4),
            (start, bend),
            (end, bend),
            (end, top - 4),
            (end, middle),
        ]
        codes = [Path.MOVETO, Path.LINETO, Path.CURVE4, Path.CURVE4, Path.CURVE4, Path.LINETO]
        outline = Path(points, codes)
        self.axes.add_patch(
            PathPatch(
                outline,
                facecolor="none",
                edgecolor=colour(name),
                linewidth=width,
                zorder=2 if projected else 1,
            )
        )

    def _line(self, points: list[tuple[float, float]], name: str, width: float) -> None:
        self.axes.plot(*zip(*points, strict=True), color=colour(name), linewidth=width, zorder=0.9)

    def _block_lines(self, stage: int) -> list[str]:
        kernel, width = self.spec.kernels[stage], self.spec.channels[stage]
        middle = f"{kernel}x{kernel}, {width}"
        if self.spec.block != "bottleneck":
            return [middle] * NUM_CONVS[self.spec.block]
        return [f"1x1, {width}", middle, f"1x1, {width * self.spec.expansion}"]

    def _box(self, left: float, low: float, width: float, height: float) -> None:
        self.axes.add_patch(
            FancyBboxPatch(
                (left + 1.5, low + 1.5), width - 3, height - 3, boxstyle="round,pad=1.5,rounding_size=3",
                facecolor=colour("panel"), edgecolor=colour("muted"), linewidth=0.8,
            )
        )  # fmt: skip

    def _bars(self, row: Row, top: float, totals: tuple[int, int]) -> None:
        if not row.params:
            return
        length = BARS_END - BARS_AT
        values = (row.params, row.multiply_adds)
        for i, (value, total) in enumerate(zip(values, totals, strict=True)):
            y = top - 17 - 21 * i
            name = f"series{i}"
            self._text(BARS_AT, y + 4, _short(value), name, size=8.5)
            self._text(BARS_END, y + 4, f"{value / total:.1%}", "muted", size=8.5, ha="right")
            self._rectangle(BARS_AT, y - 5, length, "grid")
            self._rectangle(BARS_AT, y - 5, max(0.8, length * value / total), name)

    def _rectangle(self, left: float, low: float, width: float, name: str) -> None:
        corners = [(left, low), (left + width, low), (left + width, low + 3.5), (left, low + 3.5)]
        self.axes.add_patch(Polygon(corners, facecolor=colour(name), linewidth=0))

    def _legend(self, y: float) -> None:
        act = self.spec.activation.replace("_", " ")
        rate = self.spec.dropout.block
        lines: tuple[str, ...]
        if self.spec.has_shortcuts:
            dropout = f", dropout {rate:g} comes before the last" if rate else ""
            lines = (
                f"In a block every convolution is followed by BN and {act}{dropout};",
                "after the last, the shortcut is added between the two. Shortcuts:",
            )
        else:
            dropout = f"dropout {rate:g}, " if rate else ""
            lines = (f"A block is {dropout}a convolution, BN and {act}; it has no shortcut.",)
        if self.spec.down == "maxpool":
            lines = (f"A 2x2 max pool comes after its convolution and before BN and {act}.", *lines)
        for i, line in enumerate(lines):
            self._text(BOXES_AT, y - 12 * i, line, "muted", size=8.5)
        y -= 12 * len(lines)
        if not self.spec.has_shortcuts:
            return
        for x, name, width, text in (
            (BOXES_AT, "series1", 1.5, "convolution and BN"),
            (BOXES_AT + 140, "muted", 1.0, "identity"),
        ):
            self._line([(x, y), (x + 18, y)], name, width)
            self._text(x + 24, y, text, name, size=8.5)

    def _text(
        self,
        x: float,
        y: float,
        text: str,
        name: str,
        *,
        size: float = 10,
        weight: str = "normal",
        ha: str = "left",
    ) -> None:
        self.axes.text(x, y, text, color=colour(name), fontsize=size, fontweight=weight, ha=ha, va="center")


def _shown_blocks(number: int) -> Iterator[int | None]:
    """Yield the blocks to draw; None stands for those between."""
    if number <= MOST_BLOCKS:
        yield from range(number)
    else:
        yield from (*range(MOST_BLOCKS - 2), None, number - 1)


def _shape_text(shape: tuple[int, ...]) -> str:
    if len(shape) == 1:
        return f"{shape[0]} logits"
    channels, height, width = shape
    return f"{channels} channels, {height}x{width}"


def _short(value: int) -> str:
    """Return a count in three digits or so: 928, 12.3k, 4.94M."""
    for unit, size in (("G", 10**9), ("M", 10**6), ("k", 10**3)):
        if value >= size:
            return f"{value / size:.3g}{unit}"
    return str(value)
