"""``make bench-gpu``: the whole GPU suite, in pieces, into one folder of eight files.

    python -m fastresnet.bench.gpu_suite [--out FOLDER] [--data DATA] [--all]

It installs nothing. Kernel tests (compiled), kernels, a short time-to-accuracy, loaders and throughput, each a process
of its own. After 9 minutes nothing more is started, and what still runs is soon ended; the same command, here or
wherever the folder is taken, goes on where it stopped, what failed coming last, so a machine that is to be had for ten
minutes at a time will do. The folder holds the records, ``suite.json`` (which stages are done), ``suite.log`` (all that
they said), ``page.md`` (every table) and the kernels' plot; the board's is drawn from its record.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import textwrap
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from fastresnet.atomic import write_atomic
from fastresnet.bench.gpu_stages import RECORDS, ROOT, Stage, stages
from fastresnet.bench.orphans import end_group, guarded
from fastresnet.errors import UserError

STATE, LOG, PAGE = "suite.json", "suite.log", "page.md"
PLOT = "kernels.png"
MARK = "<!-- bench {} -->"
# What fastresnet imports; pytest and hypothesis are for the tests alone, which are left out without them.
NEEDED = (
    *("torch", "torchvision", "numpy", "numba", "PIL", "pydantic", "typer", "rich", "safetensors"),
    *("matplotlib", "jinja2", "psutil"),
)
MINUTES = 9.0
ALL_OF_THEM_S = 60.0  # begun within them, a stage had all of the minutes
LATE_S = (
    30.0  # after the minutes; a stage that is told of them ends by itself, but for what it is in the midst of
)
LOOK_EVERY_S = 2.0


class Suite:
    """The suite in its folder.

    Args:
        folder: of the records; what is in it already is gone on with.
        stages: in order; the more often one failed in earlier starts, the later it comes.
        minutes: after them nothing is started, and what is under way has LATE_S to end. A stage that was ended so has
            failed where it had all of them.
        tell: told a line a stage.
    """

    def __init__(
        self, folder: Path, stages: Sequence[Stage], minutes: float, tell: Callable[[str], None]
    ) -> None:
        self.folder = folder
        self.stages = stages
        self.begun = time.monotonic()
        self.deadline = self.begun + 60 * minutes
        self.tell = tell
        folder.mkdir(parents=True, exist_ok=True)
        for torn in folder.glob(".*.tmp"):  # of a suite that was killed while it wrote
            torn.unlink(missing_ok=True)
        self.pages = self._kept_pages()
        self.state: dict[str, Any] = {"kind": "gpu-suite", "stages": {}}
        if (folder / STATE).exists():
            from fastresnet.bench.record import load_record

            self.state |= load_record(folder / STATE)

    def run(self) -> int:
        """Run what is left; return how many stages failed."""
        with tempfile.TemporaryDirectory(prefix="fastresnet-bench-gpu-", ignore_cleanup_errors=True) as name:
            work = Path(name)
            for record in RECORDS:
                if (self.folder / f"{record}.json").exists():
                    shutil.copy(self.folder / f"{record}.json", work)
            for stage in sorted(self.stages, key=self._failures):
                if self._is_done(stage):
                    continue
                if time.monotonic() >= self.deadline:
                    break
                self._run(stage, work)
        left = [stage.name for stage in self.stages if not self._is_done(stage)]
        if left:
            self.tell(f"left: {', '.join(left)}; the same command goes on")
        return sum(self._failures(stage) > 0 for stage in self.stages)

    def _noted(self, stage: Stage) -> dict[str, Any]:
        """Return what is known of the stage as it is now; nothing where its command has changed."""
        noted: dict[str, Any] = self.state["stages"].get(stage.name, {})
        return noted if noted.get("command") == list(stage.command[1:]) else {}

    def _is_done(self, stage: Stage) -> bool:
        return bool(self._noted(stage).get("done"))

    def _failures(self, stage: Stage) -> int:
        return int(self._noted(stage).get("failures", 0))

    def _run(self, stage: Stage, work: Path) -> None:
        out = work / f"{stage.record}.json"
        minutes = max(0.0, (self.deadline - time.monotonic()) / 60)
        filled = {"{minutes}": f"{minutes:.3f}", "{out}": str(out)}
        command = [filled.get(part, part) for part in stage.command]
        self.tell(f"{stage.name} ...")
        start, ended_late = time.monotonic(), False
        log = self.folder / LOG
        with open(log, "ab") as file:
            file.write(f"\n$ {stage.name}\n".encode())
            file.flush()
            offset = file.tell()
            process = subprocess.Popen(
                guarded(shlex.join(command)),  # so that nothing outlives the suite beside its next start
                cwd=ROOT,
                env={**os.environ, "TMPDIR": str(work)},
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
            try:
                while process.poll() is None:
                    try:
                        process.wait(LOOK_EVERY_S)
                    except subprocess.TimeoutExpired:
                        self._collect(work)  # what is measured is kept though this process be killed
                        if time.monotonic() >= self.deadline + LATE_S:
                            ended_late = True
                            break
            finally:
                end_group(process)
        said = log.read_bytes()[offset:].decode(errors="replace").strip().splitlines() or [""]
        self._collect(work)
        # pytest's 5 is that a file's tests were all left out at its top
        ended = process.returncode == 0 or (stage.record is None and process.returncode == 5)
        complete = ended and not self._unmeasured(stage, work)
        error = None if ended else f"exit {process.returncode}: {said[-1]}"
        if ended_late and not ended:
            had_all = start - self.begun < ALL_OF_THEM_S
            error = f"it took longer than {minutes:.2g} minutes" if had_all else None
        self.state["stages"][stage.name] = {
            "command": list(stage.command[1:]),
            "done": complete,
            "error": error,
            "failures": 0 if error is None else self._failures(stage) + 1,
            "said": said[-1] if stage.record is None else None,
            "seconds": round(time.monotonic() - start, 1),
        }
        self._write(STATE, (json.dumps(self.state, indent=1) + "\n").encode())
        how = "done" if complete else "stopped for want of time" if error is None else f"failed: {error}"
        self.tell(f"{stage.name}: {said[-1] if ended and stage.record is None else how}")

    def _unmeasured(self, stage: Stage, work: Path) -> bool:
        if stage.record is None:
            return False
        record = json.loads((work / f"{stage.record}.json").read_bytes())
        return bool(record.get("not_measured"))

    def _collect(self, work: Path) -> None:
        """Bring the records, the pages as one, and the plots into the folder."""
        for record in RECORDS:
            path = work / f"{record}.json"
            if path.exists():
                self._write(path.name, path.read_bytes())
            if path.with_suffix(".md").exists():
                self.pages[record] = path.with_suffix(".md").read_text(encoding="utf-8")
        shown = [f"{MARK.format(record)}\n{self.pages[record]}" for record in RECORDS if record in self.pages]
        if shown:
            self._write(PAGE, "\n".join(shown).encode())
        if (work / PLOT).exists():
            self._write(PLOT, (work / PLOT).read_bytes())

    def _kept_pages(self) -> dict[str, str]:
        """Return the tables that an earlier start has left, by record."""
        text = (self.folder / PAGE).read_text(encoding="utf-8") if (self.folder / PAGE).exists() else ""
        found = re.split("^" + MARK.format("([a-z-]+)") + "\n", text, flags=re.MULTILINE)[1:]
        return {
            record: page.rstrip("\n") + "\n" for record, page in zip(found[::2], found[1::2], strict=True)
        }

    def _write(self, name: str, content: bytes) -> None:
        path = self.folder / name
        if path.exists() and path.read_bytes() == content:
            return
        write_atomic(path, lambda file: file.write(content))


def missing(names: Sequence[str]) -> list[str]:
    """Return which of ``names`` cannot be imported here; why, where they are here."""
    found = []
    for name in names:
        try:
            if name != "torchvision":  # which import_torchvision alone may import
                importlib.import_module(name)
            elif importlib.util.find_spec(name) is None:
                found.append(name)
        except Exception as error:  # of what it imports itself, or of a library that cannot be loaded
            reason = textwrap.shorten(str(error), 100)
            absent = isinstance(error, ModuleNotFoundError) and error.name == name
            found.append(name if absent else f"{name} ({reason})")
    return found


def obstacle(rehearse: bool) -> str | None:
    """Return why the suite cannot run with this Python, in one line; None where it can."""
    lacking = missing(NEEDED if rehearse else (*NEEDED, "triton"))
    if lacking:
        packages = ", ".join("pillow" if name == "PIL" else name for name in lacking)
        return (
            f"{sys.executable} lacks {packages}, and nothing is installed here; name another Python with PYTHON=, or "
            "put them where PYTHONPATH leads"
        )
    if not rehearse:
        import torch

        if not torch.cuda.is_available():
            return "torch sees no CUDA GPU; --rehearse runs the suite's pieces in small on the CPU"
    return None


def usual_target(data: str | None) -> float:
    """Return the accuracy to reach on ``data``: the usual one of a known set, 0.9 of another."""
    from fastresnet.bench.board import USUAL_TARGETS
    from fastresnet.loaders.dataset import open_dataset

    return USUAL_TARGETS.get(open_dataset(data).name, 0.9)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run what is left of the suite.

    The exit code is 0, 1 where a stage failed, 2 where it cannot run here; 130 after Ctrl-C, 143 after SIGTERM.
    """
    parser = argparse.ArgumentParser(prog="make bench-gpu ARGS=...", description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("bench-results") / "gpu", help="the folder")
    parser.add_argument("--data", help="as for train [CIFAR-10, downloaded once; of a rehearsal, shapes]")
    parser.add_argument("--target", type=float, help="of time-to; the usual one of the data set")
    parser.add_argument("--minutes", type=float, default=MINUTES, help="start nothing after them")
    parser.add_argument("--all", action="store_true", help="every arch and batch size, boards of ten runs")
    parser.add_argument("--rehearse", action="store_true", help="in small, on the CPU")
    chosen = parser.parse_args(arguments)

    def tell(line: str) -> None:
        print(f"bench-gpu: {line}", flush=True)

    for signum in (signal.SIGTERM, signal.SIGINT):
        signal.signal(signum, lambda number, frame: sys.exit(128 + number))
    reason = obstacle(chosen.rehearse)
    if reason is not None:
        print(f"bench-gpu: error: {reason}", file=sys.stderr)
        return 2

    try:
        return run_suite(chosen, tell)
    except UserError as error:
        print(f"bench-gpu: error: {error}", file=sys.stderr)
        return 2


def run_suite(chosen: argparse.Namespace, tell: Callable[[str], None]) -> int:
    """Run what is left, as the command line says; return the exit code.

    Raises:
        UserError: no such data, or a folder that cannot be written or whose state cannot be read.
    """
    from fastresnet.bench.record import check_out

    check_out(chosen.out / STATE)
    if chosen.data is None and chosen.rehearse:
        chosen.data = "shapes"
    if chosen.data is not None and Path(chosen.data).exists():
        chosen.data = str(Path(chosen.data).absolute())  # the stages run in the source tree
    target = chosen.target or usual_target(chosen.data)
    plan = stages(sys.executable, chosen.data, target, everything=chosen.all, rehearse=chosen.rehearse)
    lacking = missing(("pytest", "hypothesis"))
    if lacking:
        tell(f"the kernel tests are left out: {', '.join(lacking)} is not installed")
        plan = [stage for stage in plan if stage.record is not None]
    failed = Suite(chosen.out, plan, chosen.minutes, tell).run()
    tell(f"records in {chosen.out}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
