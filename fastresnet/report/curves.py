"""Curves over epochs: loss, accuracy and learning rate of a run and of those it came from, or of several runs."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from fastresnet.report.chart import DASHES, SERIES, Chart, colour, draw, percent_axis
from fastresnet.report.records import RunRecord, Segment
from fastresnet.report.tables import DASH, Table, number, percent
from fastresnet.words import counted

SIZE = (5.4, 3.2)  # inches
MARKED_UP_TO = 30  # epochs, beyond which points run together
SPLITS = ("train", "val", "test")
LABEL_GAP = 0.075  # of the axis' height, between labels at the lines' ends


@dataclass(frozen=True, kw_only=True)
class Line:
    """A curve: ``label``, and its points."""

    label: str
    xs: tuple[float, ...]
    ys: tuple[float, ...]


def run_curves(record: RunRecord, prefix: str = "") -> list[Chart]:
    """Return the loss, accuracy and learning-rate curves of a run, joined to those of the runs it came from."""
    joined = [(segment.start + row["epoch"], row) for segment in record.segments for row in segment.rows]
    if not joined:
        return []
    splits = [split for split in SPLITS if any(f"{split}_loss" in row for _, row in joined)]
    on, last = record.on, record.last_row
    marks = _marks(record)
    charts = []
    for what, write in (("loss", number), ("accuracy", percent)):
        lines = [line for split in splits if (line := _line(split, joined, f"{split}_{what}")).xs]
        ends = ", ".join(f"{line.label} {write(line.ys[-1])}" for line in lines)
        extra = _loss_note(record) if what == "loss" else _best_note(record)
        charts.append(
            _curve_chart(
                f"{prefix}{what}",
                f"{what.capitalize()} on {on}",
                f"{what.capitalize()} by epoch, {counted(joined[-1][0], 'epoch')}; at the end {ends}.",
                lines,
                marks=marks,
                percent_values=what == "accuracy",
                ring=_best_point(record) if what == "accuracy" else None,
                note=extra,
                numbers=_numbers(f"{what.capitalize()} by epoch", lines, write),
            )
        )
    rates = _line("lr", joined, "lr")
    charts.append(
        _curve_chart(
            f"{prefix}lr",
            "Learning rate",
            f"Learning rate by epoch: from {rates.ys[0]:g} to {rates.ys[-1]:g}, highest {max(rates.ys):g}.",
            [rates],
            marks=marks,
            from_zero=True,
            note=f"At each epoch's last step, as the optimizer ({record.recipe.optimizer.name}) was given it.",
            numbers=_numbers("Learning rate by epoch", [rates], lambda value: f"{value:.3g}"),
        )
    )
    assert last or len(record.segments) > 1
    return charts


def comparison_curves(records: Sequence[RunRecord]) -> list[Chart]:
    """Return test accuracy, training loss and learning rate of several runs, each over its own epochs."""
    shared = {record.dataset["digest"] for record in records}
    on = f" on {records[0].on}" if len(shared) == 1 else ", each on its own data set"
    charts = []
    for name, title, key, write in (
        ("compare-accuracy", f"Test accuracy{on}", "test_accuracy", percent),
        ("compare-loss", f"Training loss{on}", "train_loss", number),
        ("compare-lr", "Learning rate", "lr", lambda value: f"{value:.3g}"),
    ):
        lines = [
            line
            for record in records
            if (line := _line(record.id, [(row["epoch"], row) for row in record.rows], key)).xs
        ]
        if not lines:
            continue
        ends = ", ".join(f"{line.label} {write(line.ys[-1])}" for line in lines)
        charts.append(
            _curve_chart(
                name,
                title,
                f"{title} by epoch of {counted(len(lines), 'run')}; at the end {ends}.",
                lines,
                percent_values=key == "test_accuracy",
                from_zero=key == "lr",
                numbers=_numbers(f"{title} by epoch", lines, write),
            )
        )
    return charts


def _line(label: str, joined: Iterable[tuple[int, dict[str, Any]]], key: str) -> Line:
    """Return what the rows hold of ``key``; a loss that was not finite is None there, and has no point."""
    points = [(epoch, row[key]) for epoch, row in joined if row.get(key) is not None]
    return Line(label=label, xs=tuple(x for x, _ in points), ys=tuple(y for _, y in points))


def _curve_chart(
    name: str,
    title: str,
    alt: str,
    lines: list[Line],
    *,
    marks: Sequence[tuple[float, str]] = (),
    percent_values: bool = False,
    from_zero: bool = False,
    ring: tuple[float, float] | None = None,
    note: str = "",
    numbers: Table,
) -> Chart:
    def paint(figure: Figure) -> None:
        axes = figure.add_subplot()
        for i, line in enumerate(lines):
            axes.plot(
                line.xs,
                line.ys,
                color=colour(SERIES[_series(line.label, i)]),
                linestyle=DASHES[i % len(DASHES)],
                marker="os^D"[i % 4] if len(line.xs) <= MARKED_UP_TO else None,
            )
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=8, min_n_ticks=1))
        axes.set_xlabel("epoch")
        axes.grid(axis="x", visible=False)
        axes.ticklabel_format(axis="y", useOffset=False)
        if from_zero:
            axes.set_ylim(bottom=0)
        if percent_values:
            percent_axis(axes)
        for x, text in marks:
            axes.axvline(x, color=colour("muted"), linewidth=0.9, linestyle=(0, (2, 2)))
            axes.annotate(
                text,
                (x, 1),
                xycoords=("data", "axes fraction"),
                xytext=(0, 3),  # above the axes, where no line runs through it
                textcoords="offset points",
                va="bottom",
                fontsize=8.5,
                color=colour("muted"),
            )
        if ring is not None:
            axes.plot(*ring, "o", markersize=11, markerfacecolor="none", markeredgecolor=colour("ink"))
        _label_ends(axes, lines)

    return draw(name, title, alt, paint, size=SIZE, note=note, numbers=numbers)


def _series(label: str, place: int) -> int:
    """A split has the same colour whatever others are there."""
    return SPLITS.index(label) if label in SPLITS else place % len(SERIES)


def _label_ends(axes: Axes, lines: list[Line]) -> None:
    """Write each line's label at its end, apart from the others."""
    if len(lines) == 1:
        return
    low, high = axes.get_ylim()
    wanted = sorted(((line.ys[-1] - low) / (high - low), i) for i, line in enumerate(lines))
    places = [place for place, _ in wanted]
    for i in range(1, len(places)):
        places[i] = max(places[i], places[i - 1] + LABEL_GAP)
    places[-1] = min(places[-1], 1.0)
    for i in reversed(range(len(places) - 1)):
        places[i] = min(places[i], places[i + 1] - LABEL_GAP)
    for place, (_, i) in zip(places, wanted, strict=True):
        axes.annotate(
            lines[i].label,
            (1, place),
            xycoords="axes fraction",
            xytext=(6, 0),
            textcoords="offset points",
            va="center",
            color=colour(SERIES[_series(lines[i].label, i)]),
            fontweight="bold",
            annotation_clip=False,
        )


def _marks(record: RunRecord) -> list[tuple[float, str]]:
    """Where a run was continued as another, and where it was resumed."""
    marks = [
        (segment.start + 0.5, f"from {_id(before)}:{before.weights}")
        for before, segment in pairwise(record.segments)
    ]
    for segment in record.segments:
        parts = [row["clock"]["segment"] for row in segment.rows]
        marks += [
            (segment.start + i + 0.5, "resumed")
            for i, (before, after) in enumerate(pairwise(parts), 1)
            if after != before
        ]
    return marks


def _id(segment: Segment) -> str:
    return segment.run.rsplit("-", 1)[-1]


def joined_note(record: RunRecord) -> str:
    """Return which epochs of a run's curves are of the runs it came from; empty where none are."""
    *before, own = record.segments
    if not before:
        return ""
    runs = " and ".join(f"{segment.run} ({segment.weights} weights)" for segment in before)
    return f"This run began from the weights of another. The first {own.start} of the epochs shown are of {runs}."


def _best_point(record: RunRecord) -> tuple[float, float] | None:
    if not record.best:
        return None
    return record.segments[-1].start + record.best["epoch"], record.best["accuracy"]


def _best_note(record: RunRecord) -> str:
    if not record.best:
        return ""
    split = record.best["chosen_on"]
    warning = ", the test set itself, so it flatters" if split == "test" else ""
    of_this = " of this run" if len(record.segments) > 1 else ""  # one it came from may have had a better one
    return (
        f"The ring marks the best epoch{of_this} by {split} accuracy{warning}. Train is the mean over the epoch's "
        "steps, on augmented images; the others are of the epoch's end."
    )


def _loss_note(record: RunRecord) -> str:
    smoothing = record.recipe.loss.label_smoothing
    reasons = [f"label smoothing {smoothing:g}"] if smoothing else []
    reasons += [record.recipe.mix.name] if record.recipe.mix else []
    notes = []
    if reasons:
        notes.append(
            f"The training loss has {' and '.join(reasons)} in it and does not compare with the others."
        )
    if any(row.get(f"{split}_loss", 0) is None for split in SPLITS for row in record.rows):
        notes.append("Losses that were not finite are left out.")
    return " ".join(notes)


def _numbers(caption: str, lines: list[Line], write: Any) -> Table:
    by_epoch = [dict(zip(line.xs, line.ys, strict=True)) for line in lines]
    epochs = sorted({x for line in lines for x in line.xs})
    return Table(
        caption=caption,
        columns=("epoch", *(line.label for line in lines)),
        rows=tuple(
            (f"{x:g}", *(write(values[x]) if x in values else DASH for values in by_epoch)) for x in epochs
        ),
        numeric=frozenset(range(len(lines) + 1)),
    )
