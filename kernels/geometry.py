"""How an activation is cut for the kernels: rows, columns, blocks, chunks; one pass or two.

A channels-last activation [N, C, H, W] is a matrix of N*H*W rows and C columns. Two passes read it through a
*folded* view: ``fold`` neighbouring rows laid end to end, so that 85 channels (rows of 170 bytes) are still
read 16 bytes at a time and 16 channels still fill a cache line. Column ``j`` of the view is channel ``j %
C``.

Everything here follows from the shape, the number of multiprocessors and a constant :class:`Tuning`: the same
machine adds in the same order, always.
"""

from __future__ import annotations

from dataclasses import dataclass

BLOCK_COLUMNS = 64  # 128 bytes of bf16: one cache line
ONE_PASS_ELEMENTS = 16384  # a slab of channels that one program keeps in registers
ONE_PASS_COLUMNS = 16  # 32 bytes of bf16: one memory sector
ALIGNMENT = 16  # columns; what Triton asks of a row's width before it loads 16 bytes at a time


@dataclass(frozen=True, kw_only=True)
class Tuning:
    """How two passes keep enough bytes in flight; none of it changes what is computed but the order of sums.

    Attributes:
        block_elements: elements a program handles at a time.
        num_warps: warps of 32 threads a program.
        programs_per_processor: programs a multiprocessor is given, all told.
        num_stages: blocks a program has under way; from 2 up they pass through shared memory.
    """

    block_elements: int
    num_warps: int
    programs_per_processor: int
    num_stages: int


# the first is the default; the others are what dispatch measures beside it
TUNINGS = (
    Tuning(block_elements=4096, num_warps=8, programs_per_processor=4, num_stages=1),
    Tuning(block_elements=4096, num_warps=8, programs_per_processor=4, num_stages=3),
    Tuning(block_elements=4096, num_warps=4, programs_per_processor=8, num_stages=1),
    Tuning(block_elements=2048, num_warps=4, programs_per_processor=8, num_stages=1),
)


@dataclass(frozen=True, kw_only=True)
class OnePass:
    """One program holds every row of ``block_columns`` channels."""

    block_rows: int
    block_columns: int
    num_warps: int
    num_blocks: int


@dataclass(frozen=True, kw_only=True)
class TwoPass:
    """A grid of ``num_blocks`` column blocks by ``num_chunks`` runs of rows of the folded view.

    Attributes:
        fold: rows of the activation in a row of the view.
        num_rows, row_width: the view's shape.
        block_rows, block_columns: what a program handles at a time.
        chunk_rows: rows of the view that one program goes through, block by block.
    """

    fold: int
    num_rows: int
    row_width: int
    block_rows: int
    block_columns: int
    chunk_rows: int
    num_chunks: int
    num_blocks: int
    num_warps: int
    num_stages: int

    @property
    def num_partials(self) -> int:
        """Partial sums of a channel: one for each chunk and place in the folded row."""
        return self.num_chunks * self.fold


def ceil_div(a: int, b: int) -> int:
    """Return a / b rounded up."""
    return -(-a // b)


def power_above(n: int) -> int:
    """Return the least power of two that is not under ``n``."""
    return 1 << max(n - 1, 0).bit_length()


def bits_size(num_rows: int, num_channels: int) -> int:
    """Return the bytes that hold one bit an element, rows padded to whole bytes."""
    return num_rows * ceil_div(num_channels, 8)


def plan_one_pass(num_rows: int, num_channels: int) -> OnePass | None:
    """Return the slabs of a [num_rows, num_channels] activation, or None where registers do not hold one."""
    rows = power_above(num_rows)
    columns = min(max(ONE_PASS_ELEMENTS // 4 // rows, ONE_PASS_COLUMNS), BLOCK_COLUMNS)
    if rows * columns > ONE_PASS_ELEMENTS:
        return None
    return OnePass(
        block_rows=rows,
        block_columns=columns,
        num_warps=min(16, max(1, rows * columns // 512)),
        num_blocks=ceil_div(num_channels, columns),
    )


def plan_two_pass(
    num_rows: int, num_channels: int, num_processors: int, tuning: Tuning = TUNINGS[0]
) -> TwoPass:
    """Return the folded view of a [num_rows, num_channels] activation and the grid over it."""
    fold = 1
    while num_rows % (2 * fold) == 0 and (
        fold * num_channels < BLOCK_COLUMNS or fold * num_channels % ALIGNMENT
    ):
        fold *= 2
    rows, width = num_rows // fold, num_channels * fold
    block_columns = min(BLOCK_COLUMNS, max(power_above(width), 8))
    block_rows = min(tuning.block_elements // block_columns, power_above(rows))
    num_blocks = ceil_div(width, block_columns)
    num_chunks = max(1, tuning.programs_per_processor * num_processors // num_blocks)
    chunk_rows = ceil_div(ceil_div(rows, num_chunks), block_rows) * block_rows
    return TwoPass(
        fold=fold,
        num_rows=rows,
        row_width=width,
        block_rows=block_rows,
        block_columns=block_columns,
        chunk_rows=chunk_rows,
        num_chunks=ceil_div(rows, chunk_rows),
        num_blocks=num_blocks,
        num_warps=tuning.num_warps,
        num_stages=tuning.num_stages,
    )
