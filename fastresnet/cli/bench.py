"""``fastresnet bench``: measurements, each written as a raw record."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Annotated

import typer

from fastresnet.cli import bench_ablation, bench_kernels, bench_throughput, bench_time_to
from fastresnet.cli.options import Data, Device, Insert, Show, SweepsDir
from fastresnet.cli.page_showing import check_beside_show, show_page
from fastresnet.cli.typed import listed_counts
from fastresnet.signals import Stopped

app = typer.Typer(no_args_is_help=True, help="Measure on this machine, and write raw records.")
app.command("ablation", short_help="Judge changes to a recipe, one at a time.")(bench_ablation.ablation)
app.command("kernels", short_help="Measure the fused norms by shape.")(bench_kernels.kernels)
app.command("throughput", short_help="Compare a student's loop with ours.")(bench_throughput.throughput)
app.command("time-to", short_help="Measure how fast an accuracy is reached.")(bench_time_to.time_to)


@app.command("loaders", short_help="Measure every way of loading images.")
def loaders(
    context: typer.Context,
    data: Data = None,
    workers: Annotated[
        str | None,
        typer.Option(help="Worker counts of the DataLoader rows [default: 0,2,4,8,12,16,20; quick: 0,2]."),
    ] = None,
    repeats: Annotated[
        int | None,
        typer.Option(help="How often each row is measured, in turn [default: 3; quick: 1].", min=1),
    ] = None,
    batch_size: Annotated[int, typer.Option(help="Images a step.", min=1)] = 128,
    quick: Annotated[bool, typer.Option("--quick", help="Under a minute: images a second alone.")] = False,
    arch: Annotated[
        str | None, typer.Option(help="Also measure the share of this arch's step spent waiting for data.")
    ] = None,
    steps: Annotated[int, typer.Option(help="Training steps a row for that.", min=1)] = 8,
    device: Device = "auto",
    out: Annotated[
        Path | None,
        typer.Option(help="The record; a .md and a .png go beside it [default: in bench-results]."),
    ] = None,
    show: Show = None,
    insert: Insert = None,
) -> None:
    """Measure every way of loading images here: the worker table of the reports, and each of our backends."""
    from fastresnet.atomic import write_atomic
    from fastresnet.bench.loader_report import markdown, plot
    from fastresnet.bench.record import check_insert, check_out, read_record, write_record
    from fastresnet.cli.progress import shown_progress

    if show is not None:
        check_beside_show(context)
        record = read_record(show, "loaders", markdown)
    else:
        from fastresnet.bench.loader_rows import WORKERS, Plan
        from fastresnet.bench.loaders import measure
        from fastresnet.bench.record import default_record_path

        counts: tuple[int, ...] = WORKERS[:2] if quick else WORKERS
        if workers is not None:
            counts = listed_counts("--workers", workers, "0,2,4", least=0)
        plan = Plan(
            workers=counts,
            repeats=repeats or (1 if quick else 3),
            batch_size=batch_size,
            quick=quick,
            device=device,
            arch=arch,
            steps=steps,
        )
        path = out or default_record_path("loaders")
        check_out(path, ".md", ".png")
        check_insert("bench loaders", *insert or ())
        if not quick:
            typer.echo(
                "This takes minutes to an hour; --quick takes one. Ctrl-C keeps what is done.", err=True
            )
        with shown_progress() as progress:
            stops = (KeyboardInterrupt, Stopped)
            record = measure(plan, data, progress, lambda text: typer.echo(text, err=True), stops)
        write_record(path, record)
        write_atomic(path.with_suffix(".md"), lambda file: file.write(markdown(record).encode()))
        plot(record, path.with_suffix(".png"))
        typer.echo(f"record     {path}, and the same as .md and .png", err=True)
    show_page(markdown(record), "bench loaders", insert)
    if show is None and record["interrupted"]:
        raise typer.Exit(128 + signal.Signals[record["interrupted"]])


@app.command("sweep", short_help="Make a record of a finished sweep.")
def sweep(
    context: typer.Context,
    name: Annotated[
        str | None, typer.Argument(metavar="NAME", help="A finished sweep: its name or its folder.")
    ] = None,
    sweeps_dir: SweepsDir = Path("sweeps"),
    out: Annotated[
        Path | None, typer.Option(help="The record [default: a dated file in bench-results].")
    ] = None,
    show: Show = None,
    insert: Insert = None,
) -> None:
    """Make a record of a finished sweep: each cell's training beside what was printed, and where it ran."""
    from fastresnet.bench.record import (
        check_insert,
        check_out,
        default_record_path,
        read_record,
        write_record,
    )
    from fastresnet.bench.sweep_record import make_sweep_record, markdown
    from fastresnet.errors import UserError

    if (name is None) == (show is None):
        raise UserError("give either a sweep, as in `fastresnet bench sweep r1-c`, or --show RECORD")
    if show is not None:
        check_beside_show(context)
        record = read_record(show, "sweep", markdown)
    else:
        record = make_sweep_record(str(name), sweeps_dir)
        path = out or default_record_path(f"sweep-{record['name']}")
        check_out(path)
        check_insert(f"bench sweep {record['name']}", *insert or ())
        write_record(path, record)
        typer.echo(f"record     {path}", err=True)
    show_page(markdown(record), f"bench sweep {record['name']}", insert)
