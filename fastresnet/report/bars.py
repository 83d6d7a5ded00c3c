"""Bar charts of a sweep: accuracy by what its cells differ in, with what was printed as a mark on each bar."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patheffects import withStroke
from matplotlib.text import Text

from fastresnet.report.chart import SERIES, Chart, colour, draw, percent_axis
from fastresnet.report.tables import percent
from fastresnet.sweep_table import accuracy_of

Rows = Sequence[Mapping[str, Any]]
STEP = "step"  # the key that tells a sequence's studies apart
FOOT = 0.015  # of the axis, between a bar's foot or end and its label
WIDTH = 0.8  # of a group of bars, of the room it has


@dataclass(frozen=True, kw_only=True)
class Bars:
    """A grouped bar chart.

    Attributes:
        axis: what the groups differ in; empty where a group is a cell.
        groups: a label each.
        legend: what the bars of a group differ in; empty where a group has one bar.
        series: a label each.
        ours, printed: accuracies by (group, series); what is not there is left out.
    """

    axis: str
    groups: tuple[str, ...]
    legend: str
    series: tuple[str, ...]
    ours: dict[tuple[int, int], float]
    printed: dict[tuple[int, int], float]


def sweep_charts(rows: Rows, columns: Sequence[str], on: str) -> list[Chart]:
    """Return a chart for each of a sweep's studies that has an accuracy, ours or printed, for two cells.

    A cell that is not done has no bar.
    """
    rows = [{**row, "accuracy": accuracy_of(row)} for row in rows]
    charts = []
    steps = list(dict.fromkeys(row["cell"].get(STEP, "") for row in rows))
    for step in steps:
        part = [
            row
            for row in rows
            if row["cell"].get(STEP, "") == step
            and (row["accuracy"], row["printed_accuracy"]) != (None, None)
        ]
        if len(part) < 2:
            continue
        bars = arrange(part, [column for column in columns if column != STEP])
        name = f"accuracy-{step}" if step else "accuracy"
        charts.append(_chart(name, f"{f'Step {step}: t' if step else 'T'}est accuracy on {on}", bars))
    return charts


def arrange(rows: Rows, columns: Sequence[str]) -> Bars:
    """Return the rows as bars: grouped by the first key in which they differ, side by side by the second.

    Where they differ in more than two, or in one that is not unique, each cell is a group of its own.
    """
    values = {key: _distinct(row["cell"].get(key) for row in rows) for key in columns}
    varied = [key for key in columns if len(values[key]) > 1]
    if len(varied) == 2 and len(values[varied[1]]) > len(SERIES):
        varied.reverse()
    by_key = 1 <= len(varied) <= 2 and (len(varied) == 1 or len(values[varied[1]]) <= len(SERIES))
    if by_key:
        axis, legend = varied[0], varied[1] if len(varied) == 2 else ""
        places = [
            (
                values[axis].index(row["cell"].get(axis)),
                values[legend].index(row["cell"].get(legend)) if legend else 0,
            )
            for row in rows
        ]
        by_key = len(set(places)) == len(places)
    if not by_key:
        axis, legend = "", ""
        places = [(i, 0) for i in range(len(rows))]
    labels = [" ".join(f"{key}={row['cell'].get(key)}" for key in varied) for row in rows]
    return Bars(
        axis=axis,
        groups=_short(values[axis]) if axis else tuple(labels),
        legend=legend,
        series=_short(values[legend]) if legend else ("",),
        ours=_by_place(places, rows, "accuracy"),
        printed=_by_place(places, rows, "printed_accuracy"),
    )


def _by_place(places: list[tuple[int, int]], rows: Rows, key: str) -> dict[tuple[int, int], float]:
    return {place: row[key] for place, row in zip(places, rows, strict=True) if row[key] is not None}


def _distinct(values: Any) -> list[Any]:
    return list(dict.fromkeys(values))


def _short(values: Sequence[Any]) -> tuple[str, ...]:
    """Return the values as texts, without the words, joined by hyphens, that all begin with."""
    texts = [str(value) for value in values]
    words = [text.split("-") for text in texts]
    shared = len(list(itertools.takewhile(lambda same: len(set(same)) == 1, zip(*words, strict=False))))
    if not all(isinstance(value, str) for value in values) or shared >= min(map(len, words)):
        return tuple(texts)
    return tuple("-".join(parts[shared:]) for parts in words)


def _chart(name: str, title: str, bars: Bars) -> Chart:
    num = len(bars.groups) * len(bars.series)
    lying = not bars.axis or max(map(len, bars.groups)) > 14
    length = max(4.6, min(11.0, 1.2 + 0.26 * num + 0.2 * len(bars.groups)))
    said = ", ".join(
        f"{' '.join(filter(None, (bars.groups[i], bars.series[j])))} {percent(value)}"
        for (i, j), value in bars.ours.items()
    )

    def paint(figure: Figure) -> None:
        axes = figure.add_subplot()
        _paint_bars(axes, bars, lying)
        handles = (
            [Line2D([], [], color=colour("ink"), linewidth=2.2, label="printed")] if bars.printed else []
        )
        if bars.legend:
            handles = [
                Line2D([], [], color=colour(SERIES[j]), linewidth=7, label=f"{bars.legend} {text}")
                for j, text in enumerate(bars.series)
            ] + handles
        elif handles:
            handles = [Line2D([], [], color=colour(SERIES[0]), linewidth=7, label="ours"), *handles]
        if handles:
            # Of the axes, above them: a figure's own legend would lie under its title.
            axes.legend(
                handles=handles,
                loc="lower left",
                bbox_to_anchor=(0, 1),
                borderaxespad=0.2,
                ncols=3,
                frameon=False,
                fontsize=8.5,
            )

    return draw(
        name,
        title,
        f"{title} by {' and '.join(filter(None, (bars.axis, bars.legend))) or 'cell'}: {said or 'none of ours yet'}.",
        paint,
        size=(6.5, length) if lying else (max(5.4, length), 3.6),
        note="Bars are ours, from zero; the line across is what was printed." if bars.printed else "",
    )


def _paint_bars(axes: Axes, bars: Bars, lying: bool) -> None:
    width = WIDTH / len(bars.series)

    def middle(place: tuple[int, int]) -> float:
        return place[0] + (place[1] - (len(bars.series) - 1) / 2) * width

    labels: dict[tuple[int, int], Text] = {}
    draw_bars, draw_marks = (axes.barh, axes.vlines) if lying else (axes.bar, axes.hlines)
    for place, value in bars.ours.items():
        at = middle(place)
        draw_bars(at, value, width * 0.92, color=colour(SERIES[place[1]]))
        labels[place] = axes.text(
            *((FOOT, at) if lying else (at, FOOT)),  # at the foot, clear of what was printed
            f"{100 * value:.1f}",
            color=colour("page"),
            fontsize=8.5 if lying or width > 0.3 else 7.5,
            rotation=0 if lying or width > 0.5 else 90,
            ha="left" if lying else "center",
            va="center" if lying else "bottom",
        )
    halo = [withStroke(linewidth=3.8, foreground=colour("page"))]
    for place, value in bars.printed.items():
        at = middle(place)
        draw_marks(
            value, at - width * 0.5, at + width * 0.5, color=colour("ink"), linewidth=2, path_effects=halo
        )
    ticks = range(len(bars.groups))
    if lying:
        axes.set_yticks(ticks, bars.groups, fontsize=8.5)
        axes.set_ylim(len(bars.groups) - 0.4, -0.6)
        axes.set_ylabel(bars.axis)
        axes.set_xlim(0, 1)
        axes.grid(axis="y", visible=False)
    else:
        axes.set_xticks(ticks, bars.groups, fontsize=9)
        axes.set_xlabel(bars.axis)
        axes.set_ylim(0, 1)
        axes.grid(axis="x", visible=False)
    axes.tick_params(length=0)
    percent_axis(axes, "x" if lying else "y")
    _lift_labels(axes, bars, labels, lying)


def _lift_labels(axes: Axes, bars: Bars, labels: Mapping[tuple[int, int], Text], lying: bool) -> None:
    """Write the label of a bar that is shorter than it beyond the bar, and beyond what was printed."""
    along = 0 if lying else 1
    assert isinstance(axes.figure, Figure)
    axes.figure.draw_without_rendering()  # only now is it known how long a label is
    for place, label in labels.items():
        end = axes.transData.inverted().transform(label.get_window_extent().max)[along]
        if end + FOOT / 2 <= bars.ours[place]:
            continue
        beyond = max(bars.ours[place], bars.printed.get(place, 0.0)) + FOOT
        (label.set_x if lying else label.set_y)(beyond)
        label.set_color(colour("ink"))
