"""What a network gets wrong: confusion matrix, accuracy by class, confused pairs, and the worst images."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from markupsafe import Markup
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from numpy.typing import NDArray

from fastresnet.evaluation import Outcomes
from fastresnet.report.chart import Chart, colour, draw
from fastresnet.report.images import data_uri, grid_png
from fastresnet.report.palette import LEVELS, level_of, shade
from fastresnet.report.tables import DASH, Bar, Table, count, percent

MOST_CLASSES_IN_TABLE = 20  # beyond, the matrix is a figure without counts
NUM_PAIRS = 10
NUM_WORST = 24


@dataclass(frozen=True, kw_only=True)
class MatrixCell:
    """A count of the confusion matrix, and the CSS class that shades it."""

    count: int
    shade: str


@dataclass(frozen=True, kw_only=True)
class WorstImage:
    """A wrongly classified image.

    Attributes:
        uri: the image.
        index: its place in the data set.
        label, prediction: class names.
        probability: of the prediction.
        label_probability: of the right class.
    """

    uri: Markup
    index: int
    label: str
    prediction: str
    probability: float
    label_probability: float

    @property
    def alt(self) -> str:
        """What the image is and was taken for."""
        return f"Image {self.index}: {self.label}, taken for {self.prediction} with {self.probability:.1%}"


@dataclass(frozen=True, kw_only=True)
class Predictions:
    """The predictions section.

    Attributes:
        num_right, num_samples, accuracy, loss: of all samples.
        class_names: in the order of rows and columns.
        matrix: rows are the right classes; None where there are too many classes for a table.
        chart: the matrix as a figure.
        by_class, pairs: tables.
        worst: the images with the greatest loss.
    """

    num_right: int
    num_samples: int
    accuracy: float
    loss: float
    class_names: tuple[str, ...]
    matrix: tuple[tuple[MatrixCell, ...], ...] | None
    chart: Chart
    by_class: Table
    pairs: Table
    worst: tuple[WorstImage, ...]


def confusion_counts(
    labels: NDArray[np.int64], predictions: NDArray[np.int64], num: int
) -> NDArray[np.int64]:
    """Return int64 [num, num]: how often class ``row`` was taken for class ``column``."""
    return np.bincount(labels * num + predictions, minlength=num * num).reshape(num, num)


def summarise(outcomes: Outcomes, on: str, prefix: str = "") -> Predictions:
    """Return the predictions section of an evaluation; ``on`` names its data set in titles."""
    names = outcomes.dataset.class_names
    counts = confusion_counts(outcomes.labels, outcomes.predictions, len(names))
    found = outcomes.evaluation
    return Predictions(
        num_right=int(np.trace(counts)),
        num_samples=found.num_samples,
        accuracy=found.accuracy,
        loss=found.loss,
        class_names=names,
        matrix=_matrix(counts) if len(names) <= MOST_CLASSES_IN_TABLE else None,
        chart=matrix_chart(counts, names, on, f"{prefix}confusion"),
        by_class=_by_class(counts, names, on),
        pairs=_pairs(counts, names, on),
        worst=_worst(outcomes),
    )


def _shades(counts: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return how deep each count is shaded: the diagonal by its share of the row, the others by the greatest of theirs.

    Of ten classes at 90% the mistakes are near 1% each, so that one scale for all would not tell them apart.
    """
    shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    off = shares * ~np.eye(len(counts), dtype=bool)
    deepest = off.max()
    return np.where(np.eye(len(counts), dtype=bool), shares, off / deepest if deepest else off)


def _kind(row: int, column: int) -> str:
    return "hit" if row == column else "miss"


def _matrix(counts: NDArray[np.int64]) -> tuple[tuple[MatrixCell, ...], ...]:
    shades = _shades(counts)
    return tuple(
        tuple(
            MatrixCell(count=int(value), shade=f"{_kind(i, j)}{level_of(float(shades[i, j]))}")
            for j, value in enumerate(row)
        )
        for i, row in enumerate(counts)
    )


def matrix_chart(counts: NDArray[np.int64], names: tuple[str, ...], on: str, name: str) -> Chart:
    """Return the matrix as a figure, with counts where there are few classes: rows are the right ones."""
    shades, num = _shades(counts), len(names)
    with_counts = num <= MOST_CLASSES_IN_TABLE
    side = 2.2 + 0.46 * num if with_counts else 7.5

    def paint(figure: Figure) -> None:
        axes = figure.add_subplot()
        axes.set(xlim=(0, num), ylim=(num, 0), aspect="equal")
        axes.grid(visible=False)
        for i in range(num):
            for j in range(num):
                if not counts[i, j]:
                    continue
                level = level_of(float(shades[i, j]))
                if not with_counts:  # stands in the page, whose own colour shows through
                    hue = colour("series0" if i == j else "series1")
                    axes.add_patch(Rectangle((j, i), 1, 1, facecolor=hue, alpha=level / LEVELS))
                    continue
                background, text = shade(_kind(i, j), level)
                axes.add_patch(Rectangle((j, i), 1, 1, facecolor=background))
                middle = (j + 0.5, i + 0.5)
                axes.text(*middle, str(counts[i, j]), ha="center", va="center", fontsize=8, color=text)
        step = 1 if with_counts else max(1, num // 50)
        places = np.arange(0, num, step)
        axes.set_xticks(places + 0.5, [names[i] for i in places], rotation=90, fontsize=8)
        axes.set_yticks(places + 0.5, [names[i] for i in places], fontsize=8)
        axes.tick_params(length=0)
        axes.set(xlabel="predicted", ylabel="right class")

    right = int(np.trace(counts))
    return draw(
        name,
        f"Confusion matrix on {on}",
        f"Confusion matrix of {num} classes: {right:,} of {int(counts.sum()):,} images are on its diagonal.",
        paint,
        size=(side, side),
        note="The diagonal is shaded by its share of the row, mistakes by the most frequent mistake.",
    )


def _by_class(counts: NDArray[np.int64], names: tuple[str, ...], on: str) -> Table:
    rows = []
    for i, name in enumerate(names):
        of_class, predicted, right = int(counts[i].sum()), int(counts[:, i].sum()), int(counts[i, i])
        recall = right / of_class if of_class else None
        accuracy = DASH if recall is None else Bar(percent(recall), recall)
        precision = percent(right / predicted) if predicted else DASH
        rows.append((name, count(of_class), count(right), accuracy, precision))
    return Table(
        caption=f"Accuracy by class on {on}",
        columns=("class", "images", "right", "accuracy", "precision"),
        rows=tuple(rows),
        numeric=frozenset({1, 2, 3, 4}),
    )


def _pairs(counts: NDArray[np.int64], names: tuple[str, ...], on: str) -> Table:
    off = counts * ~np.eye(len(counts), dtype=bool)
    order = np.argsort(-off, axis=None, kind="stable")[:NUM_PAIRS]
    found = [divmod(int(place), len(names)) for place in order]
    greatest = max((int(off[i, j]) for i, j in found), default=0)
    return Table(
        caption=f"Most confused pairs on {on}",
        columns=("right class", "taken for", "images", "share of class"),
        rows=tuple(
            (
                names[i],
                names[j],
                Bar(count(int(off[i, j])), off[i, j] / greatest),
                percent(off[i, j] / counts[i].sum()),
            )
            for i, j in found
            if off[i, j]
        ),
        numeric=frozenset({2, 3}),
    )


def _worst(outcomes: Outcomes) -> tuple[WorstImage, ...]:
    names = outcomes.dataset.class_names
    wrong = np.flatnonzero(outcomes.predictions != outcomes.labels)
    order = wrong[np.argsort(-outcomes.losses[wrong], kind="stable")][:NUM_WORST]
    return tuple(
        WorstImage(
            uri=data_uri(outcomes.split.images[outcomes.indices[i]]),
            index=int(outcomes.indices[i]),
            label=names[outcomes.labels[i]],
            prediction=names[outcomes.predictions[i]],
            probability=float(outcomes.probabilities[i, outcomes.predictions[i]]),
            label_probability=float(outcomes.probabilities[i, outcomes.labels[i]]),
        )
        for i in order
    )


def worst_png(outcomes: Outcomes, worst: tuple[WorstImage, ...], title: str) -> bytes:
    """Return the worst images as one PNG."""
    pixels = [outcomes.split.images[image.index] for image in worst]
    texts = [f"{image.label}\n\u2192 {image.prediction}" for image in worst]
    return grid_png(title, pixels, texts, columns=8)
