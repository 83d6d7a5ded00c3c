"""An ablation's record as a Markdown page: a table an arch."""

from __future__ import annotations

import json
import statistics
from pathlib import Path
from typing import Any

from fastresnet.atomic import write_atomic
from fastresnet.bench.ablation import Line, Table, cost_of, expected_by_chance, tables
from fastresnet.bench.board_notes import (
    changed_note,
    commits_note,
    hosts_note,
    missing_notes,
    packing_notes,
    recompiled_note,
)
from fastresnet.bench.factors import BASE
from fastresnet.bench.record import commands_told, write_record
from fastresnet.words import counted

HEADER = (
    "factor",
    "of",
    "changes",
    "runs",
    "accuracy",
    "difference, points",
    "with flip TTA",
    "training time",
    "verdict",
    "why tried",
)


COSTS = {
    "cpu_s": "CPU seconds, the final evaluation's included",
    "train_s": "what is on the clock before the final evaluation",
}


def write_ablation(record: dict[str, Any], path: Path) -> None:
    """Write a record to ``path``, and the page of it beside it, as .md."""
    write_record(path, record)
    write_atomic(path.with_suffix(".md"), lambda file: file.write(to_markdown(record).encode()))


def to_markdown(record: dict[str, Any]) -> str:
    """Return the record as a page: on what, a table an arch, and what its columns mean."""
    where, settings = record["environment"], record["settings"]
    epochs = counted(settings["epochs"], "epoch")
    found = tables(record)
    judged = sum(table.judged for table in found)
    lines = [
        f"# Ablation of `{settings['recipe']}`, {epochs}, on {settings['dataset']}",
        "",
        f"`{settings['recipe']}` for {epochs} on {settings['dataset']}; {where['device_name']}, "
        f"{counted(where['threads'], 'CPU thread')}, torch {where['torch']}"
        + (f", CUDA {where['cuda']}" if where["cuda"] else "")
        + f"; {commands_told(record)}.",
    ]
    if settings["set"]:
        lines += ["", f"The base is `{settings['recipe']}` with {_settings(settings['set'])}."]
    for table in found:
        lines += ["", *_table(table, epochs)]
    lines += [
        "",
        "One factor at a time: each row is the base with only those keys changed, trained with the base's seeds; a run "
        "counts once the base has its seed too. Difference: the mean, seed by seed, of the last epoch's test accuracy "
        "without TTA less the base's, with its two-sided 95% interval (Student's t); a factor helps where the interval "
        f"is above zero. Training time: the median ratio to the base's of {COSTS[cost_of(record)]}, with the least and "
        "the greatest, of pairs that are of one commit and machine and did their steps in the same way. "
        "The base's accuracy has the 95% interval of its own mean, which is no interval of a difference.",
        "",
        f"The intervals are not corrected for how many factors were tried: of {counted(judged, 'factor')} judged here "
        f"about {expected_by_chance(judged):.1f} would be said to help or hurt if none did either. What is chosen by "
        "such a table is confirmed by fresh seeds (--first-seed) or at another length.",
    ]
    lines += changed_note(record)
    lines += _pairs_notes(found)
    lines += recompiled_note(record)
    lines += hosts_note(record)
    for label, reason in record.get("left_out", {}).items():
        lines += ["", f"Left out: {label} ({reason})."]
    lines += packing_notes(record)
    lines += commits_note(record)
    lines += missing_notes(record)
    return "\n".join(lines) + "\n"


def _table(table: Table, epochs: str) -> list[str]:
    at_once = f", up to {table.at_once} trainings at once" if table.at_once > 1 else ""
    return [
        f"**{table.arch}**, {epochs}{at_once}:",
        "",
        f"| {' | '.join(HEADER)} |",
        "|" + "---|" * len(HEADER),
        *(f"| {' | '.join(_cells(line))} |" for line in table.lines),
    ]


def _pairs_notes(found: list[Table]) -> list[str]:
    """Return the paragraphs that tell which pairs are not quite alike, where there are such."""
    lines = []
    of_factors = [line for table in found for line in table.lines if line.name != BASE]
    pairs, apart = sum(line.runs for line in of_factors), sum(line.of_two_commits for line in of_factors)
    if apart:
        lines += [
            "",
            f"Of {counted(pairs, 'pair')} {apart} are of two commits: judged all the same, not timed.",
        ]
    for table in found:
        told = [f"{line.name} ({', '.join(line.ways)})" for line in table.lines if line.ways]
        if told:
            lines += [
                "",
                f"Steps of {table.arch} done in another way than the base's, each found in a row's first run, so that "
                f"their times are not compared: {', '.join(told)}. Give the options to all runs where times matter.",
            ]
    return lines


def _cells(line: Line) -> list[str]:
    own = "" if line.accuracy_half is None or line.name != BASE else f" ± {line.accuracy_half:.4f}"
    return [
        line.name,
        line.group,
        _settings(line.set),
        str(line.runs or ""),
        "" if line.accuracy is None else f"{line.accuracy:.4f}{own}",
        "" if line.difference is None else _points(line.difference, line.difference_half),
        "" if line.accuracy_tta is None else f"{line.accuracy_tta:.4f}",
        _percent(line.time_ratios),
        line.verdict,
        line.why,
    ]


def _points(difference: float, half: float | None) -> str:
    return f"{100 * difference:+.2f}" + ("" if half is None else f" ± {100 * half:.2f}")


def _percent(ratios: list[float]) -> str:
    """Return the median of ratios as a change, with the least and the greatest of several."""
    if not ratios:
        return ""
    ends = f" ({_change(ratios[0])} to {_change(ratios[-1])})" if len(ratios) > 1 else ""
    return f"{_change(statistics.median(ratios))}{ends}"


def _change(ratio: float) -> str:
    return f"{100 * (ratio - 1):+.1f}%"


def _settings(settings: dict[str, Any]) -> str:
    """Return keys of a recipe with their values, as short as JSON has these; text without quotes."""
    shown = {key: value if isinstance(value, str) else json.dumps(value) for key, value in settings.items()}
    return ", ".join(f"`{key}` {value}" for key, value in shown.items())
