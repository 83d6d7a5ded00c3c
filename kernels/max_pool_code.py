"""Machine code for :mod:`fastresnet.kernels.max_pool`, generated with LLVM for the processor that it runs on.

A row of outputs is of two rows of inputs, and images lie on end, so that all of a batch is rows. Threads take parts
of PART_ROWS rows, the next that is left.
"""

from __future__ import annotations

from functools import cache
from typing import Any

from llvmlite import ir

from fastresnet.kernels.llvm_norms import LINE
from fastresnet.kernels.team import TEAM_WORDS
from fastresnet.kernels.vector_code import TeamFunction, compiled

# ROWS, PIXELS: of the output, over all images, and in a row. C: channels, a multiple of LINE. X and DY are read, Y and
# DX written.
WORDS = (*TEAM_WORDS, "ROWS", "PIXELS", "C", "PARTS", "PART_ROWS", "X", "Y", "DY", "DX")


class _Pool(TeamFunction):
    """A pass over outputs, one line of channels at a time."""

    def __init__(self, module: ir.Module, pixel_bytes: int, lanes: int, *, streamed: bool) -> None:
        super().__init__(module, lanes, WORDS)
        self.pixel_bytes, self.streamed = pixel_bytes, streamed

    def over(self, backward: bool) -> None:
        """Write the function."""
        zero = self.number(0)
        input_row = self.times(self["PIXELS"], 2, self["C"])
        with self.taking("PARTS") as part:
            start = self.times(part, self["PART_ROWS"])
            stop = self.least(self.add(start, self["PART_ROWS"]), self["ROWS"])
            with self.counting(start, stop) as row, self.counting(zero, self["PIXELS"]) as pixel:
                output = self.times(self.add(self.times(row, self["PIXELS"]), pixel), self["C"])
                first = self.add(self.times(row, 2, input_row), self.times(pixel, 2, self["C"]))
                corners = [
                    self.add(first, *offset)
                    for offset in ([zero], [self["C"]], [input_row], [input_row, self["C"]])
                ]
                with self.counting(zero, self["C"], LINE) as line:
                    for ahead in range(0, LINE, self.lanes):
                        channel = self.add(line, self.number(ahead))
                        places = [self.add(corner, channel) for corner in corners]
                        (self.backward if backward else self.forward)(places, self.add(output, channel))
            if self.streamed:
                self.at.fence("seq_cst")

    def forward(self, inputs: list[Any], output: Any) -> None:
        greatest, _ = self.greatest(inputs)
        self.write("Y", output, greatest)

    def backward(self, inputs: list[Any], output: Any) -> None:
        _, taken = self.greatest(inputs)
        # PyTorch adds it to zeros, by which -0 becomes 0.
        gradient = self.at.fadd(self.read("DY", output), ir.Constant(self.vector, [0.0] * self.lanes))
        nothing = ir.Constant(self.vector, [0.0] * self.lanes)
        later = None  # whether a corner after this one was taken
        for place, chosen in reversed(list(zip(inputs, taken, strict=True))):
            here = gradient if chosen is None else self.at.select(chosen, gradient, nothing)
            self.write("DX", place, here if later is None else self.at.select(later, nothing, here))
            if chosen is not None:
                later = chosen if later is None else self.at.or_(later, chosen)

    def greatest(self, inputs: list[Any]) -> tuple[Any, list[Any]]:
        """Return the greatest of the corners, and which of them was taken over those before it, as PyTorch does."""
        greatest, taken = self.read("X", inputs[0]), [None]
        for place in inputs[1:]:
            value = self.read("X", place)
            is_nan = self.at.fcmp_unordered("uno", value, value)
            chosen = self.at.or_(self.at.fcmp_ordered(">", value, greatest), is_nan)
            greatest = self.at.select(chosen, value, greatest)
            taken.append(chosen)
        return greatest, taken

    def read(self, name: str, place: Any) -> Any:
        return self.load_pixel(self.place(self[name], place, size=self.pixel_bytes), self.pixel_bytes)

    def write(self, name: str, place: Any, value: Any) -> None:
        address = self.place(self[name], place, size=self.pixel_bytes)
        # no value is but one that was read
        self.store_pixel(value, address, self.pixel_bytes, streamed=self.streamed, exact=True)


@cache
def code(name: str, pixel_bytes: int, lanes: int, streamed: bool) -> int:
    """Return the address of a pass's code.

    Args:
        name: ``forward`` or ``backward``.
        pixel_bytes: 4 for float32, 2 for bfloat16.
        lanes: float32s in a vector.
        streamed: write past the caches.
    """

    def write(module: ir.Module) -> None:
        _Pool(module, pixel_bytes, lanes, streamed=streamed).over(name == "backward")

    return compiled(write)
