"""``make bench-gpu``: killed, out of time, failing, and gone on with; its stages are commands that exist."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
import typer

from fastresnet.bench import gpu_suite
from fastresnet.bench.gpu_stages import KERNEL_TESTS, RECORDS, ROOT, Stage, stages
from fastresnet.bench.gpu_suite import Suite, main, obstacle
from fastresnet.cli.main import app
from fastresnet.loaders import dataset

FAR = 120.0

pytestmark = pytest.mark.usefixtures("signals_of_its_own")  # main takes signals for the process it is in

# Stands for a measurement: a case every 50 ms, written each, gone on with.
MEASURE = """
import json, sys, time
from pathlib import Path
out, minutes = Path(sys.argv[1]), float(sys.argv[2])
record = json.loads(out.read_text()) if out.exists() else {"cases": []}
end = time.monotonic() + 60 * minutes
while len(record["cases"]) < 12 and time.monotonic() < end:
    time.sleep(0.05)
    record["cases"].append(len(record["cases"]))
    record["not_measured"] = list(range(len(record["cases"]), 12))
    temporary = out.with_suffix(".tmp")
    temporary.write_text(json.dumps(record))
    temporary.replace(out)
    out.with_suffix(".md").write_text(f"# Kernels\\n{len(record['cases'])} cases\\n")
"""
DRIVER = """
import sys
from pathlib import Path
from fastresnet.bench import gpu_suite
from fastresnet.bench.gpu_stages import Stage
gpu_suite.LOOK_EVERY_S = 0.02
folder, script = Path(sys.argv[1]), sys.argv[2]
measure = (sys.executable, "-S", script, "{out}", "{minutes}")
plan = [
    Stage(name="tests/one", command=(sys.executable, "-S", "-c", "print('3 passed')")),
    Stage(name="kernels", command=measure, record="kernels"),
]
sys.exit(gpu_suite.Suite(folder, plan, float(sys.argv[3]), print).run())
"""
MAIN = """
import sys, time
from fastresnet.bench import gpu_suite
def stuck(*_):
    print("in it", flush=True)
    time.sleep(300)
gpu_suite.obstacle = lambda rehearse: None
setattr(gpu_suite, sys.argv[1], stuck)
sys.exit(gpu_suite.main(sys.argv[2:]))
"""


def start(folder: Path, minutes: float = 5) -> subprocess.Popen[str]:
    script = folder.with_suffix(".py")
    script.write_text(MEASURE)
    command = [sys.executable, "-c", DRIVER, str(folder), str(script), str(minutes)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT)


def is_alive(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def read(folder: Path, name: str) -> Any:
    return json.loads((folder / name).read_text())


def test_killed_it_goes_on_where_it_stopped(tmp_path: Path) -> None:
    folder = tmp_path / "gpu"
    process = start(folder)
    end = time.monotonic() + FAR
    try:
        while not (folder / "kernels.json").exists() or len(read(folder, "kernels.json")["cases"]) < 3:
            assert process.poll() is None and time.monotonic() < end
            time.sleep(0.005)
        os.kill(process.pid, signal.SIGKILL)
    finally:
        process.kill()
        process.communicate()
    (folder / ".page.md.1.tmp").write_text("half")  # as it is where it was killed while it wrote
    kept = read(folder, "kernels.json")["cases"]
    assert 3 <= len(kept) < 12 and list(read(folder, "suite.json")["stages"]) == ["tests/one"]

    # Out of time it starts nothing, and says what is left.
    said, _ = start(folder, minutes=0).communicate(timeout=FAR)
    assert said == "left: kernels; the same command goes on\n"

    again = start(folder)
    said, _ = again.communicate(timeout=FAR)
    assert again.returncode == 0 and said == "kernels ...\nkernels: done\n"  # the tests were done
    assert read(folder, "kernels.json")["cases"] == list(range(12))
    done = read(folder, "suite.json")["stages"]
    assert done["tests/one"]["said"] == "3 passed" and all(stage["done"] for stage in done.values())
    assert (folder / "page.md").read_text() == "<!-- bench kernels -->\n# Kernels\n12 cases\n"
    assert (folder / "suite.log").read_text().count("$ kernels") == 2
    assert sorted(path.name for path in folder.iterdir()) == [
        *("kernels.json", "page.md", "suite.json", "suite.log"),
    ]


@pytest.mark.parametrize("within", ["obstacle", "run_suite"])
def test_ctrl_c_ends_it_without_a_traceback(within: str, tmp_path: Path) -> None:
    """As SIGTERM did; Python's own way is a traceback. Looking for what it needs takes seconds too."""
    command = [sys.executable, "-c", MAIN, within, "--rehearse", "--out", str(tmp_path / "gpu")]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT, start_new_session=True
    )
    assert process.stdout is not None
    try:
        assert process.stdout.readline() == "in it\n"
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=FAR)
    finally:
        process.kill()
    assert process.returncode == 130 and "Traceback" not in said


def test_a_stage_that_runs_out_of_time_or_fails_is_done_again(tmp_path: Path) -> None:
    script = tmp_path / "measure.py"
    script.write_text(MEASURE)
    measure = (sys.executable, "-S", str(script), "{out}", "{minutes}")
    fails = Stage(
        name="tests/bad", command=(sys.executable, "-S", "-c", "import sys; sys.exit('no such GPU')")
    )
    short = Stage(name="kernels", command=(*measure[:-1], "0.002"), record="kernels")
    told: list[str] = []
    assert Suite(tmp_path / "out", [fails, short], 5, told.append).run() == 1
    state = read(tmp_path / "out", "suite.json")["stages"]
    assert state["tests/bad"]["error"] == "exit 1: no such GPU" and not state["kernels"]["done"]
    assert "kernels: stopped for want of time" in told and "tests/bad: failed: exit 1: no such GPU" in told
    assert told[-1] == "left: tests/bad, kernels; the same command goes on"
    (tmp_path / "out" / "page.md").write_text("<!-- bench loaders -->\n# Loaders\nold\n")

    passes = Stage(name="tests/bad", command=(sys.executable, "-S", "-c", "print('1 passed')"))
    whole = Stage(name="kernels", command=measure, record="kernels")
    assert Suite(tmp_path / "out", [passes, whole], 5, told.append).run() == 0
    assert all(stage["done"] for stage in read(tmp_path / "out", "suite.json")["stages"].values())
    # The table of a stage that did not run this time is kept.
    page = (tmp_path / "out" / "page.md").read_text()
    assert page.startswith("<!-- bench kernels -->\n# Kernels\n12 cases\n") and "# Loaders\nold\n" in page


def test_what_failed_comes_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, flag = tmp_path / "out", tmp_path / "quick"
    monkeypatch.setattr(gpu_suite, "LATE_S", 0.0)
    monkeypatch.setattr(gpu_suite, "LOOK_EVERY_S", 0.02)

    def stage(name: str, program: str) -> Stage:
        return Stage(name=f"tests/{name}", command=(sys.executable, "-S", "-c", program))

    slow = f"import os, time; os.path.exists({str(flag)!r}) or time.sleep(60); print('2 passed')"
    long, good = stage("long", slow), stage("good", "print('1 passed')")
    bad = stage("bad", "raise SystemExit('no')")

    def begun(plan: list[Stage], minutes: float = 5) -> tuple[int, list[str]]:
        told: list[str] = []
        failed = Suite(folder, plan, minutes, told.append).run()
        return failed, [line[6:].removesuffix(" ...") for line in told if line.endswith(" ...")]

    # One that had all of the time and did not end has failed; one that had the rest of it has not.
    assert begun([long], 0.005) == (1, ["long"])
    assert "it took longer than" in read(folder, "suite.json")["stages"]["tests/long"]["error"]
    assert begun([long, bad, good], 0.1)[1] == ["bad", "good", "long"]
    monkeypatch.setattr(gpu_suite, "ALL_OF_THEM_S", 0.0)
    assert begun([long], 0.005)[0] == 0 and not read(folder, "suite.json")["stages"]["tests/long"]["done"]

    # Of two that fail the one that failed less often comes first, and first of all comes what has not.
    assert begun([bad]) == (1, ["bad"])
    flag.touch()
    worse = stage("worse", "raise SystemExit('no')")
    assert begun([bad, worse, long]) == (2, ["worse", "long", "bad"])
    assert begun([bad, worse]) == (2, ["worse", "bad"])
    changed = Stage(name="tests/bad", command=(*bad.command, "changed"))
    assert begun([worse, changed]) == (2, ["bad", "worse"])


def test_nothing_that_a_stage_started_outlives_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_suite, "LATE_S", 0.0)
    monkeypatch.setattr(gpu_suite, "LOOK_EVERY_S", 0.02)
    written = tmp_path / "pid"
    program = (
        "import os, subprocess, sys, time\n"
        "child = subprocess.Popen([sys.executable, '-S', '-c', 'import time; time.sleep(600)'])\n"
        f"open({str(written)!r} + '.tmp', 'w').write(str(child.pid))\n"
        f"os.rename({str(written)!r} + '.tmp', {str(written)!r})\n"
        "time.sleep(600)\n"
    )
    stage = Stage(name="tests/parent", command=(sys.executable, "-S", "-c", program))
    suite = Suite(tmp_path / "out", [stage], 5, print)

    def collect(work: Path) -> None:
        if written.exists():
            suite.deadline = 0.0

    monkeypatch.setattr(suite, "_collect", collect)
    suite.run()
    child, end = int(written.read_text()), time.monotonic() + FAR
    try:
        while is_alive(child):
            assert time.monotonic() < end
            time.sleep(0.01)
    finally:
        if is_alive(child):
            os.kill(child, signal.SIGKILL)


@pytest.mark.parametrize("everything", [False, True])
@pytest.mark.parametrize("rehearse", [False, True])
@pytest.mark.parametrize("data", [None, "some.tar"])
def test_stages_are_commands_that_exist(everything: bool, rehearse: bool, data: str | None) -> None:
    bench = typer.main.get_command(app).commands["bench"].commands  # type: ignore[attr-defined]
    plan = stages("python", data, 0.9, everything=everything, rehearse=rehearse)
    for stage in plan:
        takes_data = stage.record not in (None, "kernels")
        assert ("--data" in stage.command) == (takes_data and data is not None)
        if stage.record is None:
            assert Path(stage.command[-1]).is_file()
            continue
        assert stage.command[:4] == ("python", "-m", "fastresnet", "bench")
        filled = [part.format(minutes=1, out="x.json") for part in stage.command[5:]]
        bench[stage.command[4]].make_context(stage.command[4], filled)
    assert [stage.record for stage in plan if stage.record] == list(RECORDS)
    assert all((ROOT / "tests" / name).is_file() for name in KERNEL_TESTS)


def test_a_python_that_lacks_something_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(gpu_suite, "NEEDED", ("torch", "no_such_module"))
    assert main(["--rehearse"]) == 2
    said = capsys.readouterr().err
    assert (
        said.count("\n") == 1 and "lacks no_such_module, and nothing is installed here; name another" in said
    )


@pytest.mark.parametrize(
    ("typed", "data", "target"),
    [([], None, "0.94"), (["--rehearse"], "shapes", "0.9"), (["--data", "shapes"], "shapes", "0.9")],
)
def test_data_is_what_it_is_for_train_but_of_a_rehearsal(
    typed: list[str], data: str | None, target: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    planned: list[Stage] = []
    opened = {None: "CIFAR-10", "shapes": "shapes"}
    monkeypatch.setattr(gpu_suite, "obstacle", lambda rehearse: None)
    monkeypatch.setattr(dataset, "open_dataset", lambda data: SimpleNamespace(name=opened[data]))
    monkeypatch.setattr(Suite, "run", lambda self: planned.extend(self.stages) or 0)
    assert main([*typed, "--out", str(tmp_path / "gpu")]) == 0
    (board,) = (stage.command for stage in planned if stage.name == "time-to")
    assert board[board.index("--target") + 1] == target
    assert (board[board.index("--data") + 1] if "--data" in board else None) == data


def test_a_package_that_lacks_what_it_imports_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "half_there.py").write_text("import no_such_core\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert gpu_suite.missing(["json", "half_there", "no_such_module"]) == [
        *("half_there (No module named 'no_such_core')", "no_such_module"),
    ]


def test_without_a_gpu_it_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(gpu_suite, "missing", lambda names: [name for name in names if name == "triton"])
    assert obstacle(rehearse=True) is None
    assert "lacks triton, and nothing" in str(obstacle(rehearse=False)), "or its tests would be left out"
    monkeypatch.setattr(gpu_suite, "missing", lambda names: [])
    assert "torch sees no CUDA GPU; --rehearse" in str(obstacle(rehearse=False))


def test_the_suite_is_loaded_without_what_it_checks_for() -> None:
    """It must say what is missing, and so may need none of it to start."""
    program = "import sys; import fastresnet.bench.gpu_suite; print(sorted({'pydantic','torch'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT)
    assert done.stdout == "[]\n", done.stderr


def test_mistakes_are_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    own = ["--rehearse", "--out", str(tmp_path / "records")]
    assert main([*own, "--data", str(tmp_path / "none")]) == 2
    said = capsys.readouterr().err.strip()
    assert said.startswith("bench-gpu: error: ") and "none" in said and "\n" not in said
    (tmp_path / "records").mkdir()
    (tmp_path / "records" / gpu_suite.STATE).write_text('{"kind": "gpu-su')
    assert main(own) == 2
    assert "is no record: it is not JSON" in capsys.readouterr().err
    (tmp_path / "file").touch()
    assert main(["--rehearse", "--out", str(tmp_path / "file")]) == 2
    assert f"cannot write {tmp_path / 'file' / gpu_suite.STATE}: " in capsys.readouterr().err
    assert main(["--rehearse", "--out", "/proc/self"]) == 2, "a folder that is there, and takes no file"
    assert "cannot write /proc/self/" in capsys.readouterr().err
