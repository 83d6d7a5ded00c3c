"""A kernels record as JSON, a Markdown page and a plot."""

from __future__ import annotations

import io
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastresnet.atomic import write_atomic
from fastresnet.bench.record import commands_told, write_record
from fastresnet.kernels.llvm_norms import LINE, WORTH_A_CALL
from fastresnet.signals import held
from fastresnet.words import counted

if TYPE_CHECKING:
    from matplotlib.figure import Figure

NOT_TAKEN = "not taken"
COLOURS = {"eager": "#9aa0a6", "inductor": "#f2a33a", "triton": "#3b7dd8", "llvm": "#3b7dd8"}


def write_page(record: dict[str, Any], path: Path) -> None:
    """Write a record to ``path``, and the page and the plot of it beside it, as .md and .png."""
    write_record(path, record)
    write_atomic(path.with_suffix(".md"), lambda file: file.write(to_markdown(record).encode()))
    write_atomic(path.with_suffix(".png"), lambda file: file.write(draw(record)))


def to_markdown(record: dict[str, Any]) -> str:
    """Return the record as a page: what was measured, a table a direction, what was not measured."""
    where = record["environment"]
    lines = [
        "# Fused batch norm, by shape",
        "",
        f"{where['device_name']}, torch {where['torch']}, {record['date']}; {commands_told(record)}.",
        f"A large copy moves {record['copy_bytes_per_s'] / 1e9:.1f} GB/s here; the share is the floor's bytes over the "
        "time, as a part of that.",
        f"Times are medians of {counted(record['rounds'] * record['calls'], 'call')}"
        + (", replayed from CUDA graphs" if record["cuda_graphs"] else "")
        + "; 20% and 80% quantiles in brackets. Saved: bytes kept for backward beside inputs and output.",
    ]
    if record["triton"] == "interpreted":
        lines += ["", "**Triton ran in its interpreter here: its times say nothing about a GPU.**"]
    elif record["triton"] != "compiled":
        lines += ["", f"**The Triton kernels are unmeasured here: {record['triton']}.**"]
    if record["inductor"] != "compiled":
        lines += ["", f"Inductor is unmeasured here: {record['inductor']}."]
    if not record["cuda_graphs"] and record["llvm"] != "compiled":
        lines += ["", f"LLVM's norms are unmeasured here: {record['llvm']}."]
    for direction in dict.fromkeys(row["direction"] for row in record["rows"]):
        rows = [row for row in record["rows"] if row["direction"] == direction]
        names = record["settings"]["implementations"]
        lines += ["", f"## {direction.capitalize()}", ""]
        lines.append(f"| case | floor, MB | {' | '.join(f'{n}, us | share | saved, kB' for n in names)} |")
        lines.append("|---" * (2 + 3 * len(names)) + "|")
        for case in dict.fromkeys(row["case"] for row in rows):
            here = {row["implementation"]: row for row in rows if row["case"] == case}
            cells = [_cell(here.get(name)) for name in names]
            lines.append(f"| {case} | {here[names[0]]['floor_bytes'] / 1e6:.1f} | {' | '.join(cells)} |")
    if any(NOT_TAKEN in line for line in lines):
        lines += [
            "",
            f"{NOT_TAKEN.capitalize()}: LLVM's norms are for {WORTH_A_CALL:,} elements and more, which fill whole "
            f"lines of {LINE} channels; `--kernels llvm` leaves others to PyTorch's.",
        ]
    if record["not_measured"]:
        lines += ["", f"Not measured, for want of time: {', '.join(record['not_measured'])}."]
    return "\n".join(lines) + "\n"


@held()
def draw(record: dict[str, Any]) -> bytes:
    """Return the plot of a record as a PNG."""
    buffer = io.BytesIO()
    figure_of(record).savefig(buffer, format="png", dpi=110)
    return buffer.getvalue()


def figure_of(record: dict[str, Any]) -> Figure:
    """Return the plot: for each case and direction, each implementation's share of the copy speed."""
    from matplotlib.figure import Figure

    rows = record["rows"]
    directions = list(dict.fromkeys(row["direction"] for row in rows))
    cases = list(dict.fromkeys(row["case"] for row in rows))
    names = list(dict.fromkeys(row["implementation"] for row in rows))
    figure = Figure(figsize=(5 * max(len(directions), 1), 1.5 + 0.45 * len(cases)), layout="constrained")
    panels = figure.subplots(1, max(len(directions), 1), sharey=True, squeeze=False)[0]
    for panel, direction in zip(panels, directions, strict=False):
        for place, name in enumerate(names):
            shares = {
                r["case"]: r["share_of_copy"]
                for r in rows
                if r["direction"] == direction and r["implementation"] == name
            }
            height = 0.8 / len(names)
            colour = COLOURS.get(name)
            heights = [line + place * height for line, case in enumerate(cases) if case in shares]
            panel.barh(heights, list(shares.values()), height, label=name, color=colour)
        panel.axvline(1, color="black", linewidth=0.8)
        panel.set_title(direction)
        panel.set_xlabel("share of the copy speed, at the byte floor")
        panel.set_yticks([line + 0.4 - 0.4 / len(names) for line in range(len(cases))], cases)
    if rows:
        panels[0].invert_yaxis()
        figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=len(names))
    figure.suptitle(f"{record['environment']['device_name']}")
    return figure


def _cell(row: dict[str, Any] | None) -> str:
    if row is None:
        return f"{NOT_TAKEN} | | "
    times = [1e6 * row[key] for key in ("p50_s", "p20_s", "p80_s")]
    saved = row["saved_bytes"] / 1e3
    return f"{times[0]:.1f} ({times[1]:.1f}, {times[2]:.1f}) | {row['share_of_copy']:.2f} | {saved:.1f}"
