"""The command line itself: help, what becomes of closed outputs, and that nothing of it is cut off."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest
import typer
from typed_commands import Command

from fastresnet.cli.main import app


def commands(command: Any = None, *path: str) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Yield every command and group of commands with the words that it is typed as."""
    command = command or typer.main.get_command(app)
    yield path, command
    for name, below in getattr(command, "commands", {}).items():
        yield from commands(below, *path, name)


COMMANDS = {" ".join(path): command for path, command in commands()}
GROUPS = [name for name, command in COMMANDS.items() if hasattr(command, "commands")]


@pytest.mark.parametrize("name", GROUPS)
def test_a_group_alone_prints_its_help_as_it_stands(name: str, fastresnet: Command) -> None:
    """It was one line, and called an error."""
    code, out, err = fastresnet(*name.split())
    assert (code, out) == (2, "")
    assert err.startswith(f"Usage: {' '.join(['fastresnet', *name.split()])} [OPTIONS] COMMAND [ARGS]...\n\n")
    assert "\nCommands:\n" in err and "fastresnet: error" not in err
    assert err == fastresnet(*name.split(), "--help")[1]


@pytest.mark.parametrize("name", COMMANDS)
def test_help_is_whole_and_has_a_short_name(
    name: str, fastresnet: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    code, out, err = fastresnet(*name.split(), "--help")
    assert (code, err) == (0, "") and fastresnet(*name.split(), "-h")[1] == out
    assert not [line for line in out.partition("\nCommands:")[2].splitlines() if line.endswith("...")]
    usage = out.splitlines()[0]
    assert usage.startswith(f"Usage: {' '.join(['fastresnet', *name.split()])} [OPTIONS]")
    for typo in ("[[", "]]", ":best", "|", "...]"):
        assert typo not in usage.replace("[ARGS]...", "")
    if "--compile" in out:
        assert "whole or off" in " ".join(out.split())


def start(*words: str, **streams: Any) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "fastresnet", *words]
    return subprocess.Popen(command, text=True, **{"stderr": subprocess.PIPE, **streams})


@pytest.mark.parametrize("words", [("archs",), ("sweep",), ("--help",)], ids=" ".join)
def test_a_reader_that_leaves_ends_the_command_with_141(words: tuple[str, ...]) -> None:
    """Typer and rich exited with 1."""
    with start(*words, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None and process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == ""
    assert process.returncode == 141


@pytest.mark.parametrize(
    ("words", "code"), [(("archs", "resnet8"), 0), (("archs", "resnet8", "--json"), 0), (("archs", "-"), 2)]
)
@pytest.mark.parametrize("closed", [">&-", "2>&-", ">&- 2>&-", "<&- >&- 2>&-"])
def test_closed_outputs_are_no_traceback(words: tuple[str, ...], code: int, closed: str) -> None:
    script = f'exec "$0" -m fastresnet {" ".join(words)} {closed}'
    done = subprocess.run(["sh", "-c", script, sys.executable], capture_output=True, text=True)
    assert done.returncode == code
    assert "Traceback" not in done.stderr and len(done.stderr.splitlines()) == (code == 2) * (
        "2>" not in closed
    )


def test_no_more_memory_is_one_line(monkeypatch: pytest.MonkeyPatch, fastresnet: Command) -> None:
    def full() -> None:
        raise MemoryError

    monkeypatch.setattr("fastresnet.cli.main._run", full)
    code, _, said = fastresnet("archs")
    assert code == 2 and said.count("\n") == 1 and "may have no more memory" in said
