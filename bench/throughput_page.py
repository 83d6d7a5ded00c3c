"""A throughput record as text: a Markdown page with a table a cell."""

from __future__ import annotations

from typing import Any

from fastresnet.bench.ladder import CHANGE, OURS, ROWS, STUDENT, WHOLE
from fastresnet.bench.record import commands_told
from fastresnet.words import counted


def to_markdown(record: dict[str, Any]) -> str:
    """Return the record as a page: what was measured, a table an arch and batch size, what was not measured."""
    where, settings, ceilings = record["environment"], record["settings"], record["ceilings"]
    lines = [
        "# Training throughput",
        "",
        f"{where['device_name']} ({counted(where['cores'], 'CPU core')}, {counted(where['threads'], 'thread')}), "
        f"torch {where['torch']}, {record['date']}; {settings['dataset']}; {commands_told(record)}.",
        f"Medians of {counted(settings['rounds'], 'round')} of {counted(settings['steps'], 'step')}, the rows in turn, "
        "each in its own process; least and most in brackets. A ratio is to the row before, the median of the rounds' "
        "own.",
        f"Matrix rate: {ceilings['matrix_flops_per_s'] / 1e12:.3g} TFLOP/s, of a large {ceilings['dtype']} product; "
        f"copy: {ceilings['copy_bytes_per_s'] / 1e9:.1f} GB/s. Step alone: on one batch that stays on the device.",
    ]
    for cell in record["cells"]:
        floor = cell["floor"]
        lines += [
            "",
            f"## {cell['arch']}, batch {cell['batch_size']}",
            "",
            f"Floor: {floor['images_per_s']:,.0f} img/s ({1e6 * floor['arithmetic_s']:.3g} us of arithmetic and "
            f"{1e6 * floor['norms_s']:.3g} us of batch-norm traffic an image).",
            "",
            "| | img/s | ratio | of matrix rate | step alone, img/s | ratio | of matrix rate | start, s | what |",
            "|---|---|---|---|---|---|---|---|---|",
        ]
        lines += [_line(label_of(name, cell["rows"]), row) for name, row in cell["rows"].items()]
        if cell["ratios"]:
            low, high = min(cell["ratios"]), max(cell["ratios"])
            times = cell["rows"][OURS]["times_floor"]
            lines += [
                "",
                f"{OURS} is {cell['median_ratio']:.2f} times as fast as the {STUDENT}'s loop (median of rounds; "
                f"{low:.2f} to {high:.2f}), and takes {times:.2f} times its floor.",
            ]
    if record["not_measured"]:
        lines += ["", f"Not measured, for want of time: {', '.join(record['not_measured'])}."]
    return "\n".join(lines) + "\n"


def label_of(name: str, rows: dict[str, dict[str, Any]]) -> str:
    """Return what a row is called beside these: by what it adds to the row before it, or where it adds more, whole."""
    had = [each for each in ROWS[: ROWS.index(name)] if each in rows and rows[each]["left_out"] is None]
    if name not in WHOLE:  # the student's, with those changes alone that were asked for
        return CHANGE[name] if had or name == STUDENT else f"{CHANGE[STUDENT]} {CHANGE[name]}"
    start = ROWS.index(had[-1]) if had and had[-1] in WHOLE else 0
    between = ROWS[start : ROWS.index(name)]
    return CHANGE[name] if had and all(each in rows for each in between) else WHOLE[name]


def _line(label: str, row: dict[str, Any]) -> str:
    if row["left_out"] is not None:
        return f"| {label} | | | | | | | | left out: {row['left_out']} |"
    cells = [label]
    for speeds, median, ratio, share in (
        ("images_per_s", "median", "ratio", "share_of_matrix"),
        ("step_images_per_s", "step_median", "step_ratio", "step_share_of_matrix"),
    ):
        form = ",.0f" if row[median] >= 1000 else ",.1f"
        spread = f"{min(row[speeds]):{form}} to {max(row[speeds]):{form}}"
        cells.append(f"{row[median]:{form}} ({spread})")
        cells.append("" if row[ratio] is None else f"{row[ratio]:.2f}")
        cells.append(f"{row[share]:.2%}")
    return f"| {' | '.join(cells)} | {row['start_s']:.1f} | {row['what']} |"
