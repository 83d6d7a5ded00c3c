"""How an activation is cut: every element once, rows read 16 bytes at a time, as many programs as asked for."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from fastresnet.kernels.geometry import (
    BLOCK_COLUMNS,
    ONE_PASS_ELEMENTS,
    TUNINGS,
    ceil_div,
    plan_one_pass,
    plan_two_pass,
    power_above,
)

ROWS = st.integers(1, 600 * 64 * 64)
CHANNELS = st.integers(1, 2048)


def is_power(n: int) -> bool:
    return n > 0 and n & (n - 1) == 0


@given(ROWS, CHANNELS, st.integers(1, 200), st.sampled_from(TUNINGS))
def test_two_passes_cover_every_element_once(
    rows: int, channels: int, processors: int, tuning: object
) -> None:
    plan = plan_two_pass(rows, channels, processors, tuning)  # type: ignore[arg-type]
    assert plan.num_rows * plan.row_width == rows * channels and plan.row_width == plan.fold * channels
    assert is_power(plan.block_rows) and is_power(plan.block_columns) and plan.block_columns >= 8
    assert plan.block_rows * plan.block_columns <= tuning.block_elements  # type: ignore[attr-defined]
    # blocks and chunks reach the end, and the last of each has something to do
    assert (plan.num_blocks - 1) * plan.block_columns < plan.row_width <= plan.num_blocks * plan.block_columns
    assert (plan.num_chunks - 1) * plan.chunk_rows < plan.num_rows <= plan.num_chunks * plan.chunk_rows
    assert plan.chunk_rows % plan.block_rows == 0
    programs = tuning.programs_per_processor * processors  # type: ignore[attr-defined]
    assert plan.num_chunks <= max(1, programs // plan.num_blocks)
    assert plan.num_chunks < 65_536  # what a grid's second axis takes


@given(ROWS, CHANNELS)
def test_rows_are_folded_until_a_load_is_16_bytes(rows: int, channels: int) -> None:
    plan = plan_two_pass(rows, channels, 132)
    if plan.row_width % 16 or plan.row_width < BLOCK_COLUMNS:
        assert plan.num_rows % 2, "another fold was to be had"
    elif plan.fold > 1:
        half = plan.row_width // 2
        assert half % 16 or half < BLOCK_COLUMNS, "one fold less would have done"


def test_the_networks_widths_fold() -> None:
    """The reports' widths at 32x32, any batch: whole cache lines, but for what odd widths leave."""
    for channels in (10, 13, 16, 17, 26, 29, 34, 42, 52, 58, 64, 68, 85, 106, 128, 140, 172, 256, 512):
        plan = plan_two_pass(32 * 32, channels, 132)
        assert plan.row_width % 16 == 0 and plan.row_width >= BLOCK_COLUMNS


@given(st.integers(1, 4096), CHANNELS)
def test_one_pass_holds_every_row_of_some_channels(rows: int, channels: int) -> None:
    plan = plan_one_pass(rows, channels)
    if plan is None:
        assert rows > 1024
        return
    assert plan.block_rows == power_above(rows) and is_power(plan.block_columns)
    assert 16 <= plan.block_columns <= BLOCK_COLUMNS
    assert plan.block_rows * plan.block_columns <= ONE_PASS_ELEMENTS
    assert plan.num_blocks == ceil_div(channels, plan.block_columns)
    assert is_power(plan.num_warps) and plan.num_warps <= 16
