"""A time-to-accuracy record as a Markdown board."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fastresnet.atomic import write_atomic
from fastresnet.bench.asked import changed, left
from fastresnet.bench.board import ENERGY, Row, Summary, labels_of, peer_tta, row_of, runs_of, standings
from fastresnet.bench.board_notes import (
    changed_note,
    commits_note,
    hosts_note,
    missing_notes,
    packing_notes,
    recompiled_note,
    same_note,
    tries_note,
)
from fastresnet.bench.board_plot import draw
from fastresnet.bench.comparison import Ratio, compare, find_row
from fastresnet.bench.record import commands_told, write_record
from fastresnet.words import counted

MARKS = {
    "reaches": "yes",
    "mean only": "only its mean: not shown to reach it",
    "one run": "one run: proves nothing",
    "below": "no",
    "unmeasured": "unmeasured",
}


def write_board(record: dict[str, Any], path: Path) -> None:
    """Write a record to ``path``, and the board and the plot of it beside it, as .md and .png."""
    write_record(path, record)
    write_atomic(path.with_suffix(".md"), lambda file: file.write(to_markdown(record).encode()))
    write_atomic(path.with_suffix(".png"), lambda file: file.write(draw(record)))


def to_markdown(record: dict[str, Any]) -> str:
    """Return the record as a board: on what, the rows, and what each column means."""
    where, settings = record["environment"], record["settings"]
    lines_of = standings(record)
    energy = any(line.energy_j is not None for line in lines_of)
    cpu = any(line.cpu_s is not None for line in lines_of)
    at_once = any(line.row.at_once > 1 for line in lines_of)
    labels = labels_of(line.row for line in lines_of)
    header = ["row", "parameters", "epochs", "runs", "accuracy, mean (sd)", "lower bound", "reaches it"]
    header += ["seconds, fixed budget", "seconds, first crossing *"]
    header += ["CPU s a run"] if cpu else []
    header += ["J a run"] if energy else []
    header += ["measured"]
    every = settings["eval_every"]
    lines = [
        f"# Time to {100 * settings['target']:g}% on {settings['dataset']}",
        "",
        f"{settings['dataset']}, to a test accuracy of {settings['target']:g}; {where['device_name']}, "
        f"{counted(where['threads'], 'CPU thread')}, torch {where['torch']}"
        + (f", CUDA {where['cuda']}" if where["cuda"] else "")
        + f"; {commands_told(record)}.",
        "",
        f"| {' | '.join(header)} |",
        "|" + "---|" * len(header),
        *(_line(record, line, labels[line.row], cpu, energy) for line in lines_of),
        "",
        "Fixed budget: the schedule's epochs and its final evaluation. It reaches the target where the one-sided 95% "
        "lower bound of the mean accuracy does: of each row by itself, with a number of runs that was fixed "
        f"beforehand{', but for those told below' if changed(record) else ''}. Seconds are means with 95% intervals. "
        "On the clock: moving the data to the device, initialisation from data, every draw and step, the final "
        "evaluation. Off it: imports, packing, building, compiling and the warm-up, evaluations between epochs.",
        "",
        f"\\* First crossing: the clock when an evaluation after every {'epoch' if every == 1 else f'{every} epochs'} "
        "first reaches the target, evaluations before it off the clock. It is chosen on the test set, so it flatters "
        "(on the validation split, of a recipe that holds one out). It is without TTA, whatever the row ends with, "
        "and the mean of those runs that crossed.",
    ]
    if record.get("against"):
        lines += _comparison(record)
    lines += packing_notes(record)
    if cpu:
        lines += [
            "",
            "CPU seconds are those of all threads: of our rows in initialisation from data, training and final "
            "evaluation, without the workers of a DataLoader; of a peer what it says.",
        ]
    if any(label != row.label for row, label in labels.items()):
        lines += [
            "",
            "Rows of one name and different forms are of a recipe or a command that was changed between.",
        ]
    if any(line.searched for line in lines_of):
        lines += [
            "",
            "Epochs marked † were chosen by search; the runs that chose them are not counted. A search looks after "
            "each run, so it errs more often than once in twenty; fresh seeds may refute a schedule that it found, but "
            "bring back none that it passed over.",
        ]
    lines += tries_note(record)
    lines += changed_note(record)
    lines += recompiled_note(record)
    lines += hosts_note(record)
    lines += same_note(record)
    obstacle = record.get("energy")
    if not energy and obstacle not in (None, ENERGY):  # where it could be read, no run has told any yet
        lines += ["", f"No energy was read: {obstacle}."]
    elif energy:
        apart = "; none is attributed to trainings that ran at once" if at_once else ""
        of_ours = any(line.energy_j is not None and line.row.recipe is not None for line in lines_of)
        why_not = "" if obstacle in (None, ENERGY) else f", {obstacle}"
        told = obstacle if of_ours else f"what peers' own lines say; of ours none was read{why_not}"
        lines += ["", f"Energy: {told}{apart}."]
    lines += _peers(record)
    lines += commits_note(record)
    lines += missing_notes(record)
    return "\n".join(lines) + "\n"


def _line(record: dict[str, Any], line: Summary, label: str, cpu: bool, energy: bool) -> str:
    row = line.row
    crossing = _seconds(line.crossing_s, line.crossing_half)
    if line.crossed is not None and line.crossed < line.runs:
        crossing = f"{crossing} ({line.crossed} of {line.runs} runs)".strip()
    tta = "".join(f", {kind} TTA" for kind in (row.tta, peer_tta(record, row)) if kind != "none")
    recipe = f" ({row.arch or row.recipe}{row.changed})" if row.recipe is not None else " (its own clock)"
    apart = f", throughput, {row.at_once} at once" if row.at_once > 1 else ""
    spread = f" ({line.accuracy_sd:.4f})" if line.accuracy_sd is not None else ""
    cells = [
        f"{row.name}{recipe}{tta}{apart}{label.removeprefix(row.label)}",
        f"{row.num_params:,}" if row.num_params is not None else "",
        f"{row.epochs}{' †' if line.searched else ''}" if row.epochs is not None else "",
        str(line.runs or ""),
        "" if line.accuracy is None else f"{line.accuracy:.4f}{spread}",
        "" if line.accuracy_low is None else f"{line.accuracy_low:.4f}",
        MARKS[line.verdict] + _unended(record, line),
        _seconds(line.seconds, line.seconds_half),
        crossing if line.runs and row.recipe is not None else "",
    ]
    if cpu:
        cells.append("" if line.cpu_s is None else f"{line.cpu_s:,.1f}{_of(line.cpu_runs, line)}")
    if energy:
        cells.append("" if line.energy_j is None else f"{line.energy_j:,.0f}{_of(line.energy_runs, line)}")
    first, *rest = line.dates or ("",)
    several = f" ({len(line.commits)} commits)" if row.recipe is not None and len(line.commits) > 1 else ""
    cells.append((f"{first} to {rest[-1]}" if rest else first) + several)
    return f"| {' | '.join(cells)} |"


def _unended(record: dict[str, Any], line: Summary) -> str:
    """Return what a verdict must not be read without: that runs which were planned have not ended."""
    if line.failed and line.runs:
        return " (of those that ended: one failed)"
    missing = len(left(record, line.row))
    return f" (so far: {missing} of its runs missing)" if line.runs and missing else ""


def _of(num: int, line: Summary) -> str:
    """Return how many of a row's runs a mean is of, where it is not all."""
    return "" if num == line.runs else f" (of {num} runs)"


def _seconds(mean: float | None, half: float | None) -> str:
    if mean is None:
        return ""
    return f"{mean:.2f}" + ("" if half is None else f" ± {half:.2f}")


def _peers(record: dict[str, Any]) -> list[str]:
    """Return a paragraph a peer's row: its clock, where it is from, what was changed of it."""
    lines = []
    for row in dict.fromkeys(row_of(run) for run in record["runs"] if run["row"]["recipe"] is None):
        last = runs_of(record, row)[-1]
        source = last.get("repository", "repository not stated")
        commit = last.get("commit", "commit not stated")
        lines += [
            "",
            f"{row.name}: {source}, {commit}. Its clock: {last['clock'].rstrip('.')}. Changed to run here: "
            f"{last.get('changes', 'not stated').rstrip('.')}. As called: `{row.science}`.",
        ]
    return lines


def _comparison(record: dict[str, Any]) -> list[str]:
    """Return the rows beside the one that they are compared with, as a table and what it means."""
    against = find_row(record, record["against"])
    if against is None:
        return ["", f"Nothing is compared with {record['against']} yet."]
    labels = labels_of(Row(**row) for row in record["rows"])
    lines = [
        "",
        f"Against {labels[against]}, of which a ratio below 1 is faster:",
        "",
        "| row | rounds | seconds, ratio | CPU seconds, ratio | accuracy, difference in points |",
        "|---|---|---|---|---|",
    ]
    for each in compare(record, against):
        half = "" if each.difference_half is None else f" ± {100 * each.difference_half:.2f}"
        seconds = _ratio(each.seconds) or "no rounds in turn"
        cells = [labels[each.row], str(each.rounds or ""), seconds, _ratio(each.cpu_s)]
        lines.append(f"| {' | '.join([*cells, f'{100 * each.difference:+.2f}{half}'])} |")
    return [
        *lines,
        "",
        "A ratio is the geometric mean over rounds, in which the two took turns, with its 95% interval (Student's t of "
        "logarithms); a difference is that of the mean accuracies of all runs, with its 95% interval (Welch).",
    ]


def _ratio(ratio: Ratio | None) -> str:
    if ratio is None:
        return ""
    return f"{ratio.mean:.3f}" + ("" if ratio.low is None else f" ({ratio.low:.3f} to {ratio.high:.3f})")
