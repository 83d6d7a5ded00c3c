"""The baseline, and what has become slower than it."""

from __future__ import annotations

import json
import math
import os
import re
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple
from xml.etree import ElementTree

from fastresnet.bench.record import load_record, make_record, write_record
from fastresnet.engine.machine import device_name, resolve_device, resolve_threads
from fastresnet.errors import UserError

FOLDER = Path(__file__).resolve().parent
BASELINE = Path("bench-results") / "regression.json"
SLOWER = 1.3  # times the baseline; to be raised where two baselines of one commit differ by more
PASSES = 2  # of a baseline
TRIES = (
    3  # of what looks slower, before it is called so; one less are added to a baseline's passes that differ
)


class Line(NamedTuple):
    """One part: its ratio to the calibration loop then and now, and how many times it is as slow.

    ``then`` or ``now`` is None where the part was not measured. ``spread`` is as in :class:`Part`; ``skipped`` says why
    this machine cannot have the part, and is empty where it can.
    """

    name: str
    then: float | None
    spread: float
    now: float | None
    skipped: str

    @property
    def times(self) -> float | None:
        """Now over then; None where one is missing."""
        return None if self.then is None or self.now is None else self.now / self.then

    def limit(self, slower: float) -> float:
        """Return how many times its baseline it may take: ``slower``, or what that one's quickest passes differ by."""
        return max(slower, self.spread)


class Part(NamedTuple):
    """Of a baseline: a part's ratio, None where it is not in it, and its second quickest pass over its quickest.

    So one pass that something disturbed neither moves the part's figure nor lets more pass.
    """

    ratio: float | None
    spread: float

    @classmethod
    def of(cls, passes: Sequence[float]) -> Part:
        """Return it of its passes; raises ValueError where there is none, or one is no ratio of times."""
        for ratio in passes:
            if not 0 < ratio < math.inf:
                raise ValueError(f"{ratio} is no ratio of times")
        quickest, *others = sorted(passes)
        return cls(float(quickest), min(others, default=quickest) / quickest)


class Measured(NamedTuple):
    """Each part's median ratio to the calibration loop, and why parts were skipped."""

    ratios: dict[str, float]
    skipped: dict[str, str]


def run_benchmarks(selected: Sequence[str] = (), extra: Sequence[str] = ()) -> Measured:
    """Measure the parts that are ``selected`` by name, empty for all.

    Raises:
        UserError: pytest or pytest-benchmark is missing, or a benchmark failed.
    """
    with tempfile.TemporaryDirectory(prefix="fastresnet-regression-") as name:
        out, outcomes = Path(name) / "out.json", Path(name) / "out.xml"
        places = [f"{FOLDER / 'test_parts.py'}::{part}" for part in selected] or [str(FOLDER)]
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *places]
        command += [f"--benchmark-json={out}", "--benchmark-quiet", f"--junitxml={outcomes}", *extra]
        # A pytest around this one would have its word in it: under xdist, nothing is timed.
        environment = {key: value for key, value in os.environ.items() if not key.startswith("PYTEST_")}
        done = subprocess.run(command, cwd=FOLDER.parents[1], env=environment, capture_output=True, text=True)
        if done.returncode == 5:  # pytest collected nothing
            raise UserError("no part was measured; `pytest bench/regression --collect-only -q` lists them")
        if done.returncode or not out.exists():
            raise UserError(f"the benchmarks did not run to their end: {_why(done.stdout + done.stderr)}")
        return Measured(read_ratios(json.loads(out.read_bytes())), read_skipped(outcomes.read_text()))


def _why(said: str) -> str:
    """Return the first of pytest's lines that says what went wrong, else its last."""
    lines = said.strip().splitlines() or ["it said nothing"]
    telling = (line for line in lines if re.search(r"^(FAILED|ERROR) |error: ", line))
    return next(telling, lines[-1])


def read_ratios(result: dict[str, Any]) -> dict[str, float]:
    """Return each part's median ratio of what pytest-benchmark wrote."""
    return {entry["name"]: statistics.median(entry["extra_info"]["ratios"]) for entry in result["benchmarks"]}


def read_skipped(junit: str) -> dict[str, str]:
    """Return why each part was skipped that was, of what pytest writes as JUnit's XML."""
    cases = ElementTree.fromstring(junit).iter("testcase")
    found = ((case.attrib["name"], case.find("skipped")) for case in cases)
    return {name: skipped.attrib["message"] for name, skipped in found if skipped is not None}


def save(path: Path, passes: int = PASSES) -> tuple[dict[str, Any], dict[str, float]]:
    """Measure every part ``passes`` times, those again whose passes differ, and write the baseline.

    Returns the baseline, and by how many times the passes of a part differ still where that is more than SLOWER.
    """
    found: dict[str, list[float]] = {}

    def measure(selected: Sequence[str] = ()) -> None:
        for name, ratio in run_benchmarks(selected).ratios.items():
            found.setdefault(name, []).append(ratio)

    def differing() -> dict[str, float]:
        spreads = {name: Part.of(found[name]).spread for name in sorted(found)}
        return {name: spread for name, spread in spreads.items() if spread > SLOWER}

    for _ in range(passes):
        measure()
    for _ in range(TRIES - 1):
        if not differing():
            break
        measure(list(differing()))
    record = make_record(
        "regression",
        device_name(resolve_device("auto")),
        resolve_threads(0),
        parts={name: {"passes": found[name]} for name in sorted(found)},
    )
    record["command"] = "make bench-save"
    write_record(path, record)
    return record, differing()


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
    parts = _parts_then(record)
    if parts is None:
        raise UserError(f"{path} is no baseline of `make bench-save`; make one, or name another --baseline")
    now = run_benchmarks(extra=extra)
    for _ in range(TRIES - 1):
        suspects = culprits(compare(parts, now), slower)
        if not suspects:
            break
        again = run_benchmarks([line.name for line in suspects], extra).ratios
        now.ratios.update({name: min(ratio, now.ratios[name]) for name, ratio in again.items()})
    return record, compare(parts, now)


def _parts_then(record: dict[str, Any]) -> dict[str, Part] | None:
    """Return a baseline's parts by name; None where the record is no baseline."""
    where = record.get("environment")
    told = isinstance(where, dict) and {"git", "device_name"} <= where.keys() and "date" in record
    if record["kind"] != "regression" or not told:
        return None
    try:
        return {name: Part.of(part["passes"]) for name, part in record["parts"].items()}
    except (LookupError, TypeError, ValueError, AttributeError):
        return None


def compare(then: dict[str, Part], now: Measured) -> list[Line]:
    """Return a line a part, the slowest by its baseline first, then what only one side has."""
    lines = [
        Line(name, *then.get(name, Part(None, 1.0)), now.ratios.get(name), now.skipped.get(name, ""))
        for name in {**then, **now.ratios}
    ]
    return sorted(lines, key=lambda line: (line.times is None, -(line.times or 0.0), line.name))


def culprits(lines: Sequence[Line], slower: float) -> list[Line]:
    """Return what takes more times its baseline than its limit."""
    return [line for line in lines if line.times is not None and line.times > line.limit(slower)]


def lost(lines: Sequence[Line], *, elsewhere: bool) -> list[Line]:
    """Return what the baseline has and was not measured now; ``elsewhere``, not what that machine cannot have."""
    return [line for line in lines if line.now is None and not (elsewhere and line.skipped)]


def changed(record: dict[str, Any], here: dict[str, Any]) -> list[str]:
    """Return what is another machine's or version's than the baseline's, in words."""
    where = record["environment"]
    return [
        f"{key} {where.get(key)} then, {here.get(key)} now"  # baselines of earlier versions have fewer
        for key in ("device_name", "cpu", "instructions", "cores", "torch", "python", "threads")
        if where.get(key) != here.get(key)
    ]


def table(record: dict[str, Any], here: dict[str, Any], lines: Sequence[Line], slower: float) -> str:
    """Return the comparison as text: on what, a line a part, and the verdict."""
    where = record["environment"]
    head = [f"baseline of {record['date']}, {where['git'] or 'no commit'}, on {where['device_name']}"]
    differing = changed(record, here)
    if differing:
        head.append(
            f"another machine or versions, so only large changes say something: {'; '.join(differing)}"
        )
    width = max((len(line.name) for line in lines), default=4)
    head.append(
        f"{'part':<{width}}  baseline       now     times     limit   (ratios to the calibration loop)"
    )
    slow, missing = culprits(lines, slower), lost(lines, elsewhere=bool(differing))
    for line in lines:
        then, now = ("-" if ratio is None else f"{ratio:.3f}" for ratio in (line.then, line.now))
        times = "-" if line.times is None else f"{line.times:.2f}"
        if line in slow:
            note = "SLOWER"
        elif line.then is None:
            note = "new"
        else:
            note = "" if line.now is not None else f"not measured: {line.skipped or 'no such part'}"
        head.append(
            f"{line.name:<{width}}  {then:>8}  {now:>8}  {times:>8}  {line.limit(slower):>8.2f}   {note}".rstrip()
        )
    if missing:
        head.append(f"in the baseline, and not measured: {_named(missing)}")
    if slow:
        head.append(f"slower than the limit: {_named(slow)}")
    else:
        head.append(f"nothing{' else' if missing else ''} is over its limit")
    return "\n".join(head)


def _named(lines: Sequence[Line]) -> str:
    return ", ".join(line.name for line in lines)
