"""``fastresnet bench loaders``: every row measured or said to have failed, and a table made from the record."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from train_processes import FAR
from typer.testing import CliRunner, Result

from fastresnet.bench import isolated
from fastresnet.bench.isolated import FailedError, run_isolated
from fastresnet.bench.loader_report import PRINTED_S, markdown, note, start_up_fit, table
from fastresnet.cli.main import app
from fastresnet.errors import UserError

BEGIN, END = "<!-- bench loaders: begin -->", "<!-- bench loaders: end -->"


def bench(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["bench", "loaders", *arguments])


# A row is measured in a fork, and a fork of a process whose OpenMP has run, as this one's has, would hang in it.
WITHOUT_OPTIONAL = """
import sys
sys.modules.update(dict.fromkeys(("ffcv", "ffcv.loader", "nvidia.dali", "nvidia.dali.fn")))
sys.argv = ["fastresnet", "bench", "loaders", *sys.argv[1:]]
from fastresnet.cli.main import main
main()
"""


def bench_apart(*arguments: str) -> None:
    """Run the command in a process of its own in which ffcv and DALI cannot be imported."""
    command = [sys.executable, "-c", WITHOUT_OPTIONAL, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_whole_table(npz_file: Path, tmp_path: Path) -> None:
    out = tmp_path / "r.json"
    page = tmp_path / "page.md"
    page.write_text(f"before\n{BEGIN}\nold\n{END}\nafter\n")
    bench_apart(
        *(
            "--data",
            str(npz_file),
            "--workers",
            "0,2",
            "--repeats",
            "2",
            "--batch-size",
            "8",
            "--device",
            "cpu",
        ),
        *("--arch", "resnet8", "--steps", "1", "--out", str(out), "--insert", str(page)),
    )
    record = json.loads(out.read_text())
    rows = {row["name"]: row for row in record["rows"]}
    assert len(record["copy_bytes_per_s"]) == 2
    for name in ("numba", "resident", "torch (DataLoader over the pack), 2 workers"):
        assert len(rows[name]["runs"]) == 2
        for run in rows[name]["runs"]:
            assert run["bits_match"] is True
            assert len(run["images_per_s"]) == 4
            assert 0 < run["cold_start_s"] < run["five_epochs_s"]
            assert run["cpu_s_per_1000"] > 0
            assert run["peak_added_bytes"] > 0
    transforms = rows["DataLoader, torchvision transforms, 2 workers"]
    assert [run["bits_match"] for run in transforms["runs"]] == [None, None]
    for name in ("ffcv", "dali"):
        assert "fastresnet doctor" in rows[name]["error"]
        assert rows[name]["runs"] == []
    assert {row["name"] for row in record["rows"] if row["waits"]} >= {"numba", "resident"}
    text = page.read_text()
    assert text.startswith("before\n")
    assert text.endswith("after\n")
    assert markdown(record) in text
    assert "\nold\n" not in text
    assert "fastresnet doctor" in text  # a row that fails says why
    assert out.with_suffix(".png").read_bytes().startswith(b"\x89PNG")
    assert out.with_suffix(".md").read_text() == markdown(record)
    assert bench("--show", str(out)).output == markdown(record)


def test_quick_leaves_the_five_epochs_empty(npz_file: Path, tmp_path: Path) -> None:
    out = tmp_path / "q.json"
    bench_apart("--quick", "--workers", "0", "--data", str(npz_file), "--device", "cpu", "--out", str(out))
    header, *lines = table(json.loads(out.read_text()))
    assert header[1] == "5 epochs, s"
    assert {line[1] for line in lines} == {""}
    assert all(line[4] for line in lines)


def made_row(kind: str, workers: int, rate: float, first_s: float = 0.1, **changed: Any) -> dict[str, Any]:
    name = f"{kind} {workers}" if kind != "backend" else changed.pop("backend", "numba")
    run = {
        **{"five_epochs_s": 10.0, "cold_start_s": first_s, "first_batches_s": [first_s] * 5},
        **{"images_per_s": [rate, rate * 1.1, rate * 0.9, rate], "cpu_s_per_1000": 0.5},
        **{"peak_added_bytes": 3 << 20, "bits_match": None if kind == "transforms" else True},
    }
    row = {
        "name": name,
        "kind": kind,
        "backend": "",
        "workers": workers,
        "beyond_cores": workers > 2,
        "error": None,
    }
    return {**row, "runs": [run], "waits": [], **changed}


def made_record(rows: list[dict[str, Any]], **changed: Any) -> dict[str, Any]:
    environment = {"device_name": "a CPU", "cores": 2}
    return {
        **{"dataset": "shapes", "num_images": 100, "image_bytes": 3072, "batch_size": 128, "device": "cpu"},
        **{"environment": environment, "date": "2026-01-01", "repeats": 3, "epochs": 5, "arch": None},
        **{"interrupted": None, "copy_bytes_per_s": [3.072e9, 6e9, 1e9], "rows": rows, **changed},
    }


def test_shares_and_ratios_are_of_medians() -> None:
    rows = [
        made_row("transforms", 2, 1_000),
        made_row("transforms", 4, 2_000),
        made_row("backend", 0, 500_000),
    ]
    header, *lines = table(made_record(rows, dataset="CIFAR-10-J75"))
    cells = dict(zip(header, lines[2], strict=True))
    assert cells["of copy speed"] == "50.0%"  # of 1,000,000 images a second
    assert cells["times best transforms row"] == "250.00"
    assert cells["memory added, MiB"] == "3"
    assert cells["img/s, warm (least to most)"] == "500,000 (450,000 to 550,000)"
    assert lines[1][0].endswith("*")
    assert lines[0][2] == f"{PRINTED_S[2]:.2f}"


def test_a_page_says_only_what_is_so() -> None:
    """A quick look at other images has no five epochs, nothing that R0 printed, and one figure a row."""
    rows = [made_row("transforms", 2, 1_000), made_row("backend", 0, 500_000)]
    for row in rows:
        row["runs"] = [{**row["runs"][0], "images_per_s": 500.0}]
        del row["runs"][0]["five_epochs_s"], row["runs"][0]["first_batches_s"]
    page = markdown(made_record(rows, epochs=None, repeats=1))
    header = page.splitlines()[0]
    assert [cell.strip() for cell in header.split("|")][1:4] == ["loader", "cold start, s", "img/s, warm"]
    assert "R0" not in page and "2.16" not in page and "more workers than cores" not in page
    assert "A quick look: seconds a row, no five epochs." in page
    whole = [made_row("backend", 0, 500_000), *(made_row("transforms", n, 1_000) for n in (2, 4, 8))]
    for dataset, is_r0s in {
        "CIFAR-10": True,
        "CIFAR-10-J75": True,
        "CIFAR-100": False,
        "shapes": False,
    }.items():
        page = markdown(made_record(whole, dataset=dataset))
        assert "5 epochs, s" in page and "img/s, warm (least to most)" in page
        assert ("| R0 printed |" in page) == ("that R0 printed fit" in page) == is_r0s


def test_the_note_names_the_bottleneck() -> None:
    rows = [made_row("transforms", 0, 5_000), made_row("backend", 0, 2_000_000)]
    plain = " ".join(note(made_record(rows)))
    assert "Use `numba` here, the default" in plain
    assert "400 times" in plain
    rows[1]["waits"] = [{"step_s": 0.5, "share": 0.001}]
    rows[0]["waits"] = [{"step_s": 0.6, "share": 0.3}]
    waits = " ".join(note(made_record(rows, arch="resnet24")))
    assert "compute is the bottleneck" in waits
    assert "30.0%" in waits
    rows[1]["waits"] = [{"step_s": 0.5, "share": 0.4}]
    assert "loading is part" in " ".join(note(made_record(rows, arch="resnet24")))


def test_the_start_up_fit_finds_the_line() -> None:
    rows = [
        made_row("transforms", workers, 1_000, first_s=(1.0 + 0.3 * workers) / 5) for workers in (2, 4, 8, 20)
    ]
    fit = start_up_fit(made_record([*rows, made_row("transforms", 0, 1_000, first_s=9.0)]))
    assert fit == pytest.approx((1.0, 0.3))


def test_a_file_without_marks_is_refused(tmp_path: Path) -> None:
    page, record = tmp_path / "page.md", tmp_path / "r.json"
    page.write_text("no marks")
    record.write_text(json.dumps({"kind": "loaders", **made_record([made_row("backend", 0, 1_000)])}))
    done = bench("--show", str(record), "--insert", str(page))
    assert isinstance(done.exception, UserError) and "has no place for the table" in str(done.exception)
    assert page.read_text() == "no marks"


def test_an_arch_that_is_none_is_refused_before_anything_is_measured(npz_file: Path) -> None:
    refused = bench("--data", str(npz_file), "--quick", "--arch", "resnet2")
    assert isinstance(refused.exception, UserError) and "did you mean" in str(refused.exception)
    assert "1/1" not in refused.output


def test_a_gpu_that_is_not_there_is_named(npz_file: Path) -> None:
    done = bench("--quick", "--data", str(npz_file), "--device", "cuda:99")
    assert isinstance(done.exception, UserError)
    assert "cuda:99" in str(done.exception)


@pytest.mark.parametrize("workers", ["two", "", ",", "0,-1", "1.5"])
def test_worker_counts_are_checked(workers: str) -> None:
    done = bench("--workers", workers)
    assert isinstance(done.exception, UserError)
    assert f"--workers is {workers!r}; give whole numbers of at least 0 with commas" in str(done.exception)


def test_ctrl_c_keeps_what_is_done(npz_file: Path, tmp_path: Path) -> None:
    out = tmp_path / "r.json"
    arguments = [
        "--data",
        str(npz_file),
        "--workers",
        "0",
        "--repeats",
        "500",
        "--device",
        "cpu",
        "--out",
        str(out),
    ]
    command = [sys.executable, "-m", "fastresnet", "bench", "loaders", *arguments]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        for line in process.stderr:
            if "numba: " in line:
                break
        os.kill(process.pid, signal.SIGINT)
        process.communicate(timeout=FAR)
        assert process.returncode == 130
    record = json.loads(out.read_text())
    assert record["interrupted"] == "SIGINT"
    rows = {row["name"]: row for row in record["rows"]}
    assert len(rows["numba"]["runs"]) >= 1
    assert "Interrupted" in out.with_suffix(".md").read_text()


def explode(weigh: Any) -> None:
    raise ValueError("first line\nsecond line")


def die(weigh: Any) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def dawdle(weigh: Any) -> None:
    subprocess.Popen(["sleep", "1000"])
    time.sleep(1000)


def hold(num_bytes: int, weigh: Any) -> int:
    weigh(True)
    block = bytearray(os.urandom(1 << 20) * (num_bytes >> 20))
    weigh(False)
    return len(block)


@pytest.mark.parametrize(
    ("function", "reason"), [(explode, "ValueError: first line"), (die, "died"), (dawdle, "too long")]
)
def test_a_measurement_that_fails_says_why(function: Any, reason: str) -> None:
    children = len(isolated.psutil.Process().children(recursive=True))
    with pytest.raises(FailedError, match=reason) as caught:
        run_isolated(function, limit_s=3)
    assert "\n" not in str(caught.value)
    assert len(isolated.psutil.Process().children(recursive=True)) == children


def test_memory_is_weighed() -> None:
    outcome = run_isolated(hold, 64 << 20, limit_s=60)
    assert outcome.value == 64 << 20
    assert outcome.peak_added_bytes is not None
    assert 60 << 20 < outcome.peak_added_bytes < 200 << 20
