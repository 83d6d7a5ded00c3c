"""The loaders' record as a table, a plot and a few plain sentences."""

from __future__ import annotations

import re
import statistics
from pathlib import Path
from typing import Any

import numpy as np

from fastresnet.signals import held
from fastresnet.words import counted

# Seconds that report R0 printed for "5 epochs" by number of workers; from 2 workers up, 1.466 + 0.342 n fits them.
PRINTED_S = {0: 63.96, 2: 2.16, 4: 2.80, 8: 4.18, 12: 5.61, 16: 7.00, 20: 8.24}
MIB = 2**20


def _every(row: dict[str, Any], key: str) -> list[float]:
    """Return a row's figures over all repeats."""
    values = [run[key] for run in row["runs"] if run.get(key) is not None]
    return [item for value in values for item in (value if isinstance(value, list) else [value])]


def _median(row: dict[str, Any], key: str) -> float | None:
    values = _every(row, key)
    return statistics.median(values) if values else None


def speed(row: dict[str, Any]) -> float | None:
    """Return a row's median warm images a second, None if it has none."""
    return None if row["error"] else _median(row, "images_per_s")


def best_transforms(record: dict[str, Any]) -> dict[str, Any] | None:
    """Return the quickest row of a DataLoader with torchvision's transforms."""
    rows = [row for row in record["rows"] if row["kind"] == "transforms" and speed(row)]
    return max(rows, key=lambda row: speed(row) or 0.0, default=None)


def _compares(record: dict[str, Any]) -> bool:
    """Return whether the five epochs are those that R0 timed: CIFAR-10's images, from whatever files."""
    return record["epochs"] is not None and re.fullmatch(r"CIFAR-10(-J\d+)?", record["dataset"]) is not None


def _has_spread(record: dict[str, Any]) -> bool:
    """Return whether some row's speed was measured more than once."""
    return any(len(_every(row, "images_per_s")) > 1 for row in record["rows"])


def _bits(row: dict[str, Any]) -> str:
    found = {run["bits_match"] for run in row["runs"]}
    if found == {None}:
        return "its own draws"
    if found == {True}:
        return "yes"
    return "no: another decoder" if row["kind"] == "files" else "NO"


def _cell(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)


def table(record: dict[str, Any]) -> list[list[str]]:
    """Return the header and a line a row."""
    best = best_transforms(record)
    best_speed = (speed(best) if best else None) or float("nan")
    copy = statistics.median(record["copy_bytes_per_s"]) if record["copy_bytes_per_s"] else float("nan")
    waits = record["arch"] is not None and any(row["waits"] for row in record["rows"])
    compares, spread_told = _compares(record), " (least to most)" if _has_spread(record) else ""
    header = ["loader", "5 epochs, s", "R0 printed", "cold start, s", f"img/s, warm{spread_told}"]
    header += [
        "CPU-s per 1,000",
        "memory added, MiB",
        "of copy speed",
        "times best transforms row",
        "same bits",
    ]
    lines = [header + ([f"waiting, share of a {record['arch']} step"] if waits else [])]
    for row in record["rows"]:
        name = row["name"] + (" *" if row["beyond_cores"] else "")
        printed = PRINTED_S.get(row["workers"]) if compares and row["kind"] == "transforms" else None
        if row["error"] or not row["runs"]:
            lines.append(
                [
                    name,
                    "",
                    _cell(printed, ".2f"),
                    "",
                    row["error"] or "not measured",
                    *[""] * (len(lines[0]) - 5),
                ]
            )
            continue
        speeds = _every(row, "images_per_s")
        median = statistics.median(speeds)
        memory = _median(row, "peak_added_bytes")
        spread = f" ({min(speeds):,.0f} to {max(speeds):,.0f})" if len(speeds) > 1 else ""
        line = [
            name,
            _cell(_median(row, "five_epochs_s"), ".2f"),
            _cell(printed, ".2f"),
            _cell(_median(row, "cold_start_s"), ".3f"),
            f"{median:,.0f}{spread}",
            _cell(_median(row, "cpu_s_per_1000"), ".4f"),
            _cell(memory / MIB if memory is not None else None, ",.0f"),
            f"{median * record['image_bytes'] / copy:.1%}",
            f"{median / best_speed:,.2f}",
            _bits(row),
        ]
        lines.append(line + ([_cell(_wait(row), ".2%")] if waits else []))
    return lines


def _wait(row: dict[str, Any]) -> float | None:
    return statistics.median(wait["share"] for wait in row["waits"]) if row["waits"] else None


def markdown(record: dict[str, Any]) -> str:
    """Return the table, what it was measured on, and the note."""
    lines = table(record)
    # a quick look has no five epochs, another data set nothing that R0 printed
    kept = [column for column in range(len(lines[0])) if any(line[column] for line in lines[1:])]
    lines = [[line[column] for column in kept] for line in lines]
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    padded = [[cell.ljust(width) for cell, width in zip(line, widths, strict=True)] for line in lines]
    rule = ["-" * width for width in widths]
    body = "\n".join("| " + " | ".join(cells) + " |" for cells in (padded[0], rule, *padded[1:]))
    return f"{body}\n\n{_caption(record)}\n\n" + "\n\n".join(note(record)) + "\n"


def _caption(record: dict[str, Any]) -> str:
    environment = record["environment"]
    copy = statistics.median(record["copy_bytes_per_s"]) / 1e9 if record["copy_bytes_per_s"] else float("nan")
    parts = [
        f"{record['dataset']}, {record['num_images']:,} images of {record['image_bytes']:,} bytes, batches of "
        f"{record['batch_size']}, on {record['environment']['device_name']} ({record['device']}), "
        f"{counted(environment['cores'], 'core')}, {record['date']}; "
        f"{counted(record['repeats'], 'repeat')}{', the rows in turn' if record['repeats'] > 1 else ''}.",
        f"One thread copies {copy:.1f} GB/s here.",
        *(["`*`: more workers than cores."] if any(row["beyond_cores"] for row in record["rows"]) else []),
        "A DataLoader with transforms yields normalised float32, the others uint8 that the training normalises.",
        "`ffcv` crops and flips with our kernel, as a step of its pipeline.",
    ]
    if record["epochs"] is None:
        parts.append("A quick look: seconds a row, no five epochs.")
    if record["interrupted"]:
        parts.append("Interrupted: some figures are of fewer repeats.")
    return " ".join(parts)


def note(record: dict[str, Any]) -> list[str]:
    """Return, in plain words, which loader to use here and why, and what is the bottleneck."""
    ours = {row["name"]: row for row in record["rows"] if row["kind"] == "backend" and speed(row)}
    best = best_transforms(record)
    if not ours:
        return ["No backend of ours was measured."]
    default = "resident" if record["device"].startswith("cuda") else "numba"
    chosen = default if default in ours else max(ours, key=lambda name: speed(ours[name]) or 0.0)
    rate = speed(ours[chosen]) or 0.0
    text = f"Use `{chosen}` here{', the default' if chosen == default else ''}: {rate:,.0f} img/s"
    if best is not None:
        best_rate = speed(best) or 0.0
        text += (
            f", {rate / best_rate:,.0f} times the best DataLoader with transforms "
            f"({counted(best['workers'], 'worker')}, {best_rate:,.0f} img/s)"
        )
    quicker = [name for name in ours if (speed(ours[name]) or 0.0) > 1.2 * rate]
    if quicker:
        load = "load" if len(quicker) > 1 else "loads"
        text += f"; {' and '.join(quicker)} {load} faster still, which only a network that waits would notice"
    found = [f"{text}."]
    found += _bottleneck(record, chosen, rate, best)
    return found + _start_up(record)


def _bottleneck(record: dict[str, Any], chosen: str, rate: float, best: dict[str, Any] | None) -> list[str]:
    measured = {row["name"]: row for row in record["rows"] if row["waits"]}
    if chosen not in measured:
        than = f" (with the best DataLoader row, above {speed(best):,.0f})" if best else ""
        return [
            f"Loading is the bottleneck only for a network that trains above {rate:,.0f} img/s{than}; "
            "`--arch NAME` measures one."
        ]
    step_s = statistics.median(wait["step_s"] for wait in measured[chosen]["waits"])
    share = _wait(measured[chosen]) or 0.0
    verdict = "compute is the bottleneck" if share < 0.05 else "loading is part of the bottleneck"
    text = (
        f"{record['arch']} takes {1e3 * step_s:,.1f} ms a step of {record['batch_size']} "
        f"({record['batch_size'] / step_s:,.0f} img/s) and waits {share:.2%} of it for `{chosen}`: {verdict}."
    )
    others = [
        f"{name} {_wait(row):.1%}"
        for name, row in measured.items()
        if name != chosen and row["kind"] != "backend"
    ]
    return [text + (f" With others it waits: {'; '.join(others)}." if others else "")]


def start_up_fit(record: dict[str, Any]) -> tuple[float, float] | None:
    """Return (a, b) of a + b n seconds: what five epochs' first batches took with n > 0 workers and transforms."""
    points = [
        (row["workers"], statistics.median(sum(run["first_batches_s"]) for run in row["runs"]))
        for row in record["rows"]
        if row["kind"] == "transforms"
        and row["workers"]
        and row["runs"]
        and "first_batches_s" in row["runs"][0]
    ]
    if len(points) < 3:
        return None
    slope, offset = np.polyfit([workers for workers, _ in points], [seconds for _, seconds in points], 1)
    return float(offset), float(slope)


def _start_up(record: dict[str, Any]) -> list[str]:
    fit = start_up_fit(record)
    if fit is None:
        return []
    printed = "; the figures that R0 printed fit 1.466 + 0.342 n" if _compares(record) else ""
    return [
        f"Starting n workers five times, once an epoch, took {fit[0]:.2f} + {fit[1]:.3f} n seconds here before the "
        f"first batches came{printed}."
    ]


@held()
def plot(record: dict[str, Any], path: Path) -> None:
    """Write the table as a picture: images a second by row, and five epochs by workers, beside R0's of CIFAR-10."""
    from matplotlib.figure import Figure

    rows = [row for row in record["rows"] if speed(row)]
    by_workers = [row for row in rows if row["kind"] == "transforms" and _every(row, "five_epochs_s")]
    figure = Figure(figsize=(11, 0.32 * len(rows) + 1.8), layout="constrained")
    axes = figure.subplots(1, 2 if by_workers else 1, squeeze=False)[0]
    bars, places = axes[0], range(len(rows), 0, -1)
    middle = [speed(row) or 0.0 for row in rows]
    below = [value - min(_every(row, "images_per_s")) for row, value in zip(rows, middle, strict=True)]
    above = [max(_every(row, "images_per_s")) - value for row, value in zip(rows, middle, strict=True)]
    colours = {"transforms": "#b0b0b0", "pack": "#7fa7d0", "backend": "#1f6f54", "files": "#c98a2b"}
    whiskers = [below, above] if _has_spread(record) else None
    bars.barh(list(places), middle, xerr=whiskers, color=[colours[row["kind"]] for row in rows])
    bars.set_yticks(
        list(places), [row["name"] + (" *" if row["beyond_cores"] else "") for row in rows], fontsize=8
    )
    bars.set_xscale("log")
    bars.set_xlabel(f"images a second, warm{' (median; whiskers: least and most)' if whiskers else ''}")
    if by_workers:
        counts = [row["workers"] for row in by_workers]
        ours = [_median(row, "five_epochs_s") or 0.0 for row in by_workers]
        axes[1].plot(counts, ours, "o-", color="#404040", label="measured here, five whole epochs")
        if _compares(record):
            axes[1].plot(
                list(PRINTED_S), list(PRINTED_S.values()), "x--", color="#a03030", label="printed in R0"
            )
        axes[1].set_yscale("log")
        axes[1].set_xlabel("DataLoader workers, torchvision transforms")
        axes[1].set_ylabel("seconds for 5 epochs")
        axes[1].legend(fontsize=8)
    figure.suptitle(
        f"{record['dataset']}, batch {record['batch_size']}, {record['environment']['device_name']}",
        fontsize=10,
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
