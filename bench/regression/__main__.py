"""``python -m fastresnet.bench.regression save|check``: what ``make bench-save`` and ``make bench-check`` run."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from fastresnet.bench.regression.gate import (
    BASELINE,
    PASSES,
    SLOWER,
    changed,
    check,
    culprits,
    lost,
    save,
    table,
)
from fastresnet.engine.machine import device_name, resolve_device, resolve_threads
from fastresnet.environment import environment
from fastresnet.errors import UserError


def main(arguments: Sequence[str] | None = None) -> int:
    """Save or check; the exit code is 1 where something is slower or gone, 2 after a mistake, 130 after Ctrl-C."""
    parser = argparse.ArgumentParser(prog="make bench-save, make bench-check")
    parser.add_argument("what", choices=["save", "check"])
    parser.add_argument("--baseline", type=Path, default=BASELINE)
    parser.add_argument(
        "--slower", type=float, default=SLOWER, help=f"times the baseline that a part may take [{SLOWER:g}]"
    )
    parser.add_argument("--passes", type=int, default=PASSES, help=f"of a baseline [{PASSES}]")
    parser.add_argument("--only", help="of check: parts whose names match, as pytest's -k")
    chosen = parser.parse_args(arguments)
    extra = ["-k", chosen.only] if chosen.only else []
    try:
        if not 1 < chosen.slower < float("inf"):
            raise UserError(f"--slower is {chosen.slower:g}; it must be above 1, as in 1.5")
        if chosen.passes < 1:
            raise UserError(f"--passes is {chosen.passes}; it must be at least 1")
        if chosen.what == "save":
            if extra:
                raise UserError(
                    "--only is for check: a baseline has every part, or it would let the others pass"
                )
            record, differing = save(chosen.baseline, chosen.passes)
            print(f"baseline of {len(record['parts'])} parts in {chosen.baseline}")
            for name, times in differing.items():
                print(f"{name}: its quickest passes differ {times:.2f} times, and it may take as much longer")
            return 0
        record, lines = check(chosen.baseline, chosen.slower, extra)
        if chosen.only:  # what it leaves out is not missing
            lines = [line for line in lines if line.now is not None or line.skipped]
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        return 130
    here = environment(device_name(resolve_device("auto")), resolve_threads(0))
    print(table(record, here, lines, chosen.slower))
    gone = lost(lines, elsewhere=bool(changed(record, here)))
    return 1 if culprits(lines, chosen.slower) or gone else 0


if __name__ == "__main__":
    sys.exit(main())
