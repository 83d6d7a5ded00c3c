"""What the page of a board or an ablation tells below its tables: how its runs came to be, and what is missing."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Sequence
from typing import Any

from fastresnet.bench.asked import changed
from fastresnet.bench.at_once import in_words
from fastresnet.bench.board import Row, host_of, labels_of, row_of, runs_of, tries
from fastresnet.words import counted


def changed_note(record: dict[str, Any]) -> list[str]:
    """Return a paragraph that tells whose number of runs was changed once some had been seen, where there are such."""
    told = [
        f"{row.label} ({planned} planned, changed after {' and '.join(map(str, after))})"
        for row, (planned, after) in changed(record).items()
    ]
    if not told:
        return []
    return [
        "",
        "The number of runs was changed once some had been seen, so that bounds and intervals err more often than they "
        f"say: {'; '.join(told)}.",
    ]


def same_note(record: dict[str, Any]) -> list[str]:
    """Return a paragraph that tells the peers whose runs all ended alike, where there are such."""
    peers = [Row(**each) for each in record["rows"] if each["recipe"] is None]
    told = [row.label for row in peers if _are_alike(runs_of(record, row))]
    if not told:
        return []
    return [
        "",
        f"All runs of {' and of '.join(told)} ended with one accuracy. Unless each drew otherwise, as by a {{seed}} in "
        "its command, they are one measurement repeated, and its bound and intervals say nothing.",
    ]


def recompiled_note(record: dict[str, Any]) -> list[str]:
    """Return a paragraph that tells the rows of which runs compiled something anew, where there are such."""
    rows = dict.fromkeys(row_of(run) for run in record["runs"] if run.get("recompiled"))
    labels = labels_of(Row(**each) for each in record["rows"])
    told = []
    for row in rows:
        runs = runs_of(record, row)
        if num := sum(bool(run.get("recompiled")) for run in runs):
            told.append(f"{labels[row]} ({num} of {counted(len(runs), 'run')})")
    return (
        ["", f"Compiled anew in the course of a run, which it should not be: {'; '.join(told)}."]
        if told
        else []
    )


def hosts_note(record: dict[str, Any]) -> list[str]:
    """Return a paragraph that tells the hosts of a GPU, processors and threads, where its runs had several kinds."""
    times = Counter(host_of(record, run) for run in record["runs"])
    if len(times) < 2:
        return []
    told = "; ".join(
        f"{cpu}, {counted(threads, 'thread')} ({counted(num, 'run')})"
        for (cpu, threads), num in times.items()
    )
    return ["", f"Its runs had different hosts beside the GPU, on which their seconds depend too: {told}."]


def _are_alike(runs: Sequence[dict[str, Any]]) -> bool:
    return len(runs) > 1 and len({run["accuracy"] for run in runs}) == 1


def commits_note(record: dict[str, Any]) -> list[str]:
    """Return a paragraph that tells the commits of the runs, where there are runs."""
    commits = list(dict.fromkeys(str(run["git"]) for run in record["runs"]))
    told = [
        commit.replace("-dirty", " with changes").replace("source-", "a source without git, of hash ")
        for commit in commits
    ]
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


def tries_note(record: dict[str, Any]) -> list[str]:
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
