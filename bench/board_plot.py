"""A time-to-accuracy record as a picture: accuracy against seconds, every run drawn."""

from __future__ import annotations

import hashlib
import io
import json
from typing import TYPE_CHECKING, Any, Literal

from fastresnet.bench.board import Row, labels_of, peer_tta, runs_of, standings, tries
from fastresnet.report.palette import LIGHT

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Of rows that were alone, and of those that were at once; there are more rows than colours.
MARKERS = {"-": "o^v<>", ":": "sDXPp"}


def draw(record: dict[str, Any]) -> bytes:
    """Return :func:`figure_of` the record as a PNG, whose comment is :func:`drawn_runs`."""
    buffer = io.BytesIO()
    figure_of(record).savefig(buffer, format="png", dpi=110, metadata={"Comment": drawn_runs(record)})
    return buffer.getvalue()


def drawn_runs(record: dict[str, Any]) -> str:
    """Return which runs a picture is of, in words: what ties it to its record."""
    return f"runs {hashlib.sha256(json.dumps(record['runs'], sort_keys=True).encode()).hexdigest()[:16]}"


def figure_of(record: dict[str, Any]) -> Figure:
    """Return a figure: accuracy against seconds on the clock, every run drawn, a colour and a marker a row.

    Lines are evaluations between epochs, which are without TTA, and markers where runs end, with the row's.
    Runs that were at once are dotted and end in an angular marker, as their seconds are no latency. A search's tries
    end in a hollow one, of the colour of their own length's row, else of the row found, grey while there is none.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 5.5), layout="constrained")
    axes = figure.subplots()
    colours = [value for key, value in LIGHT.items() if key.startswith("series")]
    target = record["settings"]["target"]
    rows = [line.row for line in standings(record)]
    of_row = {row: colours[place % len(colours)] for place, row in enumerate(rows)}
    last_found = {each["name"]: of_row.get(Row(**each)) for each in record.get("found", ())}
    for row, runs in tries(record).items():
        colour = of_row.get(row) or last_found.get(row.name) or LIGHT["muted"]
        _draw_runs(axes, runs, colour, "-", "o", label=None, fill="none")
    for place, (row, label) in enumerate(labels_of(rows).items()):
        dashes = ":" if row.at_once > 1 else "-"
        marker = MARKERS[dashes][place // len(colours) % len(MARKERS[dashes])]
        label += " (throughput)" if row.at_once > 1 else ""
        label += f", {tta} TTA" if (tta := peer_tta(record, row)) != "none" else ""
        _draw_runs(axes, runs_of(record, row), of_row[row], dashes, marker, label)
    if tries(record):
        axes.plot([], [], "o", color=LIGHT["muted"], markersize=4, fillstyle="none", label="tried by search")
    axes.axhline(target, color=LIGHT["ink"], linewidth=0.8, linestyle="--", label=f"target {target:g}")
    accuracies = [target, *(run["accuracy"] for run in record["runs"])]
    # the last approach to the target is what tells rows apart
    axes.set_ylim(max(0.0, min(accuracies) - 0.1), min(1.0, max(accuracies) + 0.02))
    axes.set_xlabel("seconds on the clock")
    axes.set_ylabel(
        f"test accuracy on {record['settings']['dataset']}\n(lines without TTA, marks as the runs end)"
    )
    axes.set_title(f"every run; {record['environment']['device_name']}")
    axes.grid(color=LIGHT["grid"])
    if record["runs"]:
        axes.legend(fontsize="small", loc="lower right")
    else:
        axes.text(0.5, 0.5, "no runs yet", transform=axes.transAxes, ha="center", color=LIGHT["muted"])
    return figure


def _draw_runs(
    axes: Axes,
    runs: list[dict[str, Any]],
    colour: str,
    dashes: str,
    marker: str,
    label: str | None,
    *,
    fill: Literal["full", "none"] = "full",
) -> None:
    """Draw each run's curve and where it ended; the first carries the ``label`` of all."""
    for run in runs:
        curve = run.get("curve", [])
        seconds, accuracies = [point[0] for point in curve], [point[1] for point in curve]
        axes.plot(seconds, accuracies, color=colour, alpha=0.5, linewidth=0.9, linestyle=dashes)
        end = run["seconds"], run["accuracy"]
        axes.plot(*end, marker, color=colour, markersize=4, fillstyle=fill, label=label)
        label = None
