"""What tests of typed commands share: how one is run, a tiny training's options, and how a refusal looks."""

from __future__ import annotations

from collections.abc import Callable

from tiny_runs import ARCH, BATCH

# Runs a command line in this process and gives exit code, stdout and stderr: the fixture ``fastresnet``.
Command = Callable[..., tuple[int, str, str]]
TINY = ("--arch", ARCH, "--batch-size", str(BATCH), "--threads", "1", "--device", "cpu", "--epochs", "2")


def error_of(shown: tuple[int, str, str]) -> str:
    """Return the one line that a refused command says, having made sure that it is one, and all."""
    code, out, err = shown
    assert code == 2, shown
    assert out == "" and err.startswith("fastresnet: error: ") and err.count("\n") == 1, shown
    assert "Traceback" not in err
    return err.removeprefix("fastresnet: error: ").rstrip("\n")
