"""The kernels' benchmark: its byte floors, its cases, and one small measurement from end to end."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from kernel_cases import DEVICE
from optional_parts import need
from typer.testing import CliRunner

from fastresnet.arch import get_arch
from fastresnet.bench import ceilings, kernels
from fastresnet.bench.kernels import Case, Subject, bench_kernels, cases_of
from fastresnet.bench.kernels_page import draw, figure_of, to_markdown, write_page
from fastresnet.cli.main import app
from fastresnet.errors import UserError
from fastresnet.kernels.llvm_norms import llvm_obstacle


def case(added: str = "none", activation: str = "relu", batch_size: int = 512, **changes: Any) -> Case:
    here: dict[str, Any] = {"channels": 64, "side": 32, "dtype": torch.bfloat16, **changes}
    return Case(batch_size=batch_size, added=added, activation=activation, **here)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("added", "activation", "forward", "backward"),
    [
        # bytes of bf16 an element, counted by hand: read for the statistics, read again, written ...
        ("none", "relu", 2 + 2 + 2, 4 + 4 + 2),
        ("plain", "relu", 2 + 4 + 2 + 1 / 8, 4 + 1 / 8 + 2 + 4 + 2),  # bits; g is written, then read for dx
        ("plain", "gelu", 2 + 4 + 2, 6 + 2 + 4 + 2),  # the residual again: anchors' 8E and 14E
        ("norm", "relu", 4 + 4 + 2, 6 + 6 + 4),
    ],
)
def test_floor_of_two_passes(added: str, activation: str, forward: float, backward: float) -> None:
    subject = case(added, activation)
    assert subject.num_passes("cuda") == 2
    elements = 512 * 64 * 32 * 32
    assert subject.floor_bytes("forward", "cuda") == forward * elements
    assert subject.floor_bytes("backward", "cuda") == backward * elements
    assert subject.floor_bytes("both", "cuda") == (forward + backward) * elements


def test_floor_of_one_pass() -> None:
    subject = case(batch_size=4, side=8)
    assert subject.num_passes("cuda") == 1
    assert [subject.floor_bytes(d, "cuda") / subject.num_elements for d in ("forward", "backward")] == [4, 6]
    # LLVM's kernels take two passes whatever the shape, and keep no bits.
    plain = case("plain", batch_size=4, side=8)
    assert plain.num_passes("cpu") == 2
    assert [plain.floor_bytes(d, "cpu") / plain.num_elements for d in ("forward", "backward")] == [8, 12]


def test_cases_of_a_network() -> None:
    names = [case.name for case in cases_of(get_arch("resnet24"), 512, torch.bfloat16)]
    assert names[:3] == ["bn+relu 512x64x32x32", "bn+add+relu 512x64x32x32", "bn+relu 512x128x16x16"]
    assert len(names) == len(set(names)) == 11 and names[-1] == "bn+bn+relu 512x256x4x4"
    wide = cases_of(get_arch("improved-resnet"), 8, torch.float32)
    assert [c.channels for c in wide] == [32, 64, 128, 256, 256, 128, 256, 512, 512, 256, 1024, 1024]
    assert [c.added for c in wide if (c.channels, c.side) == (256, 32)] == [
        "plain",
        "norm",
    ]  # one of each block
    pooled = cases_of(get_arch("n3-b0,1,0-c16-maxpool"), 8, torch.float32)
    assert [(c.channels, c.side, c.added) for c in pooled] == [
        *((16, 32, "none"), (32, 16, "none"), (32, 16, "plain"), (64, 8, "none")),
    ]


def test_what_is_saved() -> None:
    """Beside inputs and output: a mean and a variance a channel, and a bit an element where there is an add."""
    need("triton")
    assert (DEVICE.type == "cpu") == kernels.INTERPRETED  # or what is tested would be plain PyTorch
    small = {"batch_size": 2, "channels": 8, "side": 4, "dtype": torch.float32}

    def saved(added: str, activation: str) -> int:
        subject = Subject(case(added, activation, **small), "triton", DEVICE)
        subject.module = subject.norm
        return subject.saved_bytes()

    assert saved("none", "relu") == saved("plain", "gelu") == 2 * 8 * 4
    assert saved("plain", "relu") == 2 * 8 * 4 + 2 * 8 * 16 // 8
    assert saved("norm", "relu") == 4 * 8 * 4


def test_from_measurement_to_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Eager, Inductor and the kernels (interpreted where there is no GPU), all directions of one small case."""
    need("triton")
    cases = [case(activation="silu", batch_size=2, channels=4, side=4), case("plain", batch_size=2)]
    told: list[str] = []
    saved: list[str] = []
    monkeypatch.setattr(ceilings, "COPY_BYTES", {"cpu": 2**20, "cuda": 2**26})

    def measured(answers: list[bool], earlier: dict[str, Any] | None, rounds: int = 1) -> dict[str, Any]:
        return bench_kernels(
            cases,
            device_wanted=DEVICE.type,
            rounds=rounds,
            calls=2,
            earlier=earlier,
            save=lambda record: saved.append(json.dumps(record)),
            progress=told.append,
            out_of_time=lambda: answers.pop(0),
        )

    record = measured([False, True], None)
    assert len(record["rows"]) == 9 and record["not_measured"] == [cases[1].name]
    assert [json.loads(text) for text in saved] == [record]
    for row in record["rows"]:
        assert row["case"] == cases[0].name and row["dtype"] == "bfloat16"
        assert row["passes"] == (2 if DEVICE.type == "cpu" else 1)
        assert 0 < row["p20_s"] <= row["p50_s"] <= row["p80_s"]
        assert row["share_of_copy"] == pytest.approx(
            row["floor_bytes"] / row["p50_s"] / record["copy_bytes_per_s"]
        )
    assert told[-1].startswith("bn+silu 2x4x4x4: eager ")
    write_page(record, tmp_path / "kernels.json")
    assert json.loads((tmp_path / "kernels.json").read_text())["rows"] == record["rows"]
    page = (tmp_path / "kernels.md").read_text()
    assert page.count("| bn+silu 2x4x4x4 |") == 3 and "for want of time: bn+add+relu 2x64x32x32" in page
    assert ("ran in its interpreter" in page) == (DEVICE.type == "cpu")
    assert (tmp_path / "kernels.png").read_bytes().startswith(b"\x89PNG")

    # Gone on with, nothing is measured twice, and other conditions are refused.
    again = measured([True], record)
    assert again["rows"] == record["rows"] and again["copy_bytes_per_s"] == record["copy_bytes_per_s"]
    with pytest.raises(UserError, match="begun under other conditions: rounds was 1 and is 2; choose"):
        measured([True], record, rounds=2)
    elsewhere = {**record, "environment": {**record["environment"], "device_name": "another"}}
    with pytest.raises(UserError, match="device_name was 'another'"):
        measured([True], elsewhere)


def record_of(rows: list[dict[str, Any]], **changes: Any) -> dict[str, Any]:
    where = {"device_name": "some CPU", "torch": "2"}
    plain = {
        "kind": "kernels",
        "environment": where,
        "date": "2026-01-01",
        "command": "x",
        "copy_bytes_per_s": 1e9,
        "triton": "compiled",
        "inductor": "compiled",
        "llvm": "compiled",
        "settings": {"implementations": list(dict.fromkeys(row["implementation"] for row in rows))},
    }
    return plain | {"rounds": 1, "calls": 1, "cuda_graphs": False, "rows": rows, "not_measured": []} | changes


def test_a_page_says_what_is_unmeasured() -> None:
    page = to_markdown(record_of([], triton="Triton is not installed"))
    assert "**The Triton kernels are unmeasured here: Triton is not installed.**" in page
    page = to_markdown(record_of([], llvm="llvmlite is not installed"))
    assert "LLVM's norms are unmeasured here: llvmlite is not installed." in page
    assert draw(record_of([])).startswith(b"\x89PNG")


def test_the_command_measures_what_it_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []

    def record(cases: list[Case], **options: Any) -> dict[str, Any]:
        seen.append((cases, options))
        return record_of([])

    monkeypatch.setattr(kernels, "bench_kernels", record)
    out = tmp_path / "a" / "k.json"

    def bench(*arguments: str) -> Any:
        return CliRunner().invoke(app, ["bench", "kernels", *arguments])

    own = ("--batch-size", "4", "--amp", "bf16", "--tunings", "--minutes", "0", "--out", str(out))
    done = bench("--arch", "resnet8,resnet24", *own)
    assert done.exit_code == 0, done.output
    cases, options = seen[0]
    assert len(cases) == len(set(cases)) == 15 and {c.batch_size for c in cases} == {4}
    assert options["kernels"] == ("triton", "triton-1", "triton-2", "triton-3")
    assert options["earlier"] is None and options["out_of_time"]()
    assert out.with_suffix(".md").read_text() in done.output
    assert "no GPU: eager, Inductor and LLVM's are measured" in done.output or DEVICE.type == "cuda"
    shown = bench("--show", str(out))
    assert shown.stdout == out.with_suffix(".md").read_text()
    out.write_text(json.dumps({key: value for key, value in record_of([]).items() if key != "settings"}))
    refused = bench("--out", str(out))
    assert isinstance(refused.exception, UserError) and "choose another --out" in str(refused.exception)


def test_a_cpus_own_norms_are_measured_where_they_take_a_case(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if obstacle := llvm_obstacle("cpu"):
        pytest.skip(obstacle)
    monkeypatch.setattr(ceilings, "COPY_BYTES", {"cpu": 2**20})
    monkeypatch.setattr(kernels, "compiler_missing", lambda device: "no C++ compiler was found")
    monkeypatch.setattr(kernels, "triton_obstacle", lambda device: "not here")
    shape: dict[str, Any] = {"batch_size": 1, "dtype": torch.float32}
    cases = [case("plain", **shape), case("plain", **shape | {"side": 16})]  # few elements
    record = bench_kernels(cases, device_wanted="cpu", rounds=1, calls=1)
    measured = {(row["case"], row["implementation"]) for row in record["rows"]}
    taken, other = (found.name for found in cases)
    assert measured == {(taken, "eager"), (taken, "llvm"), (other, "eager")}
    (saved,) = {row["saved_bytes"] for row in record["rows"] if row["implementation"] == "llvm"}
    assert saved == 2 * 64 * 4  # a mean and a variance a channel: the output is there anyway
    page = to_markdown(record)
    told = "Not taken: LLVM's norms are for 65,536 elements and more"
    assert page.count("not taken |") == 3 and told in page and draw(record).startswith(b"\x89PNG")
    figure = figure_of(record)
    figure.draw_without_rendering()
    (legend,) = figure.legends
    panels = [panel.get_window_extent() for panel in figure.axes]
    assert len(panels) == 3 and not any(legend.get_window_extent().overlaps(panel) for panel in panels)
    few = bench_kernels(cases[1:], device_wanted="cpu", rounds=1, calls=1)  # none of which they take
    page = to_markdown(few)
    assert page.count("| eager, us | share | saved, kB | llvm, us |") == 3 and told in page


def test_one_small_case_on_a_cpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Eager alone where there is no compiler: what the command can do anywhere."""
    monkeypatch.setattr(ceilings, "COPY_BYTES", {"cpu": 2**20})
    monkeypatch.setattr(kernels, "compiler_missing", lambda device: "no C++ compiler was found")
    reason = "Triton compiles for GPUs, and this run is on the cpu"
    monkeypatch.setattr(kernels, "triton_obstacle", lambda device: reason)
    own = ("--arch", "n1-b1-c4", "--batch-size", "2", "--rounds", "1", "--device", "cpu")
    out = tmp_path / "k.json"
    done = CliRunner().invoke(app, ["bench", "kernels", *own, "--out", str(out)])
    assert done.exit_code == 0, done.output
    record = json.loads(out.read_text())
    assert {row["implementation"] for row in record["rows"]} == {"eager"} and len(record["rows"]) == 6
    page = out.with_suffix(".md").read_text()
    assert f"kernels are unmeasured here: {reason}" in page
    assert "Inductor is unmeasured here: no C++ compiler was found" in page
