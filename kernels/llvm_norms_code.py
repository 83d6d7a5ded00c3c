"""Machine code for :mod:`fastresnet.kernels.llvm_norms`, generated with LLVM for the processor that it runs on.

A pass goes through rows [ROWS, WIDTH] of float32 or bfloat16 from byte to byte, which is what memory does fastest, in
parts of PART_ROWS, of which each thread takes the next that is left. Arithmetic is float32. Sums are float32 over
BLOCK_ROWS rows and float64 over those; each part has its own, so that bits are the same whichever thread takes what.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

from llvmlite import ir

from fastresnet.kernels.fusion import LEAKY_SLOPE, Fusion
from fastresnet.kernels.llvm_norms import LINE
from fastresnet.kernels.team import TEAM_WORDS
from fastresnet.kernels.vector_code import TeamFunction, compiled
from fastresnet.kernels.vector_math import smooth

# Of channels, float32 [WIDTH] each; R_: of the residual's norm; MEAN_G, (R_)MEAN_GX: what is taken off the gradient.
CHANNELS = ("MEAN", "SCALE", "BIAS", "R_MEAN", "R_SCALE", "R_BIAS", "MEAN_G", "MEAN_GX", "R_MEAN_GX")
# X, RESIDUAL, DY, Y: rows that are read, but for the Y of `apply`. DX, DRESIDUAL: written. SUMS: float64
# [PARTS, num_sums, WIDTH], BLOCK_SUMS: float32 of that shape; zeros at first. WIDTH is a multiple of LINE.
WORDS = (
    *(*TEAM_WORDS, "ROWS", "WIDTH", "PARTS", "PART_ROWS"),
    *("X", "RESIDUAL", "DY", "Y", "DX", "DRESIDUAL", *CHANNELS, "SUMS", "BLOCK_SUMS"),
)
BLOCK_ROWS = 16
# Passes whose parts are taken from the last to the first: caches still hold the end of what was written before, and
# at its end the beginning, where the pass after it begins.
BACKWARDS = ("statistics", "sums", "sums_and_gradient")
# Passes that write the gradient of what was activated, or are given it as DY, whatever is added.
_KEEPING = ("sums_and_gradient", "input_gradient_of")


class _Rows(TeamFunction):
    """A pass, and the part and channels of it that are being written."""

    def __init__(
        self,
        module: ir.Module,
        fusion: Fusion,
        pixel_bytes: int,
        lanes: int,
        *,
        backwards: bool,
        keeping: bool,
        streamed: bool,
    ) -> None:
        super().__init__(module, lanes, WORDS)
        self.fusion, self.pixel_bytes = fusion, pixel_bytes
        self.keeps_gradient = keeping or fusion.added == "plain"
        self.backwards, self.streamed = backwards, streamed
        self.part: Any = None
        self.channel: Any = None

    def over(self, write: Callable[[Any], list[Any]]) -> None:
        """Write the function: ``write`` is given an element's place in the rows, and returns what is to be added up."""
        zero, num_added = self.number(0), 0
        with self.taking("PARTS") as number:
            last = self.at.sub(self["PARTS"], self.number(1))
            self.part = self.at.sub(last, number) if self.backwards else number
            start = self.times(self.part, self["PART_ROWS"])
            stop = self.least(self.add(start, self["PART_ROWS"]), self["ROWS"])
            with self.counting(start, stop, BLOCK_ROWS) as block:
                end = self.least(self.add(block, self.number(BLOCK_ROWS)), stop)
                with self.counting(block, end) as row, self.counting(zero, self["WIDTH"], LINE) as line:
                    for ahead in range(0, LINE, self.lanes):
                        self.channel = self.add(line, self.number(ahead))
                        added = write(self.add(self.times(row, self["WIDTH"]), self.channel))
                        num_added = len(added)
                        self._add_up(added)
                if num_added:
                    with self.counting(zero, self["WIDTH"], self.lanes) as self.channel:
                        self._flush(num_added)
            if self.streamed:
                self.at.fence("seq_cst")

    def _add_up(self, values: list[Any]) -> None:
        for index, value in enumerate(values):
            address = self.place(self["BLOCK_SUMS"], self._sum(index, len(values)))
            self.store(self.at.fadd(self.load(address), value), address)

    def _flush(self, num: int) -> None:
        """Add what a block came to."""
        kind = ir.VectorType(ir.DoubleType(), self.lanes)
        for index in range(num):
            place = self._sum(index, num)
            address = self.place(self["BLOCK_SUMS"], place)
            total = self.pointer(self.place(self["SUMS"], place, size=8), kind)
            found = self.at.fpext(self.load(address), kind)
            self.at.store(self.at.fadd(self.at.load(total, align=8), found), total, align=8)
            self.store(self.alike(0.0), address)

    def _sum(self, index: int, num: int) -> Any:
        """Return the place of one of this part's ``num`` sums of the channels."""
        row = self.add(self.times(self.part, num), self.number(index))
        return self.add(self.times(row, self["WIDTH"]), self.channel)

    def of(self, name: str) -> Any:
        """Return a vector of CHANNELS."""
        return self.load(self.place(self[name], self.channel))

    def read(self, rows: str, place: Any) -> Any:
        return self.load_pixel(self.place(self[rows], place, size=self.pixel_bytes), self.pixel_bytes)

    def write(self, rows: str, place: Any, value: Any) -> None:
        address = self.place(self[rows], place, size=self.pixel_bytes)
        self.store_pixel(value, address, self.pixel_bytes, streamed=self.streamed)

    def centred(self, rows: str, place: Any, mean: str) -> Any:
        return self.at.fsub(self.read(rows, place), self.of(mean))

    def activated(self, place: Any, centred: Any) -> Any:
        """Return what the activation is given, of x - its mean; written alike forward and backward."""
        z = self.fma(centred, self.of("SCALE"), self.of("BIAS"))
        if self.fusion.added == "plain":
            return self.at.fadd(z, self.read("RESIDUAL", place))
        if self.fusion.added == "norm":
            residual = self.centred("RESIDUAL", place, "R_MEAN")
            return self.at.fadd(z, self.fma(residual, self.of("R_SCALE"), self.of("R_BIAS")))
        return z

    def bent(self, z: Any, value: Any) -> Any:
        """Return ``value`` times the slope of (leaky) ReLU at ``z``, at which a NaN counts as positive."""
        leaky = self.fusion.activation == "leaky_relu"
        low = self.at.fmul(value, self.alike(LEAKY_SLOPE)) if leaky else self.alike(0.0)
        return self.at.select(self.at.fcmp_ordered("<=", z, self.alike(0.0)), low, value)

    def gradient(self, place: Any, centred: Any) -> Any:
        """Return the gradient of what was activated; of (leaky) ReLU under a plain residual by the output's sign."""
        dy = self.read("DY", place)
        match self.fusion.activation:
            case "identity":
                return dy
            case "relu" | "leaky_relu":
                by_sign = self.fusion.saves_bits
                return self.bent(self.read("Y", place) if by_sign else self.activated(place, centred), dy)
            case activation:
                _, slope = smooth(self, activation, self.activated(place, centred))
                return self.at.fmul(dy, slope)

    def statistics(self, place: Any) -> list[Any]:
        """Return x - MEAN, which is a shift here, and its square."""
        shifted = self.centred("X", place, "MEAN")
        return [shifted, self.at.fmul(shifted, shifted)]

    def apply(self, place: Any) -> list[Any]:
        """Write y."""
        z = self.activated(place, self.centred("X", place, "MEAN"))
        match self.fusion.activation:
            case "identity":
                y = z
            case "relu" | "leaky_relu":
                y = self.bent(z, z)
            case activation:
                y, _ = smooth(self, activation, z)
        self.write("Y", place, y)
        return []

    def sums(self, place: Any) -> list[Any]:
        """Return g, g * (x - MEAN) and g * (residual - R_MEAN); write g where it is kept."""
        centred = self.centred("X", place, "MEAN")
        g = self.gradient(place, centred)
        found = [g, self.at.fmul(g, centred)]
        if self.keeps_gradient:
            self.write("DRESIDUAL", place, g)
        if self.fusion.added == "norm":
            found.append(self.at.fmul(g, self.centred("RESIDUAL", place, "R_MEAN")))
        return found

    def input_gradient(self, place: Any) -> list[Any]:
        """Write dx, and the gradient of a residual with a norm; where g was kept, DY is that."""
        centred = self.centred("X", place, "MEAN")
        g = self.read("DY", place) if self.keeps_gradient else self.gradient(place, centred)
        g = self.at.fsub(g, self.of("MEAN_G"))
        self._write_gradient("DX", place, g, centred, "MEAN_GX", "SCALE")
        if self.fusion.added == "norm":
            centred = self.centred("RESIDUAL", place, "R_MEAN")
            self._write_gradient("DRESIDUAL", place, g, centred, "R_MEAN_GX", "R_SCALE")
        return []

    sums_and_gradient, input_gradient_of = sums, input_gradient

    def _write_gradient(self, rows: str, place: Any, g: Any, centred: Any, mean: str, scale: str) -> None:
        projected = self.at.fsub(g, self.at.fmul(centred, self.of(mean)))
        self.write(rows, place, self.at.fmul(self.of(scale), projected))


@cache
def code(name: str, fusion: Fusion, pixel_bytes: int, lanes: int, streamed: bool) -> int:
    """Return the address of a pass's code.

    Args:
        name: ``statistics``, ``apply``, ``sums`` or ``input_gradient``; or one of these two that keeps the gradient of
            what was activated for the other, ``sums_and_gradient`` or ``input_gradient_of``.
        fusion: what it does.
        pixel_bytes: 4 for rows of float32, 2 for bfloat16.
        lanes: float32s in a vector.
        streamed: write past the caches.
    """

    def write(module: ir.Module) -> None:
        how = {"backwards": name in BACKWARDS, "keeping": name in _KEEPING, "streamed": streamed}
        rows = _Rows(module, fusion, pixel_bytes, lanes, **how)
        rows.over(getattr(rows, name))

    return compiled(write)
