"""``make bench-gpu``: the whole GPU suite, in pieces, into one folder of nine files.

    python -m fastresnet.bench.gpu_suite [--out FOLDER] [--data DATA] [--all]

It installs nothing. Kernel tests (compiled), kernels, throughput, a short time-to-accuracy and loaders, each a process
of its own. After 9 minutes nothing more is started; the same command, here or wherever the folder is taken, goes on
where it stopped, so a machine that is to be had for ten minutes at a time will do. The folder holds the records,
``suite.json`` (which stages are done), ``suite.log`` (all that they said), ``page.md`` (every table) and plots of the
kernels and of the board.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastresnet.atomic import write_atomic
from fastresnet.bench.orphans import die_with_parent

ROOT = Path(__file__).resolve().parents[1]
STATE, LOG, PAGE = "suite.json", "suite.log", "page.md"
PLOTS = ("kernels.png", "time-to.png")
MARK = "<!-- bench {} -->"
RECORDS = ("kernels", "throughput", "time-to", "loaders")
# What fastresnet imports; pytest and hypothesis are for the tests alone, which are left out without them.
NEEDED = (
    *("torch", "torchvision", "numpy", "numba", "PIL", "pydantic", "typer", "rich", "safetensors"),
    *("matplotlib", "jinja2", "psutil"),
)
KERNEL_TESTS = (
    *("test_kernels.py", "test_kernel_ops.py", "test_norm_act.py", "test_draws_triton.py"),
    *("test_dispatch.py", "test_sync_norm.py", "test_kernels_compile.py", "test_graphs_on_gpu.py"),
)
MINUTES = 9.0
LOOK_EVERY_S = 2.0


@dataclass(frozen=True, kw_only=True)
class Stage:
    """A piece of the suite.

    Attributes:
        name: in ``suite.json``; starts over when its command changes.
        command: what is run; ``{minutes}`` in it is the time left, ``{out}`` the record's path.
        record: its record's name in the folder; None for a test.
    """

    name: str
    command: tuple[str, ...]
    record: str | None = None


def stages(python: str, data: str | None, target: float, *, everything: bool, rehearse: bool) -> list[Stage]:
    """Return the suite's stages in order; a rehearsal is of networks of a second, on the CPU."""
    named = () if data is None else ("--data", data)
    bench = (python, "-m", "fastresnet", "bench")
    resume = ("--minutes", "{minutes}", "--out", "{out}")
    device = ("--device", "cpu" if rehearse else "cuda")
    tiny = ("--batch-size", "16", "--rounds", "1", "--steps", "1", "--rows", "student,fastresnet")
    activations = ("--activation", "relu,gelu")  # the reports', and what `fast` has for it
    archs = "resnet8,resnet24,resnet86"
    every = (
        "resnet10-1,resnet10-2,resnet12,resnet16,resnet20,resnet24,resnet32,resnet48,resnet86,resnet8,"
        "n3-b2-c85-p8,improved-resnet,resnet18-c42,fastresnet8"
    )
    if rehearse:
        sizes = {
            "kernels": ("--arch", "n1-b1-c4", "--batch-size", "2", "--rounds", "1"),
            "throughput": ("--arch", "n2-b1-c4", *tiny),
            "loaders": ("--quick", "--workers", "0", "--batch-size", "16"),
            "time-to": (
                *("--archs", "n2-b1-c4", "--epochs", "1", "--runs", "2", "--set", "batch_size=16"),
                *("--compile", "off", "--threads", "1"),
            ),
        }
    elif everything:
        sizes = {
            "kernels": ("--arch", every, *activations, "--batch-size", "512"),
            "throughput": ("--arch", every, "--batch-size", "128,512,1024"),
            "loaders": ("--quick",),  # the whole table cannot be gone on with after ten minutes
            "time-to": ("--runs", "10", "--search", "--epochs", "32"),
        }
    else:
        sizes = {
            "kernels": ("--arch", "resnet24", *activations, "--batch-size", "512"),
            "throughput": ("--arch", archs, "--batch-size", "512"),
            "loaders": ("--quick",),
            "time-to": ("--archs", "resnet8,resnet24,fastest", "--runs", "3"),
        }
    tests = ("test_kernels_geometry.py",) if rehearse else KERNEL_TESTS
    pytest = (python, "-m", "pytest", "-p", "no:cacheprovider")
    return [
        *(Stage(name=f"tests/{file}", command=(*pytest, str(ROOT / "tests" / file))) for file in tests),
        Stage(
            name="kernels", command=(*bench, "kernels", *sizes["kernels"], *device, *resume), record="kernels"
        ),
        Stage(
            name="throughput",
            command=(*bench, "throughput", *sizes["throughput"], *named, *device, *resume),
            record="throughput",
        ),
        Stage(
            name="time-to",
            command=(
                *(*bench, "time-to", *sizes["time-to"], *named, "--target", f"{target:g}"),
                *(*device, *resume),
            ),
            record="time-to",
        ),
        Stage(
            name="loaders",
            command=(*bench, "loaders", *sizes["loaders"], *named, *device, "--out", "{out}"),
            record="loaders",
        ),
    ]


class Suite:
    """The suite in its folder.

    Args:
        folder: of the records; what is in it already is gone on with.
        stages: in order.
        minutes: after them nothing is started.
        tell: told a line a stage.
    """

    def __init__(
        self, folder: Path, stages: Sequence[Stage], minutes: float, tell: Callable[[str], None]
    ) -> None:
        self.folder = folder
        self.stages = stages
        self.deadline = time.monotonic() + 60 * minutes
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
        with tempfile.TemporaryDirectory(prefix="fastresnet-bench-gpu-") as name:
            work = Path(name)
            for record in RECORDS:
                if (self.folder / f"{record}.json").exists():
                    shutil.copy(self.folder / f"{record}.json", work)
            for stage in self.stages:
                if self._is_done(stage):
                    continue
                if time.monotonic() >= self.deadline:
                    break
                self._run(stage, work)
        left = [stage.name for stage in self.stages if not self._is_done(stage)]
        failed = [name for name in left if self.state["stages"].get(name, {}).get("error")]
        if left:
            self.tell(f"left: {', '.join(left)}; the same command goes on")
        return len(failed)

    def _is_done(self, stage: Stage) -> bool:
        noted = self.state["stages"].get(stage.name, {})
        return bool(noted.get("done")) and noted["command"] == list(stage.command[1:])

    def _run(self, stage: Stage, work: Path) -> None:
        out = work / f"{stage.record}.json"
        minutes = max(0.0, (self.deadline - time.monotonic()) / 60)
        filled = {"{minutes}": f"{minutes:.3f}", "{out}": str(out)}
        command = [filled.get(part, part) for part in stage.command]
        self.tell(f"{stage.name} ...")
        start = time.monotonic()
        log = self.folder / LOG
        with open(log, "ab") as file:
            file.write(f"\n$ {stage.name}\n".encode())
            file.flush()
            offset = file.tell()
            process = subprocess.Popen(
                command,
                cwd=ROOT,
                stdout=file,
                stderr=subprocess.STDOUT,
                preexec_fn=die_with_parent,  # so that none outlives the suite beside its next start
            )
            try:
                while process.poll() is None:
                    try:
                        process.wait(LOOK_EVERY_S)
                    except subprocess.TimeoutExpired:
                        self._collect(work)  # what is measured is kept though this process be killed
            finally:
                if process.poll() is None:
                    process.terminate()
                    process.wait()
        said = log.read_bytes()[offset:].decode(errors="replace").strip().splitlines() or [""]
        self._collect(work)
        # pytest's 5 is that a file's tests were all left out at its top
        ended = process.returncode == 0 or (stage.record is None and process.returncode == 5)
        complete = ended and not self._unmeasured(stage, work)
        self.state["stages"][stage.name] = {
            "command": list(stage.command[1:]),
            "done": complete,
            "error": None if ended else f"exit {process.returncode}: {said[-1]}",
            "said": said[-1] if stage.record is None else None,
            "seconds": round(time.monotonic() - start, 1),
        }
        self._write(STATE, (json.dumps(self.state, indent=1) + "\n").encode())
        how = "done" if complete else "stopped for want of time" if ended else f"failed with {said[-1]}"
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
        for plot in PLOTS:
            if (work / plot).exists():
                self._write(plot, (work / plot).read_bytes())

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
    """Return which of ``names`` cannot be imported here."""
    return [name for name in names if importlib.util.find_spec(name) is None]


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
    """Run what is left of the suite; the exit code is 0, 1 where a stage failed, 2 where it cannot run here."""
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

    reason = obstacle(chosen.rehearse)
    if reason is not None:
        print(f"bench-gpu: error: {reason}", file=sys.stderr)
        return 2
    signal.signal(signal.SIGTERM, lambda signum, frame: sys.exit(128 + signum))
    from fastresnet.errors import UserError

    try:
        return run_suite(chosen, tell)
    except UserError as error:
        print(f"bench-gpu: error: {error}", file=sys.stderr)
        return 2


def run_suite(chosen: argparse.Namespace, tell: Callable[[str], None]) -> int:
    """Run what is left, as the command line says; return the exit code.

    Raises:
        UserError: no such data, or a folder whose state cannot be read.
    """
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
