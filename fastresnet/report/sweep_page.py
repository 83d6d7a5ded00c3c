"""The page about a sweep: its cells beside what was printed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fastresnet.report.bars import sweep_charts
from fastresnet.report.facts import Tile
from fastresnet.report.records import ABOUT_DATA
from fastresnet.report.tables import DASH, Bar, Table, Value, count, percent, points
from fastresnet.report.writing import Written, render, write_page
from fastresnet.sweep_table import accuracy_of, caption, find_table, remark
from fastresnet.words import counted, dataset_shown

Rows = Sequence[Mapping[str, Any]]


def write_sweep_report(
    name: str, *, sweeps_dir: Path | str = "sweeps", out: Path | str | None = None
) -> Written:
    """Write ``report.html`` about a sweep and its figures as PNG.

    Args:
        name: the sweep's name, or its folder's path.
        sweeps_dir: where sweeps' folders lie.
        out: folder to write to; None is ``report`` in the sweep's.

    Raises:
        UserError: there is no such sweep, it has no table yet, or the folder cannot be written.
    """
    folder, content = find_table(name, Path(sweeps_dir))
    rows, on = content["rows"], _on(content)
    charts = sweep_charts(rows, content["columns"], on)
    figures = {chart.name: chart.png for chart in charts}
    html = render(
        "sweep.html.j2",
        figures=figures,
        title=f"{content['title'] or content['name']}, on {on}",
        content=content,
        caption=caption(content),
        tiles=_tiles(rows),
        charts=charts,
        table=_table(rows, content["columns"], on),
        unfinished=sum(row["state"] in ("running", "waiting") for row in rows),
        failed=[row for row in rows if row["state"] == "failed"],
        label=_label,
        about_data=ABOUT_DATA.get(content["conditions"]["dataset_name"], ""),
    )
    return write_page(Path(out) if out else folder / "report", html, figures, ())


def _on(content: Mapping[str, Any]) -> str:
    given = content["conditions"]
    return dataset_shown(given["dataset_name"], given["dataset_is_builtin"])


def _label(row: Mapping[str, Any]) -> str:
    return " ".join(f"{key}={value}" for key, value in row["cell"].items())


def _tiles(rows: Rows) -> list[Tile]:
    done = [row for row in rows if row["state"] == "done"]
    tiles = [Tile("Cells", f"{len(done)} of {len(rows)}", "trained to the end")]
    if done:
        top = max(done, key=lambda row: row["accuracy"])
        tiles.append(
            Tile(
                "Highest test accuracy",
                percent(top["accuracy"]),
                f"{_label(top)}, of {counted(len(done), 'single run')}",
            )
        )
    both = [row["accuracy"] - row["printed_accuracy"] for row in done if row["printed_accuracy"] is not None]
    if both:
        tiles.append(
            Tile(
                "Mean difference to printed",
                f"{points(sum(both) / len(both))} points",
                f"over {counted(len(both), 'cell')}, from {points(min(both))} to {points(max(both))}",
            )
        )
    return tiles


def _table(rows: Rows, columns: Sequence[str], on: str) -> Table:
    lines = []
    for row in rows:
        ours, printed = accuracy_of(row), row["printed_accuracy"]
        accuracy: Value = DASH if ours is None else Bar(percent(ours), ours)
        lines.append(
            (
                *(str(row["cell"].get(column, DASH)) for column in columns),
                accuracy,
                percent(printed),
                DASH if ours is None or printed is None else points(ours - printed),
                count(row["params"]),
                DASH if row["printed_params"] is None else count(row["printed_params"]),
                row["arch"],
                remark(row),
            )
        )
    numbers = ("accuracy", "printed", "difference in points", "parameters", "printed parameters")
    headings = (*columns, *numbers, "network", "remark")
    optional = {"printed", "difference in points", "printed parameters", "remark"}
    kept = [
        place
        for place, heading in enumerate(headings)
        if place < len(columns)
        or heading not in optional
        or any(line[place] not in ("", DASH) for line in lines)
    ]
    printed = any(row["printed_accuracy"] is not None for row in rows)
    return Table(
        caption=f"Cells on {on}{', beside what was printed' * printed}",
        columns=tuple(headings[place] for place in kept),
        rows=tuple(tuple(line[place] for place in kept) for line in lines),
        numeric=frozenset(i for i, place in enumerate(kept) if 0 <= place - len(columns) < len(numbers)),
        prose=frozenset(i for i, place in enumerate(kept) if headings[place] == "remark"),
    )
