"""The page about a run or several: what it holds, put together and written with its figures."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fastresnet.engine.machine import resolve_device
from fastresnet.errors import UserError
from fastresnet.evaluation import evaluate_samples
from fastresnet.inference import split_reference
from fastresnet.loaders.dataset import open_dataset
from fastresnet.loaders.sources import Progress
from fastresnet.report import facts
from fastresnet.report.augmentation import AugmentationGrid, augmentation_grid
from fastresnet.report.chart import Chart
from fastresnet.report.confusion import Predictions, summarise, worst_png
from fastresnet.report.curves import comparison_curves, joined_note, run_curves
from fastresnet.report.diagram import network_diagram
from fastresnet.report.printed import setting_note
from fastresnet.report.records import RunRecord, read_run
from fastresnet.report.writing import Written, render, write_page
from fastresnet.words import counted

MOST_RUNS = 10  # as many as there are colours


@dataclass(kw_only=True)
class RunPart:
    """One run's part of a page.

    Attributes:
        record: the run.
        key: before its HTML ids; empty where the page is about one run.
        weights: which were evaluated.
        curves, diagram: figures.
        setting: how the run differs from what its recipe's source printed; may be empty.
        joined: which epochs of the curves are of the runs it came from; may be empty.
        predictions, augmentation: None where the data set could not be read.
        pngs: of the tables that are figures too, by file name without suffix.
        notices: what is missing, and why; in words that hold of several runs too.
    """

    record: RunRecord
    key: str
    weights: str
    curves: list[Chart]
    setting: str
    joined: str
    diagram: Chart
    predictions: Predictions | None = None
    augmentation: AugmentationGrid | None = None
    pngs: dict[str, bytes] = field(default_factory=dict)
    notices: list[str] = field(default_factory=list)

    @property
    def callouts(self) -> list[str]:
        """What a reader must know before any figure."""
        record, found = self.record, []
        if record.dataset["is_builtin"]:
            name = record.dataset["name"]
            found += [
                f"every figure is on {name}, the built-in set of drawn images: none speaks of photographs"
            ]
        if not record.finished:
            found += [f"not complete: {len(record.rows)} of {counted(record.recipe.epochs, 'epoch')} done"]
        return found + self.notices

    @property
    def tables(self) -> Any:
        """The functions of ``facts``, for the template to call on the record."""
        return facts


def write_report(
    references: Sequence[str],
    *,
    runs_dir: Path | str = "runs",
    out: Path | str | None = None,
    data: str | None = None,
    device: str = "auto",
    progress: Progress | None = None,
) -> Written:
    """Write ``report.html`` about one run, or a comparison of several, and the figures as PNG beside it.

    Args:
        references: runs by path, name, id or ``last``, with ``:best`` to test the best weights.
        runs_dir: where to look for them.
        out: folder to write to; None is ``report`` in the run's folder, or in ``runs_dir`` for several.
        data: where the runs' data set lies now.
        device: what to evaluate on.

    Raises:
        UserError: no such run, a damaged one, one named twice, no such device, ``data`` that is given and is of none
            of the runs, or a folder that cannot be written. Nothing is written then.
    """
    runs_dir = Path(runs_dir)
    if len(references) > MOST_RUNS:
        raise UserError(f"{len(references)} runs were given; a page compares at most {MOST_RUNS}")
    given = [split_reference(reference) for reference in references]
    records = [read_run(run, runs_dir) for run, _ in given]
    names = [record.id for record in records]
    if len(set(names)) < len(names):
        raise UserError(f"a run is named twice: {', '.join(names)}; give each once")
    single = len(records) == 1
    resolve_device(device)
    parts, missing = [], []
    for record, (_, weights) in zip(records, given, strict=True):
        part = _run_part(record, "" if single else f"{record.key}-", weights)
        error = _add_samples(part, runs_dir, data, device, progress)
        missing += [error] if error is not None else []
        parts.append(part)
    if data is not None and len(missing) == len(parts):  # without --data, it may only have moved
        raise missing[0]
    comparison = [] if single else comparison_curves(records)
    title = _title(records[0]) if single else f"Comparison of {len(records)} runs"
    figures = {chart.name: chart.png for chart in comparison}
    for part in parts:
        charts = [*part.curves, part.diagram]
        figures |= {chart.name: chart.png for chart in charts} | part.pngs
    html = render(
        "run.html.j2",
        title=title,
        figures=figures,
        parts=parts,
        single=single,
        records=records,
        comparison=comparison,
        callouts=_with_runs((part.record.id, text) for part in parts for text in part.callouts),
    )
    folder = (
        Path(out) if out else records[0].path / "report" if single else runs_dir / "reports" / "-".join(names)
    )
    lacking = _with_runs((part.record.id, notice) for part in parts for notice in part.notices)
    notices = [f"run{'s' * (',' in ids)} {ids}: {notice}" for notice, ids in lacking]
    return write_page(folder, html, figures, notices)


def _with_runs(said: Iterable[tuple[str, str]]) -> list[tuple[str, str]]:
    """Return each text once, and the ids of the runs of which it was said, with commas between them."""
    runs: dict[str, list[str]] = {}
    for run, text in said:
        runs.setdefault(text, []).append(run)
    return [(text, ", ".join(ids)) for text, ids in runs.items()]


def _title(record: RunRecord) -> str:
    if record.test is None:
        return f"{record.recipe.arch} with {record.recipe.name} on {record.dataset['name']}"
    accuracy = facts.percent(record.test["accuracy"])
    return f"{record.recipe.arch} with {record.recipe.name}: {accuracy} on {record.dataset['name']}"


def _run_part(record: RunRecord, prefix: str, weights: str) -> RunPart:
    sizes = len(record.dataset["class_names"]), record.dataset["image_size"]
    return RunPart(
        record=record,
        key=prefix,
        weights=weights,
        curves=run_curves(record, prefix),
        setting=setting_note(record),
        joined=joined_note(record),
        diagram=network_diagram(record.spec, *sizes, name=f"{prefix}network"),
        notices=list(record.notices),
    )


def _add_samples(
    part: RunPart, runs_dir: Path, data: str | None, device: str, progress: Progress | None
) -> UserError | None:
    """Add what needs the images; where they cannot be read, say why instead, and return it."""
    record, config = part.record, part.record.config
    try:
        dataset = open_dataset(data or config.data, image_size=config.image_size, progress=progress)
        if dataset.digest != record.dataset["digest"]:
            raise UserError(
                f"{data or config.data or 'CIFAR-10'} is not the data set of this run (or has changed)"
            )
        outcomes = evaluate_samples(
            f"{record.path}:{part.weights}", runs_dir=runs_dir, data=data, device=device, progress=progress
        )
    except UserError as error:
        part.notices.append(f"predictions and augmentation are not shown: {error}")
        return error
    part.predictions = summarise(outcomes, record.on, part.key)
    part.pngs[f"{part.key}confusion"] = part.predictions.chart.png
    if part.predictions.worst:
        title = f"Worst-classified images of {record.dataset['name']}: right class \u2192 prediction"
        part.pngs[f"{part.key}worst"] = worst_png(outcomes, part.predictions.worst, title)
    part.augmentation = augmentation_grid(record, dataset)
    part.pngs[f"{part.key}augmentation"] = part.augmentation.png
    return None
