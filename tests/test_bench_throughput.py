"""``fastresnet bench throughput``: the rows between the student's loop and ours, and what is left out and why."""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from tiny_runs import write_tiny
from train_processes import FAR, spawned, started
from typer.testing import CliRunner, Result

from fastresnet.arch import get_arch
from fastresnet.assembly import Data, open_data
from fastresnet.bench import ceilings, throughput
from fastresnet.bench.ceilings import Ceilings
from fastresnet.bench.ladder import CHANGE, OURS, ROWS, STUDENT, ladder
from fastresnet.bench.loop_process import Loop, LoopProcess
from fastresnet.bench.student import Changes, Student
from fastresnet.bench.throughput_page import label_of, to_markdown
from fastresnet.cli.main import app
from fastresnet.engine.listener import Listener
from fastresnet.errors import UserError
from fastresnet.recipe import load_recipe
from fastresnet.run import RunConfig

RECIPE = load_recipe("fast").with_overrides({"arch": "n2-b1-c8", "activation": "none", "batch_size": 16})
CPU = torch.device("cpu")


@pytest.fixture
def data(tmp_path: Path) -> Data:
    path = write_tiny(tmp_path / "tiny.npz")
    return open_data(RECIPE, RunConfig(data=str(path)), Listener())


def bench(*arguments: str | Path) -> Result:
    return CliRunner().invoke(app, ["bench", "throughput", *map(str, arguments)])


def test_the_student_against_ours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Real processes, killed by nothing; gone on with, a cell that was measured stays."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setattr(ceilings, "COPY_BYTES", {"cpu": 2**20})
    monkeypatch.setattr(ceilings, "MATRIX_SIDE", {"cpu": 64})
    out = tmp_path / "t.json"
    own = ("--data", write_tiny(tmp_path / "tiny.npz"), "--out", out, "--batch-size", "16", "--device", "cpu")
    own += ("--rounds", "2", "--steps", "1", "--rows", "student,graphs,fastresnet")
    done = bench("--arch", "n2-b1-c4", *own)
    assert done.exit_code == 0, done.output
    record = json.loads(out.read_text())
    (cell,) = record["cells"]
    assert list(cell["rows"]) == ["student", "graphs", "fastresnet"] and record["not_measured"] == []
    assert cell["rows"]["graphs"] == {"left_out": "CUDA graphs are for GPUs"}
    student, ours = cell["rows"][STUDENT], cell["rows"][OURS]
    for row in (student, ours):
        assert len(row["images_per_s"]) == len(row["step_images_per_s"]) == 2
        assert min(row["images_per_s"]) > 0 and row["start_s"] > 0
        assert row["share_of_matrix"] == pytest.approx(
            row["median"] * cell["flops_per_image"] / record["ceilings"]["matrix_flops_per_s"]
        )
    assert cell["ratios"] == [
        o / s for o, s in zip(ours["images_per_s"], student["images_per_s"], strict=True)
    ]
    assert ours["ratio"] == pytest.approx(cell["median_ratio"]) and student["ratio"] is None
    assert out.with_suffix(".md").read_text() == done.stdout == bench("--show", out).stdout
    assert "fastresnet is " in done.stdout and "left out: CUDA graphs are for GPUs" in done.stdout

    later = bench("--arch", "n2-b1-c4,n1-b1-c4", *own, "--minutes", "0")
    assert later.exit_code == 0, later.output
    gone_on = json.loads(out.read_text())
    assert gone_on["cells"] == record["cells"] and gone_on["not_measured"] == ["n1-b1-c4 at 16"]
    refused = bench("--arch", "n2-b1-c4", *own, "--steps", "2")
    assert isinstance(refused.exception, UserError) and "steps was 1 and is 2" in str(refused.exception)


def test_every_row_is_there_or_says_why_not(data: Data, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fastresnet.bench.ladder.resolve_amp", lambda wanted, device: "off")
    monkeypatch.setattr("fastresnet.kernels.dispatch.INTERPRETED", False)

    def reasons(**config: Any) -> dict[str, str | None]:
        rungs = ladder(RECIPE, RunConfig(**config), data, CPU, ROWS)
        assert [rung.name for rung in rungs] == list(ROWS) == list(CHANGE)
        assert all((rung.start is None) == (rung.left_out is not None) for rung in rungs)
        return {rung.name: rung.left_out for rung in rungs}

    found = reasons(compile="off")
    assert {name for name, reason in found.items() if reason is None} == {
        *(STUDENT, "channels-last", "kernels", "step", "convs", OURS)
    }
    assert found["amp"] == "this hardware has no bfloat16, which would be slower"
    assert found["compile"] == "--compile off; compiling takes minutes on a CPU"
    assert reasons(amp="off", compile="on")["amp"] == "--amp off"
    narrow = ladder(RECIPE.with_overrides({"arch": "n2-b1-c4"}), RunConfig(), data, CPU, ROWS)
    assert "fewer than 8 channels are not safe" in str(narrow[1].left_out)
    monkeypatch.setattr("fastresnet.bench.ladder.compiler_missing", lambda device: None)
    assert reasons(compile="on")["compile"] is None
    assert "multiples of 16" in str(narrow[list(ROWS).index("convs")].left_out)


def test_the_students_changes_change_nothing_but_rounding(data: Data) -> None:
    """In another layout the network learns the same from the same batch."""
    drawn = torch.Generator().manual_seed(0)
    images = torch.randn(16, 3, 8, 8, generator=drawn)
    labels = torch.arange(16) % 3
    losses = []
    for changes in (Changes(), Changes(channels_last=True), Changes(channels_last=True, kernels="eager")):
        torch.manual_seed(0)
        student = Student(data, RECIPE.arch_spec(), CPU, changes)
        seen: list[float] = []
        student.criterion.register_forward_hook(
            lambda module, args, loss, seen=seen: seen.append(loss.item())
        )
        assert list(student.train([(images, labels)] * 3)) == [16, 16, 16]
        losses.append(seen)
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
    assert all(seen[2] < seen[0] for seen in losses)  # of our network too, whose first weights are others
    assert (
        Changes(compiled=True, kernels="triton")
        .describe()
        .endswith("compiled, float32, NCHW, norms by triton")
    )


@pytest.mark.parametrize("slug", ["improved-resnet", "n3-b0,1,1-c8-maxpool"])
def test_a_network_the_student_cannot_write_is_a_reason(data: Data, slug: str) -> None:
    with pytest.raises(UserError, match="the student's network has basic blocks"):
        Student(data, get_arch(slug), CPU, Changes())


def fails() -> Loop:
    raise UserError("no such thing here")


def test_a_loop_that_cannot_be_made_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    process = LoopProcess("compile", fails)
    try:
        with pytest.raises(UserError, match="'compile' failed: no such thing here"):
            process.await_ready()
    finally:
        process.close()
    process.close()


def is_importing(row: psutil.Process) -> bool:
    return any("libtorch_cpu" in mapped.path for mapped in row.memory_maps())


def is_loading(row: psutil.Process) -> bool:
    return bool(row.children())  # a DataLoader's workers


@pytest.mark.parametrize("is_at", [is_importing, is_loading])
def test_ctrl_c_is_one_line_whatever_a_rows_process_is_at(
    is_at: Callable[[psutil.Process], bool], tmp_path: Path
) -> None:
    data = write_tiny(tmp_path / "tiny.npz")
    own = (
        "bench",
        "throughput",
        "--data",
        str(data),
        "--device",
        "cpu",
        "--rows",
        "student",
        "--arch",
        "n2-b1-c4",
    )
    own += ("--batch-size", "16", "--rounds", "100000", "--out", str(tmp_path / "t.json"))
    with started(tmp_path, *own, command=(sys.executable, "-m", "fastresnet")) as process:
        rows: list[psutil.Process] = []
        while process.poll() is None:
            rows = spawned(process.pid)
            if rows and is_at(rows[0]):
                break
        os.killpg(process.pid, signal.SIGINT)
        _, told = process.communicate(timeout=FAR)
    assert process.returncode == 128 + signal.SIGINT, told
    assert told.splitlines()[-1] == "fastresnet: stopped by SIGINT; nothing was left half-written"
    assert "Traceback" not in told
    assert psutil.wait_procs(rows, timeout=FAR)[1] == []


class Fake:
    """Stands for a process whose loop runs at a known speed."""

    def __init__(self, name: str, speed: float, log: list[str]) -> None:
        self.name, self.speed, self.log = name, speed, log

    def await_ready(self) -> dict[str, Any]:
        self.log.append(f"{self.name} ready")
        if self.name == "compile":
            raise UserError("no compiler")
        return {"what": self.name, "options": {"compile": "on", "kernels": "triton"}, "start_s": 1.0}

    def time(self, steps: int, *, alone: bool = False) -> float:
        self.log.append(self.name)
        return self.speed * (2 if alone else 1)

    def close(self) -> None:
        self.log.append(f"{self.name} closed")


def test_rows_take_turns_and_our_own_looks_for_the_fastest_first() -> None:
    log: list[str] = []

    def rung(name: str, speed: float) -> throughput.Rung:
        def start(found: Any) -> Any:
            log.append(f"{name} starts with {dict(found).get('kernels')}")
            return Fake(name, speed, log)

        return throughput.Rung(name=name, start=start)

    rungs = [rung(STUDENT, 100.0), rung("compile", 1.0), rung("step", 300.0), rung(OURS, 900.0)]
    plan = throughput.Plan(archs=("x",), batch_sizes=(1,), rounds=2, steps=1)
    rows = throughput._measure_cell(rungs, plan, lambda line: None)
    assert log[:3] == ["fastresnet starts with None", "fastresnet ready", "student starts with triton"]
    timed = [name for name in log if name in ROWS]
    assert timed == [STUDENT, "step", OURS] * 4  # whole steps, then steps alone, twice
    assert sorted(log[-3:]) == ["fastresnet closed", "step closed", "student closed"]
    rates = Ceilings(copy_bytes_per_s=1e9, matrix_flops_per_s=1e9, dtype="float32")
    floor = {"arithmetic_s": 1e-4, "norms_s": 1e-4, "images_per_s": 5000.0}
    cell = throughput._cell("x", 1, rows, 1_000_000, floor, rates)
    assert rows["compile"] == {"left_out": "no compiler"}
    assert [rows[name].get("ratio") for name in (STUDENT, "step", OURS)] == [None, 3.0, 3.0]
    assert cell["median_ratio"] == 9.0 and rows[OURS]["times_floor"] == pytest.approx(5000 / 900)
    assert rows[OURS]["share_of_matrix"] == pytest.approx(0.9)
    where = {"device_name": "a GPU", "cores": 1, "threads": 1, "torch": "2"}
    settings = {"dataset": "shapes", "rounds": 2, "steps": 1}
    page = to_markdown(
        {
            **{"environment": where, "settings": settings, "ceilings": rates.to_json(), "date": "2026-01-01"},
            **{"command": "x", "cells": [cell], "not_measured": ["y at 2"]},
        }
    )
    assert "Floor: 5,000 img/s (100 us of arithmetic and 100 us of batch-norm traffic an image)" in page
    assert "Medians of 2 rounds of 1 step, the rows in turn" in page
    assert "| fastresnet train | 900.0 (900.0 to 900.0) | 3.00 | 90.00% |" in page
    assert "9.00 times as fast" in page and "Not measured, for want of time: y at 2." in page


@pytest.mark.parametrize(
    ("rows", "missing", "labels"),
    [
        ("student fastresnet", "", "the student's loop; fastresnet train"),
        ("fastresnet", "", "fastresnet train"),
        ("amp kernels", "", "the student's loop + AMP; + fused norms"),
        (
            "student step convs fastresnet",
            "",
            "the student's loop; our step, DataLoader; + our convolutions; fastresnet train",
        ),
        (
            "convs graphs fastresnet",
            "graphs",
            "our step and convolutions, DataLoader; + CUDA graphs; + our loader",
        ),
        (
            "graphs fastresnet",
            "graphs",
            "our step, convolutions and CUDA graphs, DataLoader; fastresnet train",
        ),
        (" ".join(ROWS), "compile graphs", "; ".join(CHANGE.values())),
    ],
)
def test_a_row_is_called_by_what_it_adds_to_those_that_are_there(
    rows: str, missing: str, labels: str
) -> None:
    cell = {name: {"left_out": "none here" if name in missing.split() else None} for name in rows.split()}
    assert "; ".join(label_of(name, cell) for name in cell) == labels


def test_mistakes() -> None:
    for arguments, complaint in (
        (("--rows", "studnt"), "there is no row 'studnt'; did you mean 'student'?"),
        (("--rows", ""), "--rows names no row; give one or more, as in --rows student,fastresnet"),
        (("--batch-size", "x"), "--batch-size is 'x'"),
        (("--batch-size", "1,0"), "--batch-size is '1,0'; give whole numbers of at least 1 with commas"),
        (("--batch-size", ""), "--batch-size is ''"),
        (("--arch", "resnet25"), "unknown architecture 'resnet25'"),
        (("--arch", ","), "--arch names no network"),
    ):
        done = bench(*arguments)
        assert isinstance(done.exception, UserError) and complaint in str(done.exception)


def test_a_record_of_the_earlier_form_says_so() -> None:
    record = Path(__file__).resolve().parents[1] / "bench" / "records" / "throughput-resnet24-j75-cpu.json"
    if not record.exists():
        pytest.skip("records stay behind in an sdist")
    done = bench("--show", record)
    assert isinstance(done.exception, UserError) and "of an earlier form" in str(done.exception)


def test_a_row_that_fails_on_its_way_is_left_out_and_the_others_go_on() -> None:
    class Failing(Fake):
        def time(self, steps: int, *, alone: bool = False) -> float:
            if alone and self.log.count(self.name) == 3:
                raise UserError("out of memory")
            return super().time(steps, alone=alone)

    log: list[str] = []
    made = {STUDENT: Fake(STUDENT, 100.0, log), "step": Failing("step", 300.0, log)}
    rungs = [throughput.Rung(name=name, start=lambda found, name=name: made[name]) for name in made]  # type: ignore[misc]
    plan = throughput.Plan(archs=("x",), batch_sizes=(1,), rounds=2, steps=1)
    rows = throughput._measure_cell(rungs, plan, lambda line: None)
    assert rows["step"] == {"left_out": "out of memory"} and log.count("step closed") == 1
    assert rows[STUDENT]["images_per_s"] == [100.0, 100.0] and log.count(STUDENT) == 4
