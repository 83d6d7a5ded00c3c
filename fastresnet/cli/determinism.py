"""``fastresnet doctor --determinism``: which promises of sameness hold on this machine."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict

import typer

SHOWN = {"exact": "exact", "within": "within", "failed": "FAILED", "not run": "--"}


def show_determinism(as_json: bool) -> None:
    """Train and compare for a minute, and print what came of it; exits 1 where a promise does not hold."""
    from fastresnet.determinism import examine_determinism

    def say(text: str) -> None:
        if sys.stderr.isatty():
            typer.echo(f"comparing: {text}", err=True)

    if not as_json:
        typer.echo("Tiny networks are trained and compared, for a minute or so:")
    verdicts = []
    for verdict in examine_determinism(progress=say):
        verdicts.append(verdict)
        if not as_json:
            word = "BROKEN" if verdict.is_broken else SHOWN[verdict.held]
            promise = "promised" if verdict.promised else ""
            typer.echo(f"{word:<8}{verdict.what:<42}{promise:<10}{verdict.found}")
    broken = sum(verdict.is_broken for verdict in verdicts)
    if as_json:
        typer.echo(
            json.dumps([asdict(verdict) | {"broken": verdict.is_broken} for verdict in verdicts], indent=2)
        )
    elif broken:
        typer.echo(f"{broken} promises do not hold on this machine")
    else:
        typer.echo("every promise that could be looked at holds on this machine")
    if broken:
        raise typer.Exit(1)
