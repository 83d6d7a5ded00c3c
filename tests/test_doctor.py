"""``fastresnet doctor``: what it finds here, and that its commands name what pyproject.toml asks for."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from fastresnet.cli import doctor as module

ROOT = Path(__file__).resolve().parents[1]


def findings_by_part() -> dict[str, module.Finding]:
    return {finding.part: finding for finding in module.examine()}


def test_every_missing_part_says_what_it_takes() -> None:
    for finding in module.examine():
        assert finding.found
        assert (finding.takes is None) == finding.present, finding


def test_json_and_text_show_the_same_parts() -> None:
    app = typer.Typer()
    app.command()(module.doctor)
    shown = CliRunner().invoke(app, [])
    as_json = CliRunner().invoke(app, ["--json"])
    assert shown.exit_code == as_json.exit_code == 0
    parts = json.loads(as_json.stdout)
    assert {
        "device",
        "bf16",
        "compile",
        "triton",
        "kernels",
        "ffcv",
        "dali",
        "sweep",
        "onnx",
        "chromium",
        "cache",
    } <= parts.keys()
    for name, finding in parts.items():
        assert f"{name:<12}{finding['found']}" in shown.stdout


def test_commands_name_the_versions_that_the_project_asks_for() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert extras["ffcv"] == [module.FFCV]
    assert extras["dali"] == [module.DALI["13"]]
    assert extras["dali-cu12"] == [module.DALI["12"]]
    assert extras["sweep"] == list(module.SWEEP) and extras["export"] == list(module.EXPORT)
    pins = dict(line.split("==") for line in (ROOT / "constraints.txt").read_text().split() if "==" in line)
    assert module.TRITON_OF_TORCH[pins["torch"].rpartition(".")[0]] == pins["triton"]


def test_missing_parts_say_how_to_get_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_version", lambda name: None if name in ("ffcv", "onnxruntime") else "1.0")
    monkeypatch.setenv("PATH", "")
    found = findings_by_part()
    takes = {part: finding.takes or "" for part, finding in found.items()}
    assert takes["ffcv"].startswith("bash ") and (ROOT / takes["ffcv"].split()[1]).is_file()
    assert takes["onnx"].endswith(" -m pip install 'onnxruntime>=1.20'") and found["sweep"].present
    assert takes["chromium"].endswith("apt-get install -y chromium chromium-driver")
    # Away from a clone the script is not there.
    monkeypatch.setattr(module, "FFCV_SCRIPT", ROOT / "nothing")
    assert "libopencv-dev && " in (findings_by_part()["ffcv"].takes or "")


def test_a_missing_compiler_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    finding = findings_by_part()["compile"]
    assert not finding.present
    assert finding.takes is not None and "apt-get install -y g++ python3-dev" in finding.takes


def test_a_cache_that_does_not_exist_yet_is_measured_where_it_will_be(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    folder = tmp_path / "not" / "yet"
    monkeypatch.setenv("FASTRESNET_CACHE", str(folder))
    finding = findings_by_part()["cache"]
    assert finding.present and str(folder) in finding.found
    assert not folder.exists()


def test_a_cache_below_a_file_cannot_be_written(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("FASTRESNET_CACHE", str(tmp_path / "file" / "cache"))
    finding = findings_by_part()["cache"]
    assert not finding.present
    assert finding.takes is not None and "FASTRESNET_CACHE" in finding.takes
