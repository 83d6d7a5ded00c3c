"""Machine code for :mod:`fastresnet.kernels.amx`, generated with LLVM.

A tile register holds 16 rows of 64 bytes. An instruction multiplies 16 input channels x 32 pixels with 32 pixels x 16
output channels, bfloat16, and adds the products to 16 x 16 float32s. The 32 pixels, a line here, are the same row of as
many images as fit, a group, side by side: so the row above or below is another line, and the pixel to the left or right
the next one in it, or a zero at an image's edge. Pixels past the last image, or that images leave over, are zeros.

X's lines are transposed to [16 channels, 32 pixels], once for each column of the filters, those of Y interleaved to
[16 pairs of pixels, 16 channels, 2]. The sums of a column of filters stay in registers while a block of lines goes by.
"""

from __future__ import annotations

from functools import cache
from typing import Any

from llvmlite import ir

from fastresnet.kernels.amx import CHANNELS, LINE, TAPS, TILE_BYTES
from fastresnet.kernels.team import TEAM_WORDS
from fastresnet.kernels.vector_code import INT16, INT32, TeamFunction, compiled

# X, Y: bfloat16 images, channels-last, of C and O channels, and the gradient of their convolution. NUM: images, in
# GROUPS, of which BLOCK are done at a time. PARTS: of the groups, each with sums of its own. SHARES: of X's channels,
# so that an item is a share of a part. SUMS: float32 [PARTS, C / 16, O / 16, 3 columns, 3 rows, 16 of C, 16 of O].
# SCRATCH: memory of the threads, SCRATCH_BYTES each. NOTHING: zeros to read in place of an image. TILES: how tile
# registers are divided. FILTERS: the gradient, float32 [O, 3, 3, C].
WORDS = (
    *TEAM_WORDS,
    *("X", "Y", "NUM", "C", "O", "GROUPS", "BLOCK", "PARTS", "SHARES", "ITEMS"),
    *("SUMS", "SCRATCH", "SCRATCH_BYTES", "NOTHING", "TILES", "FILTERS"),
)
_BYTE = ir.IntType(8)
_ROW_BYTES = 64  # of a tile, and of a vector register
_TOTALS, _OF_Y, _OF_X = (0, 1, 2), (3, 4, 5), (6, 7)  # what the tile registers are for


class _Call(TeamFunction):
    """A function with its call's words, and with shuffles and AMX's instructions."""

    def __init__(self, module: ir.Module) -> None:
        super().__init__(module, CHANNELS, WORDS)

    def amx(self, name: str, *arguments: Any) -> None:
        """Write an instruction; ints are tile registers, values addresses and strides."""
        given = [ir.Constant(_BYTE, a) if isinstance(a, int) else a for a in arguments]
        kind = ir.FunctionType(ir.VoidType(), [value.type for value in given])
        self.at.call(self.named(f"llvm.x86.{name}", kind), given)

    def named(self, name: str, kind: ir.FunctionType) -> Any:
        return self.module.globals.get(name) or ir.Function(self.module, kind, name)

    def read_tile(self, register: int, address: Any) -> None:
        self.amx("tileloadd64", register, self.pointer(address, _BYTE), self.number(_ROW_BYTES))

    def write_tile(self, register: int, address: Any) -> None:
        self.amx("tilestored64", register, self.pointer(address, _BYTE), self.number(_ROW_BYTES))

    def words_at(self, address: Any, num: int) -> Any:
        return self.at.load(self.pointer(address, ir.VectorType(INT16, num)), align=2)

    def write_row(self, row: Any, address: Any) -> None:
        self.at.store(row, self.pointer(address, row.type), align=_ROW_BYTES)

    def shuffled(self, a: Any, b: Any, places: list[int]) -> Any:
        return self.at.shuffle_vector(a, b, ir.Constant(ir.VectorType(INT32, len(places)), places))

    def joined(self, vectors: list[Any]) -> Any:
        """Return vectors, a power of two of them, laid end to end."""
        if len(vectors) == 1:
            return vectors[0]
        middle = len(vectors) // 2
        first, second = self.joined(vectors[:middle]), self.joined(vectors[middle:])
        return self.shuffled(first, second, list(range(2 * first.type.count)))

    def transposed(self, rows: list[Any]) -> list[Any]:
        """Return the columns of as many rows as a row, or each quarter of it, has elements.

        A round of pairing row k with the one half of them further on turns the bits of an element's row and column, end
        to end, round by one; as many rounds as a row's number has bits transpose.
        """
        num, half = rows[0].type.count, len(rows) // 2
        sides = [
            [
                place + vector
                for start in range(side, num, len(rows))
                for place in range(start, start + half)
                for vector in (0, num)
            ]
            for side in (0, half)
        ]
        for _ in range(len(rows).bit_length() - 1):
            rows = [self.shuffled(rows[k], rows[k + half], places) for k in range(half) for places in sides]
        return rows


class _Gradient(_Call):
    """The parts' sums.

    Args:
        height, width: of an image in pixels, at most LINE.
        inputs, outputs: channels, so that addresses are constants apart.
    """

    def __init__(self, module: ir.Module, height: int, width: int, inputs: int, outputs: int) -> None:
        super().__init__(module)
        self.height, self.width, self.inputs, self.outputs = height, width, inputs, outputs
        self.across = LINE // width
        self.group_bytes = height * TILE_BYTES  # of a tile of channels
        self.block_bytes = self.times(self["BLOCK"], self.group_bytes)
        self.x_lines = self.add(self["SCRATCH"], self.times(self.taken("THREAD"), self["SCRATCH_BYTES"]))
        self.y_lines = self.add(self.x_lines, self.times(self.block_bytes, TAPS))

    def write(self) -> None:
        """Write the function."""
        self.amx("ldtilecfg", self.pointer(self["TILES"], _BYTE))
        zero = self.number(0)
        x_tiles = self.number(self.inputs // CHANNELS)
        with self.taking("ITEMS") as item:
            part, share = self.at.sdiv(item, self["SHARES"]), self.at.srem(item, self["SHARES"])
            start, stop = self.bounds(self["GROUPS"], part, self["PARTS"])
            tiles = self.bounds(x_tiles, share, self["SHARES"])
            num_groups = self.at.sub(stop, start)
            blocks = self.at.sdiv(self.add(num_groups, self["BLOCK"], self.number(-1)), self["BLOCK"])
            with self.counting(zero, blocks) as block:
                first = self.add(start, self.times(block, self["BLOCK"]))
                groups = self.least(self["BLOCK"], self.at.sub(stop, first))
                with self.counting(zero, groups) as group:
                    self.interleave(self.add(first, group), self.of_group(self.y_lines, group))
                with self.counting(*tiles) as tile:
                    with self.counting(zero, groups) as group:
                        self.transpose(self.add(first, group), tile, self.of_group(self.x_lines, group))
                    own = self.add(self.times(part, x_tiles), tile)
                    self.multiply(groups, own, self.at.icmp_signed("==", block, zero))
        self.at.position_before(self.at.block.terminator)
        self.amx("tilerelease")

    def bounds(self, count: Any, number: Any, num: Any) -> tuple[Any, Any]:
        """Return where a part, one of ``num``, of ``count`` things begins and ends."""
        after = self.add(number, self.number(1))
        start, stop = (self.at.sdiv(self.times(count, k), num) for k in (number, after))
        return start, stop

    def of_group(self, lines: Any, group: Any) -> Any:
        return self.add(lines, self.times(group, self.group_bytes))

    def pixels(self, images: str, channels: int, group: Any, row: Any, channel: Any) -> list[Any]:
        """Return the addresses of a line's pixels at a channel."""
        found = []
        for place in range(self.across):
            image = self.add(self.times(group, self.across), self.number(place))
            pixel = self.times(self.add(self.times(image, self.height), row), self.width)
            exists = self.at.icmp_signed("<", image, self["NUM"])
            own = self.place(self[images], self.times(pixel, channels), size=2)
            start = self.place(self.at.select(exists, own, self["NOTHING"]), channel, size=2)
            found += [self.add(start, self.number(2 * channels * pixel)) for pixel in range(self.width)]
        return found

    def interleave(self, group: Any, out: Any) -> None:
        """Write a group's lines of all of Y's channels, a tile's from those of the next ``block_bytes`` away."""
        zero = self.number(0)
        nothing = ir.Constant(ir.VectorType(INT16, CHANNELS), [0] * CHANNELS)
        pairs = [place + vector for place in range(CHANNELS) for vector in (0, CHANNELS)]
        tiles = self.number(self.outputs // CHANNELS)
        with self.counting(zero, self.number(self.height)) as row, self.counting(zero, tiles) as tile:
            line = self.add(out, self.times(row, TILE_BYTES), self.times(tile, self.block_bytes))
            addresses = self.pixels("Y", self.outputs, group, row, self.times(tile, CHANNELS))
            values = [self.words_at(address, CHANNELS) for address in addresses]
            values += [nothing] * (LINE - len(values))
            for pair in range(LINE // 2):
                mixed = self.shuffled(values[2 * pair], values[2 * pair + 1], pairs)
                self.write_row(mixed, self.add(line, self.number(_ROW_BYTES * pair)))

    def transpose(self, group: Any, tile: Any, out: Any) -> None:
        """Write a group's lines of a tile of X's channels, a column's ``block_bytes`` from those of the next."""
        few = CHANNELS // 2
        nothing = ir.Constant(ir.VectorType(INT16, few), [0] * few)
        with self.counting(self.number(0), self.number(self.height)) as row:
            own = self.add(out, self.times(row, TILE_BYTES))
            addresses = self.pixels("X", self.inputs, group, row, self.times(tile, CHANNELS))
            for start in (0, few):
                at = [self.add(address, self.number(2 * start)) for address in addresses]
                values = [self.words_at(address, few) for address in at] + [nothing] * (LINE - len(at))
                # A register's quarters are 8 pixels of 8 channels each.
                lines = self.transposed([self.joined(values[k::few]) for k in range(few)])
                for channel, line in enumerate(lines, start):
                    place = self.add(own, self.number(_ROW_BYTES * channel))
                    for column in range(TAPS):
                        moved = self.moved(line, column - 1)
                        self.write_row(moved, self.add(place, self.times(self.block_bytes, column)))

    def moved(self, line: Any, by: int) -> Any:
        """Return a line of which each pixel is the one ``by`` (-1, 0 or 1) further on in its row, or 0 at its end."""
        if by == 0:
            return line
        num = LINE // 2
        twos = ir.VectorType(INT32, num)
        own, nothing = self.at.bitcast(line, twos), ir.Constant(twos, [0] * num)
        beside = self.shuffled(own, nothing, [k + by if 0 <= k + by < num else num for k in range(num)])
        turned = self.named(f"llvm.fshl.v{num}i32", ir.FunctionType(twos, [twos] * 3))
        both = (own, beside) if by < 0 else (beside, own)
        found = self.at.bitcast(self.at.call(turned, [*both, ir.Constant(twos, [16] * num)]), line.type)
        inside = [0 <= pixel % self.width + by < self.width for pixel in range(LINE)]
        return self.at.and_(
            found, ir.Constant(line.type, [0xFFFF if is_inside else 0 for is_inside in inside])
        )

    def multiply(self, groups: Any, own: Any, is_first: Any) -> None:
        """Add a block's products to the sums of one tile of X's channels, number ``own`` of all parts'."""
        y_tiles = self.number(self.outputs // CHANNELS)
        with (
            self.counting(self.number(0), y_tiles) as tile,
            self.counting(self.number(0), self.number(TAPS)) as column,
        ):
            number = self.add(self.times(self.add(self.times(own, y_tiles), tile), TAPS), column)
            sums = self.add(self["SUMS"], self.times(number, TAPS * TILE_BYTES))
            places = [self.add(sums, self.number(TILE_BYTES * row)) for row in range(TAPS)]
            with self.at.if_else(is_first) as (begin, go_on):
                with begin:
                    for register in _TOTALS:
                        self.amx("tilezero", register)
                with go_on:
                    for register, place in zip(_TOTALS, places, strict=True):
                        self.read_tile(register, place)
            x = self.add(self.x_lines, self.times(column, self.block_bytes))
            y = self.add(self.y_lines, self.times(tile, self.block_bytes))
            with self.counting(self.number(0), groups) as group:
                self.multiply_group(self.of_group(x, group), self.of_group(y, group))
            for register, place in zip(_TOTALS, places, strict=True):
                self.write_tile(register, place)

    def multiply_group(self, x: Any, y: Any) -> None:
        """Go down a group's rows; a row of X meets those of Y around it, which stay in registers in turn."""
        self.read_tile(_OF_Y[0], y)
        for row in range(self.height):
            of_x = _OF_X[row % 2]
            self.read_tile(of_x, self.add(x, self.number(row * TILE_BYTES)))
            if row + 1 < self.height:
                self.read_tile(_OF_Y[(row + 1) % 3], self.add(y, self.number((row + 1) * TILE_BYTES)))
            for tap in reversed(range(TAPS)):
                output_row = row + 1 - tap
                if 0 <= output_row < self.height:
                    self.amx("tdpbf16ps", _TOTALS[tap], of_x, _OF_Y[output_row % 3])


def _write_filters(module: ir.Module) -> None:
    """Write FILTERS, from SUMS; an item is a tile of X's channels with one of Y's."""
    write = _Call(module)
    zero, taps = write.number(0), write.number(TAPS)
    y_tiles = write.at.sdiv(write["O"], write.number(CHANNELS))
    part_bytes = write.times(write["C"], write["O"], 4 * TAPS**2)
    nothing = ir.Constant(write.vector, [0.0] * CHANNELS)
    totals = [write.local(write.vector) for _ in range(CHANNELS)]
    with write.taking("ITEMS") as item:
        x_tile, y_tile = write.at.sdiv(item, y_tiles), write.at.srem(item, y_tiles)
        with write.counting(zero, taps) as column, write.counting(zero, taps) as row:
            number = write.add(write.times(write.add(write.times(item, TAPS), column), TAPS), row)
            own = write.add(write["SUMS"], write.times(number, TILE_BYTES))
            for total in totals:
                write.at.store(nothing, total)
            with write.counting(zero, write["PARTS"]) as part:
                of_part = write.add(own, write.times(part, part_bytes))
                for channel, total in enumerate(totals):
                    value = write.load(write.add(of_part, write.number(_ROW_BYTES * channel)))
                    write.at.store(write.at.fadd(write.at.load(total), value), total)
            tap = write.add(write.times(row, TAPS), column)
            for channel, values in enumerate(write.transposed([write.at.load(total) for total in totals])):
                output = write.add(write.times(y_tile, CHANNELS), write.number(channel))
                pixel = write.times(write.add(write.times(output, TAPS**2), tap), write["C"])
                write.store(values, write.place(write["FILTERS"], pixel, write.times(x_tile, CHANNELS)))


@cache
def sums_code(height: int, width: int, inputs: int, outputs: int) -> int:
    """Return the address of the code of the sums, for images of a size and channels."""
    return compiled(lambda module: _Gradient(module, height, width, inputs, outputs).write())


@cache
def filters_code() -> int:
    """Return the address of the code that makes the filters' gradient of them."""
    return compiled(_write_filters)
