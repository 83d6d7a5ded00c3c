"""``fastresnet report``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fastresnet.cli.options import Device, RunsDir, SweepsDir
from fastresnet.errors import UserError
from fastresnet.words import counted


def report(
    runs: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="RUN",
            help="A run's path, id, or 'last'; with ':best' after it, its best weights are tested. Several are "
            "compared.",
        ),
    ] = None,
    sweep: Annotated[
        str | None, typer.Option(metavar="NAME", help="Report on a finished sweep instead.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder to write to [default: report/ in the run's or sweep's].")
    ] = None,
    data: Annotated[
        str | None, typer.Option(help="Where the runs' data set lies now [default: where it was].")
    ] = None,
    device: Device = "auto",
    runs_dir: RunsDir = Path("runs"),
    sweeps_dir: SweepsDir = Path("sweeps"),
) -> None:
    """Write a page about a run, a comparison of several, or a sweep: one HTML file, and its figures as PNG."""
    if bool(runs) == (sweep is not None):
        raise UserError("give either runs, as in `fastresnet report last`, or --sweep NAME")
    _refuse_sweeps(runs or [], sweeps_dir)
    if sweep is not None:
        from fastresnet.report.sweep_page import write_sweep_report

        written = write_sweep_report(sweep, sweeps_dir=sweeps_dir, out=out)
    else:
        from fastresnet.cli.progress import shown_progress
        from fastresnet.report.page import write_report

        with shown_progress() as progress:
            written = write_report(
                runs or [], runs_dir=runs_dir, out=out, data=data, device=device, progress=progress
            )
    for notice in written.notices:
        typer.echo(f"note: {notice}")
    num_bytes = written.page.stat().st_size
    size = f"{num_bytes / 1e6:.1f} MB" if num_bytes >= 1e6 else f"{num_bytes / 1e3:.0f} KB"
    typer.echo(f"{written.page} ({size}, self-contained)")
    if written.figures:
        typer.echo(f"{counted(len(written.figures), 'figure')} as PNG beside it")


def _refuse_sweeps(runs: list[str], sweeps_dir: Path) -> None:
    from fastresnet.sweep_table import TABLE_JSON

    for run in runs:
        folder = Path(run)
        if (folder / TABLE_JSON).is_file():
            name = folder.name if folder.parent == sweeps_dir else run
            raise UserError(f"{run} is a sweep and not a run; write `fastresnet report --sweep {name}`")
