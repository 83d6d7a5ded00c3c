"""``python -m torture``: puts every fault upon real runs and prints what came of it. See ``make torture``."""

from __future__ import annotations

import argparse
import os
import re
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any

from torture import bits, clocks, folders, full_disk, kills, memory, sharing, workers
from torture.case import Case, Maker, Outcome, Place, attempt

LIMIT_S = 840.0  # after which no case is begun, so that all ends within a quarter of an hour

FAMILIES: dict[str, Maker] = {
    "kills": kills.cases,
    "full-disk": full_disk.cases,
    "folders": folders.cases,
    "bits": bits.cases,
    "clocks": clocks.cases,
    "sharing": sharing.cases,
    "workers": workers.cases,
    "memory": memory.cases,
}


def main(words: Sequence[str] | None = None) -> int:
    """Run the torture; return 0 where nothing was lost, 1 where something was."""
    parser = argparse.ArgumentParser(prog="make torture", description=__doc__)
    parser.add_argument("--short", action="store_true", help="a few cases of each family, in a minute or two")
    parser.add_argument("--seed", type=int, help="of every draw; printed at the start [default: the clock's]")
    parser.add_argument("--only", metavar="TEXT", help="only cases whose family or name holds this")
    parser.add_argument(
        "--jobs", type=int, default=min(2, len(os.sched_getaffinity(0))), help="cases at once"
    )
    parser.add_argument("--out", type=Path, metavar="FILE.json", help="write the record here")
    asked = parser.parse_args(words)
    seed = time.time_ns() % 10**9 if asked.seed is None else asked.seed
    os.environ["OMP_NUM_THREADS"] = "1"
    again = f"make torture SEED={seed}" + (' ARGS="--short"' if asked.short else "")
    print(f"seed {seed}: `{again}` draws the same faults again", flush=True)

    root = Path(tempfile.mkdtemp(prefix="torture-"))
    place, started = Place(root), time.monotonic()
    chosen = [
        case
        for family, make in FAMILIES.items()
        for case in make(place, asked.short)
        if not asked.only or asked.only in family or asked.only in case.name
    ]
    try:
        outcomes = _run(chosen, place, seed, asked.jobs, started)
    except KeyboardInterrupt:
        shutil.rmtree(root, ignore_errors=True)
        return 130
    seconds = time.monotonic() - started
    failed = [outcome for outcome in outcomes if outcome.state == "failed"]
    rows = table(outcomes)
    print(f"\n{show(rows)}\n")
    for outcome in failed:
        print(f"FAILED {outcome.case.name}: {outcome.saw}")
    states = Counter(outcome.state for outcome in outcomes)
    print(
        f"{states['survived'] + len(failed)} faults in {seconds / 60:.1f} min with seed {seed}: "
        f"{states['survived']} survived, {len(failed)} failed"
        + (f"; {states['not here']} could not be had here" if states["not here"] else "")
        + (f"; no time for {states['no time']}, which --only would run" if states["no time"] else "")
    )
    if asked.out:
        _write(asked.out, seed, asked.short, seconds, rows, failed)
    if not failed:
        shutil.rmtree(root, ignore_errors=True)
    return int(bool(failed))


def _run(chosen: list[Case], place: Place, seed: int, jobs: int, started: float) -> list[Outcome]:
    outcomes: dict[str, Outcome] = {}
    with ThreadPoolExecutor(jobs) as pool:

        def in_time(case: Case) -> Outcome:
            if time.monotonic() - started > LIMIT_S:
                return Outcome(case=case, state="no time", saw=f"{LIMIT_S / 60:.0f} minutes were over")
            return attempt(case, place, seed)

        waiting = {pool.submit(in_time, case): case for case in chosen}
        try:
            for done in as_completed(waiting):
                outcome = done.result()
                outcomes[outcome.case.name] = outcome
                at = f"[{len(outcomes)}/{len(chosen)} {time.monotonic() - started:4.0f} s]"
                print(f"{at} {outcome.case.name}: {outcome.state}: {outcome.saw[:300]}", flush=True)
        except KeyboardInterrupt:
            pool.shutdown(
                wait=False, cancel_futures=True
            )  # those on their way end first: they undo what they mounted
            raise
    return [outcomes[case.name] for case in chosen]


def table(outcomes: Sequence[Outcome]) -> list[dict[str, Any]]:
    """Return a row per kind of fault: how often it was put, how often survived, and what the user saw."""
    rows = []
    for fault in dict.fromkeys(outcome.case.fault for outcome in outcomes):
        own = [outcome for outcome in outcomes if outcome.case.fault == fault]
        had = [outcome for outcome in own if outcome.state in ("survived", "failed")]
        seen = Counter(plain(outcome.saw) for outcome in (had or own))
        rows.append(
            {
                "fault": fault,
                "times": len(had),
                "survived": sum(outcome.state == "survived" for outcome in had),
                "not_here": sum(outcome.state == "not here" for outcome in own),
                "no_time": sum(outcome.state == "no time" for outcome in own),
                "saw": [{"line": line, "times": times} for line, times in seen.most_common()],
            }
        )
    return rows


def plain(line: str) -> str:
    """Return a line less what differs from case to case: folders, ids and numbers of processes."""
    line = re.sub(r"[^\s:;,'\"()]*\b\d{8}-\d{6}-[\w,.-]*-[0-9a-f]{6}\b", "RUN", line)
    line = re.sub(r"(?<![\w.}])/[^\s:;,'\"(){}<>]*/(?=[^\s/:;,'\"()]*)", "", line)
    line = re.sub(r"\.(\d+)\.tmp", ".N.tmp", line)
    return re.sub(r"\(pid \d+\)", "(pid N)", line)


def show(rows: Sequence[dict[str, Any]]) -> str:
    """Return the table as text."""
    width = max(len(row["fault"]) for row in rows) if rows else 5
    lines = [f"{'fault':<{width}}  times  survived  what the user saw (the most frequent of several)"]
    for row in rows:
        first = row["saw"][0]["line"] if row["saw"] else ""
        more = f" (+{len(row['saw']) - 1} others)" if len(row["saw"]) > 1 else ""
        times = str(row["times"]) if row["times"] else "-"
        lines.append(
            f"{row['fault']:<{width}}  {times:>5}  {row['survived'] if row['times'] else '-':>8}  {first[:110]}{more}"
        )
    return "\n".join(lines)


def _write(
    path: Path, seed: int, short: bool, seconds: float, rows: list[dict[str, Any]], failed: list[Outcome]
) -> None:
    from fastresnet.bench.record import make_record, write_record
    from fastresnet.environment import cpu_model

    record = make_record(
        "torture",
        cpu_model(),
        1,
        seed=seed,
        short=short,
        seconds=round(seconds, 1),
        num_faults=sum(row["times"] for row in rows),
        num_failed=len(failed),
        rows=rows,
        failed=[{"case": outcome.case.name, "saw": outcome.saw} for outcome in failed],
    )
    record["command"] = f"make torture SEED={seed}" + (' ARGS="--short"' if short else "")
    write_record(path, record)
    print(f"record   {path}")


if __name__ == "__main__":
    sys.exit(main())
