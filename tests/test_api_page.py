"""docs/api.md: its examples run as they stand, one after another."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from made_data import picture
from PIL import Image

PAGE = Path(__file__).resolve().parents[1] / "docs" / "api.md"
FENCED = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def test_the_examples_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    text = PAGE.read_text("utf-8")
    examples = FENCED.findall(text)
    assert text.count("```") == 2 * len(examples) and {language for language, _ in examples} == {"python"}
    monkeypatch.chdir(tmp_path)
    (tmp_path / "photos").mkdir()
    for number, (name, size) in enumerate((("first.jpg", 57), ("second.png", 32))):
        Image.fromarray(picture(number, 0, size)).save(tmp_path / "photos" / name)
    names: dict[str, Any] = {}
    for number, (_, code) in enumerate(examples):
        line = text[: text.index(code)].count("\n")
        # As many empty lines before it as the page has, so that a traceback shows the page's own.
        exec(compile("\n" * line + code, str(PAGE), "exec"), names)
        capsys.readouterr() if number < len(examples) - 1 else None
    assert capsys.readouterr().out.startswith("unknown architecture 'resnet25'; did you mean ")
    assert names["exported"].num_bytes == (tmp_path / "network.safetensors").stat().st_size
    assert names["written"].page.is_file() and len(names["result"].epochs) == 2
    assert names["recipe"].optimizer.lr == 0.1 and names["recipe"].ema is None
    assert names["evaluation"].accuracy == pytest.approx(names["result"].test_accuracy, abs=0.005)
