"""Machine code for :mod:`fastresnet.kernels.winograd`, generated with LLVM for the processor that it runs on.

Loops over vectors of channels, and matrix products whose sums stay in registers, are what compilers do not find by
themselves; so they are written out here, an instruction at a time. A function takes the address of a call's words
(int64s, :data:`WORDS`) and is run by a team of threads at once.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

from llvmlite import ir

from fastresnet.kernels.team import TEAM_WORDS
from fastresnet.kernels.vector_code import FLOAT, INT64, Function, TeamFunction, compiled, host_lanes
from fastresnet.kernels.winograd_math import COLUMNS, TAPS, Filtering, Matrix

# X, Y: images, channels-last, of HEIGHT x WIDTH pixels and C and O channels. FILTERS: as each function has them.
# PLANES: memory of the threads, PLANE_BYTES each. NUM_TILES, DOWN x ACROSS an image, in NUM_BLOCKS. NOTHING: zeros to
# read in place of what lies outside an image; NOWHERE: where to write such. CHANNEL, TAP: how filters lie. PARTS: of
# the blocks, each with sums of its own.
WORDS = (
    *TEAM_WORDS,
    *("X", "Y", "HEIGHT", "WIDTH", "C", "O", "FILTERS", "PLANES", "PLANE_BYTES"),
    *("NUM_TILES", "DOWN", "ACROSS", "NUM_BLOCKS", "NOTHING", "NOWHERE", "CHANNEL", "TAP", "PARTS"),
)
BLOCK_TILES = 24  # whose transforms a core's own cache holds
GRADIENT_TILES = 32
PLANE_GAP = 16  # float32s, so that a tile's points lie in different sets of the nearest cache
_UNROLLED = 4


@dataclass(frozen=True, kw_only=True)
class Target:
    """How much a processor's registers hold.

    Attributes:
        lanes: float32s in a vector.
        rows: of a tile of a product whose sums are held; they divide BLOCK_TILES.
        gradient_rows: the same for the filters' gradient; they divide COLUMNS.
    """

    lanes: int
    rows: int
    gradient_rows: int


NARROW = Target(lanes=8, rows=6, gradient_rows=4)  # 16 registers of 256 bits
WIDE = Target(lanes=16, rows=12, gradient_rows=8)  # 32 registers of 512 bits


@cache
def host_target() -> Target:
    """Return what suits this machine's processor."""
    return WIDE if host_lanes() == WIDE.lanes else NARROW


class _Call(TeamFunction):
    """A function over tiles, with its call's words."""

    def __init__(self, module: ir.Module, target: Target, filtering: Filtering, pixel_bytes: int = 4) -> None:
        super().__init__(module, target.lanes, WORDS)
        self.target, self.filtering, self.pixel_bytes = target, filtering, pixel_bytes
        self.thread = self.taken("THREAD")

    def pixels(self, image: str, channels: str, tile: Any, size: int, margin: int, otherwise: str) -> Any:
        """Return the addresses of a tile's pixels: int64 [size * size], ``otherwise`` for what is outside.

        ``margin``: pixels that it begins before its outputs.
        """
        addresses = self.local(ir.ArrayType(INT64, size * size))
        tile_side = self.filtering.tile
        tiles = self.times(self["DOWN"], self["ACROSS"])
        number, rest = self.at.sdiv(tile, tiles), self.at.srem(tile, tiles)
        top = self.add(self.times(self.at.sdiv(rest, self["ACROSS"]), tile_side), self.number(-margin))
        left = self.add(self.times(self.at.srem(rest, self["ACROSS"]), tile_side), self.number(-margin))
        exists = self.at.icmp_signed("<", tile, self["NUM_TILES"])
        for i in range(size):
            y = self.add(top, self.number(i))
            # Negative numbers are great ones without a sign.
            inside_row = self.at.and_(exists, self.at.icmp_unsigned("<", y, self["HEIGHT"]))
            row = self.times(self.add(self.times(number, self["HEIGHT"]), y), self["WIDTH"])
            for j in range(size):
                x = self.add(left, self.number(j))
                inside = self.at.and_(inside_row, self.at.icmp_unsigned("<", x, self["WIDTH"]))
                pixel = self.times(self.add(row, x), self[channels])
                address = self.place(self[image], pixel, size=self.pixel_bytes)
                address = self.at.select(inside, address, self[otherwise])
                self.at.store(address, self.at.gep(addresses, [self.number(0), self.number(i * size + j)]))
        return addresses

    def pixel(self, addresses: Any, index: int, channel: Any) -> Any:
        address = self.at.load(self.at.gep(addresses, [self.number(0), self.number(index)]))
        return self.place(address, channel, size=self.pixel_bytes)

    def transform(
        self, image: str, channels: str, matrix: Matrix, tile: Any, margin: int, out: Any, plane: Any
    ) -> None:
        """Write a tile's transform: point k at ``out`` + k * ``plane`` elements."""
        size = matrix.shape[1]
        addresses = self.pixels(image, channels, tile, size, margin, "NOTHING")
        with self.counting(self.number(0), self[channels], self.lanes) as channel:
            loaded = [
                self.load_pixel(self.pixel(addresses, index, channel), self.pixel_bytes)
                for index in range(size**2)
            ]
            for point, value in enumerate(self.transformed(matrix, loaded)):
                self.store(value, self.place(out, channel, self.times(plane, point)))


def _product(module: ir.Module, target: Target, *, transposed: bool) -> Any:
    """Write a matrix product of which a tile is held in registers; return the function.

    ``C[m, n] = sum over k of A[m, k] B[k, n]``, with A's rows m far apart; ``transposed``: ``C += A[k, m] B[k, n]``.
    Arguments: addresses of A, B, C, elements from row to row of each, and the number of k, a multiple of _UNROLLED.
    """
    name = "product_transposed" if transposed else "product"
    write = Function(module, name, 7, target.lanes)
    write.function.attributes.add("noinline")
    a, b, c, a_row, b_row, c_row, num = write.function.args
    rows = target.gradient_rows if transposed else target.rows
    starts = range(0, COLUMNS, target.lanes)
    sums = {(m, n): write.local(write.vector) for m in range(rows) for n in starts}
    for (m, n), total in sums.items():
        start = (
            write.load(write.place(c, write.times(c_row, m), write.number(n)))
            if transposed
            else ir.Constant(write.vector, [0.0] * target.lanes)
        )
        write.at.store(start, total)
    with write.counting(write.number(0), num, _UNROLLED) as first:
        for step in range(_UNROLLED):
            k = write.add(first, write.number(step))
            columns = {n: write.load(write.place(b, write.times(k, b_row), write.number(n))) for n in starts}
            for m in range(rows):
                offsets = (
                    (write.times(k, a_row), write.number(m)) if transposed else (write.times(a_row, m), k)
                )
                factor = write.spread(write.at.load(write.pointer(write.place(a, *offsets), FLOAT)))
                for n, column in columns.items():
                    total = sums[m, n]
                    write.at.store(write.fma(factor, column, write.at.load(total)), total)
    for (m, n), total in sums.items():
        write.store(write.at.load(total), write.place(c, write.times(c_row, m), write.number(n)))
    write.at.ret_void()
    return write.function


def _planes(write: _Call, num_tiles: int) -> tuple[Any, Any, Any, Any]:
    """Return where this thread keeps what X and what Y are transformed to, and the elements from point to point."""
    planes = write.add(write["PLANES"], write.times(write.thread, write["PLANE_BYTES"]))
    of_x, of_y = (
        write.add(write.times(write[channels], num_tiles), write.number(PLANE_GAP)) for channels in ("C", "O")
    )
    return planes, write.place(planes, write.times(of_x, write.filtering.points**2)), of_x, of_y


def _write_pass(module: ir.Module, target: Target, filtering: Filtering, pixel_bytes: int) -> None:
    """Write Y, the convolution of X, with FILTERS [points^2, O / COLUMNS, C, COLUMNS], which are transformed."""
    product = _product(module, target, transposed=False)
    write, num_points = _Call(module, target, filtering, pixel_bytes), filtering.points**2
    zero, tiles = write.number(0), write.number(BLOCK_TILES)
    inputs, outputs, of_x, of_y = _planes(write, BLOCK_TILES)
    with write.taking("NUM_BLOCKS") as block:
        first = write.times(block, BLOCK_TILES)
        with write.counting(zero, tiles) as tile:
            out = write.place(inputs, write.times(tile, write["C"]))
            write.transform("X", "C", filtering.inputs, write.add(first, tile), 1, out, of_x)
        with write.counting(zero, write.number(num_points)) as point:
            filters = write.place(write["FILTERS"], write.times(point, write["C"], write["O"]))
            with write.counting(zero, write["O"], COLUMNS) as column:
                panel = write.place(filters, write.times(column, write["C"]))
                with write.counting(zero, tiles, target.rows) as row:
                    a = write.place(inputs, write.times(point, of_x), write.times(row, write["C"]))
                    c = write.place(outputs, write.times(point, of_y), write.times(row, write["O"]), column)
                    sizes = write["C"], write.number(COLUMNS), write["O"], write["C"]
                    write.at.call(product, [a, panel, c, *sizes])
        with write.counting(zero, tiles) as tile:
            addresses = write.pixels("Y", "O", write.add(first, tile), filtering.tile, 0, "NOWHERE")
            with write.counting(zero, write["O"], target.lanes) as channel:
                source = write.place(outputs, write.times(tile, write["O"]), channel)
                products = [
                    write.load(write.place(source, write.times(of_y, point))) for point in range(num_points)
                ]
                for index, value in enumerate(write.transformed(filtering.outputs, products)):
                    write.store_pixel(value, write.pixel(addresses, index, channel), pixel_bytes)


def _write_gradient(module: ir.Module, target: Target, filtering: Filtering, pixel_bytes: int) -> None:
    """Add the transformed filters' gradient to FILTERS [PARTS, points^2, O, C], from X and the output's gradient Y."""
    product = _product(module, target, transposed=True)
    write, num_points = _Call(module, target, filtering, pixel_bytes), filtering.points**2
    zero, tiles = write.number(0), write.number(GRADIENT_TILES)
    inputs, outputs, of_x, of_y = _planes(write, GRADIENT_TILES)
    matrix = write.times(write["C"], write["O"])
    # Each part of the blocks has sums of its own, so that they are the same whoever adds them up; and all parts are
    # done where the system gives fewer threads than were asked for.
    with write.taking("PARTS") as part:
        own = write.place(write["FILTERS"], write.times(part, matrix, num_points))
        start = write.at.sdiv(write.times(write["NUM_BLOCKS"], part), write["PARTS"])
        end = write.times(write["NUM_BLOCKS"], write.add(part, write.number(1)))
        with write.counting(start, write.at.sdiv(end, write["PARTS"])) as block:
            first = write.times(block, GRADIENT_TILES)
            with write.counting(zero, tiles) as tile:
                number = write.add(first, tile)
                out = write.place(inputs, write.times(tile, write["C"]))
                write.transform("X", "C", filtering.inputs, number, 1, out, of_x)
                out = write.place(outputs, write.times(tile, write["O"]))
                write.transform("Y", "O", filtering.outputs.T, number, 0, out, of_y)
            every_point, every_column = write.number(num_points), write["C"]
            with (
                write.counting(zero, every_point) as point,
                write.counting(zero, every_column, COLUMNS) as column,
            ):
                b = write.place(inputs, write.times(point, of_x), column)
                with write.counting(zero, write["O"], target.gradient_rows) as row:
                    a = write.place(outputs, write.times(point, of_y), row)
                    c = write.place(own, write.times(point, matrix), write.times(row, write["C"]), column)
                    write.at.call(product, [a, b, c, write["O"], write["C"], write["C"], tiles])


def _write_taps(module: ir.Module, target: Target, filtering: Filtering) -> None:
    """Write Y, the filters' gradient [O, 3, 3, C], from FILTERS [PARTS, points^2, O, C]; a block is one of O."""
    write, num_points = _Call(module, target, filtering), filtering.points**2
    matrix = write.times(write["O"], write["C"])
    with write.taking("NUM_BLOCKS") as output:
        channels, row = write["C"], write.times(output, write["C"])
        with write.counting(write.number(0), channels, target.lanes) as channel:
            own = write.place(write["FILTERS"], row, channel)
            sums = [write.local(write.vector) for _ in range(num_points)]
            for total in sums:
                write.at.store(ir.Constant(write.vector, [0.0] * target.lanes), total)
            with write.counting(write.number(0), write["PARTS"]) as part:
                of_part = write.place(own, write.times(part, matrix, num_points))
                for point, total in enumerate(sums):
                    value = write.load(write.place(of_part, write.times(matrix, point)))
                    write.at.store(write.at.fadd(write.at.load(total), value), total)
            points = [write.at.load(total) for total in sums]
            for tap, value in enumerate(write.transformed(filtering.filters.T, points)):
                write.store(
                    value,
                    write.place(write["Y"], write.times(row, TAPS**2), write.times(channels, tap), channel),
                )


def _write_filters(module: ir.Module, target: Target, filtering: Filtering) -> None:
    """Transform X to FILTERS as a pass takes them; a block is an input channel.

    In X, an input channel's taps are TAP elements from each other, and its first CHANNEL from the one before.
    """
    write = _Call(module, target, filtering)
    matrix = write.times(write["C"], write["O"])
    with write.taking("NUM_BLOCKS") as channel:
        outputs = write["O"]
        with write.counting(write.number(0), outputs, target.lanes) as output:
            own = write.place(write["X"], write.times(channel, write["CHANNEL"]), output)
            taps = [write.load(write.place(own, write.times(write["TAP"], tap))) for tap in range(TAPS**2)]
            panel = write.times(write.at.sdiv(output, write.number(COLUMNS)), COLUMNS)
            place = write.times(panel, write["C"]), write.times(channel, COLUMNS), write.at.sub(output, panel)
            for point, value in enumerate(write.transformed(filtering.filters, taps)):
                write.store(value, write.place(write["FILTERS"], write.times(matrix, point), *place))


@cache
def pass_code(pixel_bytes: int, target: Target, filtering: Filtering) -> int:
    """Return the address of the code of a convolution of float32 images, or bfloat16 ones of 2 bytes."""
    return compiled(lambda module: _write_pass(module, target, filtering, pixel_bytes))


@cache
def gradient_code(pixel_bytes: int, target: Target, filtering: Filtering) -> int:
    """Return the address of the code of the transformed filters' gradient."""
    return compiled(lambda module: _write_gradient(module, target, filtering, pixel_bytes))


@cache
def taps_code(target: Target, filtering: Filtering) -> int:
    """Return the address of the code that makes it the filters' gradient."""
    return compiled(lambda module: _write_taps(module, target, filtering))


@cache
def filters_code(target: Target, filtering: Filtering) -> int:
    """Return the address of the code that transforms filters."""
    return compiled(lambda module: _write_filters(module, target, filtering))
