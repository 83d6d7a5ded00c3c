"""The baseline, and what has become slower than it."""

from __future__ import annotations

import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from fastresnet.bench.record import load_record, make_record, write_record
from fastresnet.engine.machine import device_name, resolve_device, resolve_threads
from fastresnet.errors import UserError

FOLDER = Path(__file__).resolve().parent
BASELINE = Path("bench-results") / "regression.json"
SLOWER = 1.3  # times the baseline; to be raised where two baselines of one commit differ by more
PASSES = 2  # of a baseline
TRIES = 3  # of what looks slower, before it is called so


class Line(NamedTuple):
    """One part: its ratio to the calibration loop then and now, and how many times it is as slow.

    ``then`` or ``now`` is None where the part was not measured.
    """

    name: str
    then: float | None
    now: float | None

    @property
    def times(self) -> float | None:
        """Now over then; None where one is missing."""
        return None if self.then is None or self.now is None else self.now / self.then


def run_benchmarks(selected: Sequence[str] = (), extra: Sequence[str] = ()) -> dict[str, float]:
    """Return each part's median ratio to the calibration loop; ``selected`` names parts, empty for all.

    Raises:
        UserError: pytest or pytest-benchmark is missing, or a benchmark failed.
    """
    with tempfile.TemporaryDirectory(prefix="fastresnet-regression-") as name:
        out = Path(name) / "out.json"
        places = [f"{FOLDER / 'test_parts.py'}::{part}" for part in selected] or [str(FOLDER)]
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *places]
        command += [f"--benchmark-json={out}", "--benchmark-quiet", *extra]
        # A pytest around this one would have its word in it: under xdist, nothing is timed.
        environment = {key: value for key, value in os.environ.items() if not key.startswith("PYTEST_")}
        done = subprocess.run(command, cwd=FOLDER.parents[1], env=environment, capture_output=True, text=True)
        if done.returncode == 5:  # pytest collected nothing
            raise UserError("no part was measured; `pytest bench/regression --collect-only -q` lists them")
        if done.returncode or not out.exists():
            raise UserError(f"the benchmarks did not run to their end: {_why(done.stdout + done.stderr)}")
        return read_ratios(json.loads(out.read_bytes()))


def _why(said: str) -> str:
    """Return the first of pytest's lines that says what went wrong, else its last."""
    lines = said.strip().splitlines() or ["it said nothing"]
    telling = (line for line in lines if re.search(r"^(FAILED|ERROR) |error: ", line))
    return next(telling, lines[-1])


def read_ratios(result: dict[str, Any]) -> dict[str, float]:
    """Return each part's median ratio of what pytest-benchmark wrote."""
    return {entry["name"]: statistics.median(entry["extra_info"]["ratios"]) for entry in result["benchmarks"]}


def save(path: Path, passes: int = PASSES, extra: Sequence[str] = ()) -> dict[str, Any]:
    """Measure every part ``passes`` times and write the baseline: the median of the passes, and all of them."""
    found = [run_benchmarks(extra=extra) for _ in range(passes)]
    device = resolve_device("auto")
    record = make_record(
        "regression",
        device_name(device),
        resolve_threads(0),
        parts={
            name: {
                "ratio": statistics.median(each[name] for each in found if name in each),
                "passes": [each[name] for each in found if name in each],
            }
            for name in sorted(set().union(*found))
        },
    )
    record["command"] = "make bench-save"
    write_record(path, record)
    return record


def check(path: Path, slower: float, extra: Sequence[str] = ()) -> tuple[dict[str, Any], list[Line]]:
    """Return the baseline and a line a part; what looks slower has been measured again, and its quickest is kept.

    Raises:
        UserError: there is no baseline, or a benchmark failed.
    """
    if not path.exists():
        raise UserError(
            f"there is no baseline {path}; make one with `make bench-save`, at a commit that is as it should be"
        )
    record = load_record(path)
    then = _ratios_then(record)
    if then is None:
        raise UserError(f"{path} is no baseline of `make bench-save`; make one, or name another --baseline")
    now = run_benchmarks(extra=extra)
    for _ in range(TRIES - 1):
        suspects = culprits(compare(then, now), slower)
        if not suspects:
            break
        again = run_benchmarks([line.name for line in suspects], extra)
        now |= {name: min(ratio, now[name]) for name, ratio in again.items()}
    return record, compare(then, now)


def _ratios_then(record: dict[str, Any]) -> dict[str, float] | None:
    """Return a baseline's ratios by part; None where the record is no baseline."""
    where = record.get("environment")
    told = isinstance(where, dict) and {"git", "device_name"} <= where.keys() and "date" in record
    if record["kind"] != "regression" or not told:
        return None
    try:
        ratios = {name: float(part["ratio"]) for name, part in record["parts"].items()}
    except (LookupError, TypeError, ValueError, AttributeError):
        return None
    return ratios if all(ratio > 0 for ratio in ratios.values()) else None


def compare(then: dict[str, float], now: dict[str, float]) -> list[Line]:
    """Return a line a part, the slowest by its baseline first, then what only one side has."""
    lines = [Line(name, then.get(name), now.get(name)) for name in {**then, **now}]
    return sorted(lines, key=lambda line: (line.times is None, -(line.times or 0.0), line.name))


def culprits(lines: Sequence[Line], slower: float) -> list[Line]:
    """Return what is more than ``slower`` times as slow as its baseline."""
    return [line for line in lines if line.times is not None and line.times > slower]


def lost(lines: Sequence[Line]) -> list[Line]:
    """Return what the baseline has and was not measured now."""
    return [line for line in lines if line.now is None]


def table(record: dict[str, Any], here: dict[str, Any], lines: Sequence[Line], slower: float) -> str:
    """Return the comparison as text: on what, a line a part, and the verdict."""
    where = record["environment"]
    head = [f"baseline of {record['date']}, {where['git'] or 'no commit'}, on {where['device_name']}"]
    changed = [
        f"{key} {where[key]} then, {here[key]} now"
        for key in ("device_name", "cpu", "torch", "python", "threads")
        if where.get(key) != here.get(key)
    ]
    if changed:
        head.append(f"another machine or versions, so only large changes say something: {'; '.join(changed)}")
    width = max((len(line.name) for line in lines), default=4)
    head.append(f"{'part':<{width}}  baseline       now     times   (ratios to the calibration loop)")
    slow = culprits(lines, slower)
    for line in lines:
        then, now = ("-" if ratio is None else f"{ratio:.3f}" for ratio in (line.then, line.now))
        times = "-" if line.times is None else f"{line.times:.2f}"
        note = (
            "SLOWER"
            if line in slow
            else "new"
            if line.then is None
            else "not measured"
            if line.now is None
            else ""
        )
        head.append(f"{line.name:<{width}}  {then:>8}  {now:>8}  {times:>8}   {note}".rstrip())
    if missing := lost(lines):
        head.append(f"in the baseline, and not measured: {_named(missing)}")
    if slow:
        head.append(f"slower than {slower:g} times the baseline: {_named(slow)}")
    else:
        head.append(f"nothing{' else' if missing else ''} is over {slower:g} times its baseline")
    return "\n".join(head)


def _named(lines: Sequence[Line]) -> str:
    return ", ".join(line.name for line in lines)
