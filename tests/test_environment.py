"""What records say of the source."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from fastresnet.bench.continued import go_on
from fastresnet.environment import environment
from fastresnet.errors import UserError

PACKAGE = Path(__file__).resolve().parents[1] / "fastresnet"


def test_a_source_without_git_is_told_by_its_files(tmp_path: Path) -> None:
    """Of a wheel or a copy, runs of two sources are not taken for one's."""
    leave = shutil.ignore_patterns("__pycache__", "records")
    shutil.copytree(PACKAGE, tmp_path / "a" / "fastresnet", ignore=leave)
    shutil.copytree(tmp_path / "a", tmp_path / "b")

    def told(folder: str) -> str:
        program = "from fastresnet.environment import source_version; print(source_version())"
        command = [sys.executable, "-P", "-c", program]
        environment = {"PYTHONPATH": str(tmp_path / folder), "PYTHONDONTWRITEBYTECODE": "1"}
        return subprocess.run(command, capture_output=True, text=True, check=True, env=environment).stdout

    first = told("a")
    assert first.startswith("source-") and len(first) == len("source-0123456789ab\n")
    assert told("b") == first
    with open(tmp_path / "b" / "fastresnet" / "bench" / "board.py", "a") as file:
        file.write("# changed\n")
    assert told("b") != first


@pytest.mark.parametrize(("device", "goes_on"), [("some GPU", True), ("one", False)])
def test_a_gpus_board_goes_on_beside_another_processor(device: str, goes_on: bool) -> None:
    """The same model of GPU may be beside another host; what trains on the processor itself is of that one alone."""
    earlier = environment(device, 2) | {"cpu": "one", "instructions": "avx"}
    here = environment(device if goes_on else "two", 4) | {"cpu": "two", "instructions": "sve"}
    then, now = ({"environment": each, "settings": {}, "command": "x"} for each in (earlier, here))
    for same_source in (False, True):
        if goes_on and not same_source:
            assert go_on(then, now, same_source=same_source)["environment"]["cpu"] == "one"
        else:
            with pytest.raises(UserError, match="other conditions: cpu was 'one' and is 'two'"):
                go_on(then, now, same_source=same_source)
