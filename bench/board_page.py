"""A time-to-accuracy record as a Markdown board and a plot."""

from __future__ import annotations

import hashlib
import io
import json
import statistics
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from fastresnet.atomic import write_atomic
from fastresnet.bench.asked import added
from fastresnet.bench.at_once import in_words
from fastresnet.bench.board import ENERGY, Row, Summary, labels_of, row_of, runs_of, standings, tries
from fastresnet.bench.comparison import Ratio, compare, find_row
from fastresnet.bench.record import commands_told, write_record
from fastresnet.report.palette import LIGHT
from fastresnet.words import counted

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MARKS = {
    "reaches": "yes",
    "mean only": "only its mean: not shown to reach it",
    "one run": "one run: proves nothing",
    "below": "no",
    "unmeasured": "unmeasured",
}
# Of rows that were alone, and of those that were at once; there are more rows than colours.
MARKERS = {"-": "o^v<>", ":": "sDXPp"}


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
        f"beforehand{', but for those told below' if added(record) else ''}. Seconds are means with 95% intervals. On "
        "the clock: moving the data to the device, initialisation from data, every draw and step, the final "
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
    lines += _tries_note(record)
    lines += added_note(record)
    obstacle = record.get("energy")
    if not energy and obstacle not in (None, ENERGY):  # where it could be read, no run has told any yet
        lines += ["", f"No energy was read: {obstacle}."]
    elif energy:
        apart = "; none is attributed to trainings that ran at once" if at_once else ""
        lines += ["", f"Energy: {record['energy']}{apart}."]
    lines += _peers(record)
    lines += commits_note(record)
    lines += missing_notes(record)
    return "\n".join(lines) + "\n"


def added_note(record: dict[str, Any]) -> list[str]:
    """Return a paragraph that tells which rows were given more runs once some had been seen, where there are such."""
    told = [f"{row.label} (after {' and '.join(map(str, after))})" for row, after in added(record).items()]
    if not told:
        return []
    return [
        "",
        "More runs than were asked for at first, added when others had been seen, so that bounds and intervals err "
        f"more often than they say: {'; '.join(told)}.",
    ]


def commits_note(record: dict[str, Any]) -> list[str]:
    """Return a paragraph that tells the commits of the runs, where there are runs."""
    commits = list(dict.fromkeys(str(run["git"]) for run in record["runs"]))
    told = [commit.replace("-dirty", " with changes") for commit in commits]
    if not told:
        return []
    return [
        "",
        f"Its runs are of {'several commits' if len(told) > 1 else 'the commit'}: {', '.join(told)}; recipes, networks "
        "and lists of factors may have changed since.",
    ]


def missing_notes(record: dict[str, Any]) -> list[str]:
    """Return the paragraphs that tell which rows failed, and why, and of which runs are missing."""
    lines = []
    for label, reason in record.get("failed", {}).items():
        lines += ["", f"Failed when last tried: {label}, {reason.rstrip('.')}."]
    if record["not_measured"]:
        lines += ["", f"Runs are still missing of: {'; '.join(record['not_measured'])}."]
    return lines


def packing_notes(record: dict[str, Any]) -> list[str]:
    """Return the paragraphs that tell what was run at once, what its seconds are, and why."""
    lines = []
    most = max((row.get("at_once", 1) for row in record["rows"]), default=1)
    if most > 1:
        lines = [
            "",
            f"Rows of up to {most} at once are throughput, not latency: each run's clock is its own process's while "
            "others train beside it on the same device, each with its share of the CPU threads. A board's first and "
            "last runs may have had fewer beside them. They are never averaged with those of rows of one at a time.",
        ]
    if record.get("at_once"):
        lines += ["", f"At once or not, by measurement: {'; '.join(map(in_words, record['at_once']))}."]
    return lines


def _tries_note(record: dict[str, Any]) -> list[str]:
    """Return a paragraph that tells what searches tried, where there were some."""
    told = []
    found = tries(record)
    labels = labels_of(found)
    for row, runs in found.items():
        mean = statistics.fmean(run["accuracy"] for run in runs)
        told.append(f"{labels[row]}: {mean:.4f} ({counted(len(runs), 'run')})")
    return (
        ["", f"Tried by search, mean accuracy of runs on seeds of their own: {'; '.join(told)}."]
        if told
        else []
    )


def _line(record: dict[str, Any], line: Summary, label: str, cpu: bool, energy: bool) -> str:
    row = line.row
    crossing = _seconds(line.crossing_s, line.crossing_half)
    if line.crossed is not None and line.crossed < line.runs:
        crossing = f"{crossing} ({line.crossed} of {line.runs} runs)".strip()
    tta = "".join(f", {kind} TTA" for kind in (row.tta, _peer_tta(record, row)) if kind != "none")
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
        MARKS[line.verdict] + (" (of those that ended: one failed)" if line.failed and line.runs else ""),
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


def _peer_tta(record: dict[str, Any], row: Row) -> str:
    """Return what a peer's accuracy averages over, as its last run says; ``none`` where it says nothing."""
    runs = runs_of(record, row) if row.recipe is None else []
    return str(runs[-1].get("tta", "none")) if runs else "none"


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
        _draw_runs(axes, runs_of(record, row), of_row[row], dashes, marker, label)
    if tries(record):
        axes.plot([], [], "o", color=LIGHT["muted"], markersize=4, fillstyle="none", label="tried by search")
    axes.axhline(target, color=LIGHT["ink"], linewidth=0.8, linestyle="--")
    accuracies = [target, *(run["accuracy"] for run in record["runs"])]
    # the last approach to the target is what tells rows apart
    axes.set_ylim(max(0.0, min(accuracies) - 0.1), min(1.0, max(accuracies) + 0.02))
    axes.set_xlabel("seconds on the clock")
    axes.set_ylabel(f"test accuracy on {record['settings']['dataset']}")
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
